"""Feature extractors for FID and KID, by a local file or a name: nothing is ever downloaded.

An extractor is a function of uint8 pictures (B, 3, H, W), 0 to 255, that answers (B, D).
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omnialpha.errors import InputError
from omnialpha.files import sha256


@dataclass(frozen=True)
class Features:
    """An extractor. identity: the same for the same numbers; of a callable it is only its name."""

    name: str
    identity: str
    extract: Callable[[Tensor], Tensor]

    def __call__(self, pictures: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in [0, 1], rounded to 8 bits -> (B, D) float32 on the CPU."""
        made = self.extract((pictures.clamp(0, 1) * 255).round().to(torch.uint8))
        if not isinstance(made, Tensor) or made.ndim != 2 or len(made) != len(pictures):
            shape = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise InputError(f"{self.name} answers {shape}, not one vector a picture: use one that answers (B, D).")
        return made.float().cpu()


def load_features(spec: str, device: torch.device | str = "cpu") -> Features:
    """A feature extractor by a TorchScript file, or by "package.module:function".

    NVIDIA's inception-2015-12-05.pt, which published FIDs stand on, is such a file; it resizes by itself.
    """
    path = Path(spec).expanduser()
    if path.is_file():
        return Features(path.name, sha256(path), _scripted(path, device))
    module, colon, name = spec.partition(":")
    if not colon or path.suffix in (".pt", ".pth"):
        raise InputError(f"{spec!r} is neither a TorchScript file nor package.module:function: check the path.")
    try:
        extract = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{spec!r} cannot be imported ({error}): check its spelling.") from None
    if not callable(extract):
        raise InputError(f"{spec!r} is a {type(extract).__name__}, not a function: name one that can be called.")
    return Features(spec, spec, extract)


def _scripted(path: Path, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the published network is in no other format
            module = torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{path} is no TorchScript file ({reason}): give one made by torch.jit.save.") from None
    arguments = [argument.name for argument in module.forward.schema.arguments]
    more = {"return_features": True} if "return_features" in arguments else {}  # else it answers class scores
    return lambda pictures: module(pictures, **more)


def digest_of_weights(module: nn.Module) -> str:
    """Of all weights and buffers of a network."""
    parts: list[Any] = []
    for name, tensor in sorted(module.state_dict().items()):
        parts += [f"{name} {tensor.dtype} {tuple(tensor.shape)}"]
        parts += [tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()]
    return sha256(*parts)[:16]
