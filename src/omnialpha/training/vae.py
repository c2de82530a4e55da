"""The autoencoder's objective, term by term as docs/autoencoder.md derives it.

Source: AlphaVAE (arXiv 2507.09308). Every term is a mean over pixels, latents or patches, so that weights depend
neither on the picture's size nor on the batch.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from omnialpha import masks, rgba
from omnialpha.evaluation.metrics.backgrounds import BACKGROUNDS
from omnialpha.io import contact_sheet
from omnialpha.models.vae.alphavae import AlphaVAE, write
from omnialpha.models.vae.autoencoder import LAST, Autoencoder
from omnialpha.training.discriminator import Discriminator, adaptive_weight, hinge, pull
from omnialpha.training.loop import Objective
from omnialpha.training.perceptual import Distance, pyramid
from omnialpha.training.sources import Pictures
from omnialpha.training.validation import FOLDER

SHOWN = 8  # held-out pictures on a sheet


@dataclass(frozen=True)
class Background:
    """What layers are composited on in expectation: mean and mean square of natural pictures' R, G, B in [-1, 1]."""

    mean: tuple[float, ...] = (-0.0357, -0.0811, -0.1797)
    square: tuple[float, ...] = (0.3163, 0.3060, 0.3634)

    def moments(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """E[b] and E[b^2], (1, 3, 1, 1) each."""
        mean, square = torch.tensor([self.mean, self.square], device=device).view(2, 1, 3, 1, 1)
        return mean, square


@dataclass(frozen=True)
class VAELoss:
    """Weights of the terms; 0 leaves one out."""

    pixels: Literal["expected", "naive"] = "expected"  # naive: mean square of all four channels, straight
    reconstruction: float = 1.0
    perceptual: float = 0.0
    prior: float = 1e-6
    reference: float = 0.0
    adversarial: float = 0.0
    adversarial_from: int = 0  # the first step with a discriminator
    alpha: float = 0.0  # extra square error of alpha: matting is judged by alpha alone
    edge: float = 0.0  # L1 of the first differences of composites on black and white: block edges


@dataclass(frozen=True)
class DiscriminatorSettings:
    width: int = 64
    layers: int = 3
    pace: float = 1.0  # its learning rate, relative
    betas: tuple[float, ...] = (0.5, 0.9)


def composited_error(difference: Tensor, alpha_difference: Tensor, mean: Tensor, square: Tensor) -> Tensor:
    """E_b |composite difference|^2 per pixel and colour, for D = a x - a^ x^ (B, 3, H, W) and d = a - a^ (B, 1, H, W).

    The composite on b is a x + (1 - a) b, so its difference is D - b d; the expectation needs only E[b] and E[b^2].
    """
    return difference**2 - 2 * mean * difference * alpha_difference + square * alpha_difference**2


def prior_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL of N(mean, exp(logvar)) to N(0, 1), nats for each latent value."""
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()


def reference_kl(mean: Tensor, logvar: Tensor, mean_0: Tensor, logvar_0: Tensor) -> Tensor:
    """KL of N(mean, exp(logvar)) to N(mean_0, exp(logvar_0)), nats for each latent value."""
    return 0.5 * (((mean - mean_0) ** 2 + logvar.exp()) / logvar_0.exp() - 1 - logvar + logvar_0).mean()


def on_black_and_white(premultiplied: Tensor) -> Tensor:
    """Composites (2 B, 3, H, W) in [0, 1]: first all on black, then all on white."""
    rgb, alpha = premultiplied[:, :3], premultiplied[:, 3:]
    return torch.cat([rgb, rgb + 1 - alpha])


class VAEObjective(Objective):
    """Reconstruct the pictures of a batch; see VAELoss for the terms."""

    def __init__(
        self,
        vae: Autoencoder,
        pictures: Pictures,
        held_out: Pictures,
        weights: VAELoss,
        background: Background = Background(),
        discriminator: DiscriminatorSettings = DiscriminatorSettings(),
        distance: Distance = pyramid,
        source: Path | None = None,
    ) -> None:
        """source: the folder that `vae` was read from, whose layout is kept on export."""
        super().__init__()
        self.vae, self.weights, self.background, self.distance, self.source = vae, weights, background, distance, source
        self.pictures, self.held_out, self.settings = pictures, held_out, discriminator
        self.data = pictures
        shape = (vae.config.channels, discriminator.width, discriminator.layers)
        self.discriminator = Discriminator(*shape) if weights.adversarial else None
        self.reference = copy.deepcopy(vae).requires_grad_(False) if weights.reference else None
        self.last = next(module.weight for name, module in vae.named_modules() if name.endswith(LAST))

    def groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = [{"params": [p for p in self.vae.parameters() if p.requires_grad]}]
        if self.discriminator:
            own = {"pace": self.settings.pace, "betas": self.settings.betas[:2], "weight_decay": 0.0}
            groups.append({"params": list(self.discriminator.parameters())} | own)
        return groups

    def forward(self, index: int, batch: Tensor | None = None) -> dict[str, Tensor]:
        x = (self.pictures[index] if batch is None else batch).to(self.vae.device, non_blocking=True)
        mean, logvar = (t.float() for t in self.vae.moments(x[:, : self.vae.config.channels]))
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(index)).to(mean.device)
        out = self.vae.reconstruct(mean + torch.exp(0.5 * logvar) * noise)
        return self.losses(x, out.float(), mean, logvar)

    def losses(self, x: Tensor, out: Tensor, mean: Tensor, logvar: Tensor) -> dict[str, Tensor]:
        """All terms for pictures x (B, 4, H, W) in [0, 1] and the network's answer `out` in [-1, 1], not clamped."""
        true, made = rgba.premultiply(x), self._premultiplied(out)
        terms = self._terms(x, out, true, made, mean, logvar)
        weighted = {name: getattr(self.weights, name) * term for name, term in terms.items()}
        loss = torch.stack(list(weighted.values())).sum()
        if self.discriminator and self.step >= self.weights.adversarial_from:
            loss = loss + self._adversarial(true, made, weighted, terms)
        return {"loss": loss, "alpha_mad": (true[:, 3:] - made[:, 3:]).abs().mean()} | terms

    def _adversarial(self, true: Tensor, made: Tensor, weighted: dict[str, Tensor], terms: dict[str, Tensor]) -> Tensor:
        """The discriminator's loss, whose value it has, and its pull on the VAE; both are also put into `terms`."""
        assert self.discriminator
        opinion = pull(self.discriminator, 2 * made - 1)
        seen = weighted["reconstruction"] + weighted.get("perceptual", 0.0)
        weight = self.weights.adversarial * adaptive_weight(seen, opinion, self.last)
        discriminator = hinge(self.discriminator(2 * true - 1), self.discriminator(2 * made.detach() - 1))
        terms |= {"adversarial_weight": weight, "discriminator": discriminator}
        return discriminator + weight * (opinion - opinion.detach())

    def _premultiplied(self, out: Tensor) -> Tensor:
        """The network's answer in [-1, 1] -> premultiplied RGBA in [0, 1], unclamped: overshoot has a gradient."""
        made = (out + 1) / 2
        made = rgba.opaque(made) if self.vae.config.channels == 3 else made
        return made if self.vae.config.premultiplied else rgba.premultiply(made)

    def _terms(
        self, x: Tensor, out: Tensor, true: Tensor, made: Tensor, mean: Tensor, logvar: Tensor
    ) -> dict[str, Tensor]:
        """The terms that have a weight, and always "reconstruction" and "prior", by the names of their weights."""
        weights, d = self.weights, true[:, 3:] - made[:, 3:]
        if weights.pixels == "naive":
            pixels = F.mse_loss(out, 2 * (true if self.vae.config.premultiplied else x)[:, : out.shape[1]] - 1)
        else:  # a * x with x in [-1, 1] is 2 a x - a in [0, 1] units
            difference = 2 * (true[:, :3] - made[:, :3]) - d
            pixels = composited_error(difference, d, *self.background.moments(d.device)).mean()
        terms = {"reconstruction": pixels, "prior": prior_kl(mean, logvar)}
        if weights.alpha:
            terms["alpha"] = d.square().mean()
        wanted, got = on_black_and_white(true), on_black_and_white(made)
        if weights.edge:
            terms["edge"] = 2 * (_differences(wanted) - _differences(got)).abs().mean()
        if weights.perceptual:
            terms["perceptual"] = self.distance(got, wanted).mean()
        if self.reference:
            opaque = rgba.opaque(wanted)
            with torch.no_grad():
                first = [t.float() for t in self.reference.moments(opaque)]
            terms["reference"] = reference_kl(*(t.float() for t in self.vae.moments(opaque)), *first)
        return terms

    @torch.no_grad()
    def validate(self, folder: Path, step: int) -> dict[str, float]:
        """Held-out figures of fixed pictures: PSNR over nine backgrounds, alpha MAD; and a sheet of the first ones."""
        figures: dict[str, list[float]] = {"val_psnr": [], "val_alpha_mad": []}
        for index in range(4):
            x = self.held_out[index].to(self.vae.device)
            out = self.vae.decode(self.vae.encode(x[:, : self.vae.config.channels]))
            out = rgba.opaque(out) if self.vae.config.channels == 3 else out
            each = [rgba.psnr(rgba.flatten(x, c), rgba.flatten(out, c)) for c in BACKGROUNDS.values()]
            figures["val_psnr"].append(sum(each) / len(each))
            figures["val_alpha_mad"].append(float((x[:, 3] - out[:, 3]).abs().mean()))
            if index == 0:
                _sheet(folder / FOLDER / f"{step:06d}.png", x[:SHOWN], out[:SHOWN])
        return {name: sum(values) / len(values) for name, values in figures.items()}

    def export(self, folder: Path) -> None:
        if isinstance(self.vae, AlphaVAE) and not self.source:
            channels = self.vae.config.channels
            calibrate(self.vae, [self.pictures[i][:, :channels].to(self.vae.device) for i in range(16)])
        write(self.vae, folder / "vae", self.source)


def _differences(x: Tensor) -> Tensor:
    """Horizontal and vertical first differences, flattened together."""
    return torch.cat([(x[..., 1:] - x[..., :-1]).flatten(), (x[..., 1:, :] - x[..., :-1, :]).flatten()])


def _sheet(path: Path, true: Tensor, made: Tensor) -> None:
    """Pictures > reconstructions | the alpha of both."""
    cards = []
    for number, (x, out) in enumerate(zip(true.cpu(), made.cpu(), strict=True), start=1):
        alphas = [(name, masks.as_picture(p[3])) for name, p in (("alpha", x), ("alpha made", out))]
        cards.append(contact_sheet.card(f"held-out picture {number}", [[("picture", x)], [("made", out)], alphas]))
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet.write(path, cards)


# ---- a VAE of our own, from nothing ----


@torch.no_grad()
def fit_linear_autoencoder(vae: AlphaVAE, pictures: Tensor) -> None:
    """Set the VAE's linear path to the PCA of patches of `pictures` (B, C, H, W) in [0, 1]."""
    x = (rgba.premultiply(pictures) if vae.config.premultiplied else pictures) * 2 - 1
    mean = x.mean(dim=(0, 2, 3))
    patches = F.unfold(x - mean[:, None, None], vae.ratio, stride=vae.ratio).transpose(1, 2).flatten(0, 1)
    covariance = patches.T @ patches / len(patches)
    _, vectors = torch.linalg.eigh(covariance.double())
    vae.set_linear_autoencoder(vectors.flip(1).T[: vae.config.z_dim].float().contiguous(), mean)


@torch.no_grad()
def calibrate(vae: AlphaVAE, batches: list[Tensor], whitening: float = 0.5) -> None:
    """Measure the latents and set their normalisation. whitening 1 gives every channel unit variance; .5 leaves strong
    channels stronger, so that an unweighted loss in latents stays near the error that is seen in pixels."""
    latents = torch.cat([vae.moments(x)[0].float().transpose(0, 1).flatten(1) for x in batches], dim=1)  # (z, N)
    std = latents.std(dim=1)
    divisor = std**whitening
    divisor = divisor * (std / divisor).square().mean().sqrt()  # unit mean square over all channels
    vae.register_to_config(latents_mean=latents.mean(dim=1).tolist(), latents_std=divisor.tolist())
