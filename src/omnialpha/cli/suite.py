"""`omnialpha eval suite`: all categories on held-out layers, with the model and its peers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omnialpha.cli.options import Options, command, number, whole
from omnialpha.errors import InputError

if TYPE_CHECKING:
    from omnialpha.evaluation.methods.method import Method
    from omnialpha.evaluation.reports.report import Row
    from omnialpha.evaluation.suite import Scenes, Suite
    from omnialpha.pipeline import OmniAlpha

RUNS = Path("runs", "eval-suite")  # where reports go if nothing is said
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
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FOLDER", help="where the report goes and what is finished")
    ] = None,
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
            help="a bundled peer (all if none is named; none for none), a salient-object ONNX file, or a program as "
            "[TASK=]'cmd {input} {output}', for mattes unless it says else; may be repeated",
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", parser=whole, metavar="NUMBER", help="pictures at once")] = 16,
    timeout: Annotated[
        float, typer.Option("--timeout", parser=number, metavar="SECONDS", help="for one picture of a program")
    ] = 600.0,
) -> None:
    """Measure a model and simple methods on held-out layers, all categories; goes on where it was stopped."""
    from omnialpha.cli.progress import silence_libraries

    silence_libraries()  # before the libraries are imported
    from omnialpha.evaluation.datasets import heldout
    from omnialpha.evaluation.suite import Scenes, Suite, of_method, of_model
    from omnialpha.evaluation.suite_parts import CATEGORIES
    from omnialpha.loading import load

    if batch < 1:
        raise InputError(f"batch={batch} is out of range: use 1 or more.")
    began = time.monotonic()
    wanted = chosen([word for words in categories or () for word in words.split(",")], list(CATEGORIES))
    peers = choose_peers(peer or (), timeout)
    model = load(options.model, instructions=options.instructions, device=options.device)
    scenes = Scenes(model, heldout.open_source(data), n, options.seed)
    parts = [part for name in wanted for part in CATEGORIES[name](scenes)]
    peers += [own] if NONE not in (peer or ()) and (own := own_finder(model)) else []
    contestants = [of_model(model, batch), *(of_method(method) for method in peers)]
    made = Suite(scenes, parts, contestants, output or default_output(scenes, data))
    tell(made, measure(made, options.quiet), options, began)


def chosen(words: Sequence[str], known: Sequence[str]) -> list[str]:
    """Categories in their own order; all where none is named."""
    words = [word.strip() for word in words if word.strip()]
    if strange := next((word for word in words if word not in known), None):
        raise InputError(f"{strange!r} is no category: use some of {', '.join(known)}.")
    return [name for name in known if name in words or not words]


def choose_peers(words: Sequence[str], timeout: float) -> list[Method]:
    """Bundled peers by name, all where none is named, and programs by their commands."""
    from omnialpha.evaluation.methods.baselines import FINDER, PEERS, finder
    from omnialpha.evaluation.methods.commands import of_command, split_only

    named, programs = [], []
    for word in words:
        if word == NONE or word in PEERS:
            named.append(word)
        elif word.startswith(FINDER):
            programs.append(finder(word.removeprefix(FINDER)))
        elif "{" in word or " " in word:
            only, program = split_only(word)
            programs.append(of_command(program, timeout, only or "matting"))
        else:
            names = ", ".join((*PEERS, f"{FINDER}PATH", NONE))
            raise InputError(f"{word!r} is no peer: use {names}, or a command with {{output}} in it.")
    bundled = [PEERS[name] for name in dict.fromkeys(named) if name != NONE] if named else list(PEERS.values())
    return [*bundled, *programs]


def own_finder(model: OmniAlpha) -> Method | None:
    """The finder that lies in a model's folder, by itself, if its card names one."""
    from omnialpha.evaluation.methods.baselines import OWN_FINDER, finder

    return finder(model.parts.finder, OWN_FINDER) if model.parts and model.parts.finder else None


def default_output(scenes: Scenes, data: Path | None) -> Path:
    """A folder below RUNS for each kind of run."""
    where = data.resolve().name if data else "procedural"
    return RUNS / f"{scenes.model.card.name}-{where}-{scenes.n}-{scenes.seed}"


def measure(suite: Suite, quiet: bool) -> list[Row]:
    """All rows, with a bar on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from omnialpha.cli.progress import Messages

    console, talk, named = Console(stderr=True), Messages(quiet), set()
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    done = 0
    try:
        with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
            line = bar.add_task("", total=len(suite))

            def step(part: str, pictures: int) -> None:
                nonlocal done
                done += pictures
                bar.update(line, completed=done, description=part)
                if part not in named and not console.is_terminal:
                    talk.say(f"{done} of {len(suite)} answers: {part}")
                named.add(part)

            return list(suite.rows(step))
    except KeyboardInterrupt:
        kept = f"{done} of {len(suite)} answers are kept in {suite.out}"
        raise KeyboardInterrupt(f"stopped, {kept}: run it again to go on") from None


def tell(suite: Suite, rows: list[Row], options: Options, began: float) -> None:
    """Write the report; on standard output the table for a README, or one JSON object."""
    from omnialpha.cli.progress import duration
    from omnialpha.evaluation.reports.report import markdown_table
    from omnialpha.evaluation.reports.suite_report import report

    made = report(suite, rows, where(suite.scenes))
    files = made.write(suite.out)
    seconds = round(time.monotonic() - began, 3)
    if options.json:
        named = {name: str(path) for name, path in files.items()}
        json.dump({"output": str(suite.out), **made.data(), "files": named, "seconds": seconds}, sys.stdout)
        print()
    elif not options.quiet:
        print(markdown_table(made.tables[0]))
        print(f"wrote {files['page']} in {duration(seconds)}")


def where(scenes: Scenes) -> str:
    """The device, in words."""
    import torch

    device = scenes.model.device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"
