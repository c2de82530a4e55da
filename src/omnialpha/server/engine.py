"""A model on a device, as the worker runs it. A cut-out by the finder alone loads nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from omnialpha.hints import cut_out
from omnialpha.io.layers import LayerStack
from omnialpha.models.checkpoints.folders import Card, Parts
from omnialpha.models.finder import Finder, open_finder

if TYPE_CHECKING:
    from omnialpha.condition import Condition
    from omnialpha.pipeline import OmniAlpha
    from omnialpha.sampling import Step
    from omnialpha.server.calls import TaskCall

Watch = Callable[[int, int], None]  # number of the step that is done, and of all; what it raises stops the run


class Engine(Protocol):
    """What a worker needs of a model."""

    card: Card
    device: str

    def prepare(self) -> None:
        """Load what is to be there before the first job."""

    def run(self, calls: Sequence[TaskCall], watch: Watch) -> list[LayerStack]:
        """Run calls of one kind together."""


class ModelEngine:
    """The engine of a model folder."""

    def __init__(self, parts: Parts, load: Callable[[], OmniAlpha], device: str = "cpu", lazy: bool = False) -> None:
        """
        Args:
            parts: Where the model is, and its card.
            load: Loads it, ready to run.
            device: Its name, for messages.
            lazy: Load the networks when a job first needs them.
        """
        self.card: Card = parts.card
        self.device, self._parts, self._load, self._lazy = device, parts, load, lazy
        self._finder: Finder | None = None
        self._model: OmniAlpha | None = None

    def prepare(self) -> None:
        """Load the finder, and the networks unless they are to wait. Raises InputError for what is damaged."""
        self._finder = open_finder(self._parts.finder) if self._parts.finder else None
        if not self._lazy:
            self._model = self._load()

    def run(self, calls: Sequence[TaskCall], watch: Watch) -> list[LayerStack]:
        """See `Engine`. Raises InputError, and what `watch` raises."""
        first, examples = calls[0], [call.example for call in calls]
        if not first.raw and (cut := cut_out(examples, self._finder, self.card, first.refine)):
            watch(1, 1)
            return cut
        self._model = self._model or self._load()

        def on_step(step: Step, cond: Condition) -> None:
            watch(step.index, step.total)

        settings: dict[str, Any] = {"steps": first.steps, "guidance": first.guidance, "raw": first.raw}
        settings |= {"refine": first.refine}
        return self._model.run(examples, seed=[call.seed for call in calls], on_step=on_step, **settings)
