"""Samples a second that the loader gives to a training step that costs nothing, beside what a step of one GPU takes.

`python benchmarks/loading.py` draws its own records and packs them as shards. `--workers 0 4 8`: processes to try.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common.tables import Table, save
from common.timing import surroundings
from PIL import Image

from omnialpha.data.records import shards
from omnialpha.data.records.records import Record, parse
from omnialpha.data.stream.datasets import DatasetSettings
from omnialpha.data.stream.mixture import Mixture
from omnialpha.data.stream.stream import StreamSettings, open_stream
from omnialpha.data.synthetic import bank as banks
from omnialpha.data.synthetic import layers as synthetic
from omnialpha.training.loader import IndexedDataset, batches

TASKS = {"matting_auto": 1.0, "removal_rough": 1.0, "decompose_auto": 1.0}
H100 = 0.4 * 989e12  # FLOP/s: a share that well-made training reaches of what the card has in bf16 without sparsity
LORA = 6  # FLOP a weight and token: forward, forward again (checkpointing), and backward to activations alone


def records(folder: Path, count: int, side: int) -> list[Record]:
    """Layered records of PNGs, (side, side) px: one foreground and one background each."""
    rows = []
    for number in range(count):
        rng = np.random.default_rng(number)
        front, caption = synthetic.draw(synthetic.KINDS[number % len(synthetic.KINDS)], rng, side)
        back, place = synthetic.background(rng, side)
        for name, pixels in (("fg", front), ("bg", back)):
            Image.fromarray(pixels).save(folder / f"{number}-{name}.png")
        row: dict[str, Any] = {"id": number, "captions": {"foreground": caption.text, "background": place}}
        row |= {"foreground": f"{number}-fg.png", "background": f"{number}-bg.png"}
        rows.append(parse(row, folder))
    return rows


def speed(data: IndexedDataset, first: int, count: int, size: int, workers: int) -> float:
    """Samples a second over `count` batches of `size`, after as many that start the workers."""
    pinned = torch.cuda.is_available()
    loaded = batches(data, range(first, first + 2 * count), workers, 2, pinned)
    for _ in range(count):
        next(loaded)
    start = time.perf_counter()
    for _ in range(count):
        next(loaded)
    seconds = time.perf_counter() - start
    loaded.close()
    return count * size / seconds


def needed(weights: float, side: int, text: int = 500) -> float:
    """Samples a second that a LoRA step takes on one H100, counted: two pictures, 16 px a token, and text."""
    return H100 / (LORA * weights * (2 * (side // 16) ** 2 + text))


def measured(folder: Path, sides: Sequence[int], workers: Sequence[int], count: int) -> Table:
    table = Table(
        "Batches for a step that costs nothing",
        f"{count} batches of 4 samples after as many, 3 tasks, {os.cpu_count()} cores, "
        f"{surroundings(torch.device('cpu'), torch.float32)}",
        {"data": "", "px": "d", "workers": "d", "samples/s": ".1f", "an H100 takes, samples/s": ".2f"},
        notes=[
            "records: PNG files in a shard, decoded, scaled, cut and composed; scenes: nano's, composed from a bank.",
            "an H100 takes: a LoRA of the 20.4 B transformer, counted at 40 % of the card's bf16, encoding left out.",
        ],
    )
    for side in sides:
        place = folder / str(side)
        place.mkdir()
        shards.pack(records(place, 8, side), place / "shards")
        drawn = StreamSettings([DatasetSettings(str(place / "shards"))], dict(TASKS))
        stream = open_stream(drawn, [(side, side)], 4, 0)
        for n in workers:
            table.rows.append(["records", side, n, speed(stream, 0, count, 4, n), needed(20.4e9, side)])
    scenes = Mixture(banks.procedural(200, 60, 128, 0), TASKS, [(96, 96)], 4, 0)
    table.rows += [["scenes", 96, n, speed(scenes, 0, 4 * count, 4, n), None] for n in workers]
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Samples a second of the loader, with a step that costs nothing.")
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024], help="of records, in px")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, os.cpu_count() or 1])
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args(argv)
    with TemporaryDirectory() as folder:
        table = measured(Path(folder), options.sides, options.workers, options.batches)
    print(table.text())
    save([table], {name: getattr(options, name) for name in ("sides", "workers", "batches")}, options.json, None)


if __name__ == "__main__":
    main()
