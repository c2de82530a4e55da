"""How a subject that was cut out is finished: its edge, its colours, its shadow, what is around and behind it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from omnialpha import refine, rgba
from omnialpha.cutout_options import Cutout
from omnialpha.errors import InputError

FAR = 0.06  # of the shorter side: a background is fitted no nearer to the subject than this
PLAIN = 0.02  # what is left of a plain background after a smooth one was taken away, in [0, 1]
LIT = 0.6  # of what lies away from the subject: so much of a plain background is no shadow
DARKER = 0.03  # a shadow is at least this much darker than the background, in [0, 1]
PRESENT = 0.5 / 255


def finish(layer: Tensor, picture: Tensor, options: Cutout) -> tuple[Tensor, tuple[str, ...]]:
    """Finish a cut-out.

    Args:
        layer: The subject, straight RGBA (4, H, W) in [0, 1].
        picture: What it was cut out of, (4, H, W).

    Returns:
        The picture that is handed out, of another size where it is cropped, and notes for the user.

    Raises:
        InputError: The background is no colour and no picture file.
    """
    rgb, alpha, notes = layer[:3], layer[3], []
    if not options.decontaminate:
        rgb = picture[:3]
    elif options.choke < 0 or options.feather:  # colours where there were none
        rgb = torch.where(alpha == 1, rgb, refine.foreground(rgba.flatten(picture), alpha))
    edge = feathered(choked(alpha, options.choke), options.feather)
    made = torch.cat([rgb, edge[None]])
    if options.shadow == "keep":
        dark = shadow(picture, alpha)
        if dark is None:
            notes.append("no shadow was kept, as the background is not plain")
        else:
            made = rgba.over(made, torch.cat([torch.zeros_like(rgb), dark[None]]))
    if options.crop is not None:
        made = cropped(made, options)
    if options.background is not None:
        made = rgba.opaque(rgba.flatten(made, backdrop(options.background, (made.shape[1], made.shape[2]))))
    return made, tuple(notes)


def choked(alpha: Tensor, radius: float) -> Tensor:
    """Alpha (H, W) whose edge is moved inwards by a disk of `radius` pixels, outwards below 0: the lowest, or highest,
    alpha within it.
    """
    reach = abs(radius)
    if reach < 1:  # a part of the way to the nearest pixels
        return alpha if not radius else alpha.lerp(choked(alpha, math.copysign(1.0, radius)), reach)
    values = -alpha if radius > 0 else alpha
    most = values
    whole = math.floor(reach)
    padded = F.pad(values[None, None], (0, 0, whole, whole), value=-math.inf)[0, 0]
    for down in range(-whole, whole + 1):
        half = math.floor(math.sqrt(reach**2 - down**2))
        row = padded[whole + down : whole + down + len(values)]
        most = most.maximum(F.max_pool1d(row[:, None], 2 * half + 1, 1, half)[:, 0] if half else row)
    return -most if radius > 0 else most


def feathered(alpha: Tensor, pixels: float) -> Tensor:
    """Alpha (H, W) blurred by a Gaussian that softens a hard edge over about so many pixels."""
    if not pixels:
        return alpha
    sigma = pixels / 4
    reach = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-reach, reach + 1, dtype=alpha.dtype)
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    weights = (weights / weights.sum())[None, None]
    padded = F.pad(alpha[None, None], (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, weights[:, :, None]), weights[..., None])[0, 0].clamp(0, 1)


def shadow(picture: Tensor, alpha: Tensor) -> Tensor | None:
    """The alpha (H, W) of the black that a subject's shadow is, (H, W); None where the background is not plain.

    A smooth background is fitted, quadratic in x and y, to what lies away from the subject and is not darker than it
    says; what is darker than that around the subject is shadow.

    Args:
        picture: (4, H, W).
        alpha: Of the subject, (H, W).
    """
    luma = rgba.flatten(picture).mul(torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    height, width = luma.shape
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    terms = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], -1)
    near = choked(alpha, -max(1.0, min(FAR * min(height, width), 60.0)))
    inside = near <= PRESENT
    for _ in range(4):
        if int(inside.sum()) < 64:
            return None
        solved = torch.linalg.lstsq(terms[inside].double(), luma[inside].double()[:, None]).solution
        smooth = (terms.double() @ solved)[..., 0].to(luma.dtype).clamp(0.05, 1)
        inside = (near <= PRESENT) & (luma > smooth - DARKER)
    lit = luma[inside] - smooth[inside]
    if float(lit.square().mean().sqrt()) > PLAIN or int(inside.sum()) < LIT * int((near <= PRESENT).sum()):
        return None
    dark = feathered((1 - luma / smooth - DARKER).clamp(0, 1), 4)
    dark = (dark * (1 + DARKER)).clamp(0, 1) * (alpha < 1)
    return _joined(dark, alpha)


def _joined(dark: Tensor, alpha: Tensor) -> Tensor:
    """Only what hangs together with the subject."""
    from scipy.ndimage import label

    places, _ = label(((dark > PRESENT) | (alpha > PRESENT)).numpy())
    known = torch.from_numpy(places)
    own = known[(alpha > 0.5)].unique()
    return dark * torch.isin(known, own[own > 0])


def cropped(layer: Tensor, options: Cutout) -> Tensor:
    """A layer (4, H, W) cropped to where it is not clear, with a margin that may lie beyond it. An empty one stays."""
    box = bounds(layer[3], PRESENT)
    if box is None:
        return layer
    margin = options.margin(max(box[2:]))
    return F.pad(cut(layer, box), (margin, margin, margin, margin))


Box = tuple[int, int, int, int]  # top, left, height and width


def bounds(alpha: Tensor, above: float) -> Box | None:
    """Where an alpha (H, W) is above a value; None where it is nowhere."""
    rows, columns = ((alpha > above).any(1 - axis).nonzero().flatten() for axis in (0, 1))
    if not len(rows):
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1


def cut(layer: Tensor, box: Box) -> Tensor:
    """What of a layer (4, H, W) lies in a box."""
    top, left, height, width = box
    return layer[:, top : top + height, left : left + width]


def backdrop(given: str, size: tuple[int, int]) -> Tensor:
    """RGB of a CSS colour, (3,), or of a picture file, (3, *size), cropped to that and put on white.

    Raises:
        InputError: It is neither.
    """
    from PIL import ImageColor

    from omnialpha.io import read_image

    if not Path(given).is_file():
        try:
            red, green, blue = cast(tuple[int, int, int], ImageColor.getrgb(given))  # four values are refused as well
        except ValueError:
            raise InputError(
                f"--background {given!r} is no colour and no picture file: write white, #rgb, #rrggbb, or a path."
            ) from None
        return torch.tensor([red, green, blue]) / 255
    return rgba.flatten(rgba.crop_to_fill(read_image(given).rgba, size))
