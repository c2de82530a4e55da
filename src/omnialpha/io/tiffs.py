"""TIFF that Pillow cannot read in full: 16 bits, floats, associated alpha; used by `decoding`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from omnialpha.errors import InputError
from omnialpha.io.samples import Damaged, check_unit_range, decoder_errors, orient, rgba_of
from omnialpha.io.sources import SourceFile
from omnialpha.limits import MAX_PIXELS

ORIENTATION, PROFILE = 274, 34675  # tags
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
GREY_OR_RGB = (0, 1, 2)  # photometric: white is zero, black is zero, RGB; Pillow reads the others
UNSPECIFIED, ASSOCIATED, UNASSOCIATED = 0, 1, 2  # extra samples

Read = tuple[np.ndarray | None, int, list[str]]  # RGBA (H, W, 4) upright or None, bits, notes


@contextmanager
def _opened(source: SourceFile) -> Iterator[Any]:
    import tifffile

    with source.open() as file:
        if file.read(4) not in MAGIC:
            raise UnidentifiedImageError(source.name)
        file.seek(0)
        with decoder_errors():
            tiff = tifffile.TiffFile(file)
        yield tiff


def count(source: SourceFile) -> int:
    """How many pages; UnidentifiedImageError where it is no TIFF."""
    with _opened(source) as tiff, decoder_errors():
        return len(tiff.pages)


def profile(source: SourceFile, frame: int) -> tuple[bytes | None, bool]:
    """The embedded colour profile of a page, and whether the page is grey."""
    with _opened(source) as tiff, decoder_errors():
        page = tiff.pages[frame]
        return page.tags.valueof(PROFILE), page.photometric != 2


def read(source: SourceFile, frame: int, alone: bool = False) -> Read:
    """A grey or RGB page of 16 bits, floats or associated alpha; no pixels where the page is left to Pillow.

    alone: there is no Pillow to leave it to. InputError for samples that have no agreed white, or are not in [0, 1]."""
    with _opened(source) as tiff:
        with decoder_errors():
            page = tiff.pages[frame]
        kinds = tuple(page.extrasamples) if page.photometric in GREY_OR_RGB else ()
        samples = _samples(page, source, alone)
    dropped = len(kinds) - len(_alphas(kinds))
    notes = [f"{dropped} extra sample(s) a pixel, not marked as alpha, left out"] if dropped else []
    if samples is None:
        return None, 8, notes
    return _rgba(page, samples, kinds, source.name), 8 if page.dtype == np.uint8 else 16, notes


def _alphas(kinds: tuple[int, ...]) -> list[int]:
    """The place of the alpha among the extra samples, if there is one."""
    return [i for i, kind in enumerate(kinds) if kind in (ASSOCIATED, UNASSOCIATED)][:1]


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
    if any(map(lambda a, n: a + n > size, page.dataoffsets, page.databytecounts)):
        raise Damaged("the file is truncated")
    try:
        with decoder_errors():
            samples: np.ndarray | None = page.asarray() if ours else None
    except Damaged as error:
        if not isinstance(error.__cause__, ValueError):
            raise
        samples = None  # a compression that needs an extra package; Pillow's libtiff knows most
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


def _rgba(page: Any, samples: np.ndarray, kinds: tuple[int, ...], name: str) -> np.ndarray:
    """(H, W, C) as stored -> straight RGBA (H, W, 4), upright."""
    colours = 3 if page.photometric == 2 else 1
    samples = samples[..., [*range(colours), *(colours + i for i in _alphas(kinds))]]
    if np.issubdtype(samples.dtype, np.floating):
        samples = check_unit_range(samples, name)
    if page.photometric == 0:
        top = 1 if np.issubdtype(samples.dtype, np.floating) else np.iinfo(samples.dtype).max
        samples = np.concatenate([top - samples[..., :1], samples[..., 1:]], axis=-1)
    pixels = rgba_of(samples)
    if ASSOCIATED in kinds and kinds[_alphas(kinds)[0]] == ASSOCIATED:
        alpha = pixels[..., 3:]
        pixels[..., :3] = np.divide(pixels[..., :3], alpha, out=np.zeros_like(pixels[..., :3]), where=alpha > 0)
    return orient(pixels.clip(0, 1), page.tags.valueof(ORIENTATION, 1))
