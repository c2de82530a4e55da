"""Where training pictures come from: layers drawn by rule, banks of layers and scenes, folder trees of RGBA files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from omnialpha import rgba
from omnialpha.data.records.folders import FolderPictures, split
from omnialpha.data.records.split import SHARE
from omnialpha.data.synthetic import bank as banks
from omnialpha.data.synthetic.bank import Bank
from omnialpha.data.synthetic.scenes import compose


class Pictures(Protocol):
    """Batches of pictures by number, each of the settings and its number alone."""

    def __getitem__(self, index: int) -> Tensor:
        """(B, 4, H, W) float32 in [0, 1], straight alpha."""


@dataclass(frozen=True)
class DataSettings:
    """Where layers come from. folders: with foregrounds.jsonl and backgrounds.jsonl; the rest is drawn by
    `data.synthetic`.
    """

    size: int = 128
    folders: list[str] = field(default_factory=list)
    foregrounds: int = 2000
    backgrounds: int = 500
    seed: int = 0


def load_banks(settings: DataSettings) -> tuple[Bank, Bank]:
    """(train, held out)."""
    train = [banks.read(f, settings.size, "train") for f in settings.folders]
    if settings.foregrounds:
        train.append(banks.procedural(settings.foregrounds, settings.backgrounds, settings.size, settings.seed))
    return banks.join(train), held_out(settings)


def held_out(settings: DataSettings) -> Bank:
    """The test split of every folder; without folders, that of drawn layers. No setting but the folders moves it."""
    if not settings.folders:
        return banks.unseen(settings.size)
    return banks.join([banks.read(f, settings.size, "test") for f in settings.folders])


@dataclass(frozen=True)
class FolderSettings:
    """Folder trees of RGBA files. held_out: the share that is validated on; see `FolderPictures` for the rest."""

    folders: list[str] = field(default_factory=list)
    held_out: float = SHARE
    crop: float = 0.5
    flip: float = 0.5
    opaque: bool = False
    seed: int = 0


def folder_pictures(
    settings: FolderSettings, batch: int, sizes: Sequence[tuple[int, int]]
) -> tuple[FolderPictures, FolderPictures]:
    """(train, held out); held-out pictures are whole and not mirrored."""
    train, test = split(settings.folders, settings.held_out, settings.opaque)
    return (
        FolderPictures(tuple(train), batch, sizes, settings.seed, settings.crop, settings.flip),
        FolderPictures(tuple(test), batch, sizes, settings.seed, crop=0.0, flip=0.0),
    )


@dataclass(frozen=True)
class FlattenedPictures:
    """A share of pictures composited on colours of {0, .5, 1}^3 and made opaque: pictures without transparency are seen
    too [AlphaVAE, arXiv 2507.09308].
    """

    pictures: Pictures
    share: float
    seed: int

    def __getitem__(self, index: int) -> Tensor:
        generator, x = torch.Generator().manual_seed(self.seed * 1_000_003 + index), self.pictures[index]
        chosen = torch.rand(len(x), 1, 1, 1, generator=generator) < self.share
        colors = torch.randint(3, (len(x), 3, 1, 1), generator=generator) / 2
        return torch.where(chosen, rgba.opaque(rgba.flatten(x, colors)), x)


@dataclass(frozen=True)
class ScenePictures:
    """Composites of a bank's layers and scenes, and as many of the layers alone."""

    bank: Bank
    batch: int
    sizes: Sequence[tuple[int, int]]
    seed: int

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        scenes = compose(self.bank, self.batch // 2, 1, self.sizes[index % len(self.sizes)], generator)
        whole = [scene.composite for scene in scenes if scene.composite is not None]
        return torch.stack(whole + [scene.layers[0] for scene in scenes])
