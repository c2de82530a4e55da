"""What every task takes as a picture: a picture file, or a file of layers put together."""

from __future__ import annotations

import os
from pathlib import Path

from omnialpha.io import reading
from omnialpha.io.samples import Picture
from omnialpha.io.sources import ImageSource
from omnialpha.io.stack_reading import read_stack

LAYERS = (".psd", ".psb", ".ora", ".exr")


def read_image(given: ImageSource, *, frame: int | None = None, data: bool = False) -> Picture:
    """Read a picture file.

    Args:
        given: A path, a pipe, an open binary file, or bytes. Of the path of a PSD, OpenRaster or OpenEXR file the
            visible layers are put together.
        frame: Of an animation or the pages of a TIFF, from 0. None is the first, with a note where there are more.
        data: Apply no colour profile: the values as stored, as maps need them.

    Raises:
        InputError: The file is missing, damaged, too large, of no known format, or has no such frame.
    """
    if isinstance(given, str | os.PathLike) and Path(given).suffix.lower() in LAYERS and Path(given).is_file():
        return _flattened(Path(given))
    return reading.read_image(given, frame=frame, data=data)


def _flattened(path: Path) -> Picture:
    """The visible layers of a file as one picture."""
    stack = read_stack(path)
    notes = (f"{len(stack)} layers as one picture",) if len(stack) > 1 else ()
    return Picture(stack.recompose(), bits=8 if path.suffix.lower() == ".ora" else _depth(path), notes=notes, path=path)


def _depth(path: Path) -> int:
    """Bits a channel of a PSD by its header; an OpenEXR file has more than 8."""
    with path.open("rb") as file:
        head = file.read(24)
    return 8 if head[:4] == b"8BPS" and head[22:24] == b"\0\x08" else 16
