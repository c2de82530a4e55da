"""What others have printed: figures to compare with, read from published.toml, where they stand as printed."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Self

from omnialpha.evaluation.reports.report import Column
from omnialpha.evaluation.scoring import CLIP_FID, CLIP_SCORE, CONN, GRAD, LPIPS_COLUMN, MAD, MSE, PSNR, SAD, SSIM

FID = Column("fid", "FID", 2, "lower")
COLUMNS: dict[str, tuple[Column, ...]] = {
    "generation": (FID, CLIP_SCORE),
    "fid": (FID,),
    "psnr": (PSNR,),
    "wins": (Column("wins", "wins, %", 0), Column("ties", "ties, %", 0), Column("losses", "losses, %", 0)),
    "referring": (SAD, MSE, GRAD, CONN),
    "matting": (SAD, MSE, MAD, GRAD, CONN),
    "removal": (PSNR, LPIPS_COLUMN, FID, CLIP_FID),
    "changes": tuple(
        Column(name.lower().replace(" ", "_"), f"{name}, %", 2, "lower") for name in ("RGB L1", "SAD", "GRAD")
    ),
    "reconstruction": (PSNR, SSIM, Column("fid", "rFID", 2, "lower"), LPIPS_COLUMN),
    "layers": tuple(
        Column(f"{key}_{merges}", f"{title} ({merges})", 4, better)
        for key, title, better in (("rgb_l1", "RGB L1", "lower"), ("alpha_iou", "alpha IoU", "higher"))
        for merges in range(6)
    ),
}


class Printed(float):
    """A number that is shown with the digits it was printed with."""

    text: str

    def __new__(cls, text: str) -> Self:
        made = super().__new__(cls, text)
        made.text = text
        return made

    def __format__(self, spec: str) -> str:
        return self.text


@dataclass(frozen=True)
class Note:
    """methods: the rows that it is about; (): the whole table."""

    text: str
    methods: tuple[str, ...] = ()


@dataclass(frozen=True)
class Published:
    """Figures on one set. place: in the source. benchmark, tasks: of `omnialpha eval`, what compares with them."""

    title: str
    benchmark: str
    scale: str
    columns: tuple[Column, ...]
    rows: Mapping[str, Mapping[str, Printed]]  # by method
    source: str = ""
    place: str = ""
    tasks: tuple[str, ...] = ()
    n: str = "not stated"
    resolution: str = "not stated"
    region: str = "not stated"
    notes: tuple[Note, ...] = ()


def _read() -> tuple[Published, ...]:
    data = tomllib.loads(files(__package__).joinpath("published.toml").read_text(encoding="utf-8"))
    return tuple(_table(row, data["words"]) for row in data["tables"])


def _table(row: dict[str, Any], words: Mapping[str, str]) -> Published:
    columns, rows = COLUMNS[row["columns"]], {}
    for line in row["rows"].strip().splitlines():
        method, numbers = line.strip().rsplit(":", 1)
        pairs = zip(columns, numbers.split(), strict=True)
        rows[method] = {column.key: Printed(number) for column, number in pairs if number != "-"}
    named = {name: words.get(row[name], row[name]) for name in ("source", "scale")}
    notes = tuple(Note(words.get(text, text), tuple(methods)) for text, *methods in row.get("notes", ()))
    return Published(**row | named | {"columns": columns, "rows": rows, "notes": notes})


TABLES = _read()


def comparable(benchmark: str, task: str = "") -> list[Published]:
    """The tables that a run compares with."""
    return [t for t in TABLES if t.benchmark == benchmark and (not t.tasks or task in t.tasks)]
