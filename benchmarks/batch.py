"""Cut-outs of a folder of 24 photographs: `omnialpha batch` beside loops of single calls and rembg's way.

`python benchmarks/batch.py` makes the folder of scikit-image's four pictures at six sizes. `--repeats`, `--workers`.
`--photographs FOLDER` takes those in its input/ instead, and tells how far the alphas are from those in its alpha/.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from common.tables import Table, save
from common.timing import in_turn, medians, surroundings
from PIL import Image
from skimage import data

NAMES = ("astronaut", "coffee", "chelsea", "rocket")
SIDES = (240, 320, 400, 480, 560, 640)  # of the longer side
SINGLE = 4  # pictures of the single commands, which start anew for each


def photographs(folder: Path, sides: Sequence[int]) -> list[Path]:
    """JPEG files in a folder for each size."""
    made = []
    for side in sides:
        (folder / str(side)).mkdir(parents=True)
        for name in NAMES:
            picture = Image.fromarray(getattr(data, name)())
            scale = side / max(picture.size)
            picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.LANCZOS)
            made.append(folder / str(side) / f"{name}.jpg")
            picture.save(made[-1], quality=92)
    return made


def command(*arguments: object) -> None:
    """An `omnialpha` command in a process of its own, as users run it."""
    subprocess.run([sys.executable, "-m", "omnialpha", *map(str, arguments), "--quiet"], check=True)


def by_batch(folder: Path, out: Path, *options: object) -> None:
    command("batch", "matte", folder, out, *options)


def by_api(files: Sequence[Path], out: Path) -> None:
    """One process, one call after the other, loading included."""
    code = (
        "import sys, omnialpha\nmodel = omnialpha.load()\nout = sys.argv[1]\n"
        "for number, path in enumerate(sys.argv[2:]):\n"
        "    picture = omnialpha.read_image(path)\n"
        "    cut = model.matte(picture.rgba)\n"
        "    omnialpha.write_image(f'{out}/{number}.png', cut, source=picture)\n"
    )
    out.mkdir()
    subprocess.run([sys.executable, "-c", code, str(out), *map(str, files)], check=True)


def by_commands(files: Sequence[Path], out: Path) -> None:
    out.mkdir()
    for number, path in enumerate(files):
        command("matte", path, "-o", out / f"{number}.png")


def by_rembg(files: Sequence[Path], out: Path, matting: bool) -> None:
    """rembg's folder mode with our finder: one picture after the other, its mask enlarged, PNG; `-a` is its matting."""
    mode = "matting" if matting else "plain"
    subprocess.run([sys.executable, __file__, "--as-rembg", mode, str(out), *map(str, files)], check=True)


def as_rembg(mode: str, out: Path, files: Sequence[Path]) -> None:
    """What `rembg p` does: rembg/bg.py of 2.0.6x, with the network of ours that finds in its place."""
    from omnialpha.models.finder import bundled_finder

    finder = bundled_finder()
    for path in files:
        picture = Image.open(path).convert("RGB")
        pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None] / 255
        found = finder.find(torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1), mirror=False)[0]
        small = Image.fromarray((found * 255).byte().numpy())
        mask = small.resize(picture.size, Image.Resampling.LANCZOS)
        cut = picture.copy()
        cut.putalpha(mask)
        if mode == "matting":
            with suppress(ValueError):  # nothing is certain in the mask: rembg falls back to it too
                cut = _matting(picture, mask)
        target = out / path.parent.name / f"{path.stem}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        cut.save(target)


def _matting(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """rembg's alpha_matting_cutout: thresholds 240 and 10, erosion by 10 px."""
    from pymatting import estimate_alpha_cf, estimate_foreground_ml, stack_images
    from scipy.ndimage import binary_erosion

    levels = np.asarray(mask)
    square = np.ones((10, 10))
    trimap = np.full(levels.shape, 0.5)
    trimap[binary_erosion(levels > 240, square)] = 1.0
    trimap[binary_erosion(levels < 10, square, border_value=1)] = 0.0
    image = np.asarray(picture) / 255.0
    alpha = estimate_alpha_cf(image, trimap)
    return Image.fromarray((stack_images(estimate_foreground_ml(image, alpha), alpha) * 255).clip(0, 255).astype("u1"))


def error(out: Path, truth: Path) -> float:
    """Mean MAD of the alphas of pictures with those of the same names."""
    rows = []
    for path in truth.iterdir():
        (made,) = out.rglob(f"{path.stem}.png")
        wanted = np.asarray(Image.open(path).convert("RGB"))[..., 0]
        rows.append(np.abs(np.asarray(Image.open(made))[..., 3] / 255 - wanted / 255).mean())
    return float(np.mean(rows))


def measured(folder: Path, given: Path | None, sides: Sequence[int], workers: int, repeats: int) -> Table:
    files = sorted((given / "input").iterdir()) if given else photographs(folder / "in", sides)
    source = given / "input" if given else folder / "in"
    few = files[:: max(1, len(files) // SINGLE)][:SINGLE]
    many, threads = ("--workers", workers), ("--engine", "threads")
    rows: dict[str, tuple[Callable[[Path], None], int]] = {
        f"batch, {workers} processes": (lambda out: by_batch(source, out, *many), len(files)),
        f"batch, {workers} processes, --refine off": (
            lambda out: by_batch(source, out, *many, "--refine", "off"),
            len(files),
        ),
        "rembg's way, mask enlarged": (lambda out: by_rembg(files, out, False), len(files)),
        "rembg's way, its matting": (lambda out: by_rembg(files, out, True), len(files)),
    }
    if given is None:
        rows |= {
            f"batch, {workers} threads": (lambda out: by_batch(source, out, *many, *threads), len(files)),
            "batch, 1 worker": (lambda out: by_batch(source, out, "--workers", 1), len(files)),
            "API, one call after the other": (lambda out: by_api(files, out), len(files)),
            f"single commands ({len(few)} pictures)": (lambda out: by_commands(few, out), len(few)),
        }
    numbers, used, outs = itertools.count(), dict[str, list[float]](), dict[str, Path]()

    def call(way: str, run: Callable[[Path], None]) -> None:
        outs[way], before = folder / str(next(numbers)), resource.getrusage(resource.RUSAGE_CHILDREN)
        run(outs[way])
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        used.setdefault(way, []).append(took)

    calls = {way: partial(call, way, run) for way, (run, _) in rows.items()}
    took, processor = medians(in_turn(calls, repeats, torch.device("cpu"), warm=0)), medians(used)
    what = "photographs" if given else f"JPEG of {sides[0]} to {sides[-1]} px"
    table = Table(
        "Cut-outs of a folder",
        f"median of {repeats}, {len(files)} {what}, {os.cpu_count()} cores, "
        f"{surroundings(torch.device('cpu'), torch.float32)}",
        {"way": "", "s a picture": ".2f", "CPU s": ".2f", "batch is x as fast": ".2f"}
        | ({"alpha MAD": ".4f"} if given else {}),
        notes=[
            "Every way starts its processes and loads its model within the time.",
            "rembg's way with the mask enlarged does less: one look at 320 px, and the colours of the background stay.",
        ],
    )
    first = next(iter(took.values())) / len(files)
    for way, (_, count) in rows.items():
        errors = [error(outs[way], given / "alpha")] if given else []
        table.rows.append([way, took[way] / count, processor[way] / count, took[way] / count / first, *errors])
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--sides", type=int, nargs="+", default=list(SIDES))
    parser.add_argument("--photographs", type=Path, help="a folder with input/ and alpha/")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--as-rembg", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.as_rembg:
        mode, out, *files = options.as_rembg
        return as_rembg(mode, Path(out), [Path(file) for file in files])
    with TemporaryDirectory() as folder:
        table = measured(Path(folder), options.photographs, options.sides, options.workers, options.repeats)
    print(table.text())
    save([table], {name: getattr(options, name) for name in ("sides", "workers", "repeats")}, options.json, None)


if __name__ == "__main__":
    main()
