"""A small dataset on disk: layered records and pairs, whose pictures tell which record and layer they are of."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 40, 56


def front(number: int, layer: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(H, W, 4) uint8: a soft disk; red is the record's number, green 60 a layer. Layers lie from left to right."""
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - height / 2, x - width * (0.25 + 0.25 * layer))
    alpha = np.clip((height / 4 - distance) / 3, 0, 1)
    colour = np.broadcast_to([10 * number, 60 * layer, 200], (height, width, 3))
    return np.dstack([colour, alpha * 255]).round().astype(np.uint8)


def back(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(H, W, 3) uint8: ramps."""
    y, x = np.mgrid[:height, :width]
    return np.stack([np.full_like(x, 10 * number), 4 * y, 4 * x], axis=-1).astype(np.uint8)


def save(pixels: np.ndarray, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path.name


def layered_row(folder: Path, number: int, layers: int = 1, **changes: Any) -> dict[str, Any]:
    """A row with foregrounds, background and captions; its pictures are written. None takes a key out."""
    names = [f"{number}-fg{k}.png" for k in range(layers)]
    for k, name in enumerate(names):
        save(front(number, k), folder / "pictures" / name)
    save(back(number), folder / "pictures" / f"{number}-bg.png")
    row: dict[str, Any] = {
        "id": f"r{number}",
        "foreground": [f"pictures/{n}" for n in names] if layers > 1 else f"pictures/{names[0]}",
        "background": f"pictures/{number}-bg.png",
        "captions": {
            "foreground": [f"disk {number} {k}" for k in range(layers)] if layers > 1 else f"disk {number}",
            "background": f"ramp {number}",
        },
    }
    return {key: value for key, value in (row | changes).items() if value is not None}


def pair_row(folder: Path, number: int, prompt: str = "") -> dict[str, Any]:
    """A row of the published format for `matting_rough`: composite and mask in, foreground out."""
    save(back(number), folder / "pictures" / f"{number}-in.png")
    save(front(number)[..., 3], folder / "pictures" / f"{number}-mask.png")
    save(front(number), folder / "pictures" / f"{number}-out.png")
    names = [f"pictures/{number}-{part}.png" for part in ("in", "mask", "out")]
    return {"id": f"p{number}", "prompt": prompt, "input_images": names[:2], "output_images": names[2:]}


def write_manifest(path: Path, rows: list[Any]) -> Path:
    """Rows as JSON lines; a row that is text is written as it is."""
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def manifest(folder: Path, count: int, layers: int = 1, name: str = "rows.jsonl", **changes: Any) -> Path:
    """A manifest of `count` layered rows."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_manifest(folder / name, [layered_row(folder, n, layers, **changes) for n in range(count)])


def pack_shards(folder: Path, layers: list[int]) -> str:
    """Records with so many foregrounds each, as shards; their path as a recipe has it."""
    from omnialpha.data.records import shards
    from omnialpha.data.stream.datasets import DatasetSettings, rows

    listed = write_manifest(folder / "rows.jsonl", [layered_row(folder, n, count) for n, count in enumerate(layers)])
    shards.pack([row.record for row in rows(DatasetSettings(str(listed))) if row.record], folder / "shards")
    return json.dumps(f"{folder}/shards/*.tar")
