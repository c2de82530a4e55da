"""Compiled kernels of `fill`: PatchMatch (Barnes et al. 2009, doi 10.1145/1531326.1531330) with a guide, and the vote.

Pictures are (H, W, 3) float32, maps (H, W). Import it by `kernels.one_thread`: numba compiles it then.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_IMAGE, _MAP, _FLAGS, _PLACES = "float32[:,:,::1]", "float32[:,::1]", "boolean[:,::1]", "int32[:,::1]"
_LISTS = "int32[::1], int32[::1]"


@njit(f"float32({_IMAGE}, {_MAP}, {_IMAGE}, {_IMAGE}, {_IMAGE}, i8, i8, i8, i8, i8, f4, f4, f4)", cache=True)
def _cost(
    now: np.ndarray, trust: np.ndarray, source: np.ndarray, guide: np.ndarray, smooth: np.ndarray,
    y: int, x: int, v: int, u: int, radius: int, guided: Any, far: Any, most: Any,
) -> Any:  # fmt: skip
    """How badly the patch at (v, u) of the source serves at (y, x); something above `most` if it is worse than that."""
    height, width = trust.shape
    total = np.float32(0)
    for c in range(3):
        total += guided * (guide[y, x, c] - smooth[v, u, c]) ** 2
    total += far * np.float32((y - v) ** 2 + (x - u) ** 2)
    if total >= most:
        return total
    error = weight = np.float32(0)
    for i in range(max(-radius, -y), min(radius, height - 1 - y) + 1):
        for j in range(max(-radius, -x), min(radius, width - 1 - x) + 1):
            w = trust[y + i, x + j]
            if w > 0:
                d0 = now[y + i, x + j, 0] - source[v + i, u + j, 0]
                d1 = now[y + i, x + j, 1] - source[v + i, u + j, 1]
                d2 = now[y + i, x + j, 2] - source[v + i, u + j, 2]
                error += w * (d0 * d0 + d1 * d1 + d2 * d2)
                weight += w
    return total + error / max(weight, np.float32(1e-6))


@njit(
    f"void({_IMAGE}, {_MAP}, {_IMAGE}, {_FLAGS}, {_IMAGE}, {_IMAGE}, {_LISTS}, {_PLACES}, {_PLACES}, {_MAP},"
    "i8, f4, f4, i8, i8, u8)",
    cache=True,
)
def search(
    now: np.ndarray, trust: np.ndarray, source: np.ndarray, usable: np.ndarray, guide: np.ndarray, smooth: np.ndarray,
    ys: np.ndarray, xs: np.ndarray, at_y: np.ndarray, at_x: np.ndarray, costs: np.ndarray,
    radius: int, guided: float, far: float, reach: int, rounds: int, seed: int,
) -> None:  # fmt: skip
    """Improve the source (at_y, at_x) and `costs` of all patches at (ys, xs) in place.

    Each takes its neighbours' source, shifted, or one at random within `reach` of its own, where that costs less.
    now: What is known and filled so far; `trust` weighs its pixels. guide: What is expected at a pixel, `smooth` the
    same of the source; their difference counts `guided`, a squared distance `far`. usable: Centres of sources.
    """
    height, width = trust.shape
    state = np.uint64(seed * np.uint64(2654435761) + np.uint64(88172645463325252))
    for i in range(len(ys)):
        y, x = ys[i], xs[i]
        v, u = at_y[y, x], at_x[y, x]
        costs[y, x] = _cost(now, trust, source, guide, smooth, y, x, v, u, radius, guided, far, np.float32(1e30))
    for turn in range(rounds):
        step = 1 - 2 * (turn % 2)
        for k in range(len(ys)):
            i = k if step == 1 else len(ys) - 1 - k
            y, x = ys[i], xs[i]
            best, v, u = costs[y, x], at_y[y, x], at_x[y, x]
            for side in range(2):
                b, a = y - step * (1 - side), x - step * side
                if b < 0 or b >= height or a < 0 or a >= width or at_y[b, a] < 0:
                    continue
                p, q = at_y[b, a] + (y - b), at_x[b, a] + (x - a)
                if p < 0 or p >= height or q < 0 or q >= width or not usable[p, q] or (p == v and q == u):
                    continue
                cost = _cost(now, trust, source, guide, smooth, y, x, p, q, radius, guided, far, best)
                if cost < best:
                    best, v, u = cost, p, q
            span = reach
            while span >= 1:
                drawn = np.zeros(2, np.int64)
                for side in range(2):
                    state ^= state << np.uint64(13)  # xorshift (Marsaglia 2003, doi 10.18637/jss.v008.i14)
                    state ^= state >> np.uint64(7)
                    state ^= state << np.uint64(17)
                    drawn[side] = np.int64(state % np.uint64(2 * span + 1)) - span
                p, q = v + drawn[0], u + drawn[1]
                if p >= 0 and p < height and q >= 0 and q < width and usable[p, q]:
                    cost = _cost(now, trust, source, guide, smooth, y, x, p, q, radius, guided, far, best)
                    if cost < best:
                        best, v, u = cost, p, q
                span //= 2
            costs[y, x], at_y[y, x], at_x[y, x] = best, v, u


@njit(f"void({_IMAGE}, {_FLAGS}, {_IMAGE}, {_LISTS}, {_PLACES}, {_PLACES}, {_MAP}, i8, f4)", cache=True)
def vote(
    now: np.ndarray, hole: np.ndarray, source: np.ndarray, ys: np.ndarray, xs: np.ndarray,
    at_y: np.ndarray, at_x: np.ndarray, costs: np.ndarray, radius: int, spread: float,
) -> None:  # fmt: skip
    """Fill the hole of `now` in place by the mean of all patches over a pixel, weighted exp(-cost / spread)."""
    height, width = hole.shape
    total = np.zeros((height, width, 4), np.float32)
    for i in range(len(ys)):
        y, x = ys[i], xs[i]
        w = np.float32(np.exp(-costs[y, x] / spread) + 1e-6)
        for b in range(max(y - radius, 0), min(y + radius, height - 1) + 1):
            for a in range(max(x - radius, 0), min(x + radius, width - 1) + 1):
                if hole[b, a]:
                    v, u = at_y[y, x] + b - y, at_x[y, x] + a - x
                    for c in range(3):
                        total[b, a, c] += w * source[v, u, c]
                    total[b, a, 3] += w
    for b in range(height):
        for a in range(width):
            if hole[b, a]:
                for c in range(3):
                    now[b, a, c] = total[b, a, c] / total[b, a, 3]
