"""Random steps of a sampler and their log-probability, for reinforcement learning.

Notation as in `sampling`: x_t = (1 - t) x_0 + t noise, v the velocity, x0 = x - t v and noise = x + (1 - t) v what v
says of clean latents and noise, dt = t_next - t < 0. Each kind answers mean and deviation of x at t_next; with each of
them x_t is distributed as in the flow, in the limit of small steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from omnialpha.errors import InputError

Moments = tuple[Tensor, Tensor]  # mean (B, L, C) and standard deviation (B, 1, 1)


def ode(x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, strength: float) -> Moments:
    """The Euler step of the flow; `strength` says nothing."""
    return x + (t_next - t) * v, torch.zeros_like(t)


def flow_sde(x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, strength: float) -> Moments:
    """Flow-GRPO (arXiv 2505.05470): s = strength sqrt(t / (1 - t)); at t = 1 the next time stands below the root."""
    dt = t_next - t
    squared = strength**2 * t / (1 - torch.where(t < 1, t, t_next))
    mean = x * (1 + squared * dt / (2 * t)) + v * (1 + squared * (1 - t) / (2 * t)) * dt
    return mean, (squared * -dt).sqrt()


def dance(x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, strength: float) -> Moments:
    """The released procedure's (after DanceGRPO, arXiv 2505.07818): the deviation `strength` of a unit of time."""
    dt = t_next - t
    noise = x + (1 - t) * v
    return x + dt * (v + strength**2 * noise / (2 * t)), strength * (-dt).sqrt()


def cps(x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, strength: float) -> Moments:
    """Coefficients-preserving sampling (arXiv 2509.05952): of the noise at t_next, sin(strength pi / 2) is new."""
    deviation = t_next * math.sin(strength * math.pi / 2)
    noise = x + (1 - t) * v
    return (1 - t_next) * (x - t * v) + (t_next.square() - deviation.square()).sqrt() * noise, deviation


KINDS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, float], Moments]] = {
    "ode": ode,
    "flow_sde": flow_sde,
    "dance": dance,
    "cps": cps,
}


@dataclass(frozen=True)
class Transition:
    """A kind of step and how random it is.

    Attributes:
        kind: a key of `KINDS`.
        strength: 0 is the Euler step of the flow, whatever the kind; at most 1 for cps.

    Raises:
        InputError: a kind that is not known, or a strength out of range.
    """

    kind: str = "flow_sde"
    strength: float = 0.7

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"transition {self.kind!r} is not known: use one of {', '.join(KINDS)}.")
        if not 0 <= self.strength <= (1 if self.kind == "cps" else math.inf):
            raise InputError(f"strength={self.strength:g} of {self.kind} is out of range: use 0 or more, cps up to 1.")

    def moments(self, x: Tensor, v: Tensor, t: Tensor, t_next: Tensor) -> Moments:
        """Mean (B, L, C) and deviation (B, 1, 1) of x (B, L, C) with velocity v after a step from t to t_next (B,)."""
        there, then = (time.to(x.device).view(-1, 1, 1) for time in (t, t_next))
        return KINDS[self.kind](x.float(), v.float(), there, then, self.strength)


def log_probability(x: Tensor, mean: Tensor, deviation: Tensor, mask: Tensor | None = None) -> Tensor:
    """Log-density of a Gaussian, as a mean over dimensions.

    Args:
        x, mean: (B, L, C).
        deviation: (B, 1, 1), above 0.
        mask: (B, L), the tokens that count; all where it is None.

    Returns:
        (B,) float32.
    """
    density = -((x - mean) / deviation).square() / 2 - deviation.log() - math.log(2 * math.pi) / 2
    return token_mean(density, mask)


def token_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of (B, L, C) over channels and the tokens that count, mask (B, L) or None -> (B,)."""
    rows = values.mean(dim=-1)
    return rows.mean(dim=1) if mask is None else (rows * mask).sum(dim=1) / mask.sum(dim=1)
