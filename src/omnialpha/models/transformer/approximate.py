"""Savings that change the picture a little: off unless asked for, each by name; docs/performance.md has their cost.

Quantisation, which changes the weights themselves, is in `quantize`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig

from omnialpha.errors import InputError
from omnialpha.models.vae.tiling import Tiling
from omnialpha.sampling import FULL_INTERVAL, Interval

if TYPE_CHECKING:
    from omnialpha.models.text_encoder.encoder import TextEncoder
    from omnialpha.models.transformer.model import MultiImageTransformer
    from omnialpha.models.vae.autoencoder import Autoencoder


@dataclass(frozen=True)
class Approximations:
    """The approximations that are asked for. None: exact."""

    first_block: float | None = None
    taylor: int | None = None
    guidance: Interval = FULL_INTERVAL
    vision: int | None = None
    tiles: int | None = None

    def __post_init__(self) -> None:
        if self.first_block is not None and self.taylor is not None:
            raise InputError("first-block and taylor are both given: use one of them.")

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> Approximations:
        """Read names of APPROXIMATIONS and values as text, "" for the default."""
        made = {}
        for name, value in given.items():
            if name not in APPROXIMATIONS:
                raise InputError(f"approximation {name!r} is not known: use one of {', '.join(APPROXIMATIONS)}.")
            read, default, about = APPROXIMATIONS[name]
            try:
                made[name.replace("-", "_")] = read(value or default)
            except ValueError:
                raise InputError(f"approximation {name}={value!r} has no such value: {about} ({default}).") from None
        return cls(**made)  # type: ignore[arg-type]

    def apply(self, transformer: MultiImageTransformer, text_encoder: TextEncoder, vae: Autoencoder) -> None:
        """Ready the parts; `guidance` is for whoever samples."""
        if self.first_block is not None:
            transformer.enable_cache(FirstBlockCacheConfig(threshold=self.first_block))
        if self.taylor is not None:
            transformer.enable_cache(TaylorSeerCacheConfig(cache_interval=self.taylor))
        if self.vision is not None:
            text_encoder.picture_pixels = min(text_encoder.picture_pixels or self.vision**2, self.vision**2)
        if self.tiles is not None:
            vae.tiling = Tiling(self.tiles, self.tiles // 4)
            vae.tiling.positions(vae.ratio)


def _interval(text: str) -> Interval:
    low, high = (float(part) for part in text.split("-"))
    if not 0 <= low <= high <= 1:
        raise ValueError(text)
    return low, high


def _share(text: str) -> float:
    if not (value := float(text)) > 0:
        raise ValueError(text)
    return value


def _count(text: str) -> int:
    if not 1 <= (value := int(text)) <= 1 << 14:
        raise ValueError(text)
    return value


# name -> reader of a value, default, what a value is
APPROXIMATIONS = {
    "first-block": (_share, "0.1", "skip the other blocks in steps where the first one changes less than this"),
    "taylor": (_count, "3", "compute attention every so many steps, and extrapolate it between"),
    "guidance": (_interval, "0.2-0.9", "guide only at times from LOW to HIGH of 1 to 0, as LOW-HIGH"),
    "vision": (_count, "256", "show the instruction encoder pictures of the area of a square of this side in pixels"),
    "tiles": (_count, "512", "run the autoencoder in tiles of this side in pixels"),
}
