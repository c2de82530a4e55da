"""A small model's coarse matte -> alpha and foreground colours at the photograph's full resolution.

Closed-form matting (Levin et al. 2007) with pymatting's Laplacian and solver, the coarse alpha as a weak prior, and
pymatting's multi-level foreground estimation (Germer et al. 2020).
Above WORKING_PIXELS the matte is solved on a smaller copy and carried up by a guided filter (He and Sun 2015)."""

from __future__ import annotations

from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omnialpha import kernels, masks, rgba
from omnialpha.errors import InputError

WORKING_PIXELS = 4_000_000  # closed-form matting needs about 1 KB a pixel of the cropped band
NOISE = 0.05  # a coarse alpha below this is taken for empty: networks seldom reach 0
BAND = 1.5  # half-width of the unknown band, in pixels of the coarse alpha
PRIOR = 3e-4  # how strongly an unknown pixel holds on to the coarse alpha; keeps glass see-through
PLATEAU, EVEN = 0.03, 0.05  # the same where alpha is translucent and even; EVEN is its standard deviation
MARGIN = 8  # pixels of certainty kept around the unknown band
GUIDE_RADIUS, GUIDE_EPS = 4, 1e-4  # of the guided filter, at the working size; eps in squared grey levels of [0, 1]


def refine(image: Tensor, alpha: Tensor, trimap: Tensor | None = None) -> Tensor:
    """image (4, H, W), alpha (h, w) of any smaller size -> the foreground, straight RGBA (4, H, W).

    Where the result is opaque the colour is the image's own, bit for bit. A translucent image is seen on white."""
    if image.ndim != 3 or image.shape[0] != 4:
        raise InputError(f"An image of shape {tuple(image.shape)} cannot be refined; pass (4, height, width).")
    if alpha.ndim != 2 or not bool(torch.isfinite(alpha).all()):
        raise InputError(f"An alpha of shape {tuple(alpha.shape)} cannot be refined; pass finite (height, width).")
    size = (image.shape[1], image.shape[2])
    rgb = rgba.flatten(image).cpu()
    coarse = alpha.detach().float().cpu().clamp(0, 1)
    working = working_size(size)
    small = rgb if working == size else _resample(rgb, working)
    matte = _closed_form(small, _resample(coarse[None], working)[0], BAND * max(working[0] / coarse.shape[0], 1))
    if working != size:
        matte = guided_upsample(matte, small, rgb)
    return torch.cat([foreground(rgb, matte), matte[None]]).to(image.device, image.dtype)


def working_size(size: tuple[int, int]) -> tuple[int, int]:
    """The size at which matting is solved: `size` itself up to WORKING_PIXELS, else scaled down to that."""
    scale = min(1.0, (WORKING_PIXELS / (size[0] * size[1])) ** 0.5)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _resample(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, H, W) -> (C, *size), bilinear and antialiased."""
    return F.interpolate(picture[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]


def coarse_trimap(alpha: Tensor, radius: float) -> Tensor:
    """Upsampled coarse alpha (H, W) -> {0, .5, 1}: the band of `radius` pixels on both sides of what is uncertain."""
    return masks.trimap(torch.where(alpha < NOISE, 0, alpha), radius)


def _closed_form(rgb: Tensor, prior: Tensor, radius: float) -> Tensor:
    """rgb (3, H, W), coarse alpha (H, W) -> alpha (H, W), solved in the trimap's unknown band alone."""
    trimap = coarse_trimap(prior, radius)
    unknown = trimap == 0.5
    if not bool(unknown.any()) or min(trimap.shape) < 3:  # the matting Laplacian looks at 3x3 windows
        return trimap if not bool(unknown.any()) else prior
    rows, columns = (_span(unknown.any(dim=1 - axis)) for axis in (0, 1))
    alpha = trimap.clone()
    crops = (maps[rows, columns] for maps in (trimap, prior, _hold(prior, radius)))
    alpha[rows, columns] = _solve(rgb[:, rows, columns], *crops)
    return alpha


def _hold(prior: Tensor, radius: float) -> Tensor:
    """Weight (H, W) of the coarse alpha: PLATEAU more where it is translucent and even within `radius`."""
    side = 2 * ceil(radius) + 1
    mean, square = (F.avg_pool2d(m[None], side, 1, side // 2, count_include_pad=False)[0] for m in (prior, prior**2))
    spread = (square - mean**2).clamp(min=0)
    even = torch.exp(-spread / EVEN**2) * (mean - mean**2 > NOISE)
    return PRIOR + PLATEAU * even


def _span(used: Tensor) -> slice:
    """The range of true entries of (N,), widened by MARGIN."""
    places = used.nonzero().flatten()
    return slice(max(int(places[0]) - MARGIN, 0), int(places[-1]) + 1 + MARGIN)


def _solve(rgb: Tensor, trimap: Tensor, prior: Tensor, hold: Tensor) -> Tensor:
    """Closed-form matting with a pull to `prior`: (L + hold) x = hold prior - R known, over unknown pixels."""
    kernels.load()
    from pymatting.laplacian.cf_laplacian import cf_laplacian
    from pymatting.preconditioner.jacobi import jacobi
    from pymatting.solver.cg import cg
    from scipy.sparse import diags_array

    known_map = (trimap != 0.5).numpy()
    known, unknown = known_map.ravel(), ~known_map.ravel()
    laplacian = cf_laplacian(rgb.permute(1, 2, 0).double().numpy(), epsilon=1e-7, is_known=known)
    alpha = trimap.double().numpy().ravel()
    pull, weight = prior.double().numpy().ravel()[unknown], hold.double().numpy().ravel()[unknown]
    system = laplacian[unknown][:, unknown] + diags_array(weight, format="csr")
    right = weight * pull - laplacian[unknown][:, known] @ alpha[known]
    alpha[unknown] = cg(system, right, x0=pull, M=jacobi(system), rtol=1e-5)
    return torch.from_numpy(alpha.clip(0, 1).reshape(trimap.shape)).float()


def guided_upsample(alpha: Tensor, small: Tensor, full: Tensor) -> Tensor:
    """alpha (h, w) of `small` (3, h, w) -> alpha (H, W) whose edges follow the grey values of `full` (3, H, W)."""
    grey_small, grey_full = small.mean(0), full.mean(0)
    moments = torch.stack([grey_small, alpha, grey_small * alpha, grey_small * grey_small])
    mean_g, mean_a, mean_ga, mean_gg = _box(moments)
    slope = (mean_ga - mean_g * mean_a) / (mean_gg - mean_g * mean_g + GUIDE_EPS)
    lines = _box(torch.stack([slope, mean_a - slope * mean_g]))
    slope, offset = _resample(lines, (full.shape[1], full.shape[2]))
    return (slope * grey_full + offset).clamp(0, 1)


def _box(maps: Tensor) -> Tensor:
    """Mean over a square of GUIDE_RADIUS, smaller at the border: (C, h, w) -> (C, h, w)."""
    return F.avg_pool2d(maps, 2 * GUIDE_RADIUS + 1, 1, GUIDE_RADIUS, count_include_pad=False)


def foreground(rgb: Tensor, alpha: Tensor) -> Tensor:
    """(3, H, W) and (H, W) -> the subject's colours (3, H, W), free of the background's."""
    if min(alpha.shape) < 2:  # the pyramid has no level to begin with
        return rgb
    with kernels.alone():
        from pymatting.foreground.estimate_foreground_ml import estimate_foreground_ml

        estimate = estimate_foreground_ml(rgb.permute(1, 2, 0).double().numpy(), alpha.double().numpy())
    colours = torch.from_numpy(np.ascontiguousarray(estimate)).float().permute(2, 0, 1).clamp(0, 1)
    return torch.where(alpha == 1, rgb, colours)
