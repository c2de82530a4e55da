"""The autoencoder's discriminator: does a patch look like a real layer?

Sources: PatchGAN (Isola et al. 2017), hinge loss, the adaptive weight of VQGAN (Esser et al. 2021); AlphaVAE (arXiv
2507.09308) gives it four channels. It sees colour times alpha: colour under alpha 0 is nobody's business.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRONGEST = 1e4  # limit of the adaptive weight
GROUPS = 8  # normalised within a picture: statistics of a batch would tie its pictures, and processes, together


class Discriminator(nn.Module):
    """Premultiplied RGBA (B, 4, H, W) in [-1, 1] -> one verdict for each patch (B, 1, about H/8, about W/8)."""

    def __init__(self, channels: int = 4, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        widths = [width * min(2**k, 8) for k in range(layers + 1)]
        made: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for k, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            stride = 2 if k < layers - 1 else 1
            made += [nn.Conv2d(a, b, 4, stride, 1, bias=False), nn.GroupNorm(GROUPS, b), nn.LeakyReLU(0.2)]
        self.network = nn.Sequential(*made, nn.Conv2d(widths[-1], 1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """The discriminator's loss: verdicts above 1 for real pictures and below -1 for made ones cost nothing."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + made).mean())


def pull(discriminator: nn.Module, made: Tensor) -> Tensor:
    """A term whose gradient in `made` is that of -discriminator(made).mean(); its parameters get none of it."""
    seen = made.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(-discriminator(seen).mean(), seen)
    return (gradient * made).sum()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: Tensor) -> Tensor:
    """How much of `adversarial` has as much gradient at the last layer's weight as `reconstruction`."""
    wanted, got = (torch.autograd.grad(t, last, retain_graph=True)[0].norm() for t in (reconstruction, adversarial))
    return (wanted / (got + 1e-4)).clamp(0, STRONGEST).detach()
