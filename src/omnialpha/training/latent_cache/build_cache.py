"""Making a cache, shard by shard: see `cache`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from omnialpha.data.stream.mixture import Mixture
from omnialpha.data.stream.stream import Stream
from omnialpha.errors import InputError
from omnialpha.files import atomic_write
from omnialpha.models.runtime.placement import DTYPES
from omnialpha.pipeline import OmniAlpha
from omnialpha.training.latent_cache import cache

Watch = Callable[[int, int], None]  # batches done, and of how many


@dataclass(frozen=True)
class BuiltCache:
    """Numbers of shards: made, were there already, were damaged or of other data and made anew."""

    made: int
    kept: int
    redone: int
    batches: int
    bytes: int


def build_cache(
    folder: str | Path,
    model: OmniAlpha,
    mixture: Mixture | Stream,
    recipe: dict[str, Any],
    batches: int,
    a_shard: int = 64,
    dtype: str = "bfloat16",
    verify: bool = False,
    watch: Watch = lambda done, total: None,
    files: cache.Json | None = None,
) -> BuiltCache:
    """Encode the first `batches` of a mixture; goes on where it was stopped, and ends in the same bytes.

    recipe: what the mixture was made from, kept to be compared. Shards that are there are read and checked; verify:
    also draw the first batch of each and compare its key. files: `digests.files` of the model, where it has some.
    InputError for a cache that was made with something else.
    """
    if batches < 1 or a_shard < 1 or dtype not in DTYPES:
        raise InputError(
            f"a cache of {batches} batches, {a_shard} a shard, as {dtype} cannot be made: "
            f"use numbers above 0, and one of {', '.join(DTYPES)}."
        )
    folder, plain, identity = Path(folder), replace(mixture, prompt_dropout=0.0), cache.identity(model)
    settings = {
        "version": cache.VERSION,
        "model": identity,
        "files": files,
        "recipe": recipe,
        "weights": dict(mixture.weights),
        "dtype": dtype,
        "a_shard": a_shard,
        "batches": batches,
    }
    _begin(folder, settings)
    numbers = {"made": 0, "kept": 0, "redone": 0}
    for number, first in enumerate(range(0, batches, a_shard)):
        path, indices = cache.shard_path(folder, number), range(first, min(first + a_shard, batches))
        found = _sound(path)
        if found and verify and cache.read(path, 0)[0]["key"] != cache.key(identity, plain.batch(first)):
            found = 0
        what = "kept" if found >= len(indices) else "made" if found or not path.is_file() else "redone"
        numbers[what] += 1
        if what != "kept":
            encoded = []
            for index in indices:
                encoded.append(cache.encode(model, identity, *plain[index], DTYPES[dtype]))
                watch(index + 1, batches)
            _write(path, encoded)
        watch(indices[-1] + 1, batches)
    size = sum(path.stat().st_size for path in folder.glob("[0-9]*.safetensors"))
    return BuiltCache(**numbers, batches=batches, bytes=size)


def _begin(folder: Path, settings: cache.Json) -> None:
    """Write what the cache is made with; InputError where it was begun with something else."""
    if (folder / cache.SETTINGS).is_file():
        made = cache.read_settings(folder)
        cache.check_recipe(folder, made["recipe"], settings["recipe"])
        for name, option in (("dtype", "--dtype"), ("a_shard", "--shard")):
            if made[name] != settings[name]:
                raise InputError(f"the cache {folder} was begun with {option} {made[name]}: go on with that.")
        if made["model"] != settings["model"]:
            raise InputError(f"the cache {folder} was begun with another model: give the name of a new folder.")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"{folder} is not empty and holds no cache: give the name of a new folder.")
    atomic_write(folder / cache.SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())


def _sound(path: Path) -> int:
    """How many batches a shard holds; 0 where there is none, or any of them is damaged."""
    try:
        count = len(cache.records(path)) if path.is_file() else 0
        for place in range(count):
            cache.read(path, place)
    except InputError:
        return 0
    return count


def _write(path: Path, encoded: Sequence[tuple[cache.Json, cache.Tensors]]) -> None:
    tensors = {f"{place}.{name}": x for place, (_, named) in enumerate(encoded) for name, x in named.items()}
    header = {"batches": json.dumps([record for record, _ in encoded])}  # one entry: their order is not kept
    try:
        atomic_write(path, lambda temporary: save_file(tensors, temporary, header))
    except SafetensorError as error:
        raise InputError(f"{path} could not be written ({error}); free space and run it again.") from error
