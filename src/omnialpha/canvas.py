"""Sizes: a picture of any size on the canvas that a model works on, and back."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil

import torch
from torch import Tensor

from omnialpha import rgba
from omnialpha.errors import InputError
from omnialpha.limits import MAX_SIDE, by

Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class Grid:
    """The sizes that a model takes.

    Attributes:
        multiple: Pixels that both sides are multiples of.
        picture_pixels: Pixels of one picture at most.
        sample_pixels: Pixels of all pictures of a sample together, inputs and targets.
        upscale: Whether small pictures are enlarged until they fill that.
        max_side: Pixels of a side at most.
    """

    multiple: int
    picture_pixels: int
    sample_pixels: int
    upscale: bool = False
    max_side: int = MAX_SIDE


@dataclass(frozen=True)
class Canvas:
    """A picture in the top left corner of a canvas. All sizes are (height, width) in pixels.

    Attributes:
        source: Of the picture as it came.
        content: Of the picture on the canvas.
        size: Of the canvas.
    """

    source: Size
    content: Size
    size: Size

    def fit(self, picture: Tensor) -> Tensor:
        """Put pictures on the canvas.

        Args:
            picture: Straight RGBA (..., 4, *source), or (..., 4, *content) where it is resized already.

        Returns:
            (..., 4, *size); the padding repeats the last row and column.

        Raises:
            InputError: The picture is of another size.
        """
        if tuple(picture.shape[-2:]) not in (self.content, self.source):
            raise _mismatch("fit", picture, self.source)
        content = rgba.resize(picture, self.content)
        rows, columns = (
            torch.arange(full, device=picture.device).clamp(max=filled - 1)
            for full, filled in zip(self.size, self.content, strict=True)
        )
        return content.index_select(-2, rows).index_select(-1, columns)

    def restore(self, picture: Tensor) -> Tensor:
        """Take pictures (..., 4, *size) off the canvas and resize them to (..., 4, *source). Inverse of `fit`."""
        if tuple(picture.shape[-2:]) != self.size:
            raise _mismatch("restore", picture, self.size)
        return rgba.resize(picture[..., : self.content[0], : self.content[1]], self.source)


def _mismatch(verb: str, picture: Tensor, size: Size) -> InputError:
    return InputError(f"This canvas cannot {verb} a picture of {by(picture.shape[-2:])}; pass one of {by(size)}.")


@lru_cache(maxsize=4096)
def plan(source: Size, pictures: int, grid: Grid) -> Canvas:
    """The canvas with the largest scale within a model's sizes, and of those the smallest.

    Args:
        source: (height, width) of the pictures of a sample.
        pictures: How many those are, inputs and targets.
        grid: The sizes that the model takes.

    Returns:
        The canvas. Where its content has the size of the source, `restore` after `fit` is bit-exact.

    Raises:
        InputError: A side is 0, or so many pictures leave less than one cell of the grid for each.
    """
    height, width = source
    if min(height, width) < 1:
        raise InputError(f"A picture of {by(source)} has no pixels; pass at least 1x1.")
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
    size = (ceil(scale * height / grid.multiple) * grid.multiple, ceil(scale * width / grid.multiple) * grid.multiple)
    content = (max(1, round(scale * height)), max(1, round(scale * width)))
    return Canvas((height, width), content, size)
