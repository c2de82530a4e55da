"""Reads a generated picture back: its colour by name, its outline by the nearest of reference drawings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omnialpha.data.synthetic import layers as synthetic
from omnialpha.data.synthetic.shapes import OUTLINES, place, rasterize
from omnialpha.evaluation.metrics.matting import soft_iou

SIDE = 32  # pixels a side of a normalised mask
DRAWINGS = 48  # references a shape: they turn freely
SEEN = 0.05  # a picture whose alpha never reaches this shows nothing


@dataclass(frozen=True)
class Request:
    """What is asked for, with a true drawing of the same colour and shape (4, S, S)."""

    color: str
    shape: str
    drawing: Tensor

    @property
    def prompt(self) -> str:
        return f"{'an' if self.color[0] in 'aeiou' else 'a'} {self.color} {self.shape}"


def requests(n: int, seed: int, size: int) -> list[Request]:
    """n colour-shape pairs as procedural drawings have them, evenly over the shapes; none of them was trained on."""
    made = []
    for i in range(n):
        kind = synthetic.SOLID[i % len(synthetic.SOLID)]
        pixels, caption = synthetic.draw(kind, np.random.default_rng((seed, i, 2)), size)
        made.append(Request(caption.color, kind, torch.from_numpy(pixels).permute(2, 0, 1).float() / 255))
    return made


class Reader:
    """Colour: the name that covers most. Shape: the outline whose drawings come nearest in soft IoU, boxes aligned."""

    def __init__(self, seed: int) -> None:
        masks, self.owners = [], []
        for s, (shape, (outline, turn)) in enumerate(OUTLINES.items()):
            for k in range(DRAWINGS):
                rng = np.random.default_rng((seed, s, k, 3))
                alpha = torch.from_numpy(rasterize(place(rng, outline(rng), turn), 2 * SIDE))
                masks.append(_boxed(alpha))
                self.owners.append(shape)
        self.masks = torch.stack(masks)

    def read(self, rgba: Tensor) -> tuple[str, str]:
        """(colour, shape) of a picture (4, H, W); empty words where nothing is to be seen."""
        if float(rgba[3].max()) < SEEN:
            return "", ""
        pixels = (rgba.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        nearest = int(soft_iou(_boxed(rgba[3].clamp(0, 1)), self.masks).argmax())
        return synthetic.dominant_color(pixels), self.owners[nearest]


def _boxed(alpha: Tensor) -> Tensor:
    """alpha (H, W) cut to the box of what is at least half as opaque as its most opaque pixel -> (SIDE, SIDE)."""
    alpha = alpha / alpha.max()
    rows, columns = ((alpha >= 0.5).any(dim=d).nonzero().flatten() for d in (1, 0))
    box = alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return F.interpolate(box[None, None], (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)[0, 0]
