"""What is wrong with a checkpoint, found before anything large is built, from its small files and headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from omnialpha.errors import InputError
from omnialpha.models.checkpoints.card import AGAIN, read_json
from omnialpha.models.checkpoints.folders import Parts
from omnialpha.models.checkpoints.headers import TensorInfo, read_header, read_weights
from omnialpha.models.families import FAMILIES, Component

FLOATS = ("F64", "F32", "F16", "BF16")


def check(parts: Parts, gguf: Path | None = None) -> dict[str, Any]:
    """Check that the parts of a model are whole and of one model, before anything large is built.

    Args:
        parts: their folders.
        gguf: a file with the transformer's weights, in the place of those in its folder.

    Returns:
        The modules of the components, in no memory.

    Raises:
        InputError: the first thing that would keep the parts from loading, or from fitting each other. It names the
            file, the key, the shape found and the shape wanted.
    """
    family = FAMILIES[parts.card.family]
    folders = {"transformer": parts.transformer, "vae": parts.vae}
    folders |= {name: parts.text / name for name in family.components if name not in folders}
    modules = {
        name: check_component(folders[name], component, gguf if name == "transformer" else None)
        for name, component in family.components.items()
    }
    for name, files in family.files.items():
        if not any((parts.text / name / file).is_file() for file in files):
            raise InputError(f"{parts.text / name} holds no {' and no '.join(files)}: {AGAIN}.")
    for adapter in parts.adapters:
        read_header(adapter.path)
    for setting, other, gives in family.channels:
        own = modules["transformer"].config
        takes, given = own[setting], gives(modules[other].config, own)
        if takes != given:
            raise InputError(
                f"{folders['transformer']} takes {takes} channels and {folders[other]} gives {given}: "
                "use parts of one model."
            )
    return modules


def check_component(folder: Path, component: Component, gguf: Path | None = None) -> Any:
    """Check a component's files, or a GGUF one, against its config.json; the module they fill, in no memory."""
    config = read_json(folder / "config.json")
    cls = str(config.get(component.key))
    if cls not in component.classes:
        raise InputError(f"{folder / 'config.json'} is of a {cls}: use one of {', '.join(component.classes)}.")
    entries = _gguf_entries(gguf) if gguf else read_weights(folder, component.stem)
    found = {name: entry for key, entry in entries.items() if (name := component.name(key)) is not None}
    with torch.device("meta"):
        module = component.build(config, found)
    wanted = {component.name(key) or key: tuple(value.shape) for key, value in module.state_dict().items()}
    _compare(gguf or folder, found, wanted)
    return module


def _compare(folder: Path, found: Mapping[str, TensorInfo], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """InputError for the first tensor that is missing, of the wrong shape, quantised, or that nothing would take."""
    if missing := [key for key in wanted if key not in found]:
        raise InputError(f"{folder} lacks {len(missing)} of {len(wanted)} weights, the first is {missing[0]}: {AGAIN}.")
    for key, shape in wanted.items():
        entry = found[key]
        if entry.shape != shape:
            raise InputError(
                f"{entry.file} holds {key} of shape {entry.shape}, but config.json beside it makes it {shape}: {AGAIN}."
            )
        if entry.dtype not in FLOATS:
            raise InputError(
                f"{entry.file} holds {key} as {entry.dtype}: use the weights in bf16, and quantise them on loading."
            )
    if extra := [key for key in found if key not in wanted]:
        raise InputError(
            f"{found[extra[0]].file} holds {extra[0]} ({len(extra)} such), which no part of the model takes: "
            "use weights and config.json of one model."
        )


def _gguf_entries(file: Path) -> dict[str, TensorInfo]:
    """Whatever the bits, the loader takes them."""
    from omnialpha.models.runtime.quantize import read_gguf

    return {name: TensorInfo(FLOATS[0], shape, file) for name, shape in read_gguf(file)[0].items()}
