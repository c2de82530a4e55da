"""Matting metrics on alpha maps in [0, 1]: SAD, MAD, MSE, GRAD and CONN, over the whole picture or a trimap's band.

Maps are (H, W) or (B, H, W), torch or numpy; every metric answers one float64 value a picture. Sources: Rhemann et al.
2009 (alphamatting.com) for the metrics, the MATLAB code of Deep Image Matting (Xu et al. 2017) for the details.
Formulas and what known Python versions get wrong: docs/metrics.md. GRAD and CONN need OpenCV, of the extra `eval`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import ModuleType
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from omnialpha.errors import InputError

REGIONS = ("whole", "unknown")
SURE = 0.02  # a trimap value this near to 0 or 1 is known
SLACK = 1e-4  # rounding that a value may lie outside [0, 1]
THOUSAND = 1000.0  # sums are printed in thousands, as in the literature
SIGMA = 1.4  # pixels, of the Gaussian derivatives in GRAD
LEVELS = (np.arange(11) / 10).astype(np.float32)  # of CONN; in float64 153/255 lies below 6 x .1
BAND = 128  # rows at once in GRAD: what is computed of so few stays in the processor's cache
VISIBLE = np.float32(0.15)  # a smaller step down from the connected level costs nothing in CONN

Map = Tensor | np.ndarray
Metric = Callable[[Tensor, Tensor, Tensor], Tensor]  # (predicted, true, counted), two floats and bool -> (...)
In = TypeVar("In")
Out = TypeVar("Out")


def opencv() -> ModuleType:
    """The module cv2, or a message that says how to get it."""
    try:
        import cv2
    except ImportError:
        raise InputError("OpenCV is not installed: `pip install omnialpha[eval]` brings it.") from None
    return cv2


def sad(predicted: Tensor, true: Tensor, counted: Tensor) -> Tensor:
    """Sum of |p - g| over counted pixels, in thousands. Grows with the picture: print the size beside it."""
    return ((predicted.double() - true.double()).abs() * counted).sum(dim=(-2, -1)) / THOUSAND


def mad(predicted: Tensor, true: Tensor, counted: Tensor) -> Tensor:
    """Mean of |p - g| over counted pixels."""
    return ((predicted.double() - true.double()).abs() * counted).sum(dim=(-2, -1)) / counted.sum(dim=(-2, -1))


def mse(predicted: Tensor, true: Tensor, counted: Tensor) -> Tensor:
    """Mean of (p - g)^2 over counted pixels; never above MAD."""
    return ((predicted.double() - true.double()).square() * counted).sum(dim=(-2, -1)) / counted.sum(dim=(-2, -1))


# ---- gradient -------------------------------------------------------------------------------------------------------


def grad(predicted: Tensor, true: Tensor, counted: Tensor) -> Tensor:
    """Sum of (|grad p| - |grad g|)^2 over counted pixels, in thousands; gradients are of the whole picture.

    Each matte is stretched to [0, 1] before, so it is blind to contrast: never report it alone.
    """
    bell, slope = _gaussian(4)  # where the density of SIGMA falls below 1e-2
    kernels = bell / np.linalg.norm(bell), slope / np.linalg.norm(slope)
    figure = partial(_gradient_error, kernels=kernels, border="BORDER_REPLICATE", stretch=True)
    return _by_picture(figure, predicted.double(), true.double(), counted) / THOUSAND


def grad_aim(predicted: Tensor, true: Tensor, counted: Tensor) -> Tensor:
    """GRAD as AIM and P3M (Li et al. 2021) compute it: it differs in the kernel, the border, no stretch and / 10.

    The 13x13 Gaussian has sum 1 and its derivative no norm, the border mirrors pixels, contrast counts.
    """
    bell, slope = _gaussian(6)  # scipy's four SIGMA
    kernels = bell / bell.sum(), slope / bell.sum() / SIGMA**2
    figure = partial(_gradient_error, kernels=kernels, border="BORDER_REFLECT", stretch=False)
    return _by_picture(figure, predicted.double(), true.double(), counted) / 10


def _gaussian(radius: int) -> tuple[np.ndarray, np.ndarray]:
    """A Gaussian of SIGMA and, up to a factor, its slope; OpenCV correlates, which only turns the slope's sign."""
    x = np.arange(-radius, radius + 1, dtype=np.float64)
    bell = np.exp(-(x**2) / (2 * SIGMA**2))
    return bell, x * bell


def _gradient_error(
    p: np.ndarray,
    g: np.ndarray,
    counted: np.ndarray,
    kernels: tuple[np.ndarray, np.ndarray],
    border: str,
    stretch: bool,
) -> float:
    """Sum of squared differences of gradient lengths. kernels: across and along; border: OpenCV's name."""
    cv2, radius = opencv(), len(kernels[0]) // 2
    spans = [float(np.ptp(alpha)) if stretch else 1.0 for alpha in (p, g)]

    def length(alpha: np.ndarray, span: float) -> np.ndarray:
        if span == 0:
            return np.zeros_like(alpha)
        dx, dy = (
            cv2.sepFilter2D(alpha, cv2.CV_64F, *pair, borderType=getattr(cv2, border))
            for pair in (kernels[::-1], kernels)
        )
        return np.sqrt(dx * dx + dy * dy) / span

    def of_band(top: int) -> float:
        """The sum over rows `top` to `top + BAND`; the rows around them are the kernel's."""
        low, high = max(0, top - radius), top + BAND + radius
        a, b = (length(x[low:high], span)[top - low :][:BAND] for x, span in zip((p, g), spans, strict=True))
        return float(((a - b) ** 2 * counted[top : top + BAND]).sum())

    return sum(_threaded(of_band, range(0, len(p), BAND)))


# ---- connectivity ---------------------------------------------------------------------------------------------------


def conn(predicted: Tensor, true: Tensor, counted: Tensor) -> Tensor:
    """Sum of |phi_p - phi_g| over counted pixels, in thousands: phi = 1 - d [d >= .15], d = alpha - connected level.

    Components are those of the whole picture, in float32; see `largest_component` for equally large ones.
    """

    def figure(p: np.ndarray, g: np.ndarray, counts: np.ndarray) -> float:
        level = connected_level(np.minimum(p, g))
        loose_p, loose_g = ((alpha - level) * (alpha - level >= VISIBLE) for alpha in (p, g))  # 1 - phi
        return float((np.abs(loose_p - loose_g) * counts).sum(dtype=np.float64))

    return _by_picture(figure, predicted.float(), true.float(), counted) / THOUSAND


def connected_level(lower: np.ndarray) -> np.ndarray:
    """Up to which of LEVELS each pixel stays in the largest component of `lower >= level`, (H, W) float32 both."""
    passed = np.zeros(lower.shape, dtype=np.uint8)
    seen = lower >= LEVELS[1]
    rows, columns = (np.flatnonzero(seen.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return LEVELS[passed]
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    inside = np.ascontiguousarray(lower[box])
    masks = [inside >= level for level in LEVELS[1:]]
    counts = [np.count_nonzero(mask) for mask in masks]
    distinct = dict(zip(counts, masks, strict=True))  # each holds the next one: if equally large, they are equal
    largest = dict(zip(distinct, _threaded(largest_component, list(distinct.values())), strict=True))
    stays = np.ones(inside.shape, dtype=bool)
    for count in counts:
        stays &= largest[count]
        passed[box] += stays
    return LEVELS[passed]


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest 4-connected component of a bool mask (H, W), as one; empty if the mask is.

    Of equally large ones the first in MATLAB's order (bwconncomp and max): the one that a scan down the columns, from
    the left one to the right one, meets first.
    """
    cv2 = opencv()
    count, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    if count <= 2:  # the background counts as one
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest = np.flatnonzero(sizes == sizes.max())
    if len(largest) == 1:
        return labels == largest[0]
    by_column = labels.ravel(order="F")
    return labels == by_column[np.isin(by_column, largest).argmax()]


def _by_picture(
    figure: Callable[[np.ndarray, np.ndarray, np.ndarray], float], predicted: Tensor, true: Tensor, counted: Tensor
) -> Tensor:
    """`figure` of each picture on the CPU, as float64 (...) where `true` is."""
    height, width = true.shape[-2:]
    maps = (m.detach().cpu().contiguous().view(-1, height, width).numpy() for m in (predicted, true, counted))
    figures = [figure(*each) for each in zip(*maps, strict=True)]
    return torch.tensor(figures, dtype=torch.float64, device=true.device).view(true.shape[:-2])


def _threaded(function: Callable[[In], Out], items: Sequence[In]) -> list[Out]:
    """`function` of each item, on as many threads as torch may use: OpenCV and numpy let others run meanwhile."""
    threads = min(torch.get_num_threads(), len(items))
    if threads <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


# ---- all of them ----------------------------------------------------------------------------------------------------

METRICS: Mapping[str, Metric] = {"sad": sad, "mad": mad, "mse": mse, "grad": grad, "conn": conn}
ALL: Mapping[str, Metric] = {**METRICS, "grad_aim": grad_aim}
POINTWISE = ("sad", "mad", "mse")  # the fast ones, which need no OpenCV


def measure(
    predicted: Map, true: Map, trimap: Map | None = None, region: str = "whole", names: Iterable[str] = POINTWISE
) -> dict[str, Tensor]:
    """Matting metrics of alphas.

    Args:
        predicted, true: (H, W) or (B, H, W) in [0, 1], torch or numpy.
        trimap: of the same shape, 0, .5 and 1; needed for the region "unknown".
        region: "whole", or "unknown" for the grey pixels of the trimap alone, of which every picture needs some.
        names: of ALL.

    Returns:
        By name one float64 value a picture, shape () or (B,).

    Raises:
        InputError: what cannot be measured.
    """
    names = tuple(names)
    if strange := next((name for name in names if name not in ALL), None):
        raise InputError(f"unknown metric {strange!r}: use some of {', '.join(ALL)}.")
    if predicted.shape != true.shape or true.ndim not in (2, 3):
        shapes = f"{tuple(predicted.shape)} and {tuple(true.shape)}"
        raise InputError(f"alphas of shape {shapes} cannot be compared: pass two of one shape, (H, W) or (B, H, W).")
    p, g = _checked(predicted, "predicted alpha"), _checked(true, "true alpha")
    counted = _counted(region, trimap, g)
    return {name: ALL[name](p, g, counted) for name in names}


def _counted(region: str, trimap: Map | None, like: Tensor) -> Tensor:
    """The counted pixels, bool of `like`'s shape."""
    if region not in REGIONS:
        raise InputError(f"unknown region {region!r}: use one of {', '.join(REGIONS)}.")
    if region == "whole":
        return torch.ones_like(like, dtype=torch.bool)
    if trimap is None:
        raise InputError("region 'unknown' is the grey band of a trimap, but none was given: pass trimap=.")
    if trimap.shape != like.shape:
        raise InputError(f"the trimap has shape {tuple(trimap.shape)}, the alpha {tuple(like.shape)}: make them equal.")
    grey = is_unknown(_checked(trimap, "trimap"))
    if not bool(grey.flatten(-2).any(dim=-1).all()):
        raise InputError("a trimap has no unknown (grey) pixel, so there is nothing to count: use region='whole'.")
    return grey


def is_unknown(trimap: Tensor) -> Tensor:
    """The grey pixels of trimaps (..., H, W), bool."""
    return (trimap > SURE) & (trimap < 1 - SURE)


def _checked(x: Map, what: str) -> Tensor:
    """x as floats, if it has pixels and all of them lie in [0, 1]."""
    if not isinstance(x, Tensor):
        x = torch.from_numpy(np.array(x, dtype=np.result_type(x, np.float32), order="C"))
    elif not x.is_floating_point():
        x = x.float()
    if not x.numel():
        raise InputError(f"the {what} of shape {tuple(x.shape)} has no pixel: pass a picture.")
    low, high = (float(end) for end in x.aminmax())  # both are NaN if any pixel is
    if not (low >= -SLACK and high <= 1 + SLACK):
        worst = high if low >= -SLACK else low
        raise InputError(f"the {what} holds {worst:g}, outside [0, 1]: divide 8-bit values by 255, and mend the rest.")
    return x


def soft_iou(predicted: Tensor, true: Tensor) -> Tensor:
    """Sum of minima over sum of maxima of two alphas (..., H, W): 1 if equal, 0 if apart (or both empty)."""
    union = torch.maximum(predicted, true).sum(dim=(-2, -1))
    return torch.minimum(predicted, true).sum(dim=(-2, -1)) / union.clamp_min(1e-9)
