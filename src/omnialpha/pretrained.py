"""A pipeline from the files of its parts, and back."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from torch import nn

from omnialpha.errors import InputError
from omnialpha.files import replace_path
from omnialpha.models.checkpoints.folders import Card, Parts, forget_origin, resolve
from omnialpha.models.families import FAMILIES
from omnialpha.models.finder import FINDER, open_finder
from omnialpha.models.lora import adapters
from omnialpha.models.u2net import U2NetP
from omnialpha.models.vae.alphavae import load_vae


def load_text_encoder(folder: Path, card: Card, dtype: torch.dtype = torch.float32) -> Any:
    """What reads instructions for a model of this card, from the folder that holds its parts; InputError where they are
    damaged.
    """
    family = FAMILIES[card.family]
    settings = {name: value for name in family.card_settings if (value := getattr(card, name)) is not None}
    return family.load("text_encoder").from_pretrained(folder, dtype, **settings)


class Pretrained:
    """Loading and saving, mixed into the pipeline."""

    vae: Any
    transformer: Any
    text_encoder: Any
    card: Card

    @classmethod
    def from_parts(
        cls, parts: Parts, dtype: torch.dtype = torch.float32, whole: bool = True, reads: bool = True
    ) -> Self:
        """Load the parts of a model into main memory, without their adapters.

        Args:
            parts: Where they are.
            dtype: Of the weights.
            whole: False leaves the transformer's weights out, for encoding only.
            reads: False leaves the text encoder out.

        Raises:
            InputError: A part is damaged.
        """
        card, family = parts.card, FAMILIES[parts.card.family]
        network = family.load("transformer")
        if whole:
            transformer = network.from_pretrained(parts.transformer, torch_dtype=dtype, local_files_only=True)
        else:
            with torch.device("meta"):
                transformer = network.from_config(network.load_config(parts.transformer))
        text_encoder = load_text_encoder(parts.text, card, dtype) if reads else nn.Identity()
        pipeline: Any = cls
        model = pipeline(load_vae(parts.vae, dtype, widen=True), transformer, text_encoder, card)
        model.use_finder(open_finder(parts.finder) if parts.finder else None)
        return model.eval().requires_grad_(False)

    @classmethod
    def from_folder(cls, where: str | Path | None = None, dtype: torch.dtype = torch.float32) -> Self:
        """Load a bundled model by its name (None: nano), or a model folder, as `from_parts` does."""
        return cls.from_parts(resolve(where), dtype)

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a model folder that `from_folder` reads.

        Args:
            folder: Where. Files of the same names are replaced once everything is written; others stay.
            dtype: Of the written weights; None keeps it.

        Raises:
            InputError: Adapters are applied.
        """
        if adapters.applied(self.transformer):
            raise InputError("the model has LoRAs on it: fuse them (adapters.fuse) or take them off before saving it.")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", suffix=".tmp", dir=folder) as made:
            new = Path(made)
            for name, part in (("vae", self.vae), ("transformer", self.transformer)):
                # nn.Module.to: that of diffusers warns about modules kept in float32 even where there are none
                part = nn.Module.to(copy.deepcopy(part), dtype) if dtype else part
                part.save_pretrained(new / name)
                forget_origin(new / name / "config.json")
            self.text_encoder.save_pretrained(new, dtype)
            card = self.card
            if isinstance(finder := getattr(self, "finder", None), U2NetP):
                finder.save(new / FINDER)
                card = replace(card, finder=FINDER)
            card.write(new)
            for written in sorted(new.iterdir()):
                replace_path(written, folder / written.name)
