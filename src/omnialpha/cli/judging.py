"""`omnialpha eval judge | study | study-report`: two runs compared by a model, or by people."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omnialpha.cli.options import Options, command, number, whole
from omnialpha.cli.reporting import RUNS, write_report
from omnialpha.errors import InputError

if TYPE_CHECKING:
    from omnialpha.evaluation.judge.judge import Judge
    from omnialpha.evaluation.judge.pairs import Pairs
    from omnialpha.evaluation.judge.verdicts import Answer
    from omnialpha.evaluation.reports.report import Report

SHARES = {"A better": "a_wins", "tie": "ties", "B better": "b_wins"}

First = Annotated[Path, typer.Argument(metavar="OUT_A", help="folder of a run", show_default=False)]
Second = Annotated[Path, typer.Argument(metavar="OUT_B", help="folder of another run", show_default=False)]
Output = Annotated[Path | None, typer.Option("-o", "--output", metavar="FOLDER", help="where the report goes")]
Aspects = Annotated[
    str | None,
    typer.Option("--aspects", metavar="NAMES", help="of overall, quality, prompt and condition, with commas between"),
]
Limit = Annotated[
    int | None, typer.Option("--limit", parser=whole, metavar="NUMBER", help="of samples, the first of OUT_A")
]
Ground = Annotated[
    str, typer.Option("--ground", help="what shows through: checkerboard, white, grey or black", metavar="NAME")
]
Against = Annotated[
    list[Path] | None,
    typer.Option("--against", metavar="FOLDER", help="another report on the same runs, for agreement; may be repeated"),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the group `eval`."""
    command(app, "quiet", "json")(judge)
    command(app, "quiet", "json")(study)
    command(app, "quiet", "json", name="study-report")(study_report)


def judge(
    out_a: First,
    out_b: Second,
    url: Annotated[str, typer.Option("--url", metavar="URL", help="of the endpoint, such as http://localhost:8000/v1")],
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="of the judge, as the endpoint names it")],
    options: Options,
    key_from: Annotated[
        str | None, typer.Option("--key-from", metavar="VARIABLE", help="environment variable that holds the key")
    ] = None,
    aspects: Aspects = None,
    limit: Limit = None,
    workers: Annotated[int, typer.Option("--workers", parser=whole, metavar="NUMBER", help="pairs at once")] = 4,
    ground: Ground = "checkerboard",
    timeout: Annotated[
        float, typer.Option("--timeout", parser=number, metavar="SECONDS", help="for one answer; four tries")
    ] = 120.0,
    against: Against = None,
    output: Output = None,
) -> None:
    """Let a vision-language model compare two runs, each pair in both orders; goes on where it was stopped."""
    from omnialpha.evaluation.judge import judge_report
    from omnialpha.evaluation.judge.endpoint import Endpoint
    from omnialpha.evaluation.judge.judge import Judge
    from omnialpha.evaluation.judge.pairs import match

    began = time.monotonic()
    endpoint = Endpoint(url, model, _key(key_from), timeout=timeout)
    asked = Judge(endpoint, _aspects(aspects, ""), ground, workers)
    pairs = match(out_a, out_b, limit)
    where = output or RUNS / "judge" / "-".join((*pairs.names.values(), model)).replace(os.sep, "_")
    answers = _ask(asked, pairs, where, options.quiet)
    compared = judge_report.of_judge(asked, pairs)
    made = judge_report.report(compared, answers, against or ())
    write_report(made, where, options, began, _lines(made))


def study(
    out_a: First,
    out_b: Second,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="where the study goes")],
    options: Options,
    aspects: Aspects = "overall",
    limit: Limit = None,
    ground: Ground = "checkerboard",
    seed: Annotated[
        int, typer.Option("--seed", parser=whole, metavar="NUMBER", help="draws whose result is listed first")
    ] = 0,
) -> None:
    """Write a page on which people compare two runs without knowing which is which."""
    from omnialpha.evaluation.judge import study as studies
    from omnialpha.evaluation.judge.pairs import match

    pairs = match(out_a, out_b, limit)
    made = studies.build(pairs, output, _aspects(aspects, "overall"), ground, seed)
    _note_missing(pairs, options.quiet)
    count = sum(len(sample.aspects) for sample in made.samples)
    page = output / studies.PAGE
    if options.json:
        told = {"output": str(output), "page": str(page / "index.html"), "study": made.id}
        missing = {side: list(keys) for side, keys in made.missing.items()}
        print(json.dumps(told | {"samples": len(made.samples), "questions": count, "missing": missing}))
    elif not options.quiet:
        print(f"{count} questions about {len(made.samples)} samples: give {page} to the annotators, and keep the rest")


def study_report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="that `study` has written", show_default=False)],
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULT...", help="files that annotators saved", show_default=False)
    ],
    options: Options,
    against: Against = None,
    output: Output = None,
) -> None:
    """Report what the people of a study said; the majority is the verdict of a sample."""
    from omnialpha.evaluation.judge import judge_report, study

    began = time.monotonic()
    made = study.read(folder)
    answers = study.read_answers(made, results)
    compared = judge_report.of_study(made, folder, len(results))
    report = judge_report.report(compared, answers, against or ())
    write_report(report, output or folder / "report", options, began, _lines(report))


def _aspects(names: str | None, default: str) -> tuple[str, ...]:
    from omnialpha.evaluation.judge import pairs

    chosen = default if names is None else names
    return pairs.aspects([name.strip() for name in chosen.split(",") if name.strip()])


def _key(variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(f"the environment variable {variable} is not set: set it to the key of the endpoint.")
    return key


def _note_missing(pairs: Pairs, quiet: bool) -> None:
    from omnialpha.cli.progress import Messages

    for side, keys in pairs.missing.items():
        if keys:
            Messages(quiet).note(f"{pairs.names[side]} lacks {len(keys)} of the samples, which are left out")


def _ask(judge: Judge, pairs: Pairs, folder: Path, quiet: bool) -> list[Answer]:
    """All answers, with a bar on a terminal."""
    from omnialpha.cli.progress import open_bar
    from omnialpha.evaluation.judge.judge import count

    total, done = count(pairs.pairs, judge.aspects), 0
    _note_missing(pairs, quiet)
    try:
        with open_bar(quiet) as bar:
            line = bar.add_task("answers", total=total)

            def on_answer(answer: Answer, kept: bool) -> None:
                nonlocal done
                done += 1
                bar.advance(line)

            return judge.ask(pairs.pairs, folder, on_answer)
    except KeyboardInterrupt:
        kept = f"{done} of {total} answers are kept in {folder}"
        raise KeyboardInterrupt(f"stopped, {kept}: run it again to go on") from None


def _lines(report: Report) -> list[str]:
    """What is said on standard output: a line an aspect."""
    lines = []
    for row in report.summary:
        shares = ", ".join(f"{what} {100 * row[key]:.1f} %" for what, key in SHARES.items())
        errors = f", {row['errors']} errors" if row["errors"] else ""
        lines.append(f"{row['aspect']}: {shares} (n {row['n']}{errors})")
    return lines
