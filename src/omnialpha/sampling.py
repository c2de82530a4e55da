"""From noise to latents: time schedules, the Euler step, guidance, and one generator that all who sample share.

Rectified flow: x_t = (1 - t) x_0 + t noise, velocity = noise - x_0, t from 1 to 0. Nothing here knows a model:
`velocity` is any callable (x, t) -> v on tensors (B, L, C), wherever they are, and times (B,) in main memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.limits import check_guidance, check_steps

Velocity = Callable[[Tensor, Tensor], Tensor]
TOGETHER = 1024  # up to so many picture tokens both branches of guidance run as one batch
Interval = tuple[float, float]  # of times, the lower first
ALWAYS: Interval = (0.0, 1.0)


def check(steps: int | None, guidance: float | None, interval: Interval = ALWAYS) -> None:
    """InputError where a setting is out of range; None is a checkpoint's own, which is not."""
    if not 0 <= interval[0] <= interval[1] <= 1:
        raise InputError(f"guidance interval {interval} is out of range: use two times in [0, 1], the lower first.")
    if steps is not None:
        check_steps(steps)
    if guidance is not None:
        check_guidance(guidance)


@dataclass(frozen=True)
class Shift:
    """How a schedule leans towards noise, as diffusers' FlowMatchEulerDiscreteScheduler computes it from its config.

    mu grows linearly with the number of target tokens from `base` to `maximum`; `terminal` stretches the last time to
    that value.
    A `fixed` mu ignores the tokens.
    """

    base: float = 0.5
    maximum: float = 0.9
    base_tokens: int = 256
    maximum_tokens: int = 8192
    terminal: float = 0.02
    fixed: float | None = None

    def mu(self, tokens: int) -> float:
        if self.fixed is not None:
            return self.fixed
        slope = (self.maximum - self.base) / (self.maximum_tokens - self.base_tokens)
        return self.base + slope * (tokens - self.base_tokens)


def schedule(steps: int, tokens: int, shift: Shift) -> Tensor:
    """Times (steps + 1,) in float32 from 1 to 0: exponential shift by mu, then stretched to the terminal time."""
    check(steps, None)
    t = torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64)
    strength = math.exp(shift.mu(tokens))
    t = strength / (strength + (1 / t - 1))
    if shift.terminal and steps > 1:
        t = 1 - (1 - t) * (1 - shift.terminal) / (1 - t[-1])
    return torch.cat([t, t.new_zeros(1)]).float()


def euler_step(x: Tensor, velocity: Tensor, t: float | Tensor, t_next: float | Tensor) -> Tensor:
    """x at t -> x at t_next along a constant velocity."""
    return x + (t_next - t) * velocity


def guide(
    conditional: Velocity,
    both: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    scale: float,
    interval: Interval = ALWAYS,
) -> Velocity:
    """True classifier-free guidance, rescaled token by token to the conditional velocity's norm (Qwen-Image).

    both: (x, t) -> the velocities with and without the instruction. At times outside the interval the conditional
    velocity alone is asked for and returned.
    """
    if scale == 1.0:
        return conditional
    low, high = interval

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        inside = ((t >= low) & (t <= high)).tolist()
        if not any(inside):
            return conditional(x, t)
        wanted, other = both(x, t)
        mixed = other + scale * (wanted - other)
        norm = mixed.norm(dim=-1, keepdim=True)
        # a zero velocity (padding, or an exact start) has no direction to rescale
        rescaled = torch.where(norm > 0, mixed * (wanted.norm(dim=-1, keepdim=True) / norm.clamp_min(1e-12)), mixed)
        if all(inside):
            return rescaled
        return torch.where(torch.tensor(inside, device=x.device).view(-1, 1, 1), rescaled, wanted)

    return velocity


@dataclass(frozen=True)
class Step:
    """After step `index` (from 1) of `total`: the time reached (of the first sample, if they differ), x there, and the
    estimate of clean latents for previews.
    """

    index: int
    total: int
    t: float
    x: Tensor
    x0: Tensor


def sample(velocity: Velocity, noise: Tensor, times: Tensor) -> Iterator[Step]:
    """Integrate from noise (B, L, C) at the first time to the last, one Euler Step at a time, in float32.

    times: (S + 1,) for all samples, or (B, S + 1) with a schedule for each. Stop iterating to cancel. The last step's x
    is the sample.
    """
    x, total = noise.float(), times.shape[-1] - 1
    rows = times.float().cpu().expand(len(x), -1)
    there = rows.to(x.device)[:, :, None, None]  # once: a copy to a GPU waits for what it has to do
    for index in range(1, total + 1):
        t, t_next = there[:, index - 1], there[:, index]
        v = velocity(x, rows[:, index - 1]).float()
        x0 = x - t * v
        x = torch.where(t_next > 0, euler_step(x, v, t, t_next), x0)
        yield Step(index, total, float(rows[0, index]), x, x0)
