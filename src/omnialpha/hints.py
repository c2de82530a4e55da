"""The finder's hint: the alpha that a finder sees in a picture, as one more input of the model."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from omnialpha import masks, rgba
from omnialpha.canvas import Canvas
from omnialpha.models.checkpoints.card import Card
from omnialpha.models.finder import Finder, around, hint_of
from omnialpha.tasks import MAPS, TASKS, Example, Role


def add_hint(example: Example, finder: Finder, card: Card) -> Example:
    """Add what the finder sees in the picture of an example.

    Args:
        example: What was asked for.
        finder: The model's.
        card: The model's: how it takes hints, and for which tasks it takes the finder's alpha.

    Returns:
        In automatic tasks the example with one more input picture, the last. In tasks that take the finder's alpha the
        example with that of what its map marks. Otherwise the example itself.
    """
    automatic = TASKS[example.task].automatic
    guide = next((role for role in example.roles if role in MAPS), None)
    wanted = automatic or (guide is not None and finder.hints and example.task in card.alpha_from_finder)
    if not wanted or example.found is not None:
        return example
    given = dict(zip(example.roles, example.inputs, strict=True))
    hint = hint_of(guide, given[guide][:1]) if guide else None
    found = finder.find(given[Role.COMPOSITE][None].cpu(), hint)[0]
    if not automatic:
        return replace(example, found=found)
    shown, words = found, example.instruction
    if card.hint_as == Role.ROUGH:
        shown = around(found)
    if card.hint_as and words:  # empty is what is trained without an instruction
        words = TASKS[example.task.replace("auto", card.hint_as)].instruct()
    roles, inputs = (*example.roles, Role.HINT), (*example.inputs, masks.as_picture(shown))
    return replace(example, roles=roles, inputs=inputs, instruction=words, found=found)


def count_inputs(example: Example, found: bool) -> int:
    """How many inputs an example has after `add_hint`. found: whether the model has a finder."""
    added = found and TASKS[example.task].automatic and Role.HINT not in example.roles
    return len(example.roles) + added


def fit_inputs(example: Example, canvas: Canvas, device: torch.device) -> list[Tensor]:
    """The inputs on the canvas; a hint, whose size is the finder's own, is resized to the content first."""
    sized = [
        rgba.resize(picture, canvas.content) if role is Role.HINT else picture
        for role, picture in zip(example.roles, example.inputs, strict=True)
    ]
    return [canvas.fit(picture.to(device)) for picture in sized]
