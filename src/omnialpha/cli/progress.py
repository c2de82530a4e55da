"""Messages and progress bars on standard error, none of them with `--quiet`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnialpha.errors import InputError

if TYPE_CHECKING:
    from rich.progress import Progress

    from omnialpha.cli.options import Options
    from omnialpha.condition import Condition
    from omnialpha.evaluation.reports.report import Row
    from omnialpha.sampling import Step


class Messages:
    """Lines on standard error. Notes among them are kept for the JSON report."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.notes: list[str] = []

    def say(self, line: str) -> None:
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)

    def note(self, line: str) -> None:
        self.notes.append(line)
        self.say(f"note: {line}")

    @contextmanager
    def steps(self, total: int, after: str) -> Iterator[Callable[[Step, Condition], None]]:
        """A watcher that draws a bar with the time left on a terminal, and says once what the steps will take.

        The first step is timed with all that comes before it, so that the estimate errs on the long side. `after`: what
        follows the last step.
        """
        with open_bar(self.quiet) as bar:
            line, began = bar.add_task("steps", total=total), time.monotonic()

            def watch(step: Step, cond: Condition) -> None:
                if step.index == 1 and total > 1:
                    expected = (time.monotonic() - began) * total
                    self.say(f"at most about {duration(expected)}" if expected >= 1 else "less than 1 s")
                bar.update(line, completed=step.index, description=after if step.index == total else "steps")

            yield watch


def print_result(options: Options, report: dict[str, Any], line: str) -> None:
    """The end of a command on standard output: a report as one JSON object, or a line, or nothing with `--quiet`."""
    if options.json:
        print(json.dumps(report))
    elif not options.quiet:
        print(line)


@contextmanager
def open_bar(quiet: bool) -> Iterator[Progress]:
    """A bar with the time left, on a terminal alone, that goes when all is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        yield bar


def collect(rows: Iterable[Row], total: int, label: str, what: str, where: Path, who: str, quiet: bool) -> list[Row]:
    """Collect the rows of a measurement, with a progress bar.

    Args:
        rows, total: The rows, and how many there will be.
        label: Of the bar.
        what, where: What is kept in which folder, for the message where it is stopped.
        who: The method, for the message where memory is too little.
        quiet: Draw no bar.

    Raises:
        KeyboardInterrupt: Stopped; it says how much is kept.
        InputError: Too little memory.
    """
    from torch import OutOfMemoryError

    made: list[Row] = []
    try:
        with open_bar(quiet) as bar:
            for row in bar.track(rows, total=total, description=label):
                made.append(row)
    except KeyboardInterrupt:
        done = f"{len(made)} of {total} {what} are kept in {where}"
        raise KeyboardInterrupt(f"stopped, {done}: run it again to go on") from None
    except OutOfMemoryError as error:
        raise InputError(f"{who} has too little memory for these pictures; use a smaller --batch or --size.") from error
    return made


def duration(seconds: float) -> str:
    """3.2 s, 48 s, 2 min 5 s, 1 h 20 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


TALKERS = ("torchao", "bitsandbytes", "diffusers.quantizers", "torch.utils._pytree")


def silence_libraries() -> None:
    """Switch off the progress bars and log messages of diffusers, transformers and others. Errors are still raised."""
    import logging

    for name in TALKERS:  # what they say comes when diffusers finds them, as it is imported
        logging.getLogger(name).setLevel(logging.ERROR)
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity(library.CRITICAL)
        library.disable_progress_bar()
