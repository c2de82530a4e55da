"""One file from a hub to this disk: goes on where it was cut off, and is used only once its checksum is right."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnialpha.errors import InputError

READ = 1 << 20  # bytes hashed at a time


@dataclass(frozen=True)
class Item:
    """A file of a repository, size in bytes. checksum: "sha256:..." of a large file, "git:..." (its blob id) of a small
    one.
    """

    path: str
    size: int
    checksum: str

    @classmethod
    def of(cls, listed: Any) -> Item:
        """From what a hub lists; InputError for a name that would leave the folder it is stored in."""
        name = listed.rfilename
        if Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name:
            raise InputError(f"the repository names a file {name!r} outside its folder: do not use it.")
        if listed.lfs:
            return cls(name, listed.lfs.size, f"sha256:{listed.lfs.sha256}")
        return cls(name, listed.size, f"git:{listed.blob_id}")

    def part(self, folder: Path) -> Path:
        """Where the file grows; named by its checksum, so that it never goes on from the part of an older version."""
        target = folder / self.path
        return target.with_name(f"{target.name}.{self.checksum[-12:]}.part")

    def missing(self, folder: Path) -> int:
        """Bytes that are still to come. A part that is longer than the file is none of it."""
        here = size_of(self.part(folder))
        return self.size - (here if here <= self.size else 0)

    def matches(self, file: Path) -> bool:
        return file.is_file() and size_of(file) == self.size and checksum(file, self.checksum) == self.checksum


def fetch(url: str, folder: Path, item: Item, watch: Callable[[str, int], None]) -> None:
    """Download an item into its folder. watch(path, bytes) hears of every piece, negative where it is thrown away."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers, disable_progress_bars, enable_progress_bars

    part, target, bar = item.part(folder), folder / item.path, "huggingface_hub.http_get"
    part.parent.mkdir(parents=True, exist_ok=True)
    if size_of(part) > item.size:
        part.unlink()
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}  # compressed bytes could not be counted
    disable_progress_bars(bar)  # its own: `watch` serves any interface
    try:
        with _Counted(io.FileIO(part, "ab")) as file:
            file.told = lambda size: watch(item.path, size)
            http_get(url, file, resume_size=size_of(part), headers=headers, expected_size=item.size)
    finally:
        enable_progress_bars(bar)
    if (found := checksum(part, item.checksum)) != item.checksum:
        watch(item.path, -size_of(part))
        part.unlink()
        raise InputError(f"{url} arrived damaged ({found}, should be {item.checksum}): run it again.")
    os.replace(part, target)


def download(url: str, limit: int) -> bytes:
    """A small file that is not of a hub, whole: no token is sent. InputError where it cannot be had."""
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers, disable_progress_bars, enable_progress_bars

    file, bar = _Limited(), "huggingface_hub.http_get"
    file.limit = limit
    disable_progress_bars(bar)
    try:
        http_get(url, file, headers=build_hf_headers(token=False) | {"Accept-Encoding": "identity"})
    except (HTTPError, OSError, ValueError) as error:
        code = getattr(getattr(error, "response", None), "status_code", None)
        reason = f"status {code}" if code else " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{url} cannot be downloaded ({reason}).") from None
    finally:
        enable_progress_bars(bar)
    return file.getvalue()


class _Limited(io.BytesIO):
    limit = 0

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self.limit:
            raise ValueError(f"it has more than {self.limit} bytes")
        return super().write(data)


class _Counted(io.BufferedWriter):
    """A file that tells how many bytes are written to it and, when it is begun anew, taken back."""

    told: Callable[[int], None]

    def write(self, data: Any) -> int:
        self.told(len(data))
        return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        self.told(-os.fstat(self.fileno()).st_size)
        return super().truncate(size)


def size_of(path: Path) -> int:
    """In bytes; 0 where there is no file."""
    return path.stat().st_size if path.is_file() else 0


def checksum(path: Path, like: str) -> str:
    """Of a file's bytes, of the kind that `like` is: "sha256:..." or "git:..." (SHA-1 after git's header)."""
    kind = like.partition(":")[0]
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(f"blob {size_of(path)}\0".encode())
    with path.open("rb") as file:
        while piece := file.read(READ):
            digest.update(piece)
    return f"{kind}:{digest.hexdigest()}"
