"""Fixed held-out scenes: from a data folder's test split, or from that of the procedural layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from omnialpha import masks
from omnialpha.data.scene import Caption, Scene, map_of, to_example
from omnialpha.data.synthetic import bank as banks
from omnialpha.data.synthetic import layers as synthetic
from omnialpha.data.synthetic import scenes
from omnialpha.data.synthetic.bank import Bank
from omnialpha.data.synthetic.shapes import article
from omnialpha.errors import InputError
from omnialpha.tasks import TASKS, Example, Role

SIDE = 128  # pixels a side of a bank's pictures, as in the recipes
SPARE = 1.25  # scenes drawn for one that is kept
# Names that take no article
MASS = (
    "watercolour", "smoke", "mist", "snow", "hair", "fur", "grass", "confetti", "fire", "cloth", "fabric", "lace",
    "paint",
)  # fmt: skip


@dataclass(frozen=True)
class HeldOutSource:
    """A bank of held-out layers, the main colour of each foreground's pixels, and where they come from, in words."""

    bank: Bank
    colors: tuple[str, ...]
    about: str


def _stacked(of: Callable[[Scene], Tensor | None]) -> cached_property[Tensor]:
    """Of all scenes, (n, ..., H, W), stacked on first use."""

    def stack(held: HeldOutScenes) -> Tensor:
        return torch.stack([picture for scene in held.scenes if (picture := of(scene)) is not None])

    return cached_property(stack)


@dataclass(frozen=True)
class HeldOutScenes:
    """Scenes of as many layers and one size, each with its subject, that one's trimap and rough map, and captions that
    are worded as in training and know name, colour and place.

    Attributes:
        layers: (n, K, 4, H, W), back to front.
        background, composite: (n, 4, H, W).
        target: the layer that is asked for, (n, 4, H, W); `other` is the one that is not, in scenes of two.
        trimap: (n, H, W) in {0, .5, 1}; `rough` in {0, 1}.
    """

    scenes: tuple[Scene, ...]

    layers = _stacked(lambda scene: scene.layers)
    background = _stacked(lambda scene: scene.background)
    composite = _stacked(lambda scene: scene.composite)
    target = _stacked(lambda scene: scene.layers[scene.about[0]])
    other = _stacked(lambda scene: scene.layers[1 - scene.about[0]])
    trimap = _stacked(lambda scene: scene.maps[Role.TRIMAP][0])
    rough = _stacked(lambda scene: scene.maps[Role.ROUGH][0])

    def __len__(self) -> int:
        return len(self.scenes)

    def examples(self, task: str, prompts: Sequence[str | None] | None = None) -> list[Example]:
        """One request of a task for every scene, with its truths; the wordings of its instruction take turns."""
        pairs = zip(self.scenes, prompts or [None] * len(self), strict=True)
        return [to_example(scene, TASKS[task], wording=b, prompt=prompt) for b, (scene, prompt) in enumerate(pairs)]

    def phrases(self, pattern: str) -> list[tuple[str, str]]:
        """(asked, other) of each two-object scene, worded by {name}, {color}, {place}; "" is the composed caption."""
        return [
            (_phrase(pattern, scene.captions[k]), _phrase(pattern, scene.captions[1 - k]))
            for scene in self.scenes
            for k in scene.about
        ]


def _phrase(pattern: str, caption: Caption) -> str:
    """With an article, but for plurals and what MASS names."""
    if not pattern:
        return caption.text
    words = pattern.format(name=caption.name, color=caption.color, place=caption.place)
    first, last = words.split()[0], words.split(" at the ")[0].split()[-1]
    plural = last.endswith("s") and not last.endswith("ss")
    return words if first in ("a", "an", "the") or last in MASS or plural else article(words)


def open_source(folder: str | Path | None = None, side: int = SIDE) -> HeldOutSource:
    """The test split of a data folder, or of the procedural layers."""
    if folder is None:
        bank, about = banks.unseen(side), f"procedural, test split, seed {banks.TEST_SEED}"
    else:
        bank, about = banks.read(folder, side, "test"), f"test split of {Path(folder).name}"
    pixels = bank.foregrounds.permute(0, 2, 3, 1).numpy()
    return HeldOutSource(bank, tuple(synthetic.dominant_color(p) for p in pixels), about)


def draw(source: HeldOutSource, n: int, size: tuple[int, int], seed: int, objects: int = 1) -> HeldOutScenes:
    """n scenes at (height, width), equal for equal arguments. Two objects stand apart, and are asked for in turn."""
    if n < 1:
        raise InputError(f"n={n} scenes cannot be measured: use 1 or more.")
    count = int(n * SPARE) + 4
    made = scenes.compose(source.bank, count, objects, size, torch.Generator().manual_seed(seed), apart=objects > 1)
    generator = torch.Generator().manual_seed(seed)
    kept: list[Scene] = []
    for scene in made:
        subject = len(kept) % objects
        alpha = scene.layers[subject, 3]
        maps = {role: map_of(role, alpha, generator) for role in (Role.TRIMAP, Role.ROUGH)}
        # a subject that is there, and that leaves some sure background in both maps: else there is nothing to compare
        usable = float(alpha.max()) > 0.1 and all(bool((values == 0).any()) for values in maps.values())
        if len(kept) < n and usable:
            captions = tuple(
                caption._replace(color=source.colors[item], place=caption.place or _place(layer[3]))
                for caption, item, layer in zip(scene.captions, scene.items, scene.layers, strict=True)
            )
            pictures = {role: masks.as_picture(values) for role, values in maps.items()}
            kept.append(replace(scene, captions=captions, maps=pictures, subject=(subject,)))
    assert len(kept) == n, f"only {len(kept)} of {count} scenes are usable"
    return HeldOutScenes(tuple(kept))


def _place(alpha: Tensor) -> str:
    """The word for the middle of the box around alpha (H, W)."""
    seen = alpha > alpha.max() / 10
    spans = [seen.any(dim=d).nonzero().flatten().float() for d in (0, 1)]  # columns, then rows
    middle = [(s[0] + s[-1] + 1) / length - 1 for s, length in zip(spans, alpha.shape[::-1], strict=True)]
    return scenes.place(torch.stack(middle))
