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

NAMES = {
    "first-block": "skip the other blocks in steps where the first one says much the same (value: how much, 0.1)",
    "taylor": "extrapolate attention between steps (value: every how many steps it is computed, 3)",
    "guidance": "guide only at times from LOW to HIGH of 1 to 0 (value: LOW-HIGH, 0.2-0.9)",
    "vision": "show the instruction encoder smaller pictures (value: side of a square of their area in pixels, 256)",
    "tiles": "run the autoencoder in tiles (value: their side in pixels, 512)",
}


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
        """Read names of NAMES and values as text, "" for the value that NAMES states."""
        made = {}
        for name, value in given.items():
            if name not in READERS:
                raise InputError(f"approximation {name!r} is not known: use one of {', '.join(NAMES)}.")
            try:
                made[name.replace("-", "_")] = READERS[name](value or NAMES[name].rpartition(" ")[2].rstrip(")"))
            except ValueError:
                raise InputError(f"approximation {name}={value!r} has no such value: {NAMES[name]}.") from None
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


READERS = {"first-block": _share, "taylor": _count, "guidance": _interval, "vision": _count, "tiles": _count}
assert READERS.keys() == NAMES.keys()
