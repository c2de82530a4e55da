"""[kind = "vae"] An autoencoder from nothing, or one that exists, fine-tuned: an RGB one is given an alpha channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from omnialpha.errors import InputError
from omnialpha.models.vae.alphavae import AlphaVAE, load_vae
from omnialpha.models.vae.autoencoder import Autoencoder
from omnialpha.training.objective import FitSettings, Objective
from omnialpha.training.perceptual import PerceptualSettings
from omnialpha.training.sources import (
    DataSettings,
    FlattenedPictures,
    FolderSettings,
    Pictures,
    ScenePictures,
    folder_pictures,
    load_banks,
)
from omnialpha.training.vae import Background, DiscriminatorSettings, VAELoss, VAEObjective, fit_linear_autoencoder


@dataclass(frozen=True)
class VAERecipe:
    """start: the folder of a VAE, or else [model]: the arguments of an AlphaVAE. [pictures] folders, or else [data].

    widen: an RGB VAE at `start` begins as an RGBA one by opaque initialisation; false trains it as it is.
    flatten: the share of pictures made opaque, on colours of {0, .5, 1}^3; all of them for an RGB VAE.
    """

    kind: str
    fit: FitSettings
    start: str = ""
    widen: bool = True
    model: dict[str, Any] = field(default_factory=dict)
    data: DataSettings = DataSettings()
    pictures: FolderSettings = FolderSettings()
    loss: VAELoss = VAELoss()
    background: Background = Background()
    discriminator: DiscriminatorSettings = DiscriminatorSettings()
    perceptual: PerceptualSettings = PerceptualSettings()
    batch: int = 32
    sizes: list[list[int]] = field(default_factory=lambda: [[96, 96]])
    flatten: float = 0.0
    checkpointing: bool = False  # activations are computed twice, and the memory of most is saved

    def objective(self) -> Objective:
        if bool(self.start) == bool(self.model):
            raise InputError(
                "the recipe needs either start, the folder of a VAE, or a table [model]: give one of them."
            )
        torch.manual_seed(self.fit.seed)
        vae: Autoencoder = load_vae(self.start, widen=self.widen) if self.start else AlphaVAE(**self.model)
        vae.requires_grad_(True).train()
        for height, width in self.sizes:
            if height % vae.ratio or width % vae.ratio:
                raise InputError(f"sizes has [{height}, {width}]: this VAE takes multiples of {vae.ratio}.")
        sizes = [(h, w) for h, w in self.sizes]
        sides: Sequence[Pictures] = (
            folder_pictures(self.pictures, self.batch, sizes)
            if self.pictures.folders
            else [ScenePictures(bank, self.batch, sizes, self.fit.seed) for bank in load_banks(self.data)]
        )
        shares = (1.0, 1.0) if vae.config.channels == 3 else (self.flatten, 0.0)
        train, test = (FlattenedPictures(side, share, self.fit.seed) for side, share in zip(sides, shares, strict=True))
        if isinstance(vae, AlphaVAE) and vae.config.linear_skip and not self.start:
            first = torch.cat([train[-i * len(sizes)] for i in range(1, 25)])
            fit_linear_autoencoder(vae, first[:, : vae.config.channels])
        if self.checkpointing:
            vae.enable_gradient_checkpointing()
        distance = self.perceptual.distance()
        source = Path(self.start) if self.start else None
        return VAEObjective(vae, train, test, self.loss, self.background, self.discriminator, distance, source)
