"""From a recipe to a trained model: `omnialpha train RECIPE [section.key=value ...]`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from omnialpha import config
from omnialpha.data.cache import CachedBatches
from omnialpha.data.datasets import DatasetSettings
from omnialpha.data.mixture import Mixture
from omnialpha.data.stream import Stage, Stream, StreamSettings, open_stream
from omnialpha.errors import InputError
from omnialpha.tasks import task as find_task
from omnialpha.training.loop import FitSettings, Objective, fit
from omnialpha.training.sft import FlowLoss, LoraObjective, LoraSettings, SFTObjective
from omnialpha.training.sources import DataSettings, held_out, load_banks
from omnialpha.training.vae_recipe import VAERecipe

if TYPE_CHECKING:
    from omnialpha.models.checkpoints import Card
    from omnialpha.pipeline import OmniAlpha


@dataclass(frozen=True)
class SFTRecipe:
    """start: a model folder to go on from; or else vae: a trained VAE's folder, with [transformer] and [instructor]
    made anew. With [lora] an adapter of `start` is trained, whose card [card] changes, and whose codec `vae` replaces.

    [[datasets]] are records (docs/data.md), with [[curriculum]], temperature and buckets; without them scenes are
    composed from [data], which is validated on in any case. cache: a folder of `omnialpha data cache`, for a LoRA, read
    in the place of either. packing: no padding is computed (docs/decisions/0014).
    """

    kind: str
    fit: FitSettings
    loss: FlowLoss
    data: DataSettings = DataSettings()
    datasets: list[DatasetSettings] = field(default_factory=list)
    tasks: dict[str, float] = field(default_factory=dict)
    curriculum: list[Stage] = field(default_factory=list)
    temperature: float = 1.0
    buckets: Literal["nearest", "any"] = "nearest"
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
    packing: bool = False
    cache: str = ""

    def objective(self) -> Objective:
        from omnialpha.models.checkpoints import Card

        for name in self.tasks:
            find_task(name)
        base = self._start() if self.lora else None
        card = base.card if base else config.build(Card, self.card, "card.")
        torch.manual_seed(self.fit.seed)
        mixture, test = self._cached(base) if self.cache else self.mixture(), held_out(self.data)
        if base and self.lora:
            self._pack(base)
            return LoraObjective(base, mixture, test, self.loss, self.validation, self.lora)
        assert not isinstance(mixture, CachedBatches)
        model = self._whole(mixture, card).train().requires_grad_(True)
        self._pack(model)
        return SFTObjective(model, mixture, test, self.loss, self.validation)

    def _pack(self, model: OmniAlpha) -> None:
        if self.packing and not hasattr(model.transformer, "packs"):
            raise InputError(f"packing=true is not for a model of the family {model.card.family}: leave it out.")
        if self.packing:
            model.transformer.packs = True

    def mixture(self) -> Mixture | Stream:
        """Of recorded datasets, or else of scenes."""
        sizes = [(h, w) for h, w in self.sizes]
        if self.datasets:
            drawn = StreamSettings(self.datasets, self.tasks, self.curriculum, self.temperature, self.buckets)
            together = self.fit.accumulate * int(os.environ.get("WORLD_SIZE", "1"))
            return open_stream(drawn, sizes, self.batch, self.fit.seed, self.prompt_dropout, batches_a_step=together)
        if not self.tasks:
            raise InputError("the recipe lacks 'tasks': say which tasks are trained, and how often each.")
        return Mixture(load_banks(self.data)[0], self.tasks, sizes, self.batch, self.fit.seed, self.prompt_dropout)

    def encoders(self, device: str = "auto") -> OmniAlpha:
        """The model of `start` on its device, without the transformer's weights."""
        from contextlib import ExitStack

        from omnialpha.models.placement import Placed, Placement

        placement = Placement(device)
        where = placement.torch_device  # a wrong name is refused before anything is read
        model = self._start(whole=False)
        model.placed = Placed(placement, where, ExitStack())
        for part in (model.vae, model.instructor):
            part.to(where)
        return model

    def drawn_from(self) -> dict[str, Any]:
        """What decides about the batches, in JSON types. InputError where they cannot be cached."""
        if not self.lora:
            raise InputError(
                "a cache holds what a frozen instruction encoder says, but this recipe trains it: "
                "leave the cache out, or train a LoRA ([lora])."
            )
        if self.curriculum:
            raise InputError(
                "the batches of a cache come in any order, not by a [[curriculum]]: leave one of them out."
            )
        names = ["tasks", "batch", "sizes", *(["datasets", "temperature", "buckets"] if self.datasets else ["data"])]
        values = asdict(self)
        return {name: values[name] for name in names} | {"seed": self.fit.seed}

    def _cached(self, base: OmniAlpha | None) -> CachedBatches:
        recipe = self.drawn_from()
        assert base
        return CachedBatches.open(self.cache, base, recipe, self.fit.seed, self.prompt_dropout)

    def _start(self, whole: bool = True) -> OmniAlpha:
        """The model of `start` as it runs, or only what encodes; InputError where it cannot do the tasks."""
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
        model = OmniAlpha.from_parts(replace(parts, own_card=card), DTYPES[card.dtype], whole)
        if whole:
            adapters.apply(model.transformer, parts.adapters)
        return model

    def _whole(self, mixture: Mixture | Stream, card: Card) -> OmniAlpha:
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

    def _new(self, mixture: Mixture | Stream, card: Card) -> OmniAlpha:
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
    made = read(path, overrides)
    return fit(made.objective(), made.fit, quiet)


def read(path: str | Path, overrides: Sequence[str] = ()) -> VAERecipe | SFTRecipe:
    """A recipe file, checked."""
    tree = config.load(path, overrides)
    if tree.get("kind") not in KINDS:
        raise InputError(f"recipe {path} has kind={tree.get('kind')!r}: use one of {', '.join(KINDS)}.")
    kind: type[VAERecipe] | type[SFTRecipe] = KINDS[tree["kind"]]
    return config.build(kind, tree)


if __name__ == "__main__":
    import sys

    run(sys.argv[1], sys.argv[2:])
