"""How different two pictures look: a distance without learned weights, and LPIPS where its weights are at hand.

A distance takes two batches of RGB pictures (B, 3, H, W) in [0, 1] and returns (B,).
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnialpha.errors import InputError
from omnialpha.evaluation.metrics.lpips import LPIPS

Distance = Callable[[Tensor, Tensor], Tensor]

TAPS = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
FLOOR = 0.17  # contrast below which the eye is taken not to adapt


def pyramid(a: Tensor, b: Tensor, levels: int = 4) -> Tensor:
    """Mean absolute difference of normalised Laplacian pyramids, (B,).

    Each band is divided by the contrast around it, as the early visual system does, so that a lost texture counts in
    dark and flat regions too. After Laparra et al. 2016 (NLPD), with one binomial filter throughout.
    """
    terms = [(x - y).abs().mean(dim=(1, 2, 3)) for x, y in zip(_bands(a, levels), _bands(b, levels), strict=True)]
    return torch.stack(terms).mean(dim=0)


def _bands(x: Tensor, levels: int) -> list[Tensor]:
    bands = []
    for _ in range(levels):
        if min(x.shape[-2:]) < 4:
            break
        low = _blur(x)
        bands.append(x - low)
        x = low[..., ::2, ::2]
    return [band / (FLOOR + _blur(band.abs())) for band in bands]


def _blur(x: Tensor) -> Tensor:
    taps = x.new_tensor(TAPS).expand(x.shape[1], 1, 1, -1)
    x = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), taps, groups=x.shape[1])
    return F.conv2d(x, taps.transpose(2, 3), groups=x.shape[1])


@dataclass(frozen=True)
class PerceptualSettings:
    """kind: "pyramid" (needs no weights), "lpips" (needs `backbone`, a local VGG16 state dict, and perhaps `heads`), or
    "package.module:function", any distance of two batches in [0, 1].
    """

    kind: str = "pyramid"
    backbone: str = ""
    heads: str = ""

    def distance(self) -> Distance:
        """InputError where weights are missing; nothing is ever downloaded."""
        if self.kind == "pyramid":
            return pyramid
        if self.kind == "lpips":
            if not self.backbone:
                raise InputError('perceptual.kind="lpips" needs perceptual.backbone: the path of VGG16 weights.')
            return Learned(self.backbone, self.heads)
        try:
            return pkgutil.resolve_name(self.kind)  # type: ignore[no-any-return]
        except (ValueError, ImportError, AttributeError) as error:
            choices = "pyramid, lpips or package.module:function"
            raise InputError(f"perceptual.kind is {self.kind!r} ({error}): use {choices}.") from None


class Learned(nn.Module):
    """LPIPS, frozen, of pictures in [0, 1]."""

    def __init__(self, backbone: str, heads: str = "") -> None:
        super().__init__()
        self.network = LPIPS(backbone, heads or None).requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.network(2 * a - 1, 2 * b - 1)
