"""LoRA on the transformer, by peft: apply and swap files, fuse them, and add, train and save new ones.

An adapter adds weight * alpha / r * up (down x) to what its module makes of x, in the dtype of the base. One of weight
0 takes no part. DoRA builds the whole changed weight in every call, so fuse it before a long run.

Apply before a model is placed, quantised or compiled. Every function tells the transformer to forget what it has
computed from its weights (`forget_tables`, where it has one).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omnialpha.errors import InputError
from omnialpha.models.lora import files as lora_files
from omnialpha.models.lora.adapter_file import AdapterFile, Settings, describe
from omnialpha.models.lora.files import Factors
from omnialpha.models.lora.names import find_targets
from omnialpha.models.transformer.model import dead_parameters

APPLIED = "adapters"  # the attribute of a transformer that holds what is on it: AdapterFile by name
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def applied(transformer: nn.Module) -> tuple[AdapterFile, ...]:
    """The adapters on the model, in order; the path of one that was added for training is empty."""
    return tuple(_files(transformer).values())


def apply(transformer: nn.Module, files: Sequence[AdapterFile] = ()) -> tuple[AdapterFile, ...]:
    """Make `files` the adapters of the model, in place of any it has, trained ones too.

    Args:
        transformer: the model, before it is placed, quantised or compiled.
        files: in order; () gives the base, bit by bit.

    Returns:
        The files with the settings from their headers and with names that differ.

    Raises:
        InputError: a file is missing, damaged or of another model; nothing is changed then.
    """
    named: dict[str, AdapterFile] = {}
    with _all_modules(transformer) as model:
        for file in files:
            numbered = (f"{file.name}-{number}" if number > 1 else file.name for number in count(1))
            name = next(name for name in numbered if name not in named)
            named[name] = replace(describe(file), name=name)
        shapes = shapes_of(model)
        loras = [lora_files.read(file.path, shapes) for file in named.values()]
        model.unload_lora()
        vars(model)[APPLIED] = named
        for name, lora in zip(named, loras, strict=True):
            _inject(model, name, lora_files.peft_settings(lora), empty=True)
            for module, factors in lora.items():
                _fill(model.get_submodule(module), name, factors, model.dtype)
        _activate(model)
    return tuple(named.values())


@torch.no_grad()
def fuse(transformer: nn.Module) -> None:
    """Add the adapters in use to the weights, summed in float32 and rounded once, and free them.

    There is no way back, since that would take a copy of the weights: load the base again.

    Raises:
        InputError: a weight is quantised, sharded or offloaded; nothing is changed then.
    """
    with _all_modules(transformer) as model:
        weights = {name: layer.get_base_layer().weight for name, layer in _layers(model).items()}
        for name, weight in weights.items():
            if type(weight.data) is not Tensor or weight.dtype not in FLOATS or weight.is_meta:
                raise InputError(
                    f"{name} is quantised, sharded or offloaded: fuse LoRA before that, or do not fuse it."
                )
        for name, layer in _layers(model).items():
            exact = weights[name].to(torch.promote_types(weights[name].dtype, torch.float32))
            used = [file for file in applied(model) if file.weight and file.name in layer.lora_A]
            weights[name].copy_(exact + sum(_factors(layer, file.name).delta(exact, file.weight) for file in used))
        model.unload_lora()
        _files(model).clear()


def add(
    transformer: nn.Module,
    rank: int,
    alpha: float | None = None,
    targets: str | Sequence[str] = "attention+mlp",
    dropout: float = 0.0,
    dora: bool = False,
    name: str = "default",
) -> list[nn.Parameter]:
    """Add an adapter that changes nothing yet, and make it trainable, in float32, and nothing else.

    Args:
        transformer: the model.
        rank: from 1.
        alpha: the result counts alpha / rank; by default the rank.
        targets: a name of `names.TARGETS`, or endings of module names. Modules whose result nothing reads are left out.
        dropout: share of the inputs that is dropped, in [0, 1).
        dora: whether the lengths of the rows are trained too (DoRA, arXiv 2402.09353).
        name: of the adapter.

    Returns:
        Its parameters.

    Raises:
        InputError: a value out of range, a name that is taken, or targets that match nothing.
    """
    if rank < 1 or not 0 <= dropout < 1:
        raise InputError(f"LoRA of rank {rank}, dropout {dropout:g}: use a rank from 1 and a dropout in [0, 1).")
    file = AdapterFile(Path(), name=name)
    if name in _files(transformer):
        raise InputError(f"a LoRA named {name!r} is on the model already: use another name.")
    with _all_modules(transformer) as model:
        dead = dead_parameters(model)
        found = find_targets(targets, shapes_of(model))
        modules = [module for module in found if not any(key.startswith(f"{module}.") for key in dead)]
        settings = {"r": rank, "lora_alpha": alpha or rank, "target_modules": modules, "use_dora": dora}
        _inject(model, name, settings | {"lora_dropout": dropout})
        _files(model)[name] = file
        model.requires_grad_(False)
        own = re.compile(rf"\.lora_\w+\.{name}(\.|$)")
        trained = [parameter for key, parameter in model.named_parameters() if own.search(key)]
        for parameter in trained:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        _activate(model)
    return trained


@torch.no_grad()
def load(transformer: nn.Module, name: str, path: Path) -> None:
    """Give adapter `name` the values of a file; InputError unless that has the same modules, rank and alpha."""
    with _all_modules(transformer) as model:
        dead = dead_parameters(model)  # a file may have more, of which nothing reads the result
        own = {module: _factors(layer, name) for module, layer in _layers(model).items() if name in layer.lora_A}
        given = lora_files.read(path, shapes_of(model))
        live = {module for module in given if not any(key.startswith(f"{module}.") for key in dead)}
        for module in live | own.keys():
            one, other = given.get(module), own.get(module)
            if one is None or other is None or (one.rank, one.alpha) != (other.rank, other.alpha):
                raise InputError(
                    f"LoRA {path} differs at {module} in targets, rank or alpha: give [lora] those of the file."
                )
            for mine, value in ((other.down, one.down), (other.up, one.up)):
                mine.copy_(value)


@torch.no_grad()
def copy(transformer: nn.Module, source: str, name: str) -> None:
    """Copy an adapter to a new one that is not trained and takes no part until `instead` lets it.

    Raises:
        InputError: a LoRA of that name is on the model.
    """
    if name in _files(transformer):
        raise InputError(f"a LoRA named {name!r} is on the model already: use another name.")
    with _all_modules(transformer) as model:
        trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
        factors = {
            module: _factors(layer, source) for module, layer in _layers(model).items() if source in layer.lora_A
        }
        _inject(model, name, lora_files.peft_settings(factors), empty=True)
        for module, own in factors.items():
            _fill(model.get_submodule(module), name, own, model.dtype)
        for key, parameter in model.named_parameters():
            if f".{name}." in key:
                parameter.data = parameter.data.float().clone()  # not the source's own memory
            parameter.requires_grad_(key in trained)
        _files(model)[name] = replace(_files(model)[source], name=name, weight=0.0)
        _activate(model)


@contextmanager
def instead(transformer: nn.Module, source: str, name: str) -> Iterator[None]:
    """Run with the copy `name` of an adapter in its place; what trains goes on training."""
    files = _files(transformer)
    before = dict(files)
    files |= {source: replace(files[source], weight=0.0), name: replace(files[name], weight=files[source].weight)}
    _activate(transformer)
    try:
        yield
    finally:
        files |= before
        _activate(transformer)


def save(
    transformer: nn.Module,
    path: str | Path,
    adapter: str | None = None,
    settings: Settings | None = None,
) -> Path:
    """Write one adapter as diffusers does, as it is, whatever its weight.

    Args:
        transformer: the model.
        path: a file, or a folder.
        adapter: its name; None for the only one.
        settings: sampling settings for the header, by default its own.

    Returns:
        The file.

    Raises:
        InputError: several adapters and none is named, or none at all.
    """
    files = _files(transformer)
    if adapter is None and len(files) != 1:
        raise InputError(f"the model has {len(files)} LoRAs ({', '.join(files) or 'none'}): name one.")
    name = adapter or next(iter(files))
    values = asdict(settings or files[name])
    header = {field.name: values[field.name] for field in fields(Settings) if values[field.name] is not None}
    with _all_modules(transformer) as model:
        factors = {module: _factors(layer, name) for module, layer in _layers(model).items() if name in layer.lora_A}
        return lora_files.write(Path(path), factors, header)


def shapes_of(transformer: nn.Module) -> dict[str, tuple[int, int]]:
    """The modules that can be adapted, whether they are or not, by name: (out, in)."""
    found = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    return {
        name.removesuffix(".base_layer"): (module.out_features, module.in_features)
        for name, module in found.items()
        if ".lora_" not in name
    }


# ---- peft's layers -------------------------------------------------------------------------------------------------


def _files(transformer: nn.Module) -> dict[str, AdapterFile]:
    return vars(transformer).setdefault(APPLIED, {})


def _layers(transformer: nn.Module) -> dict[str, Any]:
    """The modules that are adapted, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in transformer.named_modules() if isinstance(module, LoraLayer)}


@contextmanager
def _all_modules(transformer: nn.Module) -> Iterator[Any]:
    """The transformer with the modules that a table of modulation has taken; afterwards what was computed from the
    weights is forgotten.
    """
    model: Any = transformer
    if (table := getattr(model, "table", None)) is not None:
        table.restore(model.transformer_blocks, torch.device("cpu"))
        model.table = None
    try:
        yield model
    finally:
        if table is not None:
            model.table = type(table)(model.transformer_blocks)
        if hasattr(model, "forget_tables"):
            model.forget_tables()


def _inject(transformer: Any, name: str, settings: Mapping[str, Any], empty: bool = False) -> None:
    """Wrap modules for an adapter. empty: in no memory, to be filled."""
    from peft import LoraConfig, inject_adapter_in_model

    uniform = {**settings, "rank_pattern": {}, "alpha_pattern": {}, "target_modules": list(settings["target_modules"])}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # a second adapter is no mistake
        inject_adapter_in_model(LoraConfig(**uniform), transformer, name, low_cpu_mem_usage=empty)
    # `_fill` sets ranks and alphas: matching hundreds of patterns with hundreds of modules would take minutes. What
    # diffusers and peft read later has them all.
    transformer.peft_config[name] = LoraConfig(**settings)
    transformer._hf_peft_config_loaded = True  # diffusers' own methods ask for it


def _fill(layer: Any, name: str, factors: Factors, dtype: torch.dtype) -> None:
    """Give a module its factors, where its weight is and in the dtype that it computes in, by default `dtype`."""
    base = layer.get_base_layer().weight
    dtype = base.dtype if base.dtype in FLOATS else dtype

    def parameter(value: Tensor) -> nn.Parameter:
        return nn.Parameter(value.to(base.device, dtype), requires_grad=False)

    down, up = layer.lora_A[name], layer.lora_B[name]
    down.weight, up.weight = parameter(factors.down), parameter(factors.up)
    down.out_features = up.in_features = layer.r[name] = factors.rank
    layer.lora_alpha[name] = factors.alpha
    if factors.magnitude is not None:
        layer.lora_magnitude_vector[name].weight = parameter(factors.magnitude)


def _activate(transformer: nn.Module) -> None:
    """Weigh the adapters, and let those of another weight than 0 take part. What trains goes on training."""
    files = applied(transformer)
    for layer in _layers(transformer).values():
        training = [name for name, down in layer.lora_A.items() if down.weight.requires_grad]  # peft changes that
        for file in files:
            layer.set_scale(file.name, file.weight)
        layer.set_adapter([file.name for file in files if file.weight], inference_mode=True)
        layer.set_requires_grad(training)


def _factors(layer: Any, name: str) -> Factors:
    """An adapter of a module as it is, whatever its weight."""
    lengths = layer.lora_magnitude_vector
    magnitude = lengths[name].weight if name in lengths else None
    return Factors(layer.lora_A[name].weight, layer.lora_B[name].weight, layer.lora_alpha[name], magnitude)
