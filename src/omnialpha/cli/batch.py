"""`omnialpha batch`: a folder of pictures through one task."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from omnialpha.cli.options import Options, whole
from omnialpha.cli.progress import Messages, duration, open_bar, print_result
from omnialpha.cutout_options import Cutout
from omnialpha.errors import InputError
from omnialpha.tasks import TASKS

if TYPE_CHECKING:
    import threading

    from omnialpha.batch.engines import Run
    from omnialpha.batch.inputs import Inputs
    from omnialpha.batch.ledger import Entry
    from omnialpha.batch.run import Batch
    from omnialpha.batch.work import Work

FORMATS = Literal["png", "webp", "jpg", "jpeg", "tif", "tiff"]
IN = "a folder, a .txt list of files (- for standard input), or several files"
PANEL = "Files and workers"
MOST_WORKERS = 256


def _of_files(help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=PANEL, **more)


Pattern = Annotated[list[str] | None, _of_files("only files such as '*.jpg' or '2024/*'", metavar="PATTERN")]
Without = Annotated[list[str] | None, _of_files("no files such as '*-old.*'; may be repeated", metavar="PATTERN")]


def batch(
    task: Annotated[str, typer.Argument(metavar="TASK", autocompletion=lambda: _tasks(), show_default=False)],
    inputs: Annotated[list[Path], typer.Argument(metavar="IN", help=IN, show_default=False)],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="the folder of the outputs", show_default=False)],
    options: Options,
    cutout: Cutout,
    include: Pattern = None,
    exclude: Without = None,
    maps: Annotated[Path | None, _of_files("maps with the names of the pictures", metavar="FOLDER")] = None,
    format: Annotated[FORMATS | None, _of_files("of every output; the input's own if left out")] = None,
    overwrite: Annotated[bool, _of_files("do again what is done, and replace what is there", "--overwrite")] = False,
    workers: Annotated[int | None, _of_files("pictures at a time", parser=whole, metavar="NUMBER")] = None,
    engine: Annotated[Literal["auto", "threads", "processes", "ray"], _of_files("who does the work")] = "auto",
    watch: Annotated[bool, _of_files("go on with what comes into the folder, until Ctrl-C", "--watch")] = False,
    prompt: Annotated[str | None, typer.Option("--prompt", "--text", help="for the tasks that take a text")] = None,
    layers: Annotated[
        int | None, typer.Option("--layers", parser=whole, metavar="NUMBER", help="how many; 2 if left out")
    ] = None,
) -> None:
    """Run a task (a name of `omnialpha tasks`, or matte, remove, decompose) on a folder, a list or several files.

    OUT mirrors the folder and holds report.jsonl. What is done is skipped, so a stopped run goes on. Exit codes: 1
    where a picture failed, 2 where nothing could start.
    """
    from omnialpha import sampling
    from omnialpha.api import FAMILIES, select_task
    from omnialpha.batch import engines
    from omnialpha.batch import inputs as sources
    from omnialpha.batch.ledger import Ledger
    from omnialpha.batch.run import Batch, check_maps, stoppable
    from omnialpha.batch.work import Work, Worker
    from omnialpha.tasks import task as find

    began, messages = time.monotonic(), Messages(options.quiet)
    row = select_task(task, {}, prompt) if task in FAMILIES else find(task)
    given = sources.gather(inputs, output, include or (), exclude or (), maps)
    work = Work(row.name, output.absolute(), given.folder, options, prompt, layers, cutout)
    guides = check_maps(work, maps, task)
    row.clean(prompt)
    options.height_width(row)
    sampling.check_settings(options.steps, options.guidance)
    suffix = f".{format}" if format else None
    _check(work, given, suffix, watch, workers)
    worker = Worker(work)
    if engine == "processes" and not worker.finder_alone:
        raise InputError(f"--engine processes is for cut-outs by the finder, not {work.task}: use threads.")
    found = given.find()
    if not found and not watch:
        raise InputError(f"{given.folder} holds no picture that is wanted: check the folder, --include and --exclude.")
    many = workers or _cores() if watch else min(workers or _cores(), max(1, len(found)))
    with Ledger(output) as ledger, stoppable(lambda: messages.say("\nstopping: what is in work is finished")) as stop:
        job = Batch(work, ledger, guides, suffix, overwrite, messages.note)
        with engines.start(engine, worker, many, stop) as run:
            rounds = _rounds(given, stop, messages) if watch else iter([found])
            for pictures in rounds:
                _do(job, pictures, run, messages)
        stopped = stop.is_set() and not watch
    _finish(job, len(found), options, messages, time.monotonic() - began, stopped)


def _tasks() -> list[str]:
    """What the shell may complete TASK to."""
    from omnialpha.api import FAMILIES

    return [*FAMILIES, *TASKS]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check(work: Work, given: Inputs, suffix: str | None, watch: bool, workers: int | None) -> None:
    """InputError for options that do not go together, before anything is loaded."""
    from omnialpha.io import FORMATS

    if work.cutout.changed and work.row.category != "matting":
        name, value = next(iter(work.cutout.changed.items()))
        raise InputError(f"--{name} {value} is for cut-outs, not for {work.task}: leave it out.")
    if suffix and work.stacks:
        raise InputError(f"--format {suffix[1:]} is not for {work.task}, which writes folders of PNG: leave it out.")
    if suffix and work.see_through and not FORMATS[suffix].alpha:
        raise InputError(f"--format {suffix[1:]} cannot hold transparency: use png, webp or tiff, or --background.")
    if watch and given.files is not None:
        raise InputError(f"--watch is for a folder, but files of {given.folder} were given: give the folder.")
    if workers is not None and not 1 <= workers <= MOST_WORKERS:
        raise InputError(f"--workers {workers} is out of range: use 1 to {MOST_WORKERS}.")


def _rounds(given: Inputs, stop: threading.Event, messages: Messages) -> Iterator[dict[str, Path]]:
    """Pictures as they come into a folder."""
    from omnialpha.batch.watch import changes

    messages.say(f"watching {given.folder}, Ctrl-C ends it")
    for names in changes(given, stop):
        yield {name: given.folder / name for name in names}


def _do(job: Batch, pictures: dict[str, Path], run: Run, messages: Messages) -> None:
    """Some pictures, with a bar."""
    items, refused = job.plan(pictures)
    with open_bar(messages.quiet) as bar:
        line = bar.add_task(job.work.task, total=len(items) + len(refused))

        def watch(row: Entry) -> None:
            bar.advance(line)
            for note in row.notes:
                messages.note(f"{row.input}: {note}")
            if row.error:
                messages.say(f"failed: {row.input}: {row.error}")

        job.run(items, refused, run, watch)


def _finish(job: Batch, found: int, options: Options, messages: Messages, seconds: float, stopped: bool) -> None:
    """Say what became of them. KeyboardInterrupt where it was stopped; exit code 1 where some failed."""
    from omnialpha.batch.ledger import REPORT

    output = job.work.output
    report: dict[str, Any] = {"task": job.work.task, "output": str(output), "report": str(output / REPORT)}
    report |= {"done": job.done, "skipped": job.skipped, "failed": len(job.failures)}
    report |= {"errors": {row.input: row.error for row in job.failures}}
    report |= {"notes": messages.notes, "seconds": round(seconds, 3)}
    said = [f"wrote {job.done} to {output} in {duration(seconds)}"]
    said += [f"skipped {job.skipped} that are done"] if job.skipped else []
    said += [f"{len(job.failures)} failed, see {output / REPORT}"] if job.failures else []
    if stopped:
        done = job.done + job.skipped
        raise KeyboardInterrupt(f"stopped, {done} of {found} are done: run it again to go on")
    print_result(options, report, ", ".join(said))
    if job.failures:
        raise typer.Exit(1)
