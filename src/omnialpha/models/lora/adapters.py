"""LoRA on the transformer, by peft: apply and swap files, weigh, fuse, switch off, and add, train and save new ones.

An adapter computes beside the weight it adapts, W x + weight * alpha / r * up (down x), in the dtype of the base: two
thin products, and, as peft writes it, three passes over the output. One of weight 0 takes no part. DoRA builds the
whole changed weight in every call, so fuse it before a long run.

Apply before a model is placed, quantised or compiled. Every function tells the transformer to forget what it has
computed from its weights (`forget_tables`, where it has one).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omnialpha import config, sampling
from omnialpha.errors import InputError
from omnialpha.models.lora import files as lora_files
from omnialpha.models.lora import layers as lora_layers
from omnialpha.models.lora.layers import whole
from omnialpha.models.lora.names import find_targets
from omnialpha.sampling import Shift

APPLIED = "adapters"  # the attribute of a transformer that holds what is on it: AdapterFile by name


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a few-step LoRA was distilled for; None where it says nothing."""

    steps: int | None = None
    guidance: float | None = None
    shift: Shift | None = None


# lightx2v's Qwen-Image-Lightning and Qwen-Image-Edit-Lightning: an exponential shift by log 3 at every size, without a
# terminal time, and no guidance.
LIGHTNING = Settings(guidance=1.0, shift=Shift(fixed=math.log(3), terminal=0.0))
PRESETS = {f"lightning-{steps}": replace(LIGHTNING, steps=steps) for steps in (4, 8)}


@dataclass(frozen=True)
class AdapterFile(Settings):
    """A LoRA file or folder, how much of it, and under which name; by default that of the file or folder.

    Sampling settings that are not given are those in the file's header, if it has any.
    """

    path: Path
    weight: float = 1.0
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        if not math.isfinite(self.weight):
            raise InputError(f"weight {self.weight} of LoRA {self.path} is not a finite number: use 1 for all of it.")
        sampling.check(self.steps, self.guidance)
        usable = _usable(self.name or _default_name(self.path))
        if self.name not in ("", usable):
            raise InputError(f"LoRA name {self.name!r} cannot be used: use letters, digits, - and _, as {usable!r}.")
        object.__setattr__(self, "name", usable)

    @classmethod
    def parse(cls, text: str) -> AdapterFile:
        """From path[:weight][@preset]. A path that exists is taken whole; other colons and @ stay in the path."""
        weight, preset = 1.0, Settings()
        if not Path(text).exists():
            head, _, tail = text.rpartition("@")
            if head and tail in PRESETS:
                text, preset = head, PRESETS[tail]
        if not Path(text).exists():
            head, _, tail = text.rpartition(":")
            if head and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", tail.strip(), re.IGNORECASE):
                text, weight = head, float(tail)
        return cls(Path(text), weight, **vars(preset))


def _default_name(path: Path) -> str:
    """Of a file, or of the folder around one that is named as all are."""
    generic = path.name in (lora_files.FILE, lora_files.PEFT_FILE)
    return (path.parent.name if generic else path.name.removesuffix(".safetensors")) or "adapter"


def _usable(name: str) -> str:
    """As a module can be named: no dots, and nothing that a ModuleDict calls its own."""
    name = re.sub(r"[^\w-]+", "_", name)
    return f"{name}_" if hasattr(nn.ModuleDict(), name) else name


def describe(file: AdapterFile) -> AdapterFile:
    """With the path of the file itself, and the settings in its header where none were given. Reads no weights."""
    path = lora_files.find_file(file.path)
    try:
        own = config.build(Settings, lora_files.read_settings(path))
        sampling.check(own.steps, own.guidance)
    except InputError as error:
        raise InputError(f"LoRA {path}: sampling settings: {error}") from None
    unsaid = {field.name for field in fields(Settings) if getattr(file, field.name) is None}
    return replace(file, path=path, **{name: getattr(own, name) for name in unsaid})


def brought(files: Sequence[AdapterFile]) -> Settings:
    """The sampling settings that the files in use bring together; InputError where two disagree."""
    values: dict[str, Any] = {}
    for field in fields(Settings):
        given = {f.name: getattr(f, field.name) for f in files if f.weight and getattr(f, field.name) is not None}
        if len(set(given.values())) > 1:
            said = ", ".join(f"{name}: {value}" for name, value in given.items())
            raise InputError(f"LoRAs bring different {field.name} ({said}): use one of them.")
        values[field.name] = next(iter(given.values()), None)
    return Settings(**values)


# ---- on a model ----------------------------------------------------------------------------------------------------


def applied(transformer: nn.Module) -> tuple[AdapterFile, ...]:
    """What is on the model, in order; the path of one that was added for training is empty."""
    return tuple(_files(transformer).values())


@whole
def apply(transformer: nn.Module, files: Sequence[AdapterFile] = ()) -> tuple[AdapterFile, ...]:
    """Make `files` the adapters of the model, in place of any it has (trained ones too); () gives the base, bit by bit.

    All files are read and checked before anything changes. Returns them with the settings from their headers and with
    names that differ.
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


@whole
def set_weights(transformer: nn.Module, weights: Mapping[str, float]) -> None:
    """Weigh adapters by name, the others stay as they are. Weight 0 takes one out of the computation."""
    files = _files(transformer)
    known = {_known(transformer, name): weight for name, weight in weights.items()}
    files.update({name: replace(files[name], weight=weight) for name, weight in known.items()})
    for layer in lora_layers.layers(transformer).values():
        for name, file in files.items():
            layer.set_scale(name, file.weight)
    lora_layers.activate(transformer, [name for name, file in files.items() if file.weight])


@contextmanager
def disable(transformer: nn.Module, *names: str) -> Iterator[None]:
    """Without the named adapters, or without any: the reference policy. What trains keeps training."""
    without = {_known(transformer, name) for name in names} or _files(transformer).keys()
    before: list[str] = next((layer.active_adapters for layer in lora_layers.layers(transformer).values()), [])
    lora_layers.activate(transformer, [name for name in before if name not in without])
    try:
        yield
    finally:
        lora_layers.activate(transformer, before)


@whole
@torch.no_grad()
def fuse(transformer: nn.Module) -> None:
    """Add the adapters in use to the weights, summed in float32 and rounded once, and free them.

    There is no way back, since that would take a copy of the weights: load the base again.
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


@whole
def add(
    transformer: nn.Module,
    rank: int,
    alpha: float | None = None,
    targets: str | Sequence[str] = "attention+mlp",
    dropout: float = 0.0,
    dora: bool = False,
    skip_dead: bool = True,
    name: str = "default",
) -> list[nn.Parameter]:
    """A new adapter that changes nothing yet, beside those that are there; alpha = rank by default.

    targets: a name of lora_names.TARGETS or endings of module names. skip_dead: none where nothing reads the result.
    Returns the parameters to train, as `train` does.
    """
    if rank < 1 or not 0 <= dropout < 1:
        raise InputError(f"LoRA of rank {rank}, dropout {dropout:g}: use a rank from 1 and a dropout in [0, 1).")
    file = AdapterFile(Path(), name=name)
    if name in _files(transformer):
        raise InputError(f"a LoRA named {name!r} is on the model already: use another name.")
    modules = find_targets(targets, lora_layers.linears(transformer))
    if skip_dead:
        dead = lora_layers.dead(transformer)
        modules = [module for module in modules if not any(key.startswith(f"{module}.") for key in dead)]
    settings = {"r": rank, "lora_alpha": alpha or rank, "target_modules": modules, "use_dora": dora}
    lora_layers.inject(transformer, name, {**settings, "lora_dropout": dropout})
    _files(transformer)[name] = file
    set_weights(transformer, {})
    return train(transformer, name)


@whole
def train(transformer: nn.Module, name: str) -> list[nn.Parameter]:
    """Make one adapter trainable, in float32, and nothing else. Returns its parameters that get a gradient."""
    own = re.compile(rf"\.lora_\w+\.{_known(transformer, name)}(\.|$)")
    dead = lora_layers.dead(transformer)
    transformer.requires_grad_(False)
    found = {key: parameter for key, parameter in transformer.named_parameters() if own.search(key)}
    for key, parameter in found.items():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(key not in dead)
    return [parameter for parameter in found.values() if parameter.requires_grad]


@whole
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
