"""DeepSpeed's ZeRO, stages 1 and 2: whole weights everywhere, but float32 copies and moments in pieces of its own.

Its utilities put these together, one weight at a time, for checkpoints like everybody's. All processes call all of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


def weights(named: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """In float32, by name."""
    from deepspeed.utils import safe_get_full_fp32_param

    return {name: safe_get_full_fp32_param(p).cpu() for name, p in named.items()}


def moments(groups: list[dict[str, Any]], base: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    """The state that AdamW would have without DeepSpeed after so many steps. base: the AdamW that DeepSpeed wraps."""
    from deepspeed.utils import safe_get_full_optimizer_state

    own: dict[int, dict[str, Tensor]] = {}
    made = []
    for group in groups:
        numbers = list(range(len(own), len(own) + len(group["params"])))
        made.append(base.defaults | group | {"params": numbers})
        for number, p in zip(numbers, group["params"], strict=True):
            found = {key: safe_get_full_optimizer_state(p, key).cpu() for key in MOMENTS}
            own[number] = {"step": torch.tensor(float(step))} | found
    return {"state": own, "param_groups": made}


def restore(
    named: dict[str, nn.Parameter], groups: list[dict[str, Any]], base: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Weights, moments and step of a checkpoint."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    for name, value in state["weights"].items():
        named[name].copy_(value)
        safe_set_full_fp32_param(named[name], value.to(named[name].device))
    owners = [p for group in groups for p in group["params"]]
    for number, own in state["optimizer"]["state"].items():
        for key in MOMENTS:
            safe_set_full_optimizer_state(owners[number], own[key].to(owners[number].device), key)
    for piece in base.state.values():
        piece["step"] = torch.full_like(piece["step"], state["step"])
