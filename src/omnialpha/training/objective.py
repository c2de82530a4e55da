"""What `fit` runs: an objective, and the settings that all objectives share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from omnialpha.errors import InputError
from omnialpha.training.loader import IndexedDataset


@dataclass(frozen=True)
class FitSettings:
    """How long and how fast. `minutes` ends a run early (0: never); `precision` is that of the forward pass;
    "auto" is bf16 where the device has instructions for it.

    keep: the exports of so many saves stay, by number. keep_best: and the best one by this held-out figure.
    workers: processes that load batches, each `prefetch` ahead; 0: the step waits for its batch.
    """

    steps: int
    lr: float
    output: str
    warmup: int = 0
    decay: Literal["constant", "cosine", "linear"] = "constant"
    decay_steps: int = 0  # linear: the last so many steps fall to 0, so that a run can be prolonged before them
    accumulate: int = 1
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"  # 8 bits of state for each value, from bitsandbytes
    betas: tuple[float, ...] = (0.9, 0.999)
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    ema: float = 0.0
    precision: Literal["no", "bf16", "auto"] = "no"
    compile: bool = False
    device: Literal["auto", "cpu"] = "auto"
    workers: int = 0
    prefetch: int = 2
    minutes: float = 0.0
    save_every: int = 500
    log_every: int = 20
    validate_every: int = 0
    keep: int = 0
    keep_best: str = ""
    seed: int = 0
    # accelerate's names of them: tensorboard, wandb, mlflow, ...
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"] if find_spec("tensorboard") else [])

    def __post_init__(self) -> None:
        if self.precision == "auto":
            gpu = self.device == "auto" and torch.cuda.is_available()
            able = torch.cuda.is_bf16_supported() if gpu else torch.cpu._is_avx512_bf16_supported()
            object.__setattr__(self, "precision", "bf16" if able else "no")
        if self.workers < 0 or self.prefetch < 1:
            raise InputError(f"fit.workers={self.workers}, fit.prefetch={self.prefetch}: use 0 and 1 or more.")
        if self.keep < 0:
            raise InputError(f"fit.keep={self.keep} is out of range: use 0 or more.")
        if self.keep_best and not self.validate_every:
            raise InputError(f"fit.keep_best is {self.keep_best!r}, but nothing is validated: give fit.validate_every.")


class Objective(nn.Module):
    """What is trained. Its parameters with requires_grad are optimised; `forward` must depend on nothing but them, the
    index and `step`.

    Attributes:
        data: what is loaded ahead of the step; None where `forward` makes its batch from the index.
        step: the optimiser step that is being made.
        period: runs are saved, and end, after multiples of so many steps; between, it holds what no checkpoint has.
    """

    data: IndexedDataset | None = None
    step: int = 0
    period: int = 1

    def begin(self, step: int) -> None:
        """Called before the first micro-batch of an optimiser step, in all processes, while weights may be sharded."""
        self.step = step

    def close(self) -> None:
        """Give back what training took; called when a run ends, however it does."""

    def forward(self, index: int, batch: Any = None) -> dict[str, Tensor]:
        """Losses of a micro-batch.

        Args:
            index: its number, counted over the whole run and all processes.
            batch: `data[index]`, where that has been loaded.

        Returns:
            Scalars by name; "loss" is minimised, the others are logged.
        """
        raise NotImplementedError

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimiser, each clipped by itself; the first is averaged and exported.

        `pace` multiplies the learning rate, other keys are AdamW's.
        """
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def kept(self) -> dict[str, nn.Parameter]:
        """What a checkpoint holds of it, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def watch(self, figures: Mapping[str, float], step: int) -> None:
        """Told of logged and held-out figures, the same ones in all processes; raises InputError to end the run."""

    def compile_parts(self) -> None:
        """Compile what is worth it, in place; called once, before the first step, where the settings say `compile`."""

    def validate(self, folder: Path, step: int) -> dict[str, float]:
        """Held-out figures; may write pictures into `folder`. Every process is asked, one keeps what it says."""
        return {}

    def export(self, folder: Path) -> None:
        """Write the trained model (called in one process, with the averaged weights where there are any)."""
        raise NotImplementedError

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of the blocks that FSDP gathers one by one, by accelerate's name for them.

        Those of diffusers' models: each micro-batch runs them all. A process that left one out would hang the others.
        """
        from diffusers import ModelMixin

        blocks = {name for m in self.modules() if isinstance(m, ModelMixin) for name in m._no_split_modules or ()}
        return sorted(blocks & {type(m).__name__ for m in self.modules()})
