"""What a run keeps: averaged weights and the checkpoint.

FSDP2 shards tensors by rows, one part for each process. What works element by element works on the parts; what is
written is whole, so that any number of processes can read it again, sharded or not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from omnialpha.errors import InputError
from omnialpha.files import atomic_write
from omnialpha.training.objective import Objective

if TYPE_CHECKING:
    from accelerate import Accelerator


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "placements")  # of a DTensor, whose class not every build of torch has


def part(tensor: Any) -> Tensor:
    """What this process holds of a tensor: the same memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def gather(tensor: Any, main: bool) -> Tensor | None:
    """A sharded tensor, whole on the main process's CPU, None elsewhere; others as they are. All processes call it."""
    if not is_sharded(tensor):
        return tensor.detach()
    full = tensor.detach().full_tensor()
    return full.cpu() if main else None


def shard_like(value: Tensor, like: Any) -> Tensor:
    """A copy of a whole tensor, sharded as `like` is where it has the same shape: every process has all of `value`."""
    if not is_sharded(like) or value.shape != like.shape:
        return value.clone()
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def assign(tensor: Tensor, value: Tensor) -> None:
    part(tensor).copy_(part(shard_like(value, tensor)))


class Average:
    """Exponential moving average of parameters, warmed up so that early steps do not linger."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.shadow = [p.detach().clone().float() for p in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        now = [part(p).detach().float() for p in self.parameters]
        torch._foreach_lerp_([part(s) for s in self.shadow], now, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averaged weights in place of the current ones, within the block."""
        with torch.no_grad():
            current = [part(p).detach() for p in self.parameters]
            kept = [p.clone() for p in current]
            torch._foreach_copy_(current, [part(s) for s in self.shadow])
            try:
                yield
            finally:
                torch._foreach_copy_(current, kept)


@dataclass
class Checkpoint:
    """The one file that a run goes on from. kind: which optimizer it is. All processes call both methods."""

    path: Path
    objective: Objective
    optimizer: Any
    average: Average | None
    kind: str
    accelerator: Accelerator

    @torch.no_grad()
    def save(self, step: int) -> None:
        """Written by the main process, under a temporary name first."""
        from accelerate.utils import recursively_apply

        state: dict[str, Any] = {
            "step": step,
            "kind": self.kind,
            "weights": self.objective.kept(),
            "average": self.average.shadow if self.average else None,
            "optimizer": self.optimizer.state_dict(),
        }
        state = recursively_apply(gather, state, self.accelerator.is_main_process)
        if self.accelerator.is_main_process:
            atomic_write(self.path, partial(torch.save, state))

    @torch.no_grad()
    def resume(self) -> int:
        """The step that the file was written after, its state taken over; 0 where there is none."""
        state: dict[str, Any] = {"step": 0}
        if self.path.is_file():
            state = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)  # shared by processes
            self._check(state)
            self._load(state)
        steps = self.accelerator.gather(torch.tensor([state["step"]], device=self.accelerator.device))
        if len(steps.unique()) > 1:
            raise InputError(f"not all processes see {self.path}: give an output folder that all machines share.")
        return int(state["step"])

    def _check(self, state: dict[str, Any]) -> None:
        if (kind := state.get("kind", "adamw")) != self.kind:
            raise InputError(
                f"{self.path} was written with optimizer={kind!r}, not {self.kind!r}: go on with that one."
            )
        named = dict(self.objective.named_parameters())
        for name, value in state["weights"].items():
            if name not in named or named[name].shape != value.shape:
                raise InputError(f"{self.path} does not fit this recipe at {name}: use another output folder.")

    def _load(self, state: dict[str, Any]) -> None:
        from accelerate.utils import recursively_apply

        named, groups = dict(self.objective.named_parameters()), self.objective.groups()
        for name, value in state["weights"].items():
            assign(named[name], value)
        owners, moments = [p for group in groups for p in group["params"]], state["optimizer"]["state"]
        for index, own in moments.items():
            moments[index] = recursively_apply(shard_like, own, owners[index])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:  # one that is switched on now starts from the weights as they are now
            known = state["average"] or [p.detach() for p in self.average.parameters]
            for shadow, value in zip(self.average.shadow, known, strict=True):
                assign(shadow, value)


# ---- sharded parameters outside of forward ---------------------------------------------------------------------------


@contextmanager
def gathered(model: Any, accelerator: Accelerator) -> Iterator[None]:
    """Sharded parameters as they are within `forward`, for a block in which all processes do the same."""
    if not hasattr(model, "unshard"):
        yield
        return
    model.unshard()
    try:
        with accelerator.autocast():
            yield
    finally:
        model.reshard()


@contextmanager
def exported(objective: nn.Module, main: bool) -> Iterator[None]:
    """On the main process, modules as they were before they were sharded, on the CPU, every weight whole and unrounded.
    All processes enter, that one may use them.
    """
    if not hasattr(objective, "unshard"):
        yield
        return
    before = [(m, type(m), m.__dict__) for m in objective.modules()]
    weights = {p: gather(p, main) for p in objective.parameters()}
    try:
        for module, kind, attributes in before if main else ():
            if hasattr(module, "unshard"):  # FSDP2 has put a class of its own before the module's
                object.__setattr__(module, "__class__", kind.__mro__[2])
            object.__setattr__(module, "__dict__", _plain(attributes, weights))
        yield
    finally:
        for module, kind, attributes in before:
            object.__setattr__(module, "__dict__", attributes)
            object.__setattr__(module, "__class__", kind)


def _plain(attributes: dict[str, Any], weights: dict[nn.Parameter, Any]) -> dict[str, Any]:
    """A module's attributes with whole weights, without FSDP's records and hooks."""
    made = {k: v for k, v in attributes.items() if not k.startswith("__composable_api_state_key")}
    for name in ("_forward_pre_hooks", "_forward_hooks"):
        hooks = attributes[name].items()
        made[name] = OrderedDict(
            (k, h) for k, h in hooks if "fsdp" not in type(getattr(h, "__self__", None)).__module__
        )
    parameters, buffers = attributes["_parameters"].items(), attributes["_buffers"].items()
    made["_parameters"] = {k: p if p is None else nn.Parameter(weights[p], p.requires_grad) for k, p in parameters}
    made["_buffers"] = {k: b if b is None else b.cpu() for k, b in buffers}
    return made
