"""AlphaVAE: the RGBA VAE as a single-frame 2-D network, and `load_vae`, which reads any VAE that is known.

The Qwen-Image VAE is a causal 3-D network. With one frame every temporal kernel sees zero frames before it, so only its
last slice acts: the 2-D network, with the same module names, is exactly equal and several times faster.
Sources: Qwen-Image (arXiv 2508.02324) for the architecture, AlphaVAE (arXiv 2507.09308) for the opaque initialisation.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Self, TypeVar

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage
from diffusers.configuration_utils import register_to_config
from safetensors.torch import save_file
from torch import Tensor, nn

from omnialpha import rgba
from omnialpha.errors import InputError
from omnialpha.files import atomic_write
from omnialpha.models.checkpoints.card import forget_origin, write_json
from omnialpha.models.flux import vae as flux_vae
from omnialpha.models.flux.vae import FluxVAE
from omnialpha.models.vae.autoencoder import (
    FIRST,
    WEIGHTS,
    Autoencoder,
    build,
    channels_of,
    opaque_weights,
    read_config,
    read_weights,
)
from omnialpha.models.vae.blocks import Decoder, Encoder
from omnialpha.models.vae.folding import fold, unfold

OWN = "AlphaVAE"
DIFFUSERS_CLASSES = ("AutoencoderKLQwenImage", "AutoencoderKLQwenImageAlpha")  # the first also of Qwen-Image-Layered
SHARED = ("base_dim", "z_dim", "dim_mult", "num_res_blocks", "latents_mean", "latents_std")  # settings of both

C = TypeVar("C", bound=Autoencoder)


class AlphaVAE(Autoencoder):
    """The autoencoder of the Qwen-Image weights and of our own small models.

    patch_size: pixels folded into channels before the network (1 for the released weights).
    linear_skip: adds a linear patch VAE beside the network, which then learns what the VAE leaves (small models).
    premultiplied: the network sees colour times alpha, so that colour under alpha 0 costs nothing.
    """

    @register_to_config
    def __init__(
        self,
        base_dim: int = 96,
        z_dim: int = 16,
        dim_mult: list[int] = [1, 2, 4, 4],  # noqa: B006 - read by register_to_config, never changed
        num_res_blocks: int = 2,
        channels: int = 4,
        patch_size: int = 1,
        linear_skip: bool = False,
        premultiplied: bool = False,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
    ) -> None:
        super().__init__()
        folded = channels * patch_size**2
        dim_mult = list(dim_mult)
        self.ratio = patch_size * 2 ** (len(dim_mult) - 1)
        self.encoder = Encoder(folded, base_dim, 2 * z_dim, dim_mult, num_res_blocks)
        self.quant_conv = nn.Conv2d(2 * z_dim, 2 * z_dim, 1)
        self.post_quant_conv = nn.Conv2d(z_dim, z_dim, 1)
        self.decoder = Decoder(folded, base_dim, z_dim, dim_mult, num_res_blocks)
        if linear_skip:
            self.linear_in = nn.Conv2d(channels, z_dim, self.ratio, stride=self.ratio)
            self.linear_out = nn.ConvTranspose2d(z_dim, channels, self.ratio, stride=self.ratio)

    # ---- the two directions ------------------------------------------------------------------------------------

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.premultiplied:
            x = rgba.premultiply(x)
        x = (x * 2 - 1).to(self.dtype)
        mean, logvar = self.quant_conv(self.encoder(F.pixel_unshuffle(x, self.config.patch_size))).chunk(2, dim=1)
        if self.config.linear_skip:
            mean = mean + self.linear_in(x)
        return mean, logvar.clamp(-30, 20)

    def reconstruct(self, z: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.decoder(self.post_quant_conv(z)), self.config.patch_size)
        return x + self.linear_out(z) if self.config.linear_skip else x

    # ---- weights -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def set_linear_autoencoder(self, basis: Tensor, mean: Tensor) -> None:
        """Start as a linear patch VAE: basis (z, C * ratio^2), orthonormal, of patches in [-1, 1] less mean (C,)."""
        weight = basis.view(self.config.z_dim, self.config.channels, self.ratio, self.ratio)
        self.linear_in.weight.copy_(weight)
        self.linear_out.weight.copy_(weight)
        self.linear_in.bias.copy_(-(weight.sum(dim=(2, 3)) @ mean))  # type: ignore[union-attr]
        self.linear_out.bias.copy_(mean)  # type: ignore[union-attr]
        for last in (self.quant_conv, self.decoder.conv_out):  # the network starts with nothing to add
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.quant_conv.bias[self.config.z_dim :] = -6.0  # type: ignore[index]

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> Self:
        """Read a VAE folder in our layout or in that of diffusers' Qwen-Image VAE (folded on the way)."""
        folder = Path(folder)
        config, state = read_config(folder, (OWN, *DIFFUSERS_CLASSES)), read_weights(folder)
        if config["_class_name"] in DIFFUSERS_CLASSES:
            if config.get("attn_scales"):
                raise InputError(
                    f"{folder} attends at the scales {config['attn_scales']}: use a VAE without attn_scales."
                )
            # what is not written is diffusers' default, the latents' statistics too
            defaults = inspect.signature(AutoencoderKLQwenImage.__init__).parameters
            config, state = {k: config.get(k, defaults[k].default) for k in SHARED}, fold(state)
            config["channels"] = channels_of(state, str(folder))
        return build(lambda: cls.from_config(config), state, dtype, str(folder))

    def export(self, folder: Path, source: Path | None = None, dtype: torch.dtype | None = None) -> None:
        """Write a folder of diffusers' Qwen-Image VAE.

        Args:
            folder: where.
            source: the 3-D checkpoint whose acting slices these weights replace; None for one that is 0 elsewhere and
                never resamples in time.
            dtype: of the written weights; None keeps it.

        Raises:
            InputError: this VAE has parts that diffusers' does not.
        """
        own = self.config
        if own.patch_size != 1 or own.linear_skip or own.premultiplied:
            raise InputError("this VAE has parts that diffusers' does not: save it with save_pretrained.")
        statistics = {key: own[key] and list(own[key]) for key in ("latents_mean", "latents_std")}
        if source is None:
            config = {"_class_name": DIFFUSERS_CLASSES[0], "input_channels": own.channels, "attn_scales": []}
            config |= {key: own[key] for key in SHARED if key not in statistics}
            config["temperal_downsample"] = [False] * (len(own.dim_mult) - 1)
            config |= dict(zip(statistics, self.normalisation, strict=True))
            with torch.device("meta"):
                shapes = AutoencoderKLQwenImage.from_config(config).state_dict()
            template = {key: torch.zeros(value.shape) for key, value in shapes.items()}
        else:
            config, template = read_config(source, DIFFUSERS_CLASSES), read_weights(source)
            if own.channels != template[f"{FIRST}.weight"].shape[1]:
                # the class of the released RGBA VAE, which takes these two keys
                config.pop("input_channels", None)
                config |= {"_class_name": DIFFUSERS_CLASSES[1], "in_channels": 4, "out_channels": 4}
            config |= {key: values for key, values in statistics.items() if values}  # training may have moved them
        state = {key: value.to(dtype or value.dtype) for key, value in unfold(self.state_dict(), template).items()}
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / WEIGHTS, lambda path: save_file(state, path, {"format": "pt"}))
        write_json(folder / "config.json", config)

    @torch.no_grad()
    def widened(self) -> Self:
        config = {k: v for k, v in self.config.items() if not k.startswith("_")} | {"channels": 4}
        made = build(lambda: type(self).from_config(config), opaque_weights(self.state_dict()), self.dtype, "the VAE")
        return made.to(self.device)


def opaque_initialization(vae: C) -> C:
    """RGB VAE -> RGBA VAE that ignores alpha on the way in and gives alpha 1 on the way out [OmniAlpha, A.1]."""
    if (channels := vae.config.channels) != 3:
        raise InputError(f"opaque initialisation needs a 3-channel VAE, this one has {channels}: use it as is.")
    return vae.widened()


CLASSES: dict[str, type[Autoencoder]] = dict.fromkeys((OWN, *DIFFUSERS_CLASSES), AlphaVAE)
CLASSES |= dict.fromkeys(flux_vae.CLASSES, FluxVAE)


def load_vae(folder: str | Path, dtype: torch.dtype = torch.float32, widen: bool = False) -> Autoencoder:
    """The autoencoder in a VAE folder, whichever of CLASSES. widen: one for RGB is given an opaque alpha channel."""
    vae = CLASSES[read_config(Path(folder), CLASSES)["_class_name"]].load(folder, dtype)
    return opaque_initialization(vae) if widen and vae.config.channels == 3 else vae


def write(vae: Autoencoder, folder: str | Path, source: str | Path | None = None) -> None:
    """Save a VAE in the layout of `source`, the folder that it was read from, or of its own (None). Weights of a
    Qwen-Image VAE go back into their three dimensions, over the rest of what is there.
    """
    if isinstance(vae, AlphaVAE) and source and read_config(Path(source), CLASSES)["_class_name"] in DIFFUSERS_CLASSES:
        vae.export(Path(folder), Path(source))
    else:
        vae.save_pretrained(folder)
    forget_origin(Path(folder) / "config.json")
