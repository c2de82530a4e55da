"""`omnialpha eval`: benchmarks on folders of pictures, each with a report to read and to compute with."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omnialpha.cli import benchmark, judging, suite, table
from omnialpha.cli.options import Options, command, whole
from omnialpha.errors import InputError

if TYPE_CHECKING:
    from omnialpha.evaluation.reconstruction import Benchmark, Settings
    from omnialpha.evaluation.reports.report import Row
    from omnialpha.models.vae.autoencoder import Autoencoder

MODEL = "name, model folder or VAE folder; diffusers:FOLDER runs diffusers' own"
RUNS = Path("runs", "eval-vae")  # where reports go if nothing is said

app = typer.Typer(no_args_is_help=True, help="Measure a model on a folder of pictures.")


@command(app, "device", "quiet", "json")
def vae(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL, show_default=False)],
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="RGBA pictures, a category a subfolder", show_default=False)
    ],
    options: Options,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FOLDER", help="where the report goes and what is finished")
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", parser=whole, metavar="PIXELS", help="resize to this longer side")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", parser=whole, metavar="NUMBER", help="of pictures in each category")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", parser=whole, metavar="NUMBER", help="pictures at once")] = 1,
    lpips: Annotated[
        Path | None, typer.Option("--lpips", metavar="FILE", help="weights of VGG16 or AlexNet, for LPIPS")
    ] = None,
    fid: Annotated[
        str | None,
        typer.Option("--fid", metavar="FEATURES", help="TorchScript file or package.module:function, for FID and KID"),
    ] = None,
    compat: Annotated[
        str | None, typer.Option("--compat", metavar="NAME", help="alphavae: with the published protocol's roundings")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="list pictures that cannot be measured instead of stopping")
    ] = False,
) -> None:
    """Encode and decode pictures with alpha, and compare them on nine backgrounds; goes on where it was stopped."""
    from omnialpha.cli.progress import silence_libraries

    silence_libraries()  # before the libraries are imported
    from omnialpha.evaluation.metrics.features import load_features
    from omnialpha.evaluation.metrics.lpips import LPIPS
    from omnialpha.evaluation.reconstruction import Settings
    from omnialpha.models.runtime.placement import pick_device

    began, device = time.monotonic(), pick_device(options.device)
    settings = Settings(
        size=size,
        limit=limit,
        batch=batch,
        skip_bad=skip_bad,
        compat=compat,
        lpips=LPIPS(lpips).to(device) if lpips else None,
        features=load_features(fid, device) if fid else None,
    )
    benchmark = prepare(model, folder, output or default_output(model, folder, settings), settings, device)
    rows = measure(benchmark, options.quiet)
    tell(benchmark, rows, model, options, began)


def prepare(model: str, folder: Path, output: Path, settings: Settings, device: str) -> Benchmark:
    """The benchmark, with the pictures listed and the autoencoder on its device."""
    from omnialpha.data.records.folders import find
    from omnialpha.evaluation.reconstruction import Benchmark

    find(folder)  # refused before weights are read
    return Benchmark(load_autoencoder(model).to(device), folder, output, settings)  # type: ignore[arg-type]


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


def default_output(model: str, folder: Path, settings: Settings) -> Path:
    """A folder below RUNS for each kind of run."""
    theirs = ["diffusers"] if model.startswith("diffusers:") else []
    words = [*theirs, Path(model.removeprefix("diffusers:")).resolve().name, folder.resolve().name]
    words += [str(settings.size)] if settings.size else []
    words += [settings.compat] if settings.compat else []
    return RUNS / "-".join(words)


def measure(benchmark: Benchmark, quiet: bool) -> list[Row]:
    """All rows, with a bar on a terminal."""
    from omnialpha.cli.progress import collect

    who = str(benchmark.autoencoder.device)
    return collect(benchmark.rows(), len(benchmark), "pictures", "pictures", benchmark.out, who, quiet)


def tell(benchmark: Benchmark, rows: list[Row], model: str, options: Options, began: float) -> None:
    """Write the report, and say in one line or one JSON object what is in it."""
    from omnialpha.cli.progress import Messages, duration
    from omnialpha.evaluation.reports.reconstruction_report import TOTAL, in_words, report

    talk = Messages(options.quiet)
    made = report(benchmark, rows, model)
    files = made.write(benchmark.out)
    for name, why in made.skipped.items():
        talk.note(f"{name} skipped, {why}")
    for why in benchmark.bad.values():
        talk.note(f"passed over: {why}")
    seconds = round(time.monotonic() - began, 3)
    if options.json:
        named = {name: str(path) for name, path in files.items()}
        told = {"output": str(benchmark.out), **made.data(), "files": named, "bad": benchmark.bad, "seconds": seconds}
        json.dump(told, sys.stdout)
        print()
    elif not options.quiet:
        total = next(row for row in reversed(made.summary) if row["category"] == TOTAL)
        print(f"{len(rows)} pictures: {in_words(total)}")
        print(f"wrote {files['page']} in {duration(seconds)}")


for module in (benchmark, suite, table, judging):
    module.register(app)
