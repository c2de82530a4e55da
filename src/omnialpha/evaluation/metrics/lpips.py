"""LPIPS (Zhang et al. 2018): a distance of two pictures by the features of a classifier, weighted by learned heads.

The networks are written here, so that torchvision is not needed; weights come from files, never from a network.
"""

from __future__ import annotations

import importlib.util
import pickle
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from omnialpha.errors import InputError
from omnialpha.limits import by

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation, in [-1, 1]
EPS = 1e-8  # under the root of a feature's norm: a gradient that is finite at 0
HEADS = "functional/image/lpips_models"  # in the package of torchmetrics


@dataclass(frozen=True)
class Backbone:
    """convolutions: (index in torchvision's `features`, out channels, kernel, stride, padding); pools: index -> kernel,
    of stride 2. taps: the last index of each stage that is compared. smallest: side in px.
    """

    heads: str
    convolutions: tuple[tuple[int, int, int, int, int], ...]
    pools: dict[int, int]
    taps: tuple[int, ...]
    smallest: int


BACKBONES = {
    "VGG16": Backbone(
        "vgg.pth",
        tuple(
            (index, width, 3, 1, 1)
            for width, places in ((64, (0, 2)), (128, (5, 7)), (256, (10, 12, 14)), (512, (17, 19, 21, 24, 26, 28)))
            for index in places
        ),
        dict.fromkeys((4, 9, 16, 23), 2),
        (3, 8, 15, 22, 29),
        smallest=16,
    ),
    "AlexNet": Backbone(
        "alex.pth",
        ((0, 64, 11, 4, 2), (3, 192, 5, 1, 2), (6, 384, 3, 1, 1), (8, 256, 3, 1, 1), (10, 256, 3, 1, 1)),
        {2: 3, 5: 3},
        (1, 4, 7, 9, 11),
        smallest=31,
    ),
}


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
        self.name = _which(state, backbone)
        plan = BACKBONES[self.name]
        self.smallest = plan.smallest
        self.features = _features(plan)
        own = {k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")}
        self.features.load_state_dict(own)
        widths = {index + 1: width for index, width, *_ in plan.convolutions}  # of the rectifier that follows
        self.stages = [range(first, last) for first, last in pairwise((0, *(tap + 1 for tap in plan.taps)))]
        self.heads = nn.ModuleList(nn.Conv2d(widths[tap], 1, 1, bias=False) for tap in plan.taps)
        path = _shipped_heads(plan) if heads is None else heads
        try:
            self.heads.load_state_dict({_head(key): value for key, value in _read(path).items()})
        except RuntimeError:
            raise InputError(f"the LPIPS heads {path} do not fit {self.name}: give lpips' heads for it.") from None
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if a.shape != b.shape or a.ndim != 4 or a.shape[1] != 3:
            shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
            raise InputError(f"LPIPS cannot compare shapes {shapes}: pass two of one shape, (B, 3, H, W).")
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


def _features(plan: Backbone) -> nn.Sequential:
    """The layers up to the last tap, under torchvision's indices; a rectifier follows each convolution."""
    layers: dict[int, nn.Module] = {index: nn.MaxPool2d(kernel, 2) for index, kernel in plan.pools.items()}
    before = 3
    for index, width, kernel, stride, padding in plan.convolutions:
        layers |= {index: nn.Conv2d(before, width, kernel, stride, padding), index + 1: nn.ReLU()}
        before = width
    return nn.Sequential(*(layers[index] for index in sorted(layers)))


# ---- weights --------------------------------------------------------------------------------------------------------


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


def _which(state: Mapping[str, Tensor], path: str | Path) -> str:
    """The backbone with these shapes."""
    for name, plan in BACKBONES.items():
        kernels = {f"features.{index}.weight": (width, kernel) for index, width, kernel, *_ in plan.convolutions}
        if all(key in state and (len(state[key]), state[key].shape[-1]) == w for key, w in kernels.items()):
            return name
    known = " or ".join(BACKBONES)
    raise InputError(f"{path} has no features of {known}: give torchvision's weights of one (features.0.weight, ...).")


def _head(key: str) -> str:
    """lin3.model.1.weight -> 3.weight"""
    return f"{key.split('.')[0].removeprefix('lin')}.weight"


def _shipped_heads(plan: Backbone) -> Path:
    """The file in torchmetrics, which is looked up without being imported."""
    found = importlib.util.find_spec("torchmetrics")
    if found is None or not found.submodule_search_locations:
        raise InputError("no LPIPS heads were given and torchmetrics is not installed: `pip install omnialpha[eval]`.")
    return Path(found.submodule_search_locations[0]) / HEADS / plan.heads
