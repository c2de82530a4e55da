"""Rows of unequal samples: padded to one length under a mask, or packed, the real ones alone.

A sample has three parts: targets, inputs, text. Padded they are (B, rows, ...) each; packed (1, N, ...), the rows of
one sample behind those of another. `Padding` and `Packing` have the same methods for a call of the transformer, and so
have `Padded` and `Packed` for its blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, dispatch_attention_fn
from torch import Tensor, nn

from omnialpha.errors import InputError

try:
    from torch.nn.attention.varlen import varlen_attn as _varlen_attn
except ImportError:  # torch before 2.10
    _varlen: Any = None
else:
    _varlen = _varlen_attn

TARGETS, INPUTS, TEXT = range(3)
Counts = tuple[int, ...]  # real rows of every sample in one part
Masks = Sequence[Tensor | None]  # of the parts: (B, rows), True on the real ones; None where all are real


@dataclass(frozen=True)
class Padded:
    """Rows (B, rows, D) of a pass through the blocks. lengths: of the parts in the image stream, targets first."""

    lengths: Counts
    key_mask: Tensor | None  # (B, 1, 1, keys), True on the keys that count

    @property
    def targets(self) -> int:
        """Rows of the first part: the only queries of the last block."""
        return self.lengths[0]

    def spread(self, image: Tensor, text: Tensor, zero: Tensor | None) -> tuple[Tensor, Tensor]:
        """Modulation (B, 6 D) of both streams, and (1, 6 D) of the image rows behind the first part if that differs,
        to shapes that the rows multiply with.
        """
        image, text = image[:, None], text[:, None]
        if zero is not None:
            behind = zero[:, None].expand(len(image), sum(self.lengths[1:]), -1)
            image = torch.cat((image.expand(-1, self.targets, -1), behind), dim=1)
        return image, text

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
        """Query (B, rows, H, E), key and value (B, keys, H, E) -> (B, rows, H, E). settings: of diffusers' dispatch."""
        return dispatch_attention_fn(query, key, value, attn_mask=self.key_mask, **settings)


@dataclass(frozen=True)
class Packed:
    """Rows (1, N, D) of a pass through the blocks: counts of the parts in either stream, then of remembered keys."""

    image: tuple[Counts, ...]
    text: tuple[Counts, ...]
    memory: tuple[Counts, ...]

    @property
    def targets(self) -> int:
        """As of `Padded`."""
        return sum(self.image[0])

    def spread(self, image: Tensor, text: Tensor, zero: Tensor | None) -> tuple[Tensor, Tensor]:
        """As of `Padded`: (1, N, 6 D) of each stream."""
        return _spread(image, image if zero is None else zero, self.image), _spread(text, text, self.text)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
        """As of `Padded`, of every sample by itself. The queries are those of the first parts."""
        keys = (*self.image, *self.text, *self.memory)
        ends = list(accumulate(map(sum, keys)))
        queries = keys[: ends.index(query.shape[1]) + 1]
        query, key, value = _by_sample(query, queries), _by_sample(key, keys), _by_sample(value, keys)
        rows, seen = ([sum(counts) for counts in zip(*parts, strict=True)] for parts in (queries, keys))
        if _has_varlen(query, settings["backend"]):
            bounds = (_bounds(tuple(rows), query.device), _bounds(tuple(seen), query.device), max(rows), max(seen))
            made = _varlen(query[0], key[0], value[0], *bounds)[None].split(rows, dim=1)
        else:
            samples = zip(query.split(rows, dim=1), key.split(seen, dim=1), value.split(seen, dim=1), strict=True)
            made = [dispatch_attention_fn(*sample, **settings) for sample in samples]
        pieces = [one.split(counts, dim=1) for one, counts in zip(made, zip(*queries, strict=True), strict=True)]
        return torch.cat([piece for part in zip(*pieces, strict=True) for piece in part], dim=1)


def _spread(first: Tensor, others: Tensor, parts: Sequence[Counts]) -> Tensor:
    """Vectors (B, C), or (1, C) for all, of the first part and of the others -> (1, N, C); no rows without parts.

    Not by an index, whose backward pass adds rows one by one: slow on a CPU, in any order on a GPU, coarse in bfloat16.
    """
    runs = [first[:0]]
    for number, counts in enumerate(parts):
        vectors = (others if number else first).expand(len(counts), -1)
        runs += [vector.expand(n, -1) for vector, n in zip(vectors, counts, strict=True)]
    return torch.cat(runs)[None]


def _by_sample(x: Tensor, parts: Sequence[Counts]) -> Tensor:
    """Rows (1, N, H, E) ordered by part, then sample -> by sample, then part."""
    pieces, batch = x.split([n for counts in parts for n in counts], dim=1), len(parts[0])
    return torch.cat([piece for sample in range(batch) for piece in pieces[sample::batch]], dim=1)


def active_backend(chosen: AttentionBackendName | None) -> str:
    """Name of the attention back end that serves a processor which chose this one, or none."""
    return str((chosen or _AttentionBackendRegistry.get_active_backend()[0]).value)


# Attention back ends that take any key mask. The others keep the first keys: right for padded text, which comes last,
# but they would drop real tokens that follow a padded picture.
ANY_MASK = ("native", "_native_cudnn", "_native_efficient", "_native_math", "_native_npu", "_native_xla", "xformers")
NO_MASK = ("flash", "_native_flash")  # refuse a mask of any kind, also the one of padded text


def check_backend(transformer: nn.Module, what: str, last: bool) -> None:
    """InputError where the attention back end takes no mask, or would get padding wrong without a word.

    what: differs and is padded, for the message; last: whether no real keys follow the padding.
    """
    processor: Any = transformer.get_submodule("transformer_blocks.0.attn").processor
    name = active_backend(processor._attention_backend)
    if name in NO_MASK or not (last or name in ANY_MASK):
        raise InputError(f"Attention back end {name!r} cannot mix {what}: use 'native' or equal ones.")


def _has_varlen(query: Tensor, chosen: AttentionBackendName | None) -> bool:
    """Whether one kernel of torch serves all samples: it is flash attention, on the device, in half precision."""
    if not query.is_cuda or _varlen is None or active_backend(chosen) != AttentionBackendName.NATIVE.value:
        return False
    one = query.transpose(1, 2)
    given = torch.backends.cuda.SDPAParams(one, one, one, None, 0.0, False, False)
    return bool(torch.backends.cuda.can_use_flash_attention(given))


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _bounds(counts: Counts, device: torch.device) -> Tensor:
    """Where each sample begins and the last one ends, int32 (B + 1,)."""
    return torch.tensor([0, *accumulate(counts)], dtype=torch.int32).to(device)


@dataclass(frozen=True)
class Padding:
    """A call whose rows stay as they come. lengths: of the three parts."""

    masks: Masks
    lengths: Counts

    def gather(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Parts (B, rows, C) -> what the blocks see of them."""
        return parts

    def scatter(self, targets: Tensor) -> Tensor:
        """What the blocks made of the targets -> (B, Lt, D)."""
        return targets

    def rows(self, image: Sequence[int], text: Sequence[int], memory: Sequence[int] = ()) -> Padded:
        """A pass over these parts in either stream, which also sees those of a memory."""
        keys = (*image, *text, *memory)
        mask = _key_mask([self.masks[part] for part in keys], [self.lengths[part] for part in keys])
        return Padded(tuple(self.lengths[part] for part in image), mask)


@dataclass(frozen=True)
class Packing:
    """A call whose padding is left out: the same methods as `Padding`, rows (1, N, C) for the blocks."""

    counts: tuple[Counts, ...]
    places: tuple[Tensor | None, ...]  # of the real ones among the B * rows rows of a part; None: all
    shape: tuple[int, int]  # B, Lt

    @classmethod
    def of(cls, masks: Masks, lengths: Counts, batch: int) -> Packing:
        """From the masks and lengths of the three parts. Waits for the device: the counts have to be known here."""
        pairs = list(zip(masks, lengths, strict=True))
        return cls(
            tuple((length,) * batch if mask is None else tuple(mask.sum(dim=1).tolist()) for mask, length in pairs),
            tuple(None if mask is None else mask.flatten().nonzero()[:, 0] for mask in masks),
            (batch, lengths[TARGETS]),
        )

    def gather(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """As of `Padding`."""
        flat = [x.flatten(0, 1) for x in parts]
        pairs = zip(flat, self.places, strict=True)
        return tuple(x[None] if places is None else x.index_select(0, places)[None] for x, places in pairs)

    def scatter(self, targets: Tensor) -> Tensor:
        """As of `Padding`; padding is 0."""
        rows, places = targets[0], self.places[TARGETS]
        if places is not None:
            rows = rows.new_zeros(self.shape[0] * self.shape[1], rows.shape[1]).index_copy(0, places, rows)
        return rows.unflatten(0, self.shape)

    def rows(self, image: Sequence[int], text: Sequence[int], memory: Sequence[int] = ()) -> Packed:
        """As of `Padding`."""
        return Packed(*(tuple(self.counts[part] for part in stream) for stream in (image, text, memory)))


def _key_mask(masks: Masks, rows: Sequence[int]) -> Tensor | None:
    """Boolean (B, 1, 1, keys), True on the keys that count, for parts of so many rows; None if nothing is padded."""
    known = next((mask for mask in masks if mask is not None), None)
    if known is None:
        return None
    full = [
        known.new_ones(len(known), count) if mask is None else mask for mask, count in zip(masks, rows, strict=True)
    ]
    return torch.cat(full, dim=1)[:, None, None]
