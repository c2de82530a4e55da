"""`Picture`, samples of any depth as straight RGBA in [0, 1], and the errors of decoders as sentences for the user."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.io.metadata import Metadata
from omnialpha.limits import MAX_PIXELS

ROUNDING = 1e-5  # floats this far outside [0, 1] are rounding, and cut
# what decoders raise on bytes that are not what they should be
DAMAGED = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, struct.error, zlib.error)


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as read, and what is kept of its file.

    Attributes:
        rgba: (4, H, W) float32 in [0, 1], straight alpha, sRGB, upright.
        icc: The RGB profile of the file. `rgba` is sRGB already; `write_image` converts back.
        dpi: Dots per inch, (x, y).
        bits: A channel in the file, 8 or 16.
        notes: What was lost or assumed in reading, as sentences for the user.
        path: Of the file, if it has one.
        stored: The colours (3, H, W) as the file has them, where its profile changed them.
        metadata: EXIF, XMP and texts.
    """

    rgba: Tensor
    icc: bytes | None = None
    dpi: tuple[float, float] | None = None
    bits: int = 8
    notes: tuple[str, ...] = ()
    path: Path | None = None
    stored: Tensor | None = None
    metadata: Metadata = field(default_factory=Metadata)

    @property
    def raw(self) -> Tensor:
        """(4, H, W) as the file has it, whatever its profile, as maps are read."""
        return self.rgba if self.stored is None else torch.cat([self.stored, self.rgba[3:]])


class Damaged(Exception):
    """A decoder failed on the bytes of a file."""


# what reading raises, and what the user is shown
SENTENCES: dict[type[Exception], str] = {
    Image.DecompressionBombError: f"{{name}} has more than {MAX_PIXELS:,} pixels; make it smaller or crop it.",
    FileNotFoundError: "There is no file {name}; check the path.",
    PermissionError: "{name} may not be read; change its permissions.",
    UnidentifiedImageError: "{name} is not a picture in a known format; save it as PNG, WebP, JPEG or TIFF.",
    Damaged: "{name} is damaged or cut off ({error}); save or copy it again.",
}


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
    except tuple(SENTENCES) as error:
        sentence = next(words for kind, words in SENTENCES.items() if isinstance(error, kind))
        raise InputError(sentence.format(name=name, error=error)) from error


def check_frame(frame: int | None, frames: int, name: str) -> list[str]:
    """Check the number of a frame, from 0; a note where none is chosen of several."""
    if frame is None:
        return [f"first of {frames} frames"] if frames > 1 else []
    if not 0 <= frame < frames:
        last = f"; use 0 to {frames - 1}" if frames > 1 else ", number 0; leave the frame out"
        raise InputError(f"{name} has no frame {frame}, as it has {frames}{last}.")
    return []


def check_unit_range(values: np.ndarray, name: str, rounding: float = ROUNDING) -> np.ndarray:
    """Check that floats are in [0, 1], but for rounding.

    Args:
        values: Of any shape.
        name: What the message calls them.
        rounding: How far outside a value may be; at least the precision of the type.

    Returns:
        float32, clipped to [0, 1].

    Raises:
        InputError: A value is NaN, infinite or further outside.
    """
    if not np.isfinite(values).all():
        raise InputError(f"{name} holds NaN or infinite values; replace them first, by 0 for example.")
    low, high = float(values.min()), float(values.max())
    rounding = max(rounding, float(np.finfo(values.dtype).eps))
    if low < -rounding or high > 1 + rounding:
        fix = "divide by 255" if low >= 0 and 2 < high <= 255 else "scale or clip them first"
        raise InputError(f"{name} holds floats from {low:g} to {high:g}, which are not in [0, 1]; {fix}.")
    return values.astype(np.float32).clip(0, 1)


def rgba_of(samples: np.ndarray) -> np.ndarray:
    """Convert grey, grey with alpha, RGB or RGBA to RGBA.

    Args:
        samples: (H, W) or (H, W, 1 to 4), unsigned integers up to their highest value, bools, or floats in [0, 1].

    Returns:
        (H, W, 4) float32 in [0, 1], straight alpha.
    """
    samples = samples.reshape(*samples.shape[:2], -1)
    if samples.dtype == bool or np.issubdtype(samples.dtype, np.floating):
        values = samples.astype(np.float32)
    else:
        values = (samples / np.float64(np.iinfo(samples.dtype).max)).astype(np.float32)
    channels = values.shape[-1]
    colour = values[..., :3] if channels >= 3 else values[..., :1].repeat(3, -1)
    alpha = values[..., -1:] if channels in (2, 4) else np.ones_like(values[..., :1])
    return np.concatenate([colour, alpha], axis=-1)


def orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels (H, W, C) upright by an EXIF orientation of 1 to 8; other values change nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def to_tensor(pixels: np.ndarray) -> Tensor:
    """(H, W, C) float32 -> (C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).contiguous()


def integers(rgba: Tensor, bits: int) -> np.ndarray:
    """Quantise (4, H, W) in [0, 1] to an array (H, W, 4), uint8, or uint16 for 16 `bits`."""
    pixels = rgba.detach().permute(1, 2, 0).float().cpu().numpy().clip(0, 1)
    return (pixels * (2**bits - 1) + 0.5).astype(np.uint16 if bits == 16 else np.uint8)
