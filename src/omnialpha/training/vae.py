"""The autoencoder's objective: the exact expectation of the composited error over natural backgrounds, and the prior's
KL.

Source: AlphaVAE (arXiv 2507.09308), written in means over pixels so that weights do not depend on the picture's size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from omnialpha import rgba
from omnialpha.data.bank import Bank
from omnialpha.data.scenes import compose
from omnialpha.models.vae import AlphaVAE
from omnialpha.training.loop import Objective

BACKGROUND_MEAN = (-0.0357, -0.0811, -0.1797)  # of natural backgrounds, in [-1, 1]
BACKGROUND_SQUARE = (0.3163, 0.3060, 0.3634)  # mean of squares, likewise


def background_moments(device: torch.device) -> tuple[Tensor, Tensor]:
    """E[b] and E[b^2], (1, 3, 1, 1) each."""
    mean, square = torch.tensor([BACKGROUND_MEAN, BACKGROUND_SQUARE], device=device).view(2, 1, 3, 1, 1)
    return mean, square


def composited_error(difference: Tensor, alpha_difference: Tensor, mean: Tensor, square: Tensor) -> Tensor:
    """E_b |composite difference|^2 per pixel and colour, for D = a x - a^ x^ (B, 3, H, W) and d = a - a^ (B, 1, H, W).

    The composite on b is a x + (1 - a) b, so its difference is D - b d; the expectation needs only E[b] and E[b^2].
    """
    return difference**2 - 2 * mean * difference * alpha_difference + square * alpha_difference**2


@dataclass(frozen=True)
class VAELoss:
    kl: float = 1e-6
    alpha: float = 0.5  # extra weight on the alpha error: matting is judged by alpha alone
    edge: float = 0.5  # L1 of the first differences of composites on black and white: block edges


class VAEObjective(Objective):
    """Reconstruct composites and layers. Half of a batch are composites, half layers."""

    def __init__(
        self,
        vae: AlphaVAE,
        bank: Bank,
        held_out: Bank,
        weights: VAELoss,
        batch: int,
        sizes: list[tuple[int, int]],
        seed: int,
    ) -> None:
        super().__init__()
        self.vae, self.weights, self.bank, self.held_out = vae, weights, bank, held_out
        self.batch, self.sizes, self.seed = batch, sizes, seed

    def pictures(self, bank: Bank, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        scenes = compose(bank, self.batch // 2, 1, self.sizes[index % len(self.sizes)], generator)
        return torch.cat([scenes.composite, scenes.layers[:, 0]])

    def forward(self, index: int) -> dict[str, Tensor]:
        x = self.pictures(self.bank, index).to(self.vae.device)
        mean, logvar = self.vae.moments(x)
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(index)).to(mean.device)
        z = mean + torch.exp(0.5 * logvar) * noise
        out = (self.vae.reconstruct(z).float() + 1) / 2
        return self._losses(x, out, mean, logvar)

    def _losses(self, x: Tensor, out: Tensor, mean: Tensor, logvar: Tensor) -> dict[str, Tensor]:
        true = rgba.premultiply(x)
        made = out if self.vae.config.premultiplied else rgba.premultiply(out)
        d = true[:, 3:] - made[:, 3:]
        # a * x with x in [-1, 1] is 2 a x - a in [0, 1] units
        difference = 2 * (true[:, :3] - made[:, :3]) - d
        reconstruction = composited_error(difference, d, *background_moments(d.device)).mean()
        alpha = d.abs().mean()
        edge = sum(
            (
                _differences(true[:, :3] + back * (1 - true[:, 3:]))
                - _differences(made[:, :3] + back * (1 - made[:, 3:]))
            )
            .abs()
            .mean()
            for back in (0.0, 1.0)
        )
        kl = 0.5 * (mean.float() ** 2 + logvar.float().exp() - 1 - logvar.float()).mean()
        loss = reconstruction + self.weights.alpha * d.square().mean() + self.weights.edge * edge + self.weights.kl * kl
        return {"loss": loss, "reconstruction": reconstruction, "alpha_mad": alpha, "kl": kl}

    @torch.no_grad()
    def validate(self, folder: Path, step: int) -> dict[str, float]:
        """Held-out PSNR of composites and layers (over mid grey) and alpha MAD, fixed pictures."""
        figures: dict[str, list[float]] = {"val_composite_psnr": [], "val_layer_psnr": [], "val_alpha_mad": []}
        for index in range(4):
            x = self.pictures(self.held_out, index).to(self.vae.device)
            out = self.vae.decode(self.vae.encode(x))
            half = len(x) // 2
            grey = (0.5, 0.5, 0.5)
            figures["val_composite_psnr"].append(
                rgba.psnr(rgba.flatten(x[:half], grey), rgba.flatten(out[:half], grey))
            )
            figures["val_layer_psnr"].append(rgba.psnr(rgba.flatten(x[half:], grey), rgba.flatten(out[half:], grey)))
            figures["val_alpha_mad"].append(float((x[half:, 3] - out[half:, 3]).abs().mean()))
        return {name: sum(values) / len(values) for name, values in figures.items()}

    def export(self, folder: Path) -> None:
        calibrate(self.vae, [self.pictures(self.bank, i).to(self.vae.device) for i in range(16)])
        self.vae.save_pretrained(folder / "vae")


def _differences(x: Tensor) -> Tensor:
    """Horizontal and vertical first differences, flattened together."""
    return torch.cat([(x[..., 1:] - x[..., :-1]).flatten(), (x[..., 1:, :] - x[..., :-1, :]).flatten()])


@torch.no_grad()
def fit_linear_codec(vae: AlphaVAE, pictures: Tensor) -> None:
    """Set the VAE's linear path to the PCA of patches of `pictures` (B, 4, H, W) in [0, 1]."""
    x = (rgba.premultiply(pictures) if vae.config.premultiplied else pictures) * 2 - 1
    mean = x.mean(dim=(0, 2, 3))
    patches = F.unfold(x - mean[:, None, None], vae.ratio, stride=vae.ratio).transpose(1, 2).flatten(0, 1)
    covariance = patches.T @ patches / len(patches)
    _, vectors = torch.linalg.eigh(covariance.double())
    vae.set_linear_codec(vectors.flip(1).T[: vae.config.z_dim].float().contiguous(), mean)


@torch.no_grad()
def calibrate(vae: AlphaVAE, batches: list[Tensor], whitening: float = 0.5) -> None:
    """Measure the latents and set their normalisation. whitening 1 gives every channel unit variance; .5 leaves strong
    channels stronger, so that an unweighted loss in latents stays near the error that is seen in pixels."""
    latents = torch.cat([vae.moments(x)[0].float().transpose(0, 1).flatten(1) for x in batches], dim=1)  # (z, N)
    std = latents.std(dim=1)
    divisor = std**whitening
    divisor = divisor * (std / divisor).square().mean().sqrt()  # unit mean square over all channels
    vae.register_to_config(latents_mean=latents.mean(dim=1).tolist(), latents_std=divisor.tolist())
