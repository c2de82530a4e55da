"""The families of models: which classes each is made of. They are called alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omnialpha.models.checkpoints.card import Family
from omnialpha.models.flux import transformer as flux
from omnialpha.models.flux.text_encoder import FluxText
from omnialpha.models.text_encoder.encoder import TextEncoder
from omnialpha.models.transformer.model import MultiImageTransformer
from omnialpha.models.transformer.positions import Positions, batch_positions


@dataclass(frozen=True)
class Classes:
    """Of a family. settings: fields of `Card` that the text_encoder takes.
    positions: layouts, text lengths, target order, axes and device -> Positions.
    """

    transformer: Any
    text_encoder: Any
    settings: tuple[str, ...]
    positions: Callable[..., Positions]


FAMILIES: dict[Family, Classes] = {
    "qwen": Classes(MultiImageTransformer, TextEncoder, ("picture_pixels", "max_tokens", "template"), batch_positions),
    "flux": Classes(flux.FluxTransformer, FluxText, ("max_tokens",), flux.positions),
}
