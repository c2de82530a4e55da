"""`omnialpha pull` and `omnialpha convert`: weights onto this disk, and from one layout to another."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from omnialpha.cli.options import Options
from omnialpha.cli.progress import Messages, duration, print_result, silence_libraries
from omnialpha.errors import InputError


def pull(
    model: Annotated[str, typer.Argument(metavar="ID", help="owner/name[@revision][:path]", show_default=False)],
    options: Options,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="agree to the licence without being asked")] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="branch, tag or commit")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="only say what is stored already")] = False,
) -> None:
    """Download weights once, to run offline; goes on where it was cut off, and checks every file."""
    from huggingface_hub.utils import disable_progress_bars

    from omnialpha.models.checkpoints import hub
    from omnialpha.models.checkpoints import instructions as instruction_files
    from omnialpha.models.checkpoints.releases import RELEASES

    texts = None if options.instructions is None else instruction_files.read(options.instructions)
    began, messages = time.monotonic(), Messages(options.quiet)
    ref = hub.Ref.parse(model)
    if ref is None:
        raise InputError(f"{model!r} is no hub id: write owner/name, owner/name@revision or owner/name:path.")
    ref = replace(ref, revision=revision) if revision else ref
    downloaded = 0
    if options.quiet:
        disable_progress_bars()  # otherwise shown on a terminal

    def agree(offer: hub.Offer) -> bool:
        nonlocal downloaded
        downloaded = offer.missing
        rest = "all of it" if offer.missing == offer.size else gigabytes(offer.missing)
        messages.say(f"{offer.id} ({offer.revision}), {gigabytes(offer.size)}, {rest} to download")
        messages.say(f"licence: {offer.license}, see {offer.page}")
        messages.say(f"into {offer.folder}")
        if not yes and not sys.stdin.isatty():
            raise InputError("nobody can be asked here whether the licence is agreed to: agree with --yes.")
        return yes or typer.confirm("Download it under this licence?", err=True)

    try:
        folder = hub.pull(ref, agree=agree, offline=offline)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped, whole files are kept: run it again to go on") from None

    row = RELEASES.get(ref.id)
    if lacking := instruction_files.store(folder, row, texts, online=not (offline or hub.offline_by())):
        messages.note(lacking)
    if row and row.base and not (hub.Ref(row.base).folder / hub.RECORD).is_file():
        messages.note(f"it stands on {row.base}: run `omnialpha pull {row.base}` too")
    record = hub.Record.read(folder)
    report = {"id": ref.id, "revision": ref.revision, "folder": str(folder)}
    report |= {"commit": record.commit, "license": record.license} if record else {}
    seconds = round(time.monotonic() - began, 3)
    figures = {"downloaded": downloaded, "notes": messages.notes, "seconds": seconds}
    print_result(options, report | figures, f"{ref} is in {folder}")


def gigabytes(size: int) -> str:
    """57.7 GB, 3.0 MB, 0.4 MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def convert(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="name, folder or stored id", show_default=False)],
    destination: Annotated[Path, typer.Argument(metavar="FOLDER", show_default=False)],
    options: Options,
    fuse: Annotated[bool, typer.Option("--fuse", help="add adapters to the weights for good")] = False,
    layout: Annotated[str, typer.Option("--layout", help="ours or diffusers")] = "ours",
    force: Annotated[bool, typer.Option("--force", help="replace what is there")] = False,
) -> None:
    """Write a model, or the parts it is put together from, as one folder."""
    from omnialpha.models.checkpoints.convert import convert as write
    from omnialpha.models.checkpoints.folders import resolve
    from omnialpha.models.runtime.placement import DTYPES

    silence_libraries()
    began, messages = time.monotonic(), Messages(options.quiet)
    if options.dtype is not None and options.dtype not in DTYPES:
        raise InputError(f"--dtype {options.dtype!r} is not known: use one of {', '.join(DTYPES)}.")
    parts = resolve(source, **options.parts)
    for file in parts.adapters:
        messages.say(f"LoRA {file.path}, weight {file.weight:g}{', added to the weights' if fuse else ''}")
    dtype = DTYPES[options.dtype] if options.dtype else None
    say = {"say": lambda part: messages.say(f"writing {part}")}
    made = write(parts, destination, layout=layout, fuse=fuse, dtype=dtype, force=force, **say)  # type: ignore[arg-type]
    seconds = round(time.monotonic() - began, 3)
    card = asdict(resolve(made).card)
    adapters = [{"path": str(file.path), "weight": file.weight} for file in parts.adapters]
    report = {"output": str(made), "layout": layout, "fused": fuse, "adapters": adapters, "card": card}
    report |= {"notes": messages.notes, "seconds": seconds}
    print_result(options, report, f"wrote {made} ({card['name']}, licence: {card['license']}) in {duration(seconds)}")
