"""Where training pictures come from: layers drawn by rule, banks of layers and scenes, folder trees of RGBA files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from omnialpha.data.records.folders import FolderPictures, flatten_some, split
from omnialpha.data.records.split import SHARE
from omnialpha.data.synthetic import bank as banks
from omnialpha.data.synthetic.bank import Bank
from omnialpha.data.synthetic.scenes import compose

Pictures = Callable[[int], Tensor]  # index of a batch -> (B, 4, H, W)


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
    workers: int = 4
    seed: int = 0


def folder_pictures(settings: FolderSettings, batch: int, sizes: list[tuple[int, int]]) -> tuple[Pictures, Pictures]:
    """(train, held out). Batch i has the size sizes[i mod their number]."""
    train, test = split(settings.folders, settings.held_out, settings.opaque)
    shares = {name: getattr(settings, name) for name in ("crop", "flip", "workers", "seed")} | {"flatten": 0.0}
    streams = FolderPictures(tuple(train), **shares), FolderPictures(tuple(test), **shares).unchanged()

    def of(stream: FolderPictures) -> Pictures:
        return lambda index: stream.pictures(index, batch, sizes[index % len(sizes)])

    return of(streams[0]), of(streams[1])


def flattened(pictures: Pictures, share: float, seed: int) -> Pictures:
    """A share of them opaque, on colours of {0, .5, 1}^3: see `flatten_some`."""

    def some(index: int) -> Tensor:
        return flatten_some(pictures(index), share, torch.Generator().manual_seed(seed * 1_000_003 + index))

    return some


def scene_pictures(bank: Bank, batch: int, sizes: list[tuple[int, int]], seed: int) -> Pictures:
    """Composites of a bank's layers and scenes, and as many of the layers alone."""

    def pictures(index: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        scenes = compose(bank, batch // 2, 1, sizes[index % len(sizes)], generator)
        whole = [scene.composite for scene in scenes if scene.composite is not None]
        return torch.stack(whole + [scene.layers[0] for scene in scenes])

    return pictures
