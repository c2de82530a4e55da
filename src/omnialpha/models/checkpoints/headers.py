"""What safetensors files hold, from their headers alone: names, shapes and dtypes of 40 GB in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from omnialpha.errors import InputError
from omnialpha.models.checkpoints.card import AGAIN, read_json

DIFFUSERS_STEM, TRANSFORMERS_STEM = "diffusion_pytorch_model", "model"  # of the names of weight files


class TensorInfo(NamedTuple):
    """A tensor in a file: safetensors' name of its dtype, and its shape."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


class Header(NamedTuple):
    """What a safetensors file says of itself: tensors by name, and its metadata."""

    entries: dict[str, TensorInfo]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file. Raises InputError where it is cut short, damaged or of another format."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            entries = {key: TensorInfo(row.get_dtype(), tuple(row.get_shape()), path) for key, row in slices.items()}
            return Header(entries, file.metadata() or {})
    except SafetensorError as error:
        fault = f"is cut short, damaged or no safetensors file ({error})"
        raise InputError(f"{path} ({path.stat().st_size} bytes) {fault}: {AGAIN}.") from None


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


def read_weights(folder: Path, stem: str) -> dict[str, TensorInfo]:
    """All tensors of a component, which are where its index says, if it has one."""
    found = {path.name: read_header(path).entries for path in weight_files(folder, stem)}
    index = folder / f"{stem}.safetensors.index.json"
    for key, name in read_json(index)["weight_map"].items() if index.is_file() else ():
        if key not in found[name]:
            raise InputError(f"{folder / name} lacks {key}, which {index.name} places there: {AGAIN}.")
    return {key: entry for entries in found.values() for key, entry in entries.items()}
