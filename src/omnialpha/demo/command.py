"""`omnialpha demo`: five categories on photographs and all tasks on held-out layers, as files and two overviews."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from omnialpha import __version__
from omnialpha.errors import InputError

if TYPE_CHECKING:
    from omnialpha.pipeline import OmniAlpha

PAGE, SHEET, STRIP = "index.html", "contact-sheet.png", "photographs.png"


def run(
    output: Path,
    model: str | None = None,
    device: str = "auto",
    seed: int = 0,
    quiet: bool = False,
    instructions: Path | None = None,
) -> Path:
    """Run all of it into the folder `output`; what else lies there stays. Returns the path of index.html."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from omnialpha.cli.progress import silence_libraries
    from omnialpha.demo import demo_runs
    from omnialpha.demo.overview import contact_sheet, strip
    from omnialpha.demo.page import index_page
    from omnialpha.files import atomic_write
    from omnialpha.io import write_image
    from omnialpha.loading import load
    from omnialpha.tasks import CATEGORIES, TASKS

    start, folder, console = perf_counter(), prepare(Path(output)), Console(stderr=True, quiet=quiet)
    silence_libraries()
    loaded = load(model, instructions=instructions, device=device)
    runner = demo_runs.DemoRunner(loaded, folder, seed)
    runs = chain(*(demo_runs.of_photograph(runner, photo) for photo in demo_runs.PHOTOS), demo_runs.of_held_out(runner))
    made: list[demo_runs.DemoRun] = []
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=quiet) as progress:
        left = len(TASKS) - len(demo_runs.refused(loaded))
        clicks = sum(photo.click is not None for photo in demo_runs.PHOTOS)
        bar = progress.add_task("", total=len(demo_runs.PHOTOS) * len(CATEGORIES) + clicks + left)
        for entry in runs:
            made.append(entry)
            progress.update(bar, advance=1, description=f"{entry.task} {entry.photo}".strip())
    facts = describe(loaded, seed) | {
        "Time": f"{perf_counter() - start:.0f} s, of which model {sum(e.seconds for e in made):.0f} s"
    }
    if names := demo_runs.refused(loaded):
        facts["Left out"] = f"{', '.join(names)}, which {loaded.card.name} does not do"
    line = "   ".join(f"{name.lower()}: {value}" for name, value in facts.items())
    atomic_write(folder / SHEET, contact_sheet(folder, made, "OmniAlpha demo", line))
    page = folder / PAGE
    atomic_write(page, index_page("OmniAlpha demo", facts, made).encode())
    if cutouts := [e for e in made if e.task == "matting_auto" and e.photo]:
        write_image(folder / STRIP, strip(folder, cutouts))
    console.print(
        f"{len(made)} runs in {perf_counter() - start:.0f} s on {loaded.device}. Open {page}",
        soft_wrap=True,
        highlight=False,
    )
    return page


def prepare(folder: Path) -> Path:
    """The output folder with its two parts; InputError, before any work, where it cannot be made."""
    for part in ("photos", "tasks"):
        try:
            (folder / part).mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(
                f"The output {folder} is a file, or holds one in a folder's place; choose another."
            ) from error
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
