"""Our figures beside published ones: the reports of runs, set into the tables that they compare with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnialpha.errors import InputError
from omnialpha.evaluation.methods.constants import BEST_CONSTANT
from omnialpha.evaluation.reports import published
from omnialpha.evaluation.reports.benchmark_report import TOTAL, WEIGHTED
from omnialpha.evaluation.reports.published import TABLES, Note, Published
from omnialpha.evaluation.reports.report import FILES, HEADER, Column, Report, Row, Table

OURS, PUBLISHED = "ours", "published"
WORDS = tuple(Column(key, key) for key in ("method", "whose", "n", "resolution", "region"))
HERE, THERE = "beside each figure", "in the report of each run"


@dataclass(frozen=True)
class Run:
    """What a report says of a task on all its pictures. rows: of methods, with what stands beside figures."""

    folder: Path
    benchmark: str
    task: str
    scale: str
    rows: tuple[Row, ...]


def read_runs(folder: Path) -> list[Run]:
    """Of a folder that `omnialpha eval BENCHMARK`, `eval vae` or `eval judge` has written, or of its report.json."""
    path = folder / FILES["json"] if folder.is_dir() else folder
    if not path.is_file():
        raise InputError(f"{folder} holds no {FILES['json']}: give the folder of a run of `omnialpha eval`.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        header, summary = dict(data["header"]), [dict(row) for row in data["summary"]]
        of = next(of for names, of in KINDS if names <= summary[0].keys() | header.keys())
        return of(path.parent, header, summary)
    except (ValueError, TypeError, LookupError, StopIteration):
        raise InputError(
            f"{path} is no report of `omnialpha eval BENCHMARK`, `vae` or `judge`: give the folder of such a run."
        ) from None


def _benchmark(folder: Path, header: Mapping[str, str], summary: Sequence[Row]) -> list[Run]:
    """A run a task; figures of the unknown region have names of their own. Reconstructions name their pictures."""
    data = f", {header['data']}" if summary[0]["benchmark"] == "vae" else ""
    tasks: dict[str, list[Row]] = {}
    for row in (row for row in summary if row["category"] in OVERALL and row["method"] != BEST_CONSTANT):
        method = {"method": row["method"] + data + OVERALL[row["category"]]}
        tasks.setdefault(row["task"], []).append(row | _stated(header) | method | {"region": "whole picture"})
    return [Run(folder, summary[0]["benchmark"], task, header["scale"], tuple(rows)) for task, rows in tasks.items()]


def _judged(folder: Path, header: Mapping[str, str], summary: Sequence[Row]) -> list[Run]:
    row = next((row for row in summary if row["aspect"] == "overall"), summary[0])
    shares = {key: 100 * row[name] for key, name in (("wins", "a_wins"), ("ties", "ties"), ("losses", "b_wins"))}
    method = f"{header['A']} against {header['B']}, by {header['model']}"
    return [Run(folder, "judge", "", "", (_stated(header) | shares | {"method": method},))]


def _stated(header: Mapping[str, str]) -> Row:
    return {key: header[key] for key in ("n", "resolution", "region", "seed")}


OVERALL = {TOTAL: "", WEIGHTED: f", {WEIGHTED}"}  # of a summary by categories, the rows of all pictures
KINDS = (  # names in the header or the summary of a report -> who reads it
    ({"benchmark", "task", "method"}, _benchmark),
    ({"A", "B", "a_wins"}, _judged),
)


# ---- tables ---------------------------------------------------------------------------------------------------------


def together(runs: Sequence[Run] = ()) -> Report:
    """All published tables; with runs, those that they compare with, their rows last. Notes are numbered and stand
    below; a run that compares with nothing has a table of its own.
    """
    shown, numbers = _shown(runs), _Numbers()
    tables, summary = [], []
    for one, own in shown:
        rows = [*_published_rows(one, numbers), *(row for run in own for row in _own_rows(run, one, numbers))]
        about = [n for note in one.notes if not note.methods for n in [numbers.of(note.text)]]
        source = ", ".join(word for word in (one.source, one.place) if word)
        title = f"{one.title} ({source})" if source else one.title
        tables.append(Table(f"{title}{_marks(about)}; scale: {one.scale}", (*WORDS, *one.columns), rows))
        summary += [{"table": one.title, "from": source, "scale": one.scale} | row for row in rows]
    return Report(
        title="Figures beside published ones" if runs else "Published figures",
        header=dict.fromkeys(HEADER, HERE) | {"seed": THERE, "device": THERE},
        tables=tables,
        summary=summary,
        rows=summary,
        notes=[f"[{number}] {text}" for text, number in numbers.known.items()],
    )


class _Numbers:
    """Of notes, in the order of their first use."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def of(self, text: str) -> int:
        return self.known.setdefault(text, len(self.known) + 1)


def _marks(numbers: Iterable[int]) -> str:
    return "".join(f" [{number}]" for number in sorted(numbers))


def _shown(runs: Sequence[Run]) -> list[tuple[Published, list[Run]]]:
    if not runs:
        return [(one, []) for one in TABLES]
    fits = [published.comparable(run.benchmark, run.task) for run in runs]
    made = [(one, [run for run, fit in zip(runs, fits, strict=True) if one in fit]) for one in TABLES]
    alone = [(_alone(run), [run]) for run, fit in zip(runs, fits, strict=True) if not fit]
    return [(one, own) for one, own in made if own] + alone


def _alone(run: Run) -> Published:
    """A table without published rows, of the figures that the run has."""
    known = {column.key: column for one in TABLES for column in one.columns}
    names = dict.fromkeys(key for row in run.rows for key, value in row.items() if isinstance(value, float))
    columns = tuple(known.get(name, Column(name, name, 4)) for name in names)
    title = f"{run.benchmark}, {run.task}: no published figures are known here"
    return Published(title, "", run.benchmark, (), "", columns, {}, run.scale)


def _published_rows(one: Published, numbers: _Numbers) -> list[Row]:
    stated = {"whose": PUBLISHED, "n": one.n, "resolution": one.resolution, "region": one.region}
    return [
        {"method": method + _marks(_about(one.notes, method, numbers))} | stated | dict(figures)
        for method, figures in one.rows.items()
    ]


def _about(notes: Iterable[Note], method: str, numbers: _Numbers) -> list[int]:
    return [numbers.of(note.text) for note in notes if method in note.methods]


def _own_rows(run: Run, one: Published, numbers: _Numbers) -> list[Row]:
    source = f"run {run.folder.resolve().name}" + (f": {run.scale}" if run.scale else "")
    made = []
    for row in run.rows:
        seed = f"{source}; seed {row['seed']}"
        stated = {"method": row["method"] + _marks([numbers.of(seed)]), "whose": OURS}
        figures: dict[str, Any] = {column.key: row.get(column.key) for column in one.columns}
        made.append(stated | {key: str(row[key]) for key in ("n", "resolution", "region")} | figures)
    return made
