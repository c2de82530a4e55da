"""What became of each picture, a line each in report.jsonl of the output folder: the report, and how a run goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from omnialpha.errors import InputError
from omnialpha.files import atomic_write
from omnialpha.io.layers import INDEX

REPORT, LOCK = "report.jsonl", ".batch.lock"
STOPPED = "the run was stopped before it was done."
LEFT = re.compile(r"\.[0-9a-f]{16}\.(tmp|old)")  # names that `files` gives to what is being written


@dataclass(frozen=True)
class Entry:
    """What became of a picture.

    Attributes:
        input: Its name below the folder of the inputs.
        output: What is there of it, below the output folder; empty where nothing was ever made.
        seconds: That the last run took.
        error: Why the last run made nothing, one sentence; empty where all went well.
        notes: What was lost or assumed.
        task, folder, digest: Of `output`: the task, the folder of the inputs, and the digest of the bytes of the input
            and its map and of all settings.
    """

    input: str
    output: str
    seconds: float = 0.0
    error: str = ""
    notes: tuple[str, ...] = ()
    task: str = ""
    folder: str = ""
    digest: str = ""


class Ledger:
    """The report of an output folder, held by one process at a time."""

    def __init__(self, folder: Path) -> None:
        """Open it. InputError: the folder cannot be used, another batch works there, or its report is another's."""
        self.folder, self.path = folder, folder / REPORT
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(folder / LOCK)
            self.lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"another batch is at work in {folder}: wait for it, or choose another folder.") from None
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"the output folder {folder} cannot be used ({reason}): choose another.") from error
        try:
            self.rows = {row.input: row for row in self._read()}
            _clean(folder)
            self._rewrite()
            self.file = self.path.open("a", encoding="utf-8")
        except BaseException:
            self.lock.release()
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        begun = [row for row in self.rows.values() if row.error == STOPPED]
        for row in begun:
            if not os.path.lexists(self.folder / row.output):
                del self.rows[row.input]
        self._rewrite()
        self.lock.release()

    def add(self, row: Entry) -> None:
        """Write down what became of a picture, so that it outlives this process."""
        before = self.rows.get(row.input)
        if row.error:  # what is there is what an earlier run made
            there = before if before and before.digest else Entry(row.input, "")
            row = replace(there, seconds=row.seconds, error=row.error, notes=row.notes)
        self.rows[row.input] = row
        self.file.write(_line(row))
        self.file.flush()

    def claim(self, outputs: Mapping[str, str], task: str, folder: str) -> None:
        """Write down, before the work begins, what will be made of which input: an output that a killed run wrote, but
        did not live to write down, is then known as ours.
        """
        for name, output in outputs.items():
            if name not in self.rows or not self.rows[name].output:  # nothing was ever made of it
                self.rows[name] = Entry(name, output, error=STOPPED, task=task, folder=folder)
                self.file.write(_line(self.rows[name]))
        self.file.flush()

    def is_done(self, name: str, output: str, digest: str) -> bool:
        """Whether the output is there and was made from the same bytes by the same settings."""
        row = self.rows.get(name)
        if row is None or (row.output, row.digest) != (output, digest):
            return False
        made = self.folder / output
        return (made / INDEX).is_file() if made.is_dir() else made.is_file()

    def may_replace(self, name: str, output: str, task: str, folder: str) -> bool:
        """Whether nothing is there but what an earlier run made of the same input for the same task."""
        row = self.rows.get(name)
        ours = row is not None and (row.output, row.task, row.folder) == (output, task, folder)
        return ours or not os.path.lexists(self.folder / output)

    def _read(self) -> list[Entry]:
        if not self.path.is_file():
            return []
        rows, lines = [], self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        known = {field.name for field in fields(Entry)}
        for number, line in enumerate(lines):
            try:
                values = json.loads(line)
                values["notes"] = tuple(values["notes"])
                rows.append(Entry(**{key: value for key, value in values.items() if key in known}))
            except (ValueError, TypeError, KeyError):
                if number + 1 < len(lines):  # the last may be what a killed run had begun to write
                    raise InputError(f"{self.path} is no report of a batch: choose another output folder.") from None
        return rows

    def _rewrite(self) -> None:
        """One line an input, in their order."""
        atomic_write(self.path, "".join(_line(self.rows[name]) for name in sorted(self.rows)))


def _line(row: Entry) -> str:
    return json.dumps(asdict(row), ensure_ascii=False) + "\n"


def _clean(folder: Path) -> None:
    """Remove what a killed run had begun to write. The lock says that nobody else is writing."""
    for where, folders, files in os.walk(folder):
        for name in filter(LEFT.fullmatch, folders):
            shutil.rmtree(Path(where, name), ignore_errors=True)
        for name in files:
            if LEFT.fullmatch(name):
                Path(where, name).unlink(missing_ok=True)
