"""Errors on held-out examples, one a scene, and intervals of what two models differ by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import Example
from omnialpha.transitions import token_mean

BATCH = 16  # scenes at once


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
