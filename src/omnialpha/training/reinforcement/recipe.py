"""The recipe of reinforcement: that of fine-tuning a LoRA, with rollouts, rewards and an algorithm for the loss."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from omnialpha.data.stream.mixture import Mixture
from omnialpha.data.stream.stream import Stream
from omnialpha.errors import InputError
from omnialpha.models.checkpoints.folders import Parts
from omnialpha.training.perceptual import PerceptualSettings
from omnialpha.training.reinforcement.advantages import AdvantageSettings
from omnialpha.training.reinforcement.algorithms import GRPO, NFT
from omnialpha.training.reinforcement.engine import RayEngine
from omnialpha.training.reinforcement.judge import JudgeSettings
from omnialpha.training.reinforcement.objective import Guards, ReinforcementObjective, RewardFunction
from omnialpha.training.reinforcement.rewards import RELEASED, REWARDS, Reward, find
from omnialpha.training.reinforcement.rollouts import RolloutSettings
from omnialpha.training.reinforcement.services import Service, TextMatch
from omnialpha.training.sft import FlowLoss
from omnialpha.training.sft_recipe import SFTRecipe


@dataclass(frozen=True)
class ReinforcementRecipe(SFTRecipe):
    """Reinforcement of `start` by a LoRA, on the examples that a recipe of fine-tuning draws; `batch` is 1.

    Attributes:
        adapter: A LoRA of `start`, which came of fine-tuning.
        continued: Whether that LoRA itself is trained, as the released procedure does; otherwise a new one beside it.
        groups: Examples whose rollouts make one optimiser step, over all processes.
        grpo, nft: The algorithm, exactly one of them.
        rewards: Their weights by name; the released ones, 1 each, where there are none.
        text_match, services, judge: Rewards from elsewhere, under the names text, their own, and judge.
        guards: See `objective.Guards`.
        engine: What rolls out: "local" is each process of the run itself; "ray" has `actors` Ray actors for each, of
            `actor_gpus` GPUs. The result is the same.
    """

    loss: FlowLoss = FlowLoss()
    adapter: str = ""
    continued: bool = False
    groups: int = 1
    rollout: RolloutSettings = RolloutSettings()
    grpo: GRPO | None = None
    nft: NFT | None = None
    advantages: AdvantageSettings = AdvantageSettings()
    rewards: dict[str, float] = field(default_factory=dict)
    text_match: TextMatch | None = None
    services: dict[str, Service] = field(default_factory=dict)
    judge: JudgeSettings | None = None
    perceptual: PerceptualSettings = PerceptualSettings()
    guards: dict[str, list[float]] = field(default_factory=dict)
    engine: Literal["local", "ray"] = "local"
    actors: int = 2
    actor_gpus: float = 0.0

    def __post_init__(self) -> None:
        """Let a step take all micro-batches of its rollouts, as many in each process."""
        world, algorithm = int(os.environ.get("WORLD_SIZE", "1")), self._algorithm()
        if self.groups < 1 or self.groups % world:
            raise InputError(f"groups={self.groups} cannot be shared by {world} processes: use a multiple of {world}.")
        parts = algorithm.parts(self.rollout.steps, self.rollout.trained)
        object.__setattr__(self, "fit", replace(self.fit, accumulate=self.groups * parts // world))

    def objective(self) -> ReinforcementObjective:
        if not self.lora or self.lora.dropout:
            raise InputError("reinforcement trains a LoRA, without dropout: give [lora], and leave dropout out of it.")
        if self.cache or self.tokens or self.batch != 1:
            raise InputError("reinforcement draws one example a group: give batch=1, without cache and tokens.")
        if self.continued and not self.adapter:
            raise InputError("continued=true trains the LoRA of fine-tuning on: give it as adapter.")
        local = replace(self, engine="local")
        engine = RayEngine(local.objective, self.fit, self.actors, self.actor_gpus) if self.engine == "ray" else None
        scoring = self._scoring()
        base, mixture = self._lora()
        assert isinstance(mixture, Mixture | Stream)
        torch.manual_seed(self.fit.seed)
        made = ReinforcementObjective(
            base,
            mixture,
            self.unseen(mixture),
            self.validation,
            self.validation_tasks,
            self.lora,
            algorithm=self._algorithm(),
            rollouts=self.rollout,
            scoring=scoring,
            groups=self.groups,
            guards=Guards(self.guards),
            seed=self.fit.seed,
            begun=Path(self.adapter) if self.continued else None,
            engine=engine,
        )
        if self.fit.validate_every:
            made.validated()  # raises now what it would raise later
        return made

    def parts(self) -> Parts:
        """With the LoRA of fine-tuning, where that stays as it is."""
        parts = super().parts()
        return parts.with_lora([self.adapter]) if self.adapter and not self.continued else parts

    def _algorithm(self) -> GRPO | NFT:
        if (self.grpo is None) == (self.nft is None):
            raise InputError("the recipe has both or none of [grpo] and [nft]: give one of them.")
        if self.grpo:
            if not self.rollout.trained:
                raise InputError("GRPO learns from random steps: use rollout.transition flow_sde, dance or cps.")
            if self.grpo.normalise and self.rollout.transition != "flow_sde":
                raise InputError(f"grpo.normalise is for flow_sde, not {self.rollout.transition}: leave it out.")
        return self.grpo or self.nft  # type: ignore[return-value]

    def _scoring(self) -> RewardFunction:
        weights = self.rewards or dict.fromkeys(RELEASED, 1.0)
        elsewhere = {"text": self.text_match, **self.services, "judge": self.judge}
        if taken := {"text", "judge", *REWARDS} & self.services.keys():
            raise InputError(f"services.{min(taken)} has the name of another reward: choose another one.")
        more: Mapping[str, Reward] = {name: one.reward() for name, one in elsewhere.items() if one}
        if idle := more.keys() - weights.keys():
            raise InputError(f"the recipe says where {min(idle)!r} comes from, but gives it no weight in [rewards].")
        find(weights, more)  # raises for a name that is not known
        for name, weight in weights.items():
            if weight <= 0:
                raise InputError(f"rewards.{name}={weight:g}: use a weight above 0, or leave it out.")
        return RewardFunction(weights, more, self.perceptual.distance(), self.advantages)
