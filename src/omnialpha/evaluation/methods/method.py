"""What is measured on a benchmark: anything that makes pictures for examples, be it a model or a classical method."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnialpha.files import sha256
from omnialpha.models.checkpoints.folders import Parts
from omnialpha.models.families import FAMILIES
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import Example

BLOCK, BLOCKS = 2**20, 64  # bytes of a file that are read at once, and how many such blocks of a large one

Make = Callable[[Sequence[Example], Sequence[int]], list[Tensor]]


@dataclass(frozen=True)
class Method:
    """make: examples of one task and a seed each -> their targets (m, 4, H, W), float32 in [0, 1] on the CPU, at the
    size of the example. does: whether it knows a task. told: what it is given beside the example, in words.
    identity: the same for the same pictures, as far as that can be known.
    """

    name: str
    make: Make
    does: Callable[[str], bool]
    identity: str
    told: str = ""
    batch: int = 1


def of_model(
    model: OmniAlpha,
    name: str,
    identity: str,
    raw: bool = False,
    batch: int = 1,
    steps: int | None = None,
    guidance: float | None = None,
) -> Method:
    """raw: without what `fidelity` copies from the input. steps, guidance: the model's own if None."""

    def make(examples: Sequence[Example], seeds: Sequence[int]) -> list[Tensor]:
        stacks = model.run(examples, seed=seeds, raw=raw, steps=steps, guidance=guidance)
        return [torch.stack([layer.rgba for layer in stack]).clamp(0, 1) for stack in stacks]

    able = model.card.tasks
    settings = {"raw": raw or None, "steps": steps, "guidance": guidance}
    told = ", ".join(f"{key}={value}" for key, value in settings.items() if value is not None)
    return Method(name, make, lambda task: not able or task in able, identity, told, batch)


def identity_of(parts: Parts, **settings: Any) -> str:
    """Of a model by its files and what it runs with: the same for the same pictures. Of a large file its size and some
    of its blocks count, as weights that differ do so everywhere.
    """
    told = [json.dumps([asdict(parts.card), settings], sort_keys=True, default=str)]
    folders = (parts.transformer, parts.vae, *(parts.text / name for name in FAMILIES[parts.card.family].text_folders))
    for place, weight in [*((folder, 1.0) for folder in folders), *((a.path, a.weight) for a in parts.adapters)]:
        told += [f"{place.name} {weight}", *digests(place)]
    return sha256("\n".join(told))[:32]


def digests(place: Path) -> list[str]:
    """Of a file, or of all files in a folder."""
    return [_digest(p) for p in ([place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file()))]


def _digest(path: Path) -> str:
    size = path.stat().st_size
    step = max(BLOCK, size // BLOCKS)
    done = hashlib.sha256(f"{path.name} {size}".encode())
    with path.open("rb") as file:
        for start in range(0, size, step):
            file.seek(start)
            done.update(file.read(BLOCK))
    return done.hexdigest()
