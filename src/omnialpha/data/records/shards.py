"""WebDataset shards: tar files of records, read with random access and written the same, byte for byte, every time.

The parts of a record share a key: KEY.json (id, captions or prompt), KEY.fg0.png, KEY.fg1.png ... from back to front,
KEY.bg.png, KEY.composite.png, KEY.alpha.png and so on; of a pair KEY.in0.png ... and KEY.out0.png ...
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnialpha.data.records.pictures import Handle
from omnialpha.data.records.records import HELD, INPUTS, OUTPUTS, SHORT, Record
from omnialpha.errors import InputError
from omnialpha.files import atomic_write

VERSION = 1  # of the index; another one is made anew
BLOCK = tarfile.BLOCKSIZE
ROLES = {SHORT.get(role, str(role)): str(role) for role in HELD}
LISTS = {"fg": "foreground", "in": INPUTS, "out": OUTPUTS}
PART = re.compile(r"(fg|in|out)(\d+)|(\w+)")


@dataclass(frozen=True)
class Member:
    """A file in a shard: where its bytes lie."""

    shard: Path
    name: str
    offset: int
    size: int

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    def read(self) -> bytes:
        try:
            with self.shard.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise InputError(f"{self.shard} cannot be read ({error.strerror}); check the path.") from error
        if len(data) < self.size:
            raise InputError(f"{self} is cut off: copy or pack the shard again.")
        return data

    def __str__(self) -> str:
        return f"{self.shard}:{self.name}"


# ---- reading --------------------------------------------------------------------------------------------------------


def index_path(shard: Path) -> Path:
    return shard.with_name(f"{shard.name}.index.json")


def read_index(shard: Path) -> dict[str, Any]:
    """{"records": [{"key", "text", "members": {name: [offset, size]}}], ...}; kept next to the shard, or else in the
    user's cache folder. InputError for what is no shard.
    """
    places = [index_path(shard), _cached(shard)]
    for place in places:
        index = _stored_index(place, shard)
        if index and place.stat().st_mtime_ns >= shard.stat().st_mtime_ns:
            return index
    index = {"version": VERSION, "size": _size(shard), "records": _walk(shard)}
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(place, json.dumps(index).encode())
        except (OSError, InputError):  # a folder that may not be written to: the next one
            continue
        break
    return index


def _stored_index(place: Path, shard: Path) -> dict[str, Any]:
    """What a file holds, if that is an index of a shard of this size; else nothing."""
    try:
        index = json.loads(place.read_text())
    except (OSError, ValueError):
        return {}
    known = isinstance(index, dict) and (index.get("version"), index.get("size")) == (VERSION, _size(shard))
    return index if known else {}


def _cached(shard: Path) -> Path:
    from omnialpha.models.checkpoints.hub import home

    name = hashlib.blake2b(str(shard.resolve()).encode(), digest_size=16).hexdigest()
    return home() / "shards" / f"{name}.json"


def _size(shard: Path) -> int:
    return shard.stat().st_size


def _walk(shard: Path) -> list[dict[str, Any]]:
    """The records of a tar file by its headers, in their order."""
    found: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for info in tar:
                if not info.isfile():
                    continue
                folder, _, file = info.name.rpartition("/")
                stem, _, name = file.partition(".")
                key = f"{folder}/{stem}".lstrip("/")
                entry = found.setdefault(key, {"key": key, "text": {}, "members": {}})
                if name == "json":
                    entry["text"] = json_or_text(tar.extractfile(info).read())  # type: ignore[union-attr]
                else:
                    entry["members"][name] = [info.offset_data, info.size]
        with shard.open("rb") as raw:  # tarfile takes an end within a header for that of the archive
            raw.seek(-min(BLOCK, _size(shard)), os.SEEK_END)
            if raw.read().strip(b"\0"):
                raise tarfile.ReadError("unexpected end of data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{shard} is no plain tar file or is cut off ({error}): copy or pack it again.") from error
    return list(found.values())


def json_or_text(data: bytes | str) -> Any:
    """The JSON of a row; where it is none the text itself, which becomes the row's mistake."""
    try:
        return json.loads(data)
    except ValueError:
        return data.decode(errors="replace") if isinstance(data, bytes) else data


def rows(shard: Path) -> Iterator[tuple[str, Any]]:
    """Of each record its key, and its row as a manifest has it, with a Member in place of each picture's name; the key
    is its id unless it has one.
    """
    for entry in read_index(shard)["records"]:
        if not isinstance(entry["text"], dict):
            yield entry["key"], entry["text"]
            continue
        row: dict[str, Any] = {"id": entry["key"], **entry["text"]}
        several: dict[str, dict[int, Member]] = {}
        for name, (offset, size) in entry["members"].items():
            member = Member(shard, f"{entry['key']}.{name}", offset, size)
            match = PART.fullmatch(name.rpartition(".")[0])
            if match and match[1]:
                several.setdefault(LISTS[match[1]], {})[int(match[2])] = member
            else:
                part = match[0] if match else name
                row[ROLES.get(part, part)] = member
        yield entry["key"], row | {key: [parts[k] for k in sorted(parts)] for key, parts in several.items()}


# ---- writing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """One shard to be: its file, its records and their keys, and the digest of what it is made of."""

    path: Path
    records: tuple[tuple[str, Record], ...]
    digest: str


def plan(records: Sequence[Record], folder: Path, size: int) -> list[Plan]:
    """Shards of at most `size` bytes each, or of one record that is larger, in the order of the records."""
    groups: list[list[tuple[str, Record]]] = []
    room, stamps = 0, []
    for number, record in enumerate(records):
        parts = [(part.name, str(part.handle), *_stat(part.handle)) for part in record.parts()]
        text = _json(record)
        need = sum(BLOCK - (-n // BLOCK) * BLOCK for n in (len(text), *(part[2] for part in parts)))
        if not groups or need > room:
            groups.append([])
            stamps.append(hashlib.blake2b(digest_size=16))
            room = size - tarfile.RECORDSIZE  # a tar file ends on a multiple of this
        room -= need
        key = f"{number:08d}"
        groups[-1].append((key, record))
        stamps[-1].update(json.dumps([key, text.decode(), parts]).encode())
    return [
        Plan(folder / f"shard-{k:05d}.tar", tuple(group), stamp.hexdigest())
        for k, (group, stamp) in enumerate(zip(groups, stamps, strict=True))
    ]


def pack(
    records: Sequence[Record],
    folder: Path,
    size: int = 512 * 2**20,
    force: bool = False,
    watch: Callable[[Plan, bool], None] = lambda plan, kept: None,
) -> list[Path]:
    """Write records as shards of `size` bytes, each whole or not at all; one that is there already is kept.

    watch: called after each, with whether it was. InputError for shards of another packing in the folder, which
    `force` takes away.
    """
    shards = plan(records, folder, size)
    folder.mkdir(parents=True, exist_ok=True)
    made = {shard.path: shard.digest for shard in shards}
    for path in sorted(folder.glob("shard-*.tar")):
        if made.get(path) != _stored_index(index_path(path), path).get("digest"):
            if not force:
                raise InputError(f"{path} is of another packing: choose another folder, or replace it with --force.")
            for file in (path, index_path(path)):
                file.unlink(missing_ok=True)
    for shard in shards:
        kept = shard.path.exists()
        if not kept:
            _write(shard)
        watch(shard, kept)
    return [shard.path for shard in shards]


def _write(shard: Plan) -> None:
    def write(temporary: Path) -> None:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, record in shard.records:
                _add(tar, f"{key}.json", _json(record))
                for part in record.parts():
                    data = part.handle.read_bytes() if isinstance(part.handle, Path) else part.handle.read()
                    _add(tar, f"{key}.{part.name}{part.handle.suffix.lower()}", data)
        # the index comes first: once the shard has its name, it is finished and known for what it was made of
        index = {"version": VERSION, "size": _size(temporary), "digest": shard.digest, "records": _walk(temporary)}
        atomic_write(index_path(shard.path), json.dumps(index))

    atomic_write(shard.path, write)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # no time, no owner: the same bytes from every machine
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _stat(handle: Handle) -> tuple[int, int]:
    """Bytes and time of a picture's file. InputError where it is missing."""
    if not isinstance(handle, Path):
        return handle.size if isinstance(handle, Member) else len(handle.read()), 0
    try:
        stat = handle.stat()
    except OSError as error:
        raise InputError(f"{handle} cannot be read ({error.strerror}): `omnialpha data check` lists all.") from error
    return stat.st_size, stat.st_mtime_ns


def _json(record: Record) -> bytes:
    return json.dumps(record.text(), ensure_ascii=False, sort_keys=True).encode()
