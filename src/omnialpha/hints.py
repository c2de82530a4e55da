"""What a model is told of a picture by its finder: an input more, by two looks; and rough maps of clicks and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from omnialpha import masks, rgba
from omnialpha.canvas import Canvas
from omnialpha.errors import InputError
from omnialpha.models.checkpoints.card import Card
from omnialpha.models.finder import Finder, hint_of
from omnialpha.tasks import MAPS, TASKS, Example, Role

MARGIN, MOST = 0.3, 0.97  # of the subject's size: what a second look sees around it; of the picture: what it may see
REACH = 0.04  # of the side: how far a rough map reaches beyond what was found


def hinted(example: Example, finder: Finder, card: Card) -> Example:
    """An example with what the finder sees in its picture. In automatic tasks that is an input picture more, the last;
    where the card takes alpha from the finder, it looks for what the map of the example marks. Others stay as they are.
    """
    automatic = TASKS[example.task].automatic
    guide = next((role for role in example.roles if role in MAPS), None)
    wanted = automatic or (guide is not None and finder.hints and example.task in card.alpha_from_finder)
    if not wanted or example.found is not None:
        return example
    given = dict(zip(example.roles, example.inputs, strict=True))
    hint = hint_of(guide, given[guide][0]) if guide else None
    found = look(finder, given[Role.COMPOSITE].cpu(), hint)
    if not automatic:
        return replace(example, found=found)
    shown, words = found, example.instruction
    if card.hint_as == Role.ROUGH:
        shown = around(found)
    if card.hint_as and words:  # empty is what is trained without an instruction
        words = TASKS[example.task.replace("auto", card.hint_as)].instruct()
    roles, inputs = (*example.roles, Role.HINT), (*example.inputs, masks.as_picture(shown))
    return replace(example, roles=roles, inputs=inputs, instruction=words, found=found)


def inputs(example: Example, found: bool) -> int:
    """How many an example has once it is `hinted`. found: whether the model has a finder."""
    added = found and TASKS[example.task].automatic and Role.HINT not in example.roles
    return len(example.roles) + added


def fitted(example: Example, canvas: Canvas, device: torch.device) -> list[Tensor]:
    """The inputs on the canvas; a hint, whose size is the finder's own, is resized to the content first."""
    sized = [
        rgba.resize(picture, canvas.content) if role is Role.HINT else picture
        for role, picture in zip(example.roles, example.inputs, strict=True)
    ]
    return [canvas.fit(picture.to(device)) for picture in sized]


def look(finder: Finder, picture: Tensor, hint: Tensor | None = None) -> Tensor:
    """What a finder sees in a picture, with a second look at the part around it, so that small subjects come out sharp.

    Args:
        picture: straight RGBA (4, H, W) in [0, 1].
        hint: (h, w) in [-1, 1] of the whole picture, for a finder that makes use of hints.

    Returns:
        Alpha in [0, 1] of the picture stretched to a square: (2s, 2s), s being the finder's own side, or (s, s) where
        nothing was found or the second look would see the whole picture again.
    """
    found = finder.find(picture[None], None if hint is None else hint[None])[0]
    if not (found > 0.5).any():
        return found
    height, width = picture.shape[1:]
    top, bottom = _span((found > 0.5).sum(1), height)
    left, right = _span((found > 0.5).sum(0), width)
    if (bottom - top) * (right - left) > MOST * height * width:
        return found
    part = None
    if hint is not None:
        part = F.interpolate(hint[None, None], size=(height, width))[0, :, top:bottom, left:right]
    again = finder.find(picture[None, :, top:bottom, left:right], part)
    side = 2 * found.shape[0]
    made = F.interpolate(found[None, None], size=(side, side), mode="bilinear")[0, 0]
    top, bottom, left, right = (round(side * v) for v in (top / height, bottom / height, left / width, right / width))
    made[top:bottom, left:right] = F.interpolate(again[None], size=(bottom - top, right - left), mode="bilinear")[0, 0]
    return made


def _span(counts: Tensor, length: int) -> tuple[int, int]:
    """From subject pixels in each of s rows: the rows, of `length`, that hold 98 % of them and MARGIN on both sides."""
    share = counts.cumsum(0) / counts.sum()
    first, last = int((share < 0.01).sum()), int((share < 0.99).sum()) + 1
    margin = MARGIN * (last - first)
    scale = length / len(counts)
    return max(0, int((first - margin) * scale)), min(length, ceil((last + margin) * scale))


def outline(finder: Finder, picture: Tensor, points: Sequence[masks.Mark], boxes: Sequence[masks.Mark]) -> Tensor:
    """A rough map (H, W) in {0, 1} of what clicks and boxes mark in a picture (4, H, W), see `masks.marks`: for any
    model. InputError where the finder sees nothing there.
    """
    size = (int(picture.shape[1]), int(picture.shape[2]))
    marked = masks.marks(size, points, boxes)
    found = look(finder, picture, marked)
    rough = F.interpolate(around(found)[None, None], size=size)[0, 0]
    rough = torch.where(marked < 0, 0.0, rough.maximum(marked))
    if not rough.any():
        raise InputError("nothing was found where the marks are: click on the subject, or paint it (--rough FILE).")
    return rough


def around(found: Tensor) -> Tensor:
    """A finder's alpha (s, s) as a rough map: where it means the subject, and REACH beyond."""
    return masks.dilate(found > 0.5, REACH * min(found.shape)).float()
