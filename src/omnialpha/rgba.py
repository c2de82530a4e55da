"""RGBA arithmetic on float tensors (..., 4, H, W): sRGB, [0, 1], straight alpha in and out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from omnialpha.errors import InputError

WHITE = (1.0, 1.0, 1.0)


def premultiply(rgba: Tensor) -> Tensor:
    """Straight RGBA (..., 4, H, W) to premultiplied: colour times alpha."""
    rgb, alpha = rgba[..., :3, :, :], rgba[..., 3:, :, :]
    return torch.cat([rgb * alpha, alpha], dim=-3)


def unpremultiply(rgba: Tensor, eps: float = 1e-6) -> Tensor:
    """Premultiplied RGBA (..., 4, H, W) to straight; where alpha <= eps the colour is unknown and becomes black."""
    rgb, alpha = rgba[..., :3, :, :], rgba[..., 3:, :, :]
    seen = alpha > eps
    rgb = torch.where(seen, rgb / torch.where(seen, alpha, 1.0), 0.0)
    return torch.cat([rgb, alpha], dim=-3)


def over(front: Tensor, back: Tensor) -> Tensor:
    """Porter-Duff `over` of two straight pictures (..., 4, H, W); the result is a straight picture."""
    return recompose([back, front])


def flatten(rgba: Tensor, color: Sequence[float] | Tensor = WHITE) -> Tensor:
    """Put RGBA on an opaque background.

    Args:
        rgba: (..., 4, H, W), straight.
        color: Three values in [0, 1], or a picture (..., 3, H, W).

    Returns:
        RGB (..., 3, H, W).
    """
    rgb, alpha = rgba[..., :3, :, :], rgba[..., 3:, :, :]
    back = torch.as_tensor(color, dtype=rgba.dtype, device=rgba.device)
    if back.ndim == 1:
        back = back[:, None, None]
    return rgb * alpha + back * (1 - alpha)


def recompose(layers: Sequence[Tensor]) -> Tensor:
    """The composite (..., 4, H, W) of layers (..., 4, H, W), back to front. InputError for no layers."""
    if not layers:
        raise InputError("There are 0 layers to recompose; pass at least one.")
    return unpremultiply(
        reduce(lambda back, front: front + back * (1 - front[..., 3:, :, :]), map(premultiply, layers))
    )


def checkerboard(height: int, width: int, cell: int = 8) -> Tensor:
    """A checkerboard (3, height, width) of squares of `cell` pixels, as transparency is shown."""
    rows, columns = torch.arange(height) // cell, torch.arange(width) // cell
    odd = (rows[:, None] + columns[None, :]) % 2 == 1
    return torch.where(odd, 0.8, 1.0).expand(3, height, width).clone()


def resize(rgba: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize straight RGBA, bicubic and antialiased, premultiplied so that the colour under alpha 0 does not bleed out.

    Args:
        rgba: (..., 4, H, W).
        size: (height, width).

    Returns:
        (..., 4, *size); the input itself where it has that size.
    """
    if tuple(rgba.shape[-2:]) == tuple(size):
        return rgba
    pixels = premultiply(rgba).reshape(-1, *rgba.shape[-3:])
    pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
    pixels = unpremultiply(pixels).clamp(0, 1)  # bicubic overshoots in colour and alpha alike: not in their quotient
    alpha = torch.where(pixels[:, 3:] > 1 - 1e-5, 1.0, pixels[:, 3:])  # the taps sum to 1 only up to rounding
    return torch.cat([pixels[:, :3], alpha], dim=1).reshape(*rgba.shape[:-2], *size)


def scale(rgba: Tensor, factor: float) -> Tensor:
    """Resize (..., 4, H, W) by a factor, to sides of whole pixels and at least 1."""
    height, width = rgba.shape[-2:]
    return resize(rgba, (max(1, round(height * factor)), max(1, round(width * factor))))


def opaque(picture: Tensor) -> Tensor:
    """RGB or RGBA (..., C, H, W) -> (..., 4, H, W), the same colours with alpha 1."""
    rgb = picture[..., :3, :, :]
    return torch.cat([rgb, torch.ones_like(rgb[..., :1, :, :])], dim=-3)


def crop_to_fill(rgba: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop the middle of (..., 4, H, W) to the aspect ratio of `size` (height, width), then resize: (..., 4, *size)."""
    height, width = rgba.shape[-2:]
    rows = min(height, max(1, round(width * size[0] / size[1])))
    columns = min(width, max(1, round(height * size[1] / size[0])))
    top, left = (height - rows) // 2, (width - columns) // 2
    return resize(rgba[..., top : top + rows, left : left + columns], size)


def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio.

    Args:
        a, b: (..., C, H, W) in [0, 1]. Premultiply them first where the colour under alpha 0 must not count.
        mask: (..., H, W), true where values count; all of them without it.

    Returns:
        dB, for a peak of 1; inf where they are equal.

    Raises:
        InputError: The mask is false everywhere.
    """
    error = (a.double() - b.double()).square()
    if mask is not None:
        error = error[mask.bool().unsqueeze(-3).expand_as(error)]
    if error.numel() == 0:
        raise InputError("The mask selects 0 pixels, so there is nothing to compare; pass a mask that is not empty.")
    return float(-10 * torch.log10(error.mean()))
