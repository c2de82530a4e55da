"""U²-Netp [Qin et al. 2020, arXiv 2005.09007] with a hint, and the same network fine-tuned for drawings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnialpha import rgba
from omnialpha.models.network_files import read_network, write_network
from omnialpha.models.pointer import POINTER, Pointer

EXPERT = "expert"  # the folder of a finder's expert in its own
SIDE = 320  # pixels, each way: what U²-Net was trained at
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
SURE = 0.9  # of a picture being a drawing, before the expert sees it


def prepare(pictures: Tensor, side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Straight RGBA (B, 4, H, W) -> (B, 3, side, side): on white, stretched to a square, its brightest value 1."""
    rgb = F.interpolate(rgba.flatten(pictures), size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    rgb = rgb / rgb.amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)
    shift, scale = (torch.tensor(v, device=rgb.device).view(3, 1, 1) for v in (mean, std))
    return (rgb - shift) / scale


def stretched(maps: Tensor) -> Tensor:
    """Maps (B, H, W) -> between their least and their greatest value: what U²-Net's own answers are read by."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-6)


class ConvReLU(nn.Sequential):
    """3x3 convolution that keeps the size, and ReLU; batch norm of the published network is folded into it."""

    def __init__(self, channels_in: int, channels: int, dilation: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True)
        )


class ResidualUBlock(nn.Module):
    """RSU-L [section 3.1]: a U-net of `depth` convolutions each way, added to what it began with.

    dilated: RSU-4F, which widens its view by dilation 1, 2, 4, 8 in the place of pooling.
    """

    def __init__(self, depth: int, channels_in: int, inner: int, channels: int, dilated: bool = False) -> None:
        super().__init__()
        self.pools = not dilated
        rates = [2**k for k in range(depth)] if dilated else [1] * (depth - 1) + [2]
        widths = [channels] + [inner] * (depth - 1)
        self.begin = ConvReLU(channels_in, channels)
        self.down = nn.ModuleList(ConvReLU(width, inner, rate) for width, rate in zip(widths, rates, strict=True))
        self.up = nn.ModuleList(  # deepest first
            ConvReLU(2 * inner, channels if k == 0 else inner, rates[k]) for k in reversed(range(depth - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H, W)."""
        begun = self.begin(x)
        seen, last, x = [], len(self.down) - 1, begun
        for k, conv in enumerate(self.down):
            x = conv(_halve(x) if self.pools and 0 < k < last else x)
            seen.append(x)
        x = seen.pop()
        for conv in self.up:
            x = conv(torch.cat([_like(x, seen[-1]), seen.pop()], dim=1))
        return x + begun


class HintBlock(nn.Module):
    """Two convolutions of a block's output and a hint, added to the output; nothing where there is no hint."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.mix = ConvReLU(channels + 3, inner)
        self.add = nn.Conv2d(inner, channels, 3, padding=1)
        nn.init.zeros_(self.add.weight)
        nn.init.zeros_(self.add.bias)  # type: ignore[arg-type]

    def forward(self, y: Tensor, hint: Tensor) -> Tensor:
        """y (B, C, h, w), hint (B, 1, H, W) in [-1, 1] -> (B, C, h, w)."""
        size = (y.shape[2], y.shape[3])
        marks = [F.adaptive_max_pool2d(side, size) for side in (hint.relu(), (-hint).relu())]  # a click stays a click
        change = self.add(self.mix(torch.cat([y, F.adaptive_avg_pool2d(hint, size), *marks], dim=1)))
        return y + change * (hint != 0).flatten(1).any(dim=1).view(-1, 1, 1, 1)


def _halve(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, 2, ceil_mode=True)


def _like(x: Tensor, other: Tensor) -> Tensor:
    size = other.shape[-2:]
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class U2NetP(nn.Module):
    """(B, 3 + 1, H, W): colour as `prepare` gives it, and a hint in [-1, 1], 0 where nothing is known ->
    logits (B, 7, H, W) of the subject: the fused map first, then those of six scales.

    pointer: where a text says to look, if it has one. expert: what sees drawings in its place, if it has one.
    """

    hints, side_length = True, SIDE
    pointer: Pointer | None
    expert: DrawingExpert | None

    def __init__(self, inner: int = 16, width: int = 64, depths: tuple[int, ...] = (7, 6, 5, 4, 4, 4)) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"inner": inner, "width": width, "depths": list(depths)}
        dilated = [False] * (len(depths) - 2) + [True, True]
        given = [3] + [width] * (len(depths) - 1)
        self.encoder = nn.ModuleList(
            ResidualUBlock(d, c, inner, width, f) for d, c, f in zip(depths, given, dilated, strict=True)
        )
        self.decoder = nn.ModuleList(  # deepest first
            ResidualUBlock(depths[k], 2 * width, inner, width, dilated[k]) for k in reversed(range(len(depths) - 1))
        )
        self.side = nn.ModuleList(nn.Conv2d(width, 1, 3, padding=1) for _ in depths)  # finest first
        self.fuse = nn.Conv2d(len(depths), 1, 1)
        self.told = nn.ModuleList(HintBlock(width, inner) for _ in range(2 * len(depths) - 1))  # one a block, in order
        self.pointer = self.expert = None

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x), x)

    def encode(self, x: Tensor) -> list[Tensor]:
        """What the encoder sees at every scale, (B, width, h, w), finest first."""
        y, seen, tell = x[:, :3], list[Tensor](), self._teller(x)
        for k, block in enumerate(self.encoder):
            y = tell(k, block(_halve(y) if k else y))
            seen.append(y)
        return seen

    def decode(self, seen: list[Tensor], x: Tensor) -> Tensor:
        """Logits (B, 7, H, W) of what the encoder saw in x."""
        tell, (*rest, y) = self._teller(x), seen
        maps = [y]  # deepest first
        for k, (block, finer) in enumerate(zip(self.decoder, reversed(rest), strict=True), len(self.encoder)):
            y = tell(k, block(torch.cat([_like(y, finer), finer], dim=1)))
            maps.append(y)
        logits = [_like(side(y), x) for side, y in zip(self.side, reversed(maps), strict=True)]
        return torch.cat([self.fuse(torch.cat(logits, dim=1)), *logits], dim=1)

    def _teller(self, x: Tensor) -> Callable[[int, Tensor], Tensor]:
        """What changes the output of block k by the hint in x."""
        hint = x[:, 3:]
        hinted = self.hints and bool(hint.any())
        return lambda k, y: self.told[k](y, hint) if hinted else y

    @torch.no_grad()
    def find(self, pictures: Tensor, hints: Tensor | None = None, mirror: bool = True) -> Tensor:
        """See `Finder`. The mean over a picture and its mirror image."""
        x = self.read(pictures, hints)
        if not mirror:
            return self(x)[:, 0].sigmoid().float()
        both = self(torch.cat([x, x.flip(-1)]))[:, 0].sigmoid().float()
        seen, mirrored = both.chunk(2)
        return (seen + mirrored.flip(-1)) / 2

    def read(self, pictures: Tensor, hints: Tensor | None = None, side: int | None = None) -> Tensor:
        """What goes in, (B, 4, side, side), of pictures (B, 4, H, W) and hints (B, h, w). side: its own by default."""
        size = (side or self.side_length,) * 2
        rgb = prepare(pictures, size[0], MEAN, STD)
        known = torch.zeros_like(rgb[:, :1]) if hints is None else hints[:, None].float()
        known = F.interpolate(known, size=size, mode="bilinear", antialias=True)
        return torch.cat([rgb, known], dim=1).to(self.fuse.weight.dtype)

    def save(self, folder: Path, dtype: torch.dtype = torch.float16) -> None:
        """Weights and sizes, as `open_finder` reads them. In bfloat16 its mattes are visibly worse: decision 17."""
        parts = {POINTER: self.pointer, EXPERT: self.expert}
        own = {name: value for name, value in self.state_dict().items() if name.partition(".")[0] not in parts}
        write_network(folder, {"class": type(self).__name__, **self.config}, own, dtype)
        for name, part in parts.items():
            if part is not None:
                part.save(folder / name, dtype)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a finder from a folder that `save` wrote. Raises InputError where it is damaged."""
        sizes = lambda config: cls(config["inner"], config["width"], tuple(config["depths"]))  # noqa: E731
        net = read_network(folder, "finder", sizes)
        if (folder / POINTER).is_dir():
            net.pointer = Pointer.load(folder / POINTER)
        if (folder / EXPERT).is_dir():
            net.expert = DrawingExpert.load(folder / EXPERT)
        return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class DrawingExpert(U2NetP):
    """U²-Netp fine-tuned on drawn layers at 96 px, and a gate, which says whether a picture is a drawing. No hints."""

    hints, side_length = False, 96

    def __init__(self, inner: int = 16, width: int = 64, depths: tuple[int, ...] = (7, 6, 5, 4, 4, 4)) -> None:
        super().__init__(inner, width, depths)
        self.told = nn.ModuleList()
        self.gate = nn.Linear(width * len(depths), 1)

    @classmethod
    def of(cls, finder: U2NetP) -> Self:
        """One that begins with a finder's weights."""
        own = cls(finder.config["inner"], finder.config["width"], tuple(finder.config["depths"]))
        own.load_state_dict(finder.state_dict(), strict=False)  # but for hints and the gate
        return own.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def judge(self, seen: list[Tensor]) -> Tensor:
        """Logits (B,) of a drawing, of what the encoder saw."""
        return self.gate(torch.cat([y.mean(dim=(2, 3)) for y in seen], dim=1))[:, 0]

    @torch.no_grad()
    def suits(self, picture: Tensor) -> bool:
        """Whether a picture (4, H, W) is a drawing, for certain."""
        return float(self.judge(self.encode(self.read(picture[None]))).sigmoid()) > SURE
