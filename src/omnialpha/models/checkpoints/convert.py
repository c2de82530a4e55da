"""From any folders that make a model to one folder: ours, or one that is a diffusers pipeline as well.

Weights that stay as they are become hard links where the file system allows, copies elsewhere: 58 GB take a moment and
no room. What changes, also by a LoRA that is added to it, is read a tensor and written a shard at a time: memory holds
a shard, and the LoRA.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import safe_open
from safetensors.torch import save_file

from omnialpha.errors import InputError
from omnialpha.files import atomic_folder
from omnialpha.models.checkpoints.card import CARD, INDEX, Card, read_json, write_json
from omnialpha.models.checkpoints.checking import check, check_component
from omnialpha.models.checkpoints.folders import Parts, resolve
from omnialpha.models.checkpoints.headers import DIFFUSERS_STEM, read_weights, weight_files
from omnialpha.models.families import FAMILIES, Component
from omnialpha.models.lora import files as lora_files
from omnialpha.models.lora.adapters import shapes_of

Layout = Literal["ours", "diffusers"]
SMALL = (".json", ".txt", ".jinja", ".model")  # suffixes of the files that go with weights
SHARD = 5 * 10**9  # bytes of a file that is written, a tensor at least
Additions = dict[str, list[tuple[lora_files.Factors, float]]]  # LoRAs and their weights, by the name of a weight
TYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
PIPELINE = {
    "_class_name": "QwenImageEditPlusPipeline",
    "processor": ["transformers", "Qwen2VLProcessor"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "QwenImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLQwenImage"],
}


def convert(
    parts: Parts,
    destination: str | Path,
    *,
    layout: Layout = "ours",
    fuse: bool = False,
    dtype: torch.dtype | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write `parts` as one model folder, whole or not at all, and open it again.

    Args:
        fuse: add the LoRA to the weights; a folder of ours can keep it beside them instead.
        dtype: of all weights, None keeps each as it is.
        force: replace a model folder that is there.
        say: called with what is written next.
    """
    if layout not in get_args(Layout):
        raise InputError(f"layout {layout!r} is not known: use {' or '.join(get_args(Layout))}.")
    destination = Path(destination).expanduser().absolute()
    _check_destination(destination, parts, force)
    check(parts)
    family = FAMILIES[parts.card.family]
    if layout == "diffusers":
        _check_expressible(parts, fuse)
    with atomic_folder(destination) as new:
        for name in family.text_folders:
            _copy(parts.text / name, new / name, dtype, family.components.get(name))
        say("vae")
        if layout == "ours":
            _copy(parts.vae, new / "vae", dtype, family.components["vae"])
        else:
            _diffusers_vae(parts.vae, new / "vae", dtype)
        say("transformer")
        additions = _additions(parts) if fuse else {}
        _copy(parts.transformer, new / "transformer", dtype, family.components["transformer"], additions)
        changes: dict[str, Any] = {"adapters": {} if fuse else _keep_adapters(parts, new)}
        if dtype is not None:
            changes["dtype"] = str(dtype).removeprefix("torch.")
        dataclasses.replace(parts.card, **changes).write(new)
        if layout == "diffusers":
            _finish_pipeline(parts.card, new)
        check(resolve(new))
    return destination


# ---- before ----------------------------------------------------------------------------------------------------


def _check_destination(destination: Path, parts: Parts, force: bool) -> None:
    files = [file.path for file in parts.adapters]
    for source in (parts.transformer, parts.vae, parts.text / "text_encoder", *files):
        if destination in source.absolute().parents or destination in source.resolve().parents:
            raise InputError(f"{destination} holds {source}, which is converted: choose another folder.")
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        return
    if not force:
        raise InputError(f"{destination} exists: choose another folder, or replace it with --force.")
    if not any((destination / name).is_file() for name in (CARD, INDEX)):
        raise InputError(f"{destination} is no model folder, so it is not replaced: choose another.")


def _check_expressible(parts: Parts, fuse: bool) -> None:
    """InputError for what a diffusers pipeline has no place for."""
    vae = read_json(parts.vae / "config.json")
    own = [key for key in ("linear_skip", "premultiplied") if vae.get(key)]
    own += ["patch_size"] * (vae.get("patch_size", 1) != 1)
    reasons = (
        vae["_class_name"] == "AutoencoderKL" and "its VAE is a FLUX one",
        own and f"its VAE has {', '.join(own)}",
        parts.card.prediction != "velocity" and f"it predicts {parts.card.prediction}",
        parts.adapters and not fuse and "a LoRA stays beside it (use --fuse)",
    )
    if reason := next(filter(None, reasons), None):
        raise InputError(f"{parts.card.name} cannot become a diffusers pipeline, as {reason}: use --layout ours.")


# ---- the parts -------------------------------------------------------------------------------------------------


def _copy(
    source: Path,
    target: Path,
    dtype: torch.dtype | None,
    component: Component | None,
    additions: Additions | None = None,
) -> None:
    """The files of a folder: weights linked, or written as `dtype` and with additions; all others copied."""
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.suffix in SMALL:
            shutil.copyfile(path, target / path.name)
    if component is not None and (dtype or additions):
        _rewrite(source, target, component.stem, dtype, additions or {})
    elif component is not None:
        for path in weight_files(source, component.stem):
            link(path, target / path.name)
    if component is not None and dtype is not None:  # of which a file beside the weights may speak
        config = read_json(target / "config.json")
        stale = dict.fromkeys(config.keys() & {"dtype", "torch_dtype"}, str(dtype).removeprefix("torch."))
        write_json(target / "config.json", config | stale)


def _rewrite(source: Path, target: Path, stem: str, dtype: torch.dtype | None, additions: Additions) -> None:
    """Weights with additions, summed in float32 and rounded once, in new shards with their index."""
    entries = read_weights(source, stem)
    plan = split_state_dict_into_shards_factory(
        entries,
        get_storage_size=lambda entry: math.prod(entry.shape) * (dtype or getattr(torch, TYPES[entry.dtype])).itemsize,
        filename_pattern=f"{stem}{{suffix}}.safetensors",
        max_shard_size=SHARD,
    )
    index = target / f"{stem}.safetensors.index.json"
    index.unlink(missing_ok=True)
    for name, keys in plan.filename_to_tensors.items():
        state = {}
        for key in keys:
            with safe_open(entries[key].file, framework="pt") as file:
                weight = file.get_tensor(key)
            if change := additions.get(key):
                exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
                weight = (exact + sum(one.delta(exact, scale) for one, scale in change)).to(dtype or weight.dtype)
            state[key] = weight.to(dtype) if dtype and weight.is_floating_point() else weight
        save_file(state, target / name, {"format": "pt"})
    if plan.is_sharded:
        write_json(index, {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename})


def _additions(parts: Parts) -> Additions:
    """What the adapters add, by the name of the weight."""
    model = check_component(parts.transformer, FAMILIES[parts.card.family].components["transformer"])
    shapes = shapes_of(model)
    found: Additions = {}
    for adapter in parts.adapters:
        for module, factors in lora_files.read(adapter.path, shapes).items() if adapter.weight else ():
            found.setdefault(f"{module}.weight", []).append((factors, adapter.weight))
    return found


def link(source: Path, target: Path) -> None:
    """Hard link, or copy where the file system has none or is another."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _keep_adapters(parts: Parts, new: Path) -> dict[str, float]:
    """The LoRA files in folders of their own, with the settings that peft writes beside them: names to weights."""
    kept = {}
    for number, file in enumerate(parts.adapters, start=1):
        folder = new / "adapters" / f"{number}-{file.name}"
        folder.mkdir(parents=True)
        link(file.path, folder / file.path.name)
        config_file = file.path.with_name(lora_files.PEFT_CONFIG)
        if config_file.is_file():
            shutil.copyfile(config_file, folder / config_file.name)
        kept[(folder / file.path.name).relative_to(new).as_posix()] = file.weight
    return kept


def _diffusers_vae(source: Path, target: Path, dtype: torch.dtype | None) -> None:
    """The VAE as diffusers' AutoencoderKLQwenImage, with three or four channels."""
    from omnialpha.models.vae.alphavae import AlphaVAE

    config = read_json(source / "config.json")
    if config["_class_name"] == "AlphaVAE":
        AlphaVAE.load(source).export(target, dtype=dtype)
        return
    _copy(source, target, dtype, FAMILIES["qwen"].components["vae"])
    channels = read_weights(target, DIFFUSERS_STEM)["encoder.conv_in.weight"].shape[1]
    config = {key: value for key, value in config.items() if key not in ("in_channels", "out_channels")}
    write_json(target / "config.json", config | {"_class_name": "AutoencoderKLQwenImage", "input_channels": channels})


def _finish_pipeline(card: Card, new: Path) -> None:
    """What a diffusers pipeline has beside its parts."""
    import diffusers

    shift = card.shift
    scheduler = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "base_image_seq_len": shift.base_tokens,
        "base_shift": shift.base,
        "max_image_seq_len": shift.maximum_tokens,
        "max_shift": shift.maximum,
        "shift": 1.0 if shift.fixed is None else math.exp(shift.fixed),
        "shift_terminal": shift.terminal or None,
        "time_shift_type": "exponential",
        "use_dynamic_shifting": shift.fixed is None,
    }
    (new / "scheduler").mkdir()
    write_json(new / "scheduler" / "scheduler_config.json", scheduler)
    write_json(new / INDEX, PIPELINE | {"_diffusers_version": diffusers.__version__})
    config = new / "transformer" / "config.json"
    write_json(config, read_json(config) | {"_class_name": "QwenImageTransformer2DModel"})
    for path in (new / "tokenizer").iterdir():  # diffusers' processor brings its own
        if not (new / "processor" / path.name).exists():
            shutil.copyfile(path, new / "processor" / path.name)
