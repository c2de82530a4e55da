"""3x3 convolutions of the autoencoder on a CPU: strip by strip in the cache, with a quarter of the multiplications.

A strip of rows is normalised, activated, convolved and added to while it is in the cache, so that nothing of the
picture's size but input and output goes through memory. Wide layers use Winograd's transforms (Lavin & Gray, arXiv
1509.09308): 36 products for 16 output pixels in place of 144, with sums that round to about 2e-6 of the result. After a
doubling of the picture a 3x3 filter is four filters of 2x2, one for each place in a doubled pixel: 25 products in place
of 64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import product
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnialpha.models.vae.threads import share

TILE, REACH = 4, 6  # pixels of a side that a tile writes (doubled: in each of the four places) and reads
TILES = 256  # of a strip: as many as fit the cache with their 36 products
NARROW = 64  # channels; below, the transforms cost more than they save
FEW = 8  # channels, at most, of a layer that writes pictures: products of pixels and taps first, then shifted sums
ROWS = 16  # of its strips
POINTS = (0.0, 1.0, -1.0, 2.0, -2.0)  # where the polynomials are evaluated

# Filters of a layer along one axis, each as sums of its three taps; that of number p starts to read at pixel p
PLAIN = (((1, 0, 0), (0, 1, 0), (0, 0, 1)),)
DOUBLED = (((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)))

LIMIT = 2**29  # bytes of transformed weights that are kept between calls, of all autoencoders together; 0: none
SMALL = 64  # tiles of a picture; in larger ones making the transformed weights takes less than a tenth of the time

Prepare = Callable[[Tensor, Tensor], object]  # writes a function of single pixels: of the first, into the second
Job = tuple[int, int]  # which picture, and the first row of the strip
Kind = tuple[tuple[tuple[int, ...], ...], ...]
kept: WeakKeyDictionary[nn.Conv2d, tuple[Tensor, list[Tensor]]] = WeakKeyDictionary()  # weights, and transformed


def suits(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether this module is for it: float32 on a CPU without gradients, whole tiles, a wide layer or the last one."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled()
    return plain and (_is_wide(conv) or _is_last(conv)) and x.shape[2] % TILE == 0 and x.shape[3] % TILE == 0


def _is_wide(conv: nn.Conv2d) -> bool:
    return min(conv.in_channels, conv.out_channels) >= NARROW


def _is_last(conv: nn.Conv2d) -> bool:
    return conv.in_channels >= NARROW and conv.out_channels <= FEW


def convolve(x: Tensor, conv: nn.Conv2d, prepare: Prepare, add: Tensor | None = None) -> Tensor:
    """conv(prepared x), or add += conv(prepared x). x (B, C, H, W), sides multiples of TILE, channels last in memory.

    conv: 3x3, stride 1, padding 1. prepare: given rows (.., W, C) of x and where to write; not that what it reads.
    """
    if _is_last(conv):
        y = _run_last(x, conv, prepare)
        return y if add is None else add.add_(y)
    y = x.new_empty(len(x), *x.shape[2:], conv.out_channels) if add is None else add.movedim(1, -1)
    return _run(x, conv, PLAIN, prepare, y, add is not None).movedim(-1, 1)


def double(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """conv(x doubled by nearest neighbour), as `convolve`."""
    y = x.new_empty(len(x), 2 * x.shape[2], 2 * x.shape[3], conv.out_channels)
    return _run(x, conv, DOUBLED, lambda rows, to: to.copy_(rows), y, False).movedim(-1, 1)


def _run(x: Tensor, conv: nn.Conv2d, kind: Kind, prepare: Prepare, y: Tensor, adds: bool) -> Tensor:
    """Into y, (B, H, W, C) or twice as high and wide."""
    height, width = x.shape[2:]
    channels, channels_out, grown = conv.in_channels, conv.out_channels, len(kind)
    across = width // TILE
    deep = _depth(height // TILE, across)
    taps = _taps(conv, kind, height // TILE * across)
    places, count, bias = list(product(range(grown), repeat=2)), len(taps[0]), conv.bias
    assert bias is not None

    def work(jobs: Iterable[Job]) -> None:
        spread = x.new_empty(REACH**2, deep * across * channels)
        seen = x.new_empty(count, deep * across, channels)
        products = x.new_empty(count, deep * across, channels_out)
        out = x.new_empty(TILE**2, deep * across * channels_out)
        pixels = out.view(TILE, TILE, deep, across, -1).permute(2, 0, 3, 1, 4)
        for index, first, strip in _filled(x, deep * TILE, prepare, jobs):
            row, column, _ = strip.stride()
            tiles = REACH, REACH, deep, across, channels
            spread.view(tiles).copy_(strip.as_strided(tiles, (row, column, TILE * row, TILE * column, 1)))
            made = y[index, grown * first : grown * (first + deep * TILE)]
            for (down, right), (data, _, sums), tap in zip(places, transforms(kind), taps, strict=True):
                torch.mm(data, spread, out=seen.view(count, -1))
                torch.bmm(seen, tap, out=products)
                products[math.isqrt(count) + 1].add_(bias)  # what is at (1, 1) counts once in every pixel
                torch.mm(sums, products.view(count, -1), out=out)
                rows = made[down::grown, right::grown].unflatten(0, (-1, TILE)).unflatten(2, (-1, TILE))
                rows.add_(pixels[: len(rows)]) if adds else rows.copy_(pixels[: len(rows)])

    share(_jobs(x, deep * TILE), work)
    return y


def _run_last(x: Tensor, conv: nn.Conv2d, prepare: Prepare) -> Tensor:
    """(B, C, H, W): each strip's pixels times all taps at once, then for each tap its products, shifted, added up."""
    width, bias = x.shape[3], conv.bias
    assert bias is not None
    y = x.new_empty(len(x), conv.out_channels, *x.shape[2:])
    taps = conv.weight.permute(2, 3, 0, 1).flatten(0, 2)

    def work(jobs: Iterable[Job]) -> None:
        products = x.new_empty(len(taps), (ROWS + 2) * (width + 2))
        shifted = products.view(3, 3, -1, ROWS + 2, width + 2)
        for index, first, strip in _filled(x, ROWS, prepare, jobs):
            torch.mm(taps, strip.flatten(0, 1).T, out=products)
            made = y[index, :, first : first + ROWS].copy_(bias[:, None, None])
            for down, right in product(range(3), repeat=2):
                made.add_(shifted[down, right, :, down : down + made.shape[1], right : right + width])

    share(_jobs(x, ROWS), work)
    return y


def _jobs(x: Tensor, rows: int) -> list[Job]:
    return list(product(range(len(x)), range(0, x.shape[2], rows)))


def _filled(x: Tensor, rows: int, prepare: Prepare, jobs: Iterable[Job]) -> Iterator[tuple[int, int, Tensor]]:
    """The strip (rows + 2, W + 2, C) of each job, prepared, with a border of zeros around the picture."""
    _, channels, height, width = x.shape
    strip = x.new_zeros(rows + 2, width + 2, channels)
    for index, first in jobs:
        top, end = max(0, first - 1), min(height, first + rows + 1)
        strip[0] = 0
        prepare(x[index, :, top:end].movedim(0, -1), strip[top - first + 1 : end - first + 1, 1:-1])
        strip[end - first + 1 :] = 0
        yield index, first, strip


def _depth(rows: int, across: int) -> int:
    """Tiles of a strip from top to bottom: fewer where that makes a strip for each thread."""
    threads = torch.get_num_threads()
    own = max(1, max(TILES // 4, TILES // threads) // across)
    return own if rows >= own * threads else min(rows, max(1, TILES // across))


def _taps(conv: nn.Conv2d, kind: Kind, tiles: int) -> list[Tensor]:
    """The transformed weights (products, C, C out) of each place; those for pictures of few tiles are kept.

    A layer's are in use for as long as its weights are bit for bit those they were made of.
    """
    known = kept.get(conv)
    if known and torch.equal(known[0], conv.weight):
        return known[1]
    kept.pop(conv, None)
    folds = [fold for _, fold, _ in transforms(kind)]
    made = [conv.weight.new_empty(len(fold), *conv.weight.shape[:2]) for fold in folds]

    def work(jobs: Iterable[tuple[tuple[Tensor, Tensor], slice]]) -> None:
        for (fold, to), part in jobs:
            torch.mm(fold, conv.weight[part].reshape(-1, 9).T, out=to[:, part].flatten(1))

    step = math.ceil(conv.out_channels / torch.get_num_threads())
    parts = (slice(first, first + step) for first in range(0, conv.out_channels, step))
    share(list(product(zip(folds, made, strict=True), parts)), work)  # by the threads that use them: see `workers`
    made = [tap.mT for tap in made]
    if tiles <= SMALL and kept_bytes() + sum(t.nbytes for t in (conv.weight, *made)) <= LIMIT:
        kept[conv] = conv.weight.detach().clone(), made
    return made


def will_keep(autoencoder: nn.Module) -> int:
    """Bytes that its weights take for small pictures, transformed and as they are; at most."""
    wide = [
        m for m in autoencoder.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) and m.stride == (1, 1)
    ]  # what doubles its picture has products for four places
    sizes = [(100 if m.in_channels == 2 * m.out_channels else 36) + 9 for m in wide]
    numbers = sum(n * m.in_channels * m.out_channels for n, m in zip(sizes, wide, strict=True) if _is_wide(m))
    return min(LIMIT, 4 * numbers)


def kept_bytes() -> int:
    return sum(tensor.nbytes for weight, taps in list(kept.values()) for tensor in (weight, *taps))


@cache
def transforms(kind: Kind) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each place of a pixel the float32 matrices of data (P, 36), weights (P, 9) and products (16, P)."""
    one = []
    for start, folds in enumerate(kind):
        data, taps, sums = winograd(len(folds))
        data = F.pad(data, (start, REACH - len(data) - start))
        one.append((data, taps @ torch.tensor(folds, dtype=torch.float64), sums))
    return [tuple(torch.kron(a, b).float() for a, b in zip(*pair, strict=True)) for pair in product(one, repeat=2)]  # type: ignore[misc]


def winograd(taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices D (P, P), G (P, taps), S (TILE, P), P = TILE + taps - 1, float64: S (G g * D d) is the filter g at
    TILE places of d (P,).

    Toom and Cook's product of polynomials, turned round: their values at P - 1 points and at infinity.
    """
    points = POINTS[: TILE + taps - 2]

    def polynomial(roots: list[float]) -> Tensor:
        """Coefficients of the product of (x - root), the constant first, filled up to P."""
        made = torch.ones(1, dtype=torch.float64)
        for root in roots:
            made = F.pad(made, (1, 0)) - root * F.pad(made, (0, 1))
        return F.pad(made, (0, len(points) + 1 - len(made)))

    def powers(degree: int) -> Tensor:
        rows = [[p**i for i in range(degree)] for p in points]
        return torch.tensor([*rows, [0.0] * (degree - 1) + [1.0]], dtype=torch.float64)

    others = [[q for q in points if q != p] for p in points]
    data = torch.stack([polynomial(roots) for roots in (*others, list(points))])
    shares = [1 / math.prod(p - q for q in roots) for p, roots in zip(points, others, strict=True)]
    return data, powers(taps) * torch.tensor([*shares, 1.0], dtype=torch.float64)[:, None], powers(TILE).T
