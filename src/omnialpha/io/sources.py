"""Where the bytes of a picture come from: a path, a pipe, an open binary file, or bytes. A pipe is read once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from omnialpha.errors import InputError

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO


@dataclass(frozen=True)
class SourceFile:
    """A picture's file, to be opened as often as it takes. name: what messages call it."""

    name: str
    path: Path | None = None
    data: bytes | None = None

    def open(self) -> BinaryIO:
        """A new binary file at its start, which can seek."""
        if self.data is not None:
            return BytesIO(self.data)
        assert self.path is not None
        return self.path.open("rb")


def display_name(given: ImageSource) -> str:
    """What messages call a picture that is read."""
    if isinstance(given, bytes | bytearray | memoryview):
        return "The given bytes"
    if hasattr(given, "read"):
        name = getattr(given, "name", None)
        return {"<stdin>": "standard input"}.get(name, name) if isinstance(name, str) else "The given file"
    return str(Path(given))


def open_source(given: ImageSource) -> SourceFile:
    """Find the file of a picture; what can be read only once is read. InputError for a folder or a file of text."""
    name = display_name(given)
    if isinstance(given, bytes | bytearray | memoryview):
        return SourceFile(name, data=bytes(given))
    if hasattr(given, "read"):
        data = given.read()
        if not isinstance(data, bytes):
            raise InputError(f"{name} is open in text mode; open it with mode 'rb'.")
        return SourceFile(name, data=data)
    path = Path(given)
    if path.is_dir():
        raise InputError(f"{path} is a folder; name one picture in it.")
    pipe = path.exists() and not path.is_file()
    return SourceFile(name, path, path.read_bytes() if pipe else None)
