"""The attention back ends of diffusers: which of them work here, and choosing one.

They compute the same attention with other kernels, so that pictures differ by rounding, those of `sage*` by int8.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    _check_attention_backend_requirements,
    dispatch_attention_fn,
)

from omnialpha.errors import InputError

# Nothing compiles flex inside our blocks, and uncompiled it takes seconds and gigabytes.
UNFIT = {"flex": "makes all scores at once"}
WRONG = 0.1  # largest difference from torch's own of values around 1; int8 stays below
FAILURES = (RuntimeError, ValueError, TypeError, ImportError, AttributeError, NameError, AssertionError)


@lru_cache(maxsize=8)
def backends(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Every back end by name -> "" where it works here, or why not. Each is tried on a few tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 1, 128, 2, 128, generator=generator).to(device, dtype).unbind(0)
    expected = dispatch_attention_fn(*tokens, backend=AttentionBackendName.NATIVE)
    names = {backend.value: backend for backend in _AttentionBackendRegistry.list_backends()}
    return {name: UNFIT.get(name) or _problem(backend, tokens, expected) for name, backend in names.items()}


def _problem(backend: AttentionBackendName, tokens: tuple[torch.Tensor, ...], expected: torch.Tensor) -> str:
    try:
        _check_attention_backend_requirements(backend)
        if backend.value.endswith("_hub"):  # trying it would download it
            return ""
        made = dispatch_attention_fn(*tokens, backend=backend)
    except FAILURES as error:
        return str(error).strip().split("\n")[0] or type(error).__name__
    return "" if float((made - expected).abs().max()) < WRONG else "gives wrong results"


def usable(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Names of the back ends that work here."""
    return [name for name, problem in backends(device, dtype).items() if not problem]


def choose(transformer: Any, name: str, device: torch.device, dtype: torch.dtype | None = None) -> None:
    """Have the transformer use a back end; InputError with those that work where this one does not."""
    there = backends(device, dtype or transformer.dtype)
    if problem := there.get(name, "is not known"):
        fit = ", ".join(usable(device, dtype or transformer.dtype))
        raise InputError(f"attention={name!r} cannot be used on {device} ({problem.rstrip('.')}): use one of {fit}.")
    transformer.set_attention_backend(name)
