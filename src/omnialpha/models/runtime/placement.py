"""Where the parts of a model wait and work, and with which kernels: offloading, attention back ends, compilation.

No way of offloading changes a picture. Another attention back end and compilation round differently; quantisation
(`quantize`) is an approximation.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from omnialpha.errors import InputError
from omnialpha.models.checkpoints import hub
from omnialpha.models.runtime.offload import CPU, OFFLOADS, Model, Offload, offload
from omnialpha.models.runtime.quantize import GGUF_OFFLOADS, KINDS, SUFFIX, quantize
from omnialpha.models.transformer import attention

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GRAPHS = 64  # of a block, before torch takes it for a mistake


@dataclass(frozen=True)
class Placement:
    """How a model is to run. dtype None: as it was loaded; attention None: torch's own choice; folder: of "disk".

    quantize: one of KINDS, or the name of a GGUF file that the transformer is read from.
    """

    device: str = "auto"
    dtype: str | None = None
    offload: Offload = "none"
    quantize: str | None = None
    attention: str | None = None
    compile: bool = False
    folder: Path | None = None  # None: offload/ in OMNIALPHA_HOME

    def __post_init__(self) -> None:
        _one_of("offload", self.offload, OFFLOADS)
        if self.dtype is not None:
            _one_of("dtype", self.dtype, DTYPES)
        if self.quantize is not None:
            if not self.gguf:
                _one_of("quantize", self.quantize, [*KINDS, f"FILE{SUFFIX}"])
            if self.offload not in (fit := GGUF_OFFLOADS if self.gguf else KINDS[self.quantize].offloads):
                raise InputError(
                    f"quantize={self.quantize} cannot be used with offload={self.offload}: use {' or '.join(fit)}."
                )

    @property
    def gguf(self) -> Path | None:
        """The file to read the transformer from."""
        return Path(self.quantize).expanduser() if self.quantize and self.quantize.endswith(SUFFIX) else None

    @property
    def torch_device(self) -> torch.device:
        """InputError where it is not there."""
        return torch.device(pick_device(self.device))

    @property
    def torch_dtype(self) -> torch.dtype | None:
        return DTYPES[self.dtype] if self.dtype else None


@dataclass(frozen=True)
class Placed:
    """What `place` has done. device: where the computation happens, wherever the weights wait."""

    placement: Placement
    device: torch.device
    undo: ExitStack = field(repr=False)  # close() takes hooks and compiled code away; weights end in main memory


class Portable(nn.Module):
    """A model that can be pickled and copied, into another process too: how it was placed goes along, the hooks of
    that are made anew. InputError where weights are offloaded or code is compiled.
    """

    placed: Placed | None

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self.placed is not None:
            how = self.placed.placement
            if how.offload != "none" or how.compile:
                given = f"offload={how.offload}, compile={how.compile}"
                raise InputError(f"a model with {given} cannot be pickled or copied: load it where it is needed.")
            state["placed"] = how
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if (how := state["placed"]) is not None:
            self.placed = place(self, replace(how, dtype=None, quantize=None))  # type: ignore[arg-type]


def place(model: Model, placement: Placement) -> Placed:
    """Ready a model whose parts are in main memory, adapters applied and modulation taken out, for a device.

    Close `undo` before weights are added, taken away or replaced, then place again. Quantisation is not undone.
    """
    device, undo = placement.torch_device, ExitStack()
    parts: tuple[nn.Module, ...] = (model.vae, model.transformer, model.text_encoder)
    with ExitStack() as failed:
        failed.callback(undo.close)
        if placement.attention is not None:
            attention.choose(model.transformer, placement.attention, device, placement.torch_dtype)
            undo.callback(model.transformer.reset_attention_backend)
        if placement.dtype is not None:
            for part in parts:
                nn.Module.to(part, placement.torch_dtype)
        if placement.quantize is not None and not placement.gguf:
            stay = device if placement.offload == "none" else CPU
            quantize(model.transformer, placement.quantize, device, stay)
            quantize(model.text_encoder.model, placement.quantize, device, stay)
        offload(placement.offload, model, device, undo, placement.folder or hub.home() / "offload")
        if placement.compile:
            _compile(model.transformer, whole=placement.offload in ("none", "model"), undo=undo)
        failed.pop_all()
    return Placed(placement, device, undo)


def pick_device(name: str) -> str:
    """A usable torch device by name; "auto" takes the first there is. Never falls back in silence: InputError."""
    there = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    if name == "auto":
        return there[0]
    kind, colon, number = name.partition(":")
    if kind not in there or (colon and not number.isdecimal()):
        raise InputError(f"device {name!r} is not available here: use one of auto, {', '.join(there)}.")
    if kind == "cuda" and colon and int(number) >= torch.cuda.device_count():
        raise InputError(f"device {name!r} does not exist: there are {torch.cuda.device_count()} CUDA devices.")
    return name


def _compile(transformer: Any, whole: bool, undo: ExitStack) -> None:
    """Compile the repeated block once for all blocks and sizes. whole: as one graph, which group offloading breaks."""
    blocks = [m for m in transformer.modules() if type(m).__name__ in transformer._repeated_blocks]
    for block in blocks:
        undo.callback(setattr, block, "_compiled_call_impl", None)
    # A few graphs are needed: with masks and without, of one sample and of several, of the last block and the others.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    transformer.compile_repeated_blocks(fullgraph=whole, dynamic=True)


def _one_of(name: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise InputError(f"{name}={value!r} is not known: use one of {', '.join(known)}.")
