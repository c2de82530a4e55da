"""From a recipe to a trained model: `omnialpha train RECIPE [section.key=value ...]`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from omnialpha import config
from omnialpha.data import bank as banks
from omnialpha.data.bank import Bank
from omnialpha.data.mixture import Mixture
from omnialpha.errors import InputError
from omnialpha.tasks import task as find_task
from omnialpha.training.loop import FitSettings, Objective, fit
from omnialpha.training.sft import FlowLoss

if TYPE_CHECKING:
    from omnialpha.models.checkpoints import Card
    from omnialpha.pipeline import OmniAlpha


@dataclass(frozen=True)
class DataSettings:
    """Where layers come from. folders: with foregrounds.jsonl and backgrounds.jsonl; the rest is drawn by
    `data.synthetic`.
    """

    size: int = 128
    folders: list[str] = field(default_factory=list)
    foregrounds: int = 2000
    backgrounds: int = 500
    seed: int = 0


def load_banks(settings: DataSettings) -> tuple[Bank, Bank]:
    """(train, test). Held out: the last shuffled rows of every folder; without folders, layers of another seed."""
    train = [banks.read(f, settings.size, "train", settings.seed) for f in settings.folders]
    test = [banks.read(f, settings.size, "test", settings.seed) for f in settings.folders]
    if settings.foregrounds:
        train.append(banks.procedural(settings.foregrounds, settings.backgrounds, settings.size, settings.seed))
    if not test:
        test.append(banks.procedural(banks.TEST_FOREGROUNDS, banks.TEST_BACKGROUNDS, settings.size, settings.seed + 1))
    return banks.join(train), banks.join(test)


@dataclass(frozen=True)
class VAERecipe:
    """[model] are the arguments of AlphaVAE."""

    kind: str
    fit: FitSettings
    data: DataSettings
    model: dict[str, Any]
    loss: dict[str, float] = field(default_factory=dict)
    batch: int = 32
    sizes: list[list[int]] = field(default_factory=lambda: [[96, 96]])

    def objective(self) -> Objective:
        from omnialpha.models.vae import AlphaVAE
        from omnialpha.training.vae import VAELoss, VAEObjective, fit_linear_codec

        torch.manual_seed(self.fit.seed)
        train, test = load_banks(self.data)
        vae = AlphaVAE(**self.model)
        weights = config.build(VAELoss, self.loss, "loss.")
        sizes = [(int(h), int(w)) for h, w in self.sizes]
        objective = VAEObjective(vae, train, test, weights, self.batch, sizes, self.fit.seed)
        if vae.config.linear_skip:
            fit_linear_codec(vae, torch.cat([objective.pictures(train, -i * len(sizes)) for i in range(1, 25)]))
        return objective


@dataclass(frozen=True)
class SFTRecipe:
    """start: a model folder to go on from; or else vae: a trained VAE's folder, with [transformer] and [instructor]
    made anew.
    """

    kind: str
    fit: FitSettings
    data: DataSettings
    card: dict[str, Any]
    tasks: dict[str, float]
    loss: FlowLoss
    start: str = ""
    vae: str = ""
    transformer: dict[str, Any] = field(default_factory=dict)
    instructor: dict[str, Any] = field(default_factory=dict)
    batch: int = 16
    sizes: list[list[int]] = field(default_factory=lambda: [[96, 96]])
    prompt_dropout: float = 0.15
    validation: int = 32

    def objective(self) -> Objective:
        from omnialpha.models.checkpoints import CARD, Card
        from omnialpha.pipeline import OmniAlpha
        from omnialpha.training.sft import SFTObjective

        for name in self.tasks:
            find_task(name)
        card = config.build(Card, self.card, "card.")
        torch.manual_seed(self.fit.seed)
        train, test = load_banks(self.data)
        sizes = [(int(h), int(w)) for h, w in self.sizes]
        mixture = Mixture(train, self.tasks, sizes, self.batch, self.fit.seed, self.prompt_dropout)
        begun = Path(self.fit.output) / "start"  # a resumed run reads text with the very tokenizer that it began with
        if (begun / CARD).is_file():
            model = OmniAlpha.from_folder(begun)
        else:
            model = OmniAlpha.from_folder(self.start) if self.start else self._new(mixture, card)
        model.card = card
        if not (begun / CARD).is_file() and os.environ.get("RANK", "0") == "0":
            model.save(begun)
        return SFTObjective(model.train().requires_grad_(True), mixture, test, self.loss, self.validation)

    def _new(self, mixture: Mixture, card: Card) -> OmniAlpha:
        from omnialpha.models.tiny import build_tiny_instructor
        from omnialpha.models.transformer import MultiImageTransformer
        from omnialpha.models.vae import AlphaVAE
        from omnialpha.pipeline import OmniAlpha
        from omnialpha.training.sft import corpus, initialize

        vae = AlphaVAE.load(self.vae)
        instructor = build_tiny_instructor(corpus(mixture, 200), picture_pixels=card.picture_pixels, **self.instructor)
        transformer = MultiImageTransformer(**self.transformer)
        initialize(transformer)
        return OmniAlpha(vae, transformer, instructor, card)


KINDS: dict[str, type[VAERecipe] | type[SFTRecipe]] = {"vae": VAERecipe, "sft": SFTRecipe}


def run(path: str | Path, overrides: Sequence[str] = (), quiet: bool = False) -> dict[str, float]:
    """Train by a recipe file; returns the last figures. See `fit` for resumption and cancelling."""
    tree = config.load(path, overrides)
    if tree.get("kind") not in KINDS:
        raise InputError(f"recipe {path} has kind={tree.get('kind')!r}: use one of {', '.join(KINDS)}.")
    kind: type[VAERecipe] | type[SFTRecipe] = KINDS[tree["kind"]]
    made = config.build(kind, tree)
    return fit(made.objective(), made.fit, quiet)


if __name__ == "__main__":
    import sys

    run(sys.argv[1], sys.argv[2:])
