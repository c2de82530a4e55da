"""Procedural RGBA layers and backgrounds with captions, any number of them from a seed alone."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from omnialpha.data.records import split as splits
from omnialpha.data.scene import Caption
from omnialpha.data.synthetic.backgrounds import BACKGROUNDS
from omnialpha.data.synthetic.colors import COLORS, color_name, dominant_color
from omnialpha.data.synthetic.shapes import OUTLINES, Array, draw_solid, pick
from omnialpha.data.synthetic.thin_structures import THIN_STRUCTURES
from omnialpha.data.synthetic.translucent import TRANSLUCENT
from omnialpha.errors import InputError

__all__ = ["BACKGROUNDS", "COLORS", "KINDS", "SOLID", "background", "backgrounds", "bank", "color_name",
           "dominant_color", "draw"]  # fmt: skip

SOLID = tuple(OUTLINES)
_DRAWERS = {**THIN_STRUCTURES, **TRANSLUCENT}
KINDS = (*SOLID, *_DRAWERS)


def _bytes(values: Array) -> NDArray[np.uint8]:
    return (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)


def draw(kind: str, rng: Generator, size: int) -> tuple[NDArray[np.uint8], Caption]:
    """One layer (size, size, 4) uint8, straight alpha, that fills the square, and its caption."""
    if kind not in KINDS:
        raise InputError(f"unknown kind {kind!r}: choose one of {', '.join(KINDS)}")
    if size < 8:
        raise InputError(f"size {size} is too small to draw in: use 8 pixels or more")
    rgb, alpha, caption = _DRAWERS[kind](rng, size) if kind in _DRAWERS else draw_solid(kind, rng, size)
    return _bytes(np.concatenate([rgb, alpha[..., None]], axis=-1)), caption


def bank(count: int, size: int, seed: int, split: str = "train") -> tuple[NDArray[np.uint8], list[Caption]]:
    """count layers (count, size, size, 4) of a split, evenly over KINDS, and captions. A layer depends on the seed and
    its number alone, and so does which split it is in: see `data.split.numbers`.
    """
    pictures, captions = np.empty((count, size, size, 4), np.uint8), []
    for place, i in enumerate(splits.numbers("layer", seed, len(KINDS), count, split)):
        pictures[place], caption = draw(KINDS[i % len(KINDS)], np.random.default_rng((seed, i)), size)
        captions.append(caption)
    return pictures, captions


def background(rng: Generator, size: int, kind: str | None = None) -> tuple[NDArray[np.uint8], str]:
    """One opaque background (size, size, 3) uint8 and its caption; a random kind unless given."""
    if kind is not None and kind not in BACKGROUNDS:
        raise InputError(f"unknown background {kind!r}: choose one of {', '.join(BACKGROUNDS)}")
    rgb, caption = BACKGROUNDS[kind or pick(rng, BACKGROUNDS)](rng, size)
    return _bytes(rgb), caption


def backgrounds(count: int, size: int, seed: int, split: str = "train") -> tuple[NDArray[np.uint8], list[str]]:
    """count backgrounds (count, size, size, 3) of a split, evenly over BACKGROUNDS, and captions: see `bank`."""
    pictures, captions, kinds = np.empty((count, size, size, 3), np.uint8), [], tuple(BACKGROUNDS)
    for place, i in enumerate(splits.numbers("background", seed, len(kinds), count, split)):
        rng = np.random.default_rng((seed, i, 1))  # not the numbers of layer i
        pictures[place], caption = background(rng, size, kinds[i % len(kinds)])
        captions.append(caption)
    return pictures, captions
