"""TIFF that Pillow cannot read in full: 16 bits, floats, associated alpha; used by `decoding`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from omnialpha.errors import InputError
from omnialpha.io.samples import Damaged, check_frame, check_unit_range, decoder_errors, orient, rgba_of
from omnialpha.io.sources import SourceFile
from omnialpha.limits import MAX_PIXELS

ORIENTATION, PROFILE = 274, 34675  # tags
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
GREY_OR_RGB = (0, 1, 2)  # photometric: white is zero, black is zero, RGB; Pillow reads the others
ASSOCIATED, UNASSOCIATED = 1, 2  # extra samples: premultiplied alpha, straight alpha


class Page(NamedTuple):
    """A page of a TIFF: straight RGBA (H, W, 4) upright, or None where it is left to Pillow."""

    pixels: np.ndarray | None
    bits: int
    notes: list[str]
    profile: bytes | None
    grey: bool


def read(source: SourceFile, frame: int | None, alone: bool = False) -> Page:
    """A grey or RGB page of 16 bits, floats or associated alpha; no pixels where the page is left to Pillow.

    Args:
        source: The file.
        frame: The page, from 0. None is the first.
        alone: There is no Pillow to leave it to.

    Raises:
        UnidentifiedImageError: It is no TIFF.
        InputError: Its samples have no agreed white or are not in [0, 1], or there is no such page.
    """
    import tifffile

    with source.open() as file:
        if file.read(4) not in MAGIC:
            raise UnidentifiedImageError(source.name)
        file.seek(0)
        with decoder_errors():
            tiff = tifffile.TiffFile(file)
            several = check_frame(frame, len(tiff.pages), source.name) if alone else []
            page: Any = tiff.pages[frame or 0]
            profile = page.tags.valueof(PROFILE)
        kinds = tuple(page.extrasamples) if page.photometric in GREY_OR_RGB else ()
        samples = _samples(page, source, alone)
    alphas = [i for i, kind in enumerate(kinds) if kind in (ASSOCIATED, UNASSOCIATED)][:1]
    dropped = len(kinds) - len(alphas)
    notes = [f"{dropped} extra sample(s) a pixel, not marked as alpha, left out"] if dropped else []
    pixels, bits = None, 8
    if samples is not None:
        colours = 3 if page.photometric == 2 else 1
        used = samples[..., [*range(colours), *(colours + i for i in alphas)]]
        pixels = _rgba(page, used, [kinds[i] for i in alphas] == [ASSOCIATED], source.name)
        bits = 8 if page.dtype == np.uint8 else 16
    return Page(pixels, bits, notes + several, profile, page.photometric != 2)


def _samples(page: Any, source: SourceFile, alone: bool) -> np.ndarray | None:
    """(H, W, C) as stored, or None."""
    whole = page.dtype is not None and page.bitspersample == page.dtype.itemsize * 8 and page.dtype != bool
    ours = whole and page.photometric in GREY_OR_RGB
    plain = ours and page.dtype == np.uint8 and ASSOCIATED not in page.extrasamples
    if ours and page.dtype not in (np.uint8, np.uint16) and not np.issubdtype(page.dtype, np.floating):
        raise InputError(
            f"{source.name} holds {page.dtype} samples, whose white is not agreed on; save it with 8 or 16 bits "
            "a channel, or as floats in [0, 1]."
        )
    if (plain or not ours) and not alone:
        return None
    if page.imagewidth * page.imagelength > MAX_PIXELS:
        raise Image.DecompressionBombError
    size = page.parent.filehandle.size
    if any(start + count > size for start, count in zip(page.dataoffsets, page.databytecounts, strict=False)):
        raise Damaged("the file is truncated")
    samples: np.ndarray | None = None
    try:
        with decoder_errors():
            samples = page.asarray() if ours else None
    except Damaged as error:
        if not isinstance(error.__cause__, ValueError):
            raise  # otherwise a compression that needs an extra package; Pillow's libtiff knows most
    if samples is None:
        if not alone:
            return None
        raise InputError(
            f"{source.name} is a TIFF of {page.bitspersample}-bit samples, photometric {int(page.photometric)} and "
            f"compression {int(page.compression)}, which is not known here; save it as PNG."
        )
    if page.planarconfig == 2 and samples.ndim == 3:
        samples = np.moveaxis(samples, 0, -1)
    return samples.reshape(*samples.shape[:2], -1)


def _rgba(page: Any, samples: np.ndarray, premultiplied: bool, name: str) -> np.ndarray:
    """Colour and alpha (H, W, C) as stored -> straight RGBA (H, W, 4), upright."""
    floats = np.issubdtype(samples.dtype, np.floating)
    if floats:
        samples = check_unit_range(samples, name)
    if page.photometric == 0:
        top = 1 if floats else np.iinfo(samples.dtype).max
        samples = np.concatenate([top - samples[..., :1], samples[..., 1:]], axis=-1)
    pixels = rgba_of(samples)
    if premultiplied:
        alpha = pixels[..., 3:]
        pixels[..., :3] = np.divide(pixels[..., :3], alpha, out=np.zeros_like(pixels[..., :3]), where=alpha > 0)
    return orient(pixels.clip(0, 1), page.tags.valueof(ORIENTATION, 1))
