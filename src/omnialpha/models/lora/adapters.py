"""LoRA on the transformer, by peft: apply and swap files, weigh, fuse, switch off, and add, train and save new ones.

An adapter computes beside the weight it adapts, W x + weight * alpha / r * up (down x), in the dtype of the base: two
thin products, and, as peft writes it, three passes over the output. One of weight 0 takes no part. DoRA builds the
whole changed weight in every call, so fuse it before a long run.

Apply before a model is placed, quantised or compiled. Every function tells the transformer to forget what it has
computed from its weights (`forget_tables`, where it has one).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omnialpha.errors import InputError
from omnialpha.models.lora import files as lora_files
from omnialpha.models.lora import layers as lora_layers
from omnialpha.models.lora.adapter_file import AdapterFile, Settings, describe
from omnialpha.models.lora.layers import with_all_modules
from omnialpha.models.lora.names import find_targets

APPLIED = "adapters"  # the attribute of a transformer that holds what is on it: AdapterFile by name


# ---- on a model ----------------------------------------------------------------------------------------------------


def applied(transformer: nn.Module) -> tuple[AdapterFile, ...]:
    """The adapters on the model, in order; the path of one that was added for training is empty."""
    return tuple(_files(transformer).values())


@with_all_modules
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
    shapes = {name: (own.out_features, own.in_features) for name, own in lora_layers.linears(transformer).items()}
    named: dict[str, AdapterFile] = {}
    for file in files:
        name = next(name for name in _numbered(file.name) if name not in named)
        named[name] = replace(describe(file), name=name)
    loras = [lora_files.read(file.path, shapes) for file in named.values()]
    transformer.unload_lora()  # type: ignore[operator]
    vars(transformer)[APPLIED] = named
    for name, lora in zip(named, loras, strict=True):
        lora_layers.inject(transformer, name, lora_files.peft_settings(lora), empty=True)
        for module, factors in lora.items():
            lora_layers.fill(transformer.get_submodule(module), name, factors, transformer)
    set_weights(transformer, {})
    return tuple(named.values())


@with_all_modules
def set_weights(transformer: nn.Module, weights: Mapping[str, float]) -> None:
    """Weigh adapters by name, without reading files; the others stay as they are.

    Args:
        transformer: a model with adapters.
        weights: by name; 0 takes an adapter out of the computation.

    Raises:
        InputError: a name that is not on the model.
    """
    files = _files(transformer)
    known = {_known(transformer, name): weight for name, weight in weights.items()}
    files.update({name: replace(files[name], weight=weight) for name, weight in known.items()})
    for layer in lora_layers.layers(transformer).values():
        for name, file in files.items():
            layer.set_scale(name, file.weight)
    lora_layers.activate(transformer, [name for name, file in files.items() if file.weight])


@contextmanager
def disable(transformer: nn.Module, *names: str) -> Iterator[None]:
    """Run without the named adapters, or without any, as the reference policy of reinforcement learning.

    Args:
        transformer: a model with adapters; what trains keeps training.
        names: of adapters; none for all.
    """
    without = {_known(transformer, name) for name in names} or _files(transformer).keys()
    before: list[str] = next((layer.active_adapters for layer in lora_layers.layers(transformer).values()), [])
    lora_layers.activate(transformer, [name for name in before if name not in without])
    try:
        yield
    finally:
        lora_layers.activate(transformer, before)


@with_all_modules
@torch.no_grad()
def fuse(transformer: nn.Module) -> None:
    """Add the adapters in use to the weights, summed in float32 and rounded once, and free them.

    There is no way back, since that would take a copy of the weights: load the base again.

    Raises:
        InputError: a weight is quantised, sharded or offloaded; nothing is changed then.
    """
    layers = lora_layers.layers(transformer)
    for module, layer in layers.items():
        weight = layer.get_base_layer().weight
        if type(weight.data) is not Tensor or weight.dtype not in lora_layers.FLOATS or weight.is_meta:
            raise InputError(f"{module} is quantised, sharded or offloaded: fuse LoRA before that, or do not fuse it.")
    for layer in layers.values():
        weight = layer.get_base_layer().weight
        exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
        names = [name for name in layer.active_adapters if name in layer.lora_A]
        weight.copy_(exact + sum(lora_layers.delta(layer, name, exact) for name in names))
    transformer.unload_lora()  # type: ignore[operator]
    _files(transformer).clear()


# ---- training ------------------------------------------------------------------------------------------------------


@with_all_modules
def add(
    transformer: nn.Module,
    rank: int,
    alpha: float | None = None,
    targets: str | Sequence[str] = "attention+mlp",
    dropout: float = 0.0,
    dora: bool = False,
    skip_unused: bool = True,
    name: str = "default",
) -> list[nn.Parameter]:
    """Add an adapter that changes nothing yet, and make it trainable.

    Args:
        transformer: the model.
        rank: from 1.
        alpha: the result counts alpha / rank; by default the rank.
        targets: a name of `names.TARGETS`, or endings of module names.
        dropout: share of the inputs that is dropped, in [0, 1).
        dora: whether the lengths of the rows are trained too (DoRA, arXiv 2402.09353).
        skip_unused: whether modules whose result nothing reads are left out.
        name: of the adapter.

    Returns:
        The parameters to train, as `train` does.

    Raises:
        InputError: a value out of range, a name that is taken, or targets that match nothing.
    """
    if rank < 1 or not 0 <= dropout < 1:
        raise InputError(f"LoRA of rank {rank}, dropout {dropout:g}: use a rank from 1 and a dropout in [0, 1).")
    file = AdapterFile(Path(), name=name)
    if name in _files(transformer):
        raise InputError(f"a LoRA named {name!r} is on the model already: use another name.")
    modules = find_targets(targets, lora_layers.linears(transformer))
    if skip_unused:
        unused = lora_layers.unused_parameters(transformer)
        modules = [module for module in modules if not any(key.startswith(f"{module}.") for key in unused)]
    settings = {"r": rank, "lora_alpha": alpha or rank, "target_modules": modules, "use_dora": dora}
    lora_layers.inject(transformer, name, {**settings, "lora_dropout": dropout})
    _files(transformer)[name] = file
    set_weights(transformer, {})
    return train(transformer, name)


@with_all_modules
@torch.no_grad()
def load(transformer: nn.Module, name: str, path: Path) -> None:
    """Give an adapter that is on the model the values of a file; what is trained of it stays so.

    Args:
        transformer: a model with adapters.
        name: of the adapter.
        path: a file or folder with a LoRA of the same modules, rank and alpha.

    Raises:
        InputError: the file is missing, damaged, or of another shape.
    """
    shapes = {key: (own.out_features, own.in_features) for key, own in lora_layers.linears(transformer).items()}
    given, own = lora_files.read(path, shapes), lora_layers.factors(transformer, _known(transformer, name))
    for module in given.keys() | own.keys():
        one, other = given.get(module), own.get(module)
        if one is None or other is None or (one.rank, one.alpha) != (other.rank, other.alpha):
            raise InputError(
                f"LoRA {path} differs at {module} in targets, rank or alpha: give [lora] those of the file."
            )
        for value, parameter in zip((one.down, one.up), (other.down, other.up), strict=True):
            parameter.copy_(value)


@with_all_modules
@torch.no_grad()
def copy(transformer: nn.Module, source: str, name: str) -> None:
    """Copy an adapter to a new one, which is not trained: a policy as it was.

    Args:
        transformer: a model with adapters.
        source: the adapter; its parameters keep their `requires_grad`.
        name: of the copy, which is in use beside it: see `disable`.

    Raises:
        InputError: no such adapter, or a name that is taken.
    """
    if name in _files(transformer):
        raise InputError(f"a LoRA named {name!r} is on the model already: use another name.")
    file = _files(transformer)[_known(transformer, source)]
    trained = {key for key, parameter in transformer.named_parameters() if parameter.requires_grad}
    factors = lora_layers.factors(transformer, source)
    lora_layers.inject(transformer, name, lora_files.peft_settings(factors), empty=True)
    for module, own in factors.items():
        lora_layers.fill(transformer.get_submodule(module), name, own, transformer)
    for key, parameter in transformer.named_parameters():
        if f".{name}." in key:
            parameter.data = parameter.data.float().clone()  # not the source's own memory
        parameter.requires_grad_(key in trained)
    _files(transformer)[name] = replace(file, name=name)
    set_weights(transformer, {})


@with_all_modules
def train(transformer: nn.Module, name: str) -> list[nn.Parameter]:
    """Make one adapter trainable, in float32, and nothing else.

    Args:
        transformer: a model with adapters.
        name: of the adapter.

    Returns:
        Its parameters that get a gradient.
    """
    own = re.compile(rf"\.lora_\w+\.{_known(transformer, name)}(\.|$)")
    unused = lora_layers.unused_parameters(transformer)
    transformer.requires_grad_(False)
    found = {key: parameter for key, parameter in transformer.named_parameters() if own.search(key)}
    for key, parameter in found.items():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(key not in unused)
    return [parameter for parameter in found.values() if parameter.requires_grad]


@with_all_modules
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
        InputError: no such adapter, or several and none is named.
    """
    files = _files(transformer)
    if adapter is None and len(files) != 1:
        raise InputError(f"the model has {len(files)} LoRAs ({', '.join(files) or 'none'}): name one.")
    name = _known(transformer, adapter or next(iter(files)))
    factors = lora_layers.factors(transformer, name)
    return lora_files.write(Path(path), factors, _header(settings or files[name]))


def _files(transformer: nn.Module) -> dict[str, AdapterFile]:
    return vars(transformer).setdefault(APPLIED, {})


def _known(transformer: nn.Module, name: str) -> str:
    names = list(_files(transformer))
    if name not in names:
        near = get_close_matches(name, names, n=1, cutoff=0.0)
        raise InputError(
            f"no LoRA {name!r} is on the model: " + (f"did you mean {near[0]!r}?" if near else "apply it.")
        )
    return name


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}-{number}" for number in count(2))


def _header(settings: Settings) -> dict[str, Any]:
    """Sampling settings as JSON holds them, without those that say nothing."""
    values = asdict(settings)
    return {field.name: values[field.name] for field in fields(Settings) if values[field.name] is not None}
