"""`omnialpha doctor`: what this machine has and can use, which models are here, and whether two steps of one work."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from pathlib import Path
from typing import Any

import typer

from omnialpha import __version__
from omnialpha.cli.options import Options
from omnialpha.cli.progress import silence_libraries
from omnialpha.cli.run_task import build_setup, load
from omnialpha.errors import InputError

PACKAGES = ("torch", "diffusers", "transformers")


def examine(options: Options) -> None:
    """Check the installation: versions, devices, the model, and two steps of it."""
    found: dict[str, Any] = {"omnialpha": __version__, "python": platform.python_version()}
    found |= {"system": platform.platform()} | {name: importlib.metadata.version(name) for name in PACKAGES}
    silence_libraries()
    found |= machine() | {"quantize": quantization()} | cache()
    try:
        found |= {"attention": attention(options.device), "model": model_card(options)} | self_test(options)
        found["problem"] = None
    except InputError as error:
        found["problem"] = str(error)
    if options.json:
        print(json.dumps(found))
    else:
        show(found)
    if found["problem"] is not None:
        raise typer.Exit(1)


def machine() -> dict[str, Any]:
    """Devices that torch can use, the best first; threads; main memory in GiB, all of it and what is free."""
    import psutil  # comes with accelerate
    import torch

    devices = []
    for i in range(torch.cuda.device_count()):
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(i))
        devices.append(f"cuda:{i} ({torch.cuda.get_device_name(i)}, {total:.0f} GiB, {free:.0f} free)")
    devices += ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    memory = psutil.virtual_memory()
    sizes = {"memory_gib": round(memory.total / 2**30, 1), "free_gib": round(memory.available / 2**30, 1)}
    return {"devices": devices, "threads": torch.get_num_threads()} | sizes


def quantization() -> dict[str, str]:
    """For each kind of quantisation its package, with the version that is here or how to get it."""
    from omnialpha.models.runtime.quantize import KINDS

    found = {}
    for name, package in ({name: kind.package for name, kind in KINDS.items()} | {"gguf": "gguf"}).items():
        try:
            found[name] = f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            found[name] = f"pip install omnialpha[quant] for {package}"
    return found


def attention(device: str) -> list[str]:
    """The attention back ends that work on a device."""
    import torch

    from omnialpha.models.runtime.placement import pick_device
    from omnialpha.models.transformer.attention import usable

    chosen = torch.device(pick_device(device))
    return usable(chosen, torch.float32 if chosen.type == "cpu" else torch.bfloat16)


def cache() -> dict[str, Any]:
    """The folder where models are stored, and which are."""
    from omnialpha.models.checkpoints import hub

    stored = []
    for path in sorted((hub.home() / "models").glob(f"*/*/{hub.RECORD}")):
        if record := hub.Record.read(path.parent):
            state = "" if set(record.wanted) <= record.verified.keys() else ", not finished"
            stored.append(f"{record.id}@{record.revision} ({_mib(path.parent) / 1024:.1f} GiB{state})")
    return {"home": str(hub.home()), "stored": stored}


def model_card(options: Options) -> dict[str, Any]:
    """Folder, sizes on disk in MiB and settings of the model."""
    from omnialpha.models.checkpoints.folders import resolve

    parts = resolve(options.model, **options.parts)
    card, encoder = parts.card, parts.text / "text_encoder"
    sizes = {"transformer": _mib(parts.transformer), "text_encoder": _mib(encoder), "vae": _mib(parts.vae)}
    sizes |= {f"adapter {file.name}": _mib(file.path) for file in parts.adapters}
    return {
        "name": card.name,
        "license": card.license,
        "folder": str(parts.transformer.parent),
        "mib": sizes,
        "picture_pixels": card.grid.picture_pixels,
        "sampling": {name: f"{d.steps} steps, guidance {d.guidance:g}" for name, d in card.sampling.items()},
    }


def _mib(path: Path) -> float:
    """Of a file or a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return round(sum(file.stat().st_size for file in files) / 2**20, 1)


def self_test(options: Options) -> dict[str, Any]:
    """Seconds to load the model and to cut a disk out of a gradient in two steps."""
    import torch

    from omnialpha.tasks import TASKS

    began = time.monotonic()
    model = load(options, build_setup(options))
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
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return "none" if value is None else str(value)
