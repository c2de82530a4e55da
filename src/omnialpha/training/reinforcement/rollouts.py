"""Rollouts: a group of generations of one example, sampled as one batch, and the random steps that are trained on."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from omnialpha.condition import Condition
from omnialpha.errors import InputError
from omnialpha.pipeline import OmniAlpha
from omnialpha.sampling import Velocity, sample, schedule
from omnialpha.tasks import Example
from omnialpha.transitions import Transition

STEP_SEED = 1 << 40  # between the seeds of two steps of a rollout


@dataclass(frozen=True)
class RolloutSettings:
    """How groups are generated, without guidance.

    Attributes:
        group: Generations of an example, G.
        steps: Of sampling.
        transition, strength: See `transitions.Transition`.
        window: So many steps, one after another, are random, and trained on; 0: all are random, and `keep` of them are
            trained on.
        within: The share of the steps, from the first, that the window lies in; it is drawn anew for each rollout.
        keep: Without a window, the share of all but the last step that is trained on, drawn for each generation.
        same_noise: Whether a group starts from one noise, so that only random steps tell its generations apart.
        times: "checkpoint": the checkpoint's schedule. "released": 3u / (1 + 2u), u evenly from 1 to 0.
        round_times: Whether the network is told floor(1000 t) / 1000, as the released procedure does.

    Raises:
        InputError: A value out of range.
    """

    group: int = 8
    steps: int = 8
    transition: str = "flow_sde"
    strength: float = 0.7
    window: int = 2
    within: float = 0.5
    keep: float = 0.6
    same_noise: bool = False
    times: Literal["checkpoint", "released"] = "checkpoint"
    round_times: bool = False

    def __post_init__(self) -> None:
        self.moves()
        if self.group < 2:
            raise InputError(f"rollout.group={self.group} leaves nothing to compare: use 2 or more.")
        if self.steps < 2 or not 0 <= self.window < self.steps:
            raise InputError(
                f"rollout.steps={self.steps}, window={self.window}: use 2 steps or more, and a window below them."
            )
        if not (0 < self.within <= 1 and 0 < self.keep <= 1):
            raise InputError(f"rollout.within={self.within:g}, keep={self.keep:g}: use shares in (0, 1].")

    def moves(self) -> Transition:
        """The transition of its random steps."""
        return Transition(self.transition, self.strength)

    @property
    def trained(self) -> int:
        """Random steps of a generation that are trained on, K."""
        if self.transition == "ode":
            return 0
        return self.window or max(1, int(self.keep * (self.steps - 1)))

    def choose(self, generator: torch.Generator) -> Tensor:
        """Numbers (G, K), from 1, of the steps that are trained on; never the last one."""
        if self.window:
            places = max(1, min(round(self.within * self.steps), self.steps - 1) - self.window + 1)
            first = 1 + int(torch.randint(places, (1,), generator=generator))
            return torch.arange(first, first + self.trained).expand(self.group, -1)
        drawn = torch.stack([torch.randperm(self.steps - 1, generator=generator) for _ in range(self.group)])
        return drawn[:, : self.trained] + 1

    def schedule(self, tokens: int, model: OmniAlpha) -> Tensor:
        """(steps + 1,) times from 1 to 0."""
        if self.times == "checkpoint":
            return schedule(self.steps, tokens, model.card.shift)
        u = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)
        return (3 * u / (1 + 2 * u)).float()

    def velocity(self, model: OmniAlpha, cond: Condition) -> Velocity:
        """What a rollout and its updates ask: x (G, Lt, C), t (G,) -> the velocity."""
        asked = partial(model.velocity, cond=cond)
        return (lambda x, t: asked(x, (t * 1000).floor() / 1000)) if self.round_times else asked


@dataclass
class Rollout:
    """A group of G generations.

    Attributes:
        example: What was asked for, as the model sees it.
        cond: Of the group, encoded once.
        times: (S + 1,).
        steps: (K, G), the number, from 1, of each step that is kept.
        before, after, means: Of those steps, latents (K, G, Lt, C): where each began and ended, and the mean of the
            policy that made it.
        x0: Clean latents (G, Lt, C), as the last step estimates them.
        transition: Of the random steps.
        seed: Of all that was drawn.
        advantages: (G,), of what was decoded from x0.
        figures: Of its rewards, by name.
    """

    example: Example
    cond: Condition
    times: Tensor
    steps: Tensor
    before: Tensor
    after: Tensor
    means: Tensor
    x0: Tensor
    transition: Transition
    seed: int
    advantages: Tensor
    figures: dict[str, float] = field(default_factory=dict)

    def span(self, k: int) -> tuple[Tensor, Tensor]:
        """Times (G,) at which the kept steps number k began and ended."""
        return self.times[self.steps[k] - 1], self.times[self.steps[k]]


@torch.no_grad()
def roll(model: OmniAlpha, example: Example, settings: RolloutSettings, seed: int) -> Rollout:
    """Generate a group. It keeps the steps that are trained on alone, so its memory does not grow with the others.

    Args:
        model: The policy.
        example: What is asked for.
        settings: How.
        seed: Of all that is drawn: the same rollout comes of the same seed and weights.

    Returns:
        The rollout, without advantages yet.
    """
    one = model.condition([example], looks=1)
    cond = model.repeat(one, settings.group)
    generator = torch.Generator().manual_seed(seed)
    chosen = settings.choose(generator)
    times = settings.schedule(cond.target_tokens, model)
    seeds = [seed * settings.group + (0 if settings.same_noise else g) for g in range(settings.group)]
    random = set(chosen.flatten().tolist()) if settings.window else set(range(1, settings.steps + 1))

    def fresh(index: int) -> Tensor | None:
        if not settings.trained or index not in random:
            return None
        return model.noise(cond, [seed * settings.group + g + index * STEP_SEED for g in range(settings.group)])

    asked = settings.velocity(model, cond)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        """As an update will compute it: some kernels differ where gradients are kept."""
        with torch.set_grad_enabled(settings.trained > 0):
            return asked(x, t).detach()

    x = model.noise(cond, seeds)
    kept = torch.zeros(3, settings.trained, *x.shape, device=x.device)
    places = torch.arange(1, settings.steps + 1)[:, None, None] == chosen.T  # (S, K, G)
    for step in sample(velocity, x, times, settings.moves(), fresh):
        if step.mean is not None:
            for k, g in places[step.index - 1].nonzero().tolist():
                kept[0, k, g], kept[1, k, g], kept[2, k, g] = x[g], step.x[g], step.mean[g]
        x = step.x
    steps, (before, after, means) = chosen.T.contiguous(), kept
    nothing = torch.zeros(settings.group)
    return Rollout(one.examples[0], cond, times, steps, before, after, means, step.x0, settings.moves(), seed, nothing)
