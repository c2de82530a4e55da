"""What is learnt from a rollout: policy gradients on its random steps (GRPO), or DiffusionNFT on its results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.training.reinforcement.rollouts import Rollout
from omnialpha.transitions import log_probability, token_mean

# ("trained", "old" or "reference", x (G, Lt, C), t (G,)) -> that policy's velocity; with gradient of the first alone
Ask = Callable[[str, Tensor, Tensor], Tensor]
Draw = Callable[[int], Tensor]  # a number -> noise (G, Lt, C)
Losses = dict[str, Tensor]
LEAST = 1e-5  # of the weights that NFT divides by


class Algorithm(Protocol):
    """Turns a rollout into losses."""

    @property
    def updates(self) -> int:
        """Optimiser steps that are made with a rollout."""

    @property
    def roller(self) -> str:
        """The policy that rolls out."""

    def policies(self) -> tuple[str, ...]:
        """Policies that are kept in addition to the trained one."""

    def parts(self, steps: int, trained: int) -> int:
        """Micro-batches of an update, each of all generations of a group: (steps of a rollout, those kept) -> count."""

    def losses(self, rollout: Rollout, number: int, ask: Ask, draw: Draw) -> Losses:
        """ "loss" and figures of micro-batch `number` of a rollout, counted over its updates."""

    def decay(self, steps: int) -> float:
        """How much of the old policy stays after a rollout, when so many optimiser steps are done."""


@dataclass(frozen=True)
class GRPO:
    """Group relative policy optimisation on the random steps of rollouts.

    Attributes:
        updates: Optimiser steps that are made with each rollout. The released procedure makes one.
        clip: Of the ratio of new to old probability, to each side of 1.
        normalise: Whether the ratio is centred, and scaled by the step's deviation, and the loss by its length
            (GRPO-Guard, arXiv 2510.22319; flow_sde alone).
        kl: Weight of the mean squared difference of velocities to the reference, the model before reinforcement.
        norm: Weight of the squared excess of the velocity's norm over the reference's (NormGuard, arXiv 2606.27771).

    Raises:
        InputError: A value out of range.
    """

    updates: int = 1
    clip: float = 1e-4
    normalise: bool = False
    kl: float = 0.0
    norm: float = 0.0
    roller = "trained"

    def __post_init__(self) -> None:
        if self.updates < 1 or self.clip <= 0 or min(self.kl, self.norm) < 0:
            raise InputError(
                f"grpo.updates={self.updates}, clip={self.clip:g}, kl={self.kl:g}, norm={self.norm:g}: "
                "use 1 update or more, a clip above 0, the others from 0."
            )

    def policies(self) -> tuple[str, ...]:
        return ("reference",) if self.kl or self.norm else ()

    def parts(self, steps: int, trained: int) -> int:
        return trained

    def decay(self, steps: int) -> float:
        return 0.0

    def losses(self, rollout: Rollout, number: int, ask: Ask, draw: Draw) -> Losses:
        part = number % len(rollout.steps)
        x, after, before_mean = rollout.before[part], rollout.after[part], rollout.means[part]
        mask, (t, t_next) = rollout.cond.positions.target_mask, rollout.span(part)
        reference = ask("reference", x, t) if "reference" in self.policies() else None
        velocity = ask("trained", x, t)
        mean, deviation = rollout.transition.moments(x, velocity, t, t_next)
        change = log_probability(after, mean, deviation, mask) - log_probability(after, before_mean, deviation, mask)
        weight = torch.ones_like(change)
        if self.normalise:
            scale = deviation.flatten()
            moved = token_mean((mean - before_mean).square(), mask)
            change = scale * (change + moved / (2 * scale.square()))
            weight = 1 / (t - t_next).to(change.device)
        ratio, advantages = change.exp(), rollout.advantages.to(change.device)
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        policy = (torch.maximum(-advantages * ratio, -advantages * clipped) * weight).mean()
        outside = ((ratio - 1).abs() > self.clip).float().mean()
        made = {"loss": policy, "ratio": ratio.mean().detach(), "clip_fraction": outside}
        return made if reference is None else regularise(made, velocity, reference, mask, self.kl, self.norm)


@dataclass(frozen=True)
class NFT:
    """DiffusionNFT (arXiv 2509.16117): flow matching on a policy's own results, towards good and away from bad ones.

    Attributes:
        updates: Optimiser steps that are made with each rollout.
        beta: How far the two implicit policies lie from the old one.
        most: The advantage that counts as certainly good, A_max.
        kl, norm: As of `GRPO`.
        schedule: How much of the old policy stays after each rollout: "fast": min(.001 n, .5) after n optimiser steps;
            "slow": none for n < 75, then min(.0075 (n - 75), .999).

    Raises:
        InputError: A value out of range.
    """

    updates: int = 2
    beta: float = 0.1
    most: float = 5.0
    kl: float = 1e-4
    norm: float = 0.0
    schedule: Literal["fast", "slow"] = "fast"
    roller = "old"

    def __post_init__(self) -> None:
        if self.updates < 1 or self.beta <= 0 or self.most <= 0 or min(self.kl, self.norm) < 0:
            raise InputError(
                f"nft.updates={self.updates}, beta={self.beta:g}, most={self.most:g}, kl={self.kl:g}, "
                f"norm={self.norm:g}: use 1 update or more, beta and most above 0, the others from 0."
            )

    def policies(self) -> tuple[str, ...]:
        return ("old", "reference") if self.kl or self.norm else ("old",)

    def parts(self, steps: int, trained: int) -> int:
        return max(1, steps // self.updates)

    def decay(self, steps: int) -> float:
        if self.schedule == "fast":
            return min(0.001 * steps, 0.5)
        return 0.0 if steps < 75 else min(0.0075 * (steps - 75), 0.999)

    def losses(self, rollout: Rollout, number: int, ask: Ask, draw: Draw) -> Losses:
        x0, mask, steps = rollout.x0, rollout.cond.positions.target_mask, len(rollout.times) - 1
        generator = torch.Generator().manual_seed(rollout.seed)
        shuffled = torch.stack([torch.randperm(steps, generator=generator) for _ in x0])  # of each generation
        t = rollout.times[shuffled[:, number % steps]]
        x_t = torch.lerp(x0, draw(number), t.to(x0.device).view(-1, 1, 1))
        old = ask("old", x_t, t)
        reference = ask("reference", x_t, t) if "reference" in self.policies() else None
        velocity = ask("trained", x_t, t)
        good = (rollout.advantages.to(x0.device) / (2 * self.most) + 0.5).clamp(0, 1)
        losses = nft_losses(x_t, t.to(x0.device), x0, velocity, old, good, self.beta, mask)
        made = {"loss": self.most * losses.mean()}
        return made if reference is None else regularise(made, velocity, reference, mask, self.kl, self.norm)


def nft_losses(
    x_t: Tensor, t: Tensor, x0: Tensor, velocity: Tensor, old: Tensor, good: Tensor, beta: float, mask: Tensor | None
) -> Tensor:
    """The loss of DiffusionNFT of each generation, without A_max.

    Args:
        x_t, x0, velocity, old: Noisy and clean latents, the trained velocity and the old policy's, (G, Lt, C).
        t: (G,).
        good: (G,), how good a generation is, from 0 to 1.
        beta: See `NFT`.
        mask: (G, Lt), the tokens that count; all where it is None.

    Returns:
        (G,).
    """
    total = torch.zeros_like(good)
    for share, implicit in ((good, torch.lerp(old, velocity, beta)), (1 - good, torch.lerp(old, velocity, -beta))):
        off = x_t - t.view(-1, 1, 1) * implicit - x0
        weight = token_mean(off.detach().abs(), mask).clamp_min(LEAST)
        total = total + share / beta * token_mean(off.square(), mask) / weight
    return total


def regularise(
    made: Losses, velocity: Tensor, reference: Tensor, mask: Tensor | None, kl: float, norm: float
) -> Losses:
    """Losses with what holds a policy near the reference, by these weights: "kl", the mean squared difference of
    velocities (G, Lt, C), and "norm_excess", the squared share by which its norm is greater; and the ratio of norms.
    """
    norms = [token_mean(v.square(), mask).sqrt() for v in (velocity, reference)]
    ratio = norms[0] / norms[1].clamp_min(1e-9)
    apart = token_mean((velocity - reference).square(), mask).mean()
    excess = (ratio - 1).clamp_min(0).square().mean()
    figures = {"kl": apart, "norm_excess": excess, "velocity_norm": ratio.mean().detach()}
    return made | figures | {"loss": made["loss"] + kl * apart + norm * excess}
