"""`omnialpha eval BENCHMARK`: one command for each row of the table of benchmarks, all with the same options; and
`omnialpha eval vae`, which measures an autoencoder.

The model comes first, if it is named or nobody else takes part, and is loaded when all others are found able.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omnialpha.cli import reporting
from omnialpha.cli.options import Options
from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.benchmarks import BENCHMARKS, Benchmark

if TYPE_CHECKING:
    from omnialpha.evaluation.methods.method import Method
    from omnialpha.models.vae.autoencoder import Autoencoder

OPTIONS = (  # of a benchmark's command, of those that all commands share
    "model", "device", "seed", "steps", "guidance", "raw", "quiet", "json", "base", "vae", "lora", "dtype", "offload",
    "quantize", "attention", "compile", "approximate", "instructions",
)  # fmt: skip
MODEL = "name, model folder or VAE folder; diffusers:FOLDER runs diffusers' own"
PEER = "a bundled method, a salient-object ONNX file, or a program as 'cmd {input} {output}', beside --model; may be \
repeated"


def evaluate(
    benchmark: Benchmark,
    data: Annotated[str, typer.Option("--data", metavar="DIR", help="where it lies, as unpacked", show_default=False)],
    options: Options,
    peers: Annotated[
        list[str] | None, typer.Option("--peer", "--method", metavar="NAME|onnx:PATH|COMMAND", help=PEER)
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
    output: reporting.Output = None,
    limit: reporting.Limit = None,
    size: reporting.Size = None,
    batch: reporting.Batch = 1,
    skip_bad: reporting.SkipBad = False,
    lpips: reporting.Lpips = None,
    fid: reporting.Fid = None,
    clip: Annotated[
        Path | None, typer.Option("--clip", metavar="FOLDER", help="a CLIP model, for CLIP score and CLIP-FID")
    ] = None,
    timeout: reporting.Timeout = 600.0,
) -> None:
    """Measure methods on a benchmark, all on the same samples; goes on where it was stopped."""
    from omnialpha.cli.progress import Messages, collect, silence_libraries

    silence_libraries()  # before the libraries are imported
    from omnialpha.evaluation.methods.method import check
    from omnialpha.evaluation.reports.benchmark_report import report
    from omnialpha.evaluation.runner import EvaluationSettings, Runner, SampleSet
    from omnialpha.evaluation.scoring import SCORINGS
    from omnialpha.models.runtime.placement import pick_device

    reporting.check_counts(limit=limit, size=size, batch=batch)
    began, device, main = time.monotonic(), pick_device(options.device), benchmark.task(task)
    samples = {main: benchmark.samples(data, main, limit)}
    settings = EvaluationSettings(size, options.seed, skip_bad, reporting.load_networks(device, lpips, fid, clip))

    def asked(method: Method) -> Method:
        """With its task: another one of the benchmark if it cannot do the main one, unless --task has said it."""
        return replace(method, task=main if task else benchmark.instead(method.does, main))

    methods = [asked(method) for method in _uniquely_named([reporting.baseline(word, timeout) for word in peers or ()])]
    methods += [_predictions(word, main) for word in predictions or ()]
    check(methods)
    if options.model is not None or not methods:
        methods.insert(0, asked(_model(options, batch)))
        check(methods)
    for method in methods:
        if method.task not in samples:
            samples[method.task] = benchmark.samples(data, method.task, limit)
    keys = [[sample.key for sample in of] for of in samples.values()]
    assert all(of == keys[0] for of in keys), "not the same samples"
    kind = SCORINGS[benchmark.scored_as(main)]
    parts = {name: SampleSet(of, kind) for name, of in samples.items()}
    name = Path(data).expanduser().resolve().name
    other = main if main != next(iter(benchmark.tasks), None) else ""
    out = output or reporting.run_folder(benchmark.name, name, other, size)
    runner, rows = Runner(out, settings), {}
    for method in methods:
        part, who = parts[method.task], method.name
        Messages(options.quiet).say(f"{who}: {len(part)} samples, {method.task}")
        made = runner.rows(method, part)
        rows[who] = collect(made, len(part), who, f"samples of {who}", out, who, options.quiet)
    results = report(benchmark, runner, parts, methods, rows, device, name)
    header = [f"{key}: {value}" for key, value in results.header.items()]
    reporting.write_report(results, out, options, began, [*header, f"\n{results.tables[0].markdown()}\n"], runner.bad)


def _uniquely_named(methods: list[Method]) -> list[Method]:
    """Those of one name get the end of their identity behind it."""
    names = [m.name for m in methods]
    return [m if names.count(m.name) == 1 else replace(m, name=f"{m.name} {m.identity[-6:]}") for m in methods]


def _predictions(word: str, task: str) -> Method:
    from omnialpha.evaluation.methods.method import of_folder

    name, named, path = word.partition("=")
    folder = Path(path if named else word).expanduser()
    return of_folder(name if named else folder.resolve().name, folder, task)


def _model(options: Options, batch: int) -> Method:
    from omnialpha.cli.run_task import build_setup, load
    from omnialpha.evaluation.methods.method import identity_of, of_model

    setup = build_setup(options)
    how = asdict(setup.placement) | {"approximate": asdict(setup.approximate)}
    how |= {"raw": options.raw, "steps": options.steps, "guidance": options.guidance}
    identity = identity_of(setup.parts, **{k: v for k, v in how.items() if k not in ("device", "offload", "compile")})
    name = Path(options.model or "nano").name
    return of_model(load(options, setup), name, identity, options.raw, batch, options.steps, options.guidance)


# ---- autoencoders ---------------------------------------------------------------------------------------------------


def vae(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL, show_default=False)],
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="RGBA pictures, a category a subfolder", show_default=False)
    ],
    options: Options,
    output: reporting.Output = None,
    size: reporting.Size = None,
    limit: reporting.Limit = None,
    batch: reporting.Batch = 1,
    lpips: reporting.Lpips = None,
    fid: reporting.Fid = None,
    compat: Annotated[
        str | None, typer.Option("--compat", metavar="NAME", help="alphavae: with the published protocol's roundings")
    ] = None,
    skip_bad: reporting.SkipBad = False,
) -> None:
    """Encode and decode pictures with alpha, and compare them on nine backgrounds; goes on where it was stopped."""
    from omnialpha.cli.progress import collect, silence_libraries

    silence_libraries()  # before the libraries are imported
    from omnialpha.evaluation import reconstruction
    from omnialpha.evaluation.metrics.backgrounds import BACKGROUNDS
    from omnialpha.evaluation.reports.benchmark_report import in_words, report
    from omnialpha.evaluation.runner import EvaluationSettings, Runner, SampleSet
    from omnialpha.models.runtime.placement import pick_device

    began, device, row = time.monotonic(), pick_device(options.device), BENCHMARKS["vae"]
    reporting.check_counts(size=size, limit=limit, batch=batch)
    kind, networks = reconstruction.kind(compat), reporting.load_networks(device, lpips, fid)
    samples = row.samples(str(folder), row.tasks[0], limit)  # refused before weights are read
    autoencoder = load_autoencoder(model).to(device)
    method = reconstruction.of_autoencoder(autoencoder, model, batch)  # type: ignore[arg-type]
    smallest = max(samples[0].smallest, networks.lpips.smallest if networks.lpips else 0)
    targets = samples[0].targets * (1 if autoencoder.config.channels == 4 else len(BACKGROUNDS))
    part = SampleSet([replace(sample, smallest=smallest, targets=targets) for sample in samples], kind)
    theirs = "diffusers" if model.startswith("diffusers:") else ""
    name, data = Path(model.removeprefix("diffusers:")).resolve().name, folder.resolve().name
    out = output or reporting.run_folder("vae", theirs, name, data, size, compat)
    runner = Runner(out, EvaluationSettings(size, skip_bad=skip_bad, networks=networks), keep=False)
    rows = collect(runner.rows(method, part), len(part), "pictures", "pictures", out, device, options.quiet)
    made = report(row, runner, {method.task: part}, [method], {model: rows}, device, data)
    said = f"{len(rows)} pictures: {in_words(made.summary[0], kind.columns)}"
    reporting.write_report(made, out, options, began, [said], runner.bad)


def load_autoencoder(model: str) -> Autoencoder:
    """The RGBA autoencoder of a bundled name, a model folder, a VAE folder or a stored id, in float32."""
    from omnialpha.evaluation.methods.vae_baselines import PREFIX, of_diffusers_vae
    from omnialpha.models.checkpoints import folders
    from omnialpha.models.vae.alphavae import load_vae

    if model.startswith(PREFIX):  # as diffusers runs it, for RGB too
        return of_diffusers_vae(model.removeprefix(PREFIX)).requires_grad_(False)  # type: ignore[return-value]
    where = folders.vae_folder(model)
    autoencoder = load_vae(where)
    if autoencoder.config.channels != 4:
        raise InputError(
            f"{where} is a VAE for {autoencoder.config.channels} channels, without alpha: "
            f"make it one for RGBA with `omnialpha vae init {where} FOLDER`."
        )
    return autoencoder.requires_grad_(False)  # type: ignore[return-value]
