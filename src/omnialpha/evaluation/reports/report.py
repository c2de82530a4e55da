"""What a benchmark writes: its rows as they are finished, then CSV, JSON, Markdown and one HTML page of everything.

Knows no metric and no task: a benchmark names its columns.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from omnialpha import rgba
from omnialpha.errors import InputError
from omnialpha.files import atomic_write
from omnialpha.templates import render

Row = dict[str, Any]  # figures are floats; None: there is none

HEADER = ("n", "resolution", "region", "seed", "device", "model")  # what no table may stand without
THUMBNAIL = 192  # px of the longer side
FILES = {
    "summary": "summary.csv", "rows": "rows.csv", "json": "report.json", "markdown": "report.md", "page": "index.html"
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """digits None: the column is text. better: "higher", "lower" or neither."""

    key: str
    title: str
    digits: int | None = None
    better: str = ""

    @property
    def heading(self) -> str:
        return self.title + {"higher": " ↑", "lower": " ↓"}.get(self.better, "")

    def cell(self, row: Mapping[str, Any]) -> str:
        value = row.get(self.key)
        if value is None:
            return "-"
        return f"{value:.{self.digits}f}" if self.digits is not None else str(value)


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]

    def markdown(self) -> str:
        """Without its title."""
        rules = ["---" if c.digits is None else "---:" for c in self.columns]
        cells = [[_plain(c.cell(row)) for c in self.columns] for row in self.rows]
        body = [[c.heading for c in self.columns], rules, *cells]
        return "\n".join("| " + " | ".join(row) + " |" for row in body)


@dataclass(frozen=True)
class Case:
    """pictures: RGBA (4, H, W) in [0, 1] by what they are."""

    title: str
    note: str
    pictures: Mapping[str, Tensor]

    def thumbnails(self) -> Iterator[tuple[str, str, tuple[int, int], bool]]:
        """Of each picture and of its alpha: label, data URI, (width, height), and whether it is the one with alpha."""
        for label, pixels in self.pictures.items():
            samples = to_bytes(shrink(pixels, THUMBNAIL))
            size = samples.shape[1], samples.shape[0]
            yield label, data_uri(samples), size, True
            yield f"{label}, alpha", data_uri(np.ascontiguousarray(samples[..., 3])), size, False


@dataclass(frozen=True)
class Report:
    """header: at least HEADER. tables: for people. summary, rows: every figure, for programs. skipped: column -> why it
    is empty.
    """

    title: str
    header: Mapping[str, str]
    tables: Sequence[Table]
    summary: Sequence[Row]
    rows: Sequence[Row]
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    cases: Sequence[Case] = ()
    cases_title: str = "Worst cases"

    def __post_init__(self) -> None:
        missing = [name for name in HEADER if not self.header.get(name)]
        assert not missing, f"a report must state {', '.join(missing)}"

    def data(self) -> dict[str, Any]:
        """For JSON: header, summary, skipped and notes."""
        return {
            "title": self.title,
            "header": dict(self.header),
            "summary": [finite(row) for row in self.summary],
            "skipped": dict(self.skipped),
            "notes": list(self.notes),
        }

    def texts(self) -> dict[str, str]:
        """What each of FILES holds; the HTML page has no scripts and no outside resources."""
        data, rows = self.data(), [finite(row) for row in self.rows]
        notes = [f"{name}: skipped, {why}" for name, why in self.skipped.items()] + list(self.notes)
        lines = [f"# {_plain(self.title)}", "", *(f"- {k}: {_plain(v)}" for k, v in self.header.items())]
        for table in self.tables:
            lines += ["", f"## {table.title}", "", table.markdown()]
        lines += ["", *(f"- {_plain(note)}" for note in notes)] if notes else []
        return {
            "summary": _csv(data["summary"], self.skipped),
            "rows": _csv(rows, self.skipped),
            "json": json.dumps(data | {"rows": rows}, indent=1, allow_nan=False) + "\n",
            "markdown": "\n".join(lines) + "\n",
            "page": render("report.html", report=self, notes=notes),
        }

    def write(self, folder: Path) -> dict[str, Path]:
        """All FILES, each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.texts().items():
            atomic_write(folder / FILES[name], text.encode())
        return {name: folder / file for name, file in FILES.items()}


def _plain(text: str) -> str:
    """Nothing that Markdown would take for a table, a line or HTML."""
    return " ".join(escape(text, quote=False).replace("|", "\\|").split())


def _csv(rows: Sequence[Row], skipped: Mapping[str, str]) -> str:
    """Columns in the order of their first use; the last one says what is left out, and why."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    last = {"skipped": "; ".join(f"{name}: {why}" for name, why in skipped.items())} if skipped else {}
    file = io.StringIO()
    writer = csv.DictWriter(file, [*names, *last], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, **last} for row in rows)
    return file.getvalue()


# ---- rows -----------------------------------------------------------------------------------------------------------


def append_row(path: Path, *rows: Row) -> None:
    """A JSON line more for each, on the disk before this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(finite(row)) + "\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> dict[str, Row]:
    """Rows by their `key`; a last line that was cut off while it was written is taken off the file."""
    if not path.is_file():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    made: dict[str, Row] = {}
    for number, line in enumerate(whole.decode("utf-8", errors="replace").splitlines(), start=1):
        try:
            row = json.loads(line)
            made[row["key"]] = row
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}, line {number}, is no row of a benchmark: delete the line or the file.") from None
    return made


def finite(row: Mapping[str, Any]) -> Row:
    """JSON has no NaN and no infinity."""
    return {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in row.items()}


def mean(rows: Iterable[Row], key: str) -> float | None:
    """Of those rows that have a figure; None if none has."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return sum(values) / len(values) if values else None


# ---- pictures -------------------------------------------------------------------------------------------------------


def numbered(names: Sequence[str]) -> list[str]:
    """The names, with a number where one repeats."""
    return [f"{n} {names[: k + 1].count(n)}" if names.count(n) > 1 else str(n) for k, n in enumerate(names)]


def shrink(pixels: Tensor, side: int) -> Tensor:
    """RGBA (4, H, W), made smaller where its longer side is above `side` px."""
    scale = min(1.0, side / max(pixels.shape[-2:]))
    height, width = (max(1, round(length * scale)) for length in pixels.shape[-2:])
    return rgba.resize(pixels.float().cpu(), (height, width))


def to_bytes(picture: Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1] -> uint8 (H, W, C)."""
    return (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def png(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(samples).save(file, "PNG")
    return file.getvalue()


def data_uri(samples: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(png(samples)).decode()
