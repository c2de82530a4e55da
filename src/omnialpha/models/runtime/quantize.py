"""Fewer bits for the weights of the large linear layers: approximate, for memory's sake, and never the default.

Weights are stored small and widened where they are used; activations keep their precision. A model that diffusers or
transformers has loaded is mapped from its file, so that main memory holds one layer at a time in full precision.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from omnialpha.errors import InputError
from omnialpha.models.checkpoints.card import AGAIN
from omnialpha.models.transformer.model import MultiImageTransformer

ADAPTERS = ("lora_A", "lora_B")  # small, and added to the output at full precision
SUFFIX = ".gguf"  # of a file that a transformer is read from as it is stored there
GGUF_OFFLOADS = ("none", "model")
BLOCKS = ("transformer_blocks.", "single_transformer_blocks.", "language_model.layers.", "t5.encoder.block.")
WHOLE = (*ADAPTERS, ".wo")  # T5's last layer of a block, which needs range; what is not in BLOCKS is small


def quantize(module: nn.Module, kind: str, device: torch.device, stay: torch.device) -> int:
    """Quantise the linear layers in the blocks of a transformer or a text model, in place; how many there were.

    Each is computed on `device` and left on `stay`. Layers that are quantised already stay as they are.
    """
    require(KINDS[kind].package)
    count = 0
    for parent, name, layer in list(linears(module)):
        layer.to(device)
        parent._modules[name] = KINDS[kind].quantizer(layer, device).to(stay)
        count += 1
    return count


def linears(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """(parent, name, layer) of every layer to be quantised."""
    for path, parent in module.named_modules():
        for name, child in parent.named_children():
            full = f"{path}.{name}"
            plain = type(child) is nn.Linear and type(child.weight) is nn.Parameter
            if plain and full.startswith(BLOCKS) and not any(part in full for part in WHOLE):
                yield parent, name, child  # type: ignore[misc]


def read_gguf(file: Path) -> tuple[dict[str, tuple[int, ...]], float]:
    """Shapes by name in a GGUF file, and the bits of a weight on average. Raises InputError where it is none."""
    require("gguf")
    from gguf import GGUFReader

    if not file.is_file():
        raise InputError(f"{file} is no file: give a transformer in GGUF.")
    try:
        tensors = GGUFReader(file).tensors
        shapes = {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in tensors}
        bits = 8 * sum(int(t.n_bytes) for t in tensors) / sum(int(t.n_elements) for t in tensors)
    except (ValueError, IndexError, KeyError, ZeroDivisionError) as error:
        raise InputError(f"{file} cannot be read as GGUF ({error}): {AGAIN}.") from error
    return shapes, bits


def load_gguf(file: Path, folder: Path, dtype: torch.dtype = torch.bfloat16) -> MultiImageTransformer:
    """A transformer from a GGUF file with diffusers' names; `folder` holds its config.json. Computes in `dtype`."""
    read_gguf(file)
    from diffusers import GGUFQuantizationConfig

    try:
        return MultiImageTransformer.from_single_file(
            str(file),
            config=str(folder),
            quantization_config=GGUFQuantizationConfig(compute_dtype=dtype),
            torch_dtype=dtype,
            local_files_only=True,
        )
    except (ValueError, KeyError, OSError) as error:
        raise InputError(f"{file} cannot be read as a transformer in GGUF ({error}): {AGAIN}.") from error


def require(package: str) -> None:
    """InputError where a package of the extra `quant` is missing."""
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{package} is not installed: run `pip install omnialpha[quant]`.")


def _torchao(layer: nn.Linear, device: torch.device, config: str) -> nn.Module:
    import torchao.quantization

    torchao.quantization.quantize_(layer, getattr(torchao.quantization, config)())
    return layer


def _nf4(layer: nn.Linear, device: torch.device) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    dtype = layer.weight.dtype
    made = Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, dtype, False, "nf4", device="meta")
    made.weight = Params4bit(layer.weight.data, requires_grad=False, compress_statistics=False, quant_type="nf4")
    made.bias = layer.bias
    return made.to(device)  # which quantises


@dataclass(frozen=True)
class Kind:
    """A way to quantise.

    Args:
        package: what it needs.
        bits: of a weight, scales included.
        offloads: the modes that can move such weights.
        error: relative, of a layer's output on normal weights.
        quantizer: layer and device -> the layer on it, quantised.
    """

    package: str
    bits: float
    offloads: tuple[str, ...]
    error: float
    quantizer: Callable[[nn.Linear, torch.device], nn.Module]


MOVING = ("none", "model", "group")
KINDS = {
    "int8": Kind("torchao", 8.02, MOVING, 0.005, partial(_torchao, config="Int8WeightOnlyConfig")),  # a scale an output
    "fp8": Kind("torchao", 8.02, MOVING, 0.026, partial(_torchao, config="Float8WeightOnlyConfig")),
    "nf4": Kind("bitsandbytes", 4.5, ("none", "model"), 0.092, _nf4),  # a scale for 64 weights
}
