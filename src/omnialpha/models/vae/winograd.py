"""3x3 convolutions of the autoencoder on a CPU: strip by strip in the cache, with a quarter of the multiplications.

A strip of rows is normalised, activated, convolved and added to while it is in the cache, so that nothing of the
picture's size but input and output goes through memory. Wide layers use Winograd's transforms (Lavin & Gray, arXiv
1509.09308): 36 products for 16 output pixels in place of 144, with sums that round to about 2e-6 of the result. After a
doubling of the picture a 3x3 filter is four filters of 2x2, one for each place in a doubled pixel: 25 products in place
of 64.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from itertools import product
from threading import Barrier
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE, REACH = 4, 6  # pixels of a side that a tile writes (doubled: in each of the four places) and reads
TILES = 256  # of a strip: as many as fit the cache with their 36 products
NARROW = 64  # channels; below, the transforms cost more than they save
FEW = 8  # channels, at most, of a layer that writes pictures: products of pixels and taps first, then shifted sums
ROWS = 16  # of its strips
POINTS = (0.0, 1.0, -1.0, 2.0, -2.0)  # where the polynomials are evaluated

# Filters of a layer along one axis, each as sums of its three taps; that of number p starts to read at pixel p
PLAIN = (((1, 0, 0), (0, 1, 0), (0, 0, 1)),)
DOUBLED = (((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)))

Prepare = Callable[[Tensor, Tensor], object]  # writes a function of single pixels: of the first, into the second
Job = tuple[int, int]  # which picture, and the first row of the strip
Filters = tuple[tuple[tuple[int, ...], ...], ...]
J = TypeVar("J")


def convolve(
    x: Tensor, conv: nn.Conv2d, prepare: Prepare | None = None, add: Tensor | None = None, doubled: bool = False
) -> Tensor | None:
    """A 3x3 convolution of stride 1 and padding 1, where this module is quicker than torch at it.

    Args:
        x: (B, C, H, W) with the channels last in memory.
        conv: the layer.
        prepare: applied to the pixels before: given rows (.., W, C) of x, and where to write the result.
        add: (B, C out, H, W) that the result is added to, in place.
        doubled: whether x is doubled by nearest neighbour before.

    Returns:
        (B, C out, H, W), or twice as high and wide. None where torch's convolution is to be used: on a GPU, in half
        precision, with gradients, of few channels and of sides that are no multiples of 4.
    """
    if not _suits(x, conv):
        return None
    prepare = prepare or (lambda rows, to: to.copy_(rows))
    if _is_last(conv):
        y = _run_last(x, conv, prepare)
        return y if add is None else add.add_(y)
    return _run(x, conv, DOUBLED if doubled else PLAIN, prepare, add)


def workspace(channels: int, pixels: int) -> int:
    """Bytes that `convolve` holds beside its input and output, in one thread.

    Args:
        channels: of the network at full resolution, half as many as it has at most where this counts.
        pixels: of a picture as the network sees it.
    """
    strip = (3 * REACH**2 + TILE**2) * min(TILES, pixels // TILE**2)  # numbers for each channel
    return 4 * 2 * channels * (REACH**2 * 2 * channels + strip) if channels >= NARROW else 0


def _suits(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether this module is quicker: float32 on a CPU without gradients, whole tiles, a wide layer or the last one."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled()
    wide = min(conv.in_channels, conv.out_channels) >= NARROW
    return plain and (wide or _is_last(conv)) and x.shape[2] % TILE == 0 and x.shape[3] % TILE == 0


def _is_last(conv: nn.Conv2d) -> bool:
    return conv.in_channels >= NARROW and conv.out_channels <= FEW


def _run(x: Tensor, conv: nn.Conv2d, kind: Filters, prepare: Prepare, add: Tensor | None) -> Tensor:
    """As `convolve`."""
    height, width = x.shape[2:]
    channels, channels_out, grown = conv.in_channels, conv.out_channels, len(kind)
    size = (len(x), grown * height, grown * width, channels_out)
    y = x.new_empty(size) if add is None else add.movedim(1, -1)
    across = width // TILE
    deep = _depth(height // TILE, across)
    taps = _taps(conv, kind)
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
            for (down, right), (data, _, sums), tap in zip(places, _transforms(kind), taps, strict=True):
                torch.mm(data, spread, out=seen.view(count, -1))
                torch.bmm(seen, tap, out=products)
                products[math.isqrt(count) + 1].add_(bias)  # what is at (1, 1) counts once in every pixel
                torch.mm(sums, products.view(count, -1), out=out)
                rows = made[down::grown, right::grown].unflatten(0, (-1, TILE)).unflatten(2, (-1, TILE))
                rows.copy_(pixels[: len(rows)]) if add is None else rows.add_(pixels[: len(rows)])

    _share(_jobs(x, deep * TILE), work)
    return y.movedim(-1, 1)


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

    _share(_jobs(x, ROWS), work)
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


def _taps(conv: nn.Conv2d, kind: Filters) -> list[Tensor]:
    """The transformed weights (products, C, C out) of each place."""
    folds = [fold for _, fold, _ in _transforms(kind)]
    made = [conv.weight.new_empty(len(fold), *conv.weight.shape[:2]) for fold in folds]

    def work(jobs: Iterable[tuple[tuple[Tensor, Tensor], slice]]) -> None:
        for (fold, to), part in jobs:
            torch.mm(fold, conv.weight[part].reshape(-1, 9).T, out=to[:, part].flatten(1))

    step = math.ceil(conv.out_channels / torch.get_num_threads())
    parts = (slice(first, first + step) for first in range(0, conv.out_channels, step))
    _share(list(product(zip(folds, made, strict=True), parts)), work)  # by the threads that use them: see `_share`
    return [tap.mT for tap in made]


@cache
def _transforms(kind: Filters) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each place of a pixel the float32 matrices of data (P, 36), weights (P, 9) and products (16, P)."""
    one = []
    for start, folds in enumerate(kind):
        data, taps, sums = _winograd(len(folds))
        data = F.pad(data, (start, REACH - len(data) - start))
        one.append((data, taps @ torch.tensor(folds, dtype=torch.float64), sums))
    return [tuple(torch.kron(a, b).float() for a, b in zip(*pair, strict=True)) for pair in product(one, repeat=2)]  # type: ignore[misc]


def _winograd(taps: int) -> tuple[Tensor, Tensor, Tensor]:
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


# ---- a thread to a strip ---------------------------------------------------------------------------------------------


def _share(jobs: Sequence[J], work: Callable[[Iterable[J]], None]) -> None:
    """Have all jobs done by `work`, which is given those of one thread, without gradients. Fewer jobs than threads stay
    in this thread, where torch uses all threads for each.

    Threads that compute a piece together wait for each other after every operation, awake for some milliseconds, on the
    cores that the threads here need (decision 13). So short work between two calls is better shared by this too.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(jobs) < threads:
        work(jobs)
        return
    waiting, inference = deque(jobs), torch.is_inference_mode_enabled()

    def run() -> None:
        with torch.inference_mode(inference), torch.no_grad():  # modes are a thread's own
            work(_taken(waiting))

    for done in [_pool(threads).submit(run) for _ in range(threads)]:
        done.result()


def _taken(waiting: deque[J]) -> Iterator[J]:
    with suppress(IndexError):
        while True:
            yield waiting.popleft()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """So many threads, in each of which torch uses one."""
    pool, met = ThreadPoolExecutor(threads, "omnialpha-strips"), Barrier(threads)

    def begin() -> None:
        torch.get_num_threads()  # torch sets a thread's number when it is first asked for: not after the next line
        torch.set_num_threads(1)
        met.wait()

    for done in [pool.submit(begin) for _ in range(threads)]:
        done.result()
    torch.set_num_threads(threads)  # what threads that are made later start with is the last number set in any
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child process has none of the threads,
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))  # nor torch's, and would wait for them
