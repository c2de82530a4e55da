"""`omnialpha eval table`: figures of runs beside published ones, on the terminal or as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omnialpha.cli.options import Options
from omnialpha.errors import InputError

if TYPE_CHECKING:
    from omnialpha.evaluation.reports.report import Report

WIDE = 200  # columns, where nobody says how many there are
SUFFIXES = {".md": "markdown", ".html": "page", ".csv": "summary"}  # -> which text of a report


def table(
    options: Options,
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="FOLDER", help="of runs of `omnialpha eval`", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="a .md, .html or .csv file, instead of text")
    ] = None,
) -> None:
    """Set the figures of runs beside published ones, with what does not fit in those; without runs, show them all."""
    from omnialpha.evaluation.reports.compare_published import read_runs, together
    from omnialpha.files import atomic_write

    if output and output.suffix.lower() not in SUFFIXES:
        raise InputError(f"{output} is none of {', '.join(SUFFIXES)}: give such a name.")
    report = together([run for folder in runs or () for run in read_runs(folder)])
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(output, report.texts()[SUFFIXES[output.suffix.lower()]].encode())
    if options.json:
        print(json.dumps(report.data() | ({"output": str(output)} if output else {})))
    elif output is None:
        show(report)
    elif not options.quiet:
        print(f"wrote {output}")


def show(report: Report) -> None:
    """The tables and notes as text; a column of words that are all the same stands in the title."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    for one in report.tables:
        words = [column for column in one.columns[1:] if column.digits is None]
        same = [column for column in words if len({column.cell(row) for row in one.rows}) == 1]
        columns = [column for column in one.columns if column not in same]
        drawn = Table(box=SIMPLE_HEAD)
        for column in columns:
            drawn.add_column(column.heading, justify="left" if column.digits is None else "right", overflow="fold")
        for row in one.rows:
            drawn.add_row(*(Text(column.cell(row)) for column in columns))
        title = "; ".join([one.title, *(f"{column.title}: {column.cell(one.rows[0])}" for column in same)])
        console.print(Text(title, "bold"))
        console.print(drawn)
    for note in report.notes:
        console.print(note, markup=False, highlight=False)
