"""`omnialpha eval BENCHMARK`: one command for each row of the table of benchmarks, all with the same options.

The model comes first, if it is named or nobody else takes part, and is loaded when all others are found able.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omnialpha.cli.options import Options, command, number, whole
from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.benchmarks import BENCHMARKS, Benchmark

if TYPE_CHECKING:
    from omnialpha.evaluation.methods.method import Method
    from omnialpha.evaluation.reports.report import Report, Row
    from omnialpha.evaluation.runner import Entrant, Runner
    from omnialpha.evaluation.scoring import Networks

RUNS = "runs"  # where reports go if nothing is said
COMMON = (
    "model", "device", "seed", "steps", "guidance", "raw", "quiet", "json", "base", "vae", "lora", "dtype", "offload",
    "quantize", "attention", "compile", "approximate", "instructions",
)  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add a command for each benchmark to a group."""
    for row in BENCHMARKS.values():
        command(app, *COMMON, name=row.name)(_command(row))


def _command(benchmark: Benchmark) -> Callable[..., None]:
    @wraps(_read)  # whose signature `command` takes
    def run(**values: Any) -> None:
        evaluate(benchmark, *_read(**values))

    run.__doc__ = f"{benchmark.title}: {benchmark.about}."
    return run


def _read(
    data: Annotated[str, typer.Option("--data", metavar="DIR", help="where it lies, as unpacked", show_default=False)],
    options: Options,
    peers: Annotated[
        list[str] | None,
        typer.Option(
            "--peer",
            "--method",
            metavar="NAME|onnx:PATH|COMMAND",
            help="a bundled method, a salient-object ONNX file, or a program as 'cmd {input} {output}', beside "
            "--model; may be repeated",
        ),
    ] = None,
    predictions: Annotated[
        list[str] | None,
        typer.Option(
            "--predictions",
            metavar="[NAME=]DIR",
            help="score KEY.png, or KEY/00.png and so on, of a folder; may be repeated",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="TASK", help="what to ask for; its own if left out, if it has one"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FOLDER", help="where the report goes and what is finished"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", parser=whole, metavar="NUMBER", help="of samples in each category")
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", parser=whole, metavar="PIXELS", help="resize to this longer side")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", parser=whole, metavar="NUMBER", help="pictures at once")] = 1,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="list samples that cannot be measured instead of stopping")
    ] = False,
    lpips: Annotated[
        Path | None, typer.Option("--lpips", metavar="FILE", help="weights of VGG16 or AlexNet, for LPIPS")
    ] = None,
    fid: Annotated[
        str | None,
        typer.Option("--fid", metavar="FEATURES", help="TorchScript file or package.module:function, for FID, KID"),
    ] = None,
    clip: Annotated[
        Path | None, typer.Option("--clip", metavar="FOLDER", help="a CLIP model, for CLIP score and CLIP-FID")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", parser=number, metavar="SECONDS", help="for one picture of a program")
    ] = 600.0,
) -> tuple[Options, Asked, Backbones]:
    asked = Asked(data, peers or (), predictions or (), task, output, limit, size, batch, skip_bad, timeout)
    return options, asked, Backbones(lpips, fid, clip)


@dataclass(frozen=True)
class Asked:
    """The options of a benchmark, beside those that all commands share."""

    data: str
    peers: Sequence[str]
    predictions: Sequence[str]
    task: str | None
    output: Path | None
    limit: int | None
    size: int | None
    batch: int
    skip_bad: bool
    timeout: float

    def __post_init__(self) -> None:
        for name in ("limit", "size", "batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name}={value} is out of range: use 1 or more.")


@dataclass(frozen=True)
class Backbones:
    """What some figures need: see `scoring.Networks`."""

    lpips: Path | None
    fid: str | None
    clip: Path | None

    def load(self, device: str) -> Networks:
        from omnialpha.evaluation.metrics.clip import Clip
        from omnialpha.evaluation.metrics.features import load_features
        from omnialpha.evaluation.metrics.lpips import LPIPS
        from omnialpha.evaluation.scoring import Networks

        return Networks(
            LPIPS(self.lpips).to(device) if self.lpips else None,
            load_features(self.fid, device) if self.fid else None,
            Clip.load(self.clip, device) if self.clip else None,
        )


def evaluate(benchmark: Benchmark, options: Options, asked: Asked, backbones: Backbones) -> None:
    """The whole command."""
    from omnialpha.cli.progress import silence_libraries

    silence_libraries()  # before the libraries are imported
    from omnialpha.evaluation.reports.benchmark_report import report
    from omnialpha.evaluation.runner import Entrant, Runner, Settings, check
    from omnialpha.models.runtime.placement import pick_device

    began, device = time.monotonic(), pick_device(options.device)
    task = benchmark.task(asked.task)
    samples = {task: benchmark.samples(asked.data, task, asked.limit)}
    settings = Settings(asked.size, options.seed, asked.skip_bad, backbones.load(device))
    entrants = _others(benchmark, asked, task)
    check(entrants)
    if options.model is not None or not entrants:
        method = _model(options, asked.batch)
        entrants.insert(0, Entrant(method.name, _task(benchmark, asked, task, method), method))
        check(entrants)
    for entrant in entrants:
        if entrant.task not in samples:
            samples[entrant.task] = benchmark.samples(asked.data, entrant.task, asked.limit)
    out = asked.output or default_output(benchmark, asked.data, task, asked.size)
    runner = Runner(samples, benchmark.scored_as(task), out, settings)
    answers = {entrant.name: measure(runner, entrant, options.quiet) for entrant in entrants}
    made = report(benchmark, runner, entrants, answers, device, Path(asked.data).expanduser().resolve().name)
    tell(made, runner, options, began)


def default_output(benchmark: Benchmark, data: str, task: str, size: int | None) -> Path:
    """A folder below RUNS for each kind of run; methods have folders of their own in it."""
    words = [Path(data).expanduser().resolve().name]
    words += [task] if task != next(iter(benchmark.tasks), None) else []
    words += [str(size)] if size else []
    return Path(RUNS, f"eval-{benchmark.name}", "-".join(words))


# ---- who takes part -------------------------------------------------------------------------------------------------


def _others(benchmark: Benchmark, asked: Asked, task: str) -> list[Entrant]:
    """Peers, then folders of predictions."""
    from omnialpha.evaluation.runner import Entrant

    methods = [_peer(word, asked.timeout) for word in asked.peers]
    names, made = [method.name for method in methods], []
    for method in methods:
        name = method.name if names.count(method.name) == 1 else f"{method.name} {method.identity[-6:]}"
        made.append(Entrant(name, _task(benchmark, asked, task, method), method))
    for word in asked.predictions:
        name, named, path = word.partition("=")
        folder = Path(path if named else word).expanduser()
        made.append(Entrant(name if named else folder.resolve().name, task, folder=folder))
    return made


def _task(benchmark: Benchmark, asked: Asked, task: str, method: Method) -> str:
    """What a method is asked for: another task of the benchmark if it cannot do this one, unless --task has said it."""
    return task if asked.task else benchmark.instead(method.does, task)


def _peer(word: str, timeout: float) -> Method:
    from omnialpha.evaluation.methods.baselines import FINDER, PEERS, finder
    from omnialpha.evaluation.methods.commands import of_command

    if word.startswith(FINDER):
        return finder(word.removeprefix(FINDER))
    if "{" in word or " " in word.strip():
        return of_command(word, timeout)
    if word in PEERS:
        return PEERS[word]
    names = ", ".join((*PEERS, f"{FINDER}PATH"))
    raise InputError(f"{word!r} is no peer: use {names}, or a command with {{input}} and {{output}}.")


def _model(options: Options, batch: int) -> Method:
    from dataclasses import asdict

    from omnialpha.cli.run_task import build_setup, load
    from omnialpha.evaluation.methods.method import identity_of, of_model

    setup = build_setup(options)
    how = asdict(setup.placement) | {"approximate": asdict(setup.approximate)}
    how |= {"raw": options.raw, "steps": options.steps, "guidance": options.guidance}
    identity = identity_of(setup.parts, **{k: v for k, v in how.items() if k not in ("device", "offload", "compile")})
    name = Path(options.model or "nano").name
    return of_model(load(options), name, identity, options.raw, batch, options.steps, options.guidance)


# ---- running and telling --------------------------------------------------------------------------------------------


def measure(runner: Runner, entrant: Entrant, quiet: bool) -> list[Row]:
    """All rows of an entrant, with a bar on a terminal."""
    from omnialpha.cli.progress import Messages, collect

    name = entrant.name
    Messages(quiet).say(f"{name}: {len(runner)} samples, {entrant.task}")
    return collect(runner.rows(entrant), len(runner), name, f"samples of {name}", runner.out, name, quiet)


def tell(made: Report, runner: Runner, options: Options, began: float) -> None:
    """Write the report, and say in a table or one JSON object what is in it."""
    from omnialpha.cli.progress import Messages, duration
    from omnialpha.evaluation.reports.report import markdown_table

    talk, files = Messages(options.quiet), made.write(runner.out)
    for name, why in made.skipped.items():
        talk.note(f"{name} skipped, {why}")
    for name, of in runner.bad.items():
        for why in of.values():
            talk.note(f"passed over, {name}: {why}")
    seconds = round(time.monotonic() - began, 3)
    if options.json:
        named = {name: str(path) for name, path in files.items()}
        told = {"output": str(runner.out), **made.data(), "files": named, "bad": runner.bad, "seconds": seconds}
        json.dump(told, sys.stdout)
        print()
    elif not options.quiet:
        for name, value in made.header.items():
            print(f"{name}: {value}")
        print(f"\n{markdown_table(made.tables[0])}\n")
        print(f"wrote {files['page']} in {duration(seconds)}")
