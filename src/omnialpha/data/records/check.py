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
AT_ONCE = 16 * WORKERS  # rows between two reports of progress
FLAT = (Role.BACKGROUND, Role.COMPOSITE, Role.FULL)


@dataclass(frozen=True)
class DatasetReport:
    """What was found in one dataset. tasks: how many good rows serve each."""

    path: str
    rows: tuple[Row, ...]
    tasks: dict[str, int]

    @property
    def bad(self) -> list[Row]:
        return [row for row in self.rows if row.reasons]

    @property
    def good(self) -> list[Row]:
        return [row for row in self.rows if not row.reasons]

    def data(self) -> dict[str, Any]:
        """The report in plain types."""
        bad = [{"row": row.number, "place": row.place, "id": row.ident, "reasons": row.reasons} for row in self.bad]
        return {"source": self.path, "rows": len(self.rows), "good": len(self.good), "bad": bad, "tasks": self.tasks}


def examine(
    settings: DatasetSettings,
    seed: int = 0,
    deep: bool = False,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> DatasetReport:
    """Every row of a dataset. deep: all pictures are decoded, else their headers are read. watch: rows done, of all."""
    found = rows(settings, seed)
    with ThreadPoolExecutor(WORKERS) as pool:
        for first in range(0, len(found), AT_ONCE):
            part = slice(first, first + AT_ONCE)
            found[part] = pool.map(lambda row: check(row, settings.tasks, deep), found[part])
            watch(min(part.stop, len(found)), len(found))
    first_place: dict[str, str] = {}
    for k, row in enumerate(found):  # in the order of the rows, so that the first of two is the good one
        before = first_place.setdefault(row.ident, row.place) if row.ident else row.place
        if before != row.place:
            found[k] = replace(row, reasons=(*row.reasons, f"its id is that of {before}: give it one of its own."))
    counts = Counter(name for row in found if not row.reasons for name in row.tasks)
    return DatasetReport(settings.path, tuple(found), {name: counts[name] for name in TASKS if counts[name]})


def load(settings: DatasetSettings, seed: int = 0) -> list[Row]:
    """The rows of a dataset that are trained on. InputError where one is bad and its settings do not skip it."""
    if settings.bad == "ignore":
        return [row for row in rows(settings, seed) if row.record]
    report = examine(settings, seed)
    if report.bad and settings.bad == "stop":
        worst = report.bad[0]
        raise InputError(
            f"{settings.path} has {len(report.bad)} bad row(s) of {len(report.rows)}, such as {worst.place}: "
            f'{worst.reasons[0]} `omnialpha data check` lists all, bad = "skip" leaves them out.'
        )
    if not report.good:
        raise InputError(f"{settings.path} has no good row: `omnialpha data check` says why.")
    return report.good


def check(row: Row, tasks: Sequence[str] = (), deep: bool = False) -> Row:
    """One row, but for what only the others can tell."""
    record = row.record
    if record is None:
        return row
    reasons: list[str] = []
    sizes: dict[str, Size] = {}

    def try_out(refuses: Callable[[], None]) -> None:
        try:
            refuses()
        except InputError as error:
            reasons.append(str(error))

    for part in record.parts():
        try_out(lambda part=part: _check_part(part, sizes, deep))  # type: ignore[misc]
    try_out(lambda: check_sizes(sizes))
    try_out(record.check_words)
    if not row.tasks:
        reasons.append(_useless(record, tasks))
    return replace(row, reasons=tuple(reasons), size=next(iter(sizes.values()), None))


def _check_part(part: RecordPart, sizes: dict[str, Size], deep: bool) -> None:
    """InputError for a picture that is not what its role says. Its size goes into `sizes`."""
    size, alpha = header(part.handle)
    sizes[str(part.handle)] = size
    if part.role is Role.FOREGROUND and not alpha:
        raise InputError(f"{part.handle} has no alpha channel: a foreground needs one.")
    if deep:
        check_picture(part)


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
