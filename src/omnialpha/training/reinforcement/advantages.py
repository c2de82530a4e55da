"""From the rewards of a group to advantages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from omnialpha.errors import InputError


@dataclass(frozen=True)
class AdvantageSettings:
    """How rewards become advantages.

    Attributes:
        floor: The least deviation that a term, and their sum, is divided by; differences far below it are noise.
        clip: The most that an advantage is, and the least, negated.
        drop: A group whose terms all vary less than this teaches nothing. 0 drops none.

    Raises:
        InputError: A value out of range.
    """

    floor: float = 1e-3
    clip: float = 5.0
    drop: float = 1e-4

    def __post_init__(self) -> None:
        if not (self.floor > 0 and self.clip > 0 and self.drop >= 0):
            raise InputError(
                f"advantages.floor={self.floor:g}, clip={self.clip:g}, drop={self.drop:g}: "
                "use floor and clip above 0, drop from 0."
            )


def advantages(
    rewards: Mapping[str, Tensor], weights: Mapping[str, float], settings: AdvantageSettings
) -> tuple[Tensor, dict[str, float]]:
    """Advantages of one group, the generations of one example.

    Each term is centred and divided by its deviation over the group, terms are averaged by weight, and the mean is
    treated likewise.

    Args:
        rewards: Of each term (G,). NaN where it says nothing of a generation.
        weights: Of the terms.
        settings: Floors and limits.

    Returns:
        (G,) float32, zeros for a group that is dropped, and figures of the group by name.
    """
    figures = {f"reward/{name}": float(values.nanmean()) for name, values in rewards.items()}
    deviations = {name: _deviation(values) for name, values in rewards.items()}
    figures |= {f"reward_deviation/{name}": value for name, value in deviations.items()}
    count = len(next(iter(rewards.values())))
    kept = any(value >= settings.drop for value in deviations.values())
    figures["dropped"] = float(not kept)
    if not kept:
        return torch.zeros(count), figures
    total, weight = torch.zeros(count), torch.zeros(count)
    for name, values in rewards.items():
        valid = values.isfinite()
        total += weights[name] * torch.where(valid, _z(values, settings.floor), 0.0)
        weight += weights[name] * valid
    summed = torch.where(weight > 0, total / weight.clamp_min(1e-9), torch.nan)
    made = _z(summed, settings.floor).nan_to_num(0.0)
    figures["advantage_clipped"] = float((made.abs() > settings.clip).float().mean())
    return made.clamp(-settings.clip, settings.clip), figures


def _deviation(values: Tensor) -> float:
    """The population's, of what is finite; 0 where that is fewer than two."""
    finite = values[values.isfinite()]
    return float(finite.float().std(correction=0)) if len(finite) > 1 else 0.0


def _z(values: Tensor, floor: float) -> Tensor:
    return (values - values.nanmean()).float() / max(_deviation(values), floor)
