"""`omnialpha demo`: five categories on photographs and all tasks on held-out layers, as files and two overviews."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from omnialpha import __version__
from omnialpha.cli.options import Options
from omnialpha.cli.progress import silence_libraries
from omnialpha.errors import InputError
from omnialpha.tasks import CATEGORIES, TASKS

if TYPE_CHECKING:
    from omnialpha.demo import demo_runs
    from omnialpha.pipeline import OmniAlpha

PAGE, SHEET, STRIP = "index.html", "contact-sheet.png", "photographs.png"
ON_PHOTOGRAPHS = ("matting", "removal", "decomposition", "completion", "generation")  # what people come for, first
HELD_OUT = "Every task once on layers that nothing was trained on, drawn by this software, beside the true answer."
ABOUT = {
    "generation": "A transparent picture from a text.",
    "completion": "The layer, or the whole picture, that is missing around or behind what is given.",
    "matting": "The subject as a layer with soft alpha: found by itself, or marked by a click, a box, a map or a text.",
    "removal": "The scene without its subject.",
    "decomposition": "The picture as layers, back to front.",
}


def run(
    options: Options,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="where the pictures go")] = Path(
        "demo"
    ),
) -> None:
    """Show all five categories on photographs and all 21 tasks on held-out layers."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from omnialpha.demo import demo_runs
    from omnialpha.demo.overview import contact_sheet, strip
    from omnialpha.files import atomic_write
    from omnialpha.io import write_image
    from omnialpha.io.contact_sheet import write_png
    from omnialpha.loading import load

    start, folder, console = perf_counter(), prepare(output), Console(stderr=True, quiet=options.quiet)
    silence_libraries()
    model = load(options.model, instructions=options.instructions, device=options.device)
    runner, refused = demo_runs.DemoRunner(model, folder, options.seed), demo_runs.refused(model)
    runs = chain(*(demo_runs.of_photograph(runner, photo) for photo in demo_runs.PHOTOS), demo_runs.of_held_out(runner))
    total = len(TASKS) - len(refused) + sum(len(CATEGORIES) + (photo.click is not None) for photo in demo_runs.PHOTOS)
    made: list[demo_runs.DemoRun] = []
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    try:
        with Progress(*columns, console=console, disable=options.quiet) as progress:
            bar = progress.add_task("", total=total)
            for entry in runs:
                made.append(entry)
                progress.update(bar, advance=1, description=f"{entry.task} {entry.photo}".strip())
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped, what is finished is in {output}") from None
    time = f"{perf_counter() - start:.0f} s, of which model {sum(e.seconds for e in made):.0f} s"
    facts = describe(model, options.seed) | {"Time": time}
    if refused:
        facts["Left out"] = f"{', '.join(refused)}, which {model.card.name} does not do"
    line = "   ".join(f"{name.lower()}: {value}" for name, value in facts.items())
    write_png(folder / SHEET, contact_sheet(folder, made, "OmniAlpha demo", line))
    atomic_write(folder / PAGE, index_page("OmniAlpha demo", facts, made))
    if cutouts := [e for e in made if e.task == "matting_auto" and e.photo]:
        write_image(folder / STRIP, strip(folder, cutouts))
    end = f"{len(made)} runs in {perf_counter() - start:.0f} s on {model.device}. Open {folder / PAGE}"
    console.print(end, soft_wrap=True, highlight=False)


def prepare(folder: Path) -> Path:
    """The output folder with its two parts; InputError, before any work, where it cannot be made."""
    try:
        for part in ("photos", "tasks"):
            (folder / part).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"The output {folder} is a file, or holds one in a folder's place; choose another.") from error
    except OSError as error:
        raise InputError(f"The output {folder} cannot be made ({error.strerror}); choose another.") from error
    return folder


def describe(model: OmniAlpha, seed: int) -> dict[str, str]:
    """What the page and the sheet say of the run, by name."""
    card, (height, width) = model.card, model.native_size()
    steps = ", ".join(
        f"{d.steps}{f' with guidance {d.guidance:g}' if d.guidance != 1 else ''} ({'others' if name == '*' else name})"
        for name, d in sorted(card.sampling.items(), reverse=True)
    )
    return {
        "Model": f"{card.name} ({card.license})",
        "Canvas": f"{width} x {height} px",
        "Steps": steps if len(card.sampling) > 1 else steps.removesuffix(" (others)"),
        "Device": str(model.device),
        "Seed": str(seed),
        "Version": __version__,
    }


def index_page(title: str, facts: dict[str, str], entries: Sequence[demo_runs.DemoRun]) -> str:
    """The page of all entries, without scripts or outside resources; `facts` are shown under the title in order."""
    from omnialpha.demo.demo_runs import GROUNDS
    from omnialpha.templates import render

    photos, held_out = ([e for e in entries if bool(e.photo) is kind] for kind in (True, False))
    chapters = [(name, name, ABOUT[name], [e for e in photos if e.category == name]) for name in ON_PHOTOGRAPHS]
    chapters.append(("all-tasks", "All tasks, with the truth", HELD_OUT, held_out))
    shown = [chapter for chapter in chapters if chapter[3]]
    return render("demo.html", title=title, facts=facts, chapters=shown, grounds=tuple(GROUNDS), tasks=TASKS)
