"""Hints as people give them, drawn from a true alpha: maps, boxes and clicks, in the values that the finder reads."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from omnialpha import masks
from omnialpha.data.scene import map_of
from omnialpha.models.finder import hint_of
from omnialpha.tasks import Role

NEAR = 0.2  # a drawn box is up to this share of its side larger or smaller than the subject's


def draw_hint(alpha: Tensor, generator: torch.Generator) -> tuple[str, Tensor]:
    """A kind other than `none` by its share in KINDS, and a hint (H, W) in [-1, 1] of it, for alpha (H, W); zeros where
    the subject is too faint to point at.
    """
    names = [name for name, (share, _) in KINDS.items() if share]
    chosen = torch.multinomial(torch.tensor([KINDS[name][0] for name in names]), 1, generator=generator)
    name = names[int(chosen)]
    return name, hint(name, alpha, generator)


def hint(name: str, alpha: Tensor, generator: torch.Generator) -> Tensor:
    """A hint (H, W) of a kind of KINDS for alpha (H, W)."""
    if float(alpha.max()) <= 0.1:
        return torch.zeros_like(alpha)
    return KINDS[name][1](alpha, generator)


def _map(role: Role) -> Callable[[Tensor, torch.Generator], Tensor]:
    return lambda alpha, generator: hint_of(role, map_of(role, alpha, generator))


def _box(alpha: Tensor, generator: torch.Generator) -> Tensor:
    """A rectangle around the subject, each edge moved a little, outwards more than inwards."""
    seen = alpha > alpha.max() / 4
    edges = []
    for dim in (0, 1):
        span = seen.any(dim=dim).nonzero().flatten()
        low, high = int(span[0]), int(span[-1]) + 1
        slack = (torch.rand(2, generator=generator) - 0.25) * NEAR * (high - low)
        edges.append((low - float(slack[0]), high + float(slack[1])))
    (left, right), (top, bottom) = edges
    return masks.marks((alpha.shape[0], alpha.shape[1]), boxes=[(left, top, right - left, bottom - top)])


def _clicks(alpha: Tensor, generator: torch.Generator) -> Tensor:
    """One to three clicks on the subject, and often one or two off it."""
    points: list[tuple[float, float, bool]] = []
    counts = (int(torch.randint(1, 4, (1,), generator=generator)), int(torch.randint(0, 3, (1,), generator=generator)))
    for places, count, wanted in ((alpha > 0.8 * alpha.max(), counts[0], True), (alpha < 0.02, counts[1], False)):
        rows, columns = places.nonzero(as_tuple=True)
        for k in torch.randint(max(1, len(rows)), (count,), generator=generator).tolist() if len(rows) else []:
            points.append((float(columns[k]) + 0.5, float(rows[k]) + 0.5, wanted))
    return masks.marks((alpha.shape[0], alpha.shape[1]), points=points)


# kind -> how often it is drawn, beside the others, and how
KINDS: dict[str, tuple[float, Callable[[Tensor, torch.Generator], Tensor]]] = {
    "none": (0.0, lambda alpha, generator: torch.zeros_like(alpha)),
    "alpha": (0.03, _map(Role.ALPHA)),
    "trimap": (0.12, _map(Role.TRIMAP)),
    "precise": (0.10, _map(Role.PRECISE)),
    "rough": (0.12, _map(Role.ROUGH)),
    "box": (0.08, _box),
    "clicks": (0.15, _clicks),
}
