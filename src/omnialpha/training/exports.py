"""Exports that a run leaves as it goes on: the last few by number, and the best by a held-out figure."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from omnialpha.errors import InputError
from omnialpha.files import atomic_folder
from omnialpha.training import parallel

NUMBERED, BEST, RECORD = "exports", "best", "best.json"
UPWARD = "psnr"  # in the name of a figure of which more is better; of all others less is


@dataclass(frozen=True)
class Exports:
    """In a run's folder. write: exports into a folder; all processes call it, one writes."""

    folder: Path
    keep: int
    figure: str
    main: bool
    write: Callable[[Path], None]

    def number(self, step: int) -> None:
        """One more by the number of the step, in `exports`; those beyond `keep` go."""
        if not self.keep:
            return
        folder = self.folder / NUMBERED
        self._write(folder / f"{step:06d}")
        if self.main:
            numbers = sorted((p for p in folder.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))
            for old in numbers[: -self.keep]:
                hidden = old.with_name(f".{old.name}.old")  # never half of one under its name
                old.rename(hidden)
                shutil.rmtree(hidden)

    def best(self, step: int, figures: dict[str, float]) -> None:
        """In `best`, if the figure is better than any before, of this run or of those it goes on from."""
        if not self.figure:
            return
        if self.figure not in figures:
            raise InputError(f"fit.keep_best is {self.figure!r}: use one of {', '.join(figures) or 'no figure'}.")
        value, record = figures[self.figure], self.folder / BEST / RECORD
        better = False
        if self.main:
            known = json.loads(record.read_text())["value"] if record.is_file() else math.nan
            better = math.isfinite(value) and not (value <= known if UPWARD in self.figure else value >= known)
        if parallel.everywhere([better])[0]:  # as one process says: the others may differ in the last bit
            self._write(self.folder / BEST, {"step": step, "figure": self.figure, "value": value})

    def _write(self, folder: Path, record: dict[str, object] | None = None) -> None:
        """Whole or not at all."""
        with atomic_folder(folder) if self.main else nullcontext(folder) as new:
            self.write(new)
            if self.main and record:
                (new / RECORD).write_text(json.dumps(record) + "\n")
