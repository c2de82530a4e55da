"""`omnialpha eval suite`: all categories on held-out layers, with the model and baselines."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omnialpha.cli.options import Options, whole
from omnialpha.cli.reporting import Batch, Output, Timeout, baseline, check_counts, run_folder, write_report
from omnialpha.errors import InputError

if TYPE_CHECKING:
    from omnialpha.evaluation.methods.method import Method

NONE = "none"
DATA = "foregrounds.jsonl and backgrounds.jsonl, of which the test split is taken; drawn layers if left out"
PEER = "a bundled baseline (all if none is named; none for none), a salient-object ONNX file, or a program as \
[TASK=]'cmd {input} {output}', for mattes unless it says else; may be repeated"


def suite(
    options: Options,
    data: Annotated[Path | None, typer.Option("--data", metavar="FOLDER", help=DATA)] = None,
    output: Output = None,
    n: Annotated[int, typer.Option("--n", parser=whole, metavar="NUMBER", help="scenes, and prompts")] = 128,
    categories: Annotated[
        list[str] | None,
        typer.Option("--categories", metavar="NAME[,NAME]", help="autoencoder and those of the tasks; all if left out"),
    ] = None,
    peer: Annotated[list[str] | None, typer.Option("--peer", metavar="NAME|onnx:PATH|COMMAND", help=PEER)] = None,
    batch: Batch = 16,
    timeout: Timeout = 600.0,
) -> None:
    """Measure a model and simple methods on held-out layers, all categories; goes on where it was stopped."""
    from omnialpha.cli.progress import Messages, collect, silence_libraries

    silence_libraries()  # before the libraries are imported
    from omnialpha.evaluation.datasets import heldout
    from omnialpha.evaluation.methods.baselines import OWN_FINDER, finder
    from omnialpha.evaluation.suite.report import report
    from omnialpha.evaluation.suite.sections import CATEGORIES
    from omnialpha.evaluation.suite.suite import Scenes, Suite, of_model
    from omnialpha.loading import load

    check_counts(batch=batch)
    began, peer = time.monotonic(), peer or []
    wanted = chosen([word for words in categories or () for word in words.split(",")], list(CATEGORIES))
    baselines = choose_baselines(peer, timeout)
    model = load(options.model, instructions=options.instructions, device=options.device)
    scenes = Scenes(model, heldout.open_source(data), n, options.seed)
    sections = [section for name in wanted for section in CATEGORIES[name](scenes)]
    if NONE not in peer and model.parts and model.parts.finder:  # that lies in the model's folder, by itself
        baselines.append(finder(model.parts.finder, OWN_FINDER))
    source = data.resolve().name if data else "procedural"
    out = output or run_folder("suite", model.card.name, source, n, options.seed)
    made = Suite(scenes, sections, [of_model(model, batch), *baselines], out)
    say = Messages(options.quiet or sys.stderr.isatty()).say  # a bar on a terminal, otherwise a line a section
    rows = collect(made.rows(say), len(made), "predictions", "predictions", out, "the device", options.quiet)
    results = report(made, rows)
    write_report(results, out, options, began, [results.tables[0].markdown()])


def chosen(words: Sequence[str], known: Sequence[str]) -> list[str]:
    """Categories in their own order; all where none is named."""
    words = [word.strip() for word in words if word.strip()]
    if strange := next((word for word in words if word not in known), None):
        raise InputError(f"{strange!r} is no category: use some of {', '.join(known)}.")
    return [name for name in known if name in words or not words]


def choose_baselines(words: Sequence[str], timeout: float) -> list[Method]:
    """Bundled baselines by name, all where none is named, and programs, for mattes unless they say else."""
    from omnialpha.evaluation.methods.baselines import BASELINES

    named = [word for word in dict.fromkeys(words) if word in BASELINES]
    bundled = named if NONE in words or named else list(BASELINES)
    others = [baseline(word, timeout, "matting") for word in words if word != NONE and word not in BASELINES]
    return [*(BASELINES[name] for name in bundled), *others]
