"""Filling holes of known content in photographs: ours by several guides beside classical inpainting, and what it costs.

`python benchmarks/fill.py` takes twelve photographs that come with scikit-image; `--photographs FOLDER` others. In each
there are three holes: a blob, a figure that stands on the lower edge, a slanted pole. What the model sees in a hole is
another photograph. `-o FOLDER` writes the pictures side by side, `--megapixels 12` measures one large picture alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from common.tables import Table, save
from common.timing import peak_bytes, surroundings
from PIL import Image
from torch import Tensor

import omnialpha
from omnialpha import masks, rgba
from omnialpha.evaluation.methods import classical
from omnialpha.evaluation.metrics.image import psnr, squared_error
from omnialpha.fill import fill
from omnialpha.tasks import TASKS

CPU = torch.device("cpu")
BUNDLED = ("astronaut", "brick", "camera", "cat", "clock", "coffee", "coins", "grass", "gravel", "hubble_deep_field")
BUNDLED += ("rocket", "stereo_motorcycle")
HOLES = ("blob", "figure", "pole")
RIM = 5  # pixels around a hole in which SSIM is counted as well
SIDE = 300  # pixels of a picture on a sheet
PINK = torch.tensor([1.0, 0.0, 1.0])[:, None, None]


class Case(NamedTuple):
    """name; true, seen (3, H, W): the photograph, and with another one in the hole; hole (H, W) bool."""

    name: str
    true: Tensor
    seen: Tensor
    hole: Tensor


def bundled(name: str) -> np.ndarray:
    """A photograph that scikit-image has in its wheel, (H, W, 3) uint8."""
    from skimage import data, util

    found = getattr(data, name)()
    pixels = util.img_as_ubyte(found[0] if isinstance(found, tuple) else found)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def drawn_hole(kind: str, height: int, width: int, seed: int) -> Tensor:
    """(H, W) bool: some 8 %, 15 % or 4 % of a picture."""
    rng, side = np.random.default_rng(seed), min(height, width)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    if kind == "blob":
        top, left = rng.uniform(0.3, 0.7) * height, rng.uniform(0.3, 0.7) * width
        angle, radius = np.arctan2(y - top, x - left), np.full(y.shape, 0.16 * side)
        for waves in (2, 3, 5):
            radius *= 1 + rng.uniform(0.05, 0.2) * np.cos(waves * angle + rng.uniform(0, 2 * np.pi))
        hole = np.hypot(y - top, x - left) < radius
    elif kind == "figure":
        middle, top, head = rng.uniform(0.3, 0.7) * width, rng.uniform(0.2, 0.35) * height, 0.11 * side
        foot = 1.02 * height
        body = (np.abs(x - middle) / (0.2 * side)) ** 2.5 + (np.abs(y - foot) / (foot - top - 1.6 * head)) ** 2.5 < 1
        hole = body | (np.hypot((y - top - head) / 1.2, x - middle) < head)
    else:
        middle, slope, phase = rng.uniform(0.25, 0.75) * width, rng.uniform(-0.35, 0.35), rng.uniform(0, 6)
        half = 0.022 * side * (1 + 0.3 * np.sin(7 * y / height + phase))
        hole = np.abs(x - middle - slope * (y - height / 2)) < half
    return torch.from_numpy(hole)


def cases(folder: Path | None, limit: int | None) -> list[Case]:
    if folder is None:
        pictures = [(name, bundled(name)) for name in BUNDLED[:limit]]
    else:
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
        paths = paths[:: max(1, len(paths) // (limit or 12))][: limit or 12]
        pictures = [(path.stem, np.array(Image.open(path).convert("RGB"))) for path in paths]
    made = []
    for k, (name, pixels) in enumerate(pictures):
        true = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        other = torch.from_numpy(pictures[(k + 5) % len(pictures)][1]).permute(2, 0, 1)[None].float() / 255
        other = F.interpolate(other, size=true.shape[1:], mode="bilinear", antialias=True)[0]
        for kind in HOLES:
            hole = drawn_hole(kind, *pixels.shape[:2], seed=zlib.crc32(f"{name} {kind}".encode()))
            made.append(Case(f"{name}, {kind}", true, torch.where(hole, other, true), hole))
    return made


# ---- ways -----------------------------------------------------------------------------------------------------------


def patchmatch(seen: Tensor, hole: Tensor) -> Tensor:
    from patchmatch_cython import inpaint_pyramid

    pixels = (seen * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    filled = inpaint_pyramid(pixels, hole.numpy(), seed=0)
    return torch.from_numpy(filled).permute(2, 0, 1).float() / 255


def biharmonic(seen: Tensor, hole: Tensor) -> Tensor:
    from skimage.restoration import inpaint_biharmonic

    return torch.from_numpy(inpaint_biharmonic(seen.numpy(), hole.numpy(), channel_axis=0)).float()


def ours(seen: Tensor, hole: Tensor, guide: Tensor | None = None) -> Tensor:
    return fill(rgba.opaque(seen), hole, guide)[:3]


def smooth(seen: Tensor, hole: Tensor) -> Tensor:
    """The guide that `fill` makes without one."""
    from omnialpha.fill import _level, _picture

    return _picture(_level(seen, ~hole, hole, None).guide)


def nano(seen: Tensor, hole: Tensor) -> Tensor:
    """The bundled model's own pixels, made once."""
    if id(hole) in MADE:
        return MADE[id(hole)]
    example = TASKS["removal_rough"].example(composite=rgba.opaque(seen), rough=masks.as_picture(hole.float()))
    MADE[id(hole)] = MODEL[0].run([example], raw=True)[0].layers[0].rgba[:3]
    return MADE[id(hole)]


MODEL: list[omnialpha.OmniAlpha] = []
MADE: dict[int, Tensor] = {}  # by the hole
Way = Callable[[Tensor, Tensor], Tensor]


def ways(slow: bool, with_model: bool) -> dict[str, Way]:
    rows: dict[str, Way] = {
        "Telea": classical.telea,
        "Navier-Stokes": classical.navier_stokes,
        "smooth guide alone": smooth,
    }
    if slow:
        rows["biharmonic (scikit-image)"] = biharmonic
    if slow and find_spec("patchmatch_cython"):
        rows["PatchMatch, no guide (patchmatch-cython)"] = patchmatch
    rows["fill"] = ours
    if with_model:
        MODEL.append(omnialpha.load())
        rows["nano alone"] = nano
        rows["fill, nano as guide"] = lambda seen, hole: ours(seen, hole, nano(seen, hole))
        rows["fill, mean of both as guide"] = lambda s, h: ours(s, h, (nano(s, h) + smooth(s, h)) / 2)
    return rows


# ---- figures --------------------------------------------------------------------------------------------------------


def gradients(rgb: Tensor) -> Tensor:
    """Magnitudes of differences between neighbours in luma: (3, H, W) -> (H, W)."""
    grey = (rgb * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    down, across = grey.diff(dim=0, append=grey[-1:]), grey.diff(dim=1, append=grey[:, -1:])
    return (down.square() + across.square()).sqrt()


def figures(made: Tensor, case: Case) -> dict[str, float]:
    from skimage.metrics import structural_similarity

    total, count = squared_error(made[None], case.true[None], case.hole[None])
    settings = {"channel_axis": 0, "data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "full": True}
    near = masks.dilate(case.hole, RIM)
    rows, columns = (slice(max(int(n.min()) - 8, 0), int(n.max()) + 9) for n in near.nonzero().T)
    pair = (x[:, rows, columns].double().numpy() for x in (made, case.true))
    similar = structural_similarity(*pair, use_sample_covariance=False, **settings)[1].mean(axis=0)
    ours, true = (gradients(x)[case.hole].double() for x in (made, case.true))
    steps = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    apart = [np.quantile(x.numpy(), steps.numpy()) for x in (ours, true)]
    return {
        "error": float(total),
        "count": float(count),
        "psnr": float(psnr(made[None], case.true[None], case.hole[None])),
        "ssim": float(similar[near[rows, columns].numpy()].mean()),
        "ratio": float(ours.mean() / true.mean()),
        "apart": 100 * float(np.abs(apart[0] - apart[1]).mean()),
    }


def quality(rows: Sequence[Case], chosen: dict[str, Way], output: Path | None, about: str) -> Table:
    table = Table(
        "Holes of known content in photographs",
        f"n={len(rows)}: {len(rows) // len(HOLES)} photographs ({about}), a blob, a figure and a pole in each; in the"
        f" hole, seed 0, {surroundings(CPU, torch.float32)}",
        {"way": "", "PSNR, pooled": ".2f", "PSNR, mean": ".2f", "SSIM": ".3f", "gradients": ".2f", "apart": ".2f"}
        | {f"{kind}, pooled": ".2f" for kind in HOLES}
        | {"seconds": ".1f"},
        notes=[
            f"SSIM: in the hole and {RIM} px around. gradients: their mean magnitude by the true one's, median; 1 is"
            " best. apart: mean difference of the quantiles of their magnitudes, in percent of white; 0 is best."
        ],
    )
    sheets: list[list[Tensor]] = [[torch.where(c.hole, PINK, c.true), c.true] for c in rows]
    for way, call in chosen.items():
        start, found = time.perf_counter(), []
        for case, sheet in zip(rows, sheets, strict=True):
            made = torch.where(case.hole, call(case.seen, case.hole), case.true).clamp(0, 1)
            found.append(figures(made, case))
            sheet.append(made)
        took = (time.perf_counter() - start) / len(rows)
        parts = [found, *(found[k :: len(HOLES)] for k in range(len(HOLES)))]
        pooled = [-10 * np.log10(sum(f["error"] for f in p) / sum(f["count"] for f in p)) for p in parts]
        mean = {name: float(np.mean([f[name] for f in found])) for name in ("psnr", "ssim", "apart")}
        ratio = float(np.median([f["ratio"] for f in found]))
        table.rows.append(
            [way, float(pooled[0]), mean["psnr"], mean["ssim"], ratio, mean["apart"], *map(float, pooled[1:]), took]
        )
        print("  ".join(table.cells()[-1]), file=sys.stderr, flush=True)
    if output:
        write_sheets(output, sheets)
    return table


def write_sheets(folder: Path, sheets: Sequence[Sequence[Tensor]]) -> None:
    """Six rows a sheet: the hole, the truth, then the ways in the order of the table."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for sheet in sheets:
        size = (round(SIDE * sheet[0].shape[1] / sheet[0].shape[2]), SIDE)
        small = F.interpolate(torch.stack(list(sheet)), size=size, mode="bilinear", antialias=True)
        lines.append(torch.cat([*small], dim=2))
    for k in range(0, len(lines), 6):
        pixels = (torch.cat(lines[k : k + 6], dim=1).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(folder / f"sheet-{k // 6}.png")


def cost(megapixels: float) -> Table:
    """One large picture: gravel, enlarged and tiled."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    width = round(megapixels * 1e6 / height)
    tile = torch.from_numpy(bundled("gravel")).permute(2, 0, 1).float() / 255
    tile = torch.cat([torch.cat([tile, tile.flip(2)], dim=2), torch.cat([tile.flip(1), tile.flip(1, 2)], dim=2)], dim=1)
    picture = tile.repeat(1, -(-height // tile.shape[1]), -(-width // tile.shape[2]))[:, :height, :width]
    table = Table(
        "Filling one large picture: seconds and memory",
        f"n=1 each, gravel, tiled, seed 0, {surroundings(CPU, torch.float32)}, {os.cpu_count()} cores",
        {"size": "", "hole": "", "of the picture": ".1%", "seconds": ".1f", "of CPU": ".1f", "MiB more": ".0f"},
        notes=["MiB more: the most that was resident so far, less what was before the first (an upper bound)."],
    )
    image, small = rgba.opaque(picture), torch.zeros(64, 64, dtype=torch.bool)
    small[24:40, 24:40] = True
    fill(rgba.opaque(tile[:, :64, :64]), small)  # loads what is compiled
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").is_file() else 0
    for kind in HOLES:
        hole = drawn_hole(kind, height, width, 0)
        begin, processor = time.perf_counter(), time.process_time()
        fill(image, hole)
        took, used = time.perf_counter() - begin, time.process_time() - processor
        more = (peak_bytes(CPU) - pages * os.sysconf("SC_PAGE_SIZE")) / 2**20
        table.rows.append([f"{width}x{height}", kind, float(hole.float().mean()), took, used, more])
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Filling holes in photographs: errors, texture, seconds, memory.")
    parser.add_argument("--photographs", type=Path, help="a folder of other photographs")
    parser.add_argument("--limit", type=int, help="so many photographs; 12 of a folder")
    parser.add_argument("--megapixels", type=float, help="measure one picture of this size, and nothing else")
    parser.add_argument("--slow", action="store_true", help="biharmonic inpainting and patchmatch-cython as well")
    parser.add_argument("--no-model", action="store_true", help="leave nano out")
    parser.add_argument("--threads", default=os.cpu_count(), type=int)
    parser.add_argument("-o", "--output", type=Path, help="write the pictures side by side into this folder")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.megapixels:
        table = cost(options.megapixels)
    else:
        about = options.photographs.name if options.photographs else "scikit-image's"
        chosen = ways(options.slow, not options.no_model)
        table = quality(cases(options.photographs, options.limit), chosen, options.output, about)
    print(table.text())
    save([table], {"threads": options.threads}, options.json, None)


if __name__ == "__main__":
    main()
