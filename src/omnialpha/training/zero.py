"""DeepSpeed's ZeRO, stages 1 and 2: whole weights everywhere, but float32 copies and moments in pieces of its own.

Its utilities put these together, one weight at a time, for checkpoints like everybody's. All processes call all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from omnialpha.errors import InputError

MOMENTS = ("exp_avg", "exp_avg_sq")
STEP = "step"


def begin(wrapper: Any) -> None:
    """Give DeepSpeed's optimizer the state that AdamW has before its first step, and let DeepSpeed find it.

    Otherwise there is none before that step, and of several groups it would find the first one's alone.
    """
    base = wrapper.optimizer
    for group in base.param_groups:
        for piece in group["params"]:
            base.state[piece] = {STEP: torch.tensor(0.0)} | {key: torch.zeros_like(piece) for key in MOMENTS}
    wrapper._lazy_init_hp_params_optimizer_state()


class Arrivals:
    """The order in which gradients of a step come. DeepSpeed exchanges them by that, without a look at whose they are:
    a process that used other weights than another would get that one's gradients for its own.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.order: list[int] = []
        for number, parameter in enumerate(parameters):
            parameter.register_post_accumulate_grad_hook(partial(self._note, number))

    def _note(self, number: int, _: nn.Parameter) -> None:
        self.order.append(number)

    def check(self, everywhere: Callable[[list[Any]], list[Any]], step: int) -> None:
        """InputError where the processes differ."""
        found = everywhere([hash(tuple(self.order))])  # of whole numbers, so that it is the same everywhere
        self.order.clear()
        if len(set(found)) > 1:
            raise InputError(
                f"the processes used different weights in step {step}, whose gradients DeepSpeed mixes up: "
                "use --use_fsdp or --multi_gpu, or train a LoRA ([lora])."
            )


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
            own[number] = {STEP: torch.tensor(float(step))} | found
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
        piece[STEP] = torch.full_like(piece[STEP], state[STEP])
