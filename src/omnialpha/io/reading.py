"""Picture files to `Picture`: PNG, WebP, JPEG, TIFF and what else Pillow knows."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from PIL import Image, UnidentifiedImageError

from omnialpha.errors import InputError
from omnialpha.io.decoding import decode, decode_tiff
from omnialpha.io.metadata import SETTINGS
from omnialpha.io.samples import Picture, decoder_errors, readable_errors
from omnialpha.io.sources import ImageSource, SourceFile, display_name, open_source
from omnialpha.limits import MAX_PIXELS

HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # brands of ISO/IEC 23008-12


def read_image(given: ImageSource, *, frame: int | None = None, data: bool = False) -> Picture:
    """Read a picture file.

    Args:
        given: A path, a pipe, an open binary file, or bytes.
        frame: Of an animation or the pages of a TIFF, from 0. None is the first, with a note where there are more.
        data: Apply no colour profile: the values as stored, as maps need them.

    Raises:
        InputError: The file is missing, damaged, too large, of no known format, or has no such frame.
    """
    with readable_errors(display_name(given)):
        source = open_source(given)
        try:
            with _opened(source) as image:
                return decode(image, source, frame=frame, data=data)
        except UnidentifiedImageError:
            return decode_tiff(source, frame=frame, data=data)


def read_settings(given: ImageSource) -> dict[str, Any] | None:
    """Read the settings that `write_image` stored in a PNG; None where there are none."""
    name = display_name(given)
    with readable_errors(name), _opened(open_source(given)) as image:
        with decoder_errors():
            image.load()
        text = getattr(image, "text", {}).get(SETTINGS, "null")
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"The settings stored in {name} are not JSON ({error}); write the picture again.") from error
    return settings if isinstance(settings, dict) else None


@contextmanager
def _opened(source: SourceFile) -> Iterator[Image.Image]:
    """An opened picture of at most MAX_PIXELS."""
    with source.open() as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below instead
        head = file.read(64)
        if not head:
            raise InputError(f"{source.name} is empty (0 bytes); save or copy it again.")
        if head[4:8] == b"ftyp" and head[8:12] in HEIF and b"avif" not in head:
            _register_heif(source.name)
        file.seek(0)
        with decoder_errors():
            image = Image.open(file)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield image


def _register_heif(name: str) -> None:
    """Pillow opens HEIC by a plugin of another package."""
    if find_spec("pillow_heif") is None:
        raise InputError(f"{name} is HEIC, which needs pillow-heif: `pip install omnialpha[heif]`, or save it as PNG.")
    from pillow_heif import register_heif_opener

    register_heif_opener()
