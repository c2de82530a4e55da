"""3x3 convolutions of the codec on a CPU: strip by strip in the cache, with a quarter of the multiplications.

A strip of rows is normalised, activated, convolved and added to while it is in the cache, so that nothing of the
picture's size but input and output goes through memory. Wide layers use Winograd's F(4x4, 3x3) (Lavin & Gray, arXiv
1509.09308): 36 products for 16 output pixels in place of 144, with sums that round to about 2e-6 of the result.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

TILE, REACH = 4, 6  # pixels of a side that a tile writes and reads
TILES = 256  # of a strip: as many as fit the cache with their 36 products
NARROW = 64  # channels; below, the transforms cost more than they save

# 1-D transforms of a tile's data, of the filter and of the products; in 2-D each acts on rows and on columns
DATA = (
    (4.0, 0.0, -5.0, 0.0, 1.0, 0.0), (0.0, -4.0, -4.0, 1.0, 1.0, 0.0), (0.0, 4.0, -4.0, -1.0, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0), (0.0, 2.0, -1.0, -2.0, 1.0, 0.0), (0.0, 4.0, 0.0, -5.0, 0.0, 1.0),
)  # fmt: skip
FILTER = ((6, 0, 0), (-4, -4, -4), (-4, 4, -4), (1, 2, 4), (1, -2, 4), (0, 0, 24))  # divided by 24
PRODUCT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))

Change = Callable[[Tensor], Tensor]


def suits(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether `convolve` is for this case: float32 on a CPU without gradients, whole tiles, wide layers."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled()
    wide = min(conv.in_channels, conv.out_channels) >= NARROW
    return plain and wide and x.shape[2] % TILE == 0 and x.shape[3] % TILE == 0


def two_dimensional(rows: tuple[tuple[float, ...], ...]) -> Tensor:
    matrix = torch.tensor(rows, dtype=torch.float32)
    return torch.kron(matrix, matrix)


def convolve(x: Tensor, conv: nn.Conv2d, prepare: Change, add: Tensor | None = None) -> Tensor:
    """conv(prepare(x)), or add += conv(prepare(x)). x (B, C, H, W), sides multiples of TILE, channels last in memory.

    conv: 3x3, stride 1, padding 1. prepare: a function of single pixels, given strips of x.
    """
    height, width = x.shape[2:]
    channels, channels_out = conv.in_channels, conv.out_channels
    across = width // TILE
    deep = min(height // TILE, max(1, TILES // across))  # tiles of a strip, from top to bottom
    data, product = two_dimensional(DATA), two_dimensional(PRODUCT)
    taps = (two_dimensional(FILTER) / 24**2) @ conv.weight.permute(2, 3, 1, 0).reshape(9, -1)
    taps = taps.view(REACH**2, channels, channels_out)
    assert conv.bias is not None
    bias = conv.bias.repeat(deep * across)
    y = torch.empty(len(x), height, width, channels_out) if add is None else add.movedim(1, -1)
    strip = torch.zeros(deep * TILE + 2, width + 2, channels)  # with a border of zeros
    row, column, _ = strip.stride()
    tiles = strip.as_strided((REACH, REACH, deep, across, channels), (row, column, TILE * row, TILE * column, 1))
    spread = torch.empty(REACH**2, deep * across * channels)
    seen = torch.empty(REACH**2, deep * across, channels)
    products = torch.empty(REACH**2, deep * across, channels_out)
    out = torch.empty(TILE**2, deep * across * channels_out)
    for picture, target in zip(x, y, strict=True):
        for first in range(0, height, deep * TILE):
            top, end = max(0, first - 1), min(height, first + deep * TILE + 1)
            strip[0] = 0
            strip[top - first + 1 : end - first + 1, 1:-1] = prepare(picture[None, :, top:end])[0].movedim(0, -1)
            strip[end - first + 1 :] = 0
            spread.view(tiles.shape).copy_(tiles)
            torch.mm(data, spread, out=seen.view(REACH**2, -1))
            torch.bmm(seen, taps, out=products)
            torch.addmm(bias, product, products.view(REACH**2, -1), out=out)
            rows = target[first : first + deep * TILE].unflatten(0, (-1, TILE)).unflatten(2, (-1, TILE))
            pixels = out.view(TILE, TILE, deep, across, -1).permute(2, 0, 3, 1, 4)[: len(rows)]
            rows.copy_(pixels) if add is None else rows.add_(pixels)
    return y.movedim(-1, 1)
