"""The nine plain backgrounds on which RGBA pictures are compared [AlphaVAE, arXiv 2507.09308]."""

from __future__ import annotations

BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "grey": (128 / 255, 128 / 255, 128 / 255),
    "black": (0.0, 0.0, 0.0),
    "white": (1.0, 1.0, 1.0),
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
    "cyan": (0.0, 1.0, 1.0),
    "magenta": (1.0, 0.0, 1.0),
}
