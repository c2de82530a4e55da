"""Layered records as parquet files with their pictures in them, which Hugging Face `datasets` reads as they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omnialpha.data.records.pictures import Handle
from omnialpha.data.records.records import CAPTIONED, LayeredRecord
from omnialpha.errors import InputError
from omnialpha.files import atomic_write
from omnialpha.tasks import Role


def arrow() -> tuple[Any, Any]:
    """pyarrow and its parquet. InputError where it is missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            "out.parquet=true needs pyarrow: pip install 'omnialpha[curate]', or set out.parquet=false."
        ) from None
    return pyarrow, pyarrow.parquet


def write(records: Sequence[LayeredRecord], folder: Path, split: str, size: int, rows: int) -> list[Path]:
    """Write SPLIT-00000-of-N.parquet, each of about `size` bytes of pictures at most, or of one record that is larger.

    A column is a key of a layered record; pictures are {bytes, path}. rows: of a row group.

    Raises:
        InputError: pyarrow is missing.
    """
    pa, pq = arrow()
    schema = _schema(records)
    groups = _groups(records, size)
    paths = [folder / f"{split}-{k:05d}-of-{len(groups):05d}.parquet" for k in range(len(groups))]
    for path, group in zip(paths, groups, strict=True):

        def fill(temporary: Path, group: Sequence[LayeredRecord] = group) -> None:
            with pq.ParquetWriter(temporary, schema, compression="none", write_page_index=True) as file:
                for first in range(0, len(group), rows):
                    values = [_row(record) for record in group[first : first + rows]]
                    file.write_table(pa.Table.from_pylist(values, schema))

        atomic_write(path, fill)
    return paths


def _groups(records: Sequence[LayeredRecord], size: int) -> list[list[LayeredRecord]]:
    groups: list[list[LayeredRecord]] = []
    room = 0
    for record in records:
        need = sum(_path(part.handle).stat().st_size for part in record.parts())
        if not groups or need > room:
            groups.append([])
            room = size
        groups[-1].append(record)
        room -= need
    return groups


def _roles(records: Sequence[LayeredRecord]) -> list[Role]:
    """Those that any of the records has, in the order of the table."""
    return [role for role in Role if any(role in record.pictures for record in records)]


def _schema(records: Sequence[LayeredRecord]) -> Any:
    """Of Arrow, with what `datasets` knows its features by."""
    pa, _ = arrow()
    image, text = pa.struct([("bytes", pa.binary()), ("path", pa.string())]), pa.string()
    roles = _roles(records)
    types = {"id": text} | {str(r): pa.list_(image) if r is Role.FOREGROUND else image for r in roles}
    words = {str(r): pa.list_(text) if r is Role.FOREGROUND else text for r in CAPTIONED}
    types["captions"] = pa.struct(list(words.items()))
    seen, read = {"_type": "Image"}, {"dtype": "string", "_type": "Value"}
    features: dict[str, Any] = {"id": read} | {str(r): _several(seen) if r is Role.FOREGROUND else seen for r in roles}
    features["captions"] = {str(r): _several(read) if r is Role.FOREGROUND else read for r in CAPTIONED}
    return pa.schema(list(types.items()), {"huggingface": json.dumps({"info": {"features": features}})})


def _several(feature: dict[str, str]) -> dict[str, Any]:
    return {"feature": feature, "_type": "Sequence"}  # a list, in the words of every version of `datasets`


def _row(record: LayeredRecord) -> dict[str, Any]:
    cells = {
        str(role): [*map(_cell, parts)] if role is Role.FOREGROUND else _cell(parts[0])
        for role, parts in record.pictures.items()
    }
    return {"captions": None} | record.text() | cells


def _cell(handle: Handle) -> dict[str, Any]:
    path = _path(handle)
    return {"bytes": path.read_bytes(), "path": f"{path.parent.name}/{path.name}"}


def _path(handle: Handle) -> Path:
    assert isinstance(handle, Path), "records of curation lie in files"
    return handle
