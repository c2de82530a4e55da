"""`omnialpha doctor`: what this machine has, where the model is, and whether two steps of it work."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from typing import Any

from omnialpha import __version__
from omnialpha.apps.execute import load
from omnialpha.apps.options import Options
from omnialpha.errors import InputError

PACKAGES = ("torch", "diffusers", "transformers")


def examine(options: Options) -> bool:
    """Prints the findings, as JSON if so wanted; True where all is well."""
    found: dict[str, Any] = {
        "omnialpha": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    found |= {name: importlib.metadata.version(name) for name in PACKAGES}
    found |= machine()
    try:
        found |= {"model": model_card(options.model)} | self_test(options)
        found["problem"] = None
    except InputError as error:
        found["problem"] = str(error)
    if options.json:
        print(json.dumps(found))
    else:
        show(found)
    return found["problem"] is None


def machine() -> dict[str, Any]:
    """Devices that torch can use, the best first; threads; memory in GiB where the system tells."""
    import torch

    devices = []
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        devices.append(f"cuda:{i} ({about.name}, {about.total_memory / 2**30:.0f} GiB)")
    devices += ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    memory = None
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return {"devices": devices, "threads": torch.get_num_threads(), "memory_gib": memory}


def model_card(where: str | None) -> dict[str, Any]:
    """Folder, size on disk in MiB and settings of the model."""
    from omnialpha.models.checkpoints import Card, locate

    folder = locate(where)
    card = Card.read(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    defaults = {name: f"{d.steps} steps, guidance {d.guidance:g}" for name, d in card.sampling.items()}
    return {
        "name": card.name,
        "license": card.license,
        "folder": str(folder),
        "mib": round(size / 2**20, 1),
        "picture_pixels": card.grid.picture_pixels,
        "sampling": defaults,
    }


def self_test(options: Options) -> dict[str, Any]:
    """Seconds to load the model and to cut a disk out of a gradient in two steps."""
    import torch

    from omnialpha.tasks import TASKS

    began = time.monotonic()
    model = load(options)
    loaded = time.monotonic()
    height, width = model.native_size()
    rows, columns = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None]
    disk = ((rows**2 + columns**2) < 0.25).float()
    picture = torch.stack([disk, (rows + 1).expand_as(disk) / 2, 1 - disk, torch.ones_like(disk)])
    made = model.run([TASKS["matting_auto"].example(composite=picture)], steps=2)[0][0].rgba
    assert made.shape == picture.shape, f"the self-test made {tuple(made.shape)} of {tuple(picture.shape)}"
    if not bool(made.isfinite().all()):
        raise InputError(f"the model {model.card.name} makes NaN on {model.device}: use --device cpu.")
    times = {"load": round(loaded - began, 2), "two_steps": round(time.monotonic() - loaded, 2)}
    return {"device": str(model.device), "seconds": times}


def show(found: dict[str, Any]) -> None:
    """Name and value, one line each; nested values behind their names."""
    for name, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
        print(f"{name:<13} {_plain(value)}")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{k}: {v}" for k, v in value.items())
    return ", ".join(value) if isinstance(value, list) else "none" if value is None else str(value)
