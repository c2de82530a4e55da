"""Layered pictures in parquet tables, as PrismLayers has them on the hub: a row a picture, a column a layer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from omnialpha import rgba
from omnialpha.curation.candidate import Rejected, SourceItem
from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.folder_datasets import existing, unlike
from omnialpha.evaluation.datasets.parquet_datasets import table_rows
from omnialpha.evaluation.datasets.samples import MadePicture, png_of
from omnialpha.io import read_image
from omnialpha.io.layers import Layer

WORDS = re.compile(r"id|layer_count|layer_\d+_(box|caption)")  # the columns that are read to list the rows
ROWS = 1000  # at once


def table_layers(path: str, title: str) -> Iterator[SourceItem]:
    """A row with whole_image, base_image, layer_count and, for each layer, layer_00, layer_00_box (left, top, right,
    bottom) and layer_00_caption, in all tables below a folder. Ids are the table's path and the number of the row.
    """
    folder = existing(path, title)
    tables = [p for p in sorted(folder.rglob("*.parquet")) if not any(part.startswith(".") for part in p.parts)]
    if not tables:
        raise unlike(folder, title, "*.parquet")
    for table in tables:
        next(table_rows([table], title, ("layer_count", "layer_00_box")), None)  # says what is wrong with a table
        from pyarrow import parquet

        file, number = parquet.ParquetFile(table), 0
        columns = [name for name in file.schema_arrow.names if WORDS.fullmatch(name)]
        for batch in file.iter_batches(batch_size=ROWS, columns=columns):
            for row in batch.to_pylist():
                yield _of_row(table, number, row, f"{table.relative_to(folder).with_suffix('').as_posix()}/{number:05}")
                number += 1


def _of_row(table: Path, number: int, row: dict[str, Any], name: str) -> SourceItem:
    count, title = int(row["layer_count"] or 0), f"{table}:{number}"
    boxes: list[list[int]] = [row.get(f"layer_{k:02}_box") or [] for k in range(count)]
    if not boxes or any(len(box) != 4 or box[0] >= box[2] or box[1] >= box[3] for box in boxes):
        reason = (
            f"{title} has {count} layers, in the boxes {boxes}: there must be one, and all (left, top, right, bottom)."
        )
        return SourceItem(name, "", "", (MadePicture(title, partial(_refuse_row, reason)),))
    layers = [
        MadePicture(f"{title}.layer_{k:02}", partial(_placed, table, number, k, box), (table,), f"{number}.{k}")
        for k, box in enumerate(boxes)
    ]
    base, whole = (
        MadePicture(f"{title}.{column}", partial(cell, table, number, column), (table,), f"{number}.{column}")
        for column in ("base_image", "whole_image")
    )
    said = tuple(str(row.get(f"layer_{k:02}_caption") or "") for k in range(count))
    return SourceItem(name, "", "", tuple(layers), background=base, composite=whole, captions=said if all(said) else ())


def _refuse_row(reason: str) -> bytes:
    raise Rejected(reason)


def cell(table: Path, number: int, column: str) -> bytes:
    """The bytes of a picture in a row of a table. InputError where there is none."""
    from pyarrow import parquet

    file, group = parquet.ParquetFile(table), 0
    while number >= (rows := file.metadata.row_group(group).num_rows):
        number, group = number - rows, group + 1
    value = file.read_row_group(group, columns=[column]) if column in file.schema_arrow.names else None
    held = value.column(0)[number].as_py() if value is not None else None
    if not isinstance(held, dict) or not held.get("bytes"):
        raise InputError(f"{table} has no picture {column!r} in row {number} of group {group}: copy it again.")
    return held["bytes"]


def _placed(table: Path, number: int, layer: int, box: Sequence[int]) -> bytes:
    """A layer on the whole canvas, in the size and at the place of its box, as PNG."""
    left, top, right, bottom = box
    with Image.open(BytesIO(cell(table, number, "base_image"))) as base:
        size = (base.height, base.width)
    picture = read_image(cell(table, number, f"layer_{layer:02}")).rgba
    return png_of(Layer("", rgba.resize(picture, (bottom - top, right - left)), (top, left)).placed(size))
