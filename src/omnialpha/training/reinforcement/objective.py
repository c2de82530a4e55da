"""The objective of reinforcement: roll out, score, update; `fit` runs it like any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omnialpha.data.stream.mixture import Mixture
from omnialpha.data.stream.stream import Stream
from omnialpha.data.synthetic.bank import Bank
from omnialpha.errors import InputError
from omnialpha.models.lora import adapters
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import Example, Role
from omnialpha.training import parallel
from omnialpha.training.perceptual import Distance
from omnialpha.training.reinforcement.advantages import AdvantageSettings, advantages
from omnialpha.training.reinforcement.algorithms import Algorithm, Losses
from omnialpha.training.reinforcement.engine import RayEngine
from omnialpha.training.reinforcement.rewards import Outcome, Reward, find, score
from omnialpha.training.reinforcement.rollouts import Rollout, RolloutSettings, roll
from omnialpha.training.sft import FlowLoss, LoraSettings, SFTObjective
from omnialpha.training.state import gather, part
from omnialpha.training.validation import Pictures

GROUP_SEED = 1_000_003  # between the seeds of two recipes' groups
DRAW_SEED = 1 << 50  # between the noise of rollouts and that of what is learnt from them


@dataclass(frozen=True)
class RewardFunction:
    """What generations are worth.

    Attributes:
        weights: Of rewards, by name.
        more: Rows beside `rewards.REWARDS`.
        distance: In the place of LPIPS.
        settings: From rewards to advantages.
    """

    weights: Mapping[str, float]
    more: Mapping[str, Reward]
    distance: Distance
    settings: AdvantageSettings = AdvantageSettings()

    def rewards(self, example: Example, layers: Tensor) -> dict[str, Tensor]:
        """By name, (G,), of layers (G, m, 4, H, W)."""
        out = Outcome(example, layers, self.distance)
        return score(out, list(self.weights), self.more)

    def roles(self, example: Example) -> set[Role]:
        """Of the layers that the rewards of an example read."""
        rows = find(self.weights, self.more).values()
        return {role for row in rows if row.fits(example) for role in row.roles}

    def mean(self, rewards: Mapping[str, Tensor]) -> float:
        """The weighted mean of a group over the terms that say something; NaN where none does."""
        known = {name: value for name, values in rewards.items() if (value := float(values.nanmean())) == value}
        total = sum(self.weights[name] for name in known)
        return sum(self.weights[name] * value for name, value in known.items()) / total if total else float("nan")


@dataclass(frozen=True)
class Guards:
    """Bands of logged figures, name -> [lowest, highest], beyond which a run ends with the last checkpoint kept.

    Such as clip_fraction, kl, velocity_norm, grad_norm, dropped, a validated figure, or reward_gap: the mean reward in
    training less that of held-out examples.
    """

    bands: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, band in self.bands.items():
            if len(band) != 2 or band[0] >= band[1]:
                raise InputError(f"the guard {name}={band} is no band: give [lowest, highest].")

    def check(self, figures: Mapping[str, float], step: int) -> None:
        """Raise InputError for a figure outside its band."""
        for name, (low, high) in self.bands.items():
            if name in figures and not low <= figures[name] <= high:
                raise InputError(
                    f"{name} became {figures[name]:.4g} at step {step}, outside [{low:g}, {high:g}]: lower fit.lr, or "
                    f"widen guards.{name}; the last good checkpoint is kept."
                )


class ReinforcementObjective(SFTObjective):
    """Trains a LoRA by the rewards of what the model generates.

    Micro-batches are numbered so that one optimiser step takes all parts of `groups` rollouts; a process makes the
    rollouts that its numbers ask for. A rollout serves `period` optimiser steps.
    """

    def __init__(
        self,
        model: OmniAlpha,
        mixture: Mixture | Stream,
        held_out: Bank | Stream,
        validation: int,
        tasks: Sequence[str],
        lora: LoraSettings,
        *,
        algorithm: Algorithm,
        rollouts: RolloutSettings,
        scoring: RewardFunction,
        groups: int,
        guards: Guards,
        seed: int,
        begun: Path | None = None,
        engine: RayEngine | None = None,
    ) -> None:
        """begun: the file of a LoRA that training goes on from; a new one, which changes nothing yet, without it.
        engine: what rolls out in the place of this process.
        """
        super().__init__(model, mixture, held_out, FlowLoss(), validation, tasks, lora)
        self.data, self.examples = None, mixture  # examples are drawn where a rollout begins
        self.algorithm, self.rollout_settings, self.scoring = algorithm, rollouts, scoring
        self.group_count, self.guards, self.seed = groups, guards, seed
        self.period = algorithm.updates
        self.parts = algorithm.parts(rollouts.steps, rollouts.trained)
        self.copies = algorithm.policies()
        if begun:
            adapters.load(model.transformer, self.NAME, begun)
        for name in self.copies:
            adapters.copy(model.transformer, self.NAME, name)
        self._rollouts: dict[int, Rollout] = {}  # by number of the group, of the rollout that is learnt from
        self._rewards: list[float] = []  # since the last validation
        self._unseen: list[float] = []  # of the held-out examples of the last one
        self.engine = engine

    # ---- policies ----------------------------------------------------------------------------------------------------

    def using(self, policy: str) -> AbstractContextManager[None]:
        """The model with the adapter of one policy, within the block; outside it is the trained one."""
        trained = policy == self.NAME
        return nullcontext() if trained else adapters.instead(self.model.transformer, self.NAME, policy)

    def kept(self) -> dict[str, nn.Parameter]:
        """With the old policy, which is another one with each rollout."""
        return super().kept() | (self._adapter("old") if "old" in self.copies else {})

    def _adapter(self, policy: str) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if f".{policy}." in name}

    @torch.no_grad()
    def _age(self) -> None:
        """Move the old policy towards the trained one."""
        if "old" in self.copies:
            decay = self.algorithm.decay(self.step)
            for old, new in zip(self._adapter("old").values(), self._adapter(self.NAME).values(), strict=True):
                part(old).copy_(decay * part(old) + (1 - decay) * part(new))

    # ---- rollouts ----------------------------------------------------------------------------------------------------

    def rolling(self) -> dict[str, nn.Parameter]:
        """The trained or the old adapter, which rolls out."""
        return self._adapter(self.algorithm.roller)

    def begin(self, step: int) -> None:
        super().begin(step)
        turn, update = divmod(step, self.period)
        if update:
            return
        if turn:
            self._age()
        self._rollouts = {}
        if self.engine:
            from accelerate import PartialState

            one, first = PartialState(), turn * self.group_count
            own = range(first, first + self.group_count)[one.process_index :: one.num_processes]
            weights: dict[str, Any] = {name: gather(p, main=True) for name, p in self.rolling().items()}
            self.engine.ask(own, weights, self.model.device)

    def close(self) -> None:
        if self.engine:
            self.engine.close()

    def roll(self, number: int) -> Rollout:
        """The rollout of group `number`, counted over the run, with its advantages."""
        example = self.examples.batch(number)[0]
        with torch.no_grad(), self.using(self.algorithm.roller):
            rollout = roll(self.model, example, self.rollout_settings, self.seed * GROUP_SEED + number)
        rewards = self.scoring.rewards(rollout.example, self._decoded(rollout))
        rollout.advantages, rollout.figures = advantages(rewards, self.scoring.weights, self.scoring.settings)
        reward = self.scoring.mean(rewards)
        rollout.figures |= {"reward": reward, f"reward/{example.task}": reward}
        return rollout

    @torch.no_grad()
    def _decoded(self, rollout: Rollout) -> Tensor:
        """Layers (G, m, 4, H, W) at the size of the truths; those that no reward reads are left empty."""
        roles = self.scoring.roles(rollout.example)
        if not roles & set(rollout.example.targets):  # no reward says anything of this task
            roles = set(Role)
        made = self.model.pictures(rollout.x0, rollout.cond, roles)
        return torch.stack([rollout.cond.canvases[0].restore(layers) for layers in made])

    # ---- a micro-batch -----------------------------------------------------------------------------------------------

    def forward(self, index: int, batch: Any = None) -> Losses:
        turn, update = divmod(self.step, self.period)
        k, group = divmod(index % (self.group_count * self.parts), self.group_count)
        number = turn * self.group_count + group
        figures: Losses = {}
        if number not in self._rollouts:
            made = self.engine.take(number, self.model.device) if self.engine else self.roll(number)
            self._rollouts[number] = made
            self._rewards.append(made.figures["reward"])
            figures = {k: torch.tensor(v) for k, v in made.figures.items() if v == v}
        rollout = self._rollouts[number]

        def ask(policy: str, x: Tensor, t: Tensor) -> Tensor:
            with self.using(policy), torch.set_grad_enabled(policy == self.NAME):
                return self.rollout_settings.velocity(self.model, rollout.cond.fresh())(x, t)

        def draw(noise: int) -> Tensor:
            count = len(rollout.x0)
            first = DRAW_SEED + (rollout.seed * self.period * self.parts + noise) * count
            return self.model.noise(rollout.cond, [first + g for g in range(count)])

        return self.algorithm.losses(rollout, update * self.parts + k, ask, draw) | figures

    # ---- what watches ------------------------------------------------------------------------------------------------

    def watch(self, figures: Mapping[str, float], step: int) -> None:
        self.guards.check(figures, step)

    def see(self, asked: Sequence[Example], made: Pictures) -> None:
        for example, layers in zip(asked, made, strict=True):
            self._unseen.append(self.scoring.mean(self.scoring.rewards(example, layers[None])))

    def validate(self, folder: Path, step: int) -> dict[str, float]:
        """With the mean reward of held-out examples, one generation each, and how far that of training lies above."""
        self._unseen = []
        figures = super().validate(folder, step)
        figures["val_reward"] = float(torch.tensor(self._unseen).nanmean())
        seen = [reward for rows in parallel.everywhere([self._rewards]) for reward in rows if reward == reward]
        if seen:
            figures["reward_gap"] = sum(seen) / len(seen) - figures["val_reward"]
        self._rewards = []
        return figures
