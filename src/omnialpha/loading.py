"""From weights on a disk to a model that is ready to run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from omnialpha import hints
from omnialpha.canvas import plan
from omnialpha.errors import InputError
from omnialpha.fidelity import needs_refining
from omnialpha.models.checkpoints.checking import check
from omnialpha.models.checkpoints.folders import LoraLike, Parts, resolve
from omnialpha.models.families import FAMILIES, Family
from omnialpha.models.lora import adapters
from omnialpha.models.runtime.estimate import Estimate, Job, estimate, measure_speed, memory_warning
from omnialpha.models.runtime.model_sizes import ModelSizes
from omnialpha.models.runtime.placement import DTYPES, Offload, Placement, pick_device, place
from omnialpha.models.runtime.quantize import load_gguf
from omnialpha.models.transformer.approximate import Approximations
from omnialpha.models.transformer.positions import Layout
from omnialpha.pipeline import OmniAlpha
from omnialpha.sampling import FULL_INTERVAL
from omnialpha.tasks import TASKS, Example, Role

__all__ = ["Setup", "load", "pick_device", "swap"]


def load(
    where: str | Path | None = None,
    *,
    base: str | Path | None = None,
    vae: str | Path | None = None,
    lora: LoraLike | Iterable[LoraLike] = (),
    finder: str | Path | None = None,
    instructions: str | Path | None = None,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    offload: Offload = "none",
    quantize: str | None = None,
    attention: str | None = None,
    compile: bool = False,
    approximate: Mapping[str, str] | Approximations | None = None,
) -> OmniAlpha:
    """Load a model, ready to run, without the network.

    Args:
        where: a bundled name (None: nano), a model folder, or an id that `omnialpha pull` has stored.
        base, vae, lora, finder, instructions: fill in or replace its parts, see `checkpoints.folders.resolve`.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: float32, bfloat16 or float16, by default the checkpoint's own.
        offload: none, model, group or disk, see `runtime.offload`.
        quantize: int8, fp8 or nf4, or the name of a GGUF file that holds the transformer.
        attention: a back end of diffusers.
        compile: whether the transformer's blocks are compiled with torch.compile.
        approximate: names and values, see `transformer.approximate`.

    Returns:
        The model, in evaluation mode.

    Raises:
        InputError: something is missing, damaged or not available, with the fix.
    """
    named = None if dtype is None else str(dtype).removeprefix("torch.")
    placement = Placement(device, named, offload, quantize, attention, compile)
    if not isinstance(approximate, Approximations):
        approximate = Approximations.parse(approximate or {})
    parts = resolve(where, base=base, vae=vae, lora=lora, finder=finder, instructions=instructions)
    return Setup(parts, placement, approximate).load()


@dataclass(frozen=True)
class Setup:
    """A model that is about to be loaded: its parts, and where and how it is to run."""

    parts: Parts
    placement: Placement
    approximate: Approximations = Approximations()

    def __post_init__(self) -> None:
        """Raise InputError for a setting that this family of models does not have."""
        name = self.parts.card.name
        given = {"gguf": self.placement.gguf, "vision": self.approximate.vision}
        refused = [setting for setting in self.family.unsupported if given[setting] is not None]
        if self.approximate.guidance != FULL_INTERVAL and self.parts.card.guidance == "embedded":
            refused.append("guidance")  # there is no second pass to leave out
        if refused:
            raise InputError(f"the setting {refused[0]} does not work with {name}: leave it out.")

    @property
    def family(self) -> Family:
        """The row of the model's family."""
        return FAMILIES[self.parts.card.family]

    def forecast(self, example: Example, steps: int, guided: bool, raw: bool = False) -> Estimate:
        """What a run will take, before weights are read.

        Args:
            example: what it is asked for.
            steps: of sampling.
            guided: whether there is a second pass without the instruction.
            raw: whether nothing is refined.

        Returns:
            Memory, very roughly time, and a warning where memory is short, with a setting that would help.

        Raises:
            InputError: the model cannot do the task, or its files are damaged.
        """
        self.parts.card.check_task(example.task)
        device = self.placement.torch_device
        sizes = ModelSizes.read(self.parts, self.placement.dtype, device.type != "cpu", self.placement.gguf)
        inputs = hints.count_inputs(example, self.parts.finder is not None)
        canvas = plan(example.size, inputs + len(example.targets), self.parts.card.grid)
        size = (canvas.size[0] // sizes.side, canvas.size[1] // sizes.side)
        layout = Layout((size,) * len(example.targets), (size,) * inputs)
        guided = guided and self.parts.card.guidance == "negative"
        refined, filled, category = 0, False, TASKS[example.task].category  # as `fidelity.finish_layers` chooses
        if self.parts.card.refine and not raw and needs_refining(example.size, canvas.content):
            filled = category in ("removal", "decomposition")
            seen = Role.COMPOSITE in example.roles and Role.ALPHA not in example.roles
            refined = example.targets.count(Role.FOREGROUND) * seen
        job = Job(
            sizes,
            layout,
            self.placement,
            steps,
            guided,
            instruction_tokens=self.family.text_tokens(self.parts.card),
            tile=self.approximate.tiles,
            pixels=example.size[0] * example.size[1],
            refined=refined,
            filled=filled,
            compared=category == "decomposition",
        )
        made = estimate(job, measure_speed(device, DTYPES[job.dtype]))
        return replace(made, warning=memory_warning(made))

    def load(self) -> OmniAlpha:
        """Read the weights and make the model ready to run. Raises InputError for what is missing or damaged."""
        parts, placement = self.parts, self.placement
        device = placement.torch_device  # a wrong name is refused before anything is read
        check(parts, placement.gguf)
        if parts.warning:
            logging.getLogger("omnialpha").warning(parts.warning)
        dtype = DTYPES[placement.dtype or parts.card.dtype]
        model = OmniAlpha.from_parts(parts, dtype, whole=not placement.gguf)
        if placement.gguf:
            model.transformer = load_gguf(placement.gguf, parts.transformer, dtype).eval().requires_grad_(False)
        adapters.apply(model.transformer, parts.adapters)
        model.transformer.tabulate(device.type != "cpu")  # on a CPU it would take nothing off the device
        model.placed = place(model, placement)
        model.parts = parts
        self.approximate.apply(model.transformer, model.text_encoder, model.vae)  # type: ignore[arg-type]
        model.guidance_interval = self.approximate.guidance
        return model


def swap(model: OmniAlpha, lora: LoraLike | Iterable[LoraLike] = ()) -> None:
    """Change the adapters of a loaded model; its base weights stay where they are.

    Args:
        model: that `load` has made.
        lora: adapters as `load` takes them; without any the model answers bit for bit as its base.

    Raises:
        InputError: one does not fit; those that were there stay.
    """
    assert model.parts is not None and model.placed is not None, "swap is for models that `load` has made"
    parts = model.parts.with_lora(lora)
    card = parts.card  # raises where two adapters disagree
    streamed = model.placed.placement.offload in ("group", "disk")  # new weights have to get its hooks
    if streamed:
        model.placed.undo.close()
    try:
        adapters.apply(model.transformer, parts.adapters)
        model.parts, model.card = parts, card
    finally:
        if streamed:
            model.placed = place(model, replace(model.placed.placement, dtype=None, quantize=None))
