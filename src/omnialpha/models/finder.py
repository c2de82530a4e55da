"""The finder of a small model: U²-Netp [Qin et al. 2020, arXiv 2005.09007] with a hint, or any salient-object ONNX.

The alpha that it finds becomes an input picture of the automatic tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnialpha import rgba
from omnialpha.errors import InputError
from omnialpha.models.network_files import CONFIG, WEIGHTS, read_network, write_network
from omnialpha.models.pointer import POINTER, Pointer
from omnialpha.tasks import Role

FINDER = "finder"  # the folder of a model's finder in its own
SIDE = 320  # pixels, each way: what U²-Net was trained at
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
# Of a map's white and black, what a hint holds: 1 subject, 0 unknown, -1 background. A rough mask holds more than the
# subject, a precise one less.
HINTS: dict[Role, tuple[float, float]] = {
    Role.ALPHA: (1.0, -1.0),
    Role.TRIMAP: (1.0, -1.0),
    Role.PRECISE: (1.0, -0.5),
    Role.ROUGH: (0.0, -1.0),
}


class Finder(Protocol):
    """What finds subjects. hints: whether it makes use of a hint. pointer: where a text says to look, if it has one."""

    hints: bool
    pointer: Pointer | None

    def find(self, pictures: Tensor, hints: Tensor | None = None, mirror: bool = True) -> Tensor:
        """Straight RGBA (B, 4, H, W) in [0, 1], hints (B, h, w) in [-1, 1] -> alpha (B, s, s) in [0, 1] at its own
        size, whatever the picture's shape. mirror: may look at the mirror image too.
        """
        ...


def hint_of(role: Role, guide: Tensor) -> Tensor:
    """A map (..., H, W) in [0, 1] of this role as a hint in [-1, 1]."""
    white, black = HINTS[role]
    return black + (white - black) * guide


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
    """

    hints = True
    pointer: Pointer | None

    def __init__(self, inner: int = 16, width: int = 64, depths: tuple[int, ...] = (7, 6, 5, 4, 4, 4)) -> None:
        super().__init__()
        self.config = {"inner": inner, "width": width, "depths": list(depths)}
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
        self.pointer = None

    def forward(self, x: Tensor) -> Tensor:
        y, hint = x[:, :3], x[:, 3:]
        hint_blocks, hinted = iter(self.told), bool(hint.any())
        seen: list[Tensor] = []
        for k, block in enumerate(self.encoder):
            y = block(_halve(y) if k else y)
            y = next(hint_blocks)(y, hint) if hinted else y
            seen.append(y)
        maps = [seen.pop()]  # deepest first
        for block in self.decoder:
            y = block(torch.cat([_like(maps[-1], seen[-1]), seen.pop()], dim=1))
            maps.append(next(hint_blocks)(y, hint) if hinted else y)
        logits = [_like(side(y), x) for side, y in zip(self.side, reversed(maps), strict=True)]
        return torch.cat([self.fuse(torch.cat(logits, dim=1)), *logits], dim=1)

    @torch.no_grad()
    def find(self, pictures: Tensor, hints: Tensor | None = None, mirror: bool = True) -> Tensor:
        """See `Finder`. The mean over a picture and its mirror image."""
        x = self.read(pictures, hints)
        if not mirror:
            return self(x)[:, 0].sigmoid().float()
        both = self(torch.cat([x, x.flip(-1)]))[:, 0].sigmoid().float()
        seen, mirrored = both.chunk(2)
        return (seen + mirrored.flip(-1)) / 2

    def read(self, pictures: Tensor, hints: Tensor | None = None, side: int = SIDE) -> Tensor:
        """What goes in, (B, 4, side, side), of pictures (B, 4, H, W) and hints (B, h, w)."""
        rgb = prepare(pictures, side, MEAN, STD)
        known = torch.zeros_like(rgb[:, :1]) if hints is None else hints[:, None].float()
        known = F.interpolate(known, size=(side, side), mode="bilinear", antialias=True)
        return torch.cat([rgb, known], dim=1).to(self.fuse.weight.dtype)

    def save(self, folder: Path, dtype: torch.dtype = torch.float16) -> None:
        """Weights and sizes, as `open_finder` reads them. In bfloat16 its mattes are visibly worse: decision 17."""
        own = {name: value for name, value in self.state_dict().items() if not name.startswith(f"{POINTER}.")}
        write_network(folder, {"class": type(self).__name__, **self.config}, own, dtype)
        if self.pointer is not None:
            self.pointer.save(folder / POINTER, dtype)

    @classmethod
    def load(cls, folder: Path) -> U2NetP:
        """Read a finder from a folder that `save` wrote. Raises InputError where it is damaged."""
        sizes = lambda config: cls(config["inner"], config["width"], tuple(config["depths"]))  # noqa: E731
        net = read_network(folder, FINDER, sizes)
        if (folder / POINTER).is_dir():
            net.pointer = Pointer.load(folder / POINTER)
        return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


# ---- any salient-object file ----------------------------------------------------------------------------------------

# File names as rembg stores them -> how their pictures are normalised, and whether logits come out; others are read
# as U²-Net's are.
HALF, ONE = (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)
FILES: dict[str, tuple[Sequence[float], Sequence[float], bool]] = {
    "isnet-anime": (MEAN, ONE, False),
    "isnet": (HALF, ONE, False),
    "birefnet": (MEAN, STD, True),
    "bria-rmbg": (HALF, ONE, False),
    "ben2": (HALF, ONE, False),
}


class OnnxFinder:
    """A salient-object network in an ONNX file, run by onnxruntime. It takes no hints."""

    hints = False
    pointer: Pointer | None = None

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise InputError(f"{path} needs onnxruntime: pip install omnialpha[onnx].") from error
        try:
            self.session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # its own have no base in common
            raise InputError(f"{path} is not an ONNX file that can be run ({error}): download it again.") from error
        given = self.session.get_inputs()[0]
        side = given.shape[-1]
        self.name, self.side = given.name, side if isinstance(side, int) else 1024
        row = next((row for start, row in FILES.items() if path.stem.lower().startswith(start)), (MEAN, STD, False))
        self.mean, self.std, self.logits = row

    @torch.no_grad()
    def find(self, pictures: Tensor, hints: Tensor | None = None, mirror: bool = True) -> Tensor:
        """See `Finder`."""
        x = prepare(pictures, self.side, self.mean, self.std).cpu().float()
        maps = [torch.from_numpy(self.session.run(None, {self.name: one[None].numpy()})[0])[0, 0] for one in x]
        made = torch.stack(maps)
        return stretched(made.sigmoid() if self.logits else made).to(pictures.device)


@cache
def bundled_finder() -> Finder:
    """The one in the package."""
    return open_finder(Path(__file__).parent.parent / "weights" / "nano" / FINDER)


def open_finder(path: str | Path) -> Finder:
    """A folder that `U2NetP.save` wrote, or a salient-object ONNX file. InputError for anything else."""
    path = Path(path).expanduser()
    if path.suffix.lower() == ".onnx" and path.is_file():
        return OnnxFinder(path)
    if (path / CONFIG).is_file():
        return U2NetP.load(path)
    raise InputError(f"{path} is no finder: give an .onnx file, or a folder with {CONFIG} and {WEIGHTS}.")
