"""Weights that wait elsewhere while they are not at work, in main memory or on a disk: pictures stay as they are."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial, wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, Protocol, get_args

import torch
from diffusers.hooks import apply_group_offloading
from diffusers.hooks.group_offloading import (
    _GROUP_OFFLOADING,
    _LAYER_EXECUTION_TRACKER,
    _LAZY_PREFETCH_GROUP_OFFLOADING,
)
from filelock import FileLock, Timeout
from torch import nn

from omnialpha.models.checkpoints.hub import check_space

Offload = Literal["none", "model", "group", "disk"]
OFFLOADS = {
    "none": "every part on the device",
    "model": "one part on the device at a time, the others in main memory",
    "group": "one block on the device at a time, the next one on its way, the others in main memory",
    "disk": "as group, the others in files; main memory stays free",
}
LOCK = "lock"  # file that a process holds for as long as it uses the folder
CPU = torch.device("cpu")


class Model(Protocol):
    """The parts of `pipeline.OmniAlpha`."""

    vae: Any
    transformer: Any
    text_encoder: Any


class Streams(NamedTuple):
    """What of a text encoder moves: models whose blocks do, modules that stay on the device, the word embedding."""

    groups: tuple[nn.Module, ...]
    small: tuple[nn.Module, ...]
    embeddings: nn.Module


def offload(way: Offload, model: Model, device: torch.device, undo: ExitStack, folder: Path) -> None:
    """Ready the parts of a model for a device; closing `undo` leaves them in main memory. folder: for files."""
    if way == "none":
        for part in (model.vae, model.transformer, model.text_encoder):
            undo.callback(move, part, CPU)
            move(part, device)
    elif way == "model":
        _in_turns(model, device, undo)
    else:
        _in_groups(model, device, undo, folder if way == "disk" else None)


def _in_turns(model: Model, device: torch.device, undo: ExitStack) -> None:
    """Keep one part on the device, the others in main memory."""
    current: list[nn.Module] = []

    def end() -> None:
        while current:
            move(current.pop(), CPU)

    def take(part: nn.Module) -> None:
        if part not in current:
            end()
            move(part, device)
            current.append(part)

    undo.callback(end)
    for part in (model.transformer, model.text_encoder):
        undo.callback(part.register_forward_pre_hook(lambda part, args: take(part)).remove)
    for part, entry in ((model.vae, "encode"), (model.vae, "decode"), (model.transformer, "precompute_modulation")):
        setattr(part, entry, _after(partial(take, part), getattr(part, entry)))
        undo.callback(delattr, part, entry)


@torch.inference_mode(False)  # tensors made in that mode do not take the place of quantised ones
def move(part: nn.Module, device: torch.device) -> None:
    nn.Module.to(part, device)  # that of diffusers has advice about data types


def _after(first: Callable[[], None], call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, preceded by `first`."""

    @wraps(call)
    def both(*args: Any, **kwargs: Any) -> Any:
        first()
        return call(*args, **kwargs)

    return both


def _in_groups(model: Model, device: torch.device, undo: ExitStack, folder: Path | None) -> None:
    """Streams the blocks of the transformer and of the text models, each with what lies around them.

    Small modules that are used outside their parents' forward stay on the device. The word embedding stays in main
    memory, where a look-up costs nothing.
    """
    moving, staying, embeddings = model.text_encoder.streams
    small = (model.vae, model.transformer.time_text_embed, *staying)
    groups = (model.transformer, *moving)
    weights = sum(size_of(module) for module in groups)
    place = _own_folder(folder, weights, undo) if folder else None
    stream = device.type == "cuda"
    for part in small:
        undo.callback(move, part, CPU)
        move(part, device)
    undo.callback(embeddings.register_forward_pre_hook(lambda module, args: (args[0].to(CPU),)).remove)
    undo.callback(embeddings.register_forward_hook(lambda module, args, rows: rows.to(device)).remove)
    for number, module in enumerate(groups):
        undo.callback(_ungroup, module)
        with _lacking(module, {embeddings, *small}):
            apply_group_offloading(
                module,
                onload_device=device,
                offload_device=CPU,
                offload_type="block_level",
                num_blocks_per_group=1,
                use_stream=stream,
                record_stream=stream,
                low_cpu_mem_usage=not (stream and _can_pin(weights)),
                offload_to_disk_path=str(place / str(number)) if place else None,
            )


@contextmanager
def _lacking(module: nn.Module, apart: set[nn.Module]) -> Iterator[None]:
    """Meanwhile it is without those of its children, so that hooks leave them alone."""
    children = dict(module._modules)
    try:
        for name, child in children.items():
            if child in apart:
                del module._modules[name]
        yield
    finally:
        module._modules.clear()
        module._modules.update(children)  # in the old order


def _can_pin(weights: int) -> bool:
    """Whether main memory holds a second, pinned copy, from which a GPU copies more than twice as fast."""
    import psutil  # comes with accelerate

    return psutil.virtual_memory().available > 1.5 * weights


def _own_folder(folder: Path, weights: int, undo: ExitStack) -> Path:
    """A new one inside: diffusers would take files that lie there for its own. What runs that were killed have left
    there goes: no living process holds its lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK):
        for left in folder.glob("run-*"):
            with suppress(Timeout), FileLock(left / LOCK, timeout=0):
                shutil.rmtree(left, ignore_errors=True)
        check_space(folder, weights, f"offload=disk in {folder}")
        made = undo.enter_context(TemporaryDirectory(prefix="run-", dir=folder, ignore_cleanup_errors=True))
        undo.enter_context(FileLock(Path(made, LOCK), thread_local=False))
    return Path(made)


def _ungroup(module: nn.Module) -> None:
    """Take group offloading away; every weight ends in main memory."""
    for child in module.modules():
        registry = getattr(child, "_diffusers_hook", None)
        hook = registry and registry.get_hook(_GROUP_OFFLOADING)
        if hook and hook.group.offload_to_disk_path and hook.group.onload_leader is child:
            hook.group.onload_device, hook.group.stream, hook.group.record_stream = CPU, None, False
            hook.group.onload_()
            for tensor in hook.group.tensor_to_key:
                tensor.data = tensor.data.clone()  # not the file itself, which is about to go
    for child in module.modules():
        if registry := getattr(child, "_diffusers_hook", None):
            for name in (_LAZY_PREFETCH_GROUP_OFFLOADING, _LAYER_EXECUTION_TRACKER, _GROUP_OFFLOADING):
                if registry.get_hook(name) is not None:
                    registry.remove_hook(name, recurse=False)
    move(module, CPU)


def size_of(module: nn.Module) -> int:
    """Bytes of its parameters and buffers as they are stored, quantised ones included."""
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return sum(_bytes(t) for t in tensors.values())


def _bytes(tensor: torch.Tensor) -> int:
    names = getattr(tensor, "tensor_data_names", None)  # of a torchao tensor
    inner = [getattr(tensor, name) for name in names] if names else [tensor]
    state = getattr(tensor, "quant_state", None)  # of a bitsandbytes one
    inner += [state.absmax] if state is not None else []
    return sum(t.numel() * t.element_size() for t in inner)


assert set(OFFLOADS) == set(get_args(Offload))
