"""LoRA files: read in every naming in use into factors that are checked against the model, written in diffusers'."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.files import atomic_write
from omnialpha.models.checkpoints.headers import read_header
from omnialpha.models.lora.names import Modules, split, unfused

FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
DIFFUSERS_CONFIG = "lora_adapter_metadata"  # in a file's header: the settings of peft as JSON, each key with a prefix
OURS = "omnialpha"  # in a file's header: the sampling settings that the LoRA brings, as JSON
PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")  # of training, that leave the base as it was
Shapes = Mapping[str, tuple[int, int]]  # of a model's linear modules by name: (out, in)


@dataclass(frozen=True)
class Factors:
    """The low-rank change of one weight W (out, in): W + alpha / r * up @ down, with down (r, in), up (out, r).

    magnitude (out,), for DoRA: the lengths that the rows of that sum are given.
    """

    down: Tensor
    up: Tensor
    alpha: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def delta(self, weight: Tensor, scale: float = 1.0) -> Tensor:
        """The change (out, in) that is added to the weight W (out, in), on its device and in its dtype, times scale."""
        down, up = self.down.to(weight), self.up.to(weight)
        low_rank = scale * self.alpha / self.rank * (up @ down)
        if self.magnitude is None:
            return low_rank
        changed = weight + low_rank
        return (self.magnitude.to(weight) / changed.norm(dim=1))[:, None] * changed - weight


def find_file(path: Path) -> Path:
    """The weights that a path means: a file, or the one in a folder."""
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        named = [file for file in files if file.name in (FILE, PEFT_FILE)]
        if len(named or files) != 1:
            names = ", ".join(file.name for file in named or files) or "none"
            raise InputError(f"LoRA folder {path} must hold one .safetensors file, it holds {names}: name the file.")
        return (named or files)[0]
    if not path.is_file():
        raise InputError(f"LoRA {path} does not exist: check the path, the weight after ':' and the preset after '@'.")
    if path.suffix != ".safetensors":
        raise InputError(f"LoRA {path} is not a .safetensors file: convert it, other formats can run code.")
    return path


def read(path: Path, shapes: Shapes) -> dict[str, Factors]:
    """Factors by module of a file or folder in any naming. InputError names file, key, found and wanted."""
    file = find_file(path)
    header = read_header(file).metadata
    try:
        tensors = unfused(load_file(file), shapes)
        return _gather(tensors, _config(file, header, tensors), shapes)
    except InputError as error:
        raise InputError(f"LoRA {file}: {error}") from None


def read_settings(file: Path) -> dict[str, Any]:
    """The sampling settings in a file's header, as written; {} where there are none."""
    return _json(read_header(file).metadata.get(OURS, "{}"), f"{OURS!r} in its header")


def _config(file: Path, header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings of peft, from the file's header or from beside it; {} where there are none."""
    config_file = file.with_name(PEFT_CONFIG)
    if DIFFUSERS_CONFIG in header:
        config = _json(header[DIFFUSERS_CONFIG], f"{DIFFUSERS_CONFIG!r} in its header")
        config = {key.removeprefix("transformer."): value for key, value in config.items()}
    elif config_file.is_file() and (file.name == PEFT_FILE or any(key.startswith("base_model.") for key in tensors)):
        config = _json(config_file.read_text(), PEFT_CONFIG)
    else:
        return {}
    start = config.get("init_lora_weights")
    if start not in PLAIN_STARTS:
        raise InputError(f"it was trained from init_lora_weights={start!r}, which changes the base: convert it first.")
    return config


def _json(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{what} is not valid JSON ({error}): restore it.") from None
    if not isinstance(value, dict):
        raise InputError(f"{what} holds {value!r}, not a table: restore it.")
    return value


def _gather(tensors: Mapping[str, Tensor], config: Mapping[str, Any], shapes: Shapes) -> dict[str, Factors]:
    """Factors by module from all tensors of a file, every one of which must find its place."""
    modules = Modules(shapes)
    found: dict[str, dict[str, tuple[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        name, part = split(key)
        parts = found.setdefault(modules.find(name, key), {})
        if part in parts:
            raise InputError(f"keys {parts[part][0]!r} and {key!r} are the same part of one module: remove one.")
        if not tensor.isfinite().all():
            raise InputError(f"key {key!r} holds NaN or infinity: the training went wrong, use another file.")
        parts[part] = (key, tensor)
    if not found:
        raise InputError("it holds no tensor: use another file.")
    dora = config.get("use_dora") or any("magnitude" in parts for parts in found.values())
    for parts in found.values():
        for part in ("down", "up", "magnitude") if dora else ("down", "up"):
            if part not in parts:
                key = next(iter(parts.values()))[0]
                raise InputError(f"key {key!r} lacks its other part ({part}): the file is incomplete, get it again.")
    return {module: _factors(module, parts, config, shapes) for module, parts in found.items()}


def _factors(
    module: str, parts: Mapping[str, tuple[str, Tensor]], config: Mapping[str, Any], shapes: Shapes
) -> Factors:
    """The parts of one module as factors, of the right shapes."""
    rows, columns = shapes[module]
    made = {part: tensor for part, (_, tensor) in parts.items()}
    rank = made["down"].shape[0] if made["down"].ndim else 0
    if "magnitude" in made and made["magnitude"].shape == (rows, 1):
        made["magnitude"] = made["magnitude"][:, 0]  # kohya's
    for part, want in {"down": (rank, columns), "up": (rows, rank), "magnitude": (rows,)}.items():
        if part in made and (made[part].shape != want or not rank):
            raise InputError(
                f"key {parts[part][0]!r} is of shape {tuple(made[part].shape)}, for {module} of {rows} x {columns} and "
                f"rank {rank} it must be {want}: use a LoRA that was made for this model."
            )
    alpha = float(rank)  # the default, as in diffusers
    if "alpha" in made:
        if made["alpha"].numel() != 1:
            shape = tuple(made["alpha"].shape)
            raise InputError(f"key {parts['alpha'][0]!r} is of shape {shape}, it must be one number: use another file.")
        alpha = float(made["alpha"])
    elif config:
        alpha = _alpha(module, rank, config, shapes)
    return Factors(made["down"], made["up"], alpha, made.get("magnitude"))


def _alpha(module: str, rank: int, config: Mapping[str, Any], shapes: Shapes) -> float:
    """Alpha of a module by peft's settings, whose patterns are regular expressions on the end of its name."""
    from peft.utils.other import get_pattern_key

    def setting(patterns: str, default: str) -> float:
        own: dict[str, float] = config.get(patterns) or {}
        if exact := {module, "^" + module} & own.keys():
            return float(own[exact.pop()])
        loose = [pattern for pattern in own if pattern.removeprefix("^") not in shapes]  # hundreds of names are slow
        return float(own.get(get_pattern_key(loose, module), config.get(default, rank)))

    if (stated := setting("rank_pattern", "r")) != rank:
        raise InputError(
            f"{module} is of rank {rank}, its settings say {stated:g}: use weights and settings of one LoRA."
        )
    alpha = setting("alpha_pattern", "lora_alpha")
    return alpha * rank**0.5 if config.get("use_rslora") else alpha  # rsLoRA divides by sqrt(r)


def peft_settings(factors: Mapping[str, Factors]) -> dict[str, Any]:
    """Arguments of a peft LoraConfig that make these modules with their ranks and alphas."""
    ranks, alphas = ([getattr(f, part) for f in factors.values()] for part in ("rank", "alpha"))
    rank, alpha = (max(set(values), key=values.count) for values in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{name}": f.rank for name, f in factors.items() if f.rank != rank},
        "alpha_pattern": {f"^{name}": f.alpha for name, f in factors.items() if f.alpha != alpha},
        "target_modules": sorted(factors),
        "use_dora": any(f.magnitude is not None for f in factors.values()),
    }


def write(path: Path, factors: Mapping[str, Factors], settings: Mapping[str, Any]) -> Path:
    """Write factors by module with diffusers' names, whole or not at all; ranks, alphas and sampling settings go into
    the header. path: the file, or a folder if it has no suffix. Returns the file.
    """
    if path.suffix != ".safetensors":
        path = path / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    config = {f"transformer.{key}": value for key, value in peft_settings(factors).items()}
    header = {"format": "pt", DIFFUSERS_CONFIG: json.dumps(config)}
    if settings:
        header[OURS] = json.dumps(settings)
    state: dict[str, Tensor] = {}
    for module, own in factors.items():
        state |= {f"transformer.{module}.lora_A.weight": own.down, f"transformer.{module}.lora_B.weight": own.up}
        if own.magnitude is not None:
            state[f"transformer.{module}.lora_magnitude_vector"] = own.magnitude
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    atomic_write(path, lambda temporary: save_file(state, temporary, header))
    return path
