"""Picture files: read PNG, WebP, JPEG, TIFF (and what else Pillow knows); write PNG, WebP, JPEG, TIFF atomically."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from omnialpha import icc as profiles
from omnialpha.decoding import MAX_PIXELS, Decoded, decode, decode_unknown, rgba_of
from omnialpha.encoding import SETTINGS, encode
from omnialpha.errors import InputError

DAMAGED = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, struct.error, zlib.error)


@dataclass(frozen=True)
class Format:
    """What a file format can hold: alpha, bits a channel, longest side in pixels."""

    name: str
    alpha: bool = True
    bits: tuple[int, ...] = (8,)
    max_side: int = 2**31 - 1


FORMATS = {
    ".png": Format("PNG", bits=(8, 16)),
    ".webp": Format("WEBP", max_side=16383),
    ".jpg": Format("JPEG", alpha=False, max_side=65500),
    ".jpeg": Format("JPEG", alpha=False, max_side=65500),
    ".tif": Format("TIFF", bits=(8, 16)),
    ".tiff": Format("TIFF", bits=(8, 16)),
}


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as read: straight sRGB (4, H, W) in [0, 1], upright, and what to remember about its file."""

    rgba: Tensor
    icc: bytes | None = None  # the RGB profile it had; rgba is already sRGB, write_image converts back
    dpi: tuple[float, float] | None = None
    bits: int = 8  # a channel, in the file: 8 or 16
    notes: tuple[str, ...] = ()
    path: Path | None = None


def read_image(path: str | os.PathLike[str]) -> Picture:
    """A file's first frame as a Picture; InputError names what is wrong with the file."""
    path = Path(path)
    with _explained(path):
        try:
            with _opened(path) as image:
                done = decode(image, path)
        except UnidentifiedImageError:
            done = decode_unknown(path)
    return Picture(_tensor(done), done.profile, done.dpi, done.bits, tuple(done.notes), path)


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The settings that write_image stored in a PNG; None if the file has none."""
    path = Path(path)
    with _explained(path), _opened(path) as image:
        image.load()
        text = getattr(image, "text", {}).get(SETTINGS)
    if text is None:
        return None
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"The settings stored in {path} are not JSON ({error}); write the picture again.") from error
    return settings if isinstance(settings, dict) else None


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An opened picture of at most MAX_PIXELS."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; name one picture in it.")
    with path.open("rb") as file:
        if not file.read(1):
            raise InputError(f"{path} is empty (0 bytes); save or copy it again.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below instead
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield image


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns whatever goes wrong while a picture is read into one sentence."""
    try:
        yield
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} has more than {MAX_PIXELS:,} pixels; make it smaller or crop it.") from error
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}; check the path.") from error
    except PermissionError as error:
        raise InputError(f"{path} may not be read; change its permissions.") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not a picture in a known format; save it as PNG, WebP, JPEG or TIFF.") from error
    except DAMAGED as error:
        raise InputError(f"{path} is damaged or cut off ({error}); save or copy it again.") from error


def _tensor(done: Decoded) -> Tensor:
    return torch.from_numpy(done.pixels).permute(2, 0, 1).contiguous()


AnyImage = Picture | str | os.PathLike[str] | Image.Image | np.ndarray | Tensor


def to_rgba(image: AnyImage) -> Tensor:
    """Any kind of picture -> float32 (4, H, W). Arrays are (H, W[, C]), tensors ([C,] H, W), floats in [0, 1]."""
    if isinstance(image, Picture):
        return image.rgba
    if isinstance(image, Image.Image):
        return _tensor(decode(image))
    if isinstance(image, np.ndarray):
        return _tensor(Decoded(_checked(image)))
    if isinstance(image, Tensor):
        channels_last = image if image.ndim == 2 else image.movedim(0, -1)
        return _tensor(Decoded(_checked(channels_last.detach().cpu().numpy()))).to(image.device)
    if isinstance(image, (str, os.PathLike)):
        return read_image(image).rgba
    raise InputError(f"A {type(image).__name__} is not a picture; pass a path, Picture, PIL, numpy or torch image.")


def _checked(array: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 1..4) array -> straight RGBA (H, W, 4) float32."""
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[-1] > 4):
        raise InputError(f"An array of shape {array.shape} (channels last) is not a picture; it needs 1 to 4 channels.")
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):  # also catches NaN
            raise InputError(f"A float picture with values from {low:g} to {high:g} is not in [0, 1]; scale it first.")
    elif array.dtype not in (np.uint8, np.uint16, bool):
        raise InputError(f"An array of {array.dtype} is not a picture; use uint8, uint16 or floats in [0, 1].")
    return rgba_of(array)


def same_kind(rgba: Tensor, original: AnyImage) -> Image.Image | np.ndarray | Tensor:
    """(4, H, W) -> the kind and precision of `original`, always RGBA; files and Pictures give a PIL image."""
    if isinstance(original, Tensor):
        if original.dtype.is_floating_point:
            return rgba.to(original.device, original.dtype)
        return torch.from_numpy(_integers(rgba, 8)).permute(2, 0, 1).to(original.device)
    if isinstance(original, np.ndarray):
        if np.issubdtype(original.dtype, np.floating):
            return rgba.permute(1, 2, 0).cpu().numpy().astype(original.dtype)
        return _integers(rgba, 16 if original.dtype == np.uint16 else 8)
    return Image.fromarray(_integers(rgba, 8))


def _integers(rgba: Tensor, bits: int, icc: bytes | None = None) -> np.ndarray:
    """(4, H, W) sRGB -> (H, W, 4) uint8 or uint16, in the profile's colours if one is given."""
    pixels = rgba.detach().permute(1, 2, 0).float().cpu().numpy().clip(0, 1)
    profile = profiles.parse(icc) if icc else None
    if profile and not profile.is_srgb():
        pixels = np.concatenate([profile.from_srgb(pixels[..., :3]), pixels[..., 3:]], axis=-1)
    top = 2**bits - 1
    return (pixels * top + 0.5).astype(np.uint16 if bits == 16 else np.uint8)


def check_output(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]] = ()) -> Format:
    """Raises InputError, before any work is done, where a picture cannot be written to `path`."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"The output {path} is a folder; add a file name such as {path / 'out.png'}.")
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"The output {path} has no known format; end it with one of {', '.join(FORMATS)}.")
    if not path.parent.is_dir():
        raise InputError(f"The output folder {path.parent} does not exist; create it first.")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise InputError(f"The output {path} may not be written; change the permissions or choose another folder.")
    for source in map(Path, inputs):
        if source.resolve() == path.resolve() or (source.exists() and path.exists() and source.samefile(path)):
            raise InputError(f"The output {path} is also an input; choose another name so that it is not overwritten.")
    return FORMATS[path.suffix.lower()]


def write_image(
    path: str | os.PathLike[str],
    rgba: Tensor,
    *,
    settings: dict[str, Any] | None = None,
    icc: bytes | None = None,
    dpi: tuple[float, float] | None = None,
    bits: int = 8,
) -> None:
    """Writes (4, H, W) in the format of the suffix, whole or not at all, and reads it back to make sure.

    `icc` is an RGB profile: the colours are converted to it and it is embedded; other profiles are left out, which
    means sRGB. WebP is lossless. `settings` is stored in PNG alone."""
    path, form = Path(path), check_output(path)
    if rgba.ndim != 3 or rgba.shape[0] != 4 or rgba.numel() == 0:
        raise InputError(f"A tensor of shape {tuple(rgba.shape)} cannot be written to {path}; pass (4, height, width).")
    if not bool(rgba.isfinite().all()):
        raise InputError(f"The picture for {path} holds NaN or infinite values; it cannot be written.")
    if bits not in form.bits:
        raise InputError(f"{bits} bits a channel do not fit {path}; use .png or .tif for 16 and any format for 8.")
    if max(rgba.shape[1:]) > form.max_side:
        side = max(rgba.shape[1:])
        raise InputError(f"{path} would have a side of {side} px, but {form.name} ends at {form.max_side}; use .png.")
    icc = icc if _is_matrix_rgb(icc) else None
    array = _integers(rgba, bits, icc)
    opaque = bool(array[..., 3].min() == 2**bits - 1)
    if not form.alpha and not opaque:
        raise InputError(f"{path} cannot hold transparency, as JPEG has none; use .png.")
    text = json.dumps(settings) if settings is not None else None
    data = encode(form.name, array, text, icc, dpi)
    atomic_write(path, data, lambda written: _check_written(written, array.shape[1::-1], opaque))


def _is_matrix_rgb(icc: bytes | None) -> bool:
    try:
        profile = profiles.parse(icc) if icc else None
    except ValueError:
        return False
    return profile is not None and not profile.grey


def atomic_write(path: Path, data: bytes, check: Callable[[Path], None] | None = None) -> None:
    """Writes to a temporary name beside `path`, checks that file, then renames it: never a partial file."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if check:
            check(temporary)
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path} could not be written ({reason}); free space or choose another folder.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _check_written(path: Path, size: tuple[int, ...], opaque: bool) -> None:
    """Decodes the file again: all of it must be there, at (width, height) `size`, with alpha unless it is opaque."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            image.load()
            has_alpha = image.mode in ("RGBA", "LA")
            if image.size != size or not (has_alpha or opaque):
                raise RuntimeError(f"{path.name} reads back as {image.mode} {image.size}, not with alpha and {size}")


def swap(new: Path, folder: Path) -> None:
    """Renames `new`, a file or a folder, to `folder`; an old one there is moved aside, and put back if that fails."""
    old = folder.with_name(f".{secrets.token_hex(8)}.old")
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(new, folder)
    except OSError:
        if old.exists():
            os.rename(old, folder)
        raise
    if old.is_dir():
        shutil.rmtree(old)
    elif old.exists():
        old.unlink()
