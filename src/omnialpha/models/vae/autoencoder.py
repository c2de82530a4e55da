"""What the picture VAEs share: one interface, batches in pieces, tiles, and how their folders are read."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from diffusers import ConfigMixin, ModelMixin
from safetensors.torch import load_file
from torch import Tensor, nn

from omnialpha import rgba
from omnialpha.errors import InputError
from omnialpha.models.checkpoints.card import read_json
from omnialpha.models.checkpoints.headers import DIFFUSERS_STEM, read_header, weight_files
from omnialpha.models.vae.tiling import Tiling, tiled

WEIGHTS = f"{DIFFUSERS_STEM}.safetensors"
FIRST, LAST = "encoder.conv_in", "decoder.conv_out"  # the layers that meet the picture's channels
# What an opaque alpha adds: to which weights, along which axis, which value. The linear path has none of it to add.
OPAQUE = (
    (f"{FIRST}.weight", 1, 0.0),
    (f"{LAST}.weight", 0, 0.0),
    (f"{LAST}.bias", 0, 1.0),
    ("linear_in.weight", 1, 0.0),
    ("linear_out.weight", 1, 0.0),
    ("linear_out.bias", 0, 0.0),
)

M = TypeVar("M", bound=nn.Module)


class Autoencoder(ModelMixin, ConfigMixin):
    """RGBA or RGB pictures (B, C, H, W) in [0, 1] <-> latents (B, z_dim, H / ratio, W / ratio), normalised by channel.

    max_batch_pixels: a batch runs in pieces of at most so many pixels, but a picture at least (None: all at once);
    the same up to rounding, and the memory of one piece.
    tiling: larger pictures run in overlapping tiles (None: never); approximate, see `tiles`.
    """

    config_name = "config.json"
    _supports_gradient_checkpointing = True  # `enable_gradient_checkpointing` is diffusers'
    ratio: int
    max_batch_pixels: int | None = None
    tiling: Tiling | None = None

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> Self:
        """Read a VAE folder. Raises InputError where it is damaged or of another class."""
        raise NotImplementedError

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures in [0, 1] -> mean and log-variance of the posterior, before normalisation."""
        raise NotImplementedError

    def reconstruct(self, z: Tensor) -> Tensor:
        """Latents before normalisation -> the network's output, in [-1, 1] but not clamped, for training."""
        raise NotImplementedError

    def widened(self) -> Self:
        """A copy for four channels, with `opaque_weights`."""
        raise NotImplementedError

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each latent channel."""
        z = self.config.z_dim
        return self.config.latents_mean or [0.0] * z, self.config.latents_std or [1.0] * z

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """The normalisation as tensors (1, z, 1, 1), float32 or wider."""
        dtype = torch.promote_types(self.dtype, torch.float32)
        mean, std = (torch.tensor(v, dtype=dtype, device=self.device).view(1, -1, 1, 1) for v in self.normalisation)
        return mean, std

    def encode(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in [0, 1], sides multiples of `ratio` -> normalised latents (the posterior's mode)."""
        self._check(x)
        assert x.shape[1] == self.config.channels, f"{x.shape[1]} channels given, the VAE has {self.config.channels}"
        assert not (x.shape[2] % self.ratio or x.shape[3] % self.ratio), f"{tuple(x.shape[2:])}: not {self.ratio} n"
        latents = self._run(lambda part: self.moments(part)[0], x, (self.ratio, 1))
        mean, std = (s.to(latents.device) for s in self.statistics)
        return (latents - mean) / std

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents -> pictures (B, C, H, W) in [0, 1], straight alpha, float32."""
        self._check(latents)
        mean, std = (s.to(latents.device) for s in self.statistics)
        x = self._run(self.reconstruct, (latents * std + mean).to(self.dtype), (1, self.ratio))
        x = (x.float().clamp(-1, 1) + 1) / 2
        return rgba.unpremultiply(x).clamp(0, 1) if self.config.premultiplied else x

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4:
            raise InputError(
                f"{type(self).__name__} takes single pictures (B, C, H, W), not shape {tuple(x.shape)}: "
                "give the frames of a video one by one."
            )

    def _run(self, function: Callable[[Tensor], Tensor], x: Tensor, spans: tuple[int, int]) -> Tensor:
        """function of a batch, in tiles and in pieces if so set. spans: entries of x and of the result to a latent."""

        def pieces(part: Tensor) -> Tensor:
            pixels = part.shape[2] * part.shape[3] * (self.ratio // spans[0]) ** 2
            count = len(part) if self.max_batch_pixels is None else max(1, self.max_batch_pixels // pixels)
            return function(part) if count >= len(part) else torch.cat([function(p) for p in part.split(count)])

        return tiled(pieces, x, *self.tiling.positions(self.ratio), spans) if self.tiling else pieces(x)


def opaque_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for RGB -> for RGBA: alpha is not seen on the way in, and is 1 on the way out.

    Pixels that are folded into channels lie colour by colour, so that those of alpha come last.
    """
    wide = dict(state)
    for name, axis, value in OPAQUE:
        if name in state:
            old = state[name]
            wide[name] = torch.cat([old, torch.full_like(old.narrow(axis, 0, old.shape[axis] // 3), value)], dim=axis)
    return wide


# ---- reading --------------------------------------------------------------------------------------------------------


def read_config(folder: Path, classes: Collection[str]) -> dict[str, Any]:
    """The config.json of a VAE folder whose class is one of `classes`."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no config.json: point to a VAE folder in the diffusers layout.")
    config = read_json(folder / "config.json")
    if (name := config.get("_class_name")) not in classes:
        raise InputError(
            f"{folder} holds a {name}, not an autoencoder for pictures known here: use {' or '.join(classes)}."
        )
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder, from one file or from the shards of its index."""
    state: dict[str, Tensor] = {}
    for path in weight_files(folder, DIFFUSERS_STEM):
        read_header(path)  # refuses a damaged file
        state |= load_file(path)
    return state


def channels_of(state: Mapping[str, Tensor], where: str) -> int:
    """Channels of the pictures that these weights read and write; InputError where they are not the same."""
    try:
        reads, writes = state[f"{FIRST}.weight"].shape[1], state[f"{LAST}.weight"].shape[0]
    except KeyError as name:
        raise InputError(f"{where} lacks the weight {name}: download or convert the VAE again.") from None
    if reads != writes:
        raise InputError(f"{where} reads {reads} channels and writes {writes}: use a VAE that does both alike.")
    return reads


def build(make: Callable[[], M], state: Mapping[str, Tensor], dtype: torch.dtype, where: str) -> M:
    """make()'s module with these weights, as dtype, on the CPU and in evaluation mode. where: whose, for the error."""
    with torch.device("meta"):  # nothing is initialised in vain
        module = make()
    nn.Module.to(module, dtype).to_empty(device="cpu")
    try:
        module.load_state_dict(state)
    except RuntimeError as error:  # which lists keys and shapes
        reason = textwrap.shorten(str(error), 400)
        raise InputError(f"{where} has weights that do not fit its config.json ({reason}): restore both.") from None
    return module.eval()
