"""FLUX's autoencoder as an autoencoder: AlphaVAE (arXiv 2507.09308) gave it a fourth channel.

The network is diffusers' own, behind the interface of `Autoencoder`; a saved folder is one of diffusers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.models.vae.autoencoder import Autoencoder, build, channels_of, opaque_weights, read_config, read_weights

CLASSES = ("AutoencoderKL",)


class FluxVAE(Autoencoder):
    """Wraps an AutoencoderKL, whose latents are shifted and scaled by one number for all channels."""

    def __init__(self, network: AutoencoderKL) -> None:
        super().__init__()
        self.network = network
        settings = network.config
        self.ratio = 2 ** (len(settings.block_out_channels) - 1)
        self.register_to_config(
            channels=settings.in_channels,
            z_dim=settings.latent_channels,
            patch_size=1,
            linear_skip=False,
            premultiplied=False,
        )

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.network.encode((x * 2 - 1).to(self.dtype)).latent_dist
        return posterior.mean, posterior.logvar

    def reconstruct(self, z: Tensor) -> Tensor:
        return self.network.decode(z).sample

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        settings, z = self.network.config, self.config.z_dim
        return [settings.shift_factor or 0.0] * z, [1 / settings.scaling_factor] * z

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> Self:
        """Read a folder of diffusers' AutoencoderKL. Raises InputError for another class or damaged weights."""
        folder = Path(folder)
        config = read_config(folder, CLASSES)
        if config.get("latents_mean") or config.get("latents_std"):
            raise InputError(f"{folder} normalises its latents channel by channel, FLUX's does not: use FLUX's VAE.")
        state = read_weights(folder)
        channels = channels_of(state, str(folder))
        return cls(_network(config, channels, state, dtype, str(folder))).eval()

    def save_pretrained(self, folder: str | Path, **settings: Any) -> None:
        """Write diffusers' folder of the network."""
        self.network.save_pretrained(folder, **settings)

    @torch.no_grad()
    def widened(self) -> Self:
        config = {k: v for k, v in self.network.config.items() if not k.startswith("_")}
        made = _network(config, 4, opaque_weights(self.network.state_dict()), self.dtype, "the VAE")
        return type(self)(made).eval().to(self.device)


def _network(config: Any, channels: int, state: dict[str, Tensor], dtype: torch.dtype, where: str) -> AutoencoderKL:
    config = {**config, "in_channels": channels, "out_channels": channels}
    return build(lambda: AutoencoderKL.from_config(config), state, dtype, where)
