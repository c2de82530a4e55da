"""What one alpha for all pictures can reach: an error says little until it stands beside this one."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from torch import Tensor

from omnialpha.evaluation.metrics.matting import is_unknown

BEST_CONSTANT = "best constant"
STEPS = 2**16 - 1  # alphas are counted in these, which holds all of 8 and of 16 bits
REGIONS = ("", "unknown_")  # before the name of a figure


def best_constants(mattes: Iterable[tuple[Tensor, Tensor | None]]) -> dict[str, float]:
    """The least MAD and MSE, as plain means over pictures, that a single value for all pixels of all pictures has.

    mattes: true alphas (H, W) in [0, 1] with their trimaps, of which those with some grey count in unknown_mad and
    unknown_mse too.
    """
    shares, counts = {name: np.zeros(STEPS + 1) for name in REGIONS}, dict.fromkeys(REGIONS, 0)
    for alpha, trimap in mattes:
        levels = (alpha.double() * STEPS).round().long()
        grey = None if trimap is None else levels[is_unknown(trimap)]
        for name, counted in zip(REGIONS, (levels, grey), strict=True):
            if counted is not None and counted.numel():
                shares[name] += np.bincount(counted.flatten().numpy(), minlength=STEPS + 1) / counted.numel()
                counts[name] += 1
    at, made = np.arange(STEPS + 1) / STEPS, {}
    for name, total in shares.items():
        if counts[name]:
            share = total / counts[name]
            median, mean = at[np.searchsorted(share.cumsum(), 0.5)], (share * at).sum()
            made[f"{name}mad"] = float((share * abs(at - median)).sum())
            made[f"{name}mse"] = float((share * (at - mean) ** 2).sum())
    return made
