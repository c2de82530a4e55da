"""From a recipe to a trained model: `omnialpha train RECIPE [section.key=value ...]`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from omnialpha import config
from omnialpha.data.stream.batches import Budget
from omnialpha.data.stream.datasets import DatasetSettings
from omnialpha.data.stream.mixture import Mixture
from omnialpha.data.stream.stream import Stage, Stream, StreamSettings, open_stream
from omnialpha.errors import InputError
from omnialpha.files import atomic_write
from omnialpha.tasks import task as find_task
from omnialpha.training.finder import FinderRecipe
from omnialpha.training.latent_cache import digests
from omnialpha.training.latent_cache.cache import CachedBatches, read_settings, same_files
from omnialpha.training.loop import FitSettings, Objective, fit
from omnialpha.training.sft import FlowLoss, LoraObjective, LoraSettings, SFTObjective
from omnialpha.training.sources import DataSettings, held_out, load_banks
from omnialpha.training.vae_recipe import VAERecipe

if TYPE_CHECKING:
    from omnialpha.data.synthetic.bank import Bank
    from omnialpha.models.checkpoints.folders import Card, Parts
    from omnialpha.models.vae.autoencoder import Autoencoder
    from omnialpha.pipeline import OmniAlpha

BEGUN = "cache.json"  # beside the checkpoint: how many batches of a cache the run began with


@dataclass(frozen=True)
class SFTRecipe:
    """start: a model folder to go on from; or else vae: a trained VAE's folder, with [transformer] and [text_encoder]
    made anew. With [lora] an adapter of `start` is trained, whose card [card] changes, and whose VAE `vae` replaces.

    [[datasets]] are records (docs/data.md), with [[curriculum]], temperature and buckets, and [[held_out]] those that
    are validated on; without them scenes are composed from [data], of which some are held out. cache: a folder of
    `omnialpha data cache`, for a LoRA, read in the place of either. batch: samples that are alike, or else tokens: of
    all samples of a batch, which may be of any kind, where the text of one counts as text_tokens and its inputs.
    packing: no padding is computed (docs/decisions/0014); by tokens it never is.

    finder: a folder or an ONNX file, see `models.finder`, for a model that has none yet or another one. hint_dropout:
    share of batches that are trained without its hints; batches of a cache are as they were made.

    validation: examples of each of validation_tasks, by default one task of every category that is trained.
    """

    kind: str
    fit: FitSettings
    loss: FlowLoss
    data: DataSettings = DataSettings()
    datasets: list[DatasetSettings] = field(default_factory=list)
    held_out: list[DatasetSettings] = field(default_factory=list)
    tasks: dict[str, float] = field(default_factory=dict)
    curriculum: list[Stage] = field(default_factory=list)
    temperature: float = 1.0
    buckets: Literal["nearest", "any"] = "nearest"
    card: dict[str, Any] = field(default_factory=dict)
    start: str = ""
    vae: str = ""
    finder: str = ""
    lora: LoraSettings | None = None
    transformer: dict[str, Any] = field(default_factory=dict)
    text_encoder: dict[str, Any] = field(default_factory=dict)
    batch: int = 0
    tokens: int = 0
    text_tokens: int = 64
    sizes: list[list[int]] = field(default_factory=lambda: [[96, 96]])
    prompt_dropout: float = 0.15
    hint_dropout: float = 0.0
    validation: int = 32
    validation_tasks: list[str] = field(default_factory=list)
    packing: bool = False
    cache: str = ""

    def objective(self) -> Objective:
        from omnialpha.models.checkpoints.folders import Card, vae_folder
        from omnialpha.models.vae.alphavae import load_vae

        for name in self.tasks:
            find_task(name)
        if self.lora:
            base, batches = self._lora()
            torch.manual_seed(self.fit.seed)
            seen = (base, batches, self.unseen(batches), self.loss, self.validation)
            return self._checked(LoraObjective(*seen, self.lora, self.validation_tasks))
        if self.cache:
            self.drawn_from()  # says why not
        card = config.build(Card, self.card, "card.")
        mixture = self.mixture(self.budget(card, load_vae(vae_folder(self.start or self.vae))) if self.tokens else None)
        torch.manual_seed(self.fit.seed)
        model = self._whole(mixture, card).train().requires_grad_(True)
        self._pack(model)
        seen = (model, mixture, self.unseen(mixture), self.loss, self.validation)
        return self._checked(SFTObjective(*seen, self.validation_tasks))

    def _checked(self, objective: SFTObjective) -> SFTObjective:
        """With the recipe's share of dropped hints; InputError now for what could not be validated later."""
        objective.hint_dropout = self.hint_dropout
        if self.fit.validate_every:
            objective.validated()
        return objective

    def unseen(self, mixture: Mixture | Stream | CachedBatches) -> Bank | Stream:
        """What is validated on: [[held_out]], or else scenes of [data]. InputError where it is trained on too."""
        if not self.held_out:
            return held_out(self.data)
        sizes = [(h, w) for h, w in self.sizes]
        unseen = open_stream(StreamSettings(self.held_out, buckets=self.buckets), sizes, 1, self.fit.seed)
        both = _records(unseen) & _records(mixture) if isinstance(mixture, Stream) else set()
        if both:
            raise InputError(
                f"{len(both)} held-out records are trained on, such as {min(both)[0]!r}: "
                "keep them apart, by `starts` and `ends` of one dataset or as two."
            )
        return unseen

    def _lora(self) -> tuple[OmniAlpha, Mixture | Stream | CachedBatches]:
        """The model that a LoRA is trained on, and the batches."""
        parts = self.parts()
        if not self.cache:
            base = self._load(parts)
            self._pack(base)
            return base, self.mixture(self.budget(base.card, base.vae))
        recipe, known, folder = self.drawn_from(), digests.files(parts), Path(self.cache)
        # 16 GB of a vision-language model are not read to see that they are what the cache was made with
        reads = bool(self.fit.validate_every) or not same_files(read_settings(folder), known)
        base = self._load(parts, reads=reads)
        self._pack(base)
        begun = Path(self.fit.output) / BEGUN
        resumed = begun.is_file() and begun.with_name("checkpoint.pt").is_file()
        count = json.loads(begun.read_text())["batches"] if resumed else None
        batches = CachedBatches.open(folder, base, recipe, self.fit.seed, self.prompt_dropout, known, count)
        if count is None and os.environ.get("RANK", "0") == "0":
            begun.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(begun, (json.dumps({"batches": len(batches)}) + "\n").encode())
        return base, batches

    def budget(self, card: Card, autoencoder: Autoencoder) -> Budget | None:
        """What a batch may hold for a model of this card and autoencoder, where that is said in tokens."""
        if not self.tokens:
            return None
        from omnialpha.models.transformer.positions import PATCH_SIZE

        hinted = bool(self.finder or card.finder)
        return Budget(
            self.tokens, self.text_tokens, card.grid, autoencoder.ratio * PATCH_SIZE, card.picture_pixels, hinted
        )

    def _pack(self, model: OmniAlpha) -> None:
        if self.packing or self.tokens:
            if not hasattr(model.transformer, "packs"):
                advice = "give a batch instead of tokens" if self.tokens else "leave packing=true out"
                raise InputError(f"samples cannot be packed for a model of the family {model.card.family}: {advice}.")
            model.transformer.packs = True

    def mixture(self, budget: Budget | None = None) -> Mixture | Stream:
        """Of recorded datasets, or else of scenes. budget: of a batch, in the place of a number of samples."""
        self._check_batch()
        batch = 1 if budget else self.batch
        sizes = [(h, w) for h, w in self.sizes]
        if self.datasets:
            drawn = StreamSettings(self.datasets, self.tasks, self.curriculum, self.temperature, self.buckets)
            together = self.fit.accumulate * int(os.environ.get("WORLD_SIZE", "1"))
            return open_stream(
                drawn, sizes, batch, self.fit.seed, self.prompt_dropout, batches_a_step=together, budget=budget
            )
        if not self.tasks:
            raise InputError("the recipe lacks 'tasks': say which tasks are trained, and how often each.")
        bank = load_banks(self.data)[0]
        return Mixture(bank, self.tasks, sizes, batch, self.fit.seed, self.prompt_dropout, budget)

    def _check_batch(self) -> None:
        if bool(self.batch) == bool(self.tokens):
            have = "both batch and tokens" if self.batch else "neither batch nor tokens"
            raise InputError(f"the recipe has {have}: give one, and the other as 0 where it comes from elsewhere.")

    def encoders(self, parts: Parts, device: str = "auto") -> OmniAlpha:
        """A model on its device, without the transformer's weights."""
        from contextlib import ExitStack

        from omnialpha.models.runtime.placement import Placed, Placement

        placement = Placement(device)
        where = placement.torch_device  # a wrong name is refused before anything is read
        model = self._load(parts, whole=False)
        self._pack(model)  # refuses what training would refuse
        model.placed = Placed(placement, where, ExitStack())
        for part in (model.vae, model.text_encoder):
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
        self._check_batch()
        names = ["tasks", "sizes", *(["tokens", "text_tokens"] if self.tokens else ["batch"])]
        names += ["datasets", "temperature", "buckets"] if self.datasets else ["data"]
        values = asdict(self)
        return {name: values[name] for name in names} | {"seed": self.fit.seed}

    def parts(self) -> Parts:
        """Of `start`, with the card as it is trained with; InputError where it cannot do the tasks."""
        from omnialpha.models.checkpoints.checking import check
        from omnialpha.models.checkpoints.folders import Card, resolve

        if not self.start:
            raise InputError("a LoRA is trained on a model: give its folder as start.")
        parts = resolve(self.start, vae=self.vae or None)
        card = config.build(Card, asdict(parts.card) | self.card, "card.")
        for name in self.tasks:
            card.check_task(name)
        parts = replace(parts, own_card=card)
        check(parts)
        return parts

    def _load(self, parts: Parts, whole: bool = True, reads: bool = True) -> OmniAlpha:
        """The model as it runs, or only what encodes, or without what reads instructions."""
        from omnialpha.models.lora import adapters
        from omnialpha.models.runtime.placement import DTYPES
        from omnialpha.pipeline import OmniAlpha

        model = OmniAlpha.from_parts(parts, DTYPES[parts.own_card.dtype], whole, reads)
        if whole:
            adapters.apply(model.transformer, parts.adapters)
        return model

    def _whole(self, mixture: Mixture | Stream, card: Card) -> OmniAlpha:
        """The model of `start`, or a new one, kept beside the checkpoint as it was begun with."""
        from omnialpha.models.checkpoints.folders import CARD
        from omnialpha.models.finder import open_finder
        from omnialpha.pipeline import OmniAlpha

        begun = Path(self.fit.output) / "start"  # a resumed run reads text with the very tokenizer that it began with
        if (begun / CARD).is_file():
            model = OmniAlpha.from_folder(begun)
        else:
            model = OmniAlpha.from_folder(self.start) if self.start else self._new(mixture, card)
        model.card = card
        if self.finder or not card.finder:  # as the card says, in training and in use alike
            model.use_finder(open_finder(self.finder) if self.finder else None)
        if not (begun / CARD).is_file() and os.environ.get("RANK", "0") == "0":
            model.save(begun)
        return model

    def _new(self, mixture: Mixture | Stream, card: Card) -> OmniAlpha:
        from omnialpha.models.text_encoder.tiny import build_tiny_text_encoder
        from omnialpha.models.transformer.aligned import align
        from omnialpha.models.transformer.model import MultiImageTransformer
        from omnialpha.models.vae.alphavae import AlphaVAE
        from omnialpha.pipeline import OmniAlpha
        from omnialpha.training.sft import corpus, initialize

        vae = AlphaVAE.load(self.vae)
        text_encoder = build_tiny_text_encoder(
            corpus(mixture, 200), picture_pixels=card.picture_pixels, **self.text_encoder
        )
        transformer = MultiImageTransformer(**self.transformer)
        initialize(transformer)
        if card.prediction == "x0":
            align(transformer)
        return OmniAlpha(vae, transformer, text_encoder, card)


def _records(stream: Stream) -> set[tuple[str, str]]:
    """Id and first picture of every record."""
    return {(one.id, str(one.parts()[0].handle)) for source in stream.sources for one in source.records}


Recipe = VAERecipe | SFTRecipe | FinderRecipe
KINDS: dict[str, type[Recipe]] = {"vae": VAERecipe, "sft": SFTRecipe, "finder": FinderRecipe}


def run(path: str | Path, overrides: Sequence[str] = (), quiet: bool = False) -> dict[str, float]:
    """Train by a recipe file; returns the last figures. See `fit` for resumption and cancelling."""
    made = read(path, overrides)
    return fit(made.objective(), made.fit, quiet)


def read(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe file, checked."""
    tree = config.load(path, overrides)
    if tree.get("kind") not in KINDS:
        raise InputError(f"recipe {path} has kind={tree.get('kind')!r}: use one of {', '.join(KINDS)}.")
    kind: type[Recipe] = KINDS[tree["kind"]]
    return config.build(kind, tree)


if __name__ == "__main__":
    import sys

    run(sys.argv[1], sys.argv[2:])
