"""The finder's hint, its alpha by two looks, as one more input of the model; rough maps of clicks and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omnialpha import fidelity, masks, rgba
from omnialpha.canvas import Canvas
from omnialpha.errors import InputError
from omnialpha.io.layers import Layer, LayerStack
from omnialpha.models.checkpoints.card import Card
from omnialpha.models.finder import Finder, hint_of
from omnialpha.tasks import TASKS, Example, Role, Task

MARGIN, MOST = 0.3, 0.97  # of the subject's size: what a second look sees around it; of the picture: what it may see
VIEWS = (1.0, 0.7, 0.5, 0.35, 0.25)  # of the sides: what is looked at around a click until something is seen there
FAINT = 0.1  # alpha of what still hangs together with a click
THERE = 0.2  # the greatest value of a map of what is there, by a pointer
Part = tuple[int, int, int, int]  # top, bottom, left and right of a part of a picture, in pixels
REACH = 0.04  # of the side: how far a rough map reaches beyond what was found
SURE = 0.35  # of its greatest value: where a pointer means the subject
ALONE = 0.9  # of what was found: as much of it in one piece is one thing


@torch.no_grad()
def summaries(examples: Sequence[Example], finder: Finder, text_encoder: object) -> list[Tensor | None]:
    """Of each instruction that names a subject in a picture what `TextEncoder.summary` makes of it, (D,), for the
    finder's pointer; None of others, and where finder or encoder has none.
    """
    said: list[Tensor | None] = [None] * len(examples)
    read = getattr(text_encoder, "summary", None)
    named = [i for i, e in enumerate(examples) if e.instruction and TASKS[e.task].text and Role.COMPOSITE in e.roles]
    if named and read and finder.pointer is not None:
        for i, row in zip(named, read([examples[i].instruction for i in named]).float().cpu(), strict=True):
            said[i] = row
    return said


def add_hint(example: Example, finder: Finder, card: Card, looks: int = 2, said: Tensor | None = None) -> Example:
    """Add what the finder sees in the picture of an example.

    Args:
        example: What was asked for.
        finder: The model's.
        card: The model's: for which tasks it takes the finder's alpha.
        looks: 2, or 1 for training, see `look`.
        said: What the finder's pointer is told of the instruction, (D,), see `summaries`.

    Returns:
        In tasks that no map says the subject of, the example with one more input picture, the last. In tasks that take
        the finder's alpha the example with that of what its map marks. Otherwise the example itself.

    Raises:
        InputError: the finder's alpha is asked for what a text names, and nothing tells the finder where that is.
    """
    task = TASKS[example.task]
    guide = task.map
    wanted = task.hinted or (guide is not None and finder.hints and example.task in card.alpha_from_finder)
    if not wanted or example.found is not None:
        return example
    given = dict(zip(example.roles, example.inputs, strict=True))
    picture = given[Role.COMPOSITE].cpu()
    if guide:
        found = look(finder, picture, hint_of(guide, given[guide][0]), looks)
    elif task.text:
        if example.task in card.alpha_from_finder and (finder.pointer is None or said is None):
            raise InputError("this finder cannot be told by words what to look for: leave --finder out, or mark it.")
        found = look_for(finder, picture, said, looks)
    else:
        found = look(finder, picture, looks=looks)
    if not task.hinted:
        return replace(example, found=found)
    roles, inputs = (*example.roles, Role.HINT), (*example.inputs, masks.as_picture(found))
    return replace(example, roles=roles, inputs=inputs, found=found)


def add_hints(
    examples: Sequence[Example], finder: Finder, card: Card, looks: int = 2, text_encoder: object = None
) -> list[Example]:
    """Each with its hint, see `add_hint`; what an encoder makes of their instructions is asked of it at once."""
    said = summaries(examples, finder, text_encoder)
    return [add_hint(e, finder, card, looks, words) for e, words in zip(examples, said, strict=True)]


def finish(
    example: Example, layers: Sequence[Tensor], coarse: Sequence[Tensor], card: Card, refining: str = "auto"
) -> LayerStack:
    """What `fidelity.finish_layers` makes of a model's layers (4, H, W) and their alphas as they were made, named."""
    found = example.found if example.task in card.alpha_from_finder else None
    refining = "off" if refining == "auto" and not card.refine else refining
    return stack(example, fidelity.finish_layers(example, layers, coarse, found, refining))


def restore(made: Tensor, example: Example, canvas: Canvas, card: Card, raw: bool, refining: str) -> LayerStack:
    """The layers of an example at its own size, of what a model made on a canvas, (m, 4, H', W'); `raw`: unfinished."""
    layers = [canvas.restore(p).cpu() for p in made]
    coarse = [p[3, : canvas.content[0], : canvas.content[1]].cpu() for p in made]
    return stack(example, layers) if raw else finish(example, layers, coarse, card, refining)


def stack(example: Example, layers: Sequence[Tensor]) -> LayerStack:
    """Layers (4, H, W) in the order of the example's targets, with their names."""
    rows = zip(example.names, layers, example.targets, strict=True)
    return LayerStack(example.size, [Layer(name, pixels, role=str(role)) for name, pixels, role in rows])


def cut_out(
    examples: Sequence[Example], finder: Finder | None, card: Card, refining: str = "auto", text_encoder: object = None
) -> list[LayerStack] | None:
    """The subjects by the finder's alpha, refined, where that is all that the examples ask for, so that nothing has to
    be sampled; None where one of them asks for more. text_encoder: see `summaries`.
    """
    if finder is None:
        return None
    told = finder.pointer is not None and hasattr(text_encoder, "summary")
    if not all(finder_suffices(TASKS[example.task], card, finder.hints, told) for example in examples):
        return None
    for example in examples:
        card.check_task(example.task)
    hinted = add_hints(examples, finder, card, text_encoder=text_encoder)
    return [finish(example, example.inputs[:1], [], card, refining) for example in hinted]


def finder_suffices(task: Task, card: Card, hints: bool, named: bool = False) -> bool:
    """Whether the finder's alpha is all that a task asks for. hints: whether the finder makes use of hints. named:
    whether its pointer is told of the subject.
    """
    marked = task.automatic or (named if task.text else hints and task.map is not None)
    return marked and task.targets == (Role.FOREGROUND,) and task.name in card.alpha_from_finder


def count_inputs(example: Example, found: bool) -> int:
    """How many inputs an example has after `add_hint`. found: whether the model has a finder."""
    return len(example.roles) + (found and TASKS[example.task].hinted and Role.HINT not in example.roles)


def fit_inputs(example: Example, canvas: Canvas, device: torch.device) -> list[Tensor]:
    """The inputs on the canvas; a hint, whose size is the finder's own, is resized to the content first."""
    sized = [
        rgba.resize(picture, canvas.content) if role is Role.HINT else picture
        for role, picture in zip(example.roles, example.inputs, strict=True)
    ]
    return [canvas.fit(picture.to(device)) for picture in sized]


def look(finder: Finder, picture: Tensor, hint: Tensor | None = None, looks: int = 2) -> Tensor:
    """What a finder sees in a picture, with a second look at the part around it, so that small subjects come out sharp.
    Without a hint, drawings are seen by its expert.

    Args:
        picture: straight RGBA (4, H, W) in [0, 1].
        hint: (H, W) in [-1, 1], for a finder that makes use of hints; it first looks where that is not background.
        looks: 1 is one look at the whole picture and not at its mirror image: quick, for training.

    Returns:
        Alpha in [0, 1] of the picture stretched to a square: (2s, 2s), s being the finder's own side, or (s, s) where
        nothing was found or the second look would see the whole picture again.
    """
    if hint is None and finder.expert is not None and finder.expert.suits(picture):
        finder = finder.expert
    if looks == 1:
        return finder.find(picture[None], None if hint is None else hint[None], mirror=False)[0]
    size = (int(picture.shape[1]), int(picture.shape[2]))
    whole = first = (0, size[0], 0, size[1])
    if hint is not None and bool((hint > -1).any()):
        first = _part(hint > -1, size)
    found = _find(finder, picture, hint, first)
    side = 2 * len(found)
    made = found if first == whole else _place(found, found.new_zeros(side, side), first, size)
    second = _part(made > 0.5, size) if bool((made > 0.5).any()) else first
    if _area(second) > MOST * _area(first):
        return made
    if first == whole:
        made = F.interpolate(made[None, None], size=(side, side), mode="bilinear")[0, 0]
    return _place(_find(finder, picture, hint, second, mirror=False), made, second, size)


def _find(finder: Finder, picture: Tensor, hint: Tensor | None, part: Part, mirror: bool = True) -> Tensor:
    """Alpha (s, s) of a part of a picture, stretched to a square."""
    rows, columns = slice(*part[:2]), slice(*part[2:])
    hints = None if hint is None else hint[None, rows, columns]
    return finder.find(picture[None, :, rows, columns], hints, mirror)[0]


def _area(part: Part) -> int:
    return (part[1] - part[0]) * (part[3] - part[2])


def _part(where: Tensor, size: tuple[int, int]) -> Part:
    """The part of a picture of this size around what is True in a map (h, w) of all of it."""
    return (*_span(where.sum(1), size[0]), *_span(where.sum(0), size[1]))


def _place(found: Tensor, made: Tensor, part: Part, size: tuple[int, int]) -> Tensor:
    """`made`, a map of a picture stretched to a square, with what was found in a part (top, bottom, left, right)."""
    spans = zip(part, (size[0], size[0], size[1], size[1]), strict=True)
    top, bottom, left, right = (round(len(made) * edge / length) for edge, length in spans)
    made[top:bottom, left:right] = F.interpolate(found[None, None], size=(bottom - top, right - left), mode="bilinear")[
        0, 0
    ]
    return made


def _span(counts: Tensor, length: int) -> tuple[int, int]:
    """From subject pixels in each of s rows: the rows, of `length`, that hold 98 % of them and MARGIN on both sides."""
    share = counts.cumsum(0) / counts.sum()
    first, last = int((share < 0.01).sum()), int((share < 0.99).sum()) + 1
    margin = MARGIN * (last - first)
    scale = length / len(counts)
    return max(0, int((first - margin) * scale)), min(length, ceil((last + margin) * scale))


@torch.no_grad()
def look_for(finder: Finder, picture: Tensor, said: Tensor | None, looks: int = 2) -> Tensor:
    """What a finder sees of what an instruction names, see `look`: what it sees by itself, if that is one thing at the
    place that its pointer means, or else what it sees there. Without a pointer, an instruction or something that is
    named and there, what it sees by itself.

    Args:
        said: of the instruction, (D,), see `summaries`.
    """
    found = look(finder, picture, looks=looks)
    if finder.pointer is None or said is None:
        return found
    size = (int(picture.shape[1]), int(picture.shape[2]))
    where = finder.pointer(picture[None], said[None]).sigmoid()[None]
    if where.max() < THERE or _alone(found, F.interpolate(where, size=found.shape, mode="bilinear")[0, 0]):
        return found
    named = F.interpolate(where, size=size, mode="bilinear")[0, 0] > SURE * where.max()
    return look(finder, picture, hint_of(Role.ROUGH, named.float()), looks)


def _alone(found: Tensor, where: Tensor) -> bool:
    """Whether nearly all that was found hangs together with the place that is meant most."""
    seen = found > 0.5
    return bool(_connected(seen, where == where.max()).sum() > ALONE * seen.sum())


def _connected(seen: Tensor, near: Tensor) -> Tensor:
    """Of what is seen, (s, s) bool, the islands that `near`, the same, touches; corners connect."""
    from scipy.ndimage import label

    islands, _ = label(seen.numpy(), np.ones((3, 3)))
    wanted = np.unique(islands[near.numpy()])
    return torch.from_numpy(np.isin(islands, wanted[wanted > 0]))


def click(finder: Finder, picture: Tensor, point: masks.Mark) -> Tensor | None:
    """What a finder sees at a click: in the whole picture, or else in ever smaller parts around the click.

    Args:
        picture: straight RGBA (4, H, W) in [0, 1].
        point: (x, y) in pixels from the top left.

    Returns:
        Alpha (2s, 2s) of the picture stretched to a square, s being the finder's own side, without what does not hang
        together with the click. None where it sees nothing there.
    """
    height, width = picture.shape[1:]
    marked = masks.marks((height, width), [point])
    for view in VIEWS:
        rows, columns = max(1, round(height * view)), max(1, round(width * view))
        top = min(max(0, round(point[1] - rows / 2)), height - rows)
        left = min(max(0, round(point[0] - columns / 2)), width - columns)
        part = (top, top + rows, left, left + columns)
        found = _find(finder, picture, None, part)
        side = 2 * len(found)
        made = _place(found, found.new_zeros(side, side), part, (height, width))
        near = F.interpolate(marked[None, None], size=(side, side))[0, 0] > 0
        if near.any() and made[near].mean() > 0.5:
            return torch.where(_connected(made > FAINT, near), made, 0.0)
    return None


def outline(finder: Finder, picture: Tensor, points: Sequence[masks.Mark], boxes: Sequence[masks.Mark]) -> Tensor:
    """A rough map of what clicks and boxes mark, for any model.

    Args:
        finder: one that makes use of hints: boxes, and clicks where nothing is seen without them, become a hint.
        picture: straight RGBA (4, H, W) in [0, 1].
        points, boxes: see `masks.marks`.

    Returns:
        (H, W) in {0, 1}.

    Raises:
        InputError: where nothing is found.
    """
    size = (int(picture.shape[1]), int(picture.shape[2]))
    marked = masks.marks(size, points, boxes)
    wanted = [point for point in points if len(point) < 3 or point[2]]
    seen = [] if boxes else [one for point in wanted if (one := click(finder, picture, point)) is not None]
    found = torch.stack(seen).amax(0) if seen and len(seen) == len(wanted) else None
    if found is None or (F.interpolate(found[None, None], size=size)[0, 0][marked < 0] > 0.5).any():
        found = look(finder, picture, marked)
    rough = F.interpolate(around(found)[None, None], size=size)[0, 0]
    rough = torch.where(marked < 0, 0.0, rough.maximum(marked))
    if not rough.any():
        raise InputError("nothing was found where the marks are: click on the subject, or paint it (--rough FILE).")
    return rough


def around(found: Tensor) -> Tensor:
    """A finder's alpha (s, s) as a rough map: where it means the subject, and REACH beyond."""
    return masks.dilate(found > 0.5, REACH * min(found.shape)).float()
