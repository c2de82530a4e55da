"""Where records come from: manifests, shards and Hugging Face `datasets`, by a recipe's [[datasets]]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from omnialpha.data.records import shards
from omnialpha.data.records.pictures import Size
from omnialpha.data.records.records import INPUTS, OUTPUTS, Record, parse
from omnialpha.errors import InputError
from omnialpha.tasks import MAPS, Role
from omnialpha.tasks import task as find_task

HF = "hf:"
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` writes
SEVERAL = (str(Role.FOREGROUND), INPUTS, OUTPUTS)
Found = tuple[str, Any, Path | None]  # of a row its place, its values, and the folder that its paths begin in
PICTURES = (*SEVERAL, str(Role.BACKGROUND), str(Role.COMPOSITE), *map(str, MAPS))


@dataclass(frozen=True)
class DatasetSettings:
    """One of a recipe's [[datasets]].

    path: a manifest (.jsonl), a shard (.tar), a folder or a pattern of them, or hf:NAME[#SPLIT]. root: where the paths
    in a manifest begin; its own folder if left out. task: what pairs are of. tasks: the only ones that its records are
    used for. columns: other names of keys, such as {"captions.foreground" = "text"}; the rest is then not read.
    starts, ends: the part of its rows, as in a slice. sample: so many rows, or a share below 1, drawn by the seed.
    weight: how often it is drawn, relative to the others; by size where no dataset has one, `repeat` times its size.
    bad: what to do about rows that `omnialpha data check` reports: stop before training, skip them, or do not look.
    """

    path: str
    root: str = ""
    task: str = ""
    tasks: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    starts: int = 0
    ends: int | None = None
    repeat: float = 1.0
    sample: float | None = None
    weight: float | None = None
    bad: Literal["stop", "skip", "ignore"] = "stop"

    def __post_init__(self) -> None:
        for name in filter(None, (self.task, *self.tasks)):
            find_task(name)
        if self.sample is not None and not (0 < self.sample < 1 or self.sample == int(self.sample) >= 1):
            raise InputError(f"sample={self.sample} of {self.path}: give a number of rows, or a share between 0 and 1.")
        if self.repeat <= 0 or (self.weight is not None and self.weight < 0):
            raise InputError(f"{self.path} has repeat={self.repeat}, weight={self.weight}: use positive numbers.")
        if self.weight is not None and self.repeat != 1:
            raise InputError(f"{self.path} has both weight and repeat, and repeat is a weight by size: give one.")


@dataclass(frozen=True)
class Row:
    """A row of a dataset.

    Attributes:
        number: from 1, over the whole dataset.
        place: for people, such as rows.jsonl:12.
        tasks: that the dataset's settings let its record serve.
        reasons: why it is bad; none: it is good, as far as it has been looked at.
        size: (height, width) of its pictures, where that is known.
    """

    number: int
    place: str
    ident: str = ""
    record: Record | None = None
    tasks: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    size: Size | None = None


def rows(settings: DatasetSettings, seed: int = 0) -> list[Row]:
    """The rows of a dataset, in its order, that its settings leave. No picture is opened.

    InputError for a source that cannot be read as a whole; the mistake of a row is one of its own `reasons`.
    """
    found: list[Found] = []
    if settings.path.startswith(HF):
        found += _hugging_face(settings)
    else:
        for file in sources(settings.path):
            found += _shard(file) if file.suffix == ".tar" else _manifest(file, settings.root)
    if not found:
        raise InputError(f"{settings.path} has no rows: give a dataset that does.")
    numbers: Sequence[int] = range(len(found))[settings.starts : settings.ends]
    if settings.sample is not None:
        count = int(settings.sample) if settings.sample >= 1 else round(settings.sample * len(numbers))
        drawn = np.random.default_rng(seed).permutation(len(numbers))[:count]
        numbers = [numbers[i] for i in sorted(drawn)]
    return [_row(n + 1, *found[n], settings) for n in numbers]


def _row(number: int, place: str, values: Any, folder: Path | None, settings: DatasetSettings) -> Row:
    if settings.columns and isinstance(values, dict) and not settings.path.startswith(HF):
        values = renamed(values, settings.columns)
    ident = str(values.get("id", "")) if isinstance(values, dict) else ""
    try:
        record = parse(values, folder, settings.task)
    except InputError as error:
        return Row(number, place, ident, reasons=(str(error),))
    tasks = tuple(name for name in record.tasks() if not settings.tasks or name in settings.tasks)
    return Row(number, place, ident, record, tasks)


def renamed(values: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """The keys of `columns` alone, from the columns that they name; "captions.full" is a key in captions."""
    made: dict[str, Any] = {}
    for key, column in columns.items():
        value = values.get(column)
        if value is not None:
            table, _, inner = key.rpartition(".")
            (made.setdefault(table, {}) if table else made)[inner] = value
    return made


def sources(path: str) -> list[Path]:
    """The manifests and shards that a path, a folder or a pattern stands for."""
    where = Path(path).expanduser()
    if where.is_file():
        files = [where]
    elif where.is_dir():
        files = sorted([*where.glob("*.jsonl"), *where.glob("*.tar")])
    else:
        anchor = Path(where.anchor) if where.is_absolute() else Path()
        files = sorted(anchor.glob(str(where.relative_to(anchor)))) if any(c in path for c in "*?[") else []
    if not files:
        raise InputError(f"there is no dataset {path}: give a .jsonl or .tar file, or a folder or pattern of them.")
    for file in files:
        if file.suffix not in (".jsonl", ".tar"):
            raise InputError(f"{file} is no dataset: give a manifest (.jsonl) or shards (.tar).")
    return files


def _manifest(file: Path, root: str) -> Iterator[Found]:
    folder = Path(root).expanduser() if root else file.parent
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read ({error}): give a JSONL file in UTF-8.") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{file.name}:{number}", shards.json_or_text(line), folder


def _shard(file: Path) -> Iterator[Found]:
    for key, values in shards.rows(file):
        yield f"{file.name}:{key}", values, None


# ---- Hugging Face ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A picture in a Hugging Face dataset: of a row and a column, and there the one of that place in its list."""

    source: str
    row: int
    column: str
    place: int | None = None

    suffix = ".img"  # a picture's bytes tell its format

    def read(self) -> bytes:
        value = _table(self.source)[self.row : self.row + 1][self.column].to_pylist()[0]
        value = value if self.place is None else value[self.place]
        return value["bytes"] or Path(value["path"]).read_bytes()

    def __str__(self) -> str:
        return f"{self.source}:{self.row}.{self.column}{'' if self.place is None else f'[{self.place}]'}"


@lru_cache(maxsize=8)
def _table(source: str) -> Any:
    """The rows of hf:NAME[#SPLIT] as Arrow has them, from a folder of `save_to_disk` or by `load_dataset`."""
    try:
        import datasets
    except ImportError:
        raise InputError(f"{source} needs the package `datasets`: pip install datasets.") from None
    name, _, split = source.removeprefix(HF).partition("#")
    try:
        folder = Path(name).expanduser()
        if any((folder / file).is_file() for file in SAVED):
            found = datasets.load_from_disk(str(folder))
            found = found[split or "train"] if isinstance(found, datasets.DatasetDict) else found
        else:
            found = datasets.load_dataset(name, split=split or "train")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{source} cannot be opened ({error}): check its name and split.") from error
    return found.with_format("arrow")


def _hugging_face(settings: DatasetSettings) -> Iterator[Found]:
    table = _table(settings.path)
    columns = settings.columns or {name: name for name in table.column_names}
    for key, column in columns.items():
        if column not in table.column_names:
            raise InputError(f"{settings.path} has no column {column!r} for {key}: it has {table.column_names}.")
    words = {key: column for key, column in columns.items() if key not in PICTURES}
    texts = table.select_columns([*words.values()])[:].to_pylist() if words else [{}] * len(table)
    lists = {key: _lengths(table, columns[key]) for key in columns if key in PICTURES}
    for number, text in enumerate(texts):
        values = {"id": number} | renamed(text, words)
        for key, lengths in lists.items():
            count = lengths[number]
            if count is not None:
                cell = Cell(settings.path, number, columns[key])
                several = [Cell(settings.path, number, columns[key], k) for k in range(max(count, 0))]
                values[key] = cell if count < 0 else several
        yield f"row {number}", values, None


def _lengths(table: Any, column: str) -> list[int | None]:
    """Pictures in each row of a column: of a list its length, -1 for one that is no list, None for none."""
    import pyarrow.compute as compute
    import pyarrow.types as types

    values = table.select_columns([column])[:][column]
    if types.is_list(values.type) or types.is_large_list(values.type):
        return compute.list_value_length(values).to_pylist()  # type: ignore[no-any-return]
    return [-1 if valid else None for valid in values.is_valid().to_pylist()]
