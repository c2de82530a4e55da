"""The 2-D network of the RGBA VAE: residual blocks with RMS norm, one attention in the middle, resampling by two.

Module names are those of the Qwen-Image VAE (arXiv 2508.02324), whose weights are folded into it. Pictures run through
it with the channels last in memory: normalising a pixel then reads neighbours, and CPU and GPU convolve without
reordering.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnialpha.models.vae import winograd

# A nearest-neighbour doubling followed by a 3-tap filter w is one transposed filter of stride 2 with the taps SPREAD w
SPREAD = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))
NORM_FLOOR = 1e-12  # a pixel's norm is taken to be at least this


class RMSNorm(nn.Module):
    """Normalise each pixel over its channels, then scale by gamma (C, 1, 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        channels = self.gamma.shape[0]
        y = F.rms_norm(x.movedim(1, -1), (channels,), self.gamma.flatten(), NORM_FLOOR**2 / channels)
        return y.movedim(-1, 1)


def activated(norm: RMSNorm, x: Tensor) -> Tensor:
    """silu(norm(x)), in the memory of the norm's output, which nothing else reads."""
    return F.silu(norm(x), inplace=True)


def activate(norm: RMSNorm, pixels: Tensor, out: Tensor) -> None:
    """out = silu(norm(pixels)), both (.., C)."""
    lengths = torch.linalg.vector_norm(pixels, dim=-1, keepdim=True).clamp_(min=NORM_FLOOR)
    torch.mul(pixels, lengths.reciprocal_(), out=out)
    F.silu(out.mul_(norm.gamma.flatten() * math.sqrt(len(norm.gamma))), inplace=True)


def convolved(norm: RMSNorm, conv: nn.Conv2d, x: Tensor, add: Tensor | None = None) -> Tensor:
    """conv(silu(norm(x))) + add, which may be overwritten."""
    if (y := winograd.convolve(x, conv, partial(activate, norm), add)) is not None:
        return y
    y = conv(activated(norm, x))
    return y if add is None else y.add_(add)


class ResidualBlock(nn.Module):
    """Two convolutions with norm and SiLU before each, and a shortcut. Its input may be overwritten."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = RMSNorm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out
        self.conv_shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = convolved(self.norm1, self.conv1, x)
        return convolved(self.norm2, self.conv2, h, self.conv_shortcut(x))


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
        out = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.proj(out.transpose(1, 2).unflatten(2, (height, width)))  # laid out in memory like x


class Upsample(nn.Conv2d):
    """The 3x3 convolution of a picture doubled by nearest neighbour, (B, C, H, W) -> (B, C / 2, 2 H, 2 W), without
    ever making that picture: four taps in place of nine for each output pixel.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if (y := winograd.convolve(x, self, doubled=True)) is not None:
            return y
        wide = torch.promote_types(self.weight.dtype, torch.float32)  # sums of half-precision taps are rounded once
        spread = torch.tensor(SPREAD, dtype=wide, device=x.device)
        taps = torch.einsum("ay,oiyx,bx->ioab", spread, self.weight.to(wide), spread).to(x.dtype)
        return F.conv_transpose2d(x, taps, self.bias, stride=2, padding=1)


class Resample(nn.Module):
    """Halve (stride-2 convolution) or double (to half the channels) the resolution."""

    def __init__(self, channels: int, up: bool) -> None:
        super().__init__()
        down = (nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.resample = nn.Sequential(nn.Identity(), Upsample(channels)) if up else nn.Sequential(*down)

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x)


class MidBlock(nn.Module):
    """A residual block, attention and a residual block, at the lowest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([AttentionBlock(channels)])
        self.resnets = nn.ModuleList([ResidualBlock(channels, channels) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Chain(nn.Module):
    """Layers one after the other. With gradient checkpointing only what lies between them waits for the backward pass,
    which computes the rest again.
    """

    gradient_checkpointing = False  # set, with the function, by diffusers' enable_gradient_checkpointing
    _gradient_checkpointing_func: Callable[[nn.Module, Tensor], Tensor]

    def through(self, layers: Iterable[nn.Module], x: Tensor) -> Tensor:
        """Run the layers one after the other, with checkpointing where it is on."""
        again = self.gradient_checkpointing and torch.is_grad_enabled()
        for layer in layers:
            x = self._gradient_checkpointing_func(layer, x) if again else layer(x)
        return x


class UpBlock(Chain):
    """Residual blocks of one resolution, and the doubling behind them."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, up: bool) -> None:
        super().__init__()
        widths = [channels_in] + [channels_out] * blocks
        self.resnets = nn.ModuleList([ResidualBlock(a, channels_out) for a in widths])
        self.upsamplers = nn.ModuleList([Resample(channels_out, up=True)]) if up else None

    def forward(self, x: Tensor) -> Tensor:
        return self.through((*self.resnets, *(self.upsamplers or ())), x)


class Encoder(Chain):
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
        x = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        x = self.through((*self.down_blocks, self.mid_block), x)
        return self.conv_out(activated(self.norm_out, x))


class Decoder(Chain):
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
        x = self.through((self.mid_block,), self.conv_in(z.contiguous(memory_format=torch.channels_last)))
        for block in self.up_blocks:
            x = block(x)
        return convolved(self.norm_out, self.conv_out, x)
