"""Files and folders that are written whole or not at all, and hashes of what they hold."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omnialpha.errors import InputError

BLOCK = 1 << 20  # bytes of a file in memory at once


def atomic_write(
    path: str | os.PathLike[str],
    content: bytes | str | Callable[[Path], Any],
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a file under a temporary name in the same folder, then rename it, so that it is never there in part.

    Args:
        path: The file. Where it is a link, the link stays and the file that it points to is replaced.
        content: Its bytes, its text (UTF-8), or, for large files, a function that writes a file of the name that it is
            given. That name is always the same, so that what a killed process left is overwritten.
        check: Called with the temporary file. An exception leaves the old file as it was.

    Raises:
        InputError: The file cannot be written.
    """
    path = resolve_link(Path(path))
    temporary = path.with_name(f".{path.name if callable(content) else secrets.token_hex(8)}.tmp")
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if check:
            check(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename and Path(error.filename) != temporary:  # of a file that `content` reads
            raise
        reason = error.strerror or error
        raise InputError(f"{path} could not be written ({reason}); free space or choose another folder.") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Write a file under its own name in a temporary folder in the same place, then move it, for writers and readers
    that go by the name; see `atomic_write`.
    """
    path = resolve_link(path).absolute()
    scratch = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir()
        yield scratch / path.name
        with (scratch / path.name).open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(scratch / path.name, path)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path} could not be written ({reason}); free space or choose another folder.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def atomic_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Fill a folder under a temporary name in the same place, then give it its own name, see `replace_path`.

    What a killed process left under the temporary name is removed first.

    Args:
        folder: What becomes of the folder. Folders above it are made.

    Yields:
        The empty temporary folder. It is removed where the block ends with an exception.
    """
    path = Path(folder).absolute()
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        replace_path(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_path(new: Path, path: Path) -> None:
    """Rename the file or folder `new` to `path`; what is there is removed after that, or kept where that fails."""
    old = path.with_name(f".{secrets.token_hex(8)}.old")
    if path.exists():
        os.rename(path, old)
    try:
        os.rename(new, path)
    except OSError:
        if old.exists():
            os.rename(old, path)
        raise
    if old.is_dir():
        shutil.rmtree(old)
    elif old.exists():
        old.unlink()


def resolve_link(path: Path) -> Path:
    """The path of the file itself where `path` is a link."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def sha256(*parts: Any) -> str:
    """The SHA-256 of all parts one after the other, 64 hexadecimal digits.

    Args:
        parts: Texts (UTF-8), bytes or what has a buffer of them, such as a contiguous array, and paths of files, of
            which the contents count.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                while block := file.read(BLOCK):
                    digest.update(block)
        else:
            digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()
