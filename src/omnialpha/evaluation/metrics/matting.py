"""Matting metrics on alpha maps in [0, 1]: SAD, MAD, MSE, GRAD and CONN, over the whole picture or a trimap's band.

Maps are (H, W) or (B, H, W), torch or numpy; every metric answers one float64 value a picture. Sources: Rhemann et al.
2009 (alphamatting.com) for the metrics, the MATLAB code beside Deep Image Matting (Xu et al. 2017) for the details.
Formulas, modes and what known Python versions get wrong: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.evaluation.metrics.components import largest_component, opencv

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


@dataclass(frozen=True)
class Derivative:
    """A Gaussian of SIGMA across and its slope along an axis, `radius` pixels to either side, both in one unit.

    unit: "energy" makes their outer product one of L2 norm 1, "area" makes the Gaussian one of sum 1.
    border: OpenCV's name. stretch: each matte is first stretched to [0, 1]. scale: what the sum is divided by.
    """

    radius: int
    unit: str
    border: str
    stretch: bool
    scale: float

    def taps(self) -> tuple[np.ndarray, np.ndarray]:
        """(across, along): OpenCV correlates, which only turns the sign of `along`."""
        x = np.arange(-self.radius, self.radius + 1, dtype=np.float64)
        bell = np.exp(-(x**2) / (2 * SIGMA**2))
        if self.unit == "area":
            return bell / bell.sum(), x * bell / bell.sum() / SIGMA**2
        return bell / np.linalg.norm(bell), x * bell / np.linalg.norm(x * bell)

    def span(self, alpha: np.ndarray) -> float:
        """What a matte's gradients are divided by."""
        return float(np.ptp(alpha)) if self.stretch else 1.0

    def steepness(self, alpha: np.ndarray, span: float) -> np.ndarray:
        """Length of the gradient of a matte, or of rows of one, (H, W) float64; of a flat one 0."""
        cv2 = opencv()
        across, along = self.taps()
        border = getattr(cv2, self.border)
        if span == 0:
            return np.zeros_like(alpha)
        dx = cv2.sepFilter2D(alpha, cv2.CV_64F, along, across, borderType=border)
        dy = cv2.sepFilter2D(alpha, cv2.CV_64F, across, along, borderType=border)
        return np.sqrt(dx * dx + dy * dy) / span


DIM = Derivative(4, "energy", "BORDER_REPLICATE", True, THOUSAND)  # 4: where the density of SIGMA falls below 1e-2
AIM = Derivative(6, "area", "BORDER_REFLECT", False, 10.0)  # 6: scipy's four SIGMA; "reflect" there and here


def grad(predicted: Tensor, true: Tensor, counted: Tensor, derivative: Derivative = DIM) -> Tensor:
    """Sum of (|grad p| - |grad g|)^2 over counted pixels, in thousands; gradients are of the whole picture.

    Each matte is stretched to [0, 1] before, so it is blind to contrast: never report it alone.
    """

    def figure(p: np.ndarray, g: np.ndarray, counts: np.ndarray) -> float:
        spans = [derivative.span(alpha) for alpha in (p, g)]

        def of_band(top: int) -> float:
            """The sum over rows `top` to `top + BAND`; the rows around them are the kernel's."""
            low, high = max(0, top - derivative.radius), top + BAND + derivative.radius
            steep_p, steep_g = (
                derivative.steepness(alpha[low:high], span)[top - low :][:BAND]
                for alpha, span in zip((p, g), spans, strict=True)
            )
            return float(((steep_p - steep_g) ** 2 * counts[top : top + BAND]).sum())

        return sum(_threaded(of_band, range(0, len(p), BAND))) / derivative.scale

    return _by_picture(figure, predicted.double(), true.double(), counted)


def grad_aim(predicted: Tensor, true: Tensor, counted: Tensor) -> Tensor:
    """GRAD as AIM and P3M (Li et al. 2021) compute it: it differs in the kernel, the border, no stretch and / 10.

    The 13x13 Gaussian has sum 1 and its derivative no norm, the border mirrors pixels, contrast counts.
    """
    return grad(predicted, true, counted, AIM)


# ---- connectivity ---------------------------------------------------------------------------------------------------


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


def conn(predicted: Tensor, true: Tensor, counted: Tensor) -> Tensor:
    """Sum of |phi_p - phi_g| over counted pixels, in thousands: phi = 1 - d [d >= .15], d = alpha - connected level.

    Components are those of the whole picture, in float32; see `largest_component` for equally large ones.
    """

    def figure(p: np.ndarray, g: np.ndarray, counts: np.ndarray) -> float:
        level = connected_level(np.minimum(p, g))
        loose_p, loose_g = ((alpha - level) * (alpha - level >= VISIBLE) for alpha in (p, g))  # 1 - phi
        return float((np.abs(loose_p - loose_g) * counts).sum(dtype=np.float64) / THOUSAND)

    return _by_picture(figure, predicted.float(), true.float(), counted)


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
MODES: Mapping[str, Mapping[str, Metric]] = {"dim": METRICS, "aim": {**METRICS, "grad": grad_aim}}
POINTWISE = ("sad", "mad", "mse")  # the fast ones, which need no OpenCV


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
    trimap = _checked(trimap, "trimap")
    grey = (trimap > SURE) & (trimap < 1 - SURE)
    if not bool(grey.flatten(-2).any(dim=-1).all()):
        raise InputError("a trimap has no unknown (grey) pixel, so there is nothing to count: use region='whole'.")
    return grey


def measure(
    predicted: Map,
    true: Map,
    trimap: Map | None = None,
    region: str = "whole",
    mode: str = "dim",
    names: Iterable[str] = POINTWISE,
) -> dict[str, Tensor]:
    """Matting metrics of alphas.

    Args:
        predicted, true: (H, W) or (B, H, W) in [0, 1], torch or numpy.
        trimap: of the same shape, 0, .5 and 1; needed for the region "unknown".
        region: "whole", or "unknown" for the grey pixels of the trimap alone.
        mode: "dim", the originals; "aim" takes `grad_aim` for "grad", and is the same in all else.
        names: of METRICS.

    Returns:
        By name one float64 value a picture, shape () or (B,).

    Raises:
        InputError: what cannot be measured.
    """
    if mode not in MODES:
        raise InputError(f"unknown mode {mode!r}: use one of {', '.join(MODES)}.")
    table, names = MODES[mode], tuple(names)
    if strange := next((name for name in names if name not in table), None):
        raise InputError(f"unknown metric {strange!r}: use some of {', '.join(table)}.")
    if predicted.shape != true.shape or true.ndim not in (2, 3):
        shapes = f"{tuple(predicted.shape)} and {tuple(true.shape)}"
        raise InputError(f"alphas of shape {shapes} cannot be compared: pass two of one shape, (H, W) or (B, H, W).")
    p, g = _checked(_tensor(predicted), "predicted alpha"), _checked(_tensor(true), "true alpha")
    counted = region_mask(region, None if trimap is None else _tensor(trimap), g)
    return {name: table[name](p, g, counted) for name in names}


def _tensor(x: Map) -> Tensor:
    if isinstance(x, Tensor):
        return x if x.is_floating_point() else x.float()
    return torch.from_numpy(np.array(x, dtype=np.result_type(x, np.float32), order="C"))


def _checked(x: Tensor, what: str) -> Tensor:
    """x, if it has pixels and all of them lie in [0, 1]."""
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
