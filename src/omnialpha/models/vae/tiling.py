"""Pictures in overlapping tiles: less memory for a network that is too large for the whole picture.

Approximate: a tile's attention sees the tile alone, its convolutions see zeros beyond its edge, and a VAE with group
norms (FLUX) takes their statistics from the tile. Neighbours are blended by smooth weights that sum to one everywhere,
so that there is no seam, and an autoencoder without such parts comes out unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from omnialpha.errors import InputError


@dataclass(frozen=True)
class Tiling:
    """The side of a square tile and what neighbours share at least, in pixels."""

    tile: int = 512
    overlap: int = 128

    def positions(self, ratio: int) -> tuple[int, int]:
        """Both in latents of an autoencoder that makes one of ratio x ratio pixels."""
        if self.tile % ratio or self.overlap % ratio or not 0 < self.overlap <= self.tile // 2:
            raise InputError(
                f"tiles of {self.tile} px with an overlap of {self.overlap} px do not fit the autoencoder: "
                f"use multiples of {ratio}, and an overlap of at most half a tile."
            )
        return self.tile // ratio, self.overlap // ratio


def tiled(
    function: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int, spans: tuple[int, int] = (1, 1)
) -> Tensor:
    """function of x (B, C, H, W), tile by tile, float32 or wider. spans: entries of x and of the result, each way, that
    a position spans; tile and overlap are in positions. A picture within one tile is left to `function` as it is.
    """
    given, made = spans
    height, width = x.shape[-2] // given, x.shape[-1] // given
    if height <= tile and width <= tile:
        return function(x)
    rows, columns = (_windows(length, tile, overlap, made) for length in (height, width))
    total: Tensor | None = None
    for top, down in rows:
        for left, across in columns:
            cut = x[..., top * given : (top + tile) * given, left * given : (left + tile) * given]
            part = function(cut)
            if total is None:
                dtype = torch.promote_types(part.dtype, torch.float32)
                total = part.new_zeros(*part.shape[:2], height * made, width * made, dtype=dtype)
            weight = down[:, None].to(total) * across.to(total)
            place = total[..., top * made : (top + tile) * made, left * made : (left + tile) * made]
            place += part * weight
    assert total is not None
    return total


def _windows(length: int, tile: int, overlap: int, made: int) -> list[tuple[int, Tensor]]:
    """(start in positions, weights of its entries in the result), of tiles spread evenly over `length` positions."""
    if length <= tile:
        return [(0, torch.ones(length * made, dtype=torch.float64))]
    count = math.ceil((length - overlap) / (tile - overlap))
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)]
    shared = [(a + tile - b) * made for a, b in zip(starts[:-1], starts[1:], strict=True)]  # with the next tile
    weights = torch.zeros(count, length * made, dtype=torch.float64)
    for i, start in enumerate(starts):
        window = weights[i, start * made : (start + tile) * made]
        window += 1
        if i > 0:
            window[: shared[i - 1]] *= _rise(shared[i - 1])
        if i < count - 1:
            window[-shared[i] :] *= _rise(shared[i]).flip(0)
    weights /= weights.sum(dim=0)  # more than two tiles meet where the last ones had to move closer together
    return [(start, row[start * made : (start + tile) * made]) for start, row in zip(starts, weights, strict=True)]


def _rise(length: int) -> Tensor:
    """From 0 to 1 over `length` entries, flat at both ends; with its mirror image it sums to one."""
    return torch.sin(torch.pi / 2 * (torch.arange(length, dtype=torch.float64) + 0.5) / length) ** 2
