"""What is held out: a property of an item alone, so that nothing trained on anything else has seen it."""

from __future__ import annotations

import hashlib
from itertools import count as numbers_from

SHARE = 1 / 16
SPLITS = ("train", "test")


def held_out(content: bytes, share: float = SHARE) -> bool:
    """Whether an item (the bytes of its file, or what names it) is in the test split, as about `share` of all are.
    A larger share holds out the same items and more.
    """
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def belongs(content: bytes, split: str, share: float = SHARE) -> bool:
    """Whether an item is in `split`, "train" or "test"."""
    assert split in SPLITS, split
    return held_out(content, share) == (split == "test")


def numbers(what: str, seed: int, kinds: int, count: int, split: str) -> list[int]:
    """Numbers of the first `count` items of a side, among items that are named by (what, seed, number) and of kind
    number mod kinds. Kinds come in turn, and fewer items are the first of more.
    """
    sides = [
        filter(lambda i: belongs(f"{what} {seed} {i}".encode(), split), numbers_from(kind, kinds))
        for kind in range(kinds)
    ]
    return [next(sides[place % kinds]) for place in range(count)]
