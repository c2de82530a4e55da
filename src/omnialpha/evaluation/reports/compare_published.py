"""The figures of runs, compared with published ones in the same tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.benchmarks import TOTAL, WEIGHTED
from omnialpha.evaluation.methods.constants import BEST_CONSTANT
from omnialpha.evaluation.reports.published import TABLES, Published, comparable
from omnialpha.evaluation.reports.report import FILES, HEADER, Column, Report, Row, Table

STATED = ("n", "resolution", "region")
WORDS = tuple(Column(key, key) for key in ("method", "whose", *STATED))
OVERALL = {TOTAL: "", WEIGHTED: f", {WEIGHTED}"}  # of a summary by categories, the rows of all pictures


@dataclass(frozen=True)
class Run:
    """What a report says of a task on all its pictures. rows: of methods, with n, resolution, region and seed."""

    folder: Path
    benchmark: str
    task: str
    scale: str
    rows: Sequence[Row]


def read_runs(folder: Path) -> list[Run]:
    """Of a folder that `omnialpha eval BENCHMARK`, `eval vae` or `eval judge` has written, or of its report.json."""
    path = folder / FILES["json"] if folder.is_dir() else folder
    if not path.is_file():
        raise InputError(f"{folder} holds no {FILES['json']}: give the folder of a run of `omnialpha eval`.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        header, summary = dict(data["header"]), [dict(row) for row in data["summary"]]
        return (_judged if "a_wins" in summary[0] else _benchmark)(path.parent, header, summary)
    except (ValueError, TypeError, LookupError):
        raise InputError(
            f"{path} is no report of `omnialpha eval BENCHMARK`, `vae` or `judge`: give the folder of such a run."
        ) from None


def _benchmark(folder: Path, header: Mapping[str, str], summary: Sequence[Row]) -> list[Run]:
    """A run a task; figures of the unknown region have names of their own. Reconstructions name their pictures."""
    name, tasks = summary[0]["benchmark"], dict[str, list[Row]]()
    data = f", {header['data']}" if name == "vae" else ""
    for row in (row for row in summary if row["category"] in OVERALL and row["method"] != BEST_CONSTANT):
        about = _stated(header) | {"method": row["method"] + data + OVERALL[row["category"]], "region": "whole picture"}
        tasks.setdefault(row["task"], []).append(row | about)
    return [Run(folder, name, task, header["scale"], rows) for task, rows in tasks.items()]


def _judged(folder: Path, header: Mapping[str, str], summary: Sequence[Row]) -> list[Run]:
    row = next((row for row in summary if row["aspect"] == "overall"), summary[0])
    shares = {key: 100 * row[name] for key, name in (("wins", "a_wins"), ("ties", "ties"), ("losses", "b_wins"))}
    method = f"{header['A']} against {header['B']}, by {header['model']}"
    return [Run(folder, "judge", "", "", [_stated(header) | shares | {"method": method}])]


def _stated(header: Mapping[str, str]) -> Row:
    return {key: header[key] for key in (*STATED, "seed")}


# ---- tables ---------------------------------------------------------------------------------------------------------


def together(runs: Sequence[Run] = ()) -> Report:
    """All published tables; with runs, those that they compare with, their rows last. Notes are numbered and stand
    below; a run that compares with nothing has a table of its own.
    """
    numbers: dict[str, int] = {}  # of notes, in the order of their first use

    def marks(texts: Iterable[str]) -> str:
        return "".join(f" [{n}]" for n in sorted(numbers.setdefault(text, len(numbers) + 1) for text in texts))

    tables, summary = [], []
    for one, own in _shown(runs):
        rows: list[Row] = []
        for method, figures in one.rows.items():
            notes = marks(note.text for note in one.notes if method in note.methods)
            about = {"method": method + notes, "whose": "published"} | {key: getattr(one, key) for key in STATED}
            rows.append(about | dict(figures))
        for run in own:
            source = f"run {run.folder.resolve().name}" + (f": {run.scale}" if run.scale else "")
            for row in run.rows:
                about = {"method": row["method"] + marks([f"{source}; seed {row['seed']}"]), "whose": "ours"}
                about |= {key: str(row[key]) for key in STATED}
                rows.append(about | {column.key: row.get(column.key) for column in one.columns})
        source = ", ".join(word for word in (one.source, one.place) if word)
        title = (f"{one.title} ({source})" if source else one.title) + marks(n.text for n in one.notes if not n.methods)
        tables.append(Table(f"{title}; scale: {one.scale}", (*WORDS, *one.columns), rows))
        summary += [{"table": one.title, "from": source, "scale": one.scale} | row for row in rows]
    there = dict.fromkeys(("seed", "device"), "in the report of each run")
    return Report(
        title="Figures beside published ones" if runs else "Published figures",
        header=dict.fromkeys(HEADER, "beside each figure") | there,
        tables=tables,
        summary=summary,
        rows=summary,
        notes=[f"[{number}] {text}" for text, number in numbers.items()],
    )


def _shown(runs: Sequence[Run]) -> list[tuple[Published, list[Run]]]:
    if not runs:
        return [(one, []) for one in TABLES]
    fits = [(run, comparable(run.benchmark, run.task)) for run in runs]
    made = [(one, [run for run, fit in fits if one in fit]) for one in TABLES]
    return [(one, own) for one, own in made if own] + [(_alone(run), [run]) for run, fit in fits if not fit]


def _alone(run: Run) -> Published:
    """A table without published rows, of the figures that the run has."""
    known = {column.key: column for one in TABLES for column in one.columns}
    names = dict.fromkeys(key for row in run.rows for key, value in row.items() if isinstance(value, float))
    columns = tuple(known.get(name, Column(name, name, 4)) for name in names)
    title = f"{run.benchmark}, {run.task}: no published figures are known here"
    return Published(title, run.benchmark, run.scale, columns, {})
