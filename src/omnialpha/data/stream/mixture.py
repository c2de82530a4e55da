"""Which task is trained when, and how a layered record becomes an example: one record serves every task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from omnialpha import masks
from omnialpha.data.stream.batches import Batch, Budget, Draws, Shape
from omnialpha.data.synthetic.bank import Bank
from omnialpha.data.synthetic.scenes import Scenes, compose
from omnialpha.tasks import MAPS, TASKS, Role, Task

SEVERAL = ("decompose_auto", "foreground_to_full", "foreground_to_background")  # have up to two objects


@dataclass(frozen=True)
class Mixture(Draws):
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

    def draw(self, numbers: Sequence[int]) -> Batch:
        made = [self._draw(number) for number in numbers]
        return Batch([e for one in made for e in one.examples], [t for one in made for t in one.targets])

    def shape(self, number: int) -> Shape:
        task, size, generator = self._begin(number)
        return Shape.of(task, size, _objects(task, generator))

    def shapes(self) -> Iterator[Shape]:
        for name in (name for name, weight in self.weights.items() if weight):
            for size in self.sizes:
                yield Shape.of(TASKS[name], size, 2 if name in SEVERAL else 1)

    def _begin(self, number: int) -> tuple[Task, tuple[int, int], torch.Generator]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        names = list(self.weights)
        chosen = torch.multinomial(torch.tensor([self.weights[n] for n in names]), 1, generator=generator)
        size = self.sizes[int(torch.randint(len(self.sizes), (1,), generator=generator))]
        return TASKS[names[int(chosen)]], size, generator

    def _draw(self, number: int) -> Batch:
        task, size, generator = self._begin(number)
        made = examples(task, self.bank, self.batch_size, size, generator)
        dropped = torch.rand(self.batch_size, generator=generator) < self.prompt_dropout
        kept = [replace(e, instruction="") if drop else e for e, drop in zip(made.examples, dropped, strict=True)]
        return Batch(kept, made.targets)


def examples(task: Task, bank: Bank, count: int, size: tuple[int, int], generator: torch.Generator) -> Batch:
    """`count` examples of a task with their true targets, from newly composed scenes."""
    objects = _objects(task, generator)
    scenes = compose(bank, count, objects, size, generator, apart=task.text is not None)
    wordings = torch.randint(1 << 16, (count,), generator=generator).tolist()
    made, targets = [], []
    for b in range(count):
        pictures = _pictures(task, scenes, b, generator)
        prompt = {None: None, Role.FOREGROUND: scenes.captions[b][0], Role.BACKGROUND: scenes.scene_captions[b]}.get(
            task.text, scenes.full_caption(b)
        )
        layers = objects + 1 if task.name == "decompose_auto" else None
        made.append(task.example(pictures, prompt=prompt, layers=layers, size=size, wording=wordings[b]))
        targets.append(_targets(made[-1].targets, scenes, b))
    return Batch(made, targets)


def _objects(task: Task, generator: torch.Generator) -> int:
    """Two objects where a text chooses between them, sometimes several where the task allows many; else one."""
    draw = float(torch.rand(1, generator=generator))
    if task.name == "matting_text":
        return 2 if draw < 0.8 else 1
    if task.name in SEVERAL:
        return 2 if draw < 0.25 else 1
    return 1


def _pictures(task: Task, scenes: Scenes, b: int, generator: torch.Generator) -> dict[Role, Tensor | list[Tensor]]:
    """The task's inputs, each taken or derived from record b."""
    return {role: _picture(role, task, scenes, b, generator) for role in task.inputs}


def _picture(role: Role, task: Task, scenes: Scenes, b: int, generator: torch.Generator) -> Tensor | list[Tensor]:
    if role is Role.COMPOSITE:
        return scenes.composite[b]
    if role is Role.BACKGROUND:
        return scenes.background[b]
    if role is Role.FOREGROUND:
        return list(scenes.layers[b])
    assert role in MAPS
    return masks.as_picture(map_of(role, scenes.layers[b, 0, 3], generator))


def map_of(role: Role, alpha: Tensor, generator: torch.Generator) -> Tensor:
    """The map of a role, (H, W) in [0, 1], from a true alpha; radius drawn as in AlphaLayers."""
    if role is Role.ALPHA:
        return alpha
    if role is Role.PRECISE:
        return masks.precise(alpha / alpha.max())  # a see-through layer has no solid part but its most opaque one
    radius = masks.draw_radius(alpha.shape[0], alpha.shape[1], generator)
    return masks.trimap(alpha, radius) if role is Role.TRIMAP else masks.rough(alpha, radius)


def _targets(roles: Sequence[Role], scenes: Scenes, b: int) -> Tensor:
    """True layers (m, 4, H, W) for these roles; the k-th foreground asked for is the k-th layer from the back."""
    fronts = iter(scenes.layers[b])
    made = {Role.BACKGROUND: scenes.background[b], Role.FULL: scenes.composite[b]}
    return torch.stack([next(fronts) if role is Role.FOREGROUND else made[role] for role in roles])
