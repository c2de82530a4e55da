"""Tables for the benchmarks: printed as text, written as JSON and Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omnialpha.files import atomic_write

Cell = str | float | int | bool | None


@dataclass
class Table:
    """columns: heading -> format of its numbers. about: n, size, region, seed, device and data, above the table."""

    title: str
    about: str
    columns: dict[str, str]
    rows: list[list[Cell]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def cells(self) -> list[list[str]]:
        return [
            [_word(value, form) for value, form in zip(row, self.columns.values(), strict=True)] for row in self.rows
        ]

    def text(self) -> str:
        rows = [list(self.columns), *self.cells()]
        widths = [max(len(row[c]) for row in rows) for c in range(len(self.columns))]
        left = [not form for form in self.columns.values()]
        lines = [
            "  ".join(
                v.ljust(w) if to_left else v.rjust(w) for v, w, to_left in zip(row, widths, left, strict=True)
            ).rstrip()
            for row in rows
        ]
        rule = "-" * max(map(len, lines))
        return "\n".join(
            [self.title, self.about, rule, lines[0], rule, *lines[1:], *(f"  * {note}" for note in self.notes)]
        )

    def markdown(self) -> str:
        rule = ["---" if not form else "---:" for form in self.columns.values()]
        lines = ["| " + " | ".join(row) + " |" for row in [list(self.columns), rule, *self.cells()]]
        return "\n".join(
            [
                f"### {self.title}",
                "",
                self.about,
                "",
                *lines,
                *([""] if self.notes else []),
                *(f"- {n}" for n in self.notes),
            ]
        )

    def tree(self) -> dict[str, Any]:
        rows = [{k: _plain(v) for k, v in zip(self.columns, row, strict=True)} for row in self.rows]
        return {"title": self.title, "about": self.about, "rows": rows, "notes": self.notes}


def _word(value: Cell, form: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return format(value, form) if form and not isinstance(value, str) else str(value)


def _plain(value: Cell) -> Cell:
    """JSON has no infinity and no NaN."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def save(tables: Sequence[Table], settings: dict[str, Any], as_json: Path | None, as_markdown: Path | None) -> None:
    """Write the files that were asked for, each under a temporary name first."""
    if as_json:
        tree = {"settings": settings, "tables": [t.tree() for t in tables]}
        atomic_write(as_json, json.dumps(tree, indent=2, allow_nan=False) + "\n")
    if as_markdown:
        atomic_write(as_markdown, "\n\n".join(t.markdown() for t in tables) + "\n")
