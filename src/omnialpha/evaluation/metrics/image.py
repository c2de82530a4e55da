"""Image metrics: PSNR, SSIM, errors of alpha and of visible colour a picture; FID and KID of two sets of features.

Batches are (B, C, H, W) in [0, 1], predicted first, true second; a metric answers one value a picture, (B,).
Formulas, sources and known traps: docs/metrics.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from omnialpha import rgba
from omnialpha.errors import InputError
from omnialpha.evaluation.metrics.backgrounds import BACKGROUNDS
from omnialpha.limits import by

PSNR_CEILING = 100.0  # dB, of equal pictures too
PSNR_8_BIT = 60.0  # dB, about what 8 bits can say: the ceiling where untouched pictures are common
SSIM_WINDOW = 11  # px a side


def squared_error(predicted: Tensor, true: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum of squared errors and number of values of each picture, (B,) float64 each; they add up over pictures.

    mask: (B, H, W) bool, the pixels that count; None: all.
    """
    assert predicted.shape == true.shape and true.ndim == 4
    error = (predicted.double() - true.double()).square()
    counted = torch.ones_like(error) if mask is None else mask[:, None].expand_as(error).double()
    return (error * counted).sum(dim=(1, 2, 3)), counted.sum(dim=(1, 2, 3))


def psnr(predicted: Tensor, true: Tensor, mask: Tensor | None = None, ceiling: float = PSNR_CEILING) -> Tensor:
    """Peak signal-to-noise ratio in dB, peak 1: (B,) float64, NaN where no pixel counts. mask: see `squared_error`.

    ceiling: the most that a picture gets, so that a mean over pictures stays finite.
    """
    total, count = squared_error(predicted, true, mask)
    return (-10 * torch.log10(total / count)).clamp(max=ceiling)


def ssim(predicted: Tensor, true: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) as scikit-image computes it with the original's settings.

    (B,) float64 on the CPU, at most 1, without gradient: means over channels and over the places where the Gaussian
    window of 11 px fits.
    """
    from skimage.metrics import structural_similarity

    if min(true.shape[-2:]) < SSIM_WINDOW:
        raise InputError(
            f"SSIM needs sides of {SSIM_WINDOW} px or more, not {by(true.shape[-2:])}: use larger pictures."
        )
    settings = {"channel_axis": 0, "data_range": 1.0, "gaussian_weights": True, "sigma": 1.5}
    pairs = zip(*(x.detach().double().cpu().numpy() for x in (predicted, true)), strict=True)
    values = [structural_similarity(p, t, use_sample_covariance=False, **settings) for p, t in pairs]
    return torch.tensor(values, dtype=torch.float64)


def composites(x: Tensor) -> Tensor:
    """Straight pictures (..., 4, H, W) over each of the nine BACKGROUNDS -> (9, ..., 3, H, W)."""
    return torch.stack([rgba.flatten(x, color) for color in BACKGROUNDS.values()])


def color_error(predicted: Tensor, true: Tensor) -> Tensor:
    """Mean |RGB error| of RGBA pictures (B, 4, H, W) where true alpha > 0; float64, NaN where no pixel is seen."""
    seen = true[:, 3:] > 0
    error = (predicted[:, :3].double() - true[:, :3].double()).abs() * seen
    return error.sum(dim=(1, 2, 3)) / (3 * seen.sum(dim=(1, 2, 3)))


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance of the Gaussians of features (N, D) and (M, D): |mean difference|^2 + tr(A + B - 2 (AB)^.5).

    FID if the features are Inception's (Heusel et al. 2017). With centred matrices X of A = X'X and Y of B = Y'Y the
    trace of the root is the sum of the singular values of X Y': no matrix root, and exact where the covariances have
    no full rank. N and M below about D leave it biased upwards: print them beside it.
    """
    a, b = a.double(), b.double()
    x, y = (_factor(v) for v in (a, b))
    root = torch.linalg.svdvals(x @ y.T).sum()
    distance = (a.mean(dim=0) - b.mean(dim=0)).square().sum() + x.square().sum() + y.square().sum() - 2 * root
    return max(0.0, float(distance))


def _factor(features: Tensor) -> Tensor:
    """X with X'X = covariance (unbiased), at most D rows."""
    centred = (features - features.mean(dim=0)) / (len(features) - 1) ** 0.5
    return torch.linalg.qr(centred, mode="r")[1] if len(centred) > centred.shape[1] else centred


def kid(a: Tensor, b: Tensor) -> float:
    """Kernel distance of features (N, D) and (M, D): unbiased squared MMD with the kernel (x.y / D + 1)^3; near 0 for
    samples of one distribution, sometimes below (Binkowski et al. 2018, over all pairs instead of random subsets).
    """
    a, b = a.double(), b.double()
    within = [(_kernel(v, v).sum() - _kernel(v).sum()) / (len(v) * (len(v) - 1)) for v in (a, b)]
    return float(within[0] + within[1] - 2 * _kernel(a, b).mean())


def _kernel(a: Tensor, b: Tensor | None = None) -> Tensor:
    """Of all pairs (N, M); with one argument of each vector with itself (N,)."""
    products = a.square().sum(dim=1) if b is None else a @ b.T
    return (products / a.shape[1] + 1) ** 3
