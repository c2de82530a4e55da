"""What is drawn on a picture, clicks, boxes and strokes of a brush, and the map that it makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.masks import Mark
from omnialpha.tasks import Role, Task

# What a brush paints, by map: the values of a pixel, in [0, 1], and their names
LEVELS: dict[Role, tuple[tuple[str, float], ...]] = {
    Role.ALPHA: (("Subject", 1.0), ("Half clear", 0.5), ("Background", 0.0)),
    Role.TRIMAP: (("Subject", 1.0), ("Unsure", 0.5), ("Background", 0.0)),
    Role.PRECISE: (("Subject", 1.0), ("Background", 0.0)),
    Role.ROUGH: (("Subject", 1.0), ("Background", 0.0)),
}
OUTLINED = Role.ROUGH  # the map that clicks and boxes make


def tools_of(task: Task) -> list[str]:
    """The tools that draw the map of a task."""
    role = task.map
    return [] if role is None else ["point", "box", "brush"] if role is OUTLINED else ["brush"]


@dataclass(frozen=True)
class Stroke:
    """Of a round brush. path: (x, y) in pixels from the top left. level: the value that it paints."""

    level: float
    radius: float
    path: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Drawing:
    """points, boxes: see `masks.marks`. strokes: in the order in which they were painted."""

    points: tuple[Mark, ...] = ()
    boxes: tuple[Mark, ...] = ()
    strokes: tuple[Stroke, ...] = ()

    @classmethod
    def read(cls, rows: Sequence[dict[str, Any]]) -> Drawing:
        """From the rows of a page, each of a `kind`. InputError where they are not what a page sends."""
        points, boxes, strokes = list[Mark](), list[Mark](), list[Stroke]()
        try:
            for row in rows:
                if row["kind"] == "stroke":
                    path = tuple((_finite(x), _finite(y)) for x, y in row["path"])
                    strokes.append(Stroke(_finite(row["level"]), _finite(row["radius"]), path))
                else:
                    mark = (*map(_finite, row["at"]), bool(row["subject"]))
                    {"point": points, "box": boxes}[row["kind"]].append(mark)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the drawing cannot be read ({error}): clear it, and draw again.") from None
        return cls(tuple(points), tuple(boxes), tuple(strokes))

    def map(
        self,
        role: Role,
        picture: Tensor,
        given: Tensor | None,
        outline: Callable[[Tensor, Sequence[Mark], Sequence[Mark]], Tensor],
    ) -> Tensor | None:
        """The map (H, W) in [0, 1] for a picture (4, H, W); None where nothing is drawn.

        Args:
            role: Of the map.
            picture: What is drawn on.
            given: A map (H, W) that the brush retouches; black without one.
            outline: See `OmniAlpha.outline`; asked for clicks and boxes.

        Raises:
            InputError: Clicks or boxes are drawn for another map than a rough one, or beside one that is given.
        """
        size = (int(picture.shape[1]), int(picture.shape[2]))
        marked = self.points or self.boxes
        if marked and role is not OUTLINED:
            raise InputError(f"clicks and boxes make a {OUTLINED} mask, not a {role}: use the brush.")
        if marked and given is not None:
            raise InputError(f"a {role} mask is given beside clicks or boxes: clear one of them.")
        if not marked and not self.strokes:
            return None
        base = outline(picture, self.points, self.boxes).float() if marked else given
        if base is not None and tuple(base.shape) != size:
            raise InputError(f"the {role} has another size than the picture: make them the same size.")
        values = base if base is not None else torch.zeros(size)
        for stroke in self.strokes:
            values = torch.where(_painted(stroke, size), stroke.level, values)
        return values


def _painted(stroke: Stroke, size: tuple[int, int]) -> Tensor:
    """bool (H, W): where a stroke lies."""
    image = Image.new("1", (size[1], size[0]))
    draw, radius = ImageDraw.Draw(image), min(max(stroke.radius, 0.5), max(size))
    if len(stroke.path) > 1:
        draw.line(stroke.path, 1, round(2 * radius), "curve")
    for x, y in stroke.path:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), 1)
    return torch.from_numpy(np.array(image))


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number) or abs(number) > 1e6:
        raise ValueError(f"{number} is no place in a picture")
    return number
