"""The mixture of recorded datasets: which rows are trained on when, and as which task, by the number of a batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from omnialpha.data.records.check import header, load
from omnialpha.data.records.pictures import Size
from omnialpha.data.records.records import PairRecord, Record
from omnialpha.data.stream.batches import BLOCK, BatchDataset, Budget, SampleShape
from omnialpha.data.stream.datasets import DatasetSettings, Row
from omnialpha.errors import InputError
from omnialpha.tasks import TASKS, Example
from omnialpha.tasks import task as find_task

STREAM = 0x51ED270B  # between the numbers that choose sources and those that other streams draw with the same seed


@dataclass(frozen=True)
class Stage:
    """A point of a curriculum: from this step on, these weights of the tasks, on the way to those of the next stage."""

    step: int
    tasks: dict[str, float]


@dataclass(frozen=True)
class RecordGroup:
    """Rows of a dataset that serve the same tasks with as many pictures, at the same sizes: any of them can be
    in a draw with any other. weight: of each row.
    """

    records: tuple[Record, ...]
    tasks: tuple[str, ...]
    sizes: tuple[Size, ...]
    weight: float
    skip: bool = False  # a row that fails as it is drawn gives way to the next

    @property
    def total(self) -> float:
        return self.weight * len(self.records)


@dataclass(frozen=True)
class Stream(BatchDataset):
    """Draw i depends on (settings, i) alone, so that a run resumes anywhere and any number of processes share it.

    A draw has one task, one size and rows of one source. The task is drawn by its weight, the source among those that
    serve it by its own; a source shows every row once, in a drawn order, before it shows one again.
    weights: of the tasks. stages: weights by step instead, where a step takes `batches_a_step`; between two stages they
    change linearly, within a budget block by block.
    """

    sources: tuple[RecordGroup, ...]
    weights: Mapping[str, float]
    sizes: Sequence[Size]
    batch_size: int
    seed: int
    prompt_dropout: float = 0.0
    stages: tuple[Stage, ...] = ()
    batches_a_step: int = 1
    budget: Budget | None = None

    def __post_init__(self) -> None:
        assert self.sources and self.batch_size > 0 and self.seed >= 0 and self.batches_a_step > 0
        for stage in self.timetable:
            check_weights(stage.tasks, {name for source in self.sources for name in source.tasks if source.total})
        steps = [stage.step for stage in self.timetable]
        if steps != sorted(set(steps)):
            raise InputError(
                f"the curriculum has its stages at steps {steps}: let every one come after the one before."
            )
        self.check()

    def draw(self, numbers: Sequence[int]) -> list[Example]:
        return [example for number in numbers for example in self._examples(number)]

    def shape(self, number: int) -> SampleShape:
        task, place, _ = self.plan(number)
        return self._shape(task, place, self._begin(number, place)[0])

    def shapes(self) -> Iterator[SampleShape]:
        wanted = {name for stage in self.timetable for name, weight in stage.tasks.items() if weight}
        for place, source in enumerate(self.sources):
            for name in (name for name in source.tasks if name in wanted and source.total):
                for size in source.sizes:
                    yield self._shape(name, place, size)

    def identities(self) -> set[tuple[str, str]]:
        """Id and first picture of every record."""
        return {(one.id, str(one.parts()[0].handle)) for source in self.sources for one in source.records}

    def plan(self, index: int) -> tuple[str, int, int]:
        """Of a draw: its task, the number of its source, and how many draws that source has given before."""
        block, place = divmod(index, BLOCK)
        tasks, sources, turns = self._block(block)
        return self.names[tasks[place]], int(sources[place]), int(turns[place])

    def row(self, place: int, number: int) -> Record:
        """What comes at position `number` of a source's rows, epoch after epoch."""
        records = self.sources[place].records
        epoch, at = divmod(number, len(records))
        return records[_order(self.seed, place, epoch, len(records))[at]]

    @cached_property
    def timetable(self) -> tuple[Stage, ...]:
        return self.stages or (Stage(0, dict(self.weights)),)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in TASKS if any(name in stage.tasks for stage in self.timetable))

    def proportions(self, steps: NDArray[np.int64]) -> NDArray[np.float64]:
        """Shares of the tasks, (N, len(names)), at each of N steps."""
        rows = np.array([[stage.tasks.get(name, 0.0) for name in self.names] for stage in self.timetable])
        rows = rows / rows.sum(1, keepdims=True)
        at = [stage.step for stage in self.timetable]
        return np.stack([np.interp(steps, at, column) for column in rows.T], axis=1)

    # ---- what is drawn ----------------------------------------------------------------------------------------------

    def _begin(self, number: int, place: int) -> tuple[Size, torch.Generator]:
        """The size of a draw, and the generator of all that is drawn for it from there on."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        sizes = self.sources[place].sizes
        return sizes[int(torch.randint(len(sizes), (1,), generator=generator))], generator

    def _shape(self, task: str, place: int, size: Size) -> SampleShape:
        record = self.sources[place].records[0]  # the others are like it
        if isinstance(record, PairRecord):
            return SampleShape(task, size, len(record.inputs), len(record.outputs))
        return SampleShape.of(find_task(task), size, record.layers)

    def _examples(self, number: int) -> Iterator[Example]:
        """The samples of a draw."""
        task, place, turn = self.plan(number)
        size, generator = self._begin(number, place)
        seeds = torch.randint(1 << 62, (self.batch_size,), generator=generator).tolist()
        dropped = (torch.rand(self.batch_size, generator=generator) < self.prompt_dropout).tolist()
        for k, (seed, drop) in enumerate(zip(seeds, dropped, strict=True)):
            made = self._example(task, place, turn * self.batch_size + k, seed, size)
            yield replace(made, instruction="") if drop else made

    def _example(self, task: str, place: int, row: int, seed: int, size: Size) -> Example:
        """Of a row, or of the first after it that can be read, where those that cannot are skipped."""
        source = self.sources[place]
        for tried in range(len(source.records)):
            try:
                return self.row(place, row + tried).example(task, torch.Generator().manual_seed(seed), size)
            except InputError as error:
                if not source.skip:
                    raise
                warnings.warn(f"skipped: {error}", stacklevel=2)
        raise InputError(f"no row of {len(source.records)} serves {task}: see `omnialpha data check --deep`.")

    @cached_property
    def _blocks(self) -> dict[int, tuple[NDArray[np.int64], ...]]:
        return {}

    def _block(self, block: int) -> tuple[NDArray[np.int64], ...]:
        """Of BLOCK draws: their tasks, their sources, and the turns of those, counted from the first draw of all.

        Every block before is drawn too, which takes a few milliseconds each, once.
        """
        for b in range(len(self._blocks), block + 1):
            before = self._blocks[b - 1][3] if b else np.zeros(len(self.sources), np.int64)
            self._blocks[b] = self._draw(b, before)
        return self._blocks[block][:3]

    def _draw(self, block: int, before: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        draws = np.random.default_rng((self.seed, block, STREAM)).random((BLOCK, 2))
        batches = self.begins(block) + (0 if self.budget else 1) * np.arange(BLOCK)
        steps = batches // self.batches_a_step
        tasks = _choose(self.proportions(steps), draws[:, 0])
        sources = _choose(self._shares[tasks], draws[:, 1])
        turns = np.empty(BLOCK, np.int64)
        after = before.copy()
        for place in range(len(self.sources)):
            mine = sources == place
            count = int(mine.sum())
            turns[mine] = before[place] + np.arange(count)
            after[place] += count
        return tasks, sources, turns, after

    @cached_property
    def _shares(self) -> NDArray[np.float64]:
        """Of each task (rows), the shares of the sources."""
        rows = np.array([[s.total * (name in s.tasks) for s in self.sources] for name in self.names])
        return rows / rows.sum(1, keepdims=True).clip(1e-300)


def _choose(shares: NDArray[np.float64], draws: NDArray[np.float64]) -> NDArray[np.int64]:
    """The column of each row (N, K) that its draw in [0, 1) falls on."""
    edges = shares.cumsum(1)
    return (draws[:, None] * edges[:, -1:] >= edges).sum(1).astype(np.int64)


@lru_cache(maxsize=32)
def _order(seed: int, place: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, place, epoch, STREAM)).permutation(count)


def check_weights(weights: Mapping[str, float], able: set[str]) -> None:
    """InputError for weights of tasks that cannot be drawn by."""
    for name, weight in weights.items():
        find_task(name)
        if not 0 <= weight < float("inf"):
            raise InputError(f"{name} has the weight {weight}: use 0 or more.")
        if weight and name not in able:
            raise InputError(f"no record serves {name}: give it weight 0, or a dataset that serves it.")
    if not sum(weights.values()) > 0:
        raise InputError("no task has a weight above 0: give one.")


# ---- from settings --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StreamSettings:
    """Of a recipe. tasks: weights, all that the records serve alike if there are none. curriculum: weights by step
    instead. temperature: datasets without weights are drawn by size ** (1 / temperature), so that more than 1 favours
    the small. buckets: "nearest" keeps a row at the size of the nearest shape, "any" cuts it to every size.
    """

    datasets: list[DatasetSettings]
    tasks: dict[str, float] = field(default_factory=dict)
    curriculum: list[Stage] = field(default_factory=list)
    temperature: float = 1.0
    buckets: Literal["nearest", "any"] = "nearest"


def open_stream(
    settings: StreamSettings,
    sizes: Sequence[Size],
    batch_size: int,
    seed: int,
    prompt_dropout: float = 0.0,
    batches_a_step: int = 1,
    budget: Budget | None = None,
) -> Stream:
    """The stream of a recipe's datasets, every row of which is checked first. InputError says what is wrong."""
    if settings.tasks and settings.curriculum:
        raise InputError("the recipe has both tasks and a curriculum: give one of them.")
    if not settings.datasets:
        raise InputError("the recipe has no [[datasets]]: give one.")
    loaded = [load(one, seed) for one in settings.datasets]
    weights = weigh(settings, [len(rows) for rows in loaded])
    sources: list[RecordGroup] = []
    for one, rows, weight in zip(settings.datasets, loaded, weights, strict=True):
        groups: dict[tuple[tuple[str, ...], int, int, tuple[Size, ...]], list[Record]] = {}
        for row in (row for row in rows if row.tasks):
            assert row.record
            inputs = len(row.record.inputs) if isinstance(row.record, PairRecord) else 0  # of one task not as many
            key = (row.tasks, row.record.layers, inputs, _bucket(row, sizes, settings.buckets))
            groups.setdefault(key, []).append(row.record)
        sources += [
            RecordGroup(tuple(records), names, bucket, weight / len(rows), one.bad == "skip")
            for (names, _, _, bucket), records in groups.items()
        ]
    able = {name for source in sources for name in source.tasks if source.total}
    tasks = settings.tasks or {name: 1.0 for name in TASKS if name in able}
    stages = tuple(settings.curriculum)
    return Stream(tuple(sources), tasks, sizes, batch_size, seed, prompt_dropout, stages, batches_a_step, budget)


def weigh(settings: StreamSettings, counts: Sequence[int]) -> list[float]:
    """The weight of each dataset: as given, or by its rows. InputError where some are given and others not."""
    given = [one.weight for one in settings.datasets if one.weight is not None]
    if settings.temperature <= 0:
        raise InputError(f"temperature={settings.temperature} is out of range: use a number above 0.")
    if not given:
        sizes = [count * one.repeat for one, count in zip(settings.datasets, counts, strict=True)]
        return [size ** (1 / settings.temperature) for size in sizes]
    if len(given) < len(settings.datasets):
        raise InputError(f"{len(given)} of {len(settings.datasets)} datasets have a weight: give all one, or none.")
    if settings.temperature != 1:
        raise InputError("the datasets have weights, so a temperature says nothing: leave one of the two out.")
    if not sum(given) > 0:
        raise InputError("no dataset has a weight above 0: give one.")
    return given


def _bucket(row: Row, sizes: Sequence[Size], how: str) -> tuple[Size, ...]:
    """The sizes that a row is shown at; several of one shape stay a choice."""
    shapes = {height / width for height, width in sizes}
    if how == "any" or len(shapes) == 1:
        return tuple(sizes)
    assert row.record
    height, width = row.size or header(row.record.parts()[0].handle)[0]
    near = min(sorted(shapes), key=lambda shape: abs(np.log(shape * width / height)))
    return tuple(size for size in sizes if size[0] / size[1] == near)
