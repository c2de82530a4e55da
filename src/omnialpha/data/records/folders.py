"""Training pictures from any folder tree of RGBA files: a deterministic stream of whole pictures and crops of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from omnialpha import rgba
from omnialpha.data.records.split import SHARE, held_out
from omnialpha.errors import InputError
from omnialpha.io import FORMATS, read_image


@dataclass(frozen=True)
class FolderPictures:
    """Batches of pictures (B, 4, H, W) in [0, 1], straight alpha, of the size sizes[i mod their number].

    Batch i depends on (settings, i) alone, and an epoch (batches of one size) sees every file once.

    Attributes:
        crop: the share of pictures cut at random out of their files at native resolution; the others show the whole
            file, scaled to cover the size and cut at the centre.
        flip: the share that is mirrored, left to right.
    """

    files: tuple[Path, ...]
    batch: int
    sizes: Sequence[tuple[int, int]]
    seed: int = 0
    crop: float = 0.5
    flip: float = 0.5

    def __post_init__(self) -> None:
        assert self.files and self.seed >= 0
        for name in ("crop", "flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)} is not a share of the pictures: use 0 to 1.")

    def __getitem__(self, index: int) -> Tensor:
        size = self.sizes[index % len(self.sizes)]
        draws = torch.rand(self.batch, 4, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + index))
        numbers = range(index * self.batch, (index + 1) * self.batch)
        return torch.stack(
            [self._picture(self._file(n), size, *d) for n, d in zip(numbers, draws.tolist(), strict=True)]
        )

    def _file(self, number: int) -> Path:
        """The file of the picture `number` of the stream; numbers below 0 are epochs of their own."""
        epoch, place = divmod(number, len(self.files))
        return self.files[_order(self.seed, epoch, len(self.files))[place]]

    def _picture(self, file: Path, size: tuple[int, int], crop: float, top: float, left: float, flip: float) -> Tensor:
        """(4, *size). crop, top, left, flip: what chance says, each in [0, 1)."""
        x, whole = read_image(file).rgba, crop >= self.crop
        scale = max(size[0] / x.shape[1], size[1] / x.shape[2])
        if whole or scale > 1:  # scaled until it covers the size: nothing is stretched
            x = scaled(x, (max(size[0], round(x.shape[1] * scale)), max(size[1], round(x.shape[2] * scale))))
        down, right = x.shape[1] - size[0], x.shape[2] - size[1]  # how far the cut may move
        i, j = (down // 2, right // 2) if whole else (int(top * (down + 1)), int(left * (right + 1)))
        x = x[:, i : i + size[0], j : j + size[1]]
        return x.flip(-1) if flip < self.flip else x


@lru_cache(maxsize=8)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which an epoch sees the files."""
    return np.random.default_rng((seed, epoch % 2**32)).permutation(count)


def scaled(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Straight (4, H, W) -> (4, *size) by a filter without negative taps, so that no colour and no alpha overshoots
    at an edge: training must not see halos that are not in the file.
    """
    if tuple(x.shape[1:]) == size:
        return x
    y = F.interpolate(rgba.premultiply(x)[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]
    alpha = y[3:].clamp(0, 1)
    alpha = torch.where(alpha > 1 - 1e-5, 1.0, alpha)  # the filter's taps sum to 1 only up to rounding
    return rgba.unpremultiply(torch.cat([y[:3].clamp(min=0).minimum(alpha), alpha]))


def background_moments(files: Sequence[Path], workers: int = 4) -> Iterator[Tensor]:
    """Of each picture in turn, over its pixels: mean and mean square of R, G, B in [-1, 1], (2, 3) float64.

    InputError for one that is not opaque: it is no background.
    """

    def moments(file: Path) -> Tensor:
        x = read_image(file).rgba
        if not bool((x[3] == 1).all()):
            raise InputError(f"{file} has transparent pixels, so it is no background: flatten it, or take it away.")
        b = x[:3].double() * 2 - 1
        return torch.stack([b.mean((1, 2)), b.square().mean((1, 2))])

    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(files), 8 * workers):  # a mistake is met before all files have been read
            yield from pool.map(moments, files[start : start + 8 * workers])


# ---- files ----------------------------------------------------------------------------------------------------------


def find(folder: str | Path) -> list[Path]:
    """The picture files below a folder, by their path in it; hidden ones are passed over. InputError where none is."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give one that holds pictures.")
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in FORMATS)
    files = sorted((p for p in paths if not any(part.startswith(".") for part in p.parts)), key=Path.as_posix)
    if not files:
        raise InputError(f"{folder} holds no pictures ({', '.join(FORMATS)}): give a folder that does.")
    return [folder / path for path in files]


def find_transparent(folder: str | Path, opaque: bool = False) -> list[Path]:
    """`find`, every file of which must have an alpha channel. opaque: those without are taken as opaque instead."""
    files = find(folder)
    if not opaque and (file := next((file for file in files if not has_alpha(file)), None)):
        raise InputError(f"{file} has no alpha channel: give RGBA pictures, or opaque=true to take it as opaque.")
    return files


def has_alpha(file: Path) -> bool:
    """By the header; a file that only the slow reader knows is read, which says what is wrong with a damaged one."""
    try:
        with Image.open(file) as image:
            return image.has_transparency_data
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return bool((read_image(file).rgba[3] < 1).any())


def split(folders: Sequence[str | Path], share: float = SHARE, opaque: bool = False) -> tuple[list[Path], list[Path]]:
    """(training files, held-out files): about a `share` is held out, by the bytes of a file alone.

    InputError where a folder leaves nothing on one side.
    """
    if not 0 < share < 1:
        raise InputError(f"held_out={share} is not a share of the pictures: use a number between 0 and 1.")
    parts: tuple[list[Path], list[Path]] = ([], [])
    for folder in folders:
        files = find_transparent(folder, opaque)
        aside = [held_out(file.read_bytes(), share) for file in files]
        if len(set(aside)) < 2:
            held = f"{len(files)} pictures, {sum(aside)} of which are held out"
            raise InputError(f"{folder} has {held}: give more, or another held_out.")
        for file, out in zip(files, aside, strict=True):
            parts[out].append(file)
    return parts
