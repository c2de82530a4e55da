"""One process or many, as `accelerate launch` asks for: plain, DDP and FSDP2, all for one loop."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from omnialpha.errors import InputError
from omnialpha.training.objective import FitSettings, Objective
from omnialpha.training.state import is_sharded

if TYPE_CHECKING:
    from accelerate import Accelerator, FullyShardedDataParallelPlugin


def accelerator(settings: FitSettings) -> Accelerator:
    """What `accelerate launch` has put into the environment, or one process."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType, GradientAccumulationPlugin

    _check_trackers(settings.trackers)
    cpu = settings.device == "cpu" or not torch.accelerator.is_available()  # said, or processes would not meet
    if _asked("DEEPSPEED"):
        raise InputError("accelerate launch asks for DeepSpeed: use --use_fsdp --fsdp_version 2, which shards more.")
    sharding = _sharding(settings) if _asked("FSDP") else None
    AcceleratorState._reset_state(reset_partial_state=True)  # a run before this one may have had another precision
    made = Accelerator(
        mixed_precision=settings.precision,
        cpu=cpu,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=settings.accumulate),
        fsdp_plugin=sharding,
        log_with=settings.trackers or None,
        project_dir=settings.output,
        kwargs_handlers=[
            # a task without pictures leaves the vision tower out, the last block never uses its text half
            DistributedDataParallelKwargs(find_unused_parameters=True),
        ],
    )
    if sharding and made.distributed_type == DistributedType.MULTI_CPU:  # accelerate would not shard, and not say so
        made.state.distributed_type, made.state.fsdp_plugin = DistributedType.FSDP, sharding
    return made


def _asked(what: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{what}", "false").lower() == "true"


def _check_trackers(names: list[str]) -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise InputError(f"fit.trackers has {name!r}: use some of {', '.join(LOGGER_TYPE_TO_CLASS)}.")
        if name not in map(str, get_available_trackers()):
            raise InputError(f"fit.trackers has {name!r}, which is not installed: pip install {name}.")


def _sharding(settings: FitSettings) -> FullyShardedDataParallelPlugin:
    """FSDP2 by accelerate's own arguments. Gradients are summed in float32; autocast decides about activations."""
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
    from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

    half = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    plugin = FullyShardedDataParallelPlugin(mixed_precision_policy=half if settings.precision == "bf16" else None)
    if plugin.fsdp_version != 2:
        raise InputError("accelerate launch asks for FSDP of version 1: add --fsdp_version 2.")
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise InputError(f"FSDP2 of torch {torch.__version__} needs all processes to use the same weights: update it.")
    if plugin.activation_checkpointing:
        raise InputError("--fsdp_activation_checkpointing renames weights: use the recipe's own checkpointing.")
    if plugin.auto_wrap_policy is size_based_auto_wrap_policy:
        raise InputError("--fsdp_auto_wrap_policy SIZE_BASED_WRAP cuts anywhere: use TRANSFORMER_BASED_WRAP.")
    if settings.optimizer == "adamw8bit":
        raise InputError("fit.optimizer is 'adamw8bit', which knows no sharded weights: use 'adamw' with FSDP.")
    plugin.cpu_ram_efficient_loading = False  # all processes have read all weights already
    return plugin


def prepare(
    accelerator: Accelerator, objective: Objective, settings: FitSettings
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The objective as the processes train it together, on its device, and the optimizer of its groups."""
    optimizer = _optimizer(objective.groups(), settings, accelerator.device)
    model, optimizer = accelerator.prepare(objective, optimizer)
    if hasattr(model, "set_reduce_scatter_unused_params"):
        model.set_reduce_scatter_unused_params(True)  # as find_unused_parameters above
    return model, optimizer


def _optimizer(groups: list[dict[str, Any]], settings: FitSettings, device: torch.device) -> torch.optim.Optimizer:
    common: dict[str, Any] = {"lr": settings.lr, "betas": settings.betas[:2], "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, **common)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise InputError(
            "fit.optimizer is 'adamw8bit', which needs bitsandbytes: pip install bitsandbytes, or use 'adamw'."
        ) from None
    probe = nn.Parameter(torch.zeros(4096, device=device))  # the least that it keeps in 8 bits
    probe.grad = torch.ones_like(probe)
    try:
        AdamW8bit([probe]).step()
    except (NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"fit.optimizer is 'adamw8bit', which bitsandbytes cannot do on {device.type}: use 'adamw'."
        ) from error
    return AdamW8bit(groups, **common)


def everywhere(values: list[Any]) -> list[Any]:
    """The values of all processes, in their order."""
    from accelerate.utils import gather_object

    return gather_object(values)


def any_process(flag: bool, accelerator: Accelerator) -> bool:
    """Whether it is so in any process; all of them call it."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.gather(torch.tensor([flag], device=accelerator.device)).any())


def clip(parameters: list[nn.Parameter], limit: float) -> float:
    """Scale gradients down to a norm of at most `limit`; returns what it was."""
    norm: Any = nn.utils.clip_grad_norm_(parameters, limit)
    return float(norm.full_tensor() if is_sharded(norm) else norm)


def means(seen: list[dict[str, list[float]]]) -> dict[str, float]:
    """Of every figure, over all that have it."""
    names = dict.fromkeys(name for one in seen for name in one)
    values = {name: [v for one in seen for v in one.get(name, ())] for name in names}
    return {name: sum(v) / len(v) for name, v in values.items()}
