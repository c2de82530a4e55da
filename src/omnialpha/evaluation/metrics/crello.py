"""Layers against layers of another number, as LayerD (Suzuki et al. 2025, arXiv 2509.25134) and Qwen-Image-Layered (Yin
et al. 2025, arXiv 2512.15603) compare decompositions of Crello: aligned in order, after 0 to 5 merges of neighbours.

The convention is that of LayerD's published code; where the papers' words differ, docs/metrics.md says so. Stacks are
(n, 4, H, W) or lists of (4, H, W), straight alpha in [0, 1], back to front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, reduce

import numpy as np
import torch
from torch import Tensor

from omnialpha import rgba
from omnialpha.errors import InputError
from omnialpha.evaluation.metrics import image, matting

MERGES = 5
PREDICTED, TRUE = 0, 1  # the sides of a comparison
MIN_LAYERS = 2  # of a side: so few are not merged any more

Stack = Tensor | Sequence[Tensor]
Run = tuple[int, int]  # the first of some merged neighbours, and the one after the last
Pair = tuple[int, int]  # places of a predicted and of a true layer


def rgb_l1(predicted: Tensor, true: Tensor, by_alpha: bool = False) -> Tensor:
    """Mean |RGB error| of layers (B, 4, H, W) where true alpha > 0, 0 if that is nowhere; (B,) float64.

    Colour under the predicted alpha 0 counts. by_alpha: pixels are weighted by the true alpha, as the papers' words
    have it; the published code counts them alike.
    """
    weights = true[:, 3] if by_alpha else (true[:, 3] > 0).to(true.dtype)
    error = (predicted[:, :3] - true[:, :3]).abs().mean(dim=1)
    return (error * weights).sum(dim=(1, 2), dtype=torch.float64) / (weights.sum(dim=(1, 2)).double() + 1e-8)


def alpha_iou(predicted: Tensor, true: Tensor) -> Tensor:
    """Soft IoU of the alphas of layers (B, 4, H, W): sum of minima over sum of maxima, 0 if both are empty; (B,)."""
    return matting.soft_iou(predicted[:, 3].double(), true[:, 3].double())


def recomposition(layers: Stack, picture: Tensor) -> float:
    """PSNR in dB of the stack's composite against the picture (4, H, W) that was decomposed, both on white."""
    return float(image.psnr(rgba.flatten(rgba.recompose(list(layers)))[None], rgba.flatten(picture)[None]))


def align(costs: np.ndarray) -> list[Pair]:
    """The cheapest path through costs (n, m) from the first pair to the last, by dynamic time warping: each step takes
    the next of one side or of both, so every layer is in a pair, some in several. Of equal ways the diagonal is taken.
    """
    n, m = costs.shape
    total = np.full((n + 1, m + 1), np.inf)
    total[0, 0] = 0
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            total[i, j] = costs[i - 1, j - 1] + min(total[i - 1, j - 1], total[i - 1, j], total[i, j - 1])
    path = [(n, m)]
    while path[-1] != (1, 1):
        i, j = path[-1]
        path.append(min(((i - 1, j - 1), (i - 1, j), (i, j - 1)), key=lambda place: total[place]))
    return [(i - 1, j - 1) for i, j in reversed(path)]


def top_groups(layers: Tensor) -> list[list[int]]:
    """Places in (n, 4, H, W) by what can be lifted off together, back to front: the last group holds the layers that
    nothing covers, the one before it those that nothing but the last group covers, and so on.
    """
    seen = layers[:, 3].flatten(1) > 0
    left, groups = list(range(len(layers))), []
    while left:
        top = [i for i in left if not any(bool((seen[i] & seen[j]).any()) for j in left if j > i)]
        groups.append(top)
        left = [i for i in left if i not in top]
    return groups[::-1]


def put(back: Tensor, front: Tensor) -> Tensor:
    """`front` over `back`; colour under alpha 0 stays the back's, as Pillow has it, since it may count."""
    return torch.where(front[3:] > 0, rgba.over(front, back), back)


@dataclass(frozen=True)
class Level:
    """After so many merges: means over the aligned pairs. runs: of the groups of each side, what is one layer now."""

    merges: int
    rgb_l1: float
    alpha_iou: float
    pairs: tuple[Pair, ...]
    runs: tuple[tuple[Run, ...], tuple[Run, ...]]


class _Comparison:
    """groups: of each side, (n, 4, H, W). What was composed or measured once is kept."""

    def __init__(self, groups: tuple[Tensor, Tensor], by_alpha: bool) -> None:
        self.groups, self.by_alpha = groups, by_alpha
        self.picture, self.figures = cache(self.picture), cache(self.figures)  # type: ignore[method-assign]

    def picture(self, side: int, run: Run) -> Tensor:
        return reduce(put, self.groups[side][slice(*run)])

    def figures(self, p: Run, t: Run, weigher: int) -> tuple[float, float]:
        """(RGB L1, alpha IoU) of a predicted and a true layer; `weigher`: the side whose alpha weighs colours."""
        sides = self.picture(PREDICTED, p)[None], self.picture(TRUE, t)[None]
        return float(rgb_l1(sides[1 - weigher], sides[weigher], self.by_alpha)), float(alpha_iou(*sides))

    def cost(self, p: Run, t: Run, weigher: int = TRUE) -> float:
        """What drives the alignment and the merges: the mean of RGB L1 and 1 - alpha IoU."""
        color, overlap = self.figures(p, t, weigher)
        return (color + 1 - overlap) / 2

    def level(self, merges: int, predicted: Sequence[Run], true: Sequence[Run]) -> Level:
        pairs = align(np.array([[self.cost(p, t) for t in true] for p in predicted]))
        color, overlap = np.mean([self.figures(predicted[i], true[j], TRUE) for i, j in pairs], axis=0)
        return Level(merges, float(color), float(overlap), tuple(pairs), (tuple(predicted), tuple(true)))

    def gains(self, side: int, level: Level) -> list[float]:
        """Of merging each layer of `side` with the next: how much more alike the layers become to what they are aligned
        with, where afterwards either the merged layer or the one that follows stands for the second of the two.
        """
        own, other = level.runs[side], level.runs[1 - side]
        if len(own) <= MIN_LAYERS:
            return [0.0]
        partners = [[other[pair[1 - side]] for pair in level.pairs if pair[side] == place] for place in range(len(own))]

        def alike(run: Run, to: Sequence[Run]) -> float:
            pairs = ((run, partner) if side == PREDICTED else (partner, run) for partner in to)
            return sum(1 - self.cost(p, t, weigher=1 - side) for p, t in pairs)

        made = []
        for place, (first, second) in enumerate(zip(partners, partners[1:], strict=False)):
            merged = (own[place][0], own[place + 1][1])
            after = [alike(merged, second)]
            after += [alike(own[place + 2], of) for of in (first, second)] if place + 2 < len(own) else []
            before = alike(own[place], first) + alike(own[place + 1], second)
            made.append(alike(merged, first) + max(after) - before)
        return made


def compare(predicted: Stack, true: Stack, merges: int = MERGES, by_alpha: bool = False) -> list[Level]:
    """Levels 0 to `merges`; one that no merge of either side betters repeats the one before, as published means do.

    Layers are rounded to 8 bits and composed by `top_groups` first. A level merges the two neighbours that gain most.
    by_alpha: see `rgb_l1`.
    """
    sides = (_groups(predicted, "predicted"), _groups(true, "true"))
    if sides[PREDICTED].shape[1:] != sides[TRUE].shape[1:]:
        sizes = " and ".join(f"{side.shape[-1]}x{side.shape[-2]}" for side in sides)
        raise InputError(f"layers of {sizes} px cannot be compared: make them of one size.")
    comparison = _Comparison(sides, by_alpha)
    levels = [comparison.level(0, *([(i, i + 1) for i in range(len(side))] for side in sides))]
    for count in range(1, merges + 1):
        gains = [comparison.gains(side, levels[-1]) for side in (PREDICTED, TRUE)]
        side = PREDICTED if max(gains[PREDICTED]) > max(gains[TRUE]) else TRUE
        if max(gains[side]) <= 0:
            break
        place = int(np.argmax(gains[side]))
        runs = [list(own) for own in levels[-1].runs]
        runs[side][place : place + 2] = [(runs[side][place][0], runs[side][place + 1][1])]
        levels.append(comparison.level(count, *runs))
    return levels + [levels[-1]] * (merges + 1 - len(levels))


def measure(predicted: Stack, true: Stack, merges: int = MERGES) -> dict[str, float]:
    """`compare` as figures of one row: rgb_l1_0 ... rgb_l1_5, alpha_iou_0 ... alpha_iou_5."""
    levels = compare(predicted, true, merges)
    names = ("rgb_l1", "alpha_iou")
    return {f"{name}_{count}": getattr(level, name) for name in names for count, level in enumerate(levels)}


def _groups(layers: Stack, what: str) -> Tensor:
    """(n, 4, H, W) in 8-bit steps, one picture a group."""
    if not len(layers):
        raise InputError(f"there are 0 {what} layers to compare: pass at least one.")
    stack = layers if isinstance(layers, Tensor) else torch.stack(list(layers))
    if stack.ndim != 4 or stack.shape[1] != 4:
        raise InputError(f"{what} layers of shape {tuple(stack.shape)} are no stack: pass (n, 4, H, W).")
    rounded = (stack.detach().float().cpu().clamp(0, 1) * 255).round() / 255
    return torch.stack([reduce(put, rounded[group]) for group in top_groups(rounded)])
