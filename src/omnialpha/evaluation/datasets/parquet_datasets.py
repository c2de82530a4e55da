"""Data sets as parquet tables with pictures in them, as they lie on a hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omnialpha.errors import InputError


def find_tables(folder: Path) -> list[Path]:
    """Of the test split, if their names tell splits apart."""
    tables = sorted(path for pattern in ("*.parquet", "data/*.parquet") for path in folder.glob(pattern))
    return [table for table in tables if table.name.startswith("test")] or tables


def table_rows(
    tables: Sequence[Path], title: str, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A row after the other with its table, of these columns. InputError for one that lacks a column."""
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError:
        raise InputError(f"{tables[0]} needs the package pyarrow: pip install omnialpha[hf].") from None
    for table in tables:
        try:
            file = parquet.ParquetFile(table)
        except ArrowInvalid as error:
            raise InputError(f"{table} is damaged ({error}): copy it again.") from error
        held = file.schema_arrow.names
        if lacking := [name for name in columns if name not in held]:
            raise InputError(f"{table} has no column {lacking[0]!r}: give {title}.")
        for batch in file.iter_batches(batch_size=1, columns=[n for n in (*columns, *optional) if n in held]):
            yield table, batch.to_pylist()[0]
