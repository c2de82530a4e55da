"""Picture files to `Picture`: PNG, WebP, JPEG, TIFF and what else Pillow knows."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.io.decoding import decode, decode_unknown
from omnialpha.io.metadata import SETTINGS, Metadata
from omnialpha.io.samples import Decoded, decoder_errors, readable_errors
from omnialpha.io.sources import ImageSource, SourceFile, display_name, open_source
from omnialpha.limits import MAX_PIXELS

HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # brands of ISO/IEC 23008-12


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
        origin = open_source(given)
        try:
            with _opened(origin) as image:
                done = decode(image, origin, frame=frame, data=data)
        except UnidentifiedImageError:
            done = decode_unknown(origin, frame=frame, data=data)
    stored = None if done.stored is None else torch.from_numpy(done.stored).permute(2, 0, 1).contiguous()
    remembered = (done.profile, done.dpi, done.bits, tuple(done.notes), origin.path, stored, done.metadata)
    return Picture(tensor(done), *remembered)


def read_settings(given: ImageSource) -> dict[str, Any] | None:
    """Read the settings that `write_image` stored in a PNG; None where there are none."""
    with readable_errors(display_name(given)), _opened(open_source(given)) as image:
        with decoder_errors():
            image.load()
        text = getattr(image, "text", {}).get(SETTINGS)
    if text is None:
        return None
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        name = display_name(given)
        raise InputError(f"The settings stored in {name} are not JSON ({error}); write the picture again.") from error
    return settings if isinstance(settings, dict) else None


@contextmanager
def _opened(origin: SourceFile) -> Iterator[Image.Image]:
    """An opened picture of at most MAX_PIXELS."""
    with origin.open() as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below instead
        head = file.read(64)
        if not head:
            raise InputError(f"{origin.name} is empty (0 bytes); save or copy it again.")
        if head[4:8] == b"ftyp" and head[8:12] in HEIF and b"avif" not in head:
            _register_heif(origin.name)
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


def tensor(done: Decoded) -> Tensor:
    return torch.from_numpy(done.pixels).permute(2, 0, 1).contiguous()
