"""Figures of pictures, and what is made of them: means over pictures, and errors pooled over all their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log10

import torch
from torch import Tensor

from omnialpha import rgba
from omnialpha.evaluation.metrics import image
from omnialpha.evaluation.metrics.backgrounds import BACKGROUNDS
from omnialpha.evaluation.reports.report import Row, mean

ABOUT = ("category", "part", "task", "method", "guidance")
OTHERS = ("key", "sample", "height", "width", "features", "seconds")  # of a row, which are no figures
SUM, COUNT, POOLED = "_sum", "_count", "_pooled"


def by_picture(**figures: Tensor) -> list[Row]:
    """Values (B,) by name -> a row each."""
    columns = {name: values.double().tolist() for name, values in figures.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def error(name: str, a: Tensor, b: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """Of pictures (B, C, H, W), where mask (B, H, W) says: PSNR of each, at most PSNR_8_BIT, and squared error and
    number of values, which are pooled.
    """
    total, count = image.squared_error(a, b, mask)
    return {name: image.psnr(a, b, mask, image.PSNR_8_BIT), f"{name}{SUM}": total, f"{name}{COUNT}": count}


def on_backgrounds(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """PSNR (B,) of RGBA pictures (B, 4, H, W) on each of BACKGROUNDS, at most PSNR_8_BIT, and their "mean"."""
    pairs = {name: (rgba.flatten(a, color), rgba.flatten(b, color)) for name, color in BACKGROUNDS.items()}
    each = {name: image.psnr(*pair, ceiling=image.PSNR_8_BIT) for name, pair in pairs.items()}
    return each | {"mean": torch.stack(list(each.values())).mean(dim=0)}


def weighted(difference: Tensor, weight: Tensor) -> Tensor:
    """Mean over channels of (B, C, H, W), then weighted by (B, H, W): (B,), NaN where nothing weighs."""
    return (difference.double().mean(dim=1) * weight).sum(dim=(1, 2)) / weight.double().sum(dim=(1, 2))


def summarise(rows: Sequence[Row]) -> Row:
    """Of the rows of one method in one part: n, each figure's mean over the pictures that have it, and PSNR in dB of
    what is pooled.
    """
    made: Row = {name: rows[0][name] for name in ABOUT} | {"n": len(rows)}
    for name in dict.fromkeys(name for row in rows for name in row if name not in (*ABOUT, *OTHERS)):
        if name.endswith(SUM):
            stem = name.removesuffix(SUM)
            total, count = (sum(row[f"{stem}{what}"] for row in rows) for what in (SUM, COUNT))
            made[f"{stem}{POOLED}"] = -10 * log10(total / count) if total else inf
        elif not name.endswith(COUNT):
            made[name] = mean(rows, name)
    return made
