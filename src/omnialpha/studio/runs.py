"""Runs of the studio: what is asked for, how it is made, with previews and cancelling, and the history of them."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.files import atomic_folder
from omnialpha.io import Picture, write_image
from omnialpha.io.layers import INDEX, LayerStack
from omnialpha.limits import MAX_PIXELS
from omnialpha.masks import as_picture
from omnialpha.models.checkpoints.folders import Card
from omnialpha.server.calls import TaskCall, check_call
from omnialpha.server.config import MEGA, ServerConfig
from omnialpha.server.results import keep_result
from omnialpha.studio.drawn import LEVELS, Drawing
from omnialpha.studio.pictures import PictureShelf
from omnialpha.tasks import MAPS, MEANING, Role, map_values, task

if TYPE_CHECKING:
    from omnialpha.condition import Condition
    from omnialpha.pipeline import OmniAlpha
    from omnialpha.sampling import Step

REQUEST = "run.json"
LIMITS = ServerConfig(max_megapixels=MAX_PIXELS // MEGA)
PREVIEW_EVERY = 0.4  # seconds, at least
PREVIEW_SHARE = 4  # times as long as a preview took, at least, so that they cost a fifth of a run at most


class RunCancelled(Exception):
    """A run that its user has stopped."""


@dataclass(frozen=True)
class StudioRequest:
    """What is asked for, in values that JSON holds.

    Attributes:
        task: Name of a task.
        files: Ids of pictures by role.
        texts: The options that are given, by name.
        drawn: Rows of `Drawing.read`.
    """

    task: str
    files: dict[str, list[str]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    drawn: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class StudioProgress:
    """words: for the user. layers: name and PNG of a preview, back to front; () where there is none."""

    words: str
    step: int = 0
    total: int = 0
    layers: tuple[tuple[str, Path], ...] = ()


@dataclass(frozen=True)
class StudioRun:
    """A run that is done. folder: of a saved stack and REQUEST."""

    folder: Path
    request: StudioRequest
    settings: dict[str, Any]
    seconds: float
    notes: tuple[str, ...]

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def source(self) -> str | None:
        """The id of its first picture; None where it was made from text."""
        inputs = task(self.request.task).inputs
        return self.request.files[inputs[0]][0] if inputs else None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Of the layers: name and file, back to front."""
        rows: list[dict[str, Any]] = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))["layers"]
        return rows

    def stack(self) -> LayerStack:
        return LayerStack.load(self.folder)

    @classmethod
    def read(cls, folder: Path) -> StudioRun:
        """Raises OSError, ValueError, KeyError or TypeError where the folder holds none."""
        kept = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
        request = StudioRequest(**kept["request"])
        return cls(folder, request, kept["settings"], kept["seconds"], tuple(kept["notes"]))


class Studio:
    """One model, its pictures and its runs. All methods may be called from any thread."""

    def __init__(self, folder: Path, card: Card, load: Callable[[], OmniAlpha]) -> None:
        """
        Args:
            folder: Where pictures and runs are kept.
            card: Of the model.
            load: Loads it, when a run first needs it.
        """
        self.folder, self.card, self._load = folder, card, load
        self.pictures = PictureShelf(folder)
        self._model: OmniAlpha | None = None
        self._turn = threading.Lock()  # of the model
        self._runs = folder / "runs"
        self._runs.mkdir(parents=True, exist_ok=True)

    # ---- requests ----------------------------------------------------------------------------------------------

    def call(self, request: StudioRequest) -> TaskCall:
        """A checked request with its pictures decoded. InputError where anything of it is wrong."""
        row, texts = task(request.task), request.texts
        if not self.card.follows(row.name):
            way = "choose a task with a mask, and click on it or paint it"
            raise InputError(f"{self.card.name} cannot tell subjects apart by words: {way}.")
        frame = int(texts["frame"]) if texts.get("frame", "").isdecimal() else None
        files: dict[Role, list[Picture]] = {}
        for role in row.inputs:
            for number, id in enumerate(request.files.get(role, [])):
                first = role is row.inputs[0] and not number
                read = self.pictures.read(id, frame if first else None, role in MAPS)
                files.setdefault(role, []).append(read)
        drawn = self._drawn(request, files)
        if drawn is not None:
            files[drawn[0]] = [Picture(as_picture(drawn[1]))]
        for role in row.inputs:
            if role not in files:
                way = "choose a file, or paint it" if role in LEVELS else "choose or drop a file"
                raise InputError(f"the {role} is missing ({MEANING[role]}): {way}.")
        return check_call(row, files, texts, self.card, LIMITS)

    def _drawn(self, request: StudioRequest, files: dict[Role, list[Picture]]) -> tuple[Role, Tensor] | None:
        """The map of a request that is drawn."""
        row = task(request.task)
        role = row.map
        if role is None or not request.drawn or row.inputs[0] not in files:
            return None
        given = map_values(files[role][0].raw, role) if role in files else None
        values = Drawing.read(request.drawn).map(role, files[row.inputs[0]][0].rgba, given, self._outline)
        return None if values is None else (role, values)

    def _outline(self, picture: Tensor, points: Any, boxes: Any) -> Tensor:
        from omnialpha.hints import outline
        from omnialpha.models.finder import bundled_finder

        return outline(bundled_finder(), picture, points, boxes)

    def show_map(self, request: StudioRequest) -> Path | None:
        """A PNG that tints what the map of a request marks, drawn or given; None where there is none."""
        row = task(request.task)
        role = row.map
        ids = {one: request.files.get(one, [])[:1] for one in row.inputs}
        files = {one: [self.pictures.read(id, None, one in MAPS) for id in row] for one, row in ids.items() if row}
        drawn = self._drawn(request, files)
        if drawn is None and role in files:
            drawn = role, map_values(files[role][0].raw, role)
        return None if drawn is None else self.pictures.shown_map(drawn[1])

    # ---- runs --------------------------------------------------------------------------------------------------

    def run(
        self, request: StudioRequest, cancelled: threading.Event | None = None
    ) -> Iterator[StudioProgress | StudioRun]:
        """Make what is asked for.

        Args:
            request: What.
            cancelled: Set it to stop the run, at the next step of sampling at the latest. So does leaving the loop.

        Yields:
            Progress, with previews, then the run.

        Raises:
            InputError: Anything of the request is wrong.
            RunCancelled: The run was stopped.
        """
        cancelled = cancelled or threading.Event()
        yield StudioProgress("Reading")
        call, events = self.call(request), SimpleQueue[Any]()
        threading.Thread(target=self._work, args=(request, call, events.put, cancelled), daemon=True).start()
        try:
            while True:
                event = events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, StudioRun):
                    return
        finally:
            cancelled.set()

    def _work(
        self, request: StudioRequest, call: TaskCall, tell: Callable[[Any], None], cancelled: threading.Event
    ) -> None:
        try:
            if self._turn.locked():
                tell(StudioProgress("Waiting for another run"))
            while not self._turn.acquire(timeout=0.2):
                _stop_if(cancelled)
            try:
                made = self._make(request, call, tell, cancelled)
            finally:
                self._turn.release()
            tell(made)
        except Exception as error:  # noqa: BLE001 - raised again by whoever waits for this thread
            tell(error)

    def _make(
        self, request: StudioRequest, call: TaskCall, tell: Callable[[Any], None], cancelled: threading.Event
    ) -> StudioRun:
        _stop_if(cancelled)
        began = time.monotonic()
        if self._model is None:
            tell(StudioProgress(f"Loading {self.card.name}"))
            self._model = self._load()
        model = self._model
        previews = _Previews(model, self.folder / "shown" / secrets.token_hex(8))

        def on_step(step: Step, cond: Condition) -> None:
            _stop_if(cancelled)
            words = "Finishing" if step.index == step.total else f"Step {step.index} of {step.total}"
            tell(StudioProgress(words, step.index, step.total, previews.take(step, cond)))

        tell(StudioProgress("Encoding", 0, call.steps))
        how = {"steps": call.steps, "guidance": call.guidance, "raw": call.raw, "refine": call.refine}
        try:
            stack = model.run([call.example], seed=call.seed, on_step=on_step, **how)[0]  # type: ignore[arg-type]
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise InputError(f"{model.device} has too little memory for this: make the picture smaller.") from error
        _stop_if(cancelled)
        return self._keep(request, call, stack, time.monotonic() - began)

    def _keep(self, request: StudioRequest, call: TaskCall, stack: LayerStack, seconds: float) -> StudioRun:
        stack, finished = call.finish(stack)
        notes = [*(call.source.notes if call.source else ()), *finished]
        if len(stack) > 1 and Role.COMPOSITE in call.example.roles:
            notes.append(f"the layers recompose the picture to {stack.error(call.example.inputs[0])['psnr']:.1f} dB")
        settings = call.settings(self.card)
        result = keep_result(stack, settings, call.source)
        folder = self._runs / f"{datetime.now():%Y%m%d-%H%M%S-%f}-{secrets.token_hex(4)}"
        kept = {"request": asdict(request), "settings": settings, "seconds": round(seconds, 2), "notes": notes}
        with atomic_folder(folder) as made:
            for name, data in result.files.items():
                (made / name).write_bytes(data)
            (made / REQUEST).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        return StudioRun.read(folder)

    # ---- history -----------------------------------------------------------------------------------------------

    def history(self, most: int | None = None) -> list[StudioRun]:
        """Earlier runs, the latest first, at most so many; what else lies in the folder is left out."""
        folders = sorted(self._runs.iterdir(), key=lambda path: path.name, reverse=True)
        return [StudioRun.read(folder) for folder in [f for f in folders if (f / REQUEST).is_file()][:most]]

    def find(self, id: str) -> StudioRun:
        """An earlier run. InputError where there is none."""
        if Path(id).name != id or not (self._runs / id / REQUEST).is_file():
            raise InputError(f"the run {id[:40]!r} is not there any more: run it again.")
        return StudioRun.read(self._runs / id)


class _Previews:
    """Pictures of a run before it is done, as often as they cost little."""

    def __init__(self, model: OmniAlpha, stem: Path) -> None:
        self.model, self.stem, self.due = model, stem, 0.0

    def take(self, step: Step, cond: Condition) -> tuple[tuple[str, Path], ...]:
        """Layers of the clean picture that the model expects at this step; () where it is too early for another."""
        began = time.monotonic()
        if began < self.due or step.index == step.total:
            return ()
        height, width = cond.canvases[0].content
        layers = []
        names = cond.examples[0].names
        for number, (name, made) in enumerate(zip(names, self.model.pictures(step.x0, cond)[0], strict=True)):
            file = self.stem.with_name(f"{self.stem.name}-{step.index}-{number}.png")
            write_image(file, made[:, :height, :width].float().cpu().clamp(0, 1))
            layers.append((name, file))
        took = time.monotonic() - began
        self.due = began + took + max(PREVIEW_EVERY, PREVIEW_SHARE * took)
        return tuple(layers)


def _stop_if(cancelled: threading.Event) -> None:
    if cancelled.is_set():
        raise RunCancelled
