"""Writing pictures as PNG, WebP, JPEG or TIFF: whole or not at all, and read back before they get their name."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.files import atomic_write, resolve_link
from omnialpha.io import colour, metadata
from omnialpha.io.encoding import encode
from omnialpha.io.samples import Picture, integers


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


def check_output(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]] = ()) -> Format:
    """Check that a picture can be written, before any work is done.

    Args:
        path: The output file.
        inputs: Files that it must not overwrite.

    Returns:
        The format of its suffix.

    Raises:
        InputError: The folder, the suffix or the permissions do not allow it, or it is one of the inputs.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"The output {path} is a folder; add a file name such as {path / 'out.png'}.")
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"The output {path} has no known format; end it with one of {', '.join(FORMATS)}.")
    check_writable(path, inputs)
    return FORMATS[path.suffix.lower()]


def check_writable(path: Path, inputs: Iterable[str | os.PathLike[str]] = ()) -> None:
    """InputError where a file cannot be written for want of a folder or a permission, or is one of the inputs."""
    folder = resolve_link(path).parent
    if not folder.is_dir():
        raise InputError(f"The output folder {folder} does not exist; create it first.")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise InputError(f"The output {path} may not be written; change the permissions or choose another folder.")
    for source in map(Path, inputs):
        if source.resolve() == path.resolve() or (source.exists() and path.exists() and source.samefile(path)):
            raise InputError(f"The output {path} is also an input; choose another name so that it is not overwritten.")


def write_image(
    path: str | os.PathLike[str] | BinaryIO,
    rgba: Tensor,
    *,
    settings: dict[str, Any] | None = None,
    icc: bytes | None = None,
    dpi: tuple[float, float] | None = None,
    bits: int | None = 8,
    source: Picture | None = None,
) -> tuple[str, ...]:
    """Write a picture, whole or not at all, and read it back to make sure.

    Args:
        path: A file, in the format of its suffix (WebP is lossless), or an open binary file, which gets a PNG.
        rgba: (4, H, W) in [0, 1], straight alpha, sRGB.
        settings: Stored in PNG alone, see `read_settings`.
        icc: An RGB profile to convert the colours to and to embed. Other profiles are left out, which means sRGB.
        dpi: Dots per inch, (x, y).
        bits: A channel: 8, or 16 for PNG and TIFF; None: those of `source`, or 8 where the format holds no more.
        source: The picture that this one was made from. Its profile, resolution and metadata are kept, and its samples
            where the colours equal its own.

    Returns:
        Notes on what the format has no room for, as sentences for the user.

    Raises:
        InputError: The picture does not fit the format, or cannot be written.
    """
    if isinstance(path, str | os.PathLike):
        path = Path(path)
        form = check_output(path)
        name = str(path)
    else:
        form, name = FORMATS[".png"], "the output"
    if rgba.ndim != 3 or rgba.shape[0] != 4 or rgba.numel() == 0:
        raise InputError(f"A tensor of shape {tuple(rgba.shape)} cannot be written to {name}; pass (4, height, width).")
    if not bool(rgba.isfinite().all()):
        raise InputError(f"The picture for {name} holds NaN or infinite values; it cannot be written.")
    rounded = list[str]()
    if bits is None:
        bits = source.bits if source else 8
        if source and bits not in form.bits:
            rounded.append(f"{form.name} holds 8 bits a channel: the {bits} of {source.path} are rounded")
            bits = 8
    if bits not in form.bits:
        raise InputError(f"{bits} bits a channel do not fit {name}; use .png or .tif for 16 and any format for 8.")
    if max(rgba.shape[1:]) > form.max_side:
        side = max(rgba.shape[1:])
        raise InputError(f"{name} would have a side of {side} px, but {form.name} ends at {form.max_side}; use .png.")
    if source:
        icc, dpi = icc or source.icc, dpi or source.dpi
    profile = matrix_profile(icc)
    icc = icc if profile else None
    array = in_profile(rgba, bits, profile, source if source and source.icc == icc else None)
    opaque = bool(array[..., 3].min() == 2**bits - 1)
    if not form.alpha and not opaque:
        raise InputError(f"{name} cannot hold transparency, as JPEG has none; use .png.")
    text = json.dumps(settings) if settings is not None else None
    kept, notes = metadata.fit_to_format(source.metadata if source else metadata.Metadata(), form.name)
    data = encode(form.name, array, text, icc, dpi, kept)
    if isinstance(path, Path):
        atomic_write(path, data, lambda written: _check_written(written, array.shape[1::-1], opaque))
    else:
        try:
            path.write(data)
            path.flush()
        except OSError as error:  # a reader that went away
            raise InputError(f"The output could not be written ({error.strerror or error}); run it again.") from error
    return (*rounded, *notes)


def matrix_profile(icc: bytes | None) -> colour.Profile | None:
    """The RGB profile of a matrix and curves that the bytes hold, if they hold one."""
    try:
        profile = colour.parse(icc) if icc else None
    except ValueError:
        return None
    return None if profile is None or profile.grey else profile


def in_profile(rgba: Tensor, bits: int, profile: colour.Profile | None, source: Picture | None = None) -> np.ndarray:
    """(4, H, W) sRGB -> (H, W, 4) uint8 or uint16 in the profile's colours, copied ones as a source of it has them."""
    if not profile or profile.is_srgb():
        return integers(rgba, bits)
    rgb, alpha = rgba[:3].detach().cpu().float(), rgba[3:].detach().cpu().float()
    converted = torch.from_numpy(profile.from_srgb(rgb.permute(1, 2, 0).numpy().clip(0, 1))).permute(2, 0, 1)
    if source and source.stored is not None and source.stored.shape == rgb.shape:
        converted = torch.where((rgb == source.rgba[:3]).all(dim=0), source.stored, converted)
    return integers(torch.cat([converted, alpha]), bits)


def _check_written(path: Path, size: tuple[int, ...], opaque: bool) -> None:
    """Decodes the file again: all of it must be there, at (width, height) `size`, with alpha unless it is opaque."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            image.load()
            has_alpha = image.mode in ("RGBA", "LA")
            if image.size != size or not (has_alpha or opaque):
                raise RuntimeError(f"{path.name} reads back as {image.mode} {image.size}, not with alpha and {size}")
