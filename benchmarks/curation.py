"""Masks and scores of curation: how many a second at 1,024 px on one thread, beside grey morphology with the same disk.

    python benchmarks/curation.py [--side 1024] [--turns 5] [--skimage-to 25]

The maps of all ways are compared pixel by pixel first. scikit-image takes minutes for a large disk, so it is timed once
and up to a radius.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter

import cv2
import numpy as np
import torch
from common.tables import Table
from skimage import morphology

from omnialpha import rgba
from omnialpha.curation import scoring

RADII = (25, 50, 100)


def soft_disk(side: int) -> torch.Tensor:
    """An alpha (side, side) with a wavy soft rim, in 8 bits."""
    y, x = np.mgrid[:side, :side] / side - 0.5
    edge = 0.3 + 0.04 * np.sin(9 * np.arctan2(y, x))
    return torch.from_numpy((((edge - np.hypot(x, y)) * 25).clip(0, 1) * 255).round().astype(np.float32) / 255)


def disk(radius: int) -> np.ndarray:
    reach = np.arange(-radius, radius + 1)
    return (reach[:, None] ** 2 + reach[None] ** 2 <= radius**2).astype(np.uint8)


def by_opencv(levels: np.ndarray, radius: int) -> np.ndarray:
    eroded, dilated = cv2.erode(levels, disk(radius)), cv2.dilate(levels, disk(radius))
    return np.where(eroded == 255, 255, np.where(dilated == 0, 0, 128))


def by_skimage(levels: np.ndarray, radius: int) -> np.ndarray:
    eroded, dilated = morphology.erosion(levels, disk(radius)), morphology.dilation(levels, disk(radius))
    return np.where(eroded == 255, 255, np.where(dilated == 0, 0, 128))


def seconds(run: Callable[[], object], turns: int) -> float:
    """The median of some turns."""
    times = []
    for _ in range(turns):
        began = perf_counter()
        run()
        times.append(perf_counter() - began)
    return median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--skimage-to", type=int, default=25, metavar="RADIUS")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    alpha = soft_disk(given.side)
    levels = (alpha * 255).round().byte().numpy()
    made = Table(
        "Maps of an alpha, how many a second",
        f"{given.side} px, one thread, medians of {given.turns} turns, scikit-image one",
        {"radius": "d", "published": ".2f", "training": ".2f", "OpenCV": ".2f", "scikit-image": ".2f",
         "to OpenCV": ".1f", "to scikit-image": ".1f"},
    )  # fmt: skip
    for radius in RADII:
        ours = scoring.maps(alpha, radius, "published")["trimap"].numpy()
        slow = radius <= given.skimage_to
        for other in (by_opencv, by_skimage) if slow else (by_opencv,):
            if not np.array_equal(np.where(ours == 0.5, 128, ours * 255), other(levels, radius)):
                raise SystemExit(f"{other.__name__} makes another trimap at radius {radius}")
        published, training = (
            seconds(lambda: scoring.maps(alpha, radius, way), given.turns) for way in ("published", "training")  # noqa: B023
        )  # fmt: skip
        opencv = seconds(lambda: by_opencv(levels, radius), given.turns)  # noqa: B023
        skimage = seconds(lambda: by_skimage(levels, radius), 1) if slow else None  # noqa: B023
        rates = [1 / published, 1 / training, 1 / opencv, 1 / skimage if skimage else None]
        made.rows.append([radius, *rates, opencv / published, skimage / published if skimage else None])
    print(made.text())
    back, color = (torch.rand(3, given.side, given.side, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    front = torch.cat([color, alpha[None]])
    whole = rgba.opaque(rgba.recompose([rgba.opaque(back), front]))
    taken = seconds(lambda: scoring.scores(front, rgba.opaque(back), whole), given.turns)
    print(f"scores a second: {1 / taken:.1f}")


if __name__ == "__main__":
    main()
