"""What a task leaves unchanged, copied from the input: colours where alpha is 1, pixels outside a hole, known alpha.

It works on pictures of full size (4, H, W) with straight alpha, after the model. `raw` skips it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from omnialpha import masks, rgba
from omnialpha.tasks import MAPS, TASKS, Example, Role

REFINE_FROM = 1.25  # a picture this much larger than what its alpha was made at gets its edges from closed-form matting
SNAP = 0.02  # alpha this near to 0 or 1 is 0 or 1: a latent model never says either exactly
COLOUR_CHANGE = 0.06  # a mean difference of colour, in [0, 1], above what re-encoding alone does
FINDER_PRESENT = 0.1  # alpha of the finder's above which something of the subject may be there
PARTS = 8  # of a picture, each way, in which a layer that should be opaque finds the colour of its holes
RIM_SHARE = 0.5  # the greatest share of a model's fill where a rim of the subject may be left around the hole
SOFT_EDGE = 0.025  # of the shorter side: how far a subject's soft edge reaches beyond a precise mask


def finish_layers(
    example: Example, layers: Sequence[Tensor], coarse: Sequence[Tensor], found: Tensor | None, refining: str
) -> list[Tensor]:
    """Finish the layers of a model: take the finder's alpha, refine, and restore what is unchanged.

    Args:
        example: What was asked for.
        layers: The model's layers (4, H, W) at full size, in the order of the example's targets.
        coarse: Their alphas (h, w) at the size that they were made at.
        found: The finder's alpha (s, s), where foregrounds take that; None where they do not.
        refining: auto refines the finder's foregrounds and others where `needs_refining` says so, and fills what is
            behind a subject, see `refill`; closed-form refines all foregrounds, off none.

    Returns:
        The layers (4, H, W) as they are handed out.
    """
    if example.targets.count(Role.FOREGROUND) > 1:  # the finder does not tell one from another
        found = None
    small = bool(coarse) and needs_refining(example.size, tuple(coarse[0].shape))
    if found is not None:
        coarse = [found] * len(layers)
    always = found is not None or refining == "closed-form"
    if refining != "off" and (always or small):
        layers = refine_foregrounds(example, layers, coarse)
    elif found is not None:
        alpha = F.interpolate(found[None, None], size=example.size, mode="bilinear", antialias=True)[0].clamp(0, 1)
        foreground = [role is Role.FOREGROUND for role in example.targets]
        layers = [torch.cat([x[:3], alpha]) if own else x for x, own in zip(layers, foreground, strict=True)]
    return restore_unchanged(example, layers, refilling=refining == "auto", small=small)


def needs_refining(size: tuple[int, ...], made: tuple[int, ...]) -> bool:
    """Whether a picture of this size is much larger than what its alpha was made at."""
    return max(size) > REFINE_FROM * max(made)


def restore_unchanged(
    example: Example, layers: Sequence[Tensor], refilling: bool = False, small: bool = False
) -> list[Tensor]:
    """Restore what a task does not change, from the inputs of the example.

    Args:
        example: What was asked for.
        layers: The model's layers (4, H, W), in the order of the example's targets.
        refilling: Whether what is behind a subject is filled by what is around it too, see `refill`.
        small: Whether the layers were made much smaller than they are.

    Returns:
        The layers in the same order.
    """
    category, composite = TASKS[example.task].category, example.given(Role.COMPOSITE)
    maps = [(role, picture[0]) for role, picture in zip(example.roles, example.inputs, strict=True) if role in MAPS]
    role, guide = maps[0] if maps else (None, None)
    if composite is None:
        return [
            restore_given(example, without_holes(x)) if own in (Role.BACKGROUND, Role.FULL) else snap_alpha(x)
            for x, own in zip(layers, example.targets, strict=True)
        ]
    if category == "matting":
        return [restore_matte(layers[0], composite, guide, role)]
    if category == "removal":
        if guide is not None:
            where = removal_mask(guide, role)
        elif example.found is not None:
            where = removal_mask_of_finder(example.found, example.size)
        else:
            return [paste(layers[0], composite, changed(layers[0], composite))]
        most = RIM_SHARE if role is Role.PRECISE else 1.0  # it holds only what is opaque
        return [paste(refill(composite, where, layers[0], small, most) if refilling else layers[0], composite, where)]
    assert category == "decomposition", category
    done = restore_alphas(layers, composite, example.targets, guide, role)
    if refilling:
        hidden = torch.stack([x[3] for x, own in zip(done, example.targets, strict=True) if own is Role.FOREGROUND])
        behind = refill(composite, hidden.amax(0) > 0, done[0], small)
        done[0] = torch.cat([behind[:3], done[0][3:]])
    return match_composite(done, composite)


def restore_given(example: Example, picture: Tensor) -> Tensor:
    """Restore in a whole picture (4, H, W) the layers that it was made of: foregrounds lie on top, a background is seen
    where nothing was painted over it. Any other picture comes back as it is.
    """
    if Role.FULL not in example.targets:
        return picture
    background = example.given(Role.BACKGROUND)
    if background is not None:
        painted = changed(picture, background) | (background[3] < 1)
        picture = torch.where(painted, picture, background)
    given = [layer for layer, role in zip(example.inputs, example.roles, strict=True) if role is Role.FOREGROUND]
    return rgba.opaque(rgba.recompose([picture, *given])) if given else picture


def refine_foregrounds(example: Example, layers: Sequence[Tensor], coarse: Sequence[Tensor]) -> list[Tensor]:
    """Refine the foregrounds of an example with a composite, from their coarse alphas (h, w), see `refine.refine`."""
    from omnialpha.refine import refine

    composite, trimap = example.given(Role.COMPOSITE), example.given(Role.TRIMAP)
    if composite is None or Role.ALPHA in example.roles:  # nothing to look at, or nothing left to find
        return list(layers)
    known = None if trimap is None else (trimap[0] * 2).round() / 2
    return [
        refine(composite, alpha, known) if role is Role.FOREGROUND else layer
        for layer, alpha, role in zip(layers, coarse, example.targets, strict=True)
    ]


def refill(composite: Tensor, hole: Tensor, layer: Tensor, small: bool, most: float = 1.0) -> Tensor:
    """The picture (4, H, W) with a hole (H, W) bool filled: where the model's layer (4, H, W) was made much smaller,
    from the texture around it, see `fill.fill`; else with the layer, without a seam, and with no more than `most` of
    it, see `fill.blend`; with the layer as it is where nothing is around. What was measured:
    docs/decisions/0030-removal-at-full-size.md.
    """
    from omnialpha.fill import blend, fill

    if not bool((~hole & (composite[3] > 0)).any()):
        return layer
    return fill(composite, hole) if small else blend(composite, hole, layer[:3], most)


def snap_alpha(layer: Tensor) -> Tensor:
    """Set alpha within SNAP of 0 or 1 to 0 or 1, and stretch the rest to stay continuous. (4, H, W) in and out."""
    alpha = ((layer[3:] - SNAP) / (1 - 2 * SNAP)).clamp(0, 1)
    return torch.cat([layer[:3], alpha])


def without_holes(layer: Tensor) -> Tensor:
    """A layer that has to be opaque, (4, H, W) in and out. Where it is not, its colours are arbitrary: it takes the
    mean of what it shows in that part of the picture.
    """
    layer, size = snap_alpha(layer), (layer.shape[1], layer.shape[2])
    seen = F.adaptive_avg_pool2d(rgba.premultiply(layer)[None], min(PARTS, *size))
    seen = seen + 1e-3 * seen.mean(dim=(2, 3), keepdim=True)  # of the whole where a part shows nothing
    around = F.interpolate(seen[:, :3] / seen[:, 3:].clamp_min(1e-6), size=size, mode="bilinear")[0]
    return rgba.opaque(rgba.flatten(layer, around))


def restore_matte(layer: Tensor, composite: Tensor, guide: Tensor | None, role: Role | None) -> Tensor:
    """Restore what a matting knows of its layer.

    Args:
        layer: The model's, (4, H, W).
        composite: The picture, (4, H, W). The layer is nowhere more opaque, and where it is as opaque has its colour.
        guide, role: The map (H, W) in [0, 1] that marked the subject, whose known alpha holds.

    Returns:
        The layer (4, H, W).
    """
    alpha = snap_alpha(layer)[3]
    if guide is not None and role is Role.ALPHA:
        alpha = guide
    elif guide is not None and role in (Role.TRIMAP, Role.ROUGH):
        alpha = torch.where(guide < SNAP, 0.0, alpha)
        if role is Role.TRIMAP:
            alpha = torch.where(guide > 1 - SNAP, 1.0, alpha)
    alpha = alpha.minimum(composite[3])  # nothing is more solid than what the picture shows
    rgb = torch.where(alpha == composite[3], composite[:3], layer[:3])
    return torch.cat([rgb, alpha[None]])


def removal_mask(guide: Tensor, role: Role | None) -> Tensor:
    """Where a removal may paint, (H, W) bool: all that the subject of a map (H, W) in [0, 1] may touch."""
    touched = guide > (masks.PRESENT if role is Role.ALPHA else SNAP)  # a painted mask is never quite black
    return masks.dilate(touched, SOFT_EDGE * min(guide.shape)) if role is Role.PRECISE else touched


def removal_mask_of_finder(found: Tensor, size: tuple[int, int]) -> Tensor:
    """`removal_mask`, (*size) bool, of the finder's alpha (s, s)."""
    reach = masks.dilate(found > FINDER_PRESENT, SOFT_EDGE * min(found.shape))
    return F.interpolate(reach[None, None].float(), size=size, mode="bilinear")[0, 0] > 0


def changed(layer: Tensor, picture: Tensor) -> Tensor:
    """Where a model's layer shows something else than the picture that it was given, (H, W) bool: differences that
    survive a blur, and a rim around them. Both are (4, H, W).
    """
    radius = max(1, round(SOFT_EDGE * min(layer.shape[1:])))
    difference = (layer[:3] - picture[:3])[None]
    local = F.avg_pool2d(difference, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)[0]
    return masks.dilate(local.abs().mean(dim=0) > COLOUR_CHANGE, 2 * radius)


def paste(layer: Tensor, composite: Tensor, where: Tensor) -> Tensor:
    """Take the layer's colours where `where` (H, W) is true, the composite's elsewhere, and its alpha everywhere."""
    return torch.cat([torch.where(where & (composite[3] > 0), layer[:3], composite[:3]), composite[3:]])


def restore_alphas(
    layers: Sequence[Tensor], composite: Tensor, roles: Sequence[Role], guide: Tensor | None, role: Role | None
) -> list[Tensor]:
    """The layers of a decomposition with the alphas of foregrounds as those of mattes, at most what the input's alpha
    leaves, so that they recompose to that.
    """
    done: list[Tensor] = []
    left = composite[3]  # the alpha that this layer and those behind it make together
    for layer, own in zip(reversed(layers), reversed(roles), strict=True):  # front to back
        if own is Role.FOREGROUND:
            layer = restore_matte(layer, composite, guide, role) if len(layers) == 2 else snap_alpha(layer)
            alpha = layer[3].minimum(left)
        else:
            alpha = left
        done.append(torch.cat([layer[:3], alpha[None]]))
        left = torch.where(alpha < 1, (left - alpha) / (1 - alpha).clamp_min(1e-6), left).clamp(0, 1)
    return done[::-1]


def match_composite(layers: Sequence[Tensor], composite: Tensor) -> list[Tensor]:
    """Change the colours of layers (4, H, W), back to front, so that they recompose to the composite (4, H, W).

    It is the least change by squares: each layer takes a share of the difference by how much of it is visible. Colours
    are clipped to [0, 1], and are the composite's own, bit for bit, where one layer alone is visible.
    """
    above, shares = torch.ones_like(composite[3]), list[Tensor]()
    for layer in reversed(layers):
        shares.append(above * layer[3])
        above = above * (1 - layer[3])
    shares.reverse()
    seen = torch.stack([share * layer[:3] for share, layer in zip(shares, layers, strict=True)]).sum(0)
    missing = (composite[:3] * composite[3] - seen) / torch.stack(shares).square().sum(0).clamp_min(1e-6)
    matched = []
    for layer, share in zip(layers, shares, strict=True):
        alone = (share == composite[3]) & (share == layer[3])  # nothing in front of it and nothing seen behind
        rgb = torch.where(alone, composite[:3], (layer[:3] + share * missing).clamp(0, 1))
        matched.append(torch.cat([rgb, layer[3:]]))
    return matched
