"""The suite: a model and baselines on held-out scenes, all categories, a row of figures for each picture.

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
from omnialpha.evaluation.datasets.heldout import HeldOutScenes, HeldOutSource
from omnialpha.evaluation.methods.method import Method, identity_of
from omnialpha.evaluation.metrics.features import digest_of_weights
from omnialpha.evaluation.reports.report import Row
from omnialpha.evaluation.runner import Runner, SampleSet
from omnialpha.evaluation.scoring import Networks, Scoring
from omnialpha.files import sha256
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import TASKS, Example

BATCH = 16  # pictures at once

Figures = list[Row]  # of each picture: name -> number; X_sum and X_count are pooled, see `figures`


class Scenes:
    """Held-out scenes at the size of a model: `ones` with one object, `twos` with two that stand apart.

    Args:
        model: that is measured.
        source: of the layers.
        n: scenes of each kind, 1 or more.
        seed: of their composition, and of the noise: seed + i for scene i.
    """

    def __init__(self, model: OmniAlpha, source: HeldOutSource, n: int, seed: int) -> None:
        if n < 1:
            raise InputError(f"n={n} scenes cannot be measured: use 1 or more.")
        self.model, self.source, self.n, self.seed, self.size = model, source, n, seed, model.native_size()

    @cached_property
    def identity(self) -> str:
        """The same for the same layers, words and scenes."""
        bank, colors = self.source.bank, self.source.colors
        words = [[c.name for c in bank.captions], colors, [c.text for c in bank.captions], bank.background_captions]
        pictures = (layers.contiguous().numpy() for layers in (bank.foregrounds, bank.backgrounds))
        content = sha256(json.dumps(words), *pictures)[:16]
        return sha256(json.dumps([self.source.about, content, self.n, self.seed, self.size]))

    @cached_property
    def ones(self) -> HeldOutScenes:
        return heldout.draw(self.source, self.n, self.size, self.seed)

    @cached_property
    def twos(self) -> HeldOutScenes:
        return heldout.draw(self.source, self.n, self.size, self.seed, objects=2)


def of_model(model: OmniAlpha, batch: int = BATCH) -> Method:
    """One sampling of every example, decoded in both ways: two outputs."""

    def make(examples: Sequence[Example], seeds: Sequence[int]) -> list[Tensor]:
        steps: list[Any] = []
        raw = model.run(examples, seed=seeds, raw=True, on_step=lambda *last: steps.append(last))
        step, cond = steps[-1]
        pairs = zip(model.decode(step.x, cond), raw, strict=True)
        return [
            torch.stack([torch.stack([layer.rgba for layer in stack]) for stack in pair]).clamp(0, 1).cpu()
            for pair in pairs
        ]

    name, able = model.card.name, model.card.tasks
    outputs = (f"{name}, default", f"{name}, raw")
    return Method(name, make, lambda task: not able or task in able, identity(model), batch=batch, outputs=outputs)


def identity(model: OmniAlpha) -> str:
    """The same for the same pictures."""
    weights = identity_of(model.parts) if model.parts else digest_of_weights(model)
    return f"{weights} {model.device.type}"


@dataclass(frozen=True)
class SceneSample:
    """One request about a scene, as `runner.SampleSet` takes samples."""

    key: str
    category: str
    example: Example
    content: str

    def identity(self, longer: int | None) -> str:
        return self.content

    def load(self, longer: int | None) -> Example:
        return self.example


@dataclass(frozen=True)
class Section:
    """Examples of one task, and how predictions for them are scored.

    Args:
        name: unique in the suite.
        task: of TASKS, or that of the autoencoder.
        guidance: what an example gives with the picture, in words.
        score: which pictures, and predictions (B, m, 4, H, W) -> figures of each.
        references: figures that need the truth, and no method, by name.
        best: the figure that ranks pictures, "+" before it where more is better; "" for none.
        models, baselines: who takes part.
        own: methods that take part in no other section.
    """

    name: str
    task: str
    guidance: str
    examples: Sequence[Example] = ()
    score: Callable[[Sequence[int], Tensor], Figures] = lambda which, predicted: []
    references: Mapping[str, Callable[[], Figures]] = field(default_factory=dict)
    best: str = ""
    models: bool = True
    baselines: bool = True
    own: tuple[Method, ...] = ()

    @property
    def category(self) -> str:
        return TASKS[self.task].category if self.task in TASKS else "autoencoder"

    @property
    def about(self) -> dict[str, str]:
        return {"category": self.category, "part": self.name, "task": self.task, "guidance": self.guidance}

    def methods(self, others: Sequence[Method]) -> list[Method]:
        """Who takes part: its own, and those of all sections that can."""
        able = [m for m in others if (self.models if m.outputs else self.baselines) and m.does(self.task)]
        return [*able, *self.own] if self.examples else []

    def part(self, scenes: Scenes) -> SampleSet:
        """As the runner takes it."""
        numbers = {id(example): b for b, example in enumerate(self.examples)}

        def score(example: Example, made: Tensor, networks: Networks) -> Row:
            return self.score([numbers[id(example)]], made[None])[0]

        samples = [SceneSample(str(b), self.category, e, scenes.identity) for b, e in enumerate(self.examples)]
        seeds = {sample.key: scenes.seed + b for b, sample in enumerate(samples)}
        return SampleSet(samples, Scoring(self.name, (), score), self.about, seeds)


class Suite:
    """Sections measured with methods.

    Args:
        scenes: what the sections are about.
        sections: with different names.
        methods: with different names; that of several outputs is the model.
        out: the folder of the run, where finished rows are kept.

    Raises:
        InputError: two methods of one name.
    """

    def __init__(self, scenes: Scenes, sections: Sequence[Section], methods: Sequence[Method], out: Path) -> None:
        names = [name for method in methods for name in method.names]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InputError(f"two methods are called {twice!r}: give each only once.")
        self.scenes, self.sections, self.methods, self.runner = scenes, sections, methods, Runner(out, keep=False)

    def __len__(self) -> int:
        """Rows of predictions."""
        return sum(len(s.examples) * len(m.names) for s in self.sections for m in s.methods(self.methods))

    def rows(self, step: Callable[[str], None] = lambda section: None) -> Iterator[Row]:
        """All rows, a section after the other, those of references last. step: called with the name of each section."""
        for section in self.sections:
            step(section.name)
            part = section.part(self.scenes)
            for method in section.methods(self.methods):
                yield from self.runner.rows(method, part)
            for name, make in section.references.items():
                yield from ({**section.about, "method": name, "sample": str(b), **f} for b, f in enumerate(make()))

    def predicted(self, section: Section, method: Method, number: int) -> Tensor:
        """A picture once more: (outputs, m, 4, H, W)."""
        part = section.part(self.scenes)
        return self.runner.predicted(method, part, part.samples[number], section.examples[number])
