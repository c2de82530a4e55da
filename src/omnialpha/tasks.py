"""The 21 tasks, one row each: which roles go in, which come out, and how the instruction is worded."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from omnialpha.errors import InputError
from omnialpha.limits import by, check_pixels, check_size

if TYPE_CHECKING:
    from torch import Tensor

MAX_LAYERS = 8  # pictures in the role that may repeat
MAX_PROMPT = 2000  # characters; far above what 1,024 text tokens hold


class Role(StrEnum):
    """What a picture is in a layered record."""

    COMPOSITE = "composite"
    FOREGROUND = "foreground"
    BACKGROUND = "background"
    ALPHA = "alpha"
    TRIMAP = "trimap"
    PRECISE = "precise"
    ROUGH = "rough"
    FULL = "full"
    HINT = "hint"


MEANING: dict[Role, str] = {
    Role.COMPOSITE: "the flat picture, subject and scene in one",
    Role.FOREGROUND: "an object with its alpha",
    Role.BACKGROUND: "the scene without the objects",
    Role.ALPHA: "grey map: opacity of the subject at every pixel",
    Role.TRIMAP: "grey map: sure subject white, unknown rim grey, sure background black",
    Role.PRECISE: "black and white mask: the solid part of the subject",
    Role.ROUGH: "black and white mask: an area somewhat larger than the subject",
    Role.FULL: "a flat picture that the model makes",
    Role.HINT: "grey map: where the model's finder sees the subject; it adds this by itself",
}
# What a layered record need not hold, and what it is made from: the maps by `masks`, a composite by `rgba.recompose`.
DERIVED: dict[Role, tuple[Role, ...]] = {
    Role.COMPOSITE: (Role.FOREGROUND, Role.BACKGROUND),
    Role.ALPHA: (Role.FOREGROUND,),
    Role.TRIMAP: (Role.FOREGROUND,),
    Role.PRECISE: (Role.FOREGROUND,),
    Role.ROUGH: (Role.FOREGROUND,),
}
SAME = 0.1  # values of a map that differ by no more are one value: edges, noise, compression
MAPS = (Role.ALPHA, Role.TRIMAP, Role.PRECISE, Role.ROUGH)


@dataclass(frozen=True)
class Example:
    """One request: pictures in the order of the task's roles, what is asked for, and, where it is known, the truth.

    Attributes:
        roles, inputs: RGBA (4, H, W) each, float32 in [0, 1], straight alpha.
        instruction: the full text that the model reads.
        targets: the roles to make, in output order.
        size: (height, width) of every output, and of every input but a hint, which has the finder's own.
        found: what the model's finder sees, alpha (s, s) of the picture stretched to a square, by
            `OmniAlpha.add_hints`.
        prompt: what a text task describes; of another task the whole instruction, where it is none of the row's.
        truths: what each target should be, (4, H, W), or None where nobody knows it; () where nothing is known.
        trimap: (H, W) in {0, .5, 1}, of the subject, for figures of its unknown band.
    """

    task: str
    roles: tuple[Role, ...]
    inputs: tuple[Tensor, ...]
    instruction: str
    targets: tuple[Role, ...]
    size: tuple[int, int]
    found: Tensor | None = None
    prompt: str | None = None
    truths: tuple[Tensor | None, ...] = ()
    trimap: Tensor | None = None

    def given(self, role: Role) -> Tensor | None:
        """The first input of that role."""
        return next((p for r, p in zip(self.roles, self.inputs, strict=True) if r is role), None)

    def truth(self, role: Role) -> Tensor | None:
        """Of the first target of that role; None where it is not known."""
        return self.truths[self.targets.index(role)] if self.truths else None

    def true_layers(self) -> Tensor:
        """(m, 4, H, W), all of which have to be known."""
        import torch

        known = [truth for truth in self.truths if truth is not None]
        assert known and len(known) == len(self.targets), f"{self.task}: not every truth is known"
        return torch.stack(known)

    @property
    def names(self) -> list[str]:
        """Of the layers: the role, numbered from the back where it repeats."""
        return numbered(self.targets)


def numbered(roles: tuple[Role, ...]) -> list[str]:
    """The names of roles, with `-1`, `-2` and so on where one repeats."""
    return [f"{r}-{roles[: k + 1].count(r)}" if roles.count(r) > 1 else str(r) for k, r in enumerate(roles)]


@dataclass(frozen=True)
class Task:
    """A row. `text`: whose caption the prompt is (None: no prompt). `many`: the role that may appear more than once."""

    name: str
    category: str
    inputs: tuple[Role, ...]
    targets: tuple[Role, ...]
    instructions: tuple[str, ...]
    text: Role | None = None
    many: Role | None = None
    summary: str = ""

    @property
    def map(self) -> Role | None:
        """The map among its inputs."""
        return next((role for role in self.inputs if role in MAPS), None)

    @property
    def automatic(self) -> bool:
        """Whether nothing says which subject of the picture is meant."""
        return self.inputs == (Role.COMPOSITE,) and self.text is None

    @property
    def hinted(self) -> bool:
        """Whether a model that has a finder is shown what that sees: no map says which subject is meant."""
        return Role.COMPOSITE in self.inputs and self.map is None

    def target_roles(self, layers: int | None = None) -> tuple[Role, ...]:
        """The roles to make; `layers` counts all targets where the row allows several (back to front)."""
        if layers is None or layers == len(self.targets):
            return self.targets
        if self.many is None or self.many not in self.targets:
            raise InputError(f"{self.name} makes {len(self.targets)} layer(s), not {layers}: leave `layers` out.")
        fixed = len(self.targets) - 1
        if not fixed < layers <= MAX_LAYERS:
            raise InputError(f"layers={layers} is out of range for {self.name}: use {fixed + 1} to {MAX_LAYERS}.")
        return self.targets[:fixed] + (self.many,) * (layers - fixed)

    def instruct(self, prompt: str | None = None, wording: int = 0) -> str:
        """The instruction in wording number `wording`, with the prompt in its place."""
        words, prompt = self.instructions[wording % len(self.instructions)], self.clean(prompt)
        return words if prompt is None else words.format(prompt=prompt)

    def clean(self, prompt: str | None) -> str | None:
        """The prompt in one line; None for a task without one. InputError for one that is missing, or is no text."""
        if self.text is None:
            if prompt:
                raise InputError(f"{self.name} takes no text, but got {prompt[:40]!r}: leave the prompt out.")
            return None
        prompt = " ".join((prompt or "").split())
        if not prompt:
            raise InputError(f"{self.name} needs a text that describes the {self.text}: give a prompt.")
        if any("\ud800" <= character <= "\udfff" for character in prompt):  # from bytes that are not UTF-8
            raise InputError(f"the prompt {prompt[:40]!r} is not valid text: type it in UTF-8.")
        if len(prompt) > MAX_PROMPT:
            raise InputError(f"the prompt has {len(prompt)} characters, the limit is {MAX_PROMPT}: shorten it.")
        return prompt

    def example(
        self,
        images: dict[Role, Any] | None = None,
        *,
        prompt: str | None = None,
        layers: int | None = None,
        size: tuple[int, int] | None = None,
        wording: int = 0,
        **named: Any,
    ) -> Example:
        """Build a request.

        Args:
            images, named: Pictures by role (`composite=...`, or `image=` for the first input), of any kind that
                `io.to_rgba` takes, a list where the role may repeat. All have one size, which the outputs get.
            prompt: For the tasks with a text.
            layers: How many targets, where the row allows several.
            size: (height, width) of the outputs of a task without pictures.
            wording: Number of the wording of the instruction.

        Raises:
            InputError: A role is missing or unknown, a map is empty, sizes differ, or another argument does not fit.
        """
        given = self._collect(images or {}, named)
        roles, pictures = tuple(role for role, _ in given), tuple(picture for _, picture in given)
        sizes = [(int(p.shape[-2]), int(p.shape[-1])) for p in pictures]
        for role, other in zip(roles, sizes, strict=True):
            if other != sizes[0]:
                raise InputError(
                    f"the {role} is {by(other)} px, the {roles[0]} {by(sizes[0])} px: make them the same size."
                )
        if not pictures and size is None:
            raise InputError(f"{self.name} has no input picture: give size=(height, width).")
        made = sizes[0] if pictures else check_size(size)
        words, targets = self.instruct(prompt, wording), self.target_roles(layers)
        return Example(self.name, roles, pictures, words, targets, made, prompt=self.clean(prompt))

    def _collect(self, images: dict[Role, Any], named: dict[str, Any]) -> list[tuple[Role, Tensor]]:
        """The pictures in the order of the roles, maps checked."""
        from omnialpha import io

        named = {str(k): v for k, v in images.items()} | named
        if "image" in named and self.inputs:
            first = self.inputs[0]
            if first in named:
                raise InputError(f"{self.name} got image and {first}, which are the same here: give one of them.")
            named[first] = named.pop("image")
        unknown = set(named) - set(self.inputs)
        if unknown:
            takes = ", ".join(self.inputs) or "no picture"
            raise InputError(f"{self.name} has no input {sorted(unknown)[0]!r}: it takes {takes}.")
        given: list[tuple[Role, Tensor]] = []
        for role in self.inputs:
            value = named.get(role)
            values = value if isinstance(value, list | tuple) else [] if value is None else [value]
            most = MAX_LAYERS if role == self.many else 1
            if not values:
                raise InputError(f"{self.name} needs a {role}: give {role}=PICTURE.")
            if len(values) > most:
                raise InputError(f"{self.name} got {len(values)} pictures as {role}: give at most {most}.")
            for one in values:
                check_pixels(one)
                picture = io.to_rgba(one, data=role in MAPS)
                given.append((role, check_map(picture, role) if role in MAPS else picture))
        return given


def check_map(picture: Tensor, role: Role) -> Tensor:
    """A map as an opaque grey picture; raises InputError where it says nothing (empty, or unknown everywhere)."""
    from omnialpha import masks

    values = map_values(picture, role)
    highest = float(values.max())
    if 0 < highest <= 1.001 / 255:  # a mask of 0 and 1 in integers
        raise InputError(
            f"the {role} is nearly black, its highest value being 1 in integers: multiply by 255 or pass bool."
        )
    if highest <= 0.02:
        raise InputError(f"the {role} is empty (black everywhere): paint the subject white.")
    if role is Role.TRIMAP and bool(((values > 0.02) & (values < 0.98)).all()):
        raise InputError("the trimap is unknown (grey) everywhere: mark some sure subject white or background black.")
    return masks.as_picture(values)


def map_values(picture: Tensor, role: Role) -> Tensor:
    """(H, W) of a map's picture (4, H, W): its grey, or its alpha where that is what varies, as in a cut-out.

    An alpha that is the same everywhere says nothing. Grey levels painted on a transparent ground lie on black.
    """
    colour, alpha = picture[:3], picture[3]
    # the mean of three equal floats may not be that float
    grey = (colour[0] == colour[1]) & (colour[1] == colour[2])
    values = colour[0].where(grey, colour.mean(0))
    lowest, highest = float(alpha.min()), float(alpha.max())
    if highest <= 0.02:  # nothing is seen
        return alpha
    if highest - lowest <= SAME:
        return values
    seen = alpha > highest / 2
    shown = values[seen]
    coloured = float((colour[:, seen].amax(0) - colour[:, seen].amin(0)).max()) > SAME
    constant = float(shown.max() - shown.min()) <= SAME
    unknown = role is Role.TRIMAP and constant and abs(float(shown.mean()) - 0.5) <= SAME
    if coloured or (constant and not unknown) or float((values - alpha).abs().max()) <= SAME:
        return alpha
    if lowest > 0.5:  # nothing is cut out
        return values
    levels = shown.new_tensor([0, 0.5, 1])
    if float(((shown[:, None] - levels).abs().amin(1) <= 0.03).float().mean()) >= 0.9:
        return values * alpha
    raise InputError(f"the {role} varies both in grey and in alpha: save the one that counts as a grey picture.")


Roles = tuple[Role, ...]
C, FG, BG, FULL = Role.COMPOSITE, Role.FOREGROUND, Role.BACKGROUND, Role.FULL
_MAP_WORDS = {
    Role.ALPHA: ("alpha map", "its opacity at every pixel"),
    Role.TRIMAP: ("trimap", "sure subject in white, unknown rim in grey"),
    Role.PRECISE: ("precise mask", "the solid part of the subject"),
    Role.ROUGH: ("rough mask", "an area somewhat larger than the subject"),
}


def _row(name: str, category: str, inputs: Roles, targets: Roles, summary: str, *wordings: str, **more: Any) -> Task:
    return Task(name, category, inputs, targets, wordings, summary=summary, **more)


def _with_map(name: str, category: str, targets: Roles, summary: str, *wordings: str) -> list[Task]:
    """The four rows of a family that take one of the four maps with the picture."""
    rows = []
    for role, (word, hint) in _MAP_WORDS.items():
        own = (wording.format(map=word, hint=hint) for wording in wordings)
        rows.append(_row(f"{name}_{role}", category, (C, role), targets, summary.format(map=word), *own))
    return rows


_ROWS: tuple[Task, ...] = (
    _row(
        "text_to_image", "generation", (), (FG,), "a transparent picture from text",
        "Make a cut-out picture on a transparent ground: {prompt}",
        "Draw this with real transparency around it: {prompt}",
        "A transparent picture of the following. {prompt}",
        "Create an isolated object with alpha: {prompt}",
        text=FG,
    ),
    _row(
        "foreground_to_background", "completion", (FG,), (BG,), "a scene to go behind given layers",
        "Paint a place where this layer would belong, without the layer itself: {prompt}",
        "Give only the scene behind the given layer: {prompt}",
        "Invent the background for this cut-out. {prompt}",
        "Fill in the missing back layer: {prompt}",
        text=BG, many=FG,
    ),
    _row(
        "foreground_to_full", "completion", (FG,), (FULL,), "a whole picture around given layers",
        "Put this layer into a whole picture: {prompt}",
        "Finish the picture around the cut-out: {prompt}",
        "Show the given subject in its surroundings. {prompt}",
        "Complete the scene, keep the subject as it is: {prompt}",
        text=FULL, many=FG,
    ),
    _row(
        "background_to_foreground", "completion", (BG,), (FG,), "layers that fit a given scene",
        "Make a layer that would fit into this scene: {prompt}",
        "Give only the object to be placed here, on a transparent ground: {prompt}",
        "Add the missing front layer. {prompt}",
        "A cut-out that belongs in front of this background: {prompt}",
        text=FG, many=FG,
    ),
    _row(
        "background_to_full", "completion", (BG,), (FULL,), "a given scene with a subject added",
        "Place something into this scene and show the whole: {prompt}",
        "Finish the picture on top of the given background: {prompt}",
        "Show this place with the subject in it. {prompt}",
        "Complete the scene, keep the background as it is: {prompt}",
        text=FULL,
    ),
    _row(
        "matting_auto", "matting", (C,), (FG,), "the subject, found by itself, with soft alpha",
        "Cut the subject out of this picture.",
        "Separate the main object, with soft edges where it has them.",
        "Lift the foreground off the picture and leave the rest transparent.",
        "Take away everything behind the subject.",
        "Give the subject alone, with its true opacity.",
        "Isolate what the picture is about.",
        "Find the salient object and return it as a layer.",
        "Make all but the subject see-through.",
        "Matte this picture.",
        "Return only the foreground with its alpha.",
    ),
    *_with_map(
        "matting", "matting", (FG,), "the subject that a given {map} marks",
        "Cut out the subject that the {map} shows ({hint}).",
        "Use the {map} to lift the foreground off the picture.",
        "Return the layer marked by the {map}, with soft alpha.",
        "Matte the picture; the second image is a {map}: {hint}.",
    ),
    _row(
        "matting_text", "matting", (C,), (FG,), "the subject that a text names",
        "Cut out {prompt}.",
        "Separate this from everything else: {prompt}",
        "Return only the following as a layer: {prompt}",
        "Isolate {prompt}, with soft edges.",
        text=FG,
    ),
    _row(
        "removal_auto", "removal", (C,), (BG,), "the scene without its subject",
        "Remove the subject and show what is behind it.",
        "Give this place without the object in front.",
        "Erase the foreground and fill the gap.",
        "Show the scene as if the main object had never been there.",
        "Clear the picture of its subject.",
        "Return only the background, complete.",
        "Take the salient thing away and repair the picture.",
        "Paint over the foreground with what it hides.",
        "Make the scene empty.",
        "Restore the view behind the object.",
    ),
    *_with_map(
        "removal", "removal", (BG,), "the scene without what a given {map} marks",
        "Remove what the {map} marks ({hint}) and fill the gap.",
        "Show the scene without the object given by the {map}.",
        "Use the {map} to erase the foreground and restore what it hides.",
        "Return the background; the second image is a {map}: {hint}.",
    ),
    _row(
        "decompose_auto", "decomposition", (C,), (BG, FG), "background and foreground layers, back to front",
        "Split this picture into layers.",
        "Take the picture apart: the background, then what stands in front.",
        "Return the scene and its objects as separate layers, back to front.",
        "Separate foreground and background, both complete.",
        "Undo the compositing of this picture.",
        "Give the layers this picture was made of.",
        "Decompose the picture, furthest layer first.",
        "Divide the picture into a clean background and cut-outs.",
        "Recover every layer with its alpha.",
        "Layer this picture.",
        many=FG,
    ),
    *_with_map(
        "decompose", "decomposition", (BG, FG), "the layer that a given {map} marks, and the scene behind it",
        "Split the picture into the scene and the object that the {map} shows ({hint}).",
        "Use the {map} to separate foreground and background, both complete.",
        "Return two layers, back to front; the {map} marks the front one.",
        "Decompose the picture; the second image is a {map}: {hint}.",
    ),
)  # fmt: skip

TASKS: dict[str, Task] = {row.name: row for row in _ROWS}
CATEGORIES: tuple[str, ...] = tuple(dict.fromkeys(row.category for row in _ROWS))


def task(name: str) -> Task:
    """The row of that name; InputError with the nearest name otherwise."""
    if name in TASKS:
        return TASKS[name]
    from difflib import get_close_matches

    near = get_close_matches(name, TASKS, n=1, cutoff=0.0)[0]
    raise InputError(f"unknown task {name!r}: did you mean {near!r}? `omnialpha tasks` lists them.")
