"""Basic English colour names: a table, and the nearest name in OKLab."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (212, 38, 36),
    "orange": (243, 138, 32),
    "yellow": (248, 216, 48),
    "green": (72, 172, 64),
    "dark green": (28, 84, 42),
    "teal": (24, 150, 146),
    "light blue": (140, 196, 240),
    "blue": (44, 92, 208),
    "dark blue": (26, 34, 96),
    "purple": (128, 56, 164),
    "pink": (244, 142, 182),
    "brown": (122, 74, 40),
    "beige": (224, 196, 150),
    "white": (248, 248, 246),
    "grey": (146, 146, 148),
    "black": (22, 22, 24),
}
NAMES = tuple(COLORS)
_MORE = (  # names that reach far from their main colour
    ("grey", (84, 84, 86)), ("grey", (198, 198, 200)), ("brown", (168, 118, 80)), ("brown", (70, 42, 28)),
    ("pink", (250, 200, 212)), ("purple", (188, 150, 220)), ("green", (150, 214, 120)), ("blue", (66, 104, 150)),
    ("red", (130, 20, 28)), ("black", (42, 42, 44)), ("grey", (64, 64, 66)), ("beige", (238, 226, 206)),
    ("brown", (104, 80, 66)), ("white", (230, 230, 230)), ("light blue", (196, 222, 240)),
)  # fmt: skip
_ANCHORS = np.array([*COLORS.values(), *(rgb for _, rgb in _MORE)])
_OWNER = np.array([*range(len(NAMES)), *(NAMES.index(name) for name, _ in _MORE)])
_TO_CONES = np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
_TO_LAB = np.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])
_LIGHTNESS = 0.6  # light and shade change L more than a and b, and not the name that people give


def oklab(rgb: ArrayLike) -> NDArray[np.float64]:
    """OKLab (Ottosson 2020) of sRGB in 0..255, (..., 3) -> (..., 3); CIELAB would call navy blue purple."""
    value = np.asarray(rgb, np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_CONES.T) @ _TO_LAB.T


def _nearest(rgb: ArrayLike) -> NDArray[np.intp]:
    """Index into NAMES of the nearest colour, (..., 3) -> (...)."""
    weight = np.array([_LIGHTNESS, 1, 1])
    return _OWNER[((oklab(rgb)[..., None, :] * weight - oklab(_ANCHORS) * weight) ** 2).sum(-1).argmin(-1)]


@cache
def _lookup() -> NDArray[np.intp]:
    """Nearest name of every 5-bit-a-channel colour, (32768,)."""
    level = np.arange(32) * 8 + 4
    return _nearest(np.stack(np.meshgrid(level, level, level, indexing="ij"), axis=-1)).ravel()


def color_name(rgb: ArrayLike) -> str:
    """Name of the nearest entry of COLORS for one sRGB colour in 0..255."""
    return NAMES[int(_nearest(rgb))]


def dominant_color(rgba: NDArray[np.uint8]) -> str:
    """Name that covers most of a picture (H, W, 4) uint8, weighted by alpha."""
    r, g, b = (rgba[..., c].astype(np.intp) >> 3 for c in range(3))
    names = _lookup()[(r << 10) | (g << 5) | b]
    return NAMES[int(np.bincount(names.ravel(), rgba[..., 3].ravel().astype(np.float64), len(NAMES)).argmax())]
