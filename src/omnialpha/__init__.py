"""OmniAlpha: any number of RGBA pictures and an instruction in, any number of RGBA pictures out.

>>> import omnialpha
>>> model = omnialpha.load()
>>> cutout = model.matte("photo.jpg")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omnialpha.errors import InputError
    from omnialpha.io import read_image, write_image
    from omnialpha.io.layers import LayerStack
    from omnialpha.loading import load
    from omnialpha.pipeline import OmniAlpha
    from omnialpha.tasks import TASKS

__version__ = "0.1.0"

_HOMES = {  # imported on first use: `import omnialpha` loads no torch
    "InputError": "errors",
    "read_image": "io",
    "write_image": "io",
    "LayerStack": "io.layers",
    "OmniAlpha": "pipeline",
    "load": "loading",
    "TASKS": "tasks",
}
__all__ = ["TASKS", "InputError", "LayerStack", "OmniAlpha", "load", "read_image", "write_image"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'omnialpha' has no attribute {name!r}")
    return getattr(import_module(f"omnialpha.{_HOMES[name]}"), name)
