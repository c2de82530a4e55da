"""Fixed held-out scenes: from a data folder's test split, or from that of the procedural layers."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from omnialpha.data.stream.mixture import map_of
from omnialpha.data.synthetic import bank as banks
from omnialpha.data.synthetic import layers as synthetic
from omnialpha.data.synthetic import scenes
from omnialpha.data.synthetic.bank import Bank
from omnialpha.data.synthetic.shapes import article
from omnialpha.errors import InputError
from omnialpha.tasks import Role

SIDE = 128  # pixels a side of a bank's pictures, as in the recipes
SPARE = 1.25  # scenes drawn for one that is kept; see `_usable`
# What procedural captions call their subjects, beside the outlines
NOUNS = (
    "glass ball", "crescent moon", "brush stroke", "watercolour stain", "light flare", "watercolour", "raindrops",
    "feather", "letters", "bubbles", "bubble", "goblet", "bottle", "sparks", "smoke", "cloud", "shadow", "tile", "cup",
    "ball", "mesh", "mist", "snow", "glow", "hairs", "hair", "fur", "grass", "twigs", "branches", "tree", "net", "lace",
    "doily", "confetti", "petals", "fire", "flame", "cloth", "fabric", "veil", "paint",
)  # fmt: skip
MASS = (
    "watercolour",
    "smoke",
    "mist",
    "snow",
    "hair",
    "fur",
    "grass",
    "confetti",
    "fire",
    "cloth",
    "fabric",
    "lace",
    "paint",
)
_ORDER = sorted({*NOUNS, *synthetic.SOLID}, key=len, reverse=True)


@dataclass(frozen=True)
class Source:
    """A bank of held-out layers, the name and main colour of each foreground, and where they come from, in words."""

    bank: Bank
    names: tuple[str, ...]
    colors: tuple[str, ...]
    about: str


@dataclass(frozen=True)
class HeldOut:
    """n scenes of K objects. layers (n, K, 4, H, W) back to front; background, composite (n, 4, H, W); straight alpha.

    subject (n,): which object is asked for; trimap, rough (n, H, W): its maps. Captions, worded as in training, names,
    colours and places are [n][K]; scenes, the words for the backgrounds, are [n].
    """

    layers: Tensor
    background: Tensor
    composite: Tensor
    subject: Tensor
    trimap: Tensor
    rough: Tensor
    captions: list[list[str]]
    names: list[list[str]]
    colors: list[list[str]]
    places: list[list[str]]
    scenes: list[str]

    def __len__(self) -> int:
        return len(self.composite)

    @property
    def target(self) -> Tensor:
        """The layer that is asked for, (n, 4, H, W)."""
        return self.layers[torch.arange(len(self)), self.subject]

    @property
    def other(self) -> Tensor:
        """The layer that is not, in scenes of two (n, 4, H, W)."""
        return self.layers[torch.arange(len(self)), 1 - self.subject]

    def phrases(self, pattern: str) -> list[tuple[str, str]]:
        """(asked, other) of each two-object scene, worded by {name}, {color}, {place}; "" is the composed caption."""
        said = []
        for b, k in enumerate(self.subject.tolist()):
            asked, other = (self._phrase(pattern, b, i) for i in (k, 1 - k))
            said.append((asked, other))
        return said

    def _phrase(self, pattern: str, b: int, k: int) -> str:
        if not pattern:
            return self.captions[b][k]
        words = pattern.format(name=self.names[b][k], color=self.colors[b][k], place=self.places[b][k])
        return _with_article(words)


def open_source(folder: str | Path | None = None, side: int = SIDE) -> Source:
    """The test split of a data folder, or of the procedural layers."""
    if folder is None:
        bank, about = banks.unseen(side), f"procedural, test split, seed {banks.TEST_SEED}"
        names = tuple(noun(c) for c in bank.captions)
    else:
        bank, about = banks.read(folder, side, "test"), f"test split of {Path(folder).name}"
        names = bank.captions
    pixels = bank.foregrounds.permute(0, 2, 3, 1).numpy()
    return Source(bank, names, tuple(synthetic.dominant_color(p) for p in pixels), about)


def noun(caption: str) -> str:
    """What a procedural caption is of, without colour and pattern: "a striped red fish" -> "fish"."""
    found = [word for word in _ORDER if re.search(rf"\b{re.escape(word)}\b", caption)]
    return found[0] if found else caption


def draw(source: Source, n: int, size: tuple[int, int], seed: int, objects: int = 1) -> HeldOut:
    """n scenes at (height, width), equal for equal arguments. Two objects stand apart, and are asked for in turn."""
    if n < 1:
        raise InputError(f"n={n} scenes cannot be measured: use 1 or more.")
    count = int(n * SPARE) + 4
    numbers = tuple(str(i) for i in range(len(source.names)))
    numbered = replace(source.bank, captions=numbers, colors=("",) * len(numbers))
    made, twin = (  # the same draw twice: the second one's captions are the numbers of the foregrounds
        scenes.compose(b, count, objects, size, torch.Generator().manual_seed(seed), apart=objects > 1)
        for b in (source.bank, numbered)
    )
    picks = [[int(re.findall(r"\d+", words)[0]) for words in row] for row in twin.captions]
    generator = torch.Generator().manual_seed(seed)
    kept: list[int] = []
    maps: list[tuple[Tensor, Tensor]] = []
    for b in range(count):
        alpha = made.layers[b, len(kept) % objects, 3]
        trimap, rough = (map_of(role, alpha, generator) for role in (Role.TRIMAP, Role.ROUGH))
        if len(kept) < n and _usable(alpha, trimap, rough):
            kept.append(b)
            maps.append((trimap, rough))
    assert len(kept) == n, f"only {len(kept)} of {count} scenes are usable"
    trimaps, roughs = (torch.stack(of) for of in zip(*maps, strict=True))
    return HeldOut(
        made.layers[kept],
        made.background[kept],
        made.composite[kept],
        torch.arange(n) % objects,
        trimaps,
        roughs,
        [made.captions[b] for b in kept],
        [[source.names[i] for i in picks[b]] for b in kept],
        [[source.colors[i] for i in picks[b]] for b in kept],
        [[_place(made.captions[b][k], made.layers[b, k, 3]) for k in range(objects)] for b in kept],
        [made.scene_captions[b] for b in kept],
    )


def _usable(alpha: Tensor, trimap: Tensor, rough: Tensor) -> bool:
    """A subject that is there, and that leaves some sure background in both maps: else there is nothing to compare."""
    return float(alpha.max()) > 0.1 and bool((trimap == 0).any()) and bool((rough == 0).any())


def _place(caption: str, alpha: Tensor) -> str:
    """Where an object is: as its caption says, else by the middle of the box around alpha (H, W)."""
    stated = caption.partition(" at the ")[2]
    if stated:
        return stated
    seen = alpha > alpha.max() / 10
    spans = [seen.any(dim=d).nonzero().flatten().float() for d in (0, 1)]  # columns, then rows
    middle = [(s[0] + s[-1] + 1) / length - 1 for s, length in zip(spans, alpha.shape[::-1], strict=True)]
    return scenes.place(torch.stack(middle))


def _with_article(words: str) -> str:
    first, last = words.split()[0], words.split(" at the ")[0].split()[-1]
    plural = last.endswith("s") and not last.endswith("ss")
    return words if first in ("a", "an", "the") or last in MASS or plural else article(words)
