"""Rollouts by Ray actors: each holds the model of the same recipe and rolls out what it is asked for, with the weights
that it is given.
"""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from omnialpha.errors import InputError
from omnialpha.training.objective import FitSettings
from omnialpha.training.reinforcement.rollouts import Rollout


class Roller(Protocol):
    """What makes rollouts: an objective of reinforcement."""

    def roll(self, number: int) -> Rollout:
        """The rollout of group `number`, scored."""

    def rolling(self) -> dict[str, nn.Parameter]:
        """The weights that this depends on and that training changes, by name."""


class Actor:
    """Runs in a process of its own, on the device that Ray gives it."""

    def __init__(self, make: Callable[[], Any], settings: FitSettings) -> None:
        accelerated = settings.device != "cpu" and torch.accelerator.is_available()
        self.device = (accelerated and torch.accelerator.current_accelerator()) or torch.device("cpu")
        self.make, self.settings = make, settings

    @cached_property
    def roller(self) -> Roller:
        """Made where it is asked for first: what fails then is told like any other failure."""
        made = self.make()
        if self.settings.compile:
            made.compile_parts()
        return made.to(self.device)

    @torch.no_grad()
    def roll(self, number: int, weights: Mapping[str, Tensor]) -> bytes:
        """A rollout, as `torch.save` writes it."""
        for name, parameter in self.roller.rolling().items():
            parameter.copy_(weights[name])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            rollout = self.roller.roll(number)
        rollout.cond = rollout.cond.fresh()
        file = io.BytesIO()
        torch.save(rollout, file)
        return file.getvalue()


class RayEngine:
    """Actors that roll out for one process of a run. They start with the first rollout.

    RAY_ADDRESS names a cluster; without it one is started on this machine.
    """

    def __init__(self, make: Callable[[], Any], settings: FitSettings, actors: int, gpus: float) -> None:
        """make: makes a `Roller`, what each actor rolls out with. gpus: share of a GPU that each takes."""
        try:
            import ray
        except ImportError:
            raise InputError("engine='ray' needs ray: pip install 'omnialpha[ray]', or use 'local'.") from None
        if actors < 1 or gpus < 0:
            raise InputError(f"actors={actors}, actor_gpus={gpus:g}: use 1 actor or more, and a share from 0.")
        self.ray, self.make, self.settings, self.count, self.gpus = ray, make, settings, actors, gpus
        self.actors: list[Any] = []
        self.running = ExitStack()
        self.asked: dict[int, Any] = {}  # what stands for the rollout of a group, by its number

    def ask(self, numbers: Iterable[int], weights: Mapping[str, Tensor], device: torch.device) -> None:
        """Begin the rollouts of these groups; `take` waits for them. device: of the process that takes them."""
        if not self.actors:
            self._start(device)
        shared = self.ray.put({name: weight.cpu() for name, weight in weights.items()})
        for k, number in enumerate(numbers):
            self.asked[number] = self.actors[k % self.count].roll.remote(number, shared)

    def take(self, number: int, device: torch.device) -> Rollout:
        """The rollout of a group.

        Raises:
            InputError: Its actor failed.
        """
        try:
            data = self.ray.get(self.asked.pop(number))
        except InputError as error:  # Ray raises a subclass of what an actor raised, with its whole traceback
            raise InputError(str(getattr(error, "cause", error))) from None
        except self.ray.exceptions.RayError as error:
            cause = getattr(error, "cause", error)
            words = str(cause).strip().splitlines() or ["no reason given"]
            raise InputError(
                f"the Ray actor of rollout {number} failed with {type(cause).__name__}: {words[0].rstrip('.')}; "
                "the last good checkpoint is kept."
            ) from error
        # not of this device where there are several GPUs; what is on the CPU stays there
        return torch.load(io.BytesIO(data), map_location={"cuda:0": str(device)}, weights_only=False)

    def close(self) -> None:
        self.running.close()
        self.actors, self.asked = [], {}

    def _start(self, device: torch.device) -> None:
        if device.type != "cpu" and not self.gpus:
            raise InputError(f"the run is on {device.type}, its actors are not: give actor_gpus, such as 1.")
        if not self.ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
            handler = signal.getsignal(signal.SIGTERM)
            try:
                self.ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            except (OSError, ValueError, RuntimeError) as error:
                raise InputError(f"Ray did not start ({str(error).splitlines()[0].rstrip('.')}).") from error
            self.running.callback(self.ray.shutdown)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray's would end the run without a checkpoint
        there = self.ray.cluster_resources().get("GPU", 0)
        if self.count * self.gpus > there:
            raise InputError(f"{self.count} actors of {self.gpus:g} GPUs are more than the {there:g} of the cluster.")
        actor = self.ray.remote(Actor).options(num_gpus=self.gpus)
        for _ in range(self.count):
            self.actors.append(actor.remote(self.make, self.settings))
            self.running.callback(self.ray.kill, self.actors[-1])
