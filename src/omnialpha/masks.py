"""Masks: the maps that guide matting and removal, made of an alpha matte as the AlphaLayers data set has them.

All maps are float tensors (H, W). The structuring element is the disk of pixels within Euclidean distance <= radius.
The picture's border is not a boundary: what lies outside it neither erodes nor dilates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.limits import by

DEFINITE = 0.95  # alpha above this counts as foreground
PRESENT = 0.5 / 255  # alpha above this is not stored as 0 in 8 bits: the subject has begun
RADIUS_RANGE = (0.05, 0.10)  # of the shorter side
CLICK = 0.02  # of the shorter side: radius of the disk that a click marks

Mark = tuple[float, ...]  # see `marks`


def erode(mask: Tensor, radius: float) -> Tensor:
    """Erode a mask (H, W), of which what is not 0 counts, by a disk of `radius` >= 0 pixels.

    Returns:
        bool (H, W): the pixels that have no background within the radius.

    Raises:
        InputError: The shape is another one, or the radius is negative.
    """
    if mask.ndim != 2:
        raise InputError(f"A mask of shape {tuple(mask.shape)} is not a mask; pass (height, width).")
    if radius < 0:
        raise InputError(f"The radius {radius} is negative; pass a number of pixels >= 0.")
    return torch.from_numpy(_eroded(mask.detach().cpu().numpy().astype(bool), radius)).to(mask.device)


def _eroded(inside: np.ndarray, radius: float) -> np.ndarray:
    """(H, W) bool: more than `radius` from all False pixels, exactly, in a time that does not depend on the radius.

    A False pixel in the same column at a distance d takes away sqrt(radius^2 - d^2) pixels to the left and right.
    """
    height, width = inside.shape
    rows, columns = np.arange(height, dtype=np.int32)[:, None], np.arange(width, dtype=np.int32)
    far = np.int32(height + int(radius) + 2)
    above, below = np.where(inside, -far, rows), np.where(inside, far, rows)  # the nearest False pixel's row
    for k in range(1, height):  # ten times as fast as ufunc.accumulate along the rows
        np.maximum(above[k - 1], above[k], out=above[k])
        np.minimum(below[-k], below[-k - 1], out=below[-k - 1])
    distance = np.arange(int(radius) + 1)
    reach = np.floor(np.sqrt(radius**2 - distance**2)).astype(np.int32)
    reach += np.hypot(reach + 1, distance) <= radius  # where the square root was rounded
    reach -= np.hypot(reach, distance) > radius
    beyond = np.append(reach, np.int32(-1))  # of a column without one within the radius: not even the pixel itself
    taken = np.take(beyond, np.minimum(np.minimum(rows - above, below - rows), len(reach)))
    right = np.maximum.accumulate(columns + taken, axis=1)
    left = np.minimum.accumulate((columns - taken)[:, ::-1], axis=1)[:, ::-1]
    return (right < columns) & (left > columns)


def dilate(mask: Tensor, radius: float) -> Tensor:
    """Dilate a mask (H, W) by a disk: the pixels with foreground within the radius. Shapes and errors as in `erode`."""
    return ~erode(mask == 0, radius)  # the disk is symmetric, so dilation is erosion of the complement


def precise(alpha: Tensor) -> Tensor:
    """The precise mask of an alpha of any shape in [0, 1]: 1 where it is above .95, else 0."""
    return (alpha > DEFINITE).to(alpha.dtype)


def trimap(alpha: Tensor, radius: float) -> Tensor:
    """The trimap of an alpha.

    Args:
        alpha: (H, W) in [0, 1].
        radius: In pixels, see `draw_radius`.

    Returns:
        (H, W): 1 on the eroded definite foreground, 0 outside the dilated support, .5 between.
    """
    inside = erode(alpha > DEFINITE, radius).to(alpha.dtype)
    reach = dilate(alpha > PRESENT, radius).to(alpha.dtype)
    return (inside + reach) / 2


def rough(alpha: Tensor, radius: float) -> Tensor:
    """The rough mask of an alpha: 1 where its `trimap` is .5 or 1, else 0. Arguments as in `trimap`."""
    return dilate(alpha > PRESENT, radius).to(alpha.dtype)


def marks(size: tuple[int, int], points: Sequence[Mark] = (), boxes: Sequence[Mark] = ()) -> Tensor:
    """Clicks and boxes as a map.

    Args:
        size: (height, width) of the picture.
        points: Clicks (x, y) on the subject, in pixels from the top left; (x, y, False) on what is not the subject.
        boxes: Boxes (x, y, width, height) around it; (x, y, width, height, False) around what is not the subject.

    Returns:
        (H, W): 1 subject, 0 unknown, -1 background. Where there are boxes around the subject, all outside them is
        background.

    Raises:
        InputError: A mark lies outside the picture.
    """
    rows, columns = (torch.arange(n, dtype=torch.float32) + 0.5 for n in size)
    meant = [(tuple(box[:4]), len(box) < 5 or bool(box[4])) for box in boxes]
    marked = torch.full(size, -1.0 if any(wanted for _, wanted in meant) else 0.0)
    for (left, top, width, height), wanted in sorted(meant, key=lambda one: not one[1]):
        inside = (rows > top) & (rows < top + height), (columns > left) & (columns < left + width)
        if not (inside[0].any() and inside[1].any()):
            raise InputError(
                f"the box {left:g},{top:g},{width:g},{height:g} holds no pixel of the {by(size)} px picture."
            )
        marked[inside[0][:, None] & inside[1][None]] = 0.0 if wanted else -1.0
    radius = max(CLICK * min(size), 1.0)
    for x, y, *rest in points:
        if not (0 <= x < size[1] and 0 <= y < size[0]):
            raise InputError(
                f"the point {x:g},{y:g} lies outside the {by(size)} px picture: use X,Y from its top left."
            )
        near = (rows[:, None] - y).square() + (columns[None] - x).square() <= radius**2
        marked[near] = 1.0 if not rest or rest[0] else -1.0
    return marked


def draw_radius(height: int, width: int, generator: torch.Generator | None = None) -> float:
    """Draw the radius of a trimap in pixels: uniform in 5 to 10 % of the shorter side, as AlphaLayers draws it."""
    low, high = RADIUS_RANGE
    share = low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()
    return share * min(height, width)


def as_picture(mask: Tensor) -> Tensor:
    """A map (..., H, W) in [0, 1] as the opaque grey picture (..., 4, H, W) that models take it as."""
    grey = mask.float()
    return torch.stack([grey, grey, grey, torch.ones_like(grey)], dim=-3)
