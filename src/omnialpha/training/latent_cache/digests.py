"""What a cache was made from, as digests: of the model that encodes, of what is encoded, of what is stored."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from omnialpha.models.checkpoints.folders import Card, Parts
from omnialpha.models.families import FAMILIES
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import Example

# what encoding depends on
OF_WORDS = ("instructions", "template", "max_tokens")
CARD = ("family", "grid", "layer_order", "picture_pixels", "finder", *OF_WORDS)

Json = dict[str, Any]
Tensors = dict[str, Tensor]


def as_bytes(value: Any) -> bytes:
    """JSON, the same for the same value."""
    return json.dumps(value, sort_keys=True).encode()


def plain(examples: list[Example]) -> list[Json]:
    """Examples without their pictures."""
    return [{k: getattr(e, k) for k in ("task", "roles", "instruction", "targets", "size")} for e in examples]


def identity(model: OmniAlpha) -> str:
    """Of all that encodes: weights of VAE, instruction encoder and finder, vocabularies, settings of the card."""
    made = hashlib.blake2b(digest_size=32)
    made.update(as_bytes(_settings(model.card)))
    finder: list[nn.Module] = [model.finder] if isinstance(model.finder, nn.Module) else []  # an ONNX file: by its path
    for part in (model.vae, model.text_encoder, *finder):
        made.update(as_bytes({name: repr(value) for name, value in getattr(part, "config", {}).items()}))
        _add(made, part.state_dict())
    for name, value in sorted(vars(model.text_encoder).items()):
        if hasattr(value, "get_vocab"):
            made.update(as_bytes([name, value.get_vocab()]))
    return made.hexdigest()


def files(parts: Parts) -> Json:
    """Of the same, without reading it: sizes and times of the files that it lies in, as `make` tells old from new."""
    folders = [parts.vae, *(parts.text / name for name in FAMILIES[parts.card.family].text_folders)]
    folders += [parts.finder] if parts.finder else []
    found = {}
    for folder in folders:
        inside = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
        for path in inside:
            state = path.stat()
            found[f"{folder.name}/{path.relative_to(folder).as_posix()}"] = [state.st_size, state.st_mtime_ns]
    return json.loads(as_bytes(_settings(parts.card) | {"dtype": parts.card.dtype, "files": found}))


def key(model: str, batch: list[Example]) -> str:
    """Of what is encoded, for a model of this identity: pixels, instructions, tasks."""
    made = hashlib.sha256(as_bytes([model, plain(batch)]))
    for tensor in (*(p for e in batch for p in e.inputs), *(e.true_layers() for e in batch)):
        made.update(as_bytes(list(tensor.shape)))
        made.update(_contents(tensor))
    return made.hexdigest()


def stored(record: Json, tensors: Tensors) -> str:
    """Of a batch as it is stored."""
    made = hashlib.blake2b(as_bytes({k: v for k, v in record.items() if k != "digest"}), digest_size=32)
    _add(made, tensors)
    return made.hexdigest()


def _settings(card: Card) -> Json:
    return {name: asdict(card)[name] for name in CARD}


def _add(made: Any, tensors: Tensors) -> None:
    for name, tensor in sorted(tensors.items()):
        made.update(as_bytes([name, str(tensor.dtype), list(tensor.shape)]))
        made.update(_contents(tensor))


def _contents(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
