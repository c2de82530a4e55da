"""LPIPS (Zhang et al. 2018): a distance of two pictures by the features of a classifier, weighted by learned heads.

The networks are written here, so that torchvision is not needed; weights come from files, never from a network.
"""

from __future__ import annotations

import importlib.util
import pickle
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from omnialpha.errors import InputError
from omnialpha.limits import by

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation, in [-1, 1]
EPS = 1e-8  # under the root of a feature's norm: a gradient that is finite at 0
HEADS = "functional/image/lpips_models"  # in the package of torchmetrics


class Backbone(NamedTuple):
    """plan: torchvision's `features` in order, a pool as (kernel,) of stride 2 and a convolution as (out channels,
    kernel, stride, padding), which a rectifier follows. taps: the last index of each stage that is compared. smallest:
    side in px. heads: file in torchmetrics.
    """

    plan: tuple[tuple[int, ...], ...]
    taps: tuple[int, ...]
    smallest: int
    heads: str


VGG16_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # of 3x3; 0 is a pool
BACKBONES = {
    "VGG16": Backbone(
        tuple((width, 3, 1, 1) if width else (2,) for width in VGG16_WIDTHS), (3, 8, 15, 22, 29), 16, "vgg.pth"
    ),
    "AlexNet": Backbone(
        ((64, 11, 4, 2), (3,), (192, 5, 1, 2), (3,), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1)),
        (1, 4, 7, 9, 11), 31, "alex.pth",
    ),
}  # fmt: skip


class LPIPS(nn.Module):
    """LPIPS of RGB batches: (B, 3, H, W) twice, in [-1, 1] -> (B,), 0 for equal ones; differentiable in both.

    Args:
        backbone: a state dict of torchvision's VGG16 or AlexNet, .pth or .safetensors; its shapes say which.
        heads: lpips' linear weights for it (lin0.model.1.weight, ...); None: those that torchmetrics comes with.

    Raises:
        InputError: weights that are none, or that do not fit.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, backbone: str | Path, heads: str | Path | None = None) -> None:
        super().__init__()
        state = _read(backbone)
        own = {k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")}
        self.name = _which(own, backbone)
        plan, taps, self.smallest, shipped = BACKBONES[self.name]
        self.features = _layers(plan)
        self.features.load_state_dict(own)
        self.stages = [range(first, last) for first, last in pairwise((0, *(tap + 1 for tap in taps)))]
        widths = [len(own[f"{tap - 1}.weight"]) for tap in taps]  # of the convolution before the rectifier
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in widths)
        path = _shipped_heads(shipped) if heads is None else heads
        try:
            self.heads.load_state_dict({_head(key): value for key, value in _read(path).items()})
        except RuntimeError:
            raise InputError(f"the LPIPS heads {path} do not fit {self.name}: give lpips' heads for it.") from None
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        assert a.shape == b.shape and a.ndim == 4 and a.shape[1] == 3
        if min(a.shape[-2:]) < self.smallest:
            raise InputError(
                f"LPIPS with {self.name} needs sides of {self.smallest} px or more, not {by(a.shape[-2:])}."
            )
        x, count = (torch.cat([a, b]) - self.shift) / self.scale, len(a)
        total = x.new_zeros(count)
        for stage, head in zip(self.stages, self.heads, strict=True):
            for index in stage:
                x = self.features[index](x)
            unit = x / (x.square().sum(dim=1, keepdim=True) + EPS).sqrt()
            total = total + head((unit[:count] - unit[count:]).square()).mean(dim=(1, 2, 3))
        return total


def _layers(plan: Sequence[tuple[int, ...]]) -> nn.Sequential:
    """Up to the last tap, under torchvision's indices."""
    made: list[nn.Module] = []
    before = 3
    for size, *more in plan:
        if more:
            kernel, stride, padding = more
            made += [nn.Conv2d(before, size, kernel, stride, padding), nn.ReLU()]
            before = size
        else:
            made.append(nn.MaxPool2d(size, 2))
    return nn.Sequential(*made)


def _read(path: str | Path) -> Mapping[str, Tensor]:
    """A state dict; nothing in the file is run."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path} with weights for LPIPS: check the path.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError, SafetensorError) as error:
        reason = textwrap.shorten(str(error), 100)
        raise InputError(f"{path} is no state dict ({reason}): give weights as torchvision saves them.") from None
    if not isinstance(state, Mapping):
        raise InputError(f"{path} holds a {type(state).__name__}, not a state dict: give weights of a classifier.")
    return state


def _which(own: Mapping[str, Tensor], path: str | Path) -> str:
    """The backbone with these shapes."""
    shapes = {key: value.shape for key, value in own.items()}
    with torch.device("meta"):
        for name, backbone in BACKBONES.items():
            if {key: value.shape for key, value in _layers(backbone.plan).state_dict().items()} == shapes:
                return name
    known = " or ".join(BACKBONES)
    raise InputError(f"{path} has no features of {known}: give torchvision's weights of one (features.0.weight, ...).")


def _head(key: str) -> str:
    """lin3.model.1.weight -> 3.weight"""
    return f"{key.split('.')[0].removeprefix('lin')}.weight"


def _shipped_heads(name: str) -> Path:
    """The file in torchmetrics, which is looked up without being imported."""
    found = importlib.util.find_spec("torchmetrics")
    if found is None or not found.submodule_search_locations:
        raise InputError("no LPIPS heads were given and torchmetrics is not installed: `pip install omnialpha[eval]`.")
    return Path(found.submodule_search_locations[0]) / HEADS / name
