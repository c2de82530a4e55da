"""A layered picture, whatever it comes from, and the one way in which it becomes an example of a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from omnialpha import masks, rgba
from omnialpha.tasks import MAPS, Example, Role, Task

FG, BG, COMPOSITE, FULL, TRIMAP = Role.FOREGROUND, Role.BACKGROUND, Role.COMPOSITE, Role.FULL, Role.TRIMAP


class Caption(NamedTuple):
    """What is said of a layer, in a sentence and word by word; "" is not known.

    Attributes:
        text: the sentence, such as "a striped red fish at the top left".
        name: what it is, without colour, pattern and place, such as "fish".
        color: its main colour.
        place: where it is in the picture, such as "top left".
    """

    text: str
    name: str = ""
    color: str = ""
    place: str = ""


@dataclass(frozen=True)
class Scene:
    """A layered picture: all that a task may be asked about it, and what is said of it.

    Attributes:
        layers: (K, 4, H, W), straight alpha, back to front, without the background.
        background, composite: (4, H, W), opaque; a composite that is not given is made from the others.
        captions: one of each layer, or none.
        background_caption, full_caption: of the background and of the whole; a full caption that is not given is
            composed from the others.
        maps: (4, H, W) opaque grey each, of the subject; those that are not given are drawn.
        subject: places of the layers that a task is about; None: all of them.
        items: numbers of the layers in the bank that they come from.
    """

    layers: Tensor
    background: Tensor | None = None
    composite: Tensor | None = None
    captions: tuple[Caption, ...] = ()
    background_caption: str = ""
    full_caption: str = ""
    maps: Mapping[Role, Tensor] = field(default_factory=dict)
    subject: tuple[int, ...] | None = None
    items: tuple[int, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return int(self.layers.shape[-2]), int(self.layers.shape[-1])

    @property
    def about(self) -> tuple[int, ...]:
        """Places of the layers that a task is about."""
        return tuple(range(len(self.layers))) if self.subject is None else self.subject

    def prompt(self, task: Task) -> str | None:
        """What a text task is asked with; None for a task without text."""
        if task.text is None:
            return None
        if task.text is BG:
            return self.background_caption
        if task.text is FULL:
            every = " and ".join(caption.text for caption in self.captions)
            return self.full_caption or f"{every} in front of {self.background_caption}"
        return " and ".join(self.captions[k].text for k in self.about)


def to_example(
    scene: Scene,
    task: Task,
    generator: torch.Generator | None = None,
    wording: int | None = None,
    prompt: str | None = None,
) -> Example:
    """A request for what a scene knows, with its truths.

    Where a task may have several foregrounds, each layer of the subject is one; else the subject is one layer, and
    what is not the subject is part of the background.

    Args:
        generator: of maps that the scene does not have, and then of the wording.
        wording: number of the instruction's wording; None: drawn.
        prompt: in the place of the scene's own.

    Raises:
        InputError: for a map that says nothing, and a prompt that cannot be asked with.
    """
    made = _pictures(scene, task, generator)
    if wording is None:
        wording = int(torch.randint(1 << 16, (1,), generator=generator))
    example = task.example(
        {role: made[role] for role in task.inputs},
        prompt=scene.prompt(task) if prompt is None else prompt,
        layers=len(made[FG]) + len(task.targets) - 1 if task.many is FG and FG in task.targets else None,
        size=scene.size,
        wording=wording,
    )
    parts = {role: iter(made[role]) for role in task.targets}
    trimap = scene.maps.get(TRIMAP, example.given(TRIMAP))
    return replace(
        example,
        truths=tuple(next(parts[role]) for role in example.targets),
        trimap=None if trimap is None else trimap[0],
    )


def _pictures(scene: Scene, task: Task, generator: torch.Generator | None) -> dict[Role, list[Tensor]]:
    """The pictures of every role that the task has."""
    wanted, about = {*task.inputs, *task.targets}, scene.about
    subject = [scene.layers[k] for k in about]
    if len(subject) > 1 and task.many is not FG:
        subject = [rgba.recompose(subject)]
    made: dict[Role, list[Tensor]] = {FG: subject}
    if BG in wanted:
        assert scene.background is not None
        others = [layer for k, layer in enumerate(scene.layers) if k not in about]
        made[BG] = [rgba.opaque(rgba.recompose([scene.background, *others])) if others else scene.background]
    if {COMPOSITE, FULL} & wanted:
        flat = scene.composite
        if flat is None:
            assert scene.background is not None
            flat = rgba.opaque(rgba.recompose([scene.background, *scene.layers]))
        made[COMPOSITE] = made[FULL] = [flat]
    for role in wanted & set(MAPS):
        given = scene.maps.get(role)
        made[role] = [draw_map(role, subject[0][3], generator) if given is None else given]
    return made


def map_of(role: Role, alpha: Tensor, generator: torch.Generator | None) -> Tensor:
    """The map of a role, (H, W) in [0, 1], from a true alpha (H, W); radius drawn as in AlphaLayers."""
    if role is Role.ALPHA:
        return alpha
    if role is Role.PRECISE:
        return masks.precise(alpha / alpha.max())  # a see-through layer has no solid part but its most opaque one
    assert generator is not None
    radius = masks.draw_radius(alpha.shape[0], alpha.shape[1], generator)
    return masks.trimap(alpha, radius) if role is Role.TRIMAP else masks.rough(alpha, radius)


def draw_map(role: Role, alpha: Tensor, generator: torch.Generator | None) -> Tensor:
    """The picture (4, H, W) of a map, drawn from a true alpha (H, W). A trimap that would know nothing gets no unknown
    rim.
    """
    values = map_of(role, alpha, generator)
    if role is Role.TRIMAP and bool((values == 0.5).all()):
        values = masks.trimap(alpha / alpha.max(), 0)
    return masks.as_picture(values)
