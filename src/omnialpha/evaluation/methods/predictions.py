"""Predictions as files: what a method made of the samples of a benchmark, for whoever scores, shows or judges it.

FOLDER/samples.jsonl                 what was asked, a line a sample
FOLDER/predictions/KEY.png           what was made by a task of one target
FOLDER/predictions/KEY/00.png, ...   by one of several, back to front
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from omnialpha.data.records.folders import has_alpha
from omnialpha.errors import InputError
from omnialpha.files import atomic_write, sha256
from omnialpha.io import FORMATS, read_image, write_image
from omnialpha.limits import by

SAMPLES, PREDICTIONS = "samples.jsonl", "predictions"
GREY = 0.1  # channels of a grey JPEG differ by less


@dataclass(frozen=True)
class PredictionRequest:
    """What a prediction was asked for, as `samples.jsonl` keeps it.

    Args:
        key: its file name, which may have folders (`/`).
        task, instruction, prompt, category: in words.
        inputs: paths by role; pictures that lie in no file have none.
        truths: paths in the order of targets, "" where there is none.
        targets: the roles to make.
    """

    key: str
    task: str
    instruction: str = ""
    prompt: str = ""
    category: str = ""
    inputs: dict[str, list[str]] = field(default_factory=dict)
    truths: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)


def write_requests(folder: Path, asked: Iterable[PredictionRequest]) -> None:
    lines = [json.dumps(asdict(one), ensure_ascii=False) for one in asked]
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / SAMPLES, "\n".join(lines) + "\n")


def read_requests(folder: Path) -> dict[str, PredictionRequest]:
    """By key. InputError where the folder holds no samples, or a line that is none."""
    path = folder / SAMPLES
    if not path.is_file():
        raise InputError(f"{folder} holds no {SAMPLES}: give a folder that `omnialpha eval` has written.")
    made = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), start=1):
        try:
            one = PredictionRequest(**json.loads(line))
        except (ValueError, TypeError):
            raise InputError(f"{path}, line {number}, is no sample: run `omnialpha eval` again.") from None
        made[one.key] = one
    return made


def write(folder: Path, key: str, layers: Tensor) -> None:
    """Predicted layers (m, 4, H, W) in [0, 1], in 8 bits as figures are published."""
    for path, layer in zip(_paths(folder / PREDICTIONS, key, len(layers)), layers, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, layer.clamp(0, 1))


def exists(folder: Path, key: str, count: int) -> bool:
    """Whether all layers of a prediction are there."""
    return all(path.is_file() for path in _paths(folder / PREDICTIONS, key, count))


def read(folder: Path, key: str, count: int, size: tuple[int, int] | None, grey_is_alpha: bool = False) -> Tensor:
    """Predicted layers (count, 4, H, W) of a folder with KEY.png or KEY/00.png and so on, in any readable format.

    InputError for one that is missing, or not of `size` (height, width; None: any). grey_is_alpha: a grey file without
    an alpha channel is a matte, as they are published; its colour is 1.
    """
    layers = []
    for path in _paths(folder, key, count):
        found = _found(path)
        if found is None:
            raise InputError(f"{path} is missing: make it, or leave the sample out.")
        matte = read_matte(found) if grey_is_alpha else None
        layer = (
            read_image(found).rgba if matte is None else torch.cat((torch.ones_like(matte).expand(3, -1, -1), matte))
        )
        size = size or (int(layer.shape[1]), int(layer.shape[2]))
        if layer.shape[1:] != size:
            raise InputError(f"{found} is {by(layer.shape[1:])} px, the truth {by(size)} px: resize it.")
        layers.append(layer)
    return torch.stack(layers)


def read_matte(path: Path) -> Tensor | None:
    """(1, H, W): the grey of a file without an alpha channel; None for one with. InputError for one in colour."""
    if has_alpha(path):
        return None
    matte = read_image(path).raw  # a matte is data: no profile changes it
    if float((matte[:3] - matte[:1]).abs().max()) > GREY:
        raise InputError(f"{path} is a colour picture without alpha: give the matte in grey, or the cut-out as RGBA.")
    return matte[:1]


def digest(folder: Path, key: str, count: int) -> str:
    """Of the files of a prediction in a folder as `read` takes it; empty if one is missing."""
    found = [_found(path) for path in _paths(folder, key, count)]
    return "" if None in found else sha256(*found)


def _found(path: Path) -> Path | None:
    """The file of that name in whatever format it is."""
    return next((p for suffix in FORMATS if (p := path.with_suffix(suffix)).is_file()), None)


def _paths(folder: Path, key: str, count: int) -> list[Path]:
    if count == 1:
        return [folder / f"{key}.png"]
    return [folder / key / f"{number:02}.png" for number in range(count)]
