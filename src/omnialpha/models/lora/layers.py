"""peft's layers on a transformer: find them, put them in, fill them and switch them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from omnialpha.models.lora.files import Factors

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
P = ParamSpec("P")
T = TypeVar("T")


def with_all_modules(function: Callable[Concatenate[nn.Module, P], T]) -> Callable[Concatenate[nn.Module, P], T]:
    """Decorate a function of a transformer, so that it meets all modules.

    Meanwhile a table of modulation gives back those it has taken, and what was computed from the weights is forgotten.
    """

    @wraps(function)
    def run(transformer: nn.Module, /, *args: P.args, **kwargs: P.kwargs) -> T:
        model: Any = transformer
        if (table := getattr(model, "table", None)) is not None:
            table.restore(model.transformer_blocks, torch.device("cpu"))
            model.table = None
        try:
            return function(transformer, *args, **kwargs)
        finally:
            if table is not None:
                model.table = type(table)(model.transformer_blocks)
            if hasattr(model, "forget_tables"):
                model.forget_tables()

    return run


def linears(transformer: nn.Module) -> dict[str, nn.Linear]:
    """The modules that can be adapted by name, whether they are or not."""
    found = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    return {name.removesuffix(".base_layer"): module for name, module in found.items() if ".lora_" not in name}


def layers(transformer: nn.Module) -> dict[str, LoraLayer]:
    """The modules that are adapted, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in transformer.named_modules() if isinstance(module, LoraLayer)}


def inject(transformer: nn.Module, name: str, settings: Mapping[str, Any], empty: bool = False) -> None:
    """Wrap modules for an adapter. empty: in no memory, to be filled."""
    from peft import LoraConfig, inject_adapter_in_model

    modules = settings["target_modules"]
    uniform = {**settings, "rank_pattern": {}, "alpha_pattern": {}, "target_modules": list(modules)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # a second adapter is no mistake
        inject_adapter_in_model(LoraConfig(**uniform), transformer, name, low_cpu_mem_usage=empty)
    # `fill` sets ranks and alphas: matching hundreds of patterns with hundreds of modules would take minutes. What
    # diffusers and peft read later has them all.
    transformer.peft_config[name] = LoraConfig(**settings)  # type: ignore[index,operator]
    transformer._hf_peft_config_loaded = True  # type: ignore[assignment]  # diffusers' own methods ask for it


def fill(layer: Any, name: str, factors: Factors, transformer: nn.Module) -> None:
    """Give a module its factors, where its weight is and in the dtype that it computes in."""
    base = layer.get_base_layer().weight
    dtype = base.dtype if base.dtype in FLOATS else transformer.dtype

    def parameter(value: Tensor) -> nn.Parameter:
        return nn.Parameter(value.to(base.device, dtype), requires_grad=False)  # type: ignore[arg-type]

    down, up = layer.lora_A[name], layer.lora_B[name]
    down.weight, up.weight = parameter(factors.down), parameter(factors.up)
    down.out_features = up.in_features = layer.r[name] = factors.rank
    layer.lora_alpha[name] = factors.alpha
    if factors.magnitude is not None:
        layer.lora_magnitude_vector[name].weight = parameter(factors.magnitude)


@with_all_modules
def activate(transformer: nn.Module, names: Sequence[str]) -> None:
    """Let these adapters take part, and no others. peft would change what trains, so that is kept."""
    for layer in layers(transformer).values():
        training = [name for name, down in layer.lora_A.items() if down.weight.requires_grad]
        layer.set_adapter(list(names), inference_mode=True)
        layer.set_requires_grad(training)


def unused_parameters(transformer: nn.Module) -> frozenset[str]:
    """Names of parameters, adapters' too, that get no gradient."""
    from omnialpha.models.transformer.model import dead_parameters

    return frozenset(dead_parameters(transformer))


def delta(layer: LoraLayer, name: str, weight: Tensor) -> Tensor:
    """The change (out, in) that an adapter, as it is weighed, makes to a weight (out, in), in its dtype."""
    lengths, alpha = layer.lora_magnitude_vector, layer.scaling[name] * layer.r[name]
    magnitude = lengths[name].weight if name in lengths else None
    return Factors(layer.lora_A[name].weight, layer.lora_B[name].weight, alpha, magnitude).delta(weight)


def factors(transformer: nn.Module, name: str) -> dict[str, Factors]:
    """An adapter as it is, whatever its weight, by module."""
    found = {}
    for module, layer in layers(transformer).items():
        if name in layer.lora_A:
            lengths = layer.lora_magnitude_vector
            magnitude = lengths[name].weight if name in lengths else None
            found[module] = Factors(
                layer.lora_A[name].weight, layer.lora_B[name].weight, layer.lora_alpha[name], magnitude
            )
    return found
