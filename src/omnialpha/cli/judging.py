"""`omnialpha eval judge | study | study-report`: two runs compared by a model, or by people."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omnialpha.cli.options import Options, number, whole
from omnialpha.cli.reporting import RUNS, write_report

if TYPE_CHECKING:
    from omnialpha.evaluation.judge.judge_report import Comparison
    from omnialpha.evaluation.judge.pairs import Pairs
    from omnialpha.evaluation.judge.verdicts import Answer

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
    from omnialpha.cli.progress import open_bar
    from omnialpha.evaluation.judge import judge_report
    from omnialpha.evaluation.judge.endpoint import Endpoint, read_key
    from omnialpha.evaluation.judge.judge import Judge, count
    from omnialpha.evaluation.judge.pairs import match

    began = time.monotonic()
    endpoint = Endpoint(url, model, read_key(key_from or ""), timeout=timeout)
    asked = Judge(endpoint, _aspects(aspects), ground, workers)
    pairs = match(out_a, out_b, limit)
    where = output or RUNS / "judge" / "-".join((*pairs.names.values(), model)).replace(os.sep, "_")
    _note_missing(pairs, options.quiet)
    with open_bar(options.quiet) as bar:
        line = bar.add_task("answers", total=count(pairs.pairs, asked.aspects))
        try:
            answers = asked.ask(pairs.pairs, where, lambda answer, kept: bar.advance(line))
        except KeyboardInterrupt:
            done = f"{bar.tasks[0].completed:.0f} of {bar.tasks[0].total:.0f} answers are kept in {where}"
            raise KeyboardInterrupt(f"stopped, {done}: run it again to go on") from None
    _report(judge_report.of_judge(asked, pairs), answers, against, where, options, began)


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
    made = studies.build(pairs, output, _aspects(aspects), ground, seed)
    _note_missing(pairs, options.quiet)
    count = sum(len(sample.aspects) for sample in made.samples)
    page = output / studies.PAGE
    if options.json:
        about = {"output": str(output), "page": str(page / "index.html"), "study": made.id}
        print(json.dumps(about | {"samples": len(made.samples), "questions": count, "missing": made.missing}))
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
    answers, compared = study.read_answers(made, results), judge_report.of_study(made, folder, len(results))
    _report(compared, answers, against, output or folder / "report", options, began)


def _aspects(names: str | None) -> tuple[str, ...]:
    from omnialpha.evaluation.judge import pairs

    return pairs.aspects([name.strip() for name in (names or "").split(",") if name.strip()])


def _note_missing(pairs: Pairs, quiet: bool) -> None:
    from omnialpha.cli.progress import Messages

    for side, keys in pairs.missing.items():
        if keys:
            Messages(quiet).note(f"{pairs.names[side]} lacks {len(keys)} of the samples, which are left out")


def _report(
    compared: Comparison, answers: list[Answer], against: list[Path] | None, out: Path, options: Options, began: float
) -> None:
    """Write the report, and say a line an aspect."""
    from omnialpha.evaluation.judge.judge_report import report

    made, lines = report(compared, answers, against or ()), []
    for row in made.summary:
        shares = {"A better": row["a_wins"], "tie": row["ties"], "B better": row["b_wins"]}
        said = ", ".join(f"{what} {100 * share:.1f} %" for what, share in shares.items())
        errors = f", {row['errors']} errors" if row["errors"] else ""
        lines.append(f"{row['aspect']}: {said} (n {row['n']}{errors})")
    write_report(made, out, options, began, lines)
