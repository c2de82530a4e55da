"""Samples of any depth to straight RGBA in [0, 1], and the errors of decoders as sentences for the user."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, UnidentifiedImageError

from omnialpha.errors import InputError
from omnialpha.io.metadata import Metadata
from omnialpha.limits import MAX_PIXELS

ROUNDING = 1e-5  # floats this far outside [0, 1] are rounding, and cut
# what decoders raise on bytes that are not what they should be
DAMAGED = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, struct.error, zlib.error)


class Damaged(Exception):
    """A decoder failed on the bytes of a file."""


@dataclass
class Decoded:
    """Straight sRGB pixels (H, W, 4) float32 in [0, 1], with what has to be remembered about their file."""

    pixels: np.ndarray
    bits: int = 8
    profile: bytes | None = None  # an RGB profile that pixels can be converted back to
    dpi: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)
    stored: np.ndarray | None = None  # the colours (H, W, 3) before a profile was applied
    metadata: Metadata = field(default_factory=Metadata)


@contextmanager
def decoder_errors() -> Iterator[None]:
    """Around calls of Pillow and tifffile: what they raise on damaged bytes becomes `Damaged`."""
    try:
        yield
    except (InputError, UnidentifiedImageError, FileNotFoundError, PermissionError):
        raise
    except DAMAGED as error:
        raise Damaged(str(error)) from error


@contextmanager
def readable_errors(name: str) -> Iterator[None]:
    """Around reading the picture `name`: errors become an `InputError` of one sentence."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} has more than {MAX_PIXELS:,} pixels; make it smaller or crop it.") from error
    except FileNotFoundError as error:
        raise InputError(f"There is no file {name}; check the path.") from error
    except PermissionError as error:
        raise InputError(f"{name} may not be read; change its permissions.") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not a picture in a known format; save it as PNG, WebP, JPEG or TIFF.") from error
    except Damaged as error:
        raise InputError(f"{name} is damaged or cut off ({error}); save or copy it again.") from error


def check_unit_range(values: np.ndarray, name: str, rounding: float = ROUNDING) -> np.ndarray:
    """Floats in [0, 1] -> float32, what is off by rounding cut; InputError for NaN, infinities and other ranges."""
    if not np.isfinite(values).all():
        raise InputError(f"{name} holds NaN or infinite values; replace them first, by 0 for example.")
    low, high = float(values.min()), float(values.max())
    rounding = max(rounding, float(np.finfo(values.dtype).eps))
    if low < -rounding or high > 1 + rounding:
        fix = "divide by 255" if low >= 0 and 2 < high <= 255 else "scale or clip them first"
        raise InputError(f"{name} holds floats from {low:g} to {high:g}, which are not in [0, 1]; {fix}.")
    return values.astype(np.float32).clip(0, 1)


def rgba_of(samples: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 1..4) integers, bools or floats -> straight RGBA (H, W, 4) float32 in [0, 1]."""
    if samples.ndim == 2:
        samples = samples[..., None]
    if samples.dtype == bool or np.issubdtype(samples.dtype, np.floating):
        values = samples.astype(np.float32)
    else:
        values = (samples / np.float64(np.iinfo(samples.dtype).max)).astype(np.float32)
    channels = values.shape[-1]
    colour = values[..., :3] if channels >= 3 else values[..., :1].repeat(3, -1)
    alpha = values[..., -1:] if channels in (2, 4) else np.ones_like(values[..., :1])
    return np.concatenate([colour, alpha], axis=-1)


def orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) as stored -> upright, for EXIF orientations 1 to 8; other values are left alone."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
