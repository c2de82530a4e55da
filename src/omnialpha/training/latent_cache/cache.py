"""Latents and instruction embeddings of a mixture's batches, made once and read in the place of pictures.

A cache is a folder: cache.json says what it was made with, 00000.safetensors and so on hold the batches in order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from omnialpha.condition import Condition, pad
from omnialpha.data.records.pictures import Size
from omnialpha.errors import InputError
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import Example, Role
from omnialpha.training.latent_cache.digests import Json, Tensors, as_bytes, identity, key, plain, stored

VERSION = 3
SETTINGS = "cache.json"
STREAM = 0x2545F491  # between the numbers that order batches and those that other streams draw with the same seed


# ---- a batch --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def encode(
    model: OmniAlpha, identity: str, batch: list[Example], weight: float, dtype: torch.dtype
) -> tuple[Json, Tensors]:
    """A batch of a mixture and its weight as they are stored: the record, and rows of all samples without padding.

    inputs (sum Li, C), targets (sum Lt, C), text (sum T, D), and blank: the text of an empty instruction without the
    tokens that it begins with as the other does, which a causal encoder makes the same of; pooled (2, B, P).
    """
    cond = model.condition(batch, guided=True)
    blank = cond.negative or model.condition([replace(e, instruction="") for e in batch])
    x0 = model.encode_targets([e.true_layers() for e in batch], cond)
    counts = [(layout.input_tokens, layout.target_tokens) for layout in cond.layouts]
    text, other = (
        [row[:length].to(dtype) for row, length in zip(c.text, c.lengths, strict=True)] for c in (cond, blank)
    )
    shared = [_common(a, b) for a, b in zip(text, other, strict=True)]
    tensors = {
        "inputs": torch.cat([row[:count] for row, (count, _) in zip(cond.inputs, counts, strict=True)]),
        "targets": torch.cat([row[:count] for row, (_, count) in zip(x0, counts, strict=True)]),
        "text": torch.cat(text),
        "blank": torch.cat([row[count:] for row, count in zip(other, shared, strict=True)]),
    }
    if cond.pooled is not None and blank.pooled is not None:
        tensors["pooled"] = torch.stack((cond.pooled, blank.pooled))
    tensors = {name: value.to("cpu", dtype).contiguous() for name, value in tensors.items()}
    record = {
        "key": key(identity, batch),
        "weight": weight,
        "examples": plain(list(cond.examples)),
        "counts": counts,
        "lengths": [len(row) for row in text],
        "blank_lengths": [len(row) for row in other],
        "shared": shared,
    }
    record = json.loads(as_bytes(record))  # as it is read again
    return record | {"digest": stored(record, tensors)}, tensors


def _common(a: Tensor, b: Tensor) -> int:
    """How many rows of (T, D) and (T', D) are the same from the first on."""
    length = min(len(a), len(b))
    return int((a[:length] == b[:length]).all(dim=1).long().cumprod(0).sum())


def decode(model: OmniAlpha, record: Json, tensors: Tensors, dropped: list[bool]) -> tuple[Condition, Tensor]:
    """The condition and the clean latents (B, Lt, C) of a stored batch, some samples without their instruction."""
    examples = [_example(*row) for row in zip(record["examples"], dropped, strict=True)]
    inputs = tensors["inputs"].to(model.device).split([count for count, _ in record["counts"]])
    targets = tensors["targets"].to(model.device).split([count for _, count in record["counts"]])
    shared = record["shared"]
    rests = [length - count for length, count in zip(record["blank_lengths"], shared, strict=True)]
    rows = zip(tensors["text"].split(record["lengths"]), tensors["blank"].split(rests), shared, dropped, strict=True)
    texts = [torch.cat((own[:count], rest)) if drop else own for own, rest, count, drop in rows]
    text, lengths = pad_sequence(texts, batch_first=True), torch.tensor([len(row) for row in texts])
    mask = torch.arange(text.shape[1]) < lengths[:, None]
    pooled = None
    if "pooled" in tensors:
        own, blank = tensors["pooled"].to(model.device)
        pooled = torch.where(torch.tensor(dropped, device=model.device)[:, None], blank, own)
    cond = model.assemble(examples, inputs, text.to(model.device), mask, pooled)
    return cond, pad(targets, targets[0].shape[-1])


def _example(stored: Json, dropped: bool) -> Example:
    """Without its pictures."""
    roles, targets = (tuple(map(Role, stored[name])) for name in ("roles", "targets"))
    words = "" if dropped else stored["instruction"]
    return Example(stored["task"], roles, (), words, targets, (stored["size"][0], stored["size"][1]))


# ---- reading --------------------------------------------------------------------------------------------------------


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.safetensors"


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """InputError for whatever a damaged shard leads to."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path} is damaged: run `omnialpha data cache` again, which makes it anew.") from error


@lru_cache(maxsize=64)
def _open(path: Path, _stamp: tuple[int, int]) -> tuple[Any, list[Json]]:
    with _undamaged(path):
        file: Any = safe_open(path, "pt")
        return file, json.loads(file.metadata()["batches"])


def _opened(path: Path) -> tuple[Any, list[Json]]:
    state = path.stat()
    return _open(path, (state.st_mtime_ns, state.st_ino))


def records(path: Path) -> list[Json]:
    """Of the batches in a shard."""
    return _opened(path)[1]


def read(path: Path, place: int) -> tuple[Json, Tensors]:
    """Batch `place` of a shard; InputError where it is not what was written."""
    file, recorded = _opened(path)
    with _undamaged(path):
        names = [name for name in file.keys() if name.startswith(f"{place}.")]  # noqa: SIM118 - it is no dict
        tensors = {name.partition(".")[2]: file.get_tensor(name) for name in names}
        if recorded[place]["digest"] != stored(recorded[place], tensors):
            raise ValueError("another digest")
        return recorded[place], tensors


def read_settings(folder: Path) -> Json:
    """What a cache was made with; InputError where the folder holds none."""
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder} holds no cache: make one with `omnialpha data cache RECIPE {folder}`.") from None
    except ValueError:
        raise InputError(f"{folder / SETTINGS} is damaged: delete {folder} and make the cache again.") from None
    if not isinstance(settings, dict) or settings.get("version") != VERSION:
        raise InputError(f"{folder} is a cache of another version of this package: delete it and make it again.")
    return settings


@dataclass(frozen=True)
class CachedBatches:
    """The batches of a cache as an endless stream: every one once, in a drawn order, before one comes again.

    Batch i depends on the first `count` batches, the seed and i alone, so that a cache may grow during a run.
    prompt_dropout: share of samples without their instruction.
    """

    folder: Path
    seed: int
    count: int
    prompt_dropout: float = 0.0
    settings: Json = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        model: OmniAlpha,
        recipe: Json,
        seed: int,
        prompt_dropout: float = 0.0,
        files: Json | None = None,
        count: int | None = None,
    ) -> CachedBatches:
        """InputError for a cache of another model, or of a recipe that draws other batches (its seed may differ).

        files: `digests.files` of the model; where they are those that the cache was made from, it is not read.
        count: batches that a run began with; without it the cache has to be finished.
        """
        folder = Path(folder)
        settings = read_settings(folder)
        check_recipe(folder, settings["recipe"], recipe, but=("seed",))
        same_files = files is not None and settings["files"] == files
        if not same_files and settings["model"] != identity(model):
            raise InputError(
                f"the cache {folder} was made with other weights or settings of the autoencoder or the instruction "
                "encoder than the recipe's: make one with this recipe's model."
            )
        there, wanted = _finished(folder, settings["a_shard"]), count or settings["batches"]
        if there < wanted:
            raise InputError(
                f"the cache {folder} has {there} batches, "
                + (f"this run began with {count}: make them" if count else f"of {wanted} that were asked for: make all")
                + f" by `omnialpha data cache` with --batches {wanted}"
                + (f", or make do with --batches {there}." if there and not count else ".")
            )
        return cls(folder, seed, wanted, prompt_dropout, settings)

    def __len__(self) -> int:
        return self.count

    @property
    def sizes(self) -> list[Size]:
        return [(h, w) for h, w in self.settings["recipe"]["sizes"]]

    @property
    def batch_size(self) -> int:
        """For held-out batches; 1 where the recipe counts tokens."""
        return int(self.settings["recipe"].get("batch", 1))

    @property
    def weights(self) -> Mapping[str, float]:
        """Of the tasks."""
        return dict(self.settings["weights"])

    def place(self, index: int) -> int:
        """Which batch of the mixture comes at `index`."""
        epoch, at = divmod(index, len(self))
        return int(_order(self.seed, epoch, len(self))[at])

    def dropped(self, index: int, count: int) -> list[bool]:
        """Which of `count` samples have no instruction at `index`."""
        draws = np.random.default_rng((self.seed, index, STREAM, 1)).random(count)
        return list((draws < self.prompt_dropout).tolist())

    def __getitem__(self, index: int) -> tuple[Json, Tensors]:
        """Record and tensors at `index`, read and checked."""
        shard, at = divmod(self.place(index), self.settings["a_shard"])
        return read(shard_path(self.folder, shard), at)

    def encoded(
        self, index: int, model: OmniAlpha, batch: tuple[Json, Tensors] | None = None
    ) -> tuple[Condition, Tensor]:
        """Condition and clean latents (B, Lt, C) at `index`, on the model's device. batch: where it has been read."""
        record, tensors = batch or self[index]
        return decode(model, record, tensors, self.dropped(index, len(record["examples"])))


def _finished(folder: Path, a_shard: int) -> int:
    """Batches of the shards, up to the first that is not there or not full."""
    number = there = 0
    while there == number * a_shard and (path := shard_path(folder, number)).is_file():
        there += len(records(path))
        number += 1
    return there


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch, STREAM)).permutation(count)


def check_recipe(folder: Path, made: Json, wanted: Json, but: tuple[str, ...] = ()) -> None:
    for name, value in json.loads(as_bytes(wanted)).items():
        if name not in but and made.get(name) != value:
            raise InputError(
                f"the cache {folder} was made with {name}={json.dumps(made.get(name))}, the recipe has "
                f"{json.dumps(value)}: give the recipe that value, or make another cache."
            )
