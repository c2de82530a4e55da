"""Rows examined before they are trained on: every one that could stop a run is found, with its reasons."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import IO, Any

from PIL import Image
from PIL.ContainerIO import ContainerIO

from omnialpha import masks
from omnialpha.data.records.pictures import Handle, Size, check_sizes, error_context, read
from omnialpha.data.records.records import LayeredRecord, Record, RecordPart
from omnialpha.data.records.shards import Member
from omnialpha.data.stream.datasets import DatasetSettings, Row, rows
from omnialpha.errors import InputError
from omnialpha.files import atomic_write
from omnialpha.io import DAMAGED
from omnialpha.limits import MAX_PIXELS
from omnialpha.tasks import MAPS, TASKS, Role, check_map

ORIENTATION = 274  # EXIF: from 5 on, height and width change places
WORKERS = 8  # threads; most of the time is spent on waiting for the disk
FLAT = (Role.BACKGROUND, Role.COMPOSITE, Role.FULL)


@dataclass(frozen=True)
class Checked:
    """A row, why it is bad (nothing: it is good), and the size of its pictures where that is known."""

    row: Row
    reasons: tuple[str, ...] = ()
    size: Size | None = None

    @property
    def record(self) -> Record:
        assert self.row.record is not None, "only a good row has a record for sure"
        return self.row.record


@dataclass(frozen=True)
class DatasetReport:
    """What was found in one dataset. tasks: how many good rows serve each."""

    path: str
    checked: tuple[Checked, ...]
    tasks: dict[str, int]

    @property
    def bad(self) -> list[Checked]:
        return [c for c in self.checked if c.reasons]

    @property
    def good(self) -> list[Checked]:
        return [c for c in self.checked if not c.reasons]

    def data(self) -> dict[str, Any]:
        """The report in plain types."""
        bad = [{"row": c.row.number, "place": c.row.place, "id": c.row.ident, "reasons": c.reasons} for c in self.bad]
        return {"source": self.path, "rows": len(self.checked), "good": len(self.good), "bad": bad, "tasks": self.tasks}


def examine(
    settings: DatasetSettings,
    seed: int = 0,
    deep: bool = False,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> DatasetReport:
    """Every row of a dataset. deep: all pictures are decoded, else their headers are read. watch: rows done, of all."""
    found = rows(settings, seed)
    checked: list[Checked] = []
    with ThreadPoolExecutor(WORKERS) as pool:
        for part in _batches(found, 16 * WORKERS):
            checked += pool.map(lambda row: check(row, settings.tasks, deep), part)
            watch(len(checked), len(found))
    first: dict[str, str] = {}
    for k, c in enumerate(checked):  # in the order of the rows, so that the first of two is the good one
        before = first.setdefault(c.row.ident, c.row.place) if c.row.ident else c.row.place
        if before != c.row.place:
            checked[k] = replace(c, reasons=(*c.reasons, f"its id is that of {before}: give it one of its own."))
    counts = Counter(name for c in checked if not c.reasons for name in served(c.record, settings.tasks))
    return DatasetReport(settings.path, tuple(checked), {name: counts[name] for name in TASKS if counts[name]})


def load(settings: DatasetSettings, seed: int = 0) -> list[Checked]:
    """The rows of a dataset that are trained on. InputError where one is bad and its settings do not skip it."""
    if settings.bad == "ignore":
        return [Checked(row) for row in rows(settings, seed) if row.record]
    report = examine(settings, seed)
    if report.bad and settings.bad == "stop":
        worst = report.bad[0]
        raise InputError(
            f"{settings.path} has {len(report.bad)} bad row(s) of {len(report.checked)}, such as {worst.row.place}: "
            f'{worst.reasons[0]} `omnialpha data check` lists all, bad = "skip" leaves them out.'
        )
    if not report.good:
        raise InputError(f"{settings.path} has no good row: `omnialpha data check` says why.")
    return report.good


def served(record: Record, tasks: Sequence[str]) -> list[str]:
    """The tasks of a record, without those that are not among `tasks` if there are any."""
    return [name for name in record.tasks() if not tasks or name in tasks]


def check(row: Row, tasks: Sequence[str] = (), deep: bool = False) -> Checked:
    """One row, but for what only the others can tell."""
    record = row.record
    if record is None:
        return Checked(row, (row.fault,))
    reasons: list[str] = []
    sizes: dict[str, Size] = {}
    for part in record.parts():
        try:
            size, alpha = header(part.handle)
            sizes[str(part.handle)] = size
            if part.role is Role.FOREGROUND and not alpha:
                raise InputError(f"{part.handle} has no alpha channel: a foreground needs one.")
            if deep:
                check_picture(part)
        except InputError as error:
            reasons.append(str(error))
    reasons += _refusals(lambda: check_sizes(sizes), record.check_words)
    if not served(record, tasks):
        reasons.append(_useless(record, tasks))
    return Checked(row, tuple(reasons), next(iter(sizes.values()), None))


def _refusals(*checks: Callable[[], None]) -> Iterator[str]:
    for one in checks:
        try:
            one()
        except InputError as error:
            yield str(error)


def _useless(record: Record, tasks: Sequence[str]) -> str:
    if tasks:
        return f"it serves none of {', '.join(tasks)}: add what they need, see `omnialpha tasks`."
    if isinstance(record, LayeredRecord):
        has = ", ".join([*record.pictures, *(f"a caption of the {role}" for role in record.captions)])
        return f"it serves no task, having only {has}: add what one needs, see `omnialpha tasks`."
    return "it is a pair, and of which task is not said: give task = NAME, or --task."


def check_picture(part: RecordPart) -> None:
    """InputError for a picture that cannot be decoded, or not be what its role says."""
    picture = read(part.handle, part.role)
    alpha = picture[3]
    if part.role is Role.FOREGROUND and float(alpha.max()) <= masks.PRESENT:
        raise InputError(f"{part.handle} is empty (alpha 0 everywhere): take the row away.")
    if part.role is Role.FOREGROUND and bool((alpha == 1).all()):
        raise InputError(f"{part.handle} is opaque everywhere: a foreground needs an alpha that cuts it out.")
    if part.role in FLAT and not bool((alpha == 1).all()):
        raise InputError(f"{part.handle} has transparent pixels: a {part.role} has none, flatten it.")
    if part.role in MAPS:
        with error_context(str(part.handle)):
            check_map(picture, part.role)


def header(handle: Handle) -> tuple[Size, bool]:
    """(height, width) of a picture, upright, and whether it has alpha. InputError says what is wrong with the file.

    What only the slow reader knows, or knows better what is wrong with, is read.
    """
    try:
        with _opened(handle) as file, Image.open(file) as image:
            width, height = image.size
            if width * height <= MAX_PIXELS:
                return ((width, height) if _turned(image) else (height, width)), image.has_transparency_data
    except (*DAMAGED, Image.DecompressionBombError):
        pass  # the reader below tells it in one sentence
    picture = read(handle)
    return (int(picture.shape[1]), int(picture.shape[2])), bool((picture[3] < 1).any())


def _turned(image: Image.Image) -> bool:
    """Whether height and width change places as the picture is put upright."""
    if image.format == "TIFF":  # Pillow has turned its size already
        return False
    if image.format == "PNG" and "exif" not in image.info:  # `getexif` would decode it, to look behind the pixels too
        return False
    return bool(image.getexif().get(ORIENTATION, 1) >= 5)


@contextmanager
def _opened(handle: Handle) -> Iterator[IO[bytes]]:
    """A picture's file, of which only what is asked for is read."""
    if isinstance(handle, Path):
        with handle.open("rb") as file:
            yield file
    elif isinstance(handle, Member):
        with handle.shard.open("rb") as file:
            yield ContainerIO(file, handle.offset, handle.size)
    else:
        yield BytesIO(handle.read())


def _batches(items: Iterable[Row], size: int) -> Iterator[list[Row]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def write_manifest(records: Iterable[Record], path: Path) -> None:
    """Records of files as a manifest, their paths relative to it. InputError for those that lie in shards."""
    folder = path.parent.resolve()

    def name(handle: Handle) -> str:
        if not isinstance(handle, Path):
            raise InputError(f'{handle} lies in a shard, which no manifest can name: set bad = "skip", or pack anew.')
        try:
            return Path(os.path.relpath(handle.resolve(), folder)).as_posix()
        except ValueError:  # on another drive
            return str(handle.resolve())

    lines = [json.dumps(record.row(name), ensure_ascii=False) + "\n" for record in records]
    atomic_write(path, "".join(lines).encode())
