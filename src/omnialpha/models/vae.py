"""AlphaVAE: the RGBA autoencoder as a single-frame 2-D network.

The Qwen-Image VAE is a causal 3-D network. With one frame every temporal kernel sees zero frames before it, so only
its last
slice acts: the 2-D network below, with the same module names, is exactly equal and several times faster.
Sources: Qwen-Image (arXiv 2508.02324) for the architecture, AlphaVAE (arXiv 2507.09308) for the opaque initialisation.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from omnialpha import rgba
from omnialpha.errors import InputError
from omnialpha.models.folding import fold, unfold

DIFFUSERS_CLASSES = ("AutoencoderKLQwenImage", "AutoencoderKLQwenImageAlpha")
WEIGHTS = "diffusion_pytorch_model.safetensors"


class RMSNorm(nn.Module):
    """Normalise each pixel over its channels, then scale by gamma (C, 1, 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        return F.normalize(wide, dim=1).to(x.dtype) * self.gamma.shape[0] ** 0.5 * self.gamma


class ResidualBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = RMSNorm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out
        self.conv_shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(F.silu(self.norm2(h))) + self.conv_shortcut(x)


class AttentionBlock(nn.Module):
    """Single-head self-attention over all pixels of one picture."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels)
        self.to_qkv = nn.Conv2d(channels, channels * 3, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)  # (B, 1, HW, C)
        out = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).unflatten(2, (height, width))
        return self.proj(out) + x


class Resample(nn.Module):
    """Halve (stride-2 convolution) or double (nearest, then convolution to half the channels) the resolution."""

    def __init__(self, channels: int, up: bool) -> None:
        super().__init__()
        steps: tuple[nn.Module, nn.Module]
        if up:
            steps = (
                nn.Upsample(scale_factor=2.0, mode="nearest-exact"),
                nn.Conv2d(channels, channels // 2, 3, padding=1),
            )
        else:
            steps = (nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.resample = nn.Sequential(*steps)

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x)


class MidBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([AttentionBlock(channels)])
        self.resnets = nn.ModuleList([ResidualBlock(channels, channels) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class UpBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, blocks: int, up: bool) -> None:
        super().__init__()
        widths = [channels_in] + [channels_out] * blocks
        self.resnets = nn.ModuleList([ResidualBlock(a, channels_out) for a in widths])
        self.upsamplers = nn.ModuleList([Resample(channels_out, up=True)]) if up else None

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *(self.upsamplers or ())):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """(B, channels, H, W) -> (B, 2 z, H / 2^k, W / 2^k), k = len(dim_mult) - 1."""

    def __init__(self, channels: int, dim: int, z_out: int, dim_mult: list[int], blocks: int) -> None:
        super().__init__()
        dims = [dim * m for m in [1, *dim_mult]]
        self.conv_in = nn.Conv2d(channels, dims[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, (a, b) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
            self.down_blocks.extend(ResidualBlock(a if i == 0 else b, b) for i in range(blocks))
            if level < len(dim_mult) - 1:
                self.down_blocks.append(Resample(b, up=False))
        self.mid_block = MidBlock(dims[-1])
        self.norm_out = RMSNorm(dims[-1])
        self.conv_out = nn.Conv2d(dims[-1], z_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """(B, z, h, w) -> (B, channels, h 2^k, w 2^k)."""

    def __init__(self, channels: int, dim: int, z_in: int, dim_mult: list[int], blocks: int) -> None:
        super().__init__()
        dims = [dim * m for m in [dim_mult[-1], *reversed(dim_mult)]]
        self.conv_in = nn.Conv2d(z_in, dims[0], 3, padding=1)
        self.mid_block = MidBlock(dims[0])
        self.up_blocks = nn.ModuleList()
        for level, (a, b) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
            up = level < len(dim_mult) - 1
            self.up_blocks.append(UpBlock(a if level == 0 else a // 2, b, blocks, up))  # the upsampler halved a
        self.norm_out = RMSNorm(dims[-1])
        self.conv_out = nn.Conv2d(dims[-1], channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class AlphaVAE(ModelMixin, ConfigMixin):
    """RGBA (or RGB) pictures (B, C, H, W) in [0, 1] <-> latents (B, z_dim, H / ratio, W / ratio), normalised per
    channel.

    patch_size: pixels folded into channels before the network (1 for the released weights).
    linear_skip: adds a linear patch codec beside the network, which then learns what the codec leaves (small models).
    premultiplied: the network sees colour times alpha, so that colour under alpha 0 costs nothing.
    """

    config_name = "config.json"

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
        """Pictures in [0, 1] -> mean and log-variance of the posterior, before normalisation."""
        if self.config.premultiplied:
            x = rgba.premultiply(x)
        x = (x * 2 - 1).to(self.dtype)
        mean, logvar = self.quant_conv(self.encoder(F.pixel_unshuffle(x, self.config.patch_size))).chunk(2, dim=1)
        if self.config.linear_skip:
            mean = mean + self.linear_in(x)
        return mean, logvar.clamp(-30, 20)

    def reconstruct(self, z: Tensor) -> Tensor:
        """Latents before normalisation -> what the network says, in [-1, 1] but not clamped (training needs the
        overshoot).
        """
        x = F.pixel_shuffle(self.decoder(self.post_quant_conv(z)), self.config.patch_size)
        return x + self.linear_out(z) if self.config.linear_skip else x

    def encode(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in [0, 1], sides multiples of `ratio` -> normalised latents (the posterior's mode)."""
        assert x.shape[1] == self.config.channels, f"{x.shape[1]} channels given, the VAE has {self.config.channels}"
        mean, std = self.statistics
        return (self.moments(x)[0] - mean) / std

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents -> pictures (B, C, H, W) in [0, 1], straight alpha, float32."""
        mean, std = self.statistics
        x = ((self.reconstruct((latents * std + mean).to(self.dtype)).float().clamp(-1, 1)) + 1) / 2
        return rgba.unpremultiply(x).clamp(0, 1) if self.config.premultiplied else x

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each latent channel, (1, z, 1, 1)."""
        z = self.config.z_dim
        mean = torch.tensor(self.config.latents_mean or [0.0] * z, device=self.device)
        std = torch.tensor(self.config.latents_std or [1.0] * z, device=self.device)
        return mean.view(1, z, 1, 1), std.view(1, z, 1, 1)

    # ---- weights -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def set_linear_codec(self, basis: Tensor, mean: Tensor) -> None:
        """Start as a linear patch codec: basis (z, C * ratio^2) with orthonormal rows, of patches in [-1, 1] less mean
        (C,).
        """
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
    def load(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> AlphaVAE:
        """Read a VAE folder in our layout or in diffusers' (folded on the way)."""
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} holds no config.json: point to a VAE folder in the diffusers layout.")
        config = json.loads((folder / "config.json").read_text())
        if config.get("_class_name") not in DIFFUSERS_CLASSES:
            return cls.from_pretrained(folder, torch_dtype=dtype)
        if not (folder / WEIGHTS).is_file():
            raise InputError(f"{folder} holds no {WEIGHTS}: download or convert the VAE again.")
        state = fold(load_file(folder / WEIGHTS))
        keys = ("base_dim", "z_dim", "dim_mult", "num_res_blocks", "latents_mean", "latents_std")
        vae = cls(channels=state["encoder.conv_in.weight"].shape[1], **{k: config[k] for k in keys if k in config})
        vae.load_state_dict(state)
        return vae.to(dtype).eval()

    def export(self, folder: str | Path, source: str | Path) -> None:
        """Write a diffusers folder: the 3-D checkpoint at `source` with its acting slices replaced by these weights."""
        if self.config.patch_size != 1 or self.config.linear_skip or self.config.premultiplied:
            raise InputError("this VAE has parts that diffusers' does not: save it with save_pretrained.")
        folder, source = Path(folder), Path(source)
        config = json.loads((source / "config.json").read_text())
        if self.config.channels == 4:  # the class of the released RGBA VAE, which takes these two keys
            config.pop("input_channels", None)
            config |= {"_class_name": DIFFUSERS_CLASSES[1], "in_channels": 4, "out_channels": 4}
        statistics = {k: self.config[k] for k in ("latents_mean", "latents_std")}  # training may have moved them
        config |= {k: list(v) for k, v in statistics.items() if v is not None}
        folder.mkdir(parents=True, exist_ok=True)
        save_file(unfold(self.state_dict(), load_file(source / WEIGHTS)), folder / f"{WEIGHTS}.part")
        (folder / "config.json.part").write_text(json.dumps(config, indent=2) + "\n")
        for name in (WEIGHTS, "config.json"):
            os.replace(folder / f"{name}.part", folder / name)


@torch.no_grad()
def opaque_initialization(vae: AlphaVAE) -> AlphaVAE:
    """RGB VAE -> RGBA VAE that ignores alpha on the way in and answers alpha = 1 on the way out [OmniAlpha, appendix
    A.1].
    """
    if vae.config.channels != 3:
        raise InputError(
            f"opaque initialisation needs a 3-channel VAE, this one has {vae.config.channels}: use it as is."
        )
    if vae.config.patch_size != 1 or vae.config.linear_skip or vae.config.premultiplied:
        raise InputError("opaque initialisation needs a VAE in diffusers' layout, this one has parts of its own.")
    settings = {k: v for k, v in vae.config.items() if not k.startswith("_")} | {"channels": 4}
    wide, state = AlphaVAE(**settings), vae.state_dict()
    w = state["encoder.conv_in.weight"]
    state["encoder.conv_in.weight"] = torch.cat([w, torch.zeros_like(w[:, :1])], dim=1)
    w, b = state["decoder.conv_out.weight"], state["decoder.conv_out.bias"]
    state["decoder.conv_out.weight"] = torch.cat([w, torch.zeros_like(w[:1])])
    state["decoder.conv_out.bias"] = torch.cat([b, torch.ones_like(b[:1])])
    wide.load_state_dict(state)
    return wide.to(vae.dtype).eval()
