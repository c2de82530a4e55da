"""Small networks of our own in a folder: their sizes in config.json, their weights in one file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from omnialpha.errors import InputError

WEIGHTS, CONFIG = "model.safetensors", "config.json"
Network = TypeVar("Network", bound=nn.Module)


def write_network(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """What `read_network` reads, weights as `dtype`."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: value.detach().to("cpu", dtype).contiguous() for name, value in weights.items()}
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(dict(config), indent=2) + "\n")


def read_network(folder: Path, name: str, build: Callable[[dict[str, Any]], Network]) -> Network:
    """A frozen network in float32. build: from its config. Raises InputError, calling it by its name, where a file is
    damaged.
    """
    try:
        net = build(json.loads((folder / CONFIG).read_text()))
        net.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]  # torch lists every tensor
        raise InputError(f"the {name} in {folder} cannot be read ({reason}): get the model again.") from error
    return net.float().eval().requires_grad_(False)
