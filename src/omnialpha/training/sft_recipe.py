"""[kind = "sft"] A model from nothing, one that goes on, or a LoRA of one, trained on a mixture of tasks."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from omnialpha import config
from omnialpha.data.stream.batches import Budget
from omnialpha.data.stream.datasets import DatasetSettings
from omnialpha.data.stream.mixture import Mixture
from omnialpha.data.stream.stream import Stage, Stream, StreamSettings, open_stream
from omnialpha.data.synthetic.bank import Bank
from omnialpha.errors import InputError
from omnialpha.files import atomic_write
from omnialpha.models.checkpoints.card import read_json
from omnialpha.models.checkpoints.checking import check
from omnialpha.models.checkpoints.folders import CARD, Card, Parts, resolve, vae_folder
from omnialpha.models.finder import open_finder
from omnialpha.models.lora import adapters
from omnialpha.models.runtime.placement import DTYPES, Placed, Placement
from omnialpha.models.text_encoder.tiny import build_tiny_text_encoder
from omnialpha.models.transformer.aligned import align
from omnialpha.models.transformer.model import MultiImageTransformer
from omnialpha.models.transformer.positions import PATCH_SIZE
from omnialpha.models.vae.alphavae import AlphaVAE, load_vae
from omnialpha.pipeline import OmniAlpha
from omnialpha.pretrained import load_text_encoder
from omnialpha.tasks import task as find_task
from omnialpha.training.latent_cache import digests
from omnialpha.training.latent_cache.cache import CachedBatches, read_settings
from omnialpha.training.objective import FitSettings
from omnialpha.training.sft import FlowLoss, LoraSettings, SFTObjective, corpus, initialize
from omnialpha.training.sources import DataSettings, held_out, load_banks

BEGUN = "cache.json"  # in a run's folder: how many batches of a cache the run began with


@dataclass(frozen=True)
class SFTRecipe:
    """start: a model folder to go on from; or else vae: a trained VAE's folder, with [transformer] and [text_encoder]
    made anew. `text_encoder = {start = FOLDER}` takes the one of a folder instead, such as `training.grounding` leaves;
    with train_text_encoder = false it stays as it is, as published ones do. With [lora] an adapter of `start` is
    trained, whose card [card] changes, and whose VAE `vae` replaces.

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
    train_text_encoder: bool = True
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

    def objective(self) -> SFTObjective:
        for name in self.tasks:
            find_task(name)
        model, data = self._lora() if self.lora else self._whole()
        if self.packing or self.tokens:
            self._pack(model)
        torch.manual_seed(self.fit.seed)
        held = self.unseen(data)
        made = SFTObjective(model, data, held, self.loss, self.validation, self.validation_tasks, self.lora)
        made.hint_dropout = self.hint_dropout
        if self.fit.validate_every:  # InputError now for what could not be validated later
            made.validated()
        return made

    def unseen(self, data: Mixture | Stream | CachedBatches) -> Bank | Stream:
        """What is validated on: [[held_out]], or else scenes of [data]. InputError where it is trained on too."""
        if not self.held_out:
            return held_out(self.data)
        unseen = open_stream(StreamSettings(self.held_out, buckets=self.buckets), self._sizes, 1, self.fit.seed)
        both = unseen.identities() & data.identities() if isinstance(data, Stream) else set()
        if both:
            raise InputError(
                f"{len(both)} held-out records are trained on, such as {min(both)[0]!r}: "
                "keep them apart, by `starts` and `ends` of one dataset or as two."
            )
        return unseen

    def mixture(self, card: Card, token_side: int) -> Mixture | Stream:
        """Batches of recorded datasets, or else of scenes. token_side: of the model, where tokens are counted."""
        self._check_batch()
        budget = None
        if self.tokens:
            finder = bool(self.finder or card.finder)
            budget = Budget(self.tokens, self.text_tokens, card.grid, token_side, card.picture_pixels, finder)
        drawn = (self._sizes, 1 if budget else self.batch, self.fit.seed, self.prompt_dropout)
        if self.datasets:
            settings = StreamSettings(self.datasets, self.tasks, self.curriculum, self.temperature, self.buckets)
            together = self.fit.accumulate * int(os.environ.get("WORLD_SIZE", "1"))
            return open_stream(settings, *drawn, batches_a_step=together, budget=budget)
        if not self.tasks:
            raise InputError("the recipe lacks 'tasks': say which tasks are trained, and how often each.")
        return Mixture(load_banks(self.data)[0], self.tasks, *drawn, budget)

    @property
    def _sizes(self) -> list[tuple[int, int]]:
        return [(height, width) for height, width in self.sizes]

    def _check_batch(self) -> None:
        if bool(self.batch) == bool(self.tokens):
            have = "both batch and tokens" if self.batch else "neither batch nor tokens"
            raise InputError(f"the recipe has {have}: give one, and the other as 0 where it comes from elsewhere.")

    def _pack(self, model: OmniAlpha) -> None:
        """Compute no padding; InputError for a model that cannot do so."""
        if not hasattr(model.transformer, "packs"):
            advice = "give a batch instead of tokens" if self.tokens else "leave packing=true out"
            raise InputError(f"samples cannot be packed for a model of the family {model.card.family}: {advice}.")
        model.transformer.packs = True

    # ---- a whole model ----------------------------------------------------------------------------------------------

    def _whole(self) -> tuple[OmniAlpha, Mixture | Stream]:
        """The model of `start`, or a new one, kept in the run's folder as it was begun with; and the batches."""
        if self.cache:
            self.drawn_from()  # says why not
        card = config.build(Card, self.card, "card.")
        data = self.mixture(card, self._token_side() if self.tokens else 0)
        torch.manual_seed(self.fit.seed)
        begun = Path(self.fit.output) / "start"  # a resumed run reads text with the very tokenizer that it began with
        known = (begun / CARD).is_file()
        model = self._begun(resolve(begun), card) if known else self._first(data, card)
        if self.finder or not card.finder:  # as the card says, in training and in use alike
            model.use_finder(open_finder(self.finder) if self.finder else None)
        if not known and _is_main():
            model.save(begun)
        model.train().requires_grad_(True)
        model.text_encoder.requires_grad_(self.train_text_encoder)
        return model, data

    def _token_side(self) -> int:
        """Pixels that a token of the model will span, each way, which is not read yet."""
        own = read_json(resolve(self.start).transformer / "config.json") if self.start else self.transformer
        return load_vae(vae_folder(self.start or self.vae)).ratio * int(own.get("patch_size", PATCH_SIZE))

    def _first(self, data: Mixture | Stream, card: Card) -> OmniAlpha:
        read = self.text_encoder.get("start")
        if self.start:
            parts = resolve(self.start)
            return self._begun(replace(parts, text=Path(read)) if read else parts, card)
        vae = AlphaVAE.load(self.vae)
        if read:
            text_encoder = load_text_encoder(Path(read), card)
        else:
            words = corpus(data, 200)
            text_encoder = build_tiny_text_encoder(words, picture_pixels=card.picture_pixels, **self.text_encoder)
        transformer = MultiImageTransformer(**self.transformer)
        initialize(transformer)
        if card.prediction == "x0":
            align(transformer)
        return OmniAlpha(vae, transformer, text_encoder, card)

    def _begun(self, parts: Parts, card: Card) -> OmniAlpha:
        parts = replace(parts, own_card=card)
        check(parts)
        return OmniAlpha.from_parts(parts)

    # ---- a LoRA -----------------------------------------------------------------------------------------------------

    def _lora(self) -> tuple[OmniAlpha, Mixture | Stream | CachedBatches]:
        """The model that a LoRA is trained on, and the batches."""
        parts = self.parts()
        if not self.cache:
            model = self._load(parts)
            return model, self.mixture(model.card, model.vae.ratio * model.patch)
        recipe, files, folder = self.drawn_from(), digests.files(parts), Path(self.cache)
        # 16 GB of a vision-language model are not read to see that they are what the cache was made with
        reads = bool(self.fit.validate_every) or read_settings(folder)["files"] != files
        model, begun = self._load(parts, reads=reads), Path(self.fit.output) / BEGUN
        resumed = begun.is_file() and begun.with_name("checkpoint.pt").is_file()
        count = json.loads(begun.read_text())["batches"] if resumed else None
        data = CachedBatches.open(folder, model, recipe, self.fit.seed, self.prompt_dropout, files, count)
        if not resumed and _is_main():
            begun.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(begun, json.dumps({"batches": len(data)}) + "\n")
        return model, data

    def parts(self) -> Parts:
        """Of `start`, with the card as it is trained with; InputError where it cannot do the tasks."""
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
        model = OmniAlpha.from_parts(parts, DTYPES[parts.own_card.dtype], whole, reads)
        if whole:
            adapters.apply(model.transformer, parts.adapters)
        return model

    def encoders(self, parts: Parts, device: str = "auto") -> OmniAlpha:
        """A model on its device, without the transformer's weights."""
        placement = Placement(device)
        where = placement.torch_device  # a wrong name is refused before anything is read
        model = self._load(parts, whole=False)
        if self.packing or self.tokens:
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


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"
