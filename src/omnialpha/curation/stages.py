"""The steps from a foreground to a layered record. Each is pure: the same inputs and settings have the same answer,
which is kept under their digest and never made twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from omnialpha import masks, rgba
from omnialpha.curation import answers, filters, scoring
from omnialpha.curation.candidate import Candidate, Rejected, SourceItem
from omnialpha.curation.editing import paint
from omnialpha.curation.tools import Tools
from omnialpha.data.records.pictures import Handle, read
from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.samples import MadePicture
from omnialpha.files import sha256

Fields = dict[str, Any]  # of a candidate, in plain types
Usage = dict[str, int]
Event = Literal["made", "known", "rejected", "failed"]


@dataclass(frozen=True)
class Stage:
    """A row of STAGES.

    Attributes:
        run: makes the fields, and adds the tokens that it used.
        needs: fields of a candidate that its answer depends on.
        settings: of a recipe, what else it depends on.
        unless: where one of these fields is there, the stage has nothing to do.
        service: vlm, edit or remove, which says how many run at once and what they cost.
    """

    run: Callable[[Candidate, Tools, Usage], Fields]
    needs: tuple[str, ...]
    settings: Callable[[Tools], Any]
    unless: tuple[str, ...] = ()
    service: str = ""

    def key(self, candidate: Candidate, tools: Tools) -> str:
        values = candidate.data()
        return digest([{name: values[name] for name in self.needs}, self.settings(tools)])


def digest(values: Any) -> str:
    """Of plain types."""
    return sha256(json.dumps(values, sort_keys=True, ensure_ascii=False))


# ---- a picture of a source ------------------------------------------------------------------------------------------


def stamp(handle: Handle) -> Any:
    """What changes where a picture's file changes; its bytes are not read."""
    if isinstance(handle, MadePicture):
        return [handle.name, handle.recipe, *map(stamp, handle.sources)]
    file = getattr(handle, "file", handle)
    if not (isinstance(file, Path) and file.is_file()):
        return str(handle)
    return [str(handle), file.stat().st_size, file.stat().st_mtime_ns]


def handles(item: SourceItem) -> list[Handle]:
    return [*item.layers, *item.alphas, *(h for h in (item.background, item.composite) if h is not None)]


def load(item: SourceItem, tools: Tools, usage: Usage) -> Fields:
    """Pictures of an item into the store, no larger than the recipe says, with the facts of its subject.

    Raises:
        Rejected: They cannot be read, or differ in size.
    """
    try:
        layers = item.foregrounds()
        rest = [read(handle) for handle in (item.background, item.composite) if handle is not None]
        sizes = {tuple(picture.shape[1:]) for picture in (*layers, *rest)}
        if len(sizes) > 1:
            raise Rejected(f"its pictures have {len(sizes)} sizes.")
    except InputError as error:
        raise Rejected(str(error)) from None
    side = tools.recipe.side
    factor = min(1.0, side / (sizes.pop()[0] * layers[0].shape[2]) ** 0.5)

    def keep(picture: Tensor) -> str:
        return tools.store.put(rgba.scale(picture, factor) if factor < 1 else picture)

    subject = rgba.recompose(layers)
    made: Fields = {"foregrounds": [keep(layer) for layer in layers], "facts": filters.measure(subject)}
    named = iter(rest)
    made["background"] = keep(rgba.opaque(next(named))) if item.background is not None else ""
    made["composite"] = keep(rgba.opaque(rgba.flatten(next(named)))) if item.composite is not None else ""
    if item.background is not None and item.composite is None:
        made["composite"] = keep(rgba.opaque(rgba.recompose([rest[0], *layers])))
    return made | {"captions": list(item.captions)}


def load_key(item: SourceItem, tools: Tools) -> str:
    return digest([[stamp(handle) for handle in handles(item)], item.mixed, list(item.captions), tools.recipe.side])


def start(item: SourceItem) -> Candidate:
    origin = tuple(str(handle) for handle in handles(item))
    return Candidate(item.id, item.source, item.licence, origin)


# ---- the stages -----------------------------------------------------------------------------------------------------


def subject(candidate: Candidate, tools: Tools) -> Tensor:
    """All foregrounds as one picture, (4, H, W)."""
    return rgba.recompose([tools.store.get(layer) for layer in candidate.foregrounds])


def seed(candidate: Candidate) -> int:
    """Of what is drawn for a candidate: the same for the same foregrounds."""
    return int(digest(list(candidate.foregrounds))[:8], 16)


def aesthetic(candidate: Candidate, tools: Tools, usage: Usage) -> Fields:
    assert tools.aesthetic
    return {"scores": {"aesthetic": tools.aesthetic(rgba.flatten(subject(candidate, tools)))}}


def caption(candidate: Candidate, tools: Tools, usage: Usage) -> Fields:
    ask = partial(tools.vlm.ask, tools.prompts.caption.fill())
    said = [ask([tools.store.get(layer)], answers.caption, usage) for layer in candidate.foregrounds]
    return {"subjects": [one["subject"] for one in said], "captions": [one["caption"] for one in said]}


def scene(candidate: Candidate, tools: Tools, usage: Usage) -> Fields:
    every = " and ".join(candidate.captions)
    prompt = tools.prompts.whole if candidate.composite else tools.prompts.scene
    shown = tools.store.get(candidate.composite) if candidate.composite else subject(candidate, tools)
    return tools.vlm.ask(
        prompt.fill(caption=every), [shown], partial(answers.scene, subjects=candidate.subjects), usage
    )


def instruction(candidate: Candidate, tools: Tools, usage: Usage) -> Fields:
    text = tools.prompts.instruction.fill(scene=candidate.scene)
    return tools.vlm.ask(text, [subject(candidate, tools)], answers.instruction, usage)


def edit(candidate: Candidate, tools: Tools, usage: Usage) -> Fields:
    front = subject(candidate, tools)
    made = tools.editor.edit(front, candidate.instruction, candidate.scene, seed(candidate))
    return {"composite": tools.store.put(paint(made, (front.shape[1], front.shape[2])))}


def mask(candidate: Candidate, tools: Tools, usage: Usage) -> Fields:
    settings = tools.recipe.mask
    marked = subject(candidate, tools)[3] > settings.above
    if settings.grow:
        marked = masks.dilate(marked, settings.grow * min(marked.shape))
    if not bool(marked.any()):
        raise Rejected(f"alpha is nowhere above {settings.above:g}.")
    return {"mask": tools.store.put(masks.as_picture(marked))}


def remove(candidate: Candidate, tools: Tools, usage: Usage) -> Fields:
    whole, marked = (tools.store.get(picture) for picture in (candidate.composite, candidate.mask))
    made = tools.remover.remove(whole, marked[0], seed(candidate))
    return {"background": tools.store.put(paint(made, (whole.shape[1], whole.shape[2])))}


def background(candidate: Candidate, tools: Tools, usage: Usage) -> Fields:
    text = tools.prompts.background.fill(subject=" and no ".join(candidate.subjects) or "single main subject")
    shown = tools.store.get(candidate.background)
    return tools.vlm.ask(text, [shown], partial(answers.background, subjects=candidate.subjects), usage)


def maps(candidate: Candidate, tools: Tools, usage: Usage) -> Fields:
    alpha = subject(candidate, tools)[3]
    radius = masks.draw_radius(alpha.shape[0], alpha.shape[1], torch.Generator().manual_seed(seed(candidate)))
    made = scoring.maps(alpha, radius, tools.recipe.mask.derivation)
    return {"maps": {name: tools.store.put(masks.as_picture(values)) for name, values in made.items()}}


def score(candidate: Candidate, tools: Tools, usage: Usage) -> Fields:
    pictures = (tools.store.get(picture) for picture in (candidate.background, candidate.composite))
    return {"scores": scoring.scores(subject(candidate, tools), *pictures)}


def _asked(*prompts: str) -> Callable[[Tools], Any]:
    def settings(tools: Tools) -> Any:
        words = [getattr(tools.prompts, prompt).text for prompt in prompts]
        return [words, tools.recipe.vlm.model, tools.recipe.vlm.side]

    return settings


def _made_by(section: str) -> Callable[[Tools], Any]:
    def settings(tools: Tools) -> Any:
        by = getattr(tools.recipe, section)
        return [by.kind, by.model, by.dtype, by.steps, by.guidance, by.server.model, by.options]

    return settings


def _nothing(tools: Tools) -> Any:
    return None


FRONT = ("foregrounds",)
STAGES: dict[str, Stage] = {
    "aesthetic": Stage(aesthetic, FRONT, lambda tools: tools.recipe.filters.aesthetic),
    "caption": Stage(caption, FRONT, _asked("caption"), unless=("captions",), service="vlm"),
    "scene": Stage(scene, (*FRONT, "captions", "subjects", "composite"), _asked("scene", "whole"), service="vlm"),
    "instruction": Stage(instruction, (*FRONT, "scene"), _asked("instruction"), unless=("composite",), service="vlm"),
    "edit": Stage(edit, (*FRONT, "instruction", "scene"), _made_by("edit"), unless=("composite",), service="edit"),
    "mask": Stage(mask, FRONT, lambda tools: [tools.recipe.mask.above, tools.recipe.mask.grow]),
    "remove": Stage(
        remove,
        ("composite", "mask", *FRONT),
        lambda tools: [_made_by("remove")(tools), tools.prompts.removal.text],
        unless=("background",),
        service="remove",
    ),
    "background": Stage(background, ("background", "subjects"), _asked("background"), service="vlm"),
    "maps": Stage(maps, FRONT, lambda tools: tools.recipe.mask.derivation),
    "score": Stage(score, (*FRONT, "background", "composite"), _nothing),
}


def settings(tools: Tools) -> Any:
    """All that the answers of stages depend on beside their inputs."""
    return [tools.recipe.side, *(stage.settings(tools) for stage in STAGES.values())]
