"""`omnialpha eval`: benchmarks, each with a report to read and to compute with."""

from __future__ import annotations

from functools import partial

import typer

from omnialpha.cli import benchmark, judging, suite, table
from omnialpha.cli.options import command
from omnialpha.evaluation.datasets.benchmarks import BENCHMARKS

app = typer.Typer(no_args_is_help=True, help="Measure a model on a folder of pictures.")

command(app, "device", "quiet", "json")(benchmark.vae)
for row in (row for row in BENCHMARKS.values() if not row.own_command):
    run = partial(benchmark.evaluate, row)
    run.__doc__ = f"{row.title}: {row.about}."
    command(app, *benchmark.OPTIONS, name=row.name)(run)
command(app, "model", "instructions", "device", "seed", "quiet", "json")(suite.suite)
for function in (table.table, judging.judge, judging.study, judging.study_report):
    command(app, "quiet", "json")(function)
