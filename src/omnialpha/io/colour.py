"""Colour profiles: matrix-and-curve RGB and grey ICC profiles to sRGB and back in floating point.

Pillow's colour management works on 8 bits a channel, too coarse for 16-bit files and for dark tones on a round trip;
it is the fallback for profiles that are tables (see decoding.py)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# linear sRGB -> XYZ at D50, the profile connection space (ICC's Bradford-adapted primaries)
SRGB_TO_XYZ = np.array(
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
)
SAMPLES = 4096  # of a curve given as a formula; linear between samples both ways, so the inverse is exact
BLOCK = 1 << 20  # pixels converted at a time, which bounds the memory
OUT_OF_GAMUT = 1e-3  # linear light beyond [0, 1] by more than this is a colour that sRGB does not have


def srgb_decode(encoded: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] -> linear light (IEC 61966-2-1)."""
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def srgb_encode(linear: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] -> sRGB (IEC 61966-2-1)."""
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


@dataclass(frozen=True, eq=False)
class Profile:
    """A profile: channel curves (encoded to linear, samples on [0, 1]) and the matrix to XYZ D50, None for grey."""

    curves: tuple[np.ndarray, ...]
    matrix: np.ndarray | None

    @property
    def grey(self) -> bool:
        return self.matrix is None

    def to_srgb(self, pixels: np.ndarray) -> tuple[np.ndarray, bool]:
        """Convert (H, W, 3) in this profile to sRGB, clipped to [0, 1]; and whether colours were clipped."""
        to_linear_srgb = np.eye(3) if self.matrix is None else np.linalg.solve(SRGB_TO_XYZ, self.matrix)
        curves = self.curves * 3 if self.grey else self.curves
        out, clipped = np.empty((pixels.size // 3, 3), np.float32), False
        for rows, block in _blocks(pixels):
            linear = np.stack([np.interp(block[:, i], _ramp(c), c) for i, c in enumerate(curves)], axis=-1)
            linear = linear @ to_linear_srgb.T
            clipped |= bool(linear.min() < -OUT_OF_GAMUT or linear.max() > 1 + OUT_OF_GAMUT)
            out[rows] = srgb_encode(linear.clip(0, 1))
        return out.reshape(pixels.shape), clipped

    def from_srgb(self, pixels: np.ndarray) -> np.ndarray:
        """Convert sRGB (H, W, 3) to this RGB profile, clipped to [0, 1]."""
        assert self.matrix is not None
        from_linear_srgb = np.linalg.solve(self.matrix, SRGB_TO_XYZ)
        out = np.empty((pixels.size // 3, 3), np.float32)
        for rows, block in _blocks(pixels):
            linear = (srgb_decode(block) @ from_linear_srgb.T).clip(0, 1)
            out[rows] = np.stack([np.interp(linear[:, i], c, _ramp(c)) for i, c in enumerate(self.curves)], axis=-1)
        return out.reshape(pixels.shape)

    def is_srgb(self) -> bool:
        """Whether it differs from sRGB by less than one 8-bit step on a grid of colours."""
        steps = np.linspace(0, 1, 18)
        grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
        return not self.grey and bool(np.abs(self.to_srgb(grid)[0] - grid).max() < 1 / 255)


def _ramp(curve: np.ndarray) -> np.ndarray:
    return np.linspace(0, 1, len(curve))


def _blocks(pixels: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Pixels (H, W, 3) as float64 rows (n, 3), with their place among all rows."""
    flat = pixels.reshape(-1, 3)
    for start in range(0, len(flat), BLOCK):
        rows = slice(start, start + BLOCK)
        yield rows, flat[rows].astype(np.float64)


def parse(icc: bytes) -> Profile | None:
    """Parse ICC bytes; None for profiles without curves and a matrix (tables, CMYK, Lab). ValueError if damaged."""
    try:
        space, connection = icc[16:20], icc[20:24]
        count = struct.unpack_from(">I", icc, 128)[0]
        entries = (struct.unpack_from(">4sII", icc, 132 + 12 * i) for i in range(min(count, 1000)))
        tags = {name: icc[start : start + length] for name, start, length in entries}
        if space == b"GRAY" and b"kTRC" in tags:
            return Profile((_curve(tags[b"kTRC"]),), None)
        primaries = [tags.get(name) for name in (b"rXYZ", b"gXYZ", b"bXYZ")]
        if space != b"RGB " or connection != b"XYZ " or None in primaries:
            return None
        matrix = np.array([struct.unpack_from(">3i", tag, 8) for tag in primaries if tag]).T / 65536
        np.linalg.inv(matrix)
        return Profile(tuple(_curve(tags[name]) for name in (b"rTRC", b"gTRC", b"bTRC")), matrix)
    except (struct.error, KeyError, IndexError, np.linalg.LinAlgError) as error:
        raise ValueError(f"damaged colour profile: {error}") from error


def _curve(tag: bytes) -> np.ndarray:
    """A `curv` or `para` tag -> samples of encoded -> linear on [0, 1] (ICC.1:2022, sections 10.6 and 10.18)."""
    x = np.linspace(0, 1, SAMPLES)
    if tag[:4] == b"curv":
        count = struct.unpack_from(">I", tag, 8)[0]
        if count == 0:
            return x
        values = np.array(struct.unpack_from(f">{count}H", tag, 12), np.float64)
        curve = x ** (values[0] / 256) if count == 1 else values / 65535
    elif tag[:4] == b"para":
        kind = struct.unpack_from(">H", tag, 8)[0]
        parameters = np.array(struct.unpack_from(f">{(1, 3, 4, 5, 7)[kind]}i", tag, 12)) / 65536
        g, a, b, c, d, e, f = np.concatenate([parameters, np.zeros(7 - len(parameters))])
        power = np.maximum(a * x + b, 0) ** g if kind else x**g
        if kind in (1, 2):  # c is 0 for kind 1
            curve = np.where(x >= -b / a, power + c, c)
        else:
            curve = np.where(x >= d, power + e, c * x + f) if kind else power
    else:
        raise ValueError(f"damaged colour profile: unknown curve {tag[:4]!r}")
    return np.maximum.accumulate(curve.clip(0, 1))  # rising, so that the inverse exists
