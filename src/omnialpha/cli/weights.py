"""`omnialpha pull` and `omnialpha convert`: weights onto this disk, and from one layout to another."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from omnialpha.cli.progress import Messages, duration, silence_libraries
from omnialpha.errors import InputError


def pull(
    text: str,
    *,
    yes: bool = False,
    revision: str | None = None,
    offline: bool = False,
    instructions: Path | None = None,
    quiet: bool = False,
    as_json: bool = False,
) -> None:
    """Store a model by `owner/name[@revision][:path]`: its licence and size are shown before, and agreed to or not.

    instructions: a file of the texts that it was trained on, in the place of its release's own.
    """
    from huggingface_hub.utils import disable_progress_bars

    from omnialpha.models.checkpoints import hub
    from omnialpha.models.checkpoints import instructions as instruction_files
    from omnialpha.models.checkpoints.releases import RELEASES

    texts = None if instructions is None else instruction_files.read(instructions)
    began, talk = time.monotonic(), Messages(quiet)
    ref = hub.Ref.parse(text)
    if ref is None:
        raise InputError(f"{text!r} is no hub id: write owner/name, owner/name@revision or owner/name:path.")
    ref = replace(ref, revision=revision) if revision else ref
    offers: list[hub.Offer] = []
    if quiet:
        disable_progress_bars()  # otherwise shown on a terminal

    def agree(offer: hub.Offer) -> bool:
        offers.append(offer)
        rest = "all of it" if offer.missing == offer.size else gigabytes(offer.missing)
        talk.say(f"{offer.id} ({offer.revision}), {gigabytes(offer.size)}, {rest} to download")
        talk.say(f"licence: {offer.license}, see {offer.page}")
        talk.say(f"into {offer.folder}")
        return yes or _ask()

    try:
        folder = hub.pull(ref, agree=agree, offline=offline)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped, whole files are kept: run it again to go on") from None

    row = RELEASES.get(ref.id)
    if lacking := instruction_files.store(folder, row, texts, online=not (offline or hub.offline_by())):
        talk.note(lacking)
    if row and row.base and not (hub.Ref(row.base).folder / hub.RECORD).is_file():
        talk.note(f"it stands on {row.base}: run `omnialpha pull {row.base}` too")
    record = hub.Record.read(folder)
    report = {"id": ref.id, "revision": ref.revision, "folder": str(folder)}
    report |= {"commit": record.commit, "license": record.license} if record else {}
    seconds = round(time.monotonic() - began, 3)
    if as_json:
        downloaded = offers[0].missing if offers else 0
        print(json.dumps(report | {"downloaded": downloaded, "notes": talk.notes, "seconds": seconds}))
    elif not quiet:
        print(f"{ref} is in {folder}")


def gigabytes(size: int) -> str:
    """57.7 GB, 3.0 MB, 0.4 MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _ask() -> bool:
    """The question on a terminal; InputError where nobody can answer it."""
    import typer

    if not sys.stdin.isatty():
        raise InputError("nobody can be asked here whether the licence is agreed to: agree with --yes.")
    return typer.confirm("Download it under this licence?", err=True)


def convert(
    source: str,
    destination: Path,
    *,
    base: str | None = None,
    vae: str | None = None,
    lora: Sequence[str] = (),
    instructions: Path | None = None,
    fuse: bool = False,
    layout: str = "ours",
    dtype: str | None = None,
    force: bool = False,
    quiet: bool = False,
    as_json: bool = False,
) -> None:
    """Write the model that the arguments name as one folder, in our layout or diffusers', and say what is in it."""
    from omnialpha.models.checkpoints.convert import convert as write
    from omnialpha.models.checkpoints.folders import resolve
    from omnialpha.models.runtime.placement import DTYPES

    silence_libraries()
    began, talk = time.monotonic(), Messages(quiet)
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"--dtype {dtype!r} is not known: use one of {', '.join(DTYPES)}.")
    parts = resolve(source, base=base, vae=vae, lora=lora, instructions=instructions)
    for file in parts.adapters:
        talk.say(f"LoRA {file.path}, weight {file.weight:g}{', added to the weights' if fuse else ''}")
    made = write(
        parts,
        destination,
        layout=layout,  # type: ignore[arg-type]
        fuse=fuse,
        dtype=DTYPES[dtype] if dtype else None,
        force=force,
        say=lambda part: talk.say(f"writing {part}"),
    )
    seconds = round(time.monotonic() - began, 3)
    card = asdict(resolve(made).card)
    if as_json:
        adapters = [{"path": str(file.path), "weight": file.weight} for file in parts.adapters]
        report = {"output": str(made), "layout": layout, "fused": fuse, "adapters": adapters, "card": card}
        print(json.dumps(report | {"notes": talk.notes, "seconds": seconds}))
    elif not quiet:
        print(f"wrote {made} ({card['name']}, licence: {card['license']}) in {duration(seconds)}")
