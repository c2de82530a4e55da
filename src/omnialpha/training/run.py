"""From a recipe to a trained model: `omnialpha train RECIPE [section.key=value ...]`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from omnialpha import config
from omnialpha.data.mixture import Mixture
from omnialpha.errors import InputError
from omnialpha.tasks import task as find_task
from omnialpha.training.loop import FitSettings, Objective, fit
from omnialpha.training.sft import FlowLoss, LoraObjective, LoraSettings, SFTObjective
from omnialpha.training.sources import DataSettings, load_banks
from omnialpha.training.vae_recipe import VAERecipe

if TYPE_CHECKING:
    from omnialpha.models.checkpoints import Card
    from omnialpha.pipeline import OmniAlpha


@dataclass(frozen=True)
class SFTRecipe:
    """start: a model folder to go on from; or else vae: a trained VAE's folder, with [transformer] and [instructor]
    made anew. With [lora] an adapter of `start` is trained, whose card [card] changes, and whose codec `vae` replaces.
    """

    kind: str
    fit: FitSettings
    data: DataSettings
    tasks: dict[str, float]
    loss: FlowLoss
    card: dict[str, Any] = field(default_factory=dict)
    start: str = ""
    vae: str = ""
    lora: LoraSettings | None = None
    transformer: dict[str, Any] = field(default_factory=dict)
    instructor: dict[str, Any] = field(default_factory=dict)
    batch: int = 16
    sizes: list[list[int]] = field(default_factory=lambda: [[96, 96]])
    prompt_dropout: float = 0.15
    validation: int = 32

    def objective(self) -> Objective:
        from omnialpha.models.checkpoints import Card

        for name in self.tasks:
            find_task(name)
        base = self._base() if self.lora else None
        card = base.card if base else config.build(Card, self.card, "card.")
        torch.manual_seed(self.fit.seed)
        train, test = load_banks(self.data)
        sizes = [(int(h), int(w)) for h, w in self.sizes]
        mixture = Mixture(train, self.tasks, sizes, self.batch, self.fit.seed, self.prompt_dropout)
        if base and self.lora:
            return LoraObjective(base, mixture, test, self.loss, self.validation, self.lora)
        model = self._whole(mixture, card).train().requires_grad_(True)
        return SFTObjective(model, mixture, test, self.loss, self.validation)

    def _base(self) -> OmniAlpha:
        """The model of `start` as it runs, to train a LoRA on; InputError where it cannot do the tasks."""
        from omnialpha import loading
        from omnialpha.models import adapters
        from omnialpha.models.checkpoints import Card, resolve
        from omnialpha.models.placement import DTYPES
        from omnialpha.pipeline import OmniAlpha

        if not self.start:
            raise InputError("a LoRA is trained on a model: give its folder as start.")
        parts = resolve(self.start, vae=self.vae or None)
        card = config.build(Card, asdict(parts.card) | self.card, "card.")
        for name in self.tasks:
            card.check_task(name)
        loading.KINDS[card.family].check(parts)
        model = OmniAlpha.from_parts(replace(parts, own_card=card), DTYPES[card.dtype])
        adapters.apply(model.transformer, parts.adapters)
        return model

    def _whole(self, mixture: Mixture, card: Card) -> OmniAlpha:
        """The model of `start`, or a new one, kept beside the checkpoint as it was begun with."""
        from omnialpha.models.checkpoints import CARD
        from omnialpha.pipeline import OmniAlpha

        begun = Path(self.fit.output) / "start"  # a resumed run reads text with the very tokenizer that it began with
        if (begun / CARD).is_file():
            model = OmniAlpha.from_folder(begun)
        else:
            model = OmniAlpha.from_folder(self.start) if self.start else self._new(mixture, card)
        model.card = card
        if not (begun / CARD).is_file() and os.environ.get("RANK", "0") == "0":
            model.save(begun)
        return model

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
