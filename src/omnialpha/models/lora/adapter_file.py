"""LoRA files as they are asked for: where, how much, under which name, and with which sampling settings."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from omnialpha import config, sampling
from omnialpha.errors import InputError
from omnialpha.models.lora import files as lora_files
from omnialpha.sampling import Shift


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sampling settings that a few-step LoRA was distilled for; None: the checkpoint's own."""

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
        sampling.check_settings(self.steps, self.guidance)
        usable = _usable(self.name or _default_name(self.path))
        if self.name not in ("", usable):
            raise InputError(f"LoRA name {self.name!r} cannot be used: use letters, digits, - and _, as {usable!r}.")
        object.__setattr__(self, "name", usable)

    @classmethod
    def parse(cls, text: str) -> AdapterFile:
        """Read path[:weight][@preset]. A path that exists is taken whole; other colons and @ stay in the path."""
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
    """Fill in the path of the file itself and the settings in its header that were not given. Reads no weights."""
    path = lora_files.find_file(file.path)
    try:
        own = config.build(Settings, lora_files.read_settings(path))
        sampling.check_settings(own.steps, own.guidance)
    except InputError as error:
        raise InputError(f"LoRA {path}: sampling settings: {error}") from None
    missing = {field.name for field in fields(Settings) if getattr(file, field.name) is None}
    return replace(file, path=path, **{name: getattr(own, name) for name in missing})


def sampling_settings(files: Sequence[AdapterFile]) -> Settings:
    """The sampling settings that the files in use bring together; InputError where two disagree."""
    values: dict[str, Any] = {}
    for field in fields(Settings):
        given = {f.name: getattr(f, field.name) for f in files if f.weight and getattr(f, field.name) is not None}
        if len(set(given.values())) > 1:
            all_given = ", ".join(f"{name}: {value}" for name, value in given.items())
            raise InputError(f"LoRAs bring different {field.name} ({all_given}): use one of them.")
        values[field.name] = next(iter(given.values()), None)
    return Settings(**values)
