"""Designs of Crello: their elements as layers of the canvas, those that do not touch each other in one layer.

Layers are grouped as LayerD's evaluation does (Suzuki et al. 2025): a layer holds the elements that have equally many
overlapping ones in a row before them. Elements are drawn here with Pillow, text as the picture that the table holds:
the published renderer is another program, so single pixels along edges may differ.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from omnialpha.data.records import folders
from omnialpha.data.records.pictures import Handle
from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.folder_datasets import existing
from omnialpha.evaluation.datasets.parquet_datasets import find_tables, table_rows
from omnialpha.evaluation.datasets.samples import MadePicture, Sample, flattened, png
from omnialpha.evaluation.metrics.crello import top_groups
from omnialpha.tasks import MAX_LAYERS, Role

SHORT_SIDE = 360  # px of a drawn canvas, as published
COMPOSITES = ("composite", "image", "base")  # names that an exported composite may have
COLUMNS = ("id", "canvas_width", "canvas_height", "left", "top", "width", "height", "image")
OPTIONAL = ("angle", "opacity")

Design = tuple[str, Handle | None, tuple[Handle, ...]]  # its name, its composite if there is one, its layers


def crello(data: str, task: str) -> Iterator[Sample]:
    """Of data/test-*.parquet (version 5 of the table), or of folders NAME/00.png, 01.png, ... of one size, back to
    front, beside which composite.png may lie. A design of one layer or of more than a task makes is left out.
    """
    folder = existing(data, "Crello")
    tables = find_tables(folder)
    for key, composite, layers in _of_tables(tables) if tables else _of_folders(folder):
        if 2 <= len(layers) <= MAX_LAYERS + 1:
            yield Sample(key, task, {Role.COMPOSITE: composite or flattened(layers)}, layers)


def _of_folders(folder: Path) -> Iterator[Design]:
    places = sorted({path.parent for path in folders.find(folder)} - {folder})
    if not places:
        raise InputError(
            f"{folder} is not laid out as Crello: give its parquet files, or NAME/00.png, 01.png, ... in it."
        )
    for place in places:
        pictures = {path.stem.casefold(): path for path in folders.find(place)}
        given = next((pictures.pop(name) for name in COMPOSITES if name in pictures), None)
        yield place.relative_to(folder).as_posix(), given, tuple(path for _, path in sorted(pictures.items()))


def _of_tables(tables: Sequence[Path]) -> Iterator[Design]:
    for table, design in table_rows(tables, "version 5 of Crello", COLUMNS, OPTIONAL):
        if min(design["canvas_width"], design["canvas_height"]) < 100:  # classes of version 4, not pixels
            raise InputError(f"{table} counts its canvas in classes, not pixels: give version 5 of Crello.")
        yield str(design["id"]), None, layered(design)


def layered(design: Mapping[str, Any]) -> tuple[MadePicture, ...]:
    """The layers of a row of the table, back to front; the backmost one covers the canvas."""
    scale = SHORT_SIDE / min(design["canvas_width"], design["canvas_height"])
    size = (int(design["canvas_width"] * scale), int(design["canvas_height"] * scale))
    drawn = [draw(design, k, size, scale) for k in range(len(design["image"]))]
    covering = max((k for k, picture in enumerate(drawn) if alpha(picture).min() == 255), default=0)
    seen = [picture for picture in drawn[covering:] if alpha(picture).any()]
    pixels = np.stack([np.asarray(picture) for picture in seen]) if seen else np.zeros((0, *size[::-1], 4))
    merged = []
    for group in top_groups(torch.from_numpy(pixels).permute(0, 3, 1, 2)):
        merged.append(Image.new("RGBA", size))
        for k in group:
            merged[-1].alpha_composite(seen[k])
    if not merged or alpha(merged[0]).min() < 255:
        merged.insert(0, Image.new("RGBA", size, (255, 255, 255, 255)))
    return tuple(MadePicture(f"{design['id']}:{place}", partial(png, image)) for place, image in enumerate(merged))


def draw(design: Mapping[str, Any], k: int, size: tuple[int, int], scale: float) -> Image.Image:
    """Element k alone on a clear canvas of `size` (width, height)."""
    left, top, width, height = (design[name][k] * scale for name in ("left", "top", "width", "height"))
    try:
        picture = Image.open(io.BytesIO(design["image"][k]["bytes"])).convert("RGBA")
    except (OSError, TypeError) as error:
        raise InputError(
            f"element {k} of design {design['id']} is no picture ({error}): copy the table again."
        ) from error
    picture = picture.resize((max(1, round(width)), max(1, round(height))), Image.Resampling.BICUBIC)
    if angle := (design.get("angle") or [0.0] * (k + 1))[k]:
        picture = picture.rotate(-angle, Image.Resampling.BICUBIC, expand=True)
    if (opacity := (design.get("opacity") or [1.0] * (k + 1))[k]) < 1:
        picture.putalpha(picture.getchannel("A").point(lambda value: round(value * opacity)))
    canvas = Image.new("RGBA", size)
    canvas.paste(picture, (round(left + (width - picture.width) / 2), round(top + (height - picture.height) / 2)))
    return canvas


def alpha(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.getchannel("A"))
