"""What a model is told of a picture by its finder."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from omnialpha import masks, rgba
from omnialpha.canvas import Canvas
from omnialpha.models.checkpoints.card import Card
from omnialpha.models.finder import Finder, around, hint_of, look
from omnialpha.tasks import MAPS, TASKS, Example, Role


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
