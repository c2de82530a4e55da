"""Errors on held-out examples, one a scene, and intervals of what two models differ by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from omnialpha.data.synthetic.bank import Bank
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import Example
from omnialpha.training.validation import ValidationSet, validate
from omnialpha.transitions import token_mean

BATCH = 16  # scenes at once
MADE = ("removal_rough", "decompose_auto", "matting_auto")
FIGURES = {  # column of a table -> of `made`, and its decimals
    "removal, dB": ("val_removal_rough_psnr", ".1f"),
    "recomposition, dB": ("val_decompose_auto_recomposed_psnr", ".1f"),
    "alpha of layers, MAD": ("val_decompose_auto_alpha_mad", ".3f"),
    "matting, MAD": ("val_matting_auto_mad", ".3f"),
}


def made(model: OmniAlpha, bank: Bank, count: int, size: tuple[int, int]) -> list[float]:
    """Values of FIGURES, of what the network itself makes of held-out scenes of a size; it loses its finder's alpha."""
    model.card = replace(model.card, alpha_from_finder=[])
    with TemporaryDirectory() as folder:
        found = validate(model, ValidationSet(bank), MADE, count, BATCH, size, Path(folder) / "sheet.png")
    return [found[key] for key, _ in FIGURES.values()]


@torch.no_grad()
def latent_errors(model: OmniAlpha, asked: Sequence[Example]) -> list[float]:
    """Mean squared error of clean latents (decision 5) of each example, at times and noise that are always the same."""
    found: list[float] = []
    for first in range(0, len(asked), BATCH):
        part = asked[first : first + BATCH]
        cond = model.condition(part)
        x0 = model.encode_targets([example.true_layers() for example in part], cond)
        t = torch.rand(len(part), generator=torch.Generator().manual_seed(first)).clamp_min(0.05)
        x_t = torch.lerp(x0, model.noise(cond, first), t.view(-1, 1, 1))
        clean = x_t - t.view(-1, 1, 1) * model.velocity(x_t, t, cond)
        found += token_mean((clean - x0).square(), cond.positions.target_mask).tolist()
    return found


def interval(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """95 % of the mean difference, by bootstrap over scenes."""
    rng, difference = np.random.default_rng(0), after - before
    means = difference[rng.integers(len(difference), size=(2000, len(difference)))].mean(axis=1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))
