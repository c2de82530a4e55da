"""`omnialpha eval BENCHMARK`: one command for each row of the table of benchmarks, all with the same options.

The model comes first, if it is named or nobody else takes part, and is loaded when all others are found able.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omnialpha.cli.options import Options, command
from omnialpha.cli.reporting import (
    RUNS,
    Backbones,
    Batch,
    Fid,
    Limit,
    Lpips,
    Output,
    Size,
    SkipBad,
    Timeout,
    baseline,
    check_counts,
    write_report,
)
from omnialpha.evaluation.datasets.benchmarks import BENCHMARKS, Benchmark

if TYPE_CHECKING:
    from omnialpha.evaluation.methods.method import Method
    from omnialpha.evaluation.reports.report import Row
    from omnialpha.evaluation.runner import Runner, SampleSet

COMMON = (
    "model", "device", "seed", "steps", "guidance", "raw", "quiet", "json", "base", "vae", "lora", "dtype", "offload",
    "quantize", "attention", "compile", "approximate", "instructions",
)  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add a command to a group for each benchmark that has none of its own."""
    for row in (row for row in BENCHMARKS.values() if not row.own_command):
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
    output: Output = None,
    limit: Limit = None,
    size: Size = None,
    batch: Batch = 1,
    skip_bad: SkipBad = False,
    lpips: Lpips = None,
    fid: Fid = None,
    clip: Annotated[
        Path | None, typer.Option("--clip", metavar="FOLDER", help="a CLIP model, for CLIP score and CLIP-FID")
    ] = None,
    timeout: Timeout = 600.0,
) -> tuple[Options, BenchmarkOptions, Backbones]:
    asked = BenchmarkOptions(data, peers or (), predictions or (), task, output, limit, size, batch, skip_bad, timeout)
    return options, asked, Backbones(lpips, fid, clip)


@dataclass(frozen=True)
class BenchmarkOptions:
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
        check_counts(limit=self.limit, size=self.size, batch=self.batch)


def evaluate(benchmark: Benchmark, options: Options, asked: BenchmarkOptions, backbones: Backbones) -> None:
    """The whole command."""
    from omnialpha.cli.progress import Messages, silence_libraries

    silence_libraries()  # before the libraries are imported
    from omnialpha.evaluation.methods.method import check
    from omnialpha.evaluation.reports.benchmark_report import report
    from omnialpha.evaluation.reports.report import markdown_table
    from omnialpha.evaluation.runner import EvaluationSettings, Runner, SampleSet
    from omnialpha.evaluation.scoring import SCORINGS
    from omnialpha.models.runtime.placement import pick_device

    began, device = time.monotonic(), pick_device(options.device)
    task = benchmark.task(asked.task)
    samples = {task: benchmark.samples(asked.data, task, asked.limit)}
    settings = EvaluationSettings(asked.size, options.seed, asked.skip_bad, backbones.load(device))
    methods = _others(benchmark, asked, task)
    check(methods)
    if options.model is not None or not methods:
        method = _model(options, asked.batch)
        methods.insert(0, replace(method, task=_task(benchmark, asked, task, method)))
        check(methods)
    for method in methods:
        if method.task not in samples:
            samples[method.task] = benchmark.samples(asked.data, method.task, asked.limit)
    keys = [[sample.key for sample in of] for of in samples.values()]
    assert all(of == keys[0] for of in keys), "not the same samples"
    kind = SCORINGS[benchmark.scored_as(task)]
    parts = {task: SampleSet(of, kind) for task, of in samples.items()}
    out, rows = asked.output or default_output(benchmark, asked.data, task, asked.size), {}
    runner = Runner(out, settings)
    for method in methods:
        Messages(options.quiet).say(f"{method.name}: {len(samples[task])} samples, {method.task}")
        rows[method.name] = measure(runner, method, parts[method.task], method.name, options.quiet)
    data = Path(asked.data).expanduser().resolve().name
    made = report(benchmark, runner, parts, methods, rows, device, data)
    header = [f"{name}: {value}" for name, value in made.header.items()]
    write_report(made, out, options, began, [*header, f"\n{markdown_table(made.tables[0])}\n"], runner.bad)


def default_output(benchmark: Benchmark, data: str, task: str, size: int | None) -> Path:
    """A folder below RUNS for each kind of run; methods have folders of their own in it."""
    words = [Path(data).expanduser().resolve().name]
    words += [task] if task != next(iter(benchmark.tasks), None) else []
    words += [str(size)] if size else []
    return RUNS / f"eval-{benchmark.name}" / "-".join(words)


def measure(runner: Runner, method: Method, part: SampleSet, who: str, quiet: bool) -> list[Row]:
    """All rows of a method, with a bar on a terminal. who: would have too little memory."""
    from omnialpha.cli.progress import collect

    rows, what = runner.rows(method, part), f"samples of {method.name}" if runner.keep else "pictures"
    return collect(rows, len(part), method.name if runner.keep else "pictures", what, runner.out, who, quiet)


# ---- who takes part -------------------------------------------------------------------------------------------------


def _others(benchmark: Benchmark, asked: BenchmarkOptions, task: str) -> list[Method]:
    """Baselines, then folders of predictions."""
    from omnialpha.evaluation.methods.method import of_folder

    methods = [baseline(word, asked.timeout) for word in asked.peers]
    names, made = [method.name for method in methods], []
    for method in methods:
        name = method.name if names.count(method.name) == 1 else f"{method.name} {method.identity[-6:]}"
        made.append(replace(method, name=name, task=_task(benchmark, asked, task, method)))
    for word in asked.predictions:
        name, named, path = word.partition("=")
        folder = Path(path if named else word).expanduser()
        made.append(of_folder(name if named else folder.resolve().name, folder, task))
    return made


def _task(benchmark: Benchmark, asked: BenchmarkOptions, task: str, method: Method) -> str:
    """What a method is asked for: another task of the benchmark if it cannot do this one, unless --task has said it."""
    return task if asked.task else benchmark.instead(method.does, task)


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
