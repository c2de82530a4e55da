"""Supervised fine-tuning: flow matching on the targets of a task mixture [OmniAlpha, eq. 3], through the pipeline's own
path.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from omnialpha import rgba
from omnialpha.data.bank import Bank
from omnialpha.data.mixture import Mixture, examples
from omnialpha.models.transformer import MultiImageTransformer
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import TASKS
from omnialpha.training.loop import Objective

TIME_STREAM = 0x9E3779B9  # offset of the seeds that times and noise are drawn with


@dataclass(frozen=True)
class FlowLoss:
    """time: distribution of t. weight: of the squared velocity error; "t" equals 1/t on that of clean latents."""

    time: Literal["uniform", "logit_normal"] = "uniform"
    mean: float = 0.0
    std: float = 1.0
    weight: Literal["one", "t"] = "one"


def draw_times(loss: FlowLoss, count: int, generator: torch.Generator) -> Tensor:
    """t (count,) in (0, 1)."""
    if loss.time == "uniform":
        return torch.rand(count, generator=generator).clamp(1e-3, 1)
    return torch.sigmoid(torch.randn(count, generator=generator) * loss.std + loss.mean).clamp(1e-3, 1)


def flow_loss(velocity: Tensor, wanted: Tensor, weight: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over a sample's target tokens, then over samples. velocity, wanted (B, Lt, C); weight (B,); mask (B, Lt) or
    None.
    """
    error = (velocity - wanted).square().mean(dim=-1)  # (B, Lt)
    if mask is None:
        return (error.mean(dim=1) * weight).mean()
    return ((error * mask).sum(dim=1) / mask.sum(dim=1) * weight).mean()


class SFTObjective(Objective):
    """Trains the transformer and the instruction encoder, as far as they ask for gradients; the VAE stays frozen."""

    def __init__(
        self, model: OmniAlpha, mixture: Mixture, held_out: Bank, loss: FlowLoss, validation: int = 32
    ) -> None:
        super().__init__()
        self.model, self.mixture, self.held_out, self.settings, self.validation = (
            model,
            mixture,
            held_out,
            loss,
            validation,
        )
        self.model.vae.requires_grad_(False)

    def forward(self, index: int) -> dict[str, Tensor]:
        batch = self.mixture.batch(index)
        # far from the mixture's own seeds: the same numbers would tie t to the task that they chose
        generator = torch.Generator().manual_seed(self.mixture.seed * 7_919 + index + TIME_STREAM)
        cond = self.model.condition(batch.examples)
        x0 = self.model.encode_targets(list(batch.targets), cond).float()
        t = draw_times(self.settings, len(x0), generator).to(x0.device)
        noise = self.model.noise(cond, [int(s) for s in torch.randint(1 << 62, (len(x0),), generator=generator)])
        x_t = torch.lerp(x0, noise, t.view(-1, 1, 1))
        velocity = self.model.velocity(x_t, t, cond)
        # |v error|^2 t^2 / max(t, .05) is |x0 error|^2 / max(t, .05): bounded, or the last steps would rule
        weight = t.square() / t.clamp_min(0.05) if self.settings.weight == "t" else torch.ones_like(t)
        loss = flow_loss(velocity, noise - x0, weight, cond.positions.target_mask)
        return {"loss": loss, f"loss/{batch.examples[0].task}": loss.detach()}

    def validate(self, folder: Path, step: int) -> dict[str, float]:
        """Held-out figures by `run` on fixed scenes, untouched by `fidelity`: alpha MAD of matting, PSNR of removal."""
        self.model.eval()
        figures = {}
        for name in ("matting_auto", "matting_text", "removal_rough"):
            generator = torch.Generator().manual_seed(1)
            batch = examples(TASKS[name], self.held_out, self.validation, self.mixture.sizes[0], generator)
            made = torch.stack([stack[0].rgba for stack in self.model.run(batch.examples, raw=True)])
            true = batch.targets[:, 0].cpu()
            if name.startswith("matting"):
                figures[f"val_{name}_mad"] = float((made[:, 3] - true[:, 3]).abs().mean())
                # the least that one constant can reach is at the median
                figures[f"val_{name}_constant_mad"] = float((true[:, 3] - true[:, 3].median()).abs().mean())
            else:
                figures[f"val_{name}_psnr"] = rgba.psnr(made[:, :3], true[:, :3])
        self.model.train()
        return figures

    def export(self, folder: Path) -> None:
        self.model.save(folder, torch.bfloat16)


@torch.no_grad()
def initialize(transformer: MultiImageTransformer) -> None:
    """Weights for a start from nothing: Xavier projections, every block an identity, output zero (adaLN-zero, DiT)."""
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    modulations = [
        m for n, m in transformer.named_modules() if n.endswith(("img_mod.1", "txt_mod.1", "norm_out.linear"))
    ]
    for module in (*modulations, transformer.proj_out):
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)


def corpus(mixture: Mixture, batches: int) -> list[str]:
    """Instructions as training will meet them, for the tokenizer of a model made from nothing."""
    return [e.instruction for i in range(batches) for e in mixture.batch(i).examples]
