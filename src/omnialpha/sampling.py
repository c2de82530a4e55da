"""Sampling by rectified flow: schedule of times, Euler step, guidance, and the loop as a generator.

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
from omnialpha.transitions import Transition

Velocity = Callable[[Tensor, Tensor], Tensor]
MAX_PAIRED_TOKENS = 1024  # up to so many picture tokens both branches of guidance run as one batch
Interval = tuple[float, float]  # of times, the lower first
FULL_INTERVAL: Interval = (0.0, 1.0)


def check_settings(steps: int | None, guidance: float | None, interval: Interval = FULL_INTERVAL) -> None:
    """Check settings of a run.

    Raises:
        InputError: One of them is out of range. None stands for the checkpoint's own and is always right.
    """
    if not 0 <= interval[0] <= interval[1] <= 1:
        raise InputError(f"guidance interval {interval} is out of range: use two times in [0, 1], the lower first.")
    if steps is not None:
        check_steps(steps)
    if guidance is not None:
        check_guidance(guidance)


@dataclass(frozen=True)
class Shift:
    """The shift of a schedule towards noise, as diffusers' FlowMatchEulerDiscreteScheduler takes it from its config.

    Attributes:
        base, maximum: mu at `base_tokens` and `maximum_tokens` target tokens, linear between and beyond.
        terminal: The last time but 0, to which the schedule is stretched; 0 for no stretching.
        fixed: mu for any number of tokens, if it is not None.
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
    """The times of a run: exponential shift by mu, then stretched to the terminal time.

    Args:
        steps: How many steps.
        tokens: Target tokens of the sample.
        shift: The checkpoint's.

    Returns:
        (steps + 1,) float32, from 1 down to 0.

    Raises:
        InputError: `steps` is out of range.
    """
    check_settings(steps, None)
    t = torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64)
    strength = math.exp(shift.mu(tokens))
    t = strength / (strength + (1 / t - 1))
    if shift.terminal and steps > 1:
        t = 1 - (1 - t) * (1 - shift.terminal) / (1 - t[-1])
    return torch.cat([t, t.new_zeros(1)]).float()


def euler_step(x: Tensor, velocity: Tensor, t: float | Tensor, t_next: float | Tensor) -> Tensor:
    """One Euler step from x at time t to x at time t_next, of x's shape."""
    return x + (t_next - t) * velocity


def apply_guidance(
    conditional: Velocity,
    both: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    scale: float,
    interval: Interval = FULL_INTERVAL,
) -> Velocity:
    """Classifier-free guidance, rescaled token by token to the norm of the conditional velocity, as Qwen-Image does.

    Args:
        conditional: (x, t) -> the velocity (B, L, C) with the instruction.
        both: (x, t) -> the velocities with and without it.
        scale: Of guidance; 1 is none.
        interval: Times in which it applies. At others the conditional velocity alone is computed.

    Returns:
        The guided velocity, as a function (x, t) -> (B, L, C).
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
    """The state after a step.

    Attributes:
        index, total: Number of the step, from 1, and how many there are.
        t: The time reached, of the first sample where they differ.
        x: The latents there, (B, L, C) float32.
        x0: The estimate of clean latents, (B, L, C), for previews.
        mean: Of x, where the step was random; None where it was not.
    """

    index: int
    total: int
    t: float
    x: Tensor
    x0: Tensor
    mean: Tensor | None = None


def sample(
    velocity: Velocity,
    noise: Tensor,
    times: Tensor,
    transition: Transition | None = None,
    fresh: Callable[[int], Tensor | None] | None = None,
) -> Iterator[Step]:
    """Integrate from noise to latents, in float32: Euler steps, and random ones where they are asked for.

    Args:
        velocity: (x, t) -> the velocity of x (B, L, C) at times t (B,).
        noise: (B, L, C).
        times: (S + 1,) for all samples, or (B, S + 1), one schedule for each.
        transition: The kind of the random steps.
        fresh: Number of a step, from 1 -> its noise (B, L, C), or None where the step is not random.

    Yields:
        A `Step` after each step; x of the last one is the sample. Stop iterating to cancel.
    """
    x, total = noise.float(), times.shape[-1] - 1
    rows = times.float().cpu().expand(len(x), -1)
    there = rows.to(x.device)[:, :, None, None]  # once: a copy to a GPU waits for what it has to do
    for index in range(1, total + 1):
        t, t_next = there[:, index - 1], there[:, index]
        v = velocity(x, rows[:, index - 1]).float()
        x0, mean, new = x - t * v, None, fresh(index) if fresh else None
        if transition is None or new is None:
            x = torch.where(t_next > 0, euler_step(x, v, t, t_next), x0)
        else:
            mean, deviation = transition.moments(x, v, t, t_next)
            x = mean + deviation * new
        yield Step(index, total, float(rows[0, index]), x, x0, mean)
