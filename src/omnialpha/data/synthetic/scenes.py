"""Scenes composed in batches: foregrounds of a bank placed on its backgrounds, with captions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from omnialpha import rgba
from omnialpha.data.scene import Caption, Scene
from omnialpha.data.synthetic.bank import Bank

PLACES = (("top left", "top", "top right"), ("left", "middle", "right"), ("bottom left", "bottom", "bottom right"))


def compose(
    bank: Bank,
    count: int,
    objects: int,
    size: tuple[int, int],
    generator: torch.Generator,
    apart: bool = False,
    framed: bool = False,
) -> list[Scene]:
    """Draw scenes of one size.

    Args:
        objects: layers of each.
        size: (height, width) in pixels.
        apart: keep layers in cells of their own.
        framed: layers stay as they are in the bank, in the middle, as large as the picture lets them be.
    """
    device = bank.foregrounds.device
    picks = torch.randint(len(bank.captions), (count, objects), generator=generator)
    places = torch.randint(len(bank.background_captions), (count,), generator=generator)
    if framed:
        centers, matrices = torch.zeros(count, objects, 2), _fitted(size).expand(count * objects, 2, 3)
    else:
        centers, scales = _placements(count, objects, generator, apart)
        matrices = _affine(centers.flatten(0, 1), scales.flatten(), size, generator)
    flat = bank.foregrounds[picks.flatten().to(device)].float() / 255
    layers = rgba.unpremultiply(_warp(rgba.premultiply(flat), matrices, size, "zeros").clamp(0, 1), eps=1 / 512)
    layers = layers.unflatten(0, (count, objects))
    background = _background(bank.backgrounds[places.to(device)].float() / 255, size, generator)
    composite = rgba.opaque(rgba.recompose([background, *layers.unbind(1)]))
    scenes = []
    for b, items in enumerate(picks.tolist()):
        where = [place(center) if objects > 1 else "" for center in centers[b]]
        captions = tuple(_worded(bank.captions[i], at, generator) for i, at in zip(items, where, strict=True))
        behind = _article(bank.background_captions[int(places[b])])
        scenes.append(Scene(layers[b], background[b], composite[b], captions, behind, items=tuple(items)))
    return scenes


def _placements(count: int, objects: int, generator: torch.Generator, apart: bool) -> tuple[Tensor, Tensor]:
    """Centres (B, K, 2) as (x, y) in [-1, 1] and half-extents (B, K) relative to the shorter side."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    if objects == 1 or not apart:
        scales = uniform(0.4, 0.95, count, objects) if objects == 1 else uniform(0.3, 0.6, count, objects)
        room = (1.05 - scales).clamp(min=0.05)[..., None]
        return uniform(-1, 1, count, objects, 2) * room, scales
    scales = uniform(0.3, 0.46, count, objects)
    side = uniform(0.45, 0.55, count, objects)
    along = torch.linspace(-1, 1, objects).expand(count, objects) * side
    across = uniform(-0.4, 0.4, count, objects)
    turn = torch.rand(count, 1, generator=generator) < 0.5
    swap = torch.where(torch.rand(count, 1, generator=generator) < 0.5, 1.0, -1.0)
    x, y = torch.where(turn, along * swap, across), torch.where(turn, across, along * swap)
    return torch.stack([x, y], dim=-1), scales


def _fitted(size: tuple[int, int]) -> Tensor:
    """Output-to-input matrix (2, 3) of a square that fits into (height, width)."""
    height, width = size
    return torch.tensor([[width / min(size), 0, 0], [0, height / min(size), 0]])


def _affine(centers: Tensor, scales: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Output-to-input matrices (N, 2, 3) for F.affine_grid: scale, a small turn, a mirror, a shift."""
    n, (height, width) = len(scales), size
    short = min(size)
    angle = (torch.rand(n, generator=generator) * 2 - 1) * math.radians(20)
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, 1.0, -1.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    to_x, to_y = width / short / scales, height / short / scales  # output [-1, 1] -> units of the layer's half-extent
    rows = torch.stack([cos * to_x, sin * to_y, -sin * to_x, cos * to_y], dim=-1).view(n, 2, 2)
    rows[:, 0] *= mirror[:, None]
    shift = -(rows @ centers[..., None])
    return torch.cat([rows, shift], dim=-1)


def _warp(pictures: Tensor, matrices: Tensor, size: tuple[int, int], outside: str) -> Tensor:
    """Resample. Shrinking beyond 2x is rare here, so bilinear without a pyramid is enough."""
    grid = F.affine_grid(matrices.to(pictures.device), [len(pictures), pictures.shape[1], *size], align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode=outside, align_corners=False)


def _background(pictures: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Random crop, mirror and exposure of (B, 3, S, S) -> opaque (B, 4, H, W)."""
    n = len(pictures)
    zoom = torch.rand(n, generator=generator) * 0.4 + 0.6
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, 1.0, -1.0)
    shift = (torch.rand(n, 2, generator=generator) * 2 - 1) * (1 - zoom)[:, None]
    gain = (torch.rand(n, 1, 1, 1, generator=generator) * 0.4 + 0.8).to(pictures.device)
    aspect = min(size[1] / size[0], 1.0), min(size[0] / size[1], 1.0)
    matrices = torch.zeros(n, 2, 3)
    matrices[:, 0, 0], matrices[:, 1, 1], matrices[:, :, 2] = zoom * mirror * aspect[0], zoom * aspect[1], shift
    return rgba.opaque((_warp(pictures, matrices, size, "reflection") * gain).clamp(0, 1))


def _worded(caption: Caption, where: str, generator: torch.Generator) -> Caption:
    """A wording drawn anew: often with the colour where it is known, and with the place where that is given."""
    text = caption.text
    a, b = torch.rand(2, generator=generator).tolist()
    if caption.color and a < 0.6 and caption.color not in text:
        text = f"{caption.color} {text}"
    text = _article(text)
    if where and b < 0.6:
        return caption._replace(text=f"{text} at the {where}", place=where)
    return caption._replace(text=text)


def place(center: Tensor) -> str:
    """The word for a centre (x, y) in [-1, 1]."""
    column, row = (int(v > -1 / 4) + int(v > 1 / 4) for v in center.tolist())
    return PLACES[row][column]


def _article(words: str) -> str:
    first = words.split(" ", 1)[0].lower()
    if first in ("a", "an", "the", "some", "two", "light", "soft") or words.endswith("s"):
        return words
    return f"{'an' if first[:1] in 'aeiou' else 'a'} {words}"
