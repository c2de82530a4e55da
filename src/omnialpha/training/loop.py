"""The one training loop: an objective yields losses, `fit` does everything else. Resumes bit-equal from its own
checkpoint.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from omnialpha.errors import InputError
from omnialpha.training import parallel, state
from omnialpha.training.exports import Exports
from omnialpha.training.loader import batches
from omnialpha.training.objective import FitSettings, Objective
from omnialpha.training.state import Average, Checkpoint

if TYPE_CHECKING:
    from accelerate import Accelerator


def learning_rate(settings: FitSettings, step: int) -> float:
    """Linear warm-up, then constant, a cosine to zero at the last step, or constant with a linear end."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    if settings.decay == "constant":
        return settings.lr
    if settings.decay == "linear":
        return settings.lr * min(1.0, (settings.steps - step) / max(1, settings.decay_steps))
    share = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def fit(objective: Objective, settings: FitSettings, quiet: bool = False) -> dict[str, float]:
    """Train from the last checkpoint in `settings.output`, or from the start. Returns the last logged figures.

    A checkpoint holds weights, average, optimiser and step, so a resumed run equals an uninterrupted one bit for bit.
    SIGTERM and Ctrl-C save and end the run. A loss that is not finite stops it and keeps the last good checkpoint.
    """
    for name in ("steps", "save_every"):
        if getattr(settings, name) % objective.period:
            raise InputError(
                f"fit.{name}={getattr(settings, name)} ends between the {objective.period} updates of a rollout: "
                f"use a multiple of {objective.period}."
            )
    folder = Path(settings.output)
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = parallel.accelerator(settings)
    if settings.compile:
        objective.compile_parts()
    model, optimizer = parallel.prepare(accelerator, objective, settings)
    average = Average(objective.groups()[0]["params"], settings.ema) if settings.ema else None
    checkpoint = Checkpoint(folder / "checkpoint.pt", objective, optimizer, average, settings.optimizer, accelerator)
    step, main = checkpoint.resume(), accelerator.is_main_process

    averaged: Callable[[], AbstractContextManager[None]] = average.applied if average else torch.no_grad

    def export(target: Path) -> None:
        with averaged(), state.exported(objective, main):
            if main:
                objective.export(target)

    kept = Exports(folder, settings.keep, settings.keep_best, main, export)
    began, world = time.monotonic(), accelerator.num_processes
    begin, end = (settings.accumulate * world * at + accelerator.process_index for at in (step, settings.steps))
    indices, pinned = range(begin, end, world), accelerator.device.type == "cuda"
    loaded = batches(objective.data, indices, settings.workers, settings.prefetch, pinned)
    numbers = iter(indices)
    with (
        _stop_flag() as stop,
        closing(loaded),
        closing(objective),
        closing(_Reporter(folder, settings, accelerator, quiet)) as reporter,
    ):
        while step < settings.steps:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step) * group.get("pace", 1.0)
            objective.begin(step)
            now = zip(islice(numbers, settings.accumulate), loaded, strict=False)
            norms = _backward(model, optimizer, settings, accelerator, now, reporter.seen)
            _check_gradients(norms, reporter.seen["loss"][-settings.accumulate :], settings, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if average:
                average.update(step)
            late = bool(settings.minutes) and time.monotonic() - began > settings.minutes * 60
            # one that stopped alone would leave others waiting
            ended = step % objective.period == 0 and parallel.any_process(late or bool(stop), accelerator)
            last = ended or step == settings.steps
            reporter.step(step, last, objective)
            if step % settings.save_every == 0 or last:
                checkpoint.save(step)
            if step % settings.save_every == 0:
                kept.number(step)
            if settings.validate_every and not ended and (step % settings.validate_every == 0 or last):
                with averaged(), state.gathered(model, accelerator):
                    unseen = _validated(objective, accelerator, folder, step)
                reporter.write(step, unseen)
                kept.best(step, unseen)
                objective.watch(unseen, step)
            if last:
                break
        export(folder / "model")
    return reporter.figures


def _backward(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: FitSettings,
    accelerator: Accelerator,
    loaded: Iterable[tuple[int, Any]],
    seen: dict[str, list[Tensor]],
) -> list[float]:
    """Gradients of one step over its micro-batches, clipped.

    Args:
        loaded: index and batch of each micro-batch.
        seen: takes the losses.

    Returns:
        The norm of each group before it was clipped, the same in all processes.
    """
    for index, batch in loaded:
        with accelerator.accumulate(model):  # gradients are exchanged after the last one
            with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                losses = model(index) if batch is None else model(index, batch)
            accelerator.backward(losses["loss"])
        for name, value in losses.items():
            seen.setdefault(name, []).append(value.detach())
    limit = settings.grad_clip or math.inf
    norms = [parallel.clip(group["params"], limit) for group in optimizer.param_groups]
    seen.setdefault("grad_norm", []).append(torch.tensor(norms[0]))
    return norms


def _check_gradients(norms: list[float], losses: list[Tensor], settings: FitSettings, step: int) -> None:
    """InputError, in all processes, where a gradient is not finite."""
    for norm in norms:
        if not math.isfinite(norm):
            _check_finite("loss", _means({"loss": losses})["loss"], settings, step)
            _check_finite("gradient", norm, settings, step)


def _check_finite(what: str, value: float, settings: FitSettings, step: int) -> None:
    if not math.isfinite(value):
        raise InputError(
            f"the {what} became {value} at step {step}: lower lr; "
            f"the last good checkpoint is kept in {settings.output}."
        )


def _means(seen: dict[str, list[Tensor]]) -> dict[str, float]:
    """The mean of scalars by name, over all processes: the one time that the device is waited for."""
    own = {name: torch.stack([value.float() for value in found]).tolist() for name, found in seen.items()}
    return parallel.means(parallel.everywhere([own]))


def _validated(objective: Objective, accelerator: Accelerator, folder: Path, step: int) -> dict[str, float]:
    """All processes do it, as sharded ones need each other; random numbers go on as if it had not been."""
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), TemporaryDirectory() as nowhere:
        return objective.validate(folder if accelerator.is_main_process else Path(nowhere), step)


class _Reporter:
    """Progress bar, one JSON line a logged step, and the trackers."""

    def __init__(self, folder: Path, settings: FitSettings, accelerator: Accelerator, quiet: bool) -> None:
        from tqdm import tqdm

        self.main, self.accelerator = accelerator.is_main_process, accelerator
        self.file = open(folder / "log.jsonl", "a") if self.main else None  # noqa: SIM115 - lives as long as the run
        accelerator.init_trackers("omnialpha", init_kwargs={"wandb": {"name": folder.name}})
        self.bar = tqdm(total=settings.steps, disable=quiet or not self.main, dynamic_ncols=True, mininterval=5)
        self.settings, self.seen = settings, dict[str, list[Tensor]]()  # since the last report
        self.figures: dict[str, float] = {}

    def step(self, step: int, last: bool, objective: Objective) -> None:
        """All processes call it; every `log_every` steps, and after the last one, their figures are put together."""
        if self.main:
            self.bar.update(step - self.bar.n)
        if not last and step % self.settings.log_every:
            return
        self.figures = _means(self.seen)
        self.seen.clear()
        _check_finite("loss", self.figures["loss"], self.settings, step - 1)
        if step % self.settings.log_every == 0:
            self.write(step, self.figures)
        objective.watch(self.figures, step)

    def write(self, step: int, figures: dict[str, float]) -> None:
        """A line of figures."""
        if not self.main:
            return
        assert self.file
        if "loss" in figures:
            self.bar.set_postfix({k: f"{v:.4g}" for k, v in figures.items() if k in ("loss", "grad_norm")})
        self.file.write(json.dumps({"step": step, "time": round(time.time(), 1)} | figures) + "\n")
        self.file.flush()
        self.accelerator.log(figures, step=step)

    def close(self) -> None:
        self.bar.close()
        if self.file:
            self.file.close()
        for tracker in self.accelerator.trackers:  # not end_training(), which would end the group of processes too
            tracker.finish()


@contextmanager
def _stop_flag() -> Iterator[list[bool]]:
    """A list that becomes non-empty on SIGTERM or Ctrl-C within the block; a second one ends it at once."""
    flag: list[bool] = []

    def handler(number: int, _frame: object) -> None:
        if flag:
            raise KeyboardInterrupt
        flag.append(True)

    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield flag
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
