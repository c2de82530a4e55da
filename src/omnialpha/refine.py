"""Refinement: alpha and foreground colours at full resolution from the coarse alpha of a small model.

The coarse alpha becomes a trimap. In its unknown band a first estimate by sampled colours (Shared Matting, Gastal and
Oliveira 2010) and the coarse alpha are the weak prior of closed-form matting (Levin et al. 2007); the colours are
estimated on several levels (Germer et al. 2020); all from pymatting. Large pictures are solved on a smaller copy and
carried up by a guided filter (He and Sun 2015). What was measured: docs/decisions/0009-classical-refinement.md."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omnialpha import kernels, masks, rgba
from omnialpha.errors import InputError

WORKING_PIXELS = 4_000_000  # sampling needs about 150 bytes for each of them
WORKING_UNKNOWN = 150_000  # sampling and solving take up to 90 microseconds for each of them
SAMPLES = 20_000  # the same for sampling alone, where the trimap is none of a user's
EMPTY, FULL = 0.05, 0.95  # a coarse alpha beyond these is certain: networks seldom reach 0 and 1
EDGE = 1.5  # pixels of the coarse alpha that are unknown on either side of a sharp, certain edge
DEPTHS = (1, 2, 4, 8, 16, 32)  # pixels into an unsure region: the band is as much wider around such a pixel
SPECK = 0.02  # an island that is nowhere above .5 and holds less than this share of the alpha is no subject
GAP = 0.05  # an unsure island that is nowhere below .5 and smaller than this share of the subject is a part of it
SAMPLED = 1e-3  # how strongly an unknown pixel holds on to what sampled colours say
COARSE = 1e-4  # and to the coarse alpha
PLATEAU, EVEN = 0.03, 0.05  # the same where it is translucent and even, as glass is; EVEN is its standard deviation
ALONE = 0.03  # and to the coarse alpha where there is no subject or no background to take colours from
EPSILON = 1e-7  # pymatting's own; 1e-6 and 1e-5 are smoother and worse
TOLERANCE = 1e-4  # relative residual of conjugate gradients
MARGIN = 8  # pixels of certainty kept around the unknown band
STRIP = 64  # rows whose Laplacian is in memory at once
GUIDE_RADIUS, GUIDE_EPS = 4, 1e-4  # of the guided filter, at the working size; eps in squared grey levels of [0, 1]


def refine(image: Tensor, alpha: Tensor, trimap: Tensor | None = None) -> Tensor:
    """Refine a coarse matte by closed-form matting.

    Args:
        image: Straight RGBA (4, H, W) in [0, 1]. A translucent one is seen on white.
        alpha: The coarse alpha (h, w) in [0, 1], of any size.
        trimap: (H, W) of 0, .5 and 1, a user's own, whose known pixels hold. One is made of the alpha without it.

    Returns:
        The foreground, straight RGBA (4, H, W), on the image's device and of its type. It is nowhere more opaque than
        the image, and where its alpha is 1 the colour is the image's own, bit for bit.

    Raises:
        InputError: A shape or a value is another one.
    """
    if image.ndim != 3 or image.shape[0] != 4:
        raise InputError(f"An image of shape {tuple(image.shape)} cannot be refined; pass (4, height, width).")
    if alpha.ndim != 2 or not bool(torch.isfinite(alpha).all()):
        raise InputError(f"An alpha of shape {tuple(alpha.shape)} cannot be refined; pass finite (height, width).")
    size, values = (image.shape[1], image.shape[2]), torch.tensor([0.0, 0.5, 1.0])
    if trimap is not None and (tuple(trimap.shape) != size or not bool(torch.isin(trimap.float().cpu(), values).all())):
        raise InputError(
            f"A trimap of shape {tuple(trimap.shape)} is not one of 0, .5 and 1 of shape {size}: pass one."
        )
    picture = image.detach().float().cpu()
    coarse = alpha.detach().float().cpu().clamp(0, 1)
    if trimap is None:
        coarse = without_gaps(without_specks(coarse))
        known = enlarge(coarse_trimap(coarse), size)
    else:
        known = trimap.detach().float().cpu()
    rgb = rgba.flatten(picture)
    with kernels.one_thread():
        matte = _solved(rgb, coarse, known, trimap is not None)
    seen = matte * picture[3]
    colours = torch.where(matte == 1, picture[:3], foreground(rgb, seen))
    return torch.cat([colours, seen[None]]).to(image.device, image.dtype)


# ---- the trimap -----------------------------------------------------------------------------------------------------


def without_specks(alpha: Tensor) -> Tensor:
    """Set small islands of a coarse alpha (h, w) to 0, see SPECK."""
    from scipy.ndimage import maximum, sum_labels

    values = alpha.numpy()
    islands, index = _islands(values > EMPTY)
    speck = (maximum(values, islands, index) < 0.5) & (sum_labels(values, islands, index) < SPECK * values.sum())
    return torch.from_numpy(np.where(speck[islands] & (islands > 0), np.float32(0), values))


def without_gaps(alpha: Tensor) -> Tensor:
    """Set small uncertain islands of a coarse alpha (h, w) that are nowhere below .5 to 1, see GAP."""
    from scipy.ndimage import minimum, sum_labels

    values = alpha.numpy()
    islands, index = _islands((values > EMPTY) & (values < FULL))
    small = sum_labels(np.ones_like(values), islands, index) < GAP * (values >= FULL).sum()
    gap = (minimum(values, islands, index) >= 0.5) & small
    return torch.from_numpy(np.where(gap[islands] & (islands > 0), np.float32(1), values))


def _islands(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of the island that each pixel is in (H, W), 0 outside, and all numbers."""
    from scipy.ndimage import label

    islands, count = label(inside, np.ones((3, 3)))
    return islands, np.arange(count + 1)


def coarse_trimap(alpha: Tensor) -> Tensor:
    """The trimap {0, .5, 1} of a coarse alpha (h, w): EDGE unknown pixels at a sharp edge, more where uncertain."""
    from scipy.ndimage import distance_transform_edt

    subject, empty = alpha >= FULL, alpha <= EMPTY
    unsure = ~subject & ~empty
    band = ~masks.erode(subject, EDGE) & ~masks.erode(empty, EDGE)
    if bool(unsure.any()) and not bool(unsure.all()):
        depth = torch.from_numpy(distance_transform_edt(unsure.numpy()))
        for reach in DEPTHS:
            band |= masks.dilate(depth >= reach, EDGE + reach)
    return torch.where(band, 0.5, subject.float())


def enlarge(trimap: Tensor, size: tuple[int, int]) -> Tensor:
    """{0, .5, 1} (h, w) -> (*size), with smooth outlines."""
    subject, empty = (_resample((trimap == value).float()[None], size)[0] > 0.5 for value in (1, 0))
    return torch.where(subject, 1.0, torch.where(empty, 0.0, 0.5))


def working_size(trimap: Tensor, most: int | None = None) -> tuple[int, int]:
    """The size at which the matte of a trimap (H, W) is solved: its own, or what both limits allow. most: unknown
    pixels, WORKING_UNKNOWN by default.
    """
    unknown = int((trimap == 0.5).sum())
    scale = min(1.0, (WORKING_PIXELS / trimap.numel()) ** 0.5, ((most or WORKING_UNKNOWN) / max(unknown, 1)) ** 0.5)
    return max(1, round(trimap.shape[0] * scale)), max(1, round(trimap.shape[1] * scale))


def _resample(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, H, W) -> (C, *size), bilinear and antialiased."""
    if tuple(picture.shape[1:]) == tuple(size):
        return picture
    return F.interpolate(picture[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]


# ---- the matte ------------------------------------------------------------------------------------------------------


def _solved(rgb: Tensor, coarse: Tensor, trimap: Tensor, given: bool) -> Tensor:
    """rgb (3, H, W), coarse alpha (h, w), trimap (H, W) -> alpha (H, W): the trimap where that is known."""
    unknown = trimap == 0.5
    if not bool(unknown.any()):
        return trimap
    size = (trimap.shape[0], trimap.shape[1])
    working = working_size(trimap)
    if min(working) < 3:  # the matting Laplacian looks at 3x3 windows
        return torch.where(unknown, _resample(coarse[None], size)[0], trimap)
    small = _resample(rgb, working)
    near = 0 if given else max(2, round(EDGE * working[0] / coarse.shape[0]))
    matte = _closed_form(small, _resample(coarse[None], working)[0], enlarge(trimap, working), near)
    if working != size:
        matte = guided_upsample(matte, small, rgb)
    return torch.where(unknown, matte, trimap)


def _closed_form(rgb: Tensor, coarse: Tensor, trimap: Tensor, near: int) -> Tensor:
    """rgb (3, H, W), coarse alpha and trimap (H, W) -> alpha (H, W), solved around the trimap's unknown band alone.

    near: pixels that one pixel of the coarse alpha and its neighbours reach; 0 where the trimap is a user's, who said
    more than the coarse alpha knows."""
    unknown = trimap == 0.5
    if not bool(unknown.any()):
        return trimap
    rows, columns = (_span(unknown.any(dim=1 - axis), unknown.shape[axis]) for axis in (0, 1))
    rgb, coarse, crop = rgb[:, rows, columns], coarse[rows, columns], trimap[rows, columns]
    if bool((crop == 0).any()) and bool((crop == 1).any()):
        sampled = _sampled(rgb, crop, SAMPLES if near else WORKING_UNKNOWN)
        pull = COARSE + PLATEAU * _glass(coarse, sampled, near) if near else torch.zeros_like(coarse)
        hold = SAMPLED + pull
        prior = (SAMPLED * sampled + pull * coarse) / hold
    else:
        hold, prior = torch.full_like(coarse, ALONE), coarse
    alpha = trimap.clone()
    alpha[rows, columns] = _solve(rgb, crop, prior, hold)
    return alpha


def _span(used: Tensor, length: int) -> slice:
    """The range of true entries of (length,), widened by MARGIN."""
    places = used.nonzero().flatten()
    return slice(max(int(places[0]) - MARGIN, 0), min(int(places[-1]) + 1 + MARGIN, length))


def _pixels(rgb: Tensor) -> np.ndarray:
    """(3, H, W) -> (H, W, 3), as pymatting takes it."""
    return np.ascontiguousarray(rgb.permute(1, 2, 0).numpy())


def _sampled(rgb: Tensor, trimap: Tensor, most: int) -> Tensor:
    """Alpha (H, W) by the pair of known colours nearby that explains each unknown pixel best: Shared Matting, on a
    smaller copy where more than `most` are unknown.
    """
    from pymatting.alpha.estimate_alpha_sm import estimate_alpha_sm

    size, small = (trimap.shape[0], trimap.shape[1]), working_size(trimap, most)
    sampled = estimate_alpha_sm(_pixels(_resample(rgb, small)), enlarge(trimap, small).numpy())
    return _resample(torch.from_numpy(sampled).float().clamp(0, 1)[None], size)[0]


def _glass(coarse: Tensor, sampled: Tensor, near: int) -> Tensor:
    """How much (H, W) in [0, 1] looks like glass: the coarse alpha is translucent and even, and sampled colours do not
    say with one voice that this is subject or background."""
    mean, square, mixed = _box(torch.stack([coarse, coarse**2, 4 * sampled * (1 - sampled)]), near)
    spread = (square - mean**2).clamp(min=0)
    return torch.exp(-spread / EVEN**2) * (mean - mean**2 > EMPTY) * (mixed > 0.5)


def _solve(rgb: Tensor, trimap: Tensor, prior: Tensor, hold: Tensor) -> Tensor:
    """Closed-form matting with a pull to `prior`: (L + hold) x = hold prior - R known, over unknown pixels."""
    from pymatting.preconditioner.jacobi import jacobi
    from pymatting.solver.cg import cg
    from scipy.sparse import diags_array

    known = (trimap != 0.5).numpy()
    alpha = trimap.double().numpy()
    pull, weight = (maps.double().numpy()[~known] for maps in (prior, hold))
    laplacian, right = _system(_pixels(rgb).astype(np.float64), alpha, known)
    system = laplacian + diags_array(weight, format="csr")
    alpha[~known] = cg(system, right + weight * pull, x0=pull, M=jacobi(system), rtol=TOLERANCE)
    return torch.from_numpy(alpha.clip(0, 1)).float()


def _system(pixels: np.ndarray, alpha: np.ndarray, known: np.ndarray) -> tuple:
    """(H, W, 3), alpha and known (H, W) -> the matting Laplacian among n unknown pixels, sparse (n, n), and minus
    what it has of known ones times their alpha, (n,). Strip by strip: the whole would be 400 bytes a pixel."""
    from pymatting.laplacian.cf_laplacian import cf_laplacian
    from scipy.sparse import csr_array, vstack

    height, width = known.shape
    before = np.concatenate([[0], np.cumsum(np.count_nonzero(~known, axis=1))])  # unknown pixels above each row
    blocks, right = [], []
    for top in range(0, height, STRIP):
        bottom = min(top + STRIP, height)
        low, high = max(min(top - 2, height - 3), 0), min(bottom + 2, height)  # windows reach two rows further
        if before[top] == before[bottom]:
            continue
        inside = known[low:high].ravel()
        rows = np.flatnonzero(~known[top:bottom]) + (top - low) * width
        strip = cf_laplacian(pixels[low:high], epsilon=EPSILON, is_known=inside)[rows]
        right.append(-(strip @ np.where(inside, alpha[low:high].ravel(), 0)))
        block = strip[:, np.flatnonzero(~inside)]
        columns = block.indices.astype(np.int32) + np.int32(before[low])
        blocks.append(csr_array((block.data, columns, block.indptr), shape=(len(rows), int(before[-1]))))
    return vstack(blocks, format="csr"), np.concatenate(right)


def guided_upsample(alpha: Tensor, small: Tensor, full: Tensor) -> Tensor:
    """alpha (h, w) of `small` (3, h, w) -> alpha (H, W) whose edges follow the grey values of `full` (3, H, W)."""
    grey_small, grey_full = small.mean(0), full.mean(0)
    moments = torch.stack([grey_small, alpha, grey_small * alpha, grey_small * grey_small])
    mean_g, mean_a, mean_ga, mean_gg = _box(moments, GUIDE_RADIUS)
    slope = (mean_ga - mean_g * mean_a) / (mean_gg - mean_g * mean_g + GUIDE_EPS)
    lines = _box(torch.stack([slope, mean_a - slope * mean_g]), GUIDE_RADIUS)
    slope, offset = _resample(lines, (full.shape[1], full.shape[2]))
    return (slope * grey_full + offset).clamp(0, 1)


def _box(maps: Tensor, radius: int) -> Tensor:
    """Mean over a square of `radius`, smaller at the border: (C, h, w) -> (C, h, w)."""
    return F.avg_pool2d(maps, 2 * radius + 1, 1, radius, count_include_pad=False)


# ---- the colours ----------------------------------------------------------------------------------------------------


def foreground(rgb: Tensor, alpha: Tensor) -> Tensor:
    """The subject's colours (3, H, W) without the background's, from a picture (3, H, W) and its alpha (H, W)."""
    soft = (alpha > 0) & (alpha < 1)
    if min(alpha.shape) < 2 or not bool(soft.any()):  # the pyramid has no level to begin with; there is nothing mixed
        return rgb
    with kernels.one_thread():
        from pymatting.foreground.estimate_foreground_ml import estimate_foreground_ml

        estimate = estimate_foreground_ml(_pixels(rgb), alpha.numpy())
    return torch.where(alpha == 1, rgb, torch.from_numpy(estimate).permute(2, 0, 1).clamp(0, 1))
