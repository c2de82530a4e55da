"""Two runs of one benchmark side by side: what a judge or a person is shown, and what is asked about it."""

from __future__ import annotations

import filecmp
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from omnialpha import rgba
from omnialpha.errors import InputError
from omnialpha.evaluation.methods import predictions
from omnialpha.evaluation.methods.predictions import PredictionRequest
from omnialpha.evaluation.reports.report import numbered, shrink, to_bytes
from omnialpha.files import sha256
from omnialpha.io import read_image

SIDES = ("A", "B")
SIDE = 768  # px of the longer side that is shown at most
CELL = 16  # px of a square of the checkerboard
GROUNDS = {"checkerboard": None, "white": 1.0, "grey": 0.5, "black": 0.0}
AGAIN = "give two runs of one benchmark."


class Aspect(NamedTuple):
    """needs: what a sample must have to be asked about it: "prompt", "inputs" or nothing."""

    title: str
    question: str
    needs: str = ""


WORDING = "1"  # goes up with every change of a word that a judge or a person reads
ASPECTS: dict[str, Aspect] = {
    "overall": Aspect(
        "overall",
        "All in all, which result would you rather have? Weigh how good the picture is, how well it fits the request, "
        "and how faithfully it keeps what was given.",
    ),
    "quality": Aspect(
        "quality",
        "Which result is the better picture in itself? Look for sharp and natural detail, believable light and colour, "
        "clean edges and transparency, and for halos, smears, leftovers and other faults.",
    ),
    "prompt": Aspect(
        "prompt match",
        "Which result shows more exactly what the text says: every thing it names with its properties and relations, "
        "and nothing that contradicts it?",
        needs="prompt",
    ),
    "condition": Aspect(
        "preservation of the condition",
        "Which result keeps more faithfully what the given pictures show: the same things, in the same place, shape, "
        "colour and detail, wherever the request leaves them unchanged?",
        needs="inputs",
    ),
}


def aspects(names: Sequence[str]) -> tuple[str, ...]:
    """Names of ASPECTS, in its order; none: all of them. InputError for one that there is not."""
    if strange := [name for name in names if name not in ASPECTS]:
        raise InputError(f"aspect {strange[0]!r} is not known: use {', '.join(ASPECTS)}.")
    return tuple(name for name in ASPECTS if name in names or not names)


def check_ground(ground: str) -> None:
    if ground not in GROUNDS:
        raise InputError(f"ground {ground!r} is not known: use {', '.join(GROUNDS)}.")


@dataclass(frozen=True)
class RenderedPicture:
    """A picture as it is shown. label: what it is, without a hint of who made it; pixels: uint8 (H, W, 3)."""

    label: str
    pixels: np.ndarray

    @cached_property
    def digest(self) -> str:
        return sha256(repr(self.pixels.shape), self.pixels.tobytes())


@dataclass(frozen=True)
class ComparedPair:
    """A sample that both runs have. folders: by side."""

    request: PredictionRequest
    folders: Mapping[str, Path]

    def applies(self, aspect: str) -> bool:
        needs = ASPECTS[aspect].needs
        return not needs or bool(getattr(self.request, needs))

    def given(self) -> dict[str, Tensor]:
        """The pictures that were given, RGBA (4, H, W) in [0, 1], by their label."""
        named = [(role, path) for role, paths in self.request.inputs.items() for path in paths]
        labels = numbered([role for role, _ in named])
        return {label: read_image(path).rgba for label, (_, path) in zip(labels, named, strict=True)}

    def made(self, side: str) -> dict[str, Tensor]:
        """What a side made, RGBA (4, H, W) in [0, 1], by its label, back to front."""
        labels = numbered(self.request.targets)
        layers = predictions.read(self.folders[side] / predictions.PREDICTIONS, self.request.key, len(labels), None)
        return dict(zip(labels, layers, strict=True))

    def shown(self, ground: str) -> tuple[list[RenderedPicture], dict[str, list[RenderedPicture]]]:
        """What was given, and what each side made of it, on the ground and no larger than SIDE px."""

        def render(pictures: Mapping[str, Tensor]) -> list[RenderedPicture]:
            return [RenderedPicture(label, flat(pixels, ground, SIDE)) for label, pixels in pictures.items()]

        return render(self.given()), {side: render(self.made(side)) for side in SIDES}


def flat(pixels: Tensor, ground: str, side: int) -> np.ndarray:
    """RGBA (4, H, W) in [0, 1] -> uint8 (H, W, 3) on the ground, made smaller where it is larger than `side` px."""
    small, shade = shrink(pixels, side), GROUNDS[ground]
    height, width = small.shape[-2:]
    back = rgba.checkerboard(height, width, CELL) if shade is None else torch.full((3, height, width), shade)
    return to_bytes(rgba.flatten(small, back))


@dataclass(frozen=True)
class Pairs:
    """names: what the sides are called. missing: keys of samples by the side that lacks them."""

    names: Mapping[str, str]
    pairs: Sequence[ComparedPair]
    missing: Mapping[str, Sequence[str]]


def match(a: Path, b: Path, limit: int | None = None) -> Pairs:
    """The samples that two runs have in common.

    Args:
        a, b: folders of one method each, as `omnialpha eval` writes them.
        limit: of samples, the first ones of `a`; None: all.

    Raises:
        InputError: a folder is no run, a sample was not the same request on both sides, or none is on both.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit} is out of range: use 1 or more.")
    folders = dict(zip(SIDES, (a, b), strict=True))
    requests = {side: predictions.read_requests(folder) for side, folder in folders.items()}

    def has(side: str, key: str) -> bool:
        request = requests[side].get(key)
        return request is not None and predictions.exists(folders[side], key, len(request.targets))

    keys = list(dict.fromkeys((*requests["A"], *requests["B"])))
    missing = {side: [key for key in keys if not has(side, key)] for side in SIDES}
    lacking = {*missing["A"], *missing["B"]}
    common = [key for key in keys if key not in lacking][:limit]
    for key in common:
        _same(requests["A"][key], requests["B"][key])
    if not common:
        raise InputError(f"{a} and {b} have pictures of no sample in common: {AGAIN}")
    names = {side: folder.resolve().name for side, folder in folders.items()}
    if names["A"] == names["B"]:
        names = {side: str(folder) for side, folder in folders.items()}
    return Pairs(names, [ComparedPair(requests["A"][key], folders) for key in common], missing)


def _same(a: PredictionRequest, b: PredictionRequest) -> None:
    """InputError unless both are the same request, on the same pictures."""
    for name in ("task", "instruction", "prompt", "targets"):
        ours, theirs = getattr(a, name), getattr(b, name)
        if ours != theirs:
            raise InputError(
                f"sample {a.key} is not the same on both sides: its {name} is {ours!r} and {theirs!r}; {AGAIN}"
            )
    if {role: len(paths) for role, paths in a.inputs.items()} != {role: len(paths) for role, paths in b.inputs.items()}:
        raise InputError(f"sample {a.key} was given other pictures on each side: {AGAIN}")
    for first, second in ((p, q) for role in a.inputs for p, q in zip(a.inputs[role], b.inputs[role], strict=True)):
        if lost := [path for path in (first, second) if not Path(path).is_file()]:
            raise InputError(
                f"{lost[0]}, a picture that sample {a.key} was given, is no file: put it back, or unpack it."
            )
        if first != second and not filecmp.cmp(first, second, shallow=False):
            raise InputError(f"{first} and {second} differ, so sample {a.key} is not the same on both sides.")
