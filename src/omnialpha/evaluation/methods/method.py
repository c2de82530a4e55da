"""What is measured on a benchmark: anything that makes pictures for examples, be it a model or a classical method."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.files import sha256
from omnialpha.models.checkpoints.folders import Parts
from omnialpha.models.families import FAMILIES
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import Example

BLOCK, BLOCKS = 2**20, 64  # bytes of a file that are read at once, and how many such blocks of a large one

Make = Callable[[Sequence[Example], Sequence[int]], list[Tensor]]


@dataclass(frozen=True)
class Method:
    """Anything that makes pictures for examples: a model, a baseline, a program, or a folder of predictions.

    Args:
        name: in tables, and of its folder in a run.
        make: examples of one task and one size, and a seed each -> their targets, (m, 4, H, W) each, float32 in [0, 1]
            on the CPU, at the size of the example. Of a method of several outputs (len(outputs), m, 4, H, W). None for
            a folder.
        does: whether it can do a task, by name.
        identity: the same for the same pictures, as far as that can be known.
        given: what it is given besides the example, in words.
        batch: examples at once, at most.
        outputs: names of its outputs, if it has several.
        task: what it is asked for in this run.
        folder: with its predictions, for one that makes none.
    """

    name: str
    make: Make | None
    does: Callable[[str], bool]
    identity: str
    given: str = ""
    batch: int = 1
    outputs: tuple[str, ...] = ()
    task: str = ""
    folder: Path | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of its outputs; its own where it has one."""
        return self.outputs or (self.name,)

    @property
    def place(self) -> str:
        """The name of its folder below that of a run."""
        return "".join(c if c.isalnum() or c in "._-" else "-" for c in self.name).strip(".-") or "unnamed"


def of_folder(name: str, folder: Path, task: str = "") -> Method:
    """Predictions that lie in a folder as KEY.png, or KEY/00.png and so on."""
    return Method(name, None, lambda task: True, "", task=task, folder=folder)


def check(methods: Sequence[Method]) -> None:
    """Refuse, before anything is made, methods that cannot take part: InputError for two of one name, a task that a
    method cannot do, or a folder of predictions that is none.
    """
    places = [method.place for method in methods]
    for method in methods:
        if places.count(method.place) > 1:
            raise InputError(f"{method.name} would be measured twice: give NAME=FOLDER to tell predictions apart.")
        if not method.does(method.task):
            raise InputError(f"{method.name} cannot do {method.task}: leave it out, or give another --task.")
        if method.folder and not method.folder.is_dir():
            raise InputError(f"{method.folder} is no folder of predictions: check the path.")


def of_model(
    model: OmniAlpha, name: str, identity: str, raw: bool = False, batch: int = 1, steps: int | None = None,
    guidance: float | None = None,
) -> Method:  # fmt: skip
    """A model as it runs for users. identity: see `identity_of`. raw: without what `fidelity` copies from the input.
    steps, guidance: of sampling; the model's own if None.
    """

    def make(examples: Sequence[Example], seeds: Sequence[int]) -> list[Tensor]:
        stacks = model.run(examples, seed=seeds, raw=raw, steps=steps, guidance=guidance)
        return [torch.stack([layer.rgba for layer in stack]).clamp(0, 1) for stack in stacks]

    able = model.card.tasks
    settings = {"raw": raw or None, "steps": steps, "guidance": guidance}
    given = ", ".join(f"{key}={value}" for key, value in settings.items() if value is not None)
    return Method(name, make, lambda task: not able or task in able, identity, given, batch)


def identity_of(parts: Parts, **settings: Any) -> str:
    """A hash of a model's files and of all else that changes its pictures, the same for the same pictures.

    Of a large file its size and some of its blocks count, as weights that differ do so everywhere.
    """
    parts_of = [json.dumps([asdict(parts.card), settings], sort_keys=True, default=str)]
    folders = [parts.transformer, parts.vae, *(parts.text / name for name in FAMILIES[parts.card.family].text_folders)]
    folders += [parts.finder] if parts.finder else []
    for place, weight in [*((folder, 1.0) for folder in folders), *((a.path, a.weight) for a in parts.adapters)]:
        parts_of += [f"{place.name} {weight}", *digests(place)]
    return sha256("\n".join(parts_of))[:32]


def digests(place: Path) -> list[str]:
    """Of a file, or of all files in a folder."""
    return [_digest(p) for p in ([place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file()))]


def _digest(path: Path) -> str:
    size, blocks = path.stat().st_size, []
    with path.open("rb") as file:
        for start in range(0, size, max(BLOCK, size // BLOCKS)):
            file.seek(start)
            blocks.append(file.read(BLOCK))
    return sha256(f"{path.name} {size}", *blocks)
