"""A scene of a background and up to two soft disks as tensors, what each task asks of it, and plausible predictions."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from omnialpha import masks, rgba
from omnialpha.tasks import TASKS, Example, Role

SIDE = 64


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer(seed: int, base: tuple[float, float, float], alpha: Tensor) -> Tensor:
    """(4, H, W): smooth texture around a colour."""
    spots = F.interpolate(torch.rand(1, 3, 12, 12, generator=draw(seed)), size=alpha.shape, mode="bicubic")[0]
    colour = 0.6 * torch.tensor(base)[:, None, None] + 0.4 * spots
    return torch.cat([colour.clamp(0, 1), alpha[None]])


def disk(y: float, x: float, radius: float, edge: float) -> Tensor:
    """Alpha of a disk with a linear edge, all in parts of the side."""
    rows, columns = torch.meshgrid(*2 * [torch.arange(SIDE) / SIDE], indexing="ij")
    return ((radius - torch.hypot(rows - y, columns - x)) / edge + 0.5).clamp(0, 1)


BACK = layer(1, (0.2, 0.7, 0.3), torch.ones(SIDE, SIDE))
FRONTS = (
    layer(2, (0.9, 0.2, 0.2), disk(0.4, 0.35, 0.22, 0.12)),
    layer(3, (0.1, 0.2, 0.9), disk(0.65, 0.65, 0.2, 0.03)),
)


def example(task: str, fronts: int = 1, layers: tuple[Tensor, ...] = (BACK, *FRONTS)) -> Example:
    """With truths; maps are of the first disk."""
    row, layers = TASKS[task], layers[: 1 + fronts]
    alpha = layers[1][3]
    made = {
        Role.ALPHA: alpha,
        Role.TRIMAP: masks.trimap(alpha, 4.0),
        Role.PRECISE: masks.precise(alpha),
        Role.ROUGH: masks.rough(alpha, 4.0),
    }
    images = {
        role: masks.as_picture(made[role]) if role in made else rgba.recompose(list(layers)) for role in row.inputs
    }
    asked = row.example(
        images, prompt="the red disk" if row.text else None, layers=len(layers) if row.many in row.targets else None
    )
    truths = {"matting": layers[1:2], "removal": layers[:1], "decomposition": layers}[row.category]
    return replace(asked, truths=truths)


def blur(maps: Tensor, sigma: float) -> Tensor:
    """(..., H, W) under a Gaussian."""
    taps = torch.exp(-torch.arange(-12, 13.0).square() / (2 * sigma**2))
    taps = (taps / taps.sum()).view(1, 1, 1, -1)
    flat = F.pad(maps.reshape(-1, 1, *maps.shape[-2:]), (12, 12, 12, 12), mode="replicate")
    return F.conv2d(F.conv2d(flat, taps), taps.transpose(2, 3)).view_as(maps)


def honest(truth: Tensor, noise: float = 0.01) -> Tensor:
    """What a good model makes: the truth, a little softer, as autoencoders leave it, and a little noise."""
    return (blur(truth, 0.6) + noise * torch.randn(truth.shape, generator=draw(0))).clamp(0, 1)
