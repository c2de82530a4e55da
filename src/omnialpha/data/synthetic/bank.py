"""A bank: foreground layers and backgrounds held as two uint8 tensors, so that scenes are composed in batches on any
device.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omnialpha.data.records.split import belongs
from omnialpha.data.scene import Caption
from omnialpha.data.synthetic import layers as synthetic
from omnialpha.errors import InputError

TEST_FOREGROUNDS, TEST_BACKGROUNDS = 200, 150  # drawn to measure on, where no folder is given
TEST_SEED = 21  # of those: what was trained before there were splits has seen all items of seed 20


@dataclass(frozen=True)
class Bank:
    """Layers and backgrounds to compose scenes from.

    Attributes:
        foregrounds: (N, 4, S, S) uint8, straight RGBA; captions: one each.
        backgrounds: (M, 3, S, S) uint8; background_captions: one each.
    """

    foregrounds: Tensor
    captions: tuple[Caption, ...]
    backgrounds: Tensor
    background_captions: tuple[str, ...]

    @property
    def size(self) -> int:
        return int(self.foregrounds.shape[-1])

    def to(self, device: torch.device | str) -> Bank:
        return replace(self, foregrounds=self.foregrounds.to(device), backgrounds=self.backgrounds.to(device))


def join(banks: Sequence[Bank]) -> Bank:
    """Several banks of one picture size as one."""
    return Bank(
        torch.cat([b.foregrounds for b in banks]),
        sum((b.captions for b in banks), ()),
        torch.cat([b.backgrounds for b in banks]),
        sum((b.background_captions for b in banks), ()),
    )


def procedural(foregrounds: int, backgrounds: int, size: int, seed: int, split: str = "train") -> Bank:
    """Layers and scenes drawn by `synthetic`, of one split, "train" or "test". Needs no files."""
    layers, captions = synthetic.bank(foregrounds, size, seed, split)
    scenes, places = synthetic.backgrounds(backgrounds, size, seed, split)
    return Bank(_planes(layers), tuple(captions), _planes(scenes), tuple(places))


def unseen(size: int) -> Bank:
    """The drawn layers and scenes that everything is measured on: in the test split whatever the seed of training."""
    return procedural(TEST_FOREGROUNDS, TEST_BACKGROUNDS, size, TEST_SEED, "test")


def read(folder: str | Path, size: int, split: str) -> Bank:
    """Layers and scenes of a folder with foregrounds.jsonl and backgrounds.jsonl (rows: file, caption), resized to
    `size`: those rows whose file is in the split, "train" or "test". InputError where there are none.
    """
    folder = Path(folder)
    fronts, scenes = (_rows(folder / f"{kind}.jsonl", split) for kind in ("foregrounds", "backgrounds"))
    layers = [_layer(content, size, white="particle" in row["file"]) for row, content in fronts]
    behind = [np.asarray(_square(Image.open(BytesIO(content)).convert("RGB"), size)) for _, content in scenes]
    names = [row["caption"] or "object" for row, _ in fronts]
    captions = tuple(Caption(name, name, synthetic.dominant_color(x)) for name, x in zip(names, layers, strict=True))
    places = tuple(row["caption"] or "a place" for row, _ in scenes)
    return Bank(_planes(np.stack(layers)), captions, _planes(np.stack(behind)), places)


def _rows(manifest: Path, split: str) -> list[tuple[dict[str, str], bytes]]:
    """(row, bytes of its file) of all rows of a manifest that are in the split."""
    if not manifest.is_file():
        raise InputError(f"{manifest} is missing: a data folder holds foregrounds.jsonl and backgrounds.jsonl.")
    rows = [json.loads(line) for line in manifest.read_text().splitlines() if line]
    files = ((row, (manifest.parent / row["file"]).read_bytes()) for row in rows)
    found = [(row, content) for row, content in files if belongs(content, split)]
    if not found:
        kept = {"train": "none to train on", "test": "none held out"}[split]
        raise InputError(f"{manifest} has {len(rows)} rows, {kept} (by content, 1 in 16 is held out): give more.")
    return found


def _layer(content: bytes, size: int, white: bool) -> np.ndarray:
    picture = Image.open(BytesIO(content))
    pixels = np.array(_square(picture.convert("RGBa"), size).convert("RGBA"))  # resized premultiplied
    if white:  # the particle set is white on purpose: give each a colour of its own
        tint = np.array(list(synthetic.COLORS.values()))[zlib.crc32(content) % len(synthetic.COLORS)]
        pixels[..., :3] = (pixels[..., :3].astype(np.uint16) * tint // 255).astype(np.uint8)
    return pixels


def _square(image: Image.Image, size: int) -> Image.Image:
    """By a filter without negative taps: Lanczos overshoots at an edge, and dividing by alpha makes that a halo."""
    return image.resize((size, size), Image.Resampling.HAMMING)


def _planes(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
