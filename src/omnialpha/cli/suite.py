"""`omnialpha eval suite`: all categories on held-out layers, with the model and baselines."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omnialpha.cli.options import Options, command, whole
from omnialpha.cli.reporting import RUNS, Batch, Output, Timeout, baseline, check_counts, write_report
from omnialpha.errors import InputError

if TYPE_CHECKING:
    from omnialpha.evaluation.methods.method import Method
    from omnialpha.evaluation.reports.report import Row
    from omnialpha.evaluation.suite import Scenes, Suite
    from omnialpha.pipeline import OmniAlpha

NONE = "none"


def register(app: typer.Typer) -> None:
    """Add the command to a group."""
    command(app, "model", "instructions", "device", "seed", "quiet", "json", name="suite")(suite)


def suite(
    options: Options,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FOLDER",
            help="foregrounds.jsonl and backgrounds.jsonl, of which the test split is taken; drawn layers if left out",
        ),
    ] = None,
    output: Output = None,
    n: Annotated[int, typer.Option("--n", parser=whole, metavar="NUMBER", help="scenes, and prompts")] = 128,
    categories: Annotated[
        list[str] | None,
        typer.Option("--categories", metavar="NAME[,NAME]", help="autoencoder and those of the tasks; all if left out"),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            "--peer",
            metavar="NAME|onnx:PATH|COMMAND",
            help="a bundled baseline (all if none is named; none for none), a salient-object ONNX file, or a program "
            "as [TASK=]'cmd {input} {output}', for mattes unless it says else; may be repeated",
        ),
    ] = None,
    batch: Batch = 16,
    timeout: Timeout = 600.0,
) -> None:
    """Measure a model and simple methods on held-out layers, all categories; goes on where it was stopped."""
    from omnialpha.cli.progress import silence_libraries

    silence_libraries()  # before the libraries are imported
    from omnialpha.evaluation.datasets import heldout
    from omnialpha.evaluation.reports.report import markdown_table
    from omnialpha.evaluation.reports.suite_report import report
    from omnialpha.evaluation.suite import Scenes, Suite, of_model
    from omnialpha.evaluation.suite_parts import CATEGORIES
    from omnialpha.loading import load

    check_counts(batch=batch)
    began = time.monotonic()
    wanted = chosen([word for words in categories or () for word in words.split(",")], list(CATEGORIES))
    baselines = choose_baselines(peer or (), timeout)
    model = load(options.model, instructions=options.instructions, device=options.device)
    scenes = Scenes(model, heldout.open_source(data), n, options.seed)
    sections = [section for name in wanted for section in CATEGORIES[name](scenes)]
    baselines += [own] if NONE not in (peer or ()) and (own := own_finder(model)) else []
    out = output or default_output(scenes, data)
    made = Suite(scenes, sections, [of_model(model, batch), *baselines], out)
    results = report(made, measure(made, out, options.quiet), where(scenes))
    write_report(results, out, options, began, [markdown_table(results.tables[0])])


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


def own_finder(model: OmniAlpha) -> Method | None:
    """The finder that lies in a model's folder, by itself, if its card names one."""
    from omnialpha.evaluation.methods.baselines import OWN_FINDER, finder

    return finder(model.parts.finder, OWN_FINDER) if model.parts and model.parts.finder else None


def default_output(scenes: Scenes, data: Path | None) -> Path:
    """A folder below RUNS for each kind of run."""
    where = data.resolve().name if data else "procedural"
    return RUNS / "eval-suite" / f"{scenes.model.card.name}-{where}-{scenes.n}-{scenes.seed}"


def measure(suite: Suite, out: Path, quiet: bool) -> list[Row]:
    """All rows, with a bar on a terminal, otherwise a line a section."""
    from omnialpha.cli.progress import Messages, collect

    say = Messages(quiet or sys.stderr.isatty()).say
    return collect(suite.rows(say), len(suite), "predictions", "predictions", out, "the device", quiet)


def where(scenes: Scenes) -> str:
    """The device, in words."""
    import torch

    device = scenes.model.device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"
