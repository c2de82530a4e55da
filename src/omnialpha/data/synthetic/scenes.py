"""Layered records made in batches: foregrounds of a bank placed on its backgrounds, with the words to speak of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from omnialpha import rgba
from omnialpha.data.synthetic.bank import Bank

PLACES = (("top left", "top", "top right"), ("left", "middle", "right"), ("bottom left", "bottom", "bottom right"))


@dataclass(frozen=True)
class Scenes:
    """B layered records of one size. layers (B, K, 4, H, W) straight, back to front; background and composite (B, 4, H,
    W).
    """

    layers: Tensor
    background: Tensor
    composite: Tensor
    captions: list[list[str]]  # [B][K], one wording each, drawn anew
    scene_captions: list[str]

    def full_caption(self, index: int) -> str:
        return f"{' and '.join(self.captions[index])} in front of {self.scene_captions[index]}"


def compose(
    bank: Bank, count: int, objects: int, size: tuple[int, int], generator: torch.Generator, apart: bool = False
) -> Scenes:
    """Draw `count` scenes of `objects` layers each at (height, width). `apart` keeps layers in cells of their own."""
    device = bank.foregrounds.device
    picks = torch.randint(len(bank.captions), (count, objects), generator=generator)
    places = torch.randint(len(bank.scenes), (count,), generator=generator)
    centers, scales = _placements(count, objects, generator, apart)
    flat = bank.foregrounds[picks.flatten().to(device)].float() / 255
    matrices = _affine(centers.flatten(0, 1), scales.flatten(), size, generator).to(device)
    layers = rgba.unpremultiply(_warp(rgba.premultiply(flat), matrices, size).clamp(0, 1), eps=1 / 512)
    layers = layers.unflatten(0, (count, objects))
    background = _background(bank.backgrounds[places.to(device)].float() / 255, size, generator)
    composite = rgba.recompose([background, *layers.unbind(1)])
    composite[:, 3] = 1.0
    words = [
        [_caption(bank, int(picks[b, k]), centers[b, k], objects, generator) for k in range(objects)]
        for b in range(count)
    ]
    scenes = [_article(bank.scenes[int(i)]) for i in places]
    return Scenes(layers, background, composite, words, scenes)


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


def _warp(pictures: Tensor, matrices: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample with zeros outside. Shrinking beyond 2x is rare here, so bilinear without a pyramid is enough."""
    grid = F.affine_grid(matrices, [len(pictures), pictures.shape[1], *size], align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


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
    grid = F.affine_grid(matrices.to(pictures.device), [n, 3, *size], align_corners=False)
    rgb = F.grid_sample(pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False) * gain
    return torch.cat([rgb.clamp(0, 1), torch.ones_like(rgb[:, :1])], dim=1)


def _caption(bank: Bank, index: int, center: Tensor, objects: int, generator: torch.Generator) -> str:
    """A wording: with the colour where it is known, and in scenes of several objects often with the place."""
    words, color = bank.captions[index], bank.colors[index]
    a, b = torch.rand(2, generator=generator).tolist()
    if color and a < 0.6 and color not in words:
        words = f"{color} {words}"
    words = _article(words)
    return f"{words} at the {place(center)}" if objects > 1 and b < 0.6 else words


def place(center: Tensor) -> str:
    """The word for a centre (x, y) in [-1, 1]."""
    column, row = (int(v > -1 / 4) + int(v > 1 / 4) for v in center.tolist())
    return PLACES[row][column]


def _article(words: str) -> str:
    first = words.split(" ", 1)[0].lower()
    if first in ("a", "an", "the", "some", "two", "light", "soft") or words.endswith("s"):
        return words
    return f"{'an' if first[:1] in 'aeiou' else 'a'} {words}"
