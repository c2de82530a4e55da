"""The suite: a model and its peers on held-out layers, all categories, a row of figures for each picture.

"default" is what a user gets; "raw" is the model's own picture, without what `fidelity` puts back from the input.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.evaluation.datasets import heldout
from omnialpha.evaluation.datasets.heldout import HeldOut, Source
from omnialpha.evaluation.methods.method import Method, identity_of
from omnialpha.evaluation.reconstruction import digest
from omnialpha.evaluation.reports.report import Row, append_row, read_rows
from omnialpha.files import sha256
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import Example

BATCH = 16  # pictures that are made, scored and kept together
ROWS = "rows.jsonl"
EDITION = 1  # of the figures: rows of another one are made again

Figures = list[Row]  # of each picture: name -> number; X_sum and X_count are pooled, see `suite_figures`


class Scenes:
    """A model and what it is asked about: `ones` with one object, `twos` with two that stand apart."""

    def __init__(self, model: OmniAlpha, source: Source, n: int, seed: int) -> None:
        if n < 1:
            raise InputError(f"n={n} scenes cannot be measured: use 1 or more.")
        self.model, self.source, self.n, self.seed, self.size = model, source, n, seed, model.native_size()

    @cached_property
    def ones(self) -> HeldOut:
        return heldout.draw(self.source, self.n, self.size, self.seed)

    @cached_property
    def twos(self) -> HeldOut:
        return heldout.draw(self.source, self.n, self.size, self.seed, objects=2)


@dataclass(frozen=True)
class Contestant:
    """A model or a peer. names: of its answers, of which it may have several at once. make: examples and seeds -> for
    each example its answers (len(names), m, 4, H, W).
    """

    names: tuple[str, ...]
    make: Callable[[Sequence[Example], Sequence[int]], list[Tensor]]
    does: Callable[[str], bool]
    identity: str
    told: str = ""
    batch: int = 1
    is_model: bool = False


def of_model(model: OmniAlpha, batch: int = BATCH) -> Contestant:
    """One sampling of every example, decoded in both ways."""

    def make(examples: Sequence[Example], seeds: Sequence[int]) -> list[Tensor]:
        steps: list[Any] = []
        stacks = model.run(examples, seed=seeds, on_step=lambda *last: steps.append(last))
        step, cond = steps[-1]
        pairs = zip(stacks, model.decode(step.x, cond, raw=True), strict=True)
        return [
            torch.stack([torch.stack([layer.rgba for layer in stack]) for stack in pair]).clamp(0, 1) for pair in pairs
        ]

    name, able = model.card.name, model.card.tasks
    weights = identity_of(model.parts) if model.parts else digest(model)
    names = (f"{name}, default", f"{name}, raw")
    told = f"{weights} {model.device.type}"
    return Contestant(names, make, lambda task: not able or task in able, told, batch=batch, is_model=True)


def of_method(method: Method) -> Contestant:
    def make(examples: Sequence[Example], seeds: Sequence[int]) -> list[Tensor]:
        return [layers[None] for layers in method.make(examples, seeds)]

    return Contestant((method.name,), make, method.does, method.identity, method.told, method.batch)


@dataclass(frozen=True)
class Part:
    """Examples of one task, and how answers to them are scored. told: what an example gives, in words.

    score: which pictures, and answers (B, m, 4, H, W) -> figures of each. references: figures that need the truth, and
    no method, by name.
    best: the figure that ranks pictures, "+" before it where more is better; "" for none. models, peers: who takes
    part.
    """

    name: str
    category: str
    task: str
    told: str
    examples: Sequence[Example] = ()
    score: Callable[[range, Tensor], Figures] = lambda which, answers: []
    references: Mapping[str, Callable[[], Figures]] = field(default_factory=dict)
    best: str = ""
    models: bool = True
    peers: bool = True

    def admits(self, one: Contestant) -> bool:
        return bool(self.examples) and (self.models if one.is_model else self.peers) and one.does(self.task)


@dataclass
class Suite:
    """What is asked of whom. Whatever a contestant has finished of a part is kept in `out`, and is not done again."""

    scenes: Scenes
    parts: Sequence[Part]
    contestants: Sequence[Contestant]
    out: Path

    def __post_init__(self) -> None:
        names = [name for one in self.contestants for name in one.names]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise InputError(f"two methods are called {twice!r}: give each only once.")
        scenes = self.scenes
        model = next(one for one in self.contestants if one.is_model)
        shared = [EDITION, scenes.source.about, _content(scenes.source), scenes.n, scenes.seed, scenes.size]
        self.shared = sha256(json.dumps(shared))
        self.reference = model.identity  # of what is said of the truth, or of the model's own autoencoder
        self.out.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        """Pictures to make, those of finished parts too."""
        return sum(len(part.examples) for part in self.parts for one in self.contestants if part.admits(one))

    def rows(self, step: Callable[[str, int], None] = lambda part, pictures: None) -> Iterator[Row]:
        """All rows, a part after the other. step: told which part, and how many pictures of it are finished more."""
        stored = read_rows(self.out / ROWS)
        for part in self.parts:
            for one in filter(part.admits, self.contestants):
                for start in range(0, len(part.examples), BATCH):
                    chunk = range(start, min(start + BATCH, len(part.examples)))
                    yield from self._chunk(part, one, chunk, stored)
                    step(part.name, len(chunk))
            for name, make in part.references.items():
                every = range(len(part.examples) or self.scenes.n)
                kept = self._kept(part, name, self.reference, every, stored)
                yield from kept or self._store(part, name, self.reference, every, make())

    def _chunk(self, part: Part, one: Contestant, chunk: range, stored: Mapping[str, Row]) -> list[Row]:
        kept = [self._kept(part, name, one.identity, chunk, stored) for name in one.names]
        if all(kept):
            return [row for rows in kept for row in rows]
        made: list[Tensor] = []
        for start in chunk[:: one.batch]:
            batch = chunk[start - chunk.start : start - chunk.start + one.batch]
            made += one.make([part.examples[b] for b in batch], [self.scenes.seed + b for b in batch])
        first = part.examples[chunk.start]
        wanted = (len(one.names), len(first.targets), 4, *first.size)
        strange = next((a for a in made if a.shape != wanted), None)
        assert strange is None, f"{one.names[0]} answers {tuple(strange.shape)}, not {wanted}"
        answers = torch.stack(made, dim=1)  # (names, B, m, 4, H, W)
        if not bool(answers.isfinite().all()):
            raise InputError(f"{one.names[0]} answers NaN in {part.name}: its weights are damaged.")
        return [
            row
            for name, each in zip(one.names, answers, strict=True)
            for row in self._store(part, name, one.identity, chunk, part.score(chunk, each))
        ]

    def answers(self, part: Part, one: Contestant, b: int) -> Tensor:
        """Picture b once more: (len(names), m, 4, H, W)."""
        return one.make([part.examples[b]], [self.scenes.seed + b])[0]

    # ---- rows --------------------------------------------------------------------------------------------------

    def _key(self, part: Part, name: str, identity: str, b: int) -> str:
        told = json.dumps([self.shared, part.name, name, identity, b])
        return sha256(told)[:32]

    def _kept(self, part: Part, name: str, identity: str, which: range, stored: Mapping[str, Row]) -> list[Row]:
        """The rows of these pictures, or none."""
        found = [row for b in which if (row := stored.get(self._key(part, name, identity, b)))]
        return found if len(found) == len(which) else []

    def _store(self, part: Part, name: str, identity: str, which: range, figures: Figures) -> list[Row]:
        about = {"category": part.category, "part": part.name, "task": part.task, "method": name, "told": part.told}
        rows = [
            {"key": self._key(part, name, identity, b), **about, "picture": b, **values}
            for b, values in zip(which, figures, strict=True)
        ]
        append_row(self.out / ROWS, *rows)
        return rows


def _content(source: Source) -> str:
    """Of all layers and words of a source."""
    captions = source.bank.captions
    said = [[c.name for c in captions], source.colors, [c.text for c in captions], source.bank.background_captions]
    pictures = (source.bank.foregrounds, source.bank.backgrounds)
    return sha256(json.dumps(said), *(layers.contiguous().numpy() for layers in pictures))[:16]
