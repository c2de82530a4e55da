"""What refinement costs, and what it gains on photographs with true alpha.

`python benchmarks/refine.py` prints seconds and memory on a picture drawn here. With `--finder PATH --data FOLDER`, a
finder (a folder or an .onnx file) and a folder with `input`, `alpha` and `trimap` of the same file names, also errors.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common.tables import Table, save
from common.timing import peak_bytes, surroundings
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from omnialpha.evaluation.metrics.matting import measure
from omnialpha.models.finder import Finder, open_finder
from omnialpha.models.u2net import SIDE
from omnialpha.refine import coarse_trimap, enlarge, refine, working_size

CPU = torch.device("cpu")
SIZES = ((750, 1000), (3000, 4000))
METRICS = (("whole", "mad"), ("whole", "grad"), ("whole", "conn"))
METRICS += (("unknown", "mad"), ("unknown", "sad"), ("unknown", "grad"), ("unknown", "conn"))


def drawn(height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A ball with hair on a cloudy ground: image (4, H, W) and true alpha (H, W). Hair is as fine in any size."""
    rng = np.random.default_rng(seed)
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    x, y, radius = width / 2, height / 2, height * 0.28
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    for _ in range(height // 2):
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(1.1, 1.5) * radius
        ends = ((r, a) for r, a in ((radius * 0.9, angle), (length, angle + rng.normal(0, 0.1))))
        draw.line([(x + r * np.cos(a), y + r * np.sin(a)) for r, a in ends], fill=255, width=2)
    alpha = torch.from_numpy(np.array(mask.filter(ImageFilter.GaussianBlur(1)))).float() / 255
    noise = torch.from_numpy(rng.random((2, 3, height // 40 + 2, width // 40 + 2), dtype=np.float32))
    back, front = F.interpolate(noise, size=(height, width), mode="bicubic").clamp(0, 1)
    front = front * 0.2 + torch.tensor([0.5, 0.3, 0.15])[:, None, None]
    image = torch.ones(4, height, width)
    image[:3] = front * alpha + back * (1 - alpha)
    return image, alpha


def cost() -> Table:
    table = Table(
        "Refinement: seconds and memory of one picture",
        f"n=1, drawn (a ball with hair), seed 0, coarse alpha {SIDE}x{SIDE} (the true one's mean), "
        f"{surroundings(CPU, torch.float32)}, {os.cpu_count()} cores",
        {"size": "", "unknown": ".1%", "solved at": "", "seconds": ".1f", "of CPU": ".1f", "MiB more": ".0f"},
        notes=["MiB more: the most that was resident while it ran, less what was resident before (an upper bound)."],
    )
    image, alpha = drawn(64, 64)
    refine(image, alpha)  # loads what is compiled
    for size in SIZES:
        image, alpha = drawn(*size)
        coarse = F.interpolate(alpha[None, None], size=(SIDE, SIDE), mode="area")[0, 0]
        trimap = enlarge(coarse_trimap(coarse), size)
        unknown, working = float((trimap == 0.5).float().mean()), working_size(trimap)
        del trimap
        pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").is_file() else 0
        begin, processor = time.perf_counter(), time.process_time()
        refine(image, coarse)
        took, used = time.perf_counter() - begin, time.process_time() - processor
        more = (peak_bytes(CPU) - pages * os.sysconf("SC_PAGE_SIZE")) / 2**20
        shape, at = (f"{s[1]}x{s[0]}" for s in (size, working))
        table.rows.append([shape, unknown, at, took, used, more])
    return table


def upsampled(coarse: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(coarse[None, None], size=tuple(size), mode="bilinear", align_corners=False)[0, 0]


def closed_form(image: Tensor, trimap: Tensor) -> Tensor:
    """pymatting's own, as it comes."""
    from pymatting import estimate_alpha_cf

    alpha = estimate_alpha_cf(image[:3].permute(1, 2, 0).double().numpy(), trimap.double().numpy())
    return torch.from_numpy(alpha).float().clamp(0, 1)


def read(folder: Path, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Image (4, H, W), true alpha and trimap (H, W)."""
    rgb = torch.from_numpy(np.array(Image.open(folder / "input" / name).convert("RGB"))).permute(2, 0, 1) / 255
    alpha = torch.from_numpy(np.array(Image.open(folder / "alpha" / name).convert("RGB")))[..., 0] / 255
    grey = torch.from_numpy(np.array(Image.open(folder / "trimap" / name).convert("L"))).float()
    return torch.cat([rgb, torch.ones_like(rgb[:1])]), alpha, (grey / 127.5).round() / 2


def quality(finder: Finder, path: Path, folder: Path, limit: int | None) -> Table:
    names = sorted(p.name for p in (folder / "input").glob("*.png"))[:limit]
    ways: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "finder alone, bilinear": lambda image, coarse, trimap: upsampled(coarse, image.shape[1:]),
        "refined": lambda image, coarse, trimap: refine(image, coarse)[3],
        "closed form with trimap": lambda image, coarse, trimap: closed_form(image, trimap),
        "refined with trimap": lambda image, coarse, trimap: refine(image, coarse, trimap)[3],
    }
    figures: dict[str, list[list[float]]] = {way: [] for way in ways}
    for name in names:
        image, true, trimap = read(folder, name)
        coarse = finder.find(image[None])[0]
        for way, call in ways.items():
            made = call(image, coarse, trimap)
            row = [float(measure(made, true, trimap, region, names=[metric])[metric]) for region, metric in METRICS]
            figures[way].append(row)
        print(name, *(f"{way}: {rows[-1][0]:.4f}" for way, rows in figures.items()), sep="  ", file=sys.stderr)
    table = Table(
        "Refinement of photographs: errors of alpha",
        f"n={len(names)}, {folder.name}, full size, finder: {path.name}, metrics as in Deep Image Matting, "
        f"{surroundings(CPU, torch.float32)}",
        {"way": ""} | {f"{region} {metric.upper()}": ".4f" for region, metric in METRICS},
    )
    table.rows = [[way, *map(float, np.mean(rows, axis=0))] for way, rows in figures.items()]
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Refinement: seconds, memory, and errors on photographs.")
    parser.add_argument("--finder", type=Path, help="a finder's folder, or an .onnx file")
    parser.add_argument("--data", type=Path, help="a folder with input, alpha and trimap")
    parser.add_argument("--limit", type=int, help="so many photographs")
    parser.add_argument("--threads", default=os.cpu_count(), type=int)
    parser.add_argument("--json", type=Path, help="also write the tables here")
    options = parser.parse_args(argv)
    if (options.finder is None) != (options.data is None):
        parser.error("--finder and --data are needed together.")
    torch.set_num_threads(options.threads)
    tables = [cost()]
    print(tables[0].text(), end="\n\n")
    if options.data:
        tables.append(quality(open_finder(options.finder), options.finder, options.data, options.limit))
        print(tables[1].text())
    save(tables, {"threads": options.threads}, options.json, None)


if __name__ == "__main__":
    main()
