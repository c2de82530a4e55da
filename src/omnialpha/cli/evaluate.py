"""`omnialpha eval`: benchmarks, each with a report to read and to compute with."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omnialpha.cli import benchmark, judging, suite, table
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
    check_counts,
    write_report,
)
from omnialpha.errors import InputError

if TYPE_CHECKING:
    from omnialpha.models.vae.autoencoder import Autoencoder

MODEL = "name, model folder or VAE folder; diffusers:FOLDER runs diffusers' own"

app = typer.Typer(no_args_is_help=True, help="Measure a model on a folder of pictures.")


@command(app, "device", "quiet", "json")
def vae(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL, show_default=False)],
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="RGBA pictures, a category a subfolder", show_default=False)
    ],
    options: Options,
    output: Output = None,
    size: Size = None,
    limit: Limit = None,
    batch: Batch = 1,
    lpips: Lpips = None,
    fid: Fid = None,
    compat: Annotated[
        str | None, typer.Option("--compat", metavar="NAME", help="alphavae: with the published protocol's roundings")
    ] = None,
    skip_bad: SkipBad = False,
) -> None:
    """Encode and decode pictures with alpha, and compare them on nine backgrounds; goes on where it was stopped."""
    from omnialpha.cli.progress import silence_libraries

    silence_libraries()  # before the libraries are imported
    from omnialpha.evaluation import reconstruction
    from omnialpha.evaluation.datasets.benchmarks import BENCHMARKS
    from omnialpha.evaluation.metrics.backgrounds import BACKGROUNDS
    from omnialpha.evaluation.reports.benchmark_report import in_words, report
    from omnialpha.evaluation.runner import EvaluationSettings, Runner, SampleSet
    from omnialpha.models.runtime.placement import pick_device

    began, device, row = time.monotonic(), pick_device(options.device), BENCHMARKS["vae"]
    check_counts(size=size, limit=limit, batch=batch)
    kind, networks = reconstruction.kind(compat), Backbones(lpips, fid).load(device)
    samples = row.samples(str(folder), row.tasks[0], limit)  # refused before weights are read
    autoencoder = load_autoencoder(model).to(device)
    method = reconstruction.of_autoencoder(autoencoder, model, batch)  # type: ignore[arg-type]
    smallest = max(samples[0].smallest, networks.lpips.smallest if networks.lpips else 0)
    targets = samples[0].targets * (1 if autoencoder.config.channels == 4 else len(BACKGROUNDS))
    part = SampleSet([replace(sample, smallest=smallest, targets=targets) for sample in samples], kind)
    out = output or default_output(model, folder, size, compat)
    runner = Runner(out, EvaluationSettings(size, skip_bad=skip_bad, networks=networks), keep=False)
    rows = {model: benchmark.measure(runner, method, part, device, options.quiet)}
    made = report(row, runner, {method.task: part}, [method], rows, device, folder.resolve().name)
    write_report(
        made,
        out,
        options,
        began,
        [f"{len(rows[model])} pictures: {in_words(made.summary[0], kind.columns)}"],
        runner.bad,
    )


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


def default_output(model: str, folder: Path, size: int | None, compat: str | None) -> Path:
    """A folder below RUNS for each kind of run."""
    theirs = ["diffusers"] if model.startswith("diffusers:") else []
    words = [*theirs, Path(model.removeprefix("diffusers:")).resolve().name, folder.resolve().name]
    words += [str(size)] if size else []
    words += [compat] if compat else []
    return RUNS / "eval-vae" / "-".join(words)


for module in (benchmark, suite, table, judging):
    module.register(app)
