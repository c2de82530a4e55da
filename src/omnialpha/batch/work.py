"""What is done to every picture of a batch, and the worker that does it to one after the other."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omnialpha import __version__
from omnialpha.batch.ledger import Entry
from omnialpha.cli.options import Options
from omnialpha.cutout_options import Cutout
from omnialpha.errors import InputError
from omnialpha.files import sha256
from omnialpha.limits import by
from omnialpha.tasks import TASKS, Example, Role, Task


@dataclass(frozen=True)
class Item:
    """A picture to be done: its name, its file, its output below the output folder, and its map."""

    name: str
    source: Path
    output: str
    guide: Path | None = None


@dataclass(frozen=True)
class Work:
    """What is done to every picture, as a process elsewhere can take it.

    Attributes:
        task: The name in the table.
        output: The folder.
        folder: Of the inputs.
        options: How the model is run.
        prompt, layers: As for one picture.
        cutout: How a matting's subjects are finished.
    """

    task: str
    output: Path
    folder: Path
    options: Options
    prompt: str | None = None
    layers: int | None = None
    cutout: Cutout = Cutout()

    @property
    def row(self) -> Task:
        """Of the table."""
        return TASKS[self.task]

    @property
    def stacks(self) -> bool:
        """Whether outputs are folders of layers."""
        return len(self.row.target_roles(self.layers)) > 1

    @property
    def see_through(self) -> bool:
        """Whether the outputs need a format with alpha, whatever the inputs are."""
        flat = all(role in (Role.BACKGROUND, Role.FULL) for role in self.row.targets)
        return self.cutout.background is None and (self.options.raw or not flat)

    @cached_property
    def settings(self) -> str:
        """All that decides what is made, as text; files among it count by their content."""
        own = {name: value for name, value in asdict(self.options).items() if name not in ("quiet", "json")}
        named = [value for value in (*own.values(), self.cutout.background) if value]
        paths = [Path(str(value)) for value in named if isinstance(value, str | Path)]
        files = {str(path): sha256(path) for path in paths if path.is_file()}
        stamps = {str(path): sorted(_stamps(path)) for path in paths if path.is_dir()}
        given = {"task": self.task, "prompt": self.prompt, "layers": self.layers, "cutout": asdict(self.cutout)}
        return json.dumps({**given, **own, "files": files, "folders": stamps, "version": __version__}, default=str)

    def digest(self, item: Item) -> str:
        """Of the bytes of the input and its map, and of all settings. OSError: one of them cannot be read."""
        maps = [item.guide] if item.guide else []
        return sha256(self.settings, *(part for path in (item.source, *maps) for part in ("\0", sha256(path))))


def _stamps(folder: Path) -> Iterator[tuple[str, int, int]]:
    """The files of a model folder, their sizes and times."""
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns


class Worker:
    """Does pictures, several at a time where threads call it; the model is for one of them at a time."""

    def __init__(self, work: Work) -> None:
        """Find the model. InputError: it is not there, or cannot do the task."""
        from omnialpha.models.checkpoints.folders import resolve

        self.work, self.lock = work, threading.Lock()
        self.parts = resolve(work.options.model, **work.options.parts)
        self.card = self.parts.card
        self.card.check_task(work.task)
        self.card.check_reads(work.task)

    @property
    def finder_alone(self) -> bool:
        """Whether every output is a cut-out by the finder, so that no other network is loaded."""
        from omnialpha.hints import finder_suffices

        if self.work.options.raw or self.work.options.of_networks or not self.parts.finder:
            return False
        hinted = self.parts.finder.suffix.lower() != ".onnx"  # those take no hints
        return finder_suffices(self.work.row, self.card, hinted)

    @cached_property
    def model(self) -> Any:
        from omnialpha.cli.run_task import build_setup, load

        return load(self.work.options, build_setup(self.work.options, self.parts))

    @cached_property
    def finder(self) -> Any:
        from omnialpha.models.finder import open_finder

        assert self.parts.finder is not None
        return open_finder(self.parts.finder)

    def prepare(self) -> None:
        """Load what it needs before the first picture. InputError: it cannot be loaded."""
        _ = self.finder if self.finder_alone else self.model

    def __call__(self, item: Item) -> Entry:
        """Do one picture. What is wrong with it is said in the row; other exceptions are no picture's fault."""
        began = time.monotonic()
        row = Entry(item.name, item.output, task=self.work.task, folder=str(self.work.folder))
        try:
            digest = self.work.digest(item)
            row = replace(row, digest=digest, notes=tuple(self._make(item)))
        except InputError as error:
            row = replace(row, error=" ".join(str(error).split()))
        except OSError as error:
            row = replace(row, error=f"{error.filename or item.source} cannot be used ({error.strerror or error}).")
        except MemoryError:
            row = replace(row, error=f"there is too little memory for {item.name}: make it smaller.")
        return replace(row, seconds=round(time.monotonic() - began, 3))

    def _make(self, item: Item) -> list[str]:
        """Read, run and write a picture as `omnialpha run` does. Returns what was lost or assumed."""
        from omnialpha.cli.run_task import check_backdrop, check_fits
        from omnialpha.io import check_output, read_image, write_image
        from omnialpha.io.layers import LayerStack, check_folder

        work, task, notes = self.work, self.work.row, list[str]()
        main = read_image(item.source, frame=work.options.frame)
        notes += main.notes
        given: dict[Role, Any] = {task.inputs[0]: main}
        if item.guide and task.map:
            given[task.map] = read_image(item.guide, data=True)
        example = task.example(given, prompt=work.prompt, layers=work.layers)
        output = work.output / item.output
        output.parent.mkdir(parents=True, exist_ok=True)
        background = work.cutout.background
        if not work.stacks:
            form = check_output(output, [item.source])
            if background:
                check_backdrop(background, example.size, output)
            check_fits(output, form, example, work.options.raw, bool(background))
        else:
            check_folder(output)
        stack, settings = self._run(example)
        if isinstance(stack, LayerStack) and work.stacks:
            stack.save(output, bits=main.bits, settings=settings, icc=main.icc, dpi=main.dpi)
            return notes
        picture = stack[0].rgba
        if work.cutout.changed:
            from omnialpha.cutout import finish

            picture, told = finish(picture, example.inputs[0].cpu(), work.cutout)
            notes += told
        return notes + list(write_image(output, picture, settings=settings, bits=None, source=main))

    def _run(self, example: Example) -> tuple[Any, dict[str, Any]]:
        """The layers, and the settings that are stored with them."""
        from torch import OutOfMemoryError

        options, card = self.work.options, self.card
        defaults = card.defaults(example.task)
        used = options.used(defaults.steps, defaults.guidance)
        stack = None
        if self.finder_alone:
            from omnialpha.hints import cut_out

            cut = cut_out([example], self.finder, card, options.refine)
            stack = cut[0] if cut else None
        if stack is None:
            try:
                stack = self.model.run([example], **used, turn=self.lock)[0]
            except OutOfMemoryError as error:
                raise InputError(
                    f"the device has too little memory for {by(example.size)}: use --device cpu."
                ) from error
        settings = {"task": example.task, "instruction": card.text(example), "model": card.name, **used}
        settings |= self.work.cutout.changed
        return stack, settings | {"size": by(example.size), "version": __version__}
