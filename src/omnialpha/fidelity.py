"""What a task leaves unchanged is taken from the input, bit for bit: colour of solid pixels, pixels outside a hole,
known alpha.

Works on full-size pictures (4, H, W), straight alpha, after the model. `--raw` skips it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from omnialpha import masks
from omnialpha.tasks import MAPS, TASKS, Example, Role

SNAP = 0.02  # alpha this near to 0 or 1 is 0 or 1: a latent model never says either exactly
CHANGE = 0.06  # a mean difference of colour, in [0, 1], above what re-encoding alone does
RIM = 0.025  # of the shorter side: how far a subject's soft edge reaches beyond a precise mask


def keep(example: Example, layers: Sequence[Tensor]) -> list[Tensor]:
    """The model's layers of an example, in the example's target order, with what must not change put back."""
    category = TASKS[example.task].category
    given = dict(zip(example.roles, example.inputs, strict=True))
    composite, map_role = given.get(Role.COMPOSITE), next((r for r in example.roles if r in MAPS), None)
    guide = given[map_role][0] if map_role else None
    if composite is None:  # generation and completion take nothing over
        return [
            opaque(x) if role in (Role.BACKGROUND, Role.FULL) else snap(x)
            for x, role in zip(layers, example.targets, strict=True)
        ]
    if category == "matting":
        return [matte(layers[0], composite, guide, map_role)]
    if category == "removal":
        where = changed(layers[0], composite) if guide is None else hole(guide, map_role)
        return [patch(layers[0], composite, where)]
    assert category == "decomposition", category
    return decomposition(layers, composite, example.targets, guide, map_role)


def refined(example: Example, layers: Sequence[Tensor], coarse: Sequence[Tensor]) -> list[Tensor]:
    """Foregrounds that were seen in the composite, from their coarse alphas (h, w) to sharp full-size layers: see
    `refine`.
    """
    from omnialpha.refine import refine

    given = dict(zip(example.roles, example.inputs, strict=True))
    composite = given.get(Role.COMPOSITE)
    if composite is None or Role.ALPHA in given:  # nothing to look at, or nothing left to find
        return list(layers)
    return [
        refine(composite, alpha) if role is Role.FOREGROUND else layer
        for layer, alpha, role in zip(layers, coarse, example.targets, strict=True)
    ]


def snap(layer: Tensor) -> Tensor:
    """Alpha within SNAP of 0 or 1 becomes 0 or 1, the rest is stretched to stay continuous."""
    alpha = ((layer[3:] - SNAP) / (1 - 2 * SNAP)).clamp(0, 1)
    return torch.cat([layer[:3], alpha])


def opaque(layer: Tensor) -> Tensor:
    return torch.cat([layer[:3], torch.ones_like(layer[3:])])


def matte(layer: Tensor, composite: Tensor, guide: Tensor | None, role: Role | None) -> Tensor:
    """Known alpha from the map; where alpha is 1, the input's colour."""
    layer = snap(layer)
    alpha = layer[3]
    if guide is not None and role is Role.TRIMAP:
        alpha = torch.where(guide > 1 - SNAP, 1.0, torch.where(guide < SNAP, 0.0, alpha))
    elif guide is not None and role is Role.ALPHA:
        alpha = guide
    elif guide is not None and role is Role.ROUGH:
        alpha = torch.where(guide < SNAP, 0.0, alpha)
    rgb = torch.where(alpha == 1, composite[:3], layer[:3])
    return torch.cat([rgb, alpha[None]])


def hole(guide: Tensor, role: Role | None) -> Tensor:
    """Where a removal may paint, (H, W) bool: all that the map's subject may touch."""
    touched = guide > (masks.PRESENT if role is Role.ALPHA else SNAP)  # a painted mask is never quite black
    return masks.dilate(touched, RIM * min(guide.shape)) if role is Role.PRECISE else touched


def changed(layer: Tensor, composite: Tensor) -> Tensor:
    """Where an automatic removal painted, (H, W) bool: differences that survive a blur, and a rim around them."""
    radius = max(1, round(RIM * min(layer.shape[1:])))
    difference = (layer[:3] - composite[:3])[None]
    local = F.avg_pool2d(difference, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)[0]
    return masks.dilate(local.abs().mean(dim=0) > CHANGE, 2 * radius)


def patch(layer: Tensor, composite: Tensor, where: Tensor) -> Tensor:
    """The model's picture inside the hole (H, W), the input outside."""
    return torch.where(where, opaque(layer), composite)


def decomposition(
    layers: Sequence[Tensor], composite: Tensor, roles: Sequence[Role], guide: Tensor | None, role: Role | None
) -> list[Tensor]:
    """Foregrounds as mattes, and the input behind them wherever no foreground reaches."""
    done: list[Tensor] = []
    above = torch.ones_like(composite[3])  # how much of a layer shows through the layers in front of it
    for layer, own in zip(reversed(layers), reversed(roles), strict=True):  # front to back
        if own is Role.FOREGROUND:
            layer = matte(layer, composite, guide, role) if len(layers) == 2 else snap(layer)
            visible = (layer[3] == 1) & (above == 1)
        else:
            layer, visible = opaque(layer), above == 1
        done.append(torch.where(visible, torch.cat([composite[:3], layer[3:]]), layer))
        above = above * (1 - layer[3])
    return done[::-1]
