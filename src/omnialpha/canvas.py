"""Fits a picture of any size to a model's grid and pixel budget, and undoes it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil

import torch
from torch import Tensor

from omnialpha import rgba
from omnialpha.errors import InputError

Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class Grid:
    """What sizes a model takes: sides are multiples of `multiple`, areas in pixels per picture and per sample."""

    multiple: int
    picture_pixels: int
    sample_pixels: int  # of all pictures of a sample together
    upscale: bool = False  # whether small pictures are enlarged to fill the budget
    max_side: int = 16384


@dataclass(frozen=True)
class Canvas:
    """A picture of size `source`, resized to `content`, in the top left corner of a canvas of size `size`."""

    source: Size
    content: Size
    size: Size

    def fit(self, picture: Tensor) -> Tensor:
        """(..., 4, *source) -> (..., 4, *size); the padding repeats the last row and column."""
        _check("fit", picture, self.source)
        content = rgba.resize(picture, self.content)
        rows, columns = (
            torch.arange(full, device=picture.device).clamp(max=filled - 1)
            for full, filled in zip(self.size, self.content, strict=True)
        )
        return content.index_select(-2, rows).index_select(-1, columns)

    def restore(self, picture: Tensor) -> Tensor:
        """(..., 4, *size) -> (..., 4, *source): the padding is cut off, then the content is resized back."""
        _check("restore", picture, self.size)
        return rgba.resize(picture[..., : self.content[0], : self.content[1]], self.source)


def _check(verb: str, picture: Tensor, size: Size) -> None:
    if tuple(picture.shape[-2:]) != size:
        height, width = picture.shape[-2:]
        raise InputError(f"This canvas cannot {verb} a picture of {width}x{height} px; pass {size[1]}x{size[0]} px.")


@lru_cache(maxsize=4096)
def plan(source: Size, pictures: int, grid: Grid) -> Canvas:
    """The canvas with the largest scale within the budget; of those the smallest.

    `pictures` counts all images of the sample, inputs and targets. At scale 1, fit then restore is bit-exact."""
    height, width = source
    if min(height, width) < 1:
        raise InputError(f"A picture of {width}x{height} has no pixels; pass at least 1x1.")
    if pictures < 1:
        raise InputError(f"A sample of {pictures} pictures is empty; pass at least 1.")
    budget = min(grid.picture_pixels, grid.sample_pixels // pictures)
    if budget < grid.multiple**2:
        raise InputError(
            f"{pictures} pictures leave {budget} pixels for each, less than {grid.multiple}x{grid.multiple}; "
            f"use at most {grid.sample_pixels // grid.multiple**2} pictures."
        )
    cells = budget // grid.multiple**2  # a canvas of i x j cells fits when i * j <= cells
    longest = max(1, grid.max_side // grid.multiple)
    scale = max(
        min(Fraction(i * grid.multiple, height), Fraction(min(cells // i, longest) * grid.multiple, width))
        for i in range(1, min(cells, longest) + 1)
    )
    if not grid.upscale:
        scale = min(scale, Fraction(1))
    # The sides that just hold the scaled picture are the smallest canvas of that scale.
    size = (_cover(scale * height, grid.multiple), _cover(scale * width, grid.multiple))
    content = (max(1, round(scale * height)), max(1, round(scale * width)))
    return Canvas((height, width), content, size)


def _cover(length: Fraction, multiple: int) -> int:
    return ceil(length / multiple) * multiple
