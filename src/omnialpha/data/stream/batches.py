"""Batches of examples by number: so many of one task and size, or as many of any as a budget of tokens holds.

A stream of samples gives draws. Without a budget a batch is one draw, of `batch_size` samples that are alike. With one
every draw is one sample, and a batch is several: BLOCK draws after another are put into as few batches as they fit.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import numpy as np

from omnialpha.canvas import Grid, Size, plan
from omnialpha.errors import InputError
from omnialpha.limits import by
from omnialpha.tasks import TASKS, Example, Task

BLOCK = 4096  # draws that are planned at once
STREAM = 0x3C6EF372  # between the numbers that order batches and those that other streams draw with the same seed
SEEN = 28 * 28  # pixels of an input that are a text token to Qwen2.5-VL


@dataclass(frozen=True)
class SampleShape:
    """What a sample is before it is drawn: task, size in pixels, numbers of inputs and targets."""

    task: str
    size: Size
    inputs: int
    targets: int

    @classmethod
    def of(cls, task: Task, size: Size, layers: int) -> SampleShape:
        """With so many pictures in the role that may repeat."""
        numbers = (len(roles) + (layers - 1) * (task.many in roles) for roles in (task.inputs, task.targets))
        return cls(task.name, size, *numbers)


@dataclass(frozen=True)
class Budget:
    """tokens: of the transformer, that a batch has at most. grid, side: of the model; a token is side x side pixels.

    Of text a sample counts as `words` tokens and what the instruction encoder makes of its inputs, `seen` pixels each
    (0: those of the canvas). Text that is longer is not counted: pictures are what fills a sequence. finder: the model
    has a finder, which adds an input to the tasks that have no map.
    """

    tokens: int
    words: int
    grid: Grid
    side: int
    seen: int
    finder: bool = False

    def count(self, shape: SampleShape) -> int:
        """Tokens of a sample; InputError where it alone is more than a batch may have."""
        inputs = shape.inputs + (self.finder and TASKS[shape.task].hinted)
        pictures = inputs + shape.targets
        height, width = plan(shape.size, pictures, self.grid).size
        text = self.words + inputs * ceil((self.seen or height * width) / SEEN)
        made = pictures * (height // self.side) * (width // self.side) + text
        if made > self.tokens:
            raise InputError(
                f"a sample of {shape.task} with {pictures} pictures of {by(shape.size)} px has "
                f"{made} tokens, more than tokens={self.tokens} of a batch: raise tokens, or take smaller sizes."
            )
        return made


def pack(counts: Sequence[int], limit: int) -> list[list[int]]:
    """Indices of `counts` in groups that add up to `limit` at most: the largest first, each where the least is left."""
    groups: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (what is left, group), ascending
    for index in sorted(range(len(counts)), key=lambda k: -counts[k]):
        at = bisect_left(rooms, (counts[index], 0))
        if at < len(rooms):
            room, group = rooms.pop(at)
        else:
            room, group = limit, len(groups)
            groups.append([])
        groups[group].append(index)
        insort(rooms, (room - counts[index], group))
    return groups


class BatchDataset:
    """A stream of samples; a draw depends on the settings and its number alone, and so does a batch on its own.

    What comes of that: a run resumes anywhere, and any number of processes share a stream.
    """

    seed: int
    batch_size: int
    budget: Budget | None

    def draw(self, numbers: Sequence[int]) -> list[Example]:
        """The samples of these draws, one behind the other, with their truths."""
        raise NotImplementedError

    def shape(self, number: int) -> SampleShape:
        """Of the samples of a draw."""
        raise NotImplementedError

    def shapes(self) -> Iterable[SampleShape]:
        """All that can come."""
        raise NotImplementedError

    def batch(self, index: int) -> list[Example]:
        """The examples of batch `index`, with their truths."""
        return self.draw(self.members(index))

    def __getitem__(self, index: int) -> tuple[list[Example], float]:
        """Examples and weight of batch `index`, for a loader."""
        return self.batch(index), self.weight(index)

    def weight(self, index: int) -> float:
        """Of the batch's mean loss, so that each sample counts alike: its samples over what batches have on average."""
        if not self.budget:
            return 1.0
        return len(self.members(index)) * len(self._packed(self._block_of(index))) / BLOCK

    def members(self, index: int) -> Sequence[int]:
        """Numbers of the draws of a batch; within a budget the largest samples come first, so that equal ones meet."""
        if self.budget is None:
            return (index,)
        block = self._block_of(index)
        return self._packed(block)[index - self.begins(block)]

    def begins(self, block: int) -> int:
        """The number of the batch that draw `block * BLOCK` is in. Every block before is planned too, once."""
        if self.budget is None:
            return block * BLOCK
        while len(self._begins) <= block:
            self._begins.append(self._begins[-1] + len(self._packed(len(self._begins) - 1)))
        return self._begins[block]

    def check(self) -> None:
        """InputError for a sample that no batch can hold."""
        if self.budget:
            assert self.batch_size == 1, "within a budget samples are drawn one by one"
            for shape in self.shapes():
                self.budget.count(shape)

    def _block_of(self, index: int) -> int:
        while self._begins[-1] <= index:
            self.begins(len(self._begins))
        return bisect_right(self._begins, index) - 1

    @cached_property
    def _begins(self) -> list[int]:
        return [0]

    @cached_property
    def _plans(self) -> dict[int, list[list[int]]]:
        return {}

    def _packed(self, block: int) -> list[list[int]]:
        """The draws of each batch of a block, in a drawn order. The last plans are kept."""
        if block not in self._plans:
            assert self.budget
            first = block * BLOCK
            counts = [self.budget.count(self.shape(number)) for number in range(first, first + BLOCK)]
            groups = pack(counts, self.budget.tokens)
            order = np.random.default_rng((self.seed, block, STREAM)).permutation(len(groups))
            while len(self._plans) > 1:
                del self._plans[min(self._plans)]
            self._plans[block] = [[first + k for k in groups[at]] for at in order]
        return self._plans[block]
