"""Filling: a hole in a picture, at the picture's own size, from the texture around it.

A smooth fill, or another picture as its guide, says which colours are expected. Patches from around the hole that fit
both it and what is known are matched from coarse to fine (Wexler et al. 2007, doi 10.1109/TPAMI.2007.60), and their
gradients are put together over the guide (Perez et al. 2003, doi 10.1145/882262.882269). Large holes are matched on a
smaller copy; finer detail follows the same matches. Small pictures keep what a model made, without a seam (`blend`).
What was measured: docs/decisions/0030-removal-at-full-size.md."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omnialpha import kernels
from omnialpha.errors import InputError

WORKING_HOLE = 100_000  # pixels of a hole that are matched: up to 60 microseconds each
WORKING_PIXELS = 1_500_000  # of the part of a picture that patches come from
REACH = 1.0  # how far beyond the hole that part reaches, in sizes of the hole
RADIUS = 3  # of a patch
COARSEST, SMALLEST = 6, 48  # pixels: half the width of a hole at the coarsest level, and the shorter side of a level
GUIDED = 0.5  # how much the guide counts beside a patch's pixels, both as mean squared differences
FAR = 0.02  # how much a source's squared distance counts, in sides of the picture
BLUR = 3.0  # pixels, standard deviation: colours are compared with the guide's at this scale
TRUST = 1.15  # how much less a filled pixel counts than one that is a pixel nearer to what is known
LOOPS, ROUNDS = (6, 3), (4, 2)  # matching and voting, and rounds of search in each: at coarse levels, at finer ones
NEAR = 16  # pixels of random search at finer levels
FLAT = 0.02  # mean difference from the mean of 5 x 5 pixels, in [0, 1]: below it, surroundings say more than a model
RIM = 4  # pixels around a hole by which that is told
PULL = 0.003  # of the guide on colours, beside that of matched gradients: wavelengths above 100 pixels are the guide's


class _Level(NamedTuple):
    """picture, guide (h, w, 3) float32; known, hole (h, w) bool. What is neither is transparent."""

    picture: np.ndarray
    guide: np.ndarray
    known: np.ndarray
    hole: np.ndarray


def fill(image: Tensor, hole: Tensor, guide: Tensor | None = None, seed: int = 0) -> Tensor:
    """Fill a hole with the texture around it.

    Args:
        image: Straight RGBA (4, H, W) in [0, 1]. What is in the hole, or transparent, is not looked at.
        hole: (H, W) bool.
        guide: RGB (3, h, w) in [0, 1] of any size, such as a small model's fill: which colours to expect in the hole,
            up to a smooth difference that makes it meet its surroundings. Without it they are interpolated.
        seed: Of the search for patches.

    Returns:
        (4, H, W) of the image's type and device, the image's own bit for bit outside the hole and in its alpha. Where
        no patch of the picture is whole and known, the guide alone.

    Raises:
        InputError: A shape is another one, or there is neither a guide nor anything around the hole.
    """
    if image.ndim != 3 or image.shape[0] != 4 or tuple(hole.shape) != tuple(image.shape[1:]):
        raise InputError(
            f"A hole of shape {tuple(hole.shape)} does not fit an image of shape {tuple(image.shape)}: pass"
            " (height, width) and (4, height, width)."
        )
    if guide is not None and (guide.ndim != 3 or guide.shape[0] != 3):
        raise InputError(f"A guide of shape {tuple(guide.shape)} is no picture: pass (3, height, width).")
    picture, inside = image.detach().float().cpu(), hole.detach().cpu().bool()
    known = ~inside & (picture[3] > 0)
    wanted = inside & (picture[3] > 0)
    if not bool(wanted.any()):
        return image.clone()
    if guide is None and not bool(known.any()):
        raise InputError("the hole covers all that is seen, so there is nothing to fill it from: leave some of it out.")
    if guide is not None:
        guide = F.interpolate(guide.detach().float().cpu()[None], picture.shape[1:], mode="bilinear")[0]
    rows, columns = (_window(wanted.any(dim=1 - axis)) for axis in (0, 1))
    if not bool(known[rows, columns].any()):
        rows = columns = slice(None)
    part = (slice(None), rows, columns)
    made = _filled(picture[:3][part], known[part[1:]], wanted[part[1:]], None if guide is None else guide[part], seed)
    whole = image.clone()
    whole[:3][part] = torch.where(
        wanted[part[1:]].to(image.device), made.to(image.device, image.dtype), image[:3][part]
    )
    return whole


def blend(image: Tensor, hole: Tensor, made: Tensor, most: float = 1.0) -> Tensor:
    """Fill a hole with what a model made of it, without a seam, and the more smoothly the flatter its surroundings are.

    The model's difference to what is around the hole is continued smoothly into it and taken off (Perez 2003). Of that
    and the smoothest fill the mean is taken: the model's share grows with the mean detail around the hole, up to FLAT.

    Args:
        image: Straight RGBA (4, H, W) in [0, 1]. What is in the hole, or transparent, is not looked at.
        hole: (H, W) bool. Some pixel outside it must be seen.
        made: RGB (3, H, W) in [0, 1], around the hole too.
        most: The model's greatest share, in [0, 1].

    Returns:
        (4, H, W), the image outside the hole and in its alpha.
    """
    known, wanted = ~hole & (image[3] > 0), hole & (image[3] > 0)
    if not bool(wanted.any()):
        return image.clone()
    smooth, met = (_level(image[:3], known, wanted, guide).guide for guide in (None, made))
    share = most * min(1.0, _detail(image[:3], known) / FLAT)
    filled = _picture(smooth + share * (met - smooth)).clamp(0, 1)
    return torch.cat([torch.where(wanted, filled, image[:3]), image[3:]])


def _detail(rgb: Tensor, known: Tensor) -> float:
    """Mean difference of pixels (3, H, W) near the rim of what is known (H, W) from the mean around them."""
    seen = known.float()[None]
    mean, share = (F.avg_pool2d(maps, 5, 1, 2) for maps in (rgb * seen, seen))
    rim = seen * F.max_pool2d(1 - seen, 2 * RIM + 1, 1, RIM)
    off = (rgb - mean / share.clamp_min(1e-6)).abs().mean(0)
    return float((off * rim).sum() / rim.sum().clamp_min(1))


def _window(used: Tensor) -> slice:
    """The range of true entries of (length,), widened by REACH on both sides."""
    places = used.nonzero().flatten()
    first, last = int(places[0]), int(places[-1]) + 1
    margin = max(SMALLEST, round(REACH * (last - first)))
    return slice(max(first - margin, 0), min(last + margin, len(used)))


def _filled(rgb: Tensor, known: Tensor, hole: Tensor, guide: Tensor | None, seed: int) -> Tensor:
    """rgb, guide (3, H, W), known, hole (H, W) -> (3, H, W), of which the hole counts."""
    size = (rgb.shape[1], rgb.shape[2])
    scale = min(1.0, (WORKING_HOLE / int(hole.sum())) ** 0.5, (WORKING_PIXELS / hole.numel()) ** 0.5)
    if scale == 1:
        return _picture(_match(_level(rgb, known, hole, guide), seed)[0]).clamp(0, 1)
    small = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    share = _resample(known[None].float(), small)
    reduced = _resample(rgb * known, small) / share.clamp_min(1e-6)
    seen = _resample(hole[None].float(), small)[0] > 0.01
    coarse = None if guide is None else _resample(guide, small)
    made, at_y, at_x = _match(_level(reduced, (share[0] > 0) & ~seen, seen, coarse), seed)
    ys, xs = hole.nonzero().unbind(1)
    low, whole = (_enlarged(maps, size) for maps in (reduced, _picture(made)))
    filled = whole[:, ys, xs]
    if at_y is not None and at_x is not None:  # detail that the smaller copy lacks, from the same places
        y, x = ((places * small[k] // size[k]) for k, places in enumerate((ys, xs)))
        down, right = (
            ((torch.from_numpy(at)[y, x] - here) * (size[k] / small[k])).round().long()
            for k, (at, here) in enumerate(((at_y, y), (at_x, x)))
        )
        v, u = (ys + down).clamp(0, size[0] - 1), (xs + right).clamp(0, size[1] - 1)
        filled = filled + (rgb[:, v, u] - low[:, v, u]) * known[v, u]
    whole[:, ys, xs] = filled.clamp(0, 1)
    return whole


def _resample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]


def _enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def _picture(pixels: np.ndarray) -> Tensor:
    """(H, W, 3) -> (3, H, W)."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _level(rgb: Tensor, known: Tensor, hole: Tensor, guide: Tensor | None) -> _Level:
    """The finest level. The guide meets what is around the hole; without one it is the smoothest that does."""
    pixels = np.ascontiguousarray((rgb * known).permute(1, 2, 0).numpy())
    inside, outside = (np.ascontiguousarray(maps.numpy()) for maps in (hole, known))
    expected = np.broadcast_to(pixels[outside].mean(axis=0) if outside.any() else np.float32(0.5), pixels.shape)
    gradients = np.zeros_like(pixels)
    if guide is not None:
        expected = gradients = np.ascontiguousarray(guide.permute(1, 2, 0).numpy())
    return _Level(pixels, composed(pixels, outside, inside, gradients, expected, 1e-6), outside, inside)


def composed(
    picture: np.ndarray, known: np.ndarray, hole: np.ndarray, gradients: np.ndarray, colors: np.ndarray, pull: float
) -> np.ndarray:
    """Fill a hole by the gradients of one picture and, weakly, the colours of another: screened Poisson.

    Args:
        picture, gradients, colors: (H, W, 3).
        known, hole: (H, W) bool. Colours of `picture` hold where it is known; what is neither is not looked at.
        pull: Of the colours, above 0.

    Returns:
        (H, W, 3) float32, the picture outside the hole.
    """
    from scipy.sparse import csc_array, diags_array
    from scipy.sparse.linalg import spsolve

    height, width = hole.shape
    ys, xs = np.nonzero(hole)
    number = np.full(hole.shape, -1)
    number[ys, xs] = np.arange(len(ys))
    diagonal = np.full(len(ys), float(pull))
    right = pull * (colors - gradients)[ys, xs].astype(np.float64)
    pairs = []
    for down, across in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        v, u = (ys + down).clip(0, height - 1), (xs + across).clip(0, width - 1)
        between, rim = hole[v, u] & ((v != ys) | (u != xs)), known[v, u]
        diagonal += between.astype(float) + rim
        right[rim] += (picture - gradients)[v[rim], u[rim]]
        pairs.append(np.stack([np.flatnonzero(between), number[v, u][between]]))
    here, there = np.concatenate(pairs, axis=1)
    links = csc_array((np.ones(len(here)), (here, there)), shape=(len(ys), len(ys)))
    made = picture.astype(np.float32)
    made[ys, xs] = gradients[ys, xs] + spsolve((diags_array(diagonal) - links).tocsc(), right).reshape(-1, 3)
    return made


# ---- matching -------------------------------------------------------------------------------------------------------


def _match(finest: _Level, seed: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """A level with its hole filled, (h, w, 3), and the rows and columns (h, w) that patches come from, if they do."""
    from scipy.ndimage import distance_transform_edt

    levels = [finest]
    while min(levels[-1].hole.shape) > SMALLEST and distance_transform_edt(~levels[-1].known).max() > COARSEST:
        half = _halved(levels[-1])
        if not _usable(half.known).any():
            break
        levels.append(half)
    if not _usable(finest.known).any():
        return finest.guide, None, None
    at: tuple[np.ndarray, np.ndarray] | None = None
    now = levels[-1].guide
    with kernels.one_thread("omnialpha.patches") as patches:
        for k, level in reversed(list(enumerate(levels))):
            now, at = _match_level(patches, level, at, k >= len(levels) - 2, seed + k)
    assert at is not None
    return composed(finest.picture, finest.known, finest.hole, now, finest.guide, PULL), *at


def _match_level(
    patches: Any, level: _Level, before: tuple[np.ndarray, np.ndarray] | None, coarse: bool, seed: int
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The level's filled picture and its matches, from those of the level `before`, half its size."""
    from scipy.ndimage import binary_dilation, distance_transform_edt

    picture, guide, known, hole = level
    height, width = hole.shape
    usable = _usable(known)
    ys, xs = (a.astype(np.int32) for a in np.nonzero(binary_dilation(hole, np.ones((2 * RADIUS + 1,) * 2))))
    trust = np.where(hole, TRUST ** -distance_transform_edt(hole), known).astype(np.float32)
    smooth, expected = _blurred(picture, known), _blurred(np.where(hole[..., None], guide, picture), known | hole)
    drawn = np.argwhere(usable)[np.random.default_rng(seed).integers(int(usable.sum()), size=len(ys))].astype(np.int32)
    at_y, at_x = (np.full(hole.shape, -1, np.int32) for _ in range(2))
    now, costs = np.where(hole[..., None], guide, picture).astype(np.float32), np.zeros(hole.shape, np.float32)
    if before is None:
        at_y[ys, xs], at_x[ys, xs] = drawn.T
    else:
        above = [np.minimum(a // 2, n - 1) for a, n in zip((ys, xs), before[0].shape, strict=True)]
        v, u = (at[above[0], above[1]] * 2 + a % 2 for at, a in zip(before, (ys, xs), strict=True))
        fits = (v >= 0) & (u >= 0) & usable[v.clip(0, height - 1), u.clip(0, width - 1)] & (v < height) & (u < width)
        at_y[ys, xs], at_x[ys, xs] = np.where(fits, v, drawn[:, 0]), np.where(fits, u, drawn[:, 1])
        patches.vote(now, hole, picture, ys, xs, at_y, at_x, costs, RADIUS, 1.0)
    loops, reach = LOOPS[before is not None], max(height, width) // 2 if coarse else NEAR
    for loop in range(loops):
        seen = known.astype(np.float32) if before is None and not loop else trust  # a smooth start draws smooth patches
        pair = (now, seen, picture, usable, expected, smooth, ys, xs, at_y, at_x, costs)
        far = FAR / max(height, width) ** 2
        patches.search(*pair, RADIUS, GUIDED, far, reach, ROUNDS[not coarse], (seed << 8) + loop)
        spread = max(float(np.quantile(costs[ys, xs], 0.75)), 1e-5) / 8
        patches.vote(now, hole, picture, ys, xs, at_y, at_x, costs, RADIUS, spread)
    return now, (at_y, at_x)


def _usable(known: np.ndarray) -> np.ndarray:
    """Centres (h, w) of patches that are whole and known."""
    from scipy.ndimage import binary_erosion

    return np.asarray(binary_erosion(known, np.ones((2 * RADIUS + 1,) * 2)))


def _halved(level: _Level) -> _Level:
    """A level half as large; a pixel of it is known where half of what it covers is."""
    height, width = level.hole.shape
    odd = (height % 2, width % 2)

    def half(maps: np.ndarray) -> np.ndarray:
        padded = np.pad(maps, ((0, odd[0]), (0, odd[1]), (0, 0)), mode="edge").astype(np.float32)
        return (padded[::2, ::2] + padded[1::2, ::2] + padded[::2, 1::2] + padded[1::2, 1::2]) / 4

    share, seen = (half(maps[..., None]) for maps in (level.known, level.hole))
    picture, known = half(level.picture) / np.maximum(share, 1e-6), share[..., 0] >= 0.5
    return _Level(np.ascontiguousarray(picture), half(level.guide), known, ~known & (seen[..., 0] > 0))


def _blurred(picture: np.ndarray, where: np.ndarray) -> np.ndarray:
    """(h, w, 3) blurred by BLUR, of the pixels in `where` (h, w) alone."""
    from scipy.ndimage import gaussian_filter

    weight = where.astype(np.float32)
    total = gaussian_filter(picture * weight[..., None], (BLUR, BLUR, 0), mode="nearest")
    return np.asarray(total / (gaussian_filter(weight, BLUR, mode="nearest") + 1e-6)[..., None], np.float32)
