"""Matting metrics on alpha maps in [0, 1]: SAD, MAD and MSE, over the whole picture or a trimap's unknown band.

Maps are (H, W) or (B, H, W); every metric answers one float64 value a picture. Sources: Rhemann et al. 2009
(alphamatting.com) for SAD and MSE; MAD is SAD divided by the number of counted pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from omnialpha.errors import InputError

REGIONS = ("whole", "unknown")
SURE = 0.02  # a trimap value this near to 0 or 1 is known
THOUSAND = 1000.0  # SAD is printed in thousands, as in the literature

Metric = Callable[[Tensor, Tensor, Tensor], Tensor]  # (predicted, true, counted), float64, float64, bool -> (...)


def sad(predicted: Tensor, true: Tensor, counted: Tensor) -> Tensor:
    """Sum of |p - g| over counted pixels, in thousands. Grows with the picture: print the size beside it."""
    return ((predicted - true).abs() * counted).sum(dim=(-2, -1)) / THOUSAND


def mad(predicted: Tensor, true: Tensor, counted: Tensor) -> Tensor:
    """Mean of |p - g| over counted pixels."""
    return ((predicted - true).abs() * counted).sum(dim=(-2, -1)) / counted.sum(dim=(-2, -1))


def mse(predicted: Tensor, true: Tensor, counted: Tensor) -> Tensor:
    """Mean of (p - g)^2 over counted pixels; never above MAD."""
    return ((predicted - true).square() * counted).sum(dim=(-2, -1)) / counted.sum(dim=(-2, -1))


METRICS: Mapping[str, Metric] = {"sad": sad, "mad": mad, "mse": mse}


def region_mask(region: str, trimap: Tensor | None, like: Tensor) -> Tensor:
    """The counted pixels, bool of `like`'s shape. "unknown" needs a trimap with some grey in every picture."""
    if region not in REGIONS:
        raise InputError(f"unknown region {region!r}: use one of {', '.join(REGIONS)}.")
    if region == "whole":
        return torch.ones_like(like, dtype=torch.bool)
    if trimap is None:
        raise InputError("region 'unknown' is the grey band of a trimap, but none was given: pass trimap=.")
    if trimap.shape != like.shape:
        raise InputError(f"the trimap has shape {tuple(trimap.shape)}, the alpha {tuple(like.shape)}: make them equal.")
    grey = (trimap > SURE) & (trimap < 1 - SURE)
    if not bool(grey.flatten(-2).any(dim=-1).all()):
        raise InputError("a trimap has no unknown (grey) pixel, so there is nothing to count: use region='whole'.")
    return grey


def measure(
    predicted: Tensor,
    true: Tensor,
    trimap: Tensor | None = None,
    region: str = "whole",
    metrics: Mapping[str, Metric] = METRICS,
) -> dict[str, Tensor]:
    """Every metric of alphas (H, W) or (B, H, W) in [0, 1]: one float64 value a picture, shape () or (B,)."""
    if predicted.shape != true.shape or true.ndim not in (2, 3):
        shapes = f"{tuple(predicted.shape)} and {tuple(true.shape)}"
        raise InputError(f"alphas of shape {shapes} cannot be compared: pass two of one shape, (H, W) or (B, H, W).")
    counted = region_mask(region, trimap, true)
    return {name: metric(predicted.double(), true.double(), counted) for name, metric in metrics.items()}


def soft_iou(predicted: Tensor, true: Tensor) -> Tensor:
    """Sum of minima over sum of maxima of two alphas (..., H, W): 1 if equal, 0 if apart (or both empty)."""
    union = torch.maximum(predicted, true).sum(dim=(-2, -1))
    return torch.minimum(predicted, true).sum(dim=(-2, -1)) / union.clamp_min(1e-9)
