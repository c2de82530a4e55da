"""What people do with a model: matte, remove, decompose, complete, generate. PIL, numpy, torch, path or file in, the
same kind out (see `io.same_kind`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omnialpha import io
from omnialpha.errors import InputError
from omnialpha.io.layers import LayerStack
from omnialpha.tasks import MAPS, TASKS, Example, Role, Task

if TYPE_CHECKING:
    from torch import Tensor

    from omnialpha.masks import Mark

# verb -> (task family, what the picture given to the verb is)
FAMILIES = {"matte": "matting", "remove": "removal", "decompose": "decompose"}


def choose(verb: str, given: Mapping[Role, Any], text: str | None = None, marked: bool = False) -> Task:
    """The task row of a verb for what was given beside the picture: one map, or a text, or nothing (automatic).
    marked: by clicks and boxes, of which a rough map is made.
    """
    maps = [role for role in MAPS if given.get(role) is not None]
    if len(maps) + bool(text) + marked > 1:
        names = ", ".join([*maps, *(["text"] if text else []), *(["points or boxes"] if marked else [])])
        raise InputError(f"{verb} got {names} together: give one of them.")
    maps += [Role.ROUGH] * marked
    name = f"{FAMILIES[verb]}_{maps[0] if maps else 'text' if text else 'auto'}"
    if name not in TASKS:
        raise InputError(f"{verb} takes no text, but got {(text or '')[:40]!r}: give a map, or nothing.")
    return TASKS[name]


def completion(foreground: Any, background: Any, full: bool) -> Task:
    """The completion row for the side that is given: to the whole picture, or to the missing layer alone."""
    if (foreground is None) == (background is None):
        raise InputError("complete needs a foreground or a background: give exactly one of them.")
    given = "foreground" if foreground is not None else "background"
    other = "background" if foreground is not None else "foreground"
    return TASKS[f"{given}_to_{'full' if full else other}"]


class Verbs:
    """Mixed into the pipeline. Keyword options of every verb: seed, steps, guidance, raw, on_step (see
    `OmniAlpha.run`); of those that take a map also points and boxes, see `masks.marks`, in its place.
    """

    card: Any  # models.card.Card

    def run(self, examples: list[Example], **options: Any) -> list[LayerStack]:
        raise NotImplementedError

    def native_size(self) -> tuple[int, int]:
        raise NotImplementedError

    def outline(self, picture: Tensor, points: Sequence[Mark], boxes: Sequence[Mark]) -> Tensor:
        """A rough map (H, W) of what is marked in a picture (4, H, W)."""
        raise NotImplementedError

    def matte(
        self,
        image: Any,
        *,
        text: str | None = None,
        alpha: Any = None,
        trimap: Any = None,
        precise: Any = None,
        rough: Any = None,
        **options: Any,
    ) -> Any:
        """Cut the subject out of a picture: automatic, or the one that a text or a map marks. Returns RGBA of the kind
        given.
        """
        image = io.loaded(image)
        return io.same_kind(
            self._layers("matte", image, text, _maps(alpha, trimap, precise, rough), None, options)[0].rgba, image
        )

    def remove(
        self,
        image: Any,
        *,
        alpha: Any = None,
        trimap: Any = None,
        precise: Any = None,
        rough: Any = None,
        **options: Any,
    ) -> Any:
        """The picture without its subject, or without what a map marks; outside the marked area bit-equal."""
        image = io.loaded(image)
        return io.same_kind(
            self._layers("remove", image, None, _maps(alpha, trimap, precise, rough), None, options)[0].rgba, image
        )

    def decompose(
        self,
        image: Any,
        *,
        layers: int | None = None,
        alpha: Any = None,
        trimap: Any = None,
        precise: Any = None,
        rough: Any = None,
        **options: Any,
    ) -> LayerStack:
        """The picture as a LayerStack, background first. `layers` counts all (automatic task only; default 2)."""
        return self._layers("decompose", image, None, _maps(alpha, trimap, precise, rough), layers, options)

    def complete(
        self, prompt: str, *, foreground: Any = None, background: Any = None, full: bool = True, **options: Any
    ) -> Any:
        """Given a layer (or a list of layers) and a text: the whole picture, or with full=False the missing layer
        alone.
        """
        task = completion(foreground, background, full)
        given = foreground if foreground is not None else background
        given = [io.loaded(one) for one in (given if isinstance(given, list | tuple) else [given])]
        example = task.example({task.inputs[0]: given}, prompt=prompt)
        return io.same_kind(self.run([example], **options)[0][0].rgba, given[0])

    def generate(self, prompt: str, *, size: tuple[int, int] | None = None, **options: Any) -> Any:
        """A transparent PIL picture from text; size (height, width), by default the model's own."""
        example = TASKS["text_to_image"].example(prompt=prompt, size=self.native_size() if size is None else size)
        from PIL import Image

        return io.same_kind(self.run([example], **options)[0][0].rgba, Image.new("RGBA", (1, 1)))

    def _layers(
        self,
        verb: str,
        image: Any,
        text: str | None,
        maps: dict[Role, Any],
        layers: int | None,
        options: dict[str, Any],
    ) -> LayerStack:
        points, boxes = options.pop("points", ()), options.pop("boxes", ())
        task = choose(verb, maps, text, marked=bool(points or boxes))
        if points or boxes:
            image = io.to_rgba(image)
            maps[Role.ROUGH] = self.outline(image, points, boxes)
        self.card.check_reads(task.name)
        example = task.example({Role.COMPOSITE: image, **maps}, prompt=text, layers=layers)
        return self.run([example], **options)[0]


def _maps(alpha: Any, trimap: Any, precise: Any, rough: Any) -> dict[Role, Any]:
    return {role: given for role, given in zip(MAPS, (alpha, trimap, precise, rough), strict=True) if given is not None}
