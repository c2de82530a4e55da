"""CONN and GRAD beside the ways that other Python code computes them: `python benchmarks/matting_metrics.py`.

Each way is written down here from what it does, in its shortest form, and runs in the same process as ours on the same
mattes; distance maps that some versions compute and then drop are left out. Then what each says of the pictures that
the original MATLAB code was run on, so that the wrong ones show. What is printed goes into docs/metrics.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import scipy
import skimage
import torch
from common.documents import write_block
from common.tables import Cell, Table, save
from common.timing import in_turn, medians
from scipy import ndimage
from skimage.measure import label, regionprops

from omnialpha.evaluation.metrics.matting import measure

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "metrics.md"
STEPS = 0.1 * np.arange(11)  # float64, as most versions have them: the seventh is above .6
TOLERANCE = 1e-4  # relative: a figure farther from the right one is wrong

Largest = Callable[[np.ndarray], np.ndarray | None]  # of a mask: the component, or None for "skip this level"
Score = Callable[[np.ndarray, np.ndarray], float]  # predicted, true (H, W) float64


# ---- CONN: the ways to find the largest component, and what is the same in all of them ------------------------------


def by_regions(mask: np.ndarray) -> np.ndarray | None:
    """AIM, P3M: properties of all regions; a level without any is skipped."""
    regions = regionprops(label(mask, connectivity=1))
    if not regions:
        return None
    inside = np.zeros(mask.shape, dtype=bool)
    inside[tuple(regions[int(np.argmax([r.area for r in regions]))].coords.T)] = True
    return inside


def by_most_frequent(mask: np.ndarray) -> np.ndarray:
    """GCA-Matting and its many descendants: the most frequent label, which may be the background's."""
    labels = label(mask, connectivity=1)
    return labels == np.bincount(labels.ravel()).argmax()


def by_loop(mask: np.ndarray) -> np.ndarray:
    """One comparison of the whole picture for each component."""
    labels, count = ndimage.label(mask)
    sizes = [int((labels == number).sum()) for number in range(1, count + 1)]
    return labels == 1 + int(np.argmax(sizes)) if sizes else mask


def by_statistics(mask: np.ndarray) -> np.ndarray:
    """OpenCV's areas, without the first one."""
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4)
    return labels == 1 + statistics[1:, cv2.CC_STAT_AREA].argmax() if count > 1 else mask


def by_count(mask: np.ndarray) -> np.ndarray:
    """scipy's labels counted, without the first one."""
    labels, count = ndimage.label(mask)
    return labels == 1 + np.bincount(labels.ravel())[1:].argmax() if count else mask


def conn_of(largest: Largest, steps: np.ndarray) -> Score:
    """CONN in the type of `steps`, level after level."""

    def score(p: np.ndarray, g: np.ndarray) -> float:
        p, g = p.astype(steps.dtype), g.astype(steps.dtype)
        level = np.full(g.shape, -1, dtype=steps.dtype)
        for i in range(1, len(steps)):
            inside = largest((p >= steps[i]) & (g >= steps[i]))
            if inside is not None:
                level[(level == -1) & ~inside] = steps[i - 1]
        level[level == -1] = 1
        phi_p, phi_g = (1 - (a - level) * (a - level >= 0.15) for a in (p, g))
        return float(np.abs(phi_p - phi_g).sum(dtype=np.float64) / 1000)

    return score


# ---- GRAD -----------------------------------------------------------------------------------------------------------


def grad_of(convolve: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Score:
    """GRAD with a 9x9 kernel in two dimensions."""
    x = np.arange(-4, 5)
    bell = np.exp(-(x**2) / (2 * 1.4**2))
    kernel = np.outer(bell, x * bell)
    kernel /= np.linalg.norm(kernel)

    def score(p: np.ndarray, g: np.ndarray) -> float:
        full = [(a - a.min()) / (np.ptp(a) or 1) for a in (p, g)]
        steep = [np.hypot(convolve(a, kernel), convolve(a, kernel.T)) for a in full]
        return float(((steep[0] - steep[1]) ** 2).sum() / 1000)

    return score


def grad_aim(p: np.ndarray, g: np.ndarray) -> float:
    """As AIM and P3M have it."""
    steep = [
        np.hypot(*(ndimage.gaussian_filter(a, 1.4, order=o, output=np.float32) for o in ((1, 0), (0, 1))))
        for a in (p, g)
    ]
    return float(np.square(steep[0] - steep[1]).sum(dtype=np.float64) / 10)


def ours(name: str) -> Score:
    return lambda p, g: float(measure(p, g, names=[name])[name])


OURS = "ours"
CONN: Mapping[str, Score] = {
    "skimage, regionprops, empty skipped": conn_of(by_regions, STEPS),
    "skimage, background counted": conn_of(by_most_frequent, STEPS),
    "scipy, loop over components": conn_of(by_loop, STEPS),
    "OpenCV, statistics": conn_of(by_statistics, STEPS),
    "scipy, bincount, float32": conn_of(by_count, STEPS.astype(np.float32)),
    OURS: ours("conn"),
}
GRAD: Mapping[str, Score] = {
    "scipy, 9x9": grad_of(lambda a, k: ndimage.convolve(a, k, mode="nearest")),
    "OpenCV, 9x9": grad_of(lambda a, k: cv2.filter2D(a, -1, k, borderType=cv2.BORDER_REPLICATE)),
    OURS: ours("grad"),
}
GRAD_AIM: Mapping[str, Score] = {"scipy, Gaussian derivative": grad_aim, OURS: ours("grad_aim")}
TIMED = {"CONN": CONN, "GRAD": GRAD, "GRAD, aim": GRAD_AIM}


# ---- tables ---------------------------------------------------------------------------------------------------------


def mattes(side: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(predicted, true) in 8-bit steps, float64: a disk with a frayed rim, and the same blurred, with stray clouds."""
    generator = np.random.default_rng(seed)
    fine, coarse = (ndimage.gaussian_filter(generator.standard_normal((side, side)), side / s) for s in (256, 40))
    y, x = np.mgrid[:side, :side] / side - 0.5
    inward = (0.34 - np.hypot(y, x)) / 0.08
    true = np.clip(0.5 + inward + 0.5 * fine / fine.std() * (np.abs(inward) < 1), 0, 1)
    stray = np.clip(coarse / coarse.std() - 1.5, 0, 1)
    predicted = np.clip(ndimage.gaussian_filter(true, side / 512) + 0.5 * stray - 0.05, 0, 1)
    eight_bits = [np.round(a * 255) / 255 for a in (predicted, true)]
    return eight_bits[0], eight_bits[1]


def about(threads: int) -> str:
    versions = (("numpy", np), ("scipy", scipy), ("skimage", skimage), ("OpenCV", cv2), ("torch", torch))
    named = ", ".join(f"{name} {module.__version__}" for name, module in versions)
    return f"CPU ({platform.machine()}, {threads} threads), {named}"


def is_right(value: float, wanted: float) -> bool:
    return abs(value - wanted) <= TOLERANCE * max(abs(wanted), 1e-9)


def speed(sizes: Sequence[int], repeats: int, threads: int) -> Table:
    table = Table(
        "Matting metrics: seconds of one picture",
        f"n=1, procedural mattes, seed 0, region: whole, {about(threads)}",
        {"metric": "", "px": "d", "way": "", "seconds": ".3f", "ours is faster by": ".1f", "value": ".4f", "right": ""},
        notes=[
            f"Medians of {repeats}, in turns. right: within {TOLERANCE:g} of scipy, bincount, float32 (CONN) or of the"
            " first way (GRAD)."
        ],
    )
    for metric, ways in TIMED.items():
        truth = "scipy, bincount, float32" if metric == "CONN" else next(iter(ways))
        for side in sizes:
            p, g = mattes(side)
            values = {way: score(p, g) for way, score in ways.items()}
            calls = {way: partial(score, p, g) for way, score in ways.items()}
            seconds = medians(in_turn(calls, repeats, torch.device("cpu")))
            for way, value in values.items():
                ratio = seconds[way] / seconds[OURS]
                right = is_right(value, values[truth])
                table.rows.append([metric, side, way, seconds[way], ratio, value, right])
    return table


def agreement() -> Table:
    """CONN of every way on the pictures of the originals."""
    sys.path.append(str(ROOT / "tests"))
    from matting_oracle import GOLDEN, PREDICTED, TRUE

    height, width = TRUE.shape
    table = Table(
        "CONN of the pictures that the original code was run on",
        f"n={len(PREDICTED)}, {width}x{height} px, region: whole, original: MATLAB code under Octave",
        {"picture": "", "original": ".4f"} | dict.fromkeys(CONN, ".4f"),
        notes=[f"(!): more than {TOLERANCE:g} from the original, relative."],
    )
    for name, picture in PREDICTED.items():
        p, g = (m.double().numpy() / 255 for m in (picture, TRUE))
        wanted = GOLDEN[name, "whole"]["conn"]
        figures = [score(p, g) for score in CONN.values()]
        cells: list[Cell] = [f if is_right(f, wanted) else f"(!) {f:.4f}" for f in figures]
        table.rows.append([name, wanted, *cells])
    return table


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description="CONN and GRAD beside other versions: seconds, and what they say.")
    parser.add_argument("--sizes", default="1024,2048", help="px of a side, with commas")
    parser.add_argument("--repeats", default=5, type=int)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works: no figure to quote")
    parser.add_argument("--threads", default=os.cpu_count(), type=int)
    parser.add_argument("--json", type=Path, help="also write the tables here")
    parser.add_argument("--document", type=Path, help=f"where tables go (default: {DOCUMENT.name}, none if --quick)")
    options = parser.parse_args(argv)
    if options.quick:
        options.sizes, options.repeats = "64", 1
    document = options.document or (None if options.quick else DOCUMENT)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    sizes = [int(size) for size in options.sizes.split(",")]
    tables = [agreement(), speed(sizes, options.repeats, options.threads)]
    for table in tables:
        print(table.text(), end="\n\n")
    save(tables, {"sizes": sizes, "threads": options.threads}, options.json, None)
    if document:
        write_block(document, "matting", tables, shlex.join(["python", "benchmarks/matting_metrics.py", *argv]))


if __name__ == "__main__":
    main()
