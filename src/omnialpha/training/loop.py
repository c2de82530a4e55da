"""The one training loop: an objective yields losses, `fit` does everything else. Resumes bit-equal from its own
checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from omnialpha.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class FitSettings:
    """How long and how fast. `minutes` ends a run early (0: never); `precision` is that of the forward pass."""

    steps: int
    lr: float
    output: str
    warmup: int = 0
    decay: Literal["constant", "cosine", "linear"] = "constant"
    decay_steps: int = 0  # linear: the last so many steps fall to 0, so that a run can be prolonged before them
    accumulate: int = 1
    betas: tuple[float, ...] = (0.9, 0.999)
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    ema: float = 0.0
    precision: Literal["no", "bf16"] = "no"
    device: Literal["auto", "cpu"] = "auto"
    minutes: float = 0.0
    save_every: int = 500
    log_every: int = 20
    validate_every: int = 0
    seed: int = 0
    tensorboard: bool = True


class Objective(nn.Module):
    """What is trained. Its parameters with requires_grad are optimised; `forward(index)` must depend on nothing but
    them, the index and `step`.
    """

    step: int = 0  # the optimiser step that is being made; `fit` sets it

    def forward(self, index: int) -> dict[str, Tensor]:
        """Losses of micro-batch `index` (counted over the whole run and all processes); the key "loss" is minimised."""
        raise NotImplementedError

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimiser, each clipped by itself; the first is averaged and exported.

        `pace` multiplies the learning rate, other keys are AdamW's.
        """
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def validate(self, folder: Path, step: int) -> dict[str, float]:
        """Held-out figures; may write pictures into `folder`."""
        return {}

    def export(self, folder: Path) -> None:
        """Write the trained model (called with the averaged weights where there are any)."""
        raise NotImplementedError


class Average:
    """Exponential moving average of parameters, warmed up so that early steps do not linger."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.shadow = [p.detach().clone().float() for p in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, [p.detach().float() for p in self.parameters], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averaged weights in place of the current ones, within the block."""
        kept = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_([p.data for p in self.parameters], self.shadow)
            try:
                yield
            finally:
                torch._foreach_copy_([p.data for p in self.parameters], kept)


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
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # a run before this one may have had another precision
    # a task without pictures leaves the vision tower out, the last block never uses its text half
    partly_used = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(
        mixed_precision=settings.precision, cpu=settings.device == "cpu", kwargs_handlers=[partly_used]
    )
    folder = Path(settings.output)
    folder.mkdir(parents=True, exist_ok=True)
    groups = objective.groups()
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas[:2], weight_decay=settings.weight_decay)  # type: ignore[arg-type]
    objective.to(accelerator.device)
    average = Average(groups[0]["params"], settings.ema) if settings.ema else None
    step = _resume(folder, objective, optimizer, average)
    model, optimizer = accelerator.prepare(objective, optimizer)
    main, figures, began = accelerator.is_main_process, {}, time.monotonic()
    with _stop_flag() as stop, closing(_Reporter(folder, settings, main, quiet)) as reporter:
        while step < settings.steps:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step) * group.get("pace", 1.0)
            objective.step = step
            figures = _step(model, optimizer, settings, accelerator, step)
            step += 1
            if average:
                average.update(step)
            reporter.log(step, figures)
            late = bool(settings.minutes) and time.monotonic() - began > settings.minutes * 60
            last = step == settings.steps or _any_process(accelerator, late or bool(stop))
            if (step % settings.save_every == 0 or last) and main:
                _save(folder, objective, optimizer, average, step)
            due = settings.validate_every and (step % settings.validate_every == 0 or step == settings.steps)
            if due and main and not stop:
                with average.applied() if average else torch.no_grad():
                    reporter.log(step, objective.validate(folder, step), always=True)
            if last:
                break
        if main:
            with average.applied() if average else torch.no_grad():
                objective.export(folder / "model")
    return figures


def _any_process(accelerator: Accelerator, value: bool) -> bool:
    """Whether `value` holds in any process: one that stopped alone would leave the others waiting for it."""
    if accelerator.num_processes == 1:
        return value
    return bool(accelerator.reduce(torch.tensor(float(value), device=accelerator.device), "sum") > 0)


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: FitSettings,
    accelerator: Accelerator,
    step: int,
) -> dict[str, float]:
    """One optimiser step over `accumulate` micro-batches."""
    seen: dict[str, list[float]] = {}
    world, rank = accelerator.num_processes, accelerator.process_index
    for micro in range(settings.accumulate):
        index = (step * settings.accumulate + micro) * world + rank
        with accelerator.autocast():
            losses = model(index)
        if not torch.isfinite(losses["loss"]):
            raise InputError(
                f"the loss became {losses['loss'].item()} at step {step}: lower lr; "
                f"the last good checkpoint is kept in {settings.output}."
            )
        accelerator.backward(losses["loss"] / settings.accumulate)
        for name, value in losses.items():
            seen.setdefault(name, []).append(float(value.detach()))
    limit = settings.grad_clip or math.inf
    norms = [float(nn.utils.clip_grad_norm_(group["params"], limit)) for group in optimizer.param_groups]
    if not all(map(math.isfinite, norms)):
        raise InputError(
            f"the gradient became {next(n for n in norms if not math.isfinite(n))} at step {step}: lower lr; "
            f"the last good checkpoint is kept in {settings.output}."
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {name: sum(values) / len(values) for name, values in seen.items()} | {"grad_norm": norms[0]}


def _save(
    folder: Path, objective: Objective, optimizer: torch.optim.Optimizer, average: Average | None, step: int
) -> None:
    names = [n for n, p in objective.named_parameters() if p.requires_grad]
    weights = dict(objective.named_parameters())
    state = {
        "step": step,
        "weights": {n: weights[n].detach() for n in names},
        "average": average.shadow if average else None,
        "optimizer": optimizer.state_dict(),
    }
    temporary = folder / "checkpoint.pt.part"
    torch.save(state, temporary)
    os.replace(temporary, folder / "checkpoint.pt")


def _resume(folder: Path, objective: Objective, optimizer: torch.optim.Optimizer, average: Average | None) -> int:
    path = folder / "checkpoint.pt"
    if not path.is_file():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    with torch.no_grad():
        parameters = dict(objective.named_parameters())
        for name, value in state["weights"].items():
            if name not in parameters or parameters[name].shape != value.shape:
                raise InputError(f"{path} does not fit this recipe at {name}: use another output folder.")
            parameters[name].copy_(value)
        if average:  # one that is switched on now starts from the weights as they are now
            known = state["average"] or [p.detach() for p in average.parameters]
            for shadow, value in zip(average.shadow, known, strict=True):
                shadow.copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


class _Reporter:
    """Progress bar, one JSON line a logged step, TensorBoard where it is installed."""

    def __init__(self, folder: Path, settings: FitSettings, main: bool, quiet: bool) -> None:
        self.every, self.main, self.board = settings.log_every, main, None
        self.file = open(folder / "log.jsonl", "a") if main else None  # noqa: SIM115 - lives as long as the run
        if main and settings.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(folder))
            except ImportError:
                print("TensorBoard is not installed: the figures go to log.jsonl only.")
        from tqdm import tqdm

        self.bar = tqdm(total=settings.steps, disable=quiet or not main, dynamic_ncols=True, mininterval=5)
        self.seen: dict[str, list[float]] = {}  # since the last logged step; not every figure comes with every step

    def log(self, step: int, figures: dict[str, float], always: bool = False) -> None:
        if not self.main:
            return
        if not always:
            self.bar.update(step - self.bar.n)
            for name, value in figures.items():
                self.seen.setdefault(name, []).append(value)
            if step % self.every:
                return
            figures = {name: sum(values) / len(values) for name, values in self.seen.items()}
            self.seen = {}
            self.bar.set_postfix({k: f"{v:.4g}" for k, v in figures.items() if k in ("loss", "grad_norm")})
        assert self.file
        self.file.write(json.dumps({"step": step, "time": round(time.time(), 1)} | figures) + "\n")
        self.file.flush()
        for name, value in figures.items():
            if self.board:
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        self.bar.close()
        if self.file:
            self.file.close()
        if self.board:
            self.board.close()


@contextmanager
def _stop_flag() -> Iterator[list[bool]]:
    """A list that becomes non-empty on SIGTERM or Ctrl-C within the block; a second one ends it at once."""
    flag: list[bool] = []

    def handler(number: int, _frame: object) -> None:
        if flag:
            raise KeyboardInterrupt
        flag.append(True)

    import threading

    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield flag
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
