"""`omnialpha curate`: layered training data built by a recipe."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omnialpha.cli.options import Options

if TYPE_CHECKING:
    from omnialpha.curation.curate import Curated, StageEstimate
    from omnialpha.curation.engine import Watch

SHOWN = 5  # failures that are listed


def curate(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="a TOML file, see recipes/", show_default=False)],
    options: Options,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as limit=20", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say what there is to do, how long it takes and what it costs")
    ] = False,
) -> None:
    """Build layered training data from foregrounds by a recipe; goes on where it was stopped."""
    from omnialpha import config
    from omnialpha.cli.progress import silence_libraries
    from omnialpha.curation import curate as build
    from omnialpha.curation.recipe import CurationRecipe

    made = config.build(CurationRecipe, config.load(recipe, overrides or []))
    if dry_run:
        _say_estimate(build.estimate(made), options)
        return
    silence_libraries()
    try:
        with _bars(options.quiet) as watch:
            curated = build.curate(made, watch)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped, what is done is kept in {made.folder}: run it again to go on") from None
    _say_result(curated, made.folder, options)
    if curated.failures:
        raise typer.Exit(1)


def _say_estimate(parts: Sequence[StageEstimate], options: Options) -> None:
    from omnialpha.cli.progress import duration
    from omnialpha.curation.curate import total

    seconds, cost = total(parts)
    if options.json:
        stages = [asdict(part) for part in parts]
        print(json.dumps({"stages": stages, "seconds": seconds, "cost": cost}))
        return
    for part in parts:
        time = "not measured" if part.seconds is None else duration(part.seconds)
        price = f"  {part.cost:10,.2f}" if part.cost else ""
        print(f"{part.stage:12} {part.known:8,} known {part.todo:8,} to do  {time if part.todo else '-':>14}{price}")
    unknown = "unknown: a run with limit=20 measures every stage"
    print(f"at most {unknown if seconds is None else duration(seconds)}{f', cost {cost:,.2f}' if cost else ''}")


def _say_result(curated: Curated, folder: Path, options: Options) -> None:
    counts = ", ".join(f"{count:,} {name}" for name, count in sorted(curated.counts.items()))
    if options.json:
        failed = [{"id": o.candidate.id, "stage": o.stage, "reason": o.reason} for o in curated.failures]
        print(json.dumps({"output": str(folder), "counts": curated.counts, "near": [*curated.near], "failed": failed}))
    elif not options.quiet:
        for one in curated.failures[:SHOWN]:
            print(f"{one.candidate.id} failed at {one.stage}: {one.reason}")
        again = f"; {len(curated.failures)} failed: run it again" if curated.failures else ""
        print(f"wrote {folder}: {counts}{again}; {folder / 'review'} shows them for a decision")


@contextmanager
def _bars(quiet: bool) -> Iterator[Watch]:
    """On a terminal a line for each stage: what is done, what was known or rejected, and how many a second."""
    from rich.console import Console
    from rich.progress import Progress, TaskID, TextColumn

    counts: dict[str, Counter[str]] = {}
    lines: dict[str, TaskID] = {}
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:12}"), TextColumn("{task.fields[said]}"))
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:

        def watch(stage: str, event: str, count: int) -> None:
            if stage not in lines:
                counts[stage], lines[stage] = Counter(), bar.add_task(stage, total=None, said="")
            counts[stage][event] += count
            elapsed = bar.tasks[lines[stage]].elapsed or 0
            rate = f", {counts[stage]['made'] / elapsed:.2f} a second" if elapsed > 1 and counts[stage]["made"] else ""
            said = ", ".join(f"{number:,} {name}" for name, number in counts[stage].items())
            bar.update(lines[stage], said=said + rate)

        yield watch
