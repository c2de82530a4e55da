"""`omnialpha data`: records to train on checked, shown, packed and encoded."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omnialpha.cli.options import Options, command, whole
from omnialpha.errors import InputError
from omnialpha.limits import MAX_SIDE

if TYPE_CHECKING:
    from PIL import Image

    from omnialpha.data.records.check import DatasetReport
    from omnialpha.data.stream.datasets import DatasetSettings
    from omnialpha.tasks import Example

SHOWN = 12  # examples on a sheet

SOURCE_HELP = "a manifest, a shard, a folder or pattern of them, or hf:NAME"
Source = Annotated[str, typer.Argument(metavar="SOURCE", help=SOURCE_HELP, show_default=False)]
Root = Annotated[str, typer.Option("--root", metavar="FOLDER", help="where the paths in a manifest begin")]
TaskName = Annotated[str, typer.Option("--task", metavar="NAME", help="what pairs of the published format are of")]
Columns = Annotated[
    list[str] | None, typer.Option("--column", metavar="KEY=NAME", help="another name of a key; may be repeated")
]

app = typer.Typer(no_args_is_help=True, help="Check, show, pack and encode what a model is trained on.")


@command(app, "quiet", "json")
def check(
    source: Annotated[list[str], typer.Argument(metavar="SOURCE...", help=SOURCE_HELP, show_default=False)],
    options: Options,
    root: Root = "",
    task: TaskName = "",
    column: Columns = None,
    deep: Annotated[bool, typer.Option("--deep", help="decode every picture; else only headers are read")] = False,
    skip_bad: Annotated[
        Path | None,
        typer.Option("--skip-bad", metavar="FILE", help="write a manifest of the good rows, and end with exit code 0"),
    ] = None,
) -> None:
    """List every bad row with its reasons, and how many rows serve each task; exit code 1 if any is bad."""
    from omnialpha.data.records.check import examine, write_manifest

    if skip_bad:
        check_manifest(skip_bad, source)
    reports: list[DatasetReport] = []
    for one in source:
        with progress(one, options.quiet) as watch:
            reports.append(examine(settings(one, root, task, column), deep=deep, watch=watch))
    if skip_bad:
        write_manifest([row.record for row in reports[0].good if row.record], skip_bad)
    if options.json:
        print(json.dumps([report.data() for report in reports]))
    elif not options.quiet:
        for report in reports:
            print("\n".join(lines(report)))
    if not skip_bad and any(report.bad for report in reports):
        raise typer.Exit(1)


def lines(report: DatasetReport) -> Iterator[str]:
    """A report for people: bad rows, a reason a line, then how many rows serve each task."""
    for row in report.bad:
        named = f", id {row.ident}" if row.ident else ""
        yield from (f"{row.place} (row {row.number}{named}): {reason}" for reason in row.reasons)
    yield f"{report.path}: {len(report.rows)} rows, {len(report.good)} good, {len(report.bad)} bad"
    yield from (f"{count:8,}  {name}" for name, count in report.tasks.items())


def check_manifest(path: Path, source: list[str]) -> None:
    """InputError, before any work is done, where the good rows cannot be written to `path`."""
    if len(source) > 1:
        raise InputError(f"--skip-bad writes the rows of one dataset, not of {len(source)}: check them one by one.")
    if path.suffix != ".jsonl":
        raise InputError(f"{path} is no manifest: end its name with .jsonl.")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist: create it first.")
    if path.resolve() == Path(source[0]).expanduser().resolve():
        raise InputError(f"{path} is what is checked: choose another name, so that it is not overwritten.")


@command(app, "seed", "quiet", "json")
def show(
    source: Source,
    options: Options,
    number: Annotated[int, typer.Argument(parser=whole, metavar="[N]", help="how many examples")] = SHOWN,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="the picture, a PNG")] = Path(
        "examples.png"
    ),
    root: Root = "",
    task: TaskName = "",
    column: Columns = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help="draw this task; may be repeated")
    ] = None,
    side: Annotated[int, typer.Option("--side", parser=whole, metavar="PIXELS", help="sides that are drawn at")] = 256,
) -> None:
    """Draw examples as training does, and write them as one picture: inputs, what should come out, and the words."""
    from omnialpha.cli.progress import Messages
    from omnialpha.data.stream.stream import StreamSettings, open_stream
    from omnialpha.io import check_output, contact_sheet

    if check_output(output).name != "PNG":
        raise InputError(f"the sheet {output} is a PNG: end its name with .png.")
    if number < 1 or not 8 <= side <= MAX_SIDE:
        raise InputError(f"{number} examples of {side} px cannot be shown: give 1 or more, of 8 to {MAX_SIDE} px.")
    talk = Messages(options.quiet)
    dataset = replace(settings(source, root, task, column), tasks=only or [], bad="skip")
    stream = open_stream(StreamSettings([dataset]), [(side, side)], 1, options.seed)
    cards, made = [], []
    with warnings.catch_warnings(record=True) as skipped:
        warnings.simplefilter("always")
        for index in range(number):
            name, place, turn = stream.plan(index)
            ident, (example,) = stream.row(place, turn).id, stream.batch(index)
            cards.append(card(ident, example))
            made.append({"id": ident, "task": name, "instruction": example.instruction})
    for warning in skipped:
        talk.note(str(warning.message))
    contact_sheet.write(output, cards)
    if options.json:
        print(json.dumps({"output": str(output), "examples": made, "notes": talk.notes}))
    else:
        talk.say(f"wrote {output}: {number} examples")


def card(ident: str, example: Example) -> Image.Image:
    """One example: its inputs, an arrow, its targets on a checkerboard, and its words below."""
    from omnialpha.io import contact_sheet

    groups = ((example.roles, example.inputs), (example.targets, example.true_layers()))
    cells = [[(str(role), picture) for role, picture in zip(*group, strict=True)] for group in groups]
    return contact_sheet.card(
        f"{example.task.replace('_', ' ')}  ·  {ident}", cells, example.instruction or "(no instruction)"
    )


@command(app, "quiet", "json")
def pack(
    source: Source,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="the folder for the shards", show_default=False)],
    options: Options,
    size_mb: Annotated[
        int, typer.Option("--size-mb", parser=whole, metavar="NUMBER", help="MiB of a shard at most")
    ] = 512,
    root: Root = "",
    task: TaskName = "",
    column: Columns = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="leave bad rows out instead of stopping")] = False,
    force: Annotated[bool, typer.Option("--force", help="replace the shards of another packing")] = False,
) -> None:
    """Write records as WebDataset shards, the same bytes every time; goes on where it was stopped."""
    from omnialpha.cli.progress import Messages, duration
    from omnialpha.data.records import shards
    from omnialpha.data.records.check import load

    if size_mb < 1:
        raise InputError(f"--size-mb {size_mb} is out of range: use 1 or more.")
    began, talk = time.monotonic(), Messages(options.quiet)
    chosen = replace(settings(source, root, task, column), bad="skip" if skip_bad else "stop")
    records = [row.record for row in load(chosen) if row.record]

    def watch(shard: shards.Plan, kept: bool) -> None:
        talk.say(f"{shard.path.name}, {len(shard.records)} records{', was there already' * kept}")

    try:
        made = shards.pack(records, output, size_mb * 2**20, force, watch)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped, finished shards are kept in {output}: run it again to go on") from None
    seconds = round(time.monotonic() - began, 3)
    if options.json:
        print(json.dumps({"output": [str(path) for path in made], "records": len(records), "seconds": seconds}))
    elif not options.quiet:
        print(f"wrote {len(records)} records as {len(made)} shard(s) in {output} in {duration(seconds)}")


@command(app, "device", "quiet", "json")
def cache(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="of a LoRA, a TOML file", show_default=False)],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="the folder for the shards", show_default=False)],
    options: Options,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as seed=1", show_default=False)
    ] = None,
    batches: Annotated[
        int, typer.Option("--batches", parser=whole, metavar="NUMBER", help="0: as many as the recipe's steps take")
    ] = 0,
    shard: Annotated[int, typer.Option("--shard", parser=whole, metavar="NUMBER", help="batches of a shard")] = 64,
    dtype: Annotated[str, typer.Option("--dtype", help="that is stored: bfloat16, float16 or float32")] = "bfloat16",
    verify: Annotated[bool, typer.Option("--verify", help="also compare a batch of each shard with the data")] = False,
) -> None:
    """Encode what a recipe trains on, once: set cache = "OUT" in it then; goes on where it was stopped."""
    from dataclasses import asdict

    from omnialpha.cli.progress import duration, silence_libraries
    from omnialpha.training.latent_cache import digests
    from omnialpha.training.latent_cache.build_cache import build_cache
    from omnialpha.training.run import SFTRecipe, read

    began, made = time.monotonic(), read(recipe, overrides or [])
    if not isinstance(made, SFTRecipe):
        raise InputError(f"recipe {recipe} trains an autoencoder, whose latents change: only kind='sft' has a cache.")
    facts = made.drawn_from()  # mistakes before weights are read
    silence_libraries()
    parts = made.parts()
    model = made.encoders(parts, options.device)
    mixture, known = made.mixture(model.card, model.vae.ratio * model.patch), digests.files(parts)
    count = batches or made.fit.steps * made.fit.accumulate
    try:
        with progress(f"batches to {output}", options.quiet) as watch:
            filled = build_cache(output, model, mixture, facts, count, shard, dtype, verify, watch, known)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped, finished shards are kept in {output}: run it again to go on") from None
    seconds = round(time.monotonic() - began, 3)
    if options.json:
        print(json.dumps({"output": str(output), **asdict(filled), "seconds": seconds}))
    elif not options.quiet:
        print(
            f"{filled.batches} batches in {output}, {filled.bytes / 2**20:,.1f} MiB: {filled.made} shard(s) made, "
            f"{filled.kept} kept, {filled.redone} made anew, in {duration(seconds)}"
        )


def settings(source: str, root: str, task: str, columns: list[str] | None) -> DatasetSettings:
    """A dataset as the options name it."""
    from omnialpha.data.stream.datasets import DatasetSettings

    pairs = [column.partition("=") for column in columns or ()]
    for key, equals, name in pairs:
        if not (key and equals and name):
            raise InputError(f"--column {key + equals + name!r} names no column: write KEY=NAME.")
    return DatasetSettings(source, root, task, columns={key: name for key, _, name in pairs})


@contextmanager
def progress(title: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, moved by calls with what is done and the total."""
    from omnialpha.cli.progress import open_bar

    with open_bar(quiet) as bar:
        line = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(line, completed=done, total=total)
