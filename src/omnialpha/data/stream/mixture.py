"""Batches of newly composed scenes, each of a task that is drawn by its weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from omnialpha.data.scene import to_example
from omnialpha.data.stream.batches import BatchDataset, Budget, SampleShape
from omnialpha.data.synthetic.bank import Bank
from omnialpha.data.synthetic.scenes import compose
from omnialpha.tasks import TASKS, Example, Role, Task

SEVERAL = ("decompose_auto", "foreground_to_full", "foreground_to_background")  # have up to two objects


@dataclass(frozen=True)
class Mixture(BatchDataset):
    """A deterministic stream: batch i depends on (seed, i) alone, so a run resumes anywhere with the same batches."""

    bank: Bank
    weights: Mapping[str, float]
    sizes: Sequence[tuple[int, int]]  # (height, width); one per draw, drawn evenly
    batch_size: int
    seed: int
    prompt_dropout: float = 0.0
    budget: Budget | None = None

    def __post_init__(self) -> None:
        self.check()

    def draw(self, numbers: Sequence[int]) -> list[Example]:
        return [example for number in numbers for example in self._draw(number)]

    def shape(self, number: int) -> SampleShape:
        task, size, generator = self._begin(number)
        return SampleShape.of(task, size, _objects(task, generator))

    def shapes(self) -> Iterator[SampleShape]:
        for name in (name for name, weight in self.weights.items() if weight):
            for size in self.sizes:
                yield SampleShape.of(TASKS[name], size, 2 if name in SEVERAL else 1)

    def _begin(self, number: int) -> tuple[Task, tuple[int, int], torch.Generator]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        names = list(self.weights)
        chosen = torch.multinomial(torch.tensor([self.weights[n] for n in names]), 1, generator=generator)
        size = self.sizes[int(torch.randint(len(self.sizes), (1,), generator=generator))]
        return TASKS[names[int(chosen)]], size, generator

    def _draw(self, number: int) -> list[Example]:
        task, size, generator = self._begin(number)
        made = examples(task, self.bank, self.batch_size, size, generator)
        dropped = torch.rand(self.batch_size, generator=generator) < self.prompt_dropout
        return [replace(e, instruction="") if drop else e for e, drop in zip(made, dropped, strict=True)]


def examples(task: Task, bank: Bank, count: int, size: tuple[int, int], generator: torch.Generator) -> list[Example]:
    """`count` examples of a task with their truths, from newly composed scenes of (height, width)."""
    objects = _objects(task, generator)
    alone = not task.inputs  # made from text alone: there is nothing that it must fit into
    scenes = compose(bank, count, objects, size, generator, apart=task.text is not None, framed=alone)
    wordings = torch.randint(1 << 16, (count,), generator=generator).tolist()
    about = (0,) if task.text is Role.FOREGROUND else None  # a text names one
    return [
        to_example(replace(scene, subject=about), task, generator, wording)
        for scene, wording in zip(scenes, wordings, strict=True)
    ]


def _objects(task: Task, generator: torch.Generator) -> int:
    """Two objects where a text chooses between them, sometimes several where the task allows many; else one."""
    draw = float(torch.rand(1, generator=generator))
    if task.name == "matting_text":
        return 2 if draw < 0.8 else 1
    if task.name in SEVERAL:
        return 2 if draw < 0.25 else 1
    return 1
