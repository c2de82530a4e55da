"""A bank: foreground layers and backgrounds held as two uint8 tensors, so that scenes are composed in batches on any
device.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omnialpha.data import synthetic
from omnialpha.errors import InputError

TEST_FOREGROUNDS, TEST_BACKGROUNDS = 200, 150  # held out after the seeded shuffle, never trained on


@dataclass(frozen=True)
class Bank:
    """foregrounds (N, 4, S, S) straight RGBA, backgrounds (M, 3, S, S), uint8; one caption and one colour name each (""
    if unknown).
    """

    foregrounds: Tensor
    captions: tuple[str, ...]
    colors: tuple[str, ...]
    backgrounds: Tensor
    scenes: tuple[str, ...]

    @property
    def size(self) -> int:
        return int(self.foregrounds.shape[-1])

    def to(self, device: torch.device | str) -> Bank:
        return Bank(self.foregrounds.to(device), self.captions, self.colors, self.backgrounds.to(device), self.scenes)


def join(banks: Sequence[Bank]) -> Bank:
    """Several banks of one picture size as one."""
    return Bank(
        torch.cat([b.foregrounds for b in banks]),
        sum((b.captions for b in banks), ()),
        sum((b.colors for b in banks), ()),
        torch.cat([b.backgrounds for b in banks]),
        sum((b.scenes for b in banks), ()),
    )


def procedural(foregrounds: int, backgrounds: int, size: int, seed: int) -> Bank:
    """Layers and scenes drawn by `synthetic`: item i depends on (seed, i) alone. Needs no files."""
    layers, captions = synthetic.bank(foregrounds, size, seed)
    scenes, places = synthetic.backgrounds(backgrounds, size, seed)
    return Bank(_planes(layers), tuple(captions), ("",) * foregrounds, _planes(scenes), tuple(places))


def read(folder: str | Path, size: int, split: str, seed: int) -> Bank:
    """Layers and scenes of a folder with foregrounds.jsonl and backgrounds.jsonl (rows: file, caption), resized to
    `size`.

    split: "train" or "test"; the test split is the last TEST_FOREGROUNDS and TEST_BACKGROUNDS rows after a shuffle by
    `seed`.
    """
    folder = Path(folder)
    chosen = {}
    for kind, held in (("foregrounds", TEST_FOREGROUNDS), ("backgrounds", TEST_BACKGROUNDS)):
        manifest = folder / f"{kind}.jsonl"
        if not manifest.is_file():
            raise InputError(f"{manifest} is missing: a data folder holds foregrounds.jsonl and backgrounds.jsonl.")
        rows = [json.loads(line) for line in manifest.read_text().splitlines() if line]
        if len(rows) <= held:
            raise InputError(f"{manifest} has {len(rows)} rows, {held} of which are held out: give more.")
        order = np.random.default_rng(seed).permutation(len(rows))
        chosen[kind] = [rows[i] for i in (order[:-held] if split == "train" else order[-held:])]
    rng = np.random.default_rng((seed, 1))
    layers = [_layer(folder / r["file"], size, rng, white="particle" in r["file"]) for r in chosen["foregrounds"]]
    captions = tuple(r["caption"] or "object" for r in chosen["foregrounds"])
    colors = tuple(synthetic.dominant_color(x) for x in layers)
    scenes = np.stack(
        [np.asarray(_square(Image.open(folder / r["file"]).convert("RGB"), size)) for r in chosen["backgrounds"]]
    )
    places = tuple(r["caption"] or "a place" for r in chosen["backgrounds"])
    return Bank(_planes(np.stack(layers)), captions, colors, _planes(scenes), places)


def _layer(path: Path, size: int, rng: np.random.Generator, white: bool) -> np.ndarray:
    pixels = np.array(_square(Image.open(path).convert("RGBa"), size).convert("RGBA"))  # resized premultiplied
    if white:  # the particle set is white on purpose: give each a colour
        tint = np.array(list(synthetic.COLORS.values()))[rng.integers(len(synthetic.COLORS))]
        pixels[..., :3] = (pixels[..., :3].astype(np.uint16) * tint // 255).astype(np.uint8)
    return pixels


def _square(image: Image.Image, size: int) -> Image.Image:
    """By a filter without negative taps: Lanczos overshoots at an edge, and dividing by alpha makes that a halo."""
    return image.resize((size, size), Image.Resampling.HAMMING)


def _planes(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
