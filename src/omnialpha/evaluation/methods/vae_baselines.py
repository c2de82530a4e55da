"""diffusers' own autoencoders on the reconstruction benchmark, beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnialpha.models.flux import vae as flux_vae
from omnialpha.models.vae.alphavae import DIFFUSERS_CLASSES
from omnialpha.models.vae.autoencoder import Autoencoder, build, channels_of, read_config, read_weights

PREFIX = "diffusers:"  # before a folder, where a model is asked for


class DiffusersVAE(Autoencoder):
    """diffusers' AutoencoderKLQwenImage or AutoencoderKL, run as it is: the first one on videos of one frame.

    Latents are not normalised, as nothing but the decoder sees them.
    """

    def __init__(self, network: Any, channels: int) -> None:
        super().__init__()
        self.network, settings = network, network.config
        self.video = "temperal_downsample" in settings
        levels = settings.dim_mult if self.video else settings.block_out_channels
        z_dim = settings.z_dim if self.video else settings.latent_channels
        self.ratio = 2 ** (len(levels) - 1)
        self.register_to_config(
            channels=channels, z_dim=z_dim, premultiplied=False, latents_mean=None, latents_std=None
        )

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = (x * 2 - 1).to(self.dtype)
        posterior = self.network.encode(x[:, :, None] if self.video else x).latent_dist
        return (
            (posterior.mean[:, :, 0], posterior.logvar[:, :, 0]) if self.video else (posterior.mean, posterior.logvar)
        )

    def reconstruct(self, z: Tensor) -> Tensor:
        return self.network.decode(z[:, :, None]).sample[:, :, 0] if self.video else self.network.decode(z).sample


def of_diffusers_vae(folder: str | Path) -> DiffusersVAE:
    """The network of a VAE folder in diffusers' layout, in float32, for RGB or RGBA. InputError where it is none."""
    import diffusers

    folder = Path(folder)
    config = read_config(folder, (*DIFFUSERS_CLASSES, *flux_vae.CLASSES))
    state = read_weights(folder)
    channels = channels_of(state, str(folder))
    if config["_class_name"] in DIFFUSERS_CLASSES:  # that for RGBA is the same network, and not in diffusers
        kind, given = diffusers.AutoencoderKLQwenImage, {"input_channels": channels}
    else:
        kind, given = diffusers.AutoencoderKL, {"in_channels": channels, "out_channels": channels}
    known = {
        name: value for name, value in config.items() if name not in ("_class_name", "in_channels", "out_channels")
    }
    network = build(lambda: kind.from_config(known | given), state, torch.float32, str(folder))
    return DiffusersVAE(network, channels).eval()
