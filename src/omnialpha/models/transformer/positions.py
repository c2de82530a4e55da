"""MSRoPE-BiL as data: (layer, row, column) ids of every token, and the rotary tables made from them.

Layers extend both ways around the inputs (OmniAlpha, arXiv 2511.20211): targets before, inputs after, text behind all
of them. Rotary attention only sees differences, so the whole axis is shifted here until the first layer is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from omnialpha.errors import InputError

Size = tuple[int, int]  # (height, width) in transformer tokens
Axes = tuple[int, ...]
TargetOrder = Literal["paper", "released"]

PATCH_SIZE = 2  # latents that a transformer token spans, each way: of every published model
QWEN_AXES = (16, 56, 56)  # channels of a head that turn with (layer, row, column)
THETA = 10000.0


def patch_of(transformer: Any, vae: Any) -> int:
    """Latents that a token of a transformer spans, each way: what its channels hold of an autoencoder's."""
    return math.isqrt(transformer.config.in_channels // vae.config.z_dim)


@dataclass(frozen=True)
class Layout:
    """Sizes in tokens of the pictures of one sample, in sequence order: targets, then inputs."""

    targets: tuple[Size, ...]
    inputs: tuple[Size, ...] = ()

    def __post_init__(self) -> None:
        assert self.targets, "a sample has at least one target"
        assert all(h > 0 and w > 0 for h, w in self.pictures), f"empty picture in {self}"

    @property
    def pictures(self) -> tuple[Size, ...]:
        """All sizes: targets, then inputs."""
        return self.targets + self.inputs

    @property
    def target_tokens(self) -> int:
        """Number of tokens of all targets."""
        return sum(h * w for h, w in self.targets)

    @property
    def input_tokens(self) -> int:
        """Number of tokens of all inputs."""
        return sum(h * w for h, w in self.inputs)

    @property
    def text_start(self) -> int:
        """Position of the first text token on all axes: past every half size and every layer."""
        return max(len(self.pictures), *(max(h // 2, w // 2) for h, w in self.pictures))


@dataclass(frozen=True)
class Positions:
    """Rotary tables (float32) and key masks (True = real token) of a batch; a mask is None where nothing is padded.

    Image rows: targets padded to Lt, then inputs padded to Li. Tables are (B, rows, head_dim / 2).
    """

    image_cos: Tensor
    image_sin: Tensor
    text_cos: Tensor
    text_sin: Tensor
    target_mask: Tensor | None = None  # (B, Lt) bool
    input_mask: Tensor | None = None  # (B, Li) bool
    text_mask: Tensor | None = None  # (B, T) bool


def layer_ids(targets: int, inputs: int, target_order: TargetOrder) -> list[int]:
    """Shifted layer index of each picture, targets first. The paper mirrors the order that the released code uses."""
    if target_order not in get_args(TargetOrder):
        raise InputError(f"Unknown target_order {target_order!r}: use one of {', '.join(get_args(TargetOrder))}.")
    first = list(range(targets))
    return (first[::-1] if target_order == "paper" else first) + list(range(targets, targets + inputs))


def position_ids(layout: Layout, text_length: int, target_order: TargetOrder) -> tuple[Tensor, Tensor]:
    """Ids (layer, row, column) of the image tokens (L, 3) and the text tokens (T, 3), int64 on the CPU."""
    layers = layer_ids(len(layout.targets), len(layout.inputs), target_order)
    image = torch.cat([_picture_ids(z, size) for z, size in zip(layers, layout.pictures, strict=True)])
    return image, _text_ids(layout.text_start, text_length)


def _picture_ids(layer: int, size: Size) -> Tensor:
    """Row-major ids (h * w, 3) of one picture; 0 is its centre, odd sizes have the extra row and column before it."""
    axes = [torch.arange(length // 2 - length, length // 2, device="cpu") for length in size]
    return torch.cartesian_prod(torch.tensor([layer], device="cpu"), *axes)


def _text_ids(start: int, length: int) -> Tensor:
    """Ids (length, 3): text advances along the diagonal."""
    return torch.arange(start, start + length, device="cpu")[:, None].expand(-1, 3)


def rotary(ids: Tensor, axes: Axes = QWEN_AXES) -> tuple[Tensor, Tensor]:
    """Cosine and sine (..., head_dim / 2) in float32 of integer ids (..., 3); no limit on the ids."""
    angles = []
    for axis, channels in enumerate(axes):
        exponents = torch.arange(0, channels, 2, dtype=torch.float32, device=ids.device) / channels
        angles.append(ids[..., axis, None] * (1.0 / torch.pow(THETA, exponents)))
    angle = torch.cat(angles, dim=-1)
    # polar, not cos and sin: its last bit is what the published weights were trained with
    table = torch.polar(torch.ones_like(angle), angle)
    return table.real.contiguous(), table.imag.contiguous()


def batch_positions(
    layouts: Sequence[Layout],
    text_lengths: Sequence[int],
    target_order: TargetOrder,
    axes: Sequence[int] = QWEN_AXES,
    device: torch.device | str = "cpu",
) -> Positions:
    """Tables and masks of a batch, one layout and one text length a sample."""
    assert len(layouts) == len(text_lengths) > 0, (len(layouts), len(text_lengths))
    device = torch.device(device)
    axes = tuple(axes)  # a list where it comes from a configuration file
    targets = [layout.target_tokens for layout in layouts]
    inputs = [layout.input_tokens for layout in layouts]
    rows = (max(targets), max(inputs))
    image = _stack([_image_table(layout, rows, target_order, axes, device) for layout in layouts])
    length = max(text_lengths)
    text = _stack([_text_table(layout.text_start, length, axes, device) for layout in layouts])
    return Positions(
        image_cos=image[:, 0],
        image_sin=image[:, 1],
        text_cos=text[:, 0],
        text_sin=text[:, 1],
        target_mask=padding_mask(targets, device),
        input_mask=padding_mask(inputs, device),
        text_mask=padding_mask(text_lengths, device),
    )


# Cached tables must not be inference tensors: a validation step would poison them for the next training step.
@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _image_table(
    layout: Layout, rows: tuple[int, int], target_order: TargetOrder, axes: Axes, device: torch.device
) -> Tensor:
    """Cosine and sine (2, Lt + Li, head_dim / 2) with zero rows up to `rows` = (Lt, Li)."""
    ids, _ = position_ids(layout, 0, target_order)
    counts = [layout.target_tokens, layout.input_tokens]
    parts = torch.stack(rotary(ids, axes)).split(counts, dim=1)
    padded = [F.pad(part, (0, 0, 0, row - count)) for part, row, count in zip(parts, rows, counts, strict=True)]
    return torch.cat(padded, dim=1).to(device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _text_table(start: int, length: int, axes: Axes, device: torch.device) -> Tensor:
    """Cosine and sine (2, length, head_dim / 2)."""
    return torch.stack(rotary(_text_ids(start, length), axes)).to(device)


def _stack(tables: list[Tensor]) -> Tensor:
    """Stack to (B, ...); a view where the cache returned one and the same table for all."""
    if all(table is tables[0] for table in tables):
        return tables[0].expand(len(tables), *tables[0].shape)
    return torch.stack(tables)


def padding_mask(counts: Sequence[int], device: torch.device) -> Tensor | None:
    """Boolean (B, max(counts)), True on real tokens; None if all counts are equal."""
    if min(counts) == max(counts):
        return None
    return (torch.arange(max(counts), device="cpu") < torch.tensor(counts, device="cpu")[:, None]).to(device)
