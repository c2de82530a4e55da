"""What safetensors files hold, from their headers alone: names, shapes and dtypes of 40 GB in milliseconds."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path

from omnialpha.errors import InputError
from omnialpha.models.checkpoints.card import AGAIN, read_json

Shape = tuple[int, ...]
MAX_HEADER = 100_000_000  # bytes, as the format has it


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: safetensors' name of its dtype, and its shape."""

    dtype: str
    shape: Shape
    file: Path


@dataclass(frozen=True)
class Header:
    entries: dict[str, Entry]
    metadata: dict[str, str] = field(default_factory=dict)


def read_header(path: Path) -> Header:
    """Of a safetensors file; InputError where it is cut short or no such file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER + 1
        raw = file.read(length) if length <= MAX_HEADER else b""
    try:
        table = json.loads(raw)
        metadata = table.pop("__metadata__", {})
        entries = {key: Entry(row["dtype"], tuple(row["shape"]), path) for key, row in table.items()}
        end = 8 + length + max((row["data_offsets"][1] for row in table.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError):
        raise InputError(f"{path} ({size} bytes) is no safetensors file, or is damaged: {AGAIN}.") from None
    if size != end:
        raise InputError(f"{path} is cut short or damaged: it has {size} bytes of {end}; {AGAIN}.")
    return Header(entries, metadata)


def weight_files(folder: Path, stem: str) -> list[Path]:
    """`stem`.safetensors, or the shards that its index lists, all of which are there."""
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        if not single.is_file():
            others = sorted(path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".bin"))
            there = f"; it holds {', '.join(others[:3])}" if others else ""
            raise InputError(f"{folder} has neither {single.name} nor {index.name}{there}: {AGAIN}.")
        return [single]
    files = [folder / name for name in sorted(set(read_json(index).get("weight_map", {}).values()))]
    if missing := [path.name for path in files if not path.is_file()]:
        raise InputError(f"{folder} lacks {len(missing)} of {len(files)} shards, the first is {missing[0]}: {AGAIN}.")
    return files


def read_weights(folder: Path, stem: str) -> dict[str, Entry]:
    """All tensors of a component, which are where its index says, if it has one."""
    found = {path.name: read_header(path).entries for path in weight_files(folder, stem)}
    index = folder / f"{stem}.safetensors.index.json"
    for key, name in read_json(index)["weight_map"].items() if index.is_file() else ():
        if key not in found[name]:
            raise InputError(f"{folder / name} lacks {key}, which {index.name} places there: {AGAIN}.")
    return {key: entry for entries in found.values() for key, entry in entries.items()}
