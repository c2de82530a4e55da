"""The methods of a model by what they do: matte, remove, decompose, complete, generate.

They take a PIL, numpy or torch picture, a path, an open file or bytes, and return a picture of the same type, see
`io.as_type_of`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omnialpha import io
from omnialpha.cutout_options import Cutout
from omnialpha.errors import InputError
from omnialpha.io.layers import LayerStack
from omnialpha.tasks import MAPS, TASKS, Example, Role, Task

if TYPE_CHECKING:
    from torch import Tensor

    from omnialpha.masks import Mark

# method -> the first word of its tasks' names
FAMILIES = {"matte": "matting", "remove": "removal", "decompose": "decompose"}


def select_task(verb: str, given: Mapping[Role, Any], text: str | None = None, marked: bool = False) -> Task:
    """The task of a method for what was given in addition to the picture.

    Args:
        verb: `matte`, `remove` or `decompose`.
        given: Maps by role, at most one of them.
        text: The subject in words.
        marked: Whether clicks or boxes are given, of which a rough map is made.

    Returns:
        The task for the map or the text; the automatic one where there is neither.

    Raises:
        InputError: More than one of them is given, or a text to a method that takes none.
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


def completion_task(foreground: Any, background: Any, full: bool) -> Task:
    """The completion task for the layer that is given.

    Args:
        foreground, background: Exactly one of them is not None.
        full: Whether the whole picture is made, not the missing layer alone.

    Raises:
        InputError: Both or neither are given.
    """
    if (foreground is None) == (background is None):
        raise InputError("complete needs a foreground or a background: give exactly one of them.")
    given = "foreground" if foreground is not None else "background"
    other = "background" if foreground is not None else "foreground"
    return TASKS[f"{given}_to_{'full' if full else other}"]


class TaskMethods:
    """Methods of the pipeline, one for each category of tasks.

    All of them take the keyword options of `OmniAlpha.run`: seed, steps, guidance, raw and on_step. Those that take a
    map (alpha, trimap, precise or rough; a picture of the size of the image, or what can be read as one) take points
    and boxes instead, see `masks.marks`.
    """

    card: Any  # models.card.Card

    def run(self, examples: list[Example], **options: Any) -> list[LayerStack]:
        raise NotImplementedError

    def native_size(self) -> tuple[int, int]:
        raise NotImplementedError

    def outline(self, picture: Tensor, points: Sequence[Mark], boxes: Sequence[Mark]) -> Tensor:
        """A rough map (H, W) in {0, 1} of what is marked in a picture (4, H, W)."""
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
        cutout: Cutout | None = None,
        **options: Any,
    ) -> Any:
        """Cut the subject out of a picture.

        Args:
            image: The picture. Its subject is found automatically where nothing below is given.
            text: The subject in words, for models that read.
            alpha, trimap, precise, rough: One map: the final alpha, {0, .5, 1}, a binary mask, a generous binary mask.
            cutout: How it is finished: edge, colours, shadow, margin, background.

        Returns:
            The subject as RGBA with straight alpha, of the type of `image`, and of its size unless it is cropped.

        Raises:
            InputError: A picture cannot be read, the arguments do not fit together, or the model does not do the task.
        """
        image = io.read_if_file(image)
        made = self._layers("matte", image, text, _maps(alpha, trimap, precise, rough), None, options)[0].rgba
        if cutout and cutout.changed:
            from omnialpha.cutout import finish

            made = finish(made, io.to_rgba(image).cpu(), cutout)[0]
        return io.as_type_of(made, image)

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
        """Remove the subject, or what a map marks, and paint what is behind it.

        Args:
            image: The picture.
            alpha, trimap, precise, rough: One map of what is removed; found automatically without.

        Returns:
            The picture of the size and type of `image`, bit-equal to it outside the removed area.

        Raises:
            InputError: As `matte`.
        """
        image = io.read_if_file(image)
        made = self._layers("remove", image, None, _maps(alpha, trimap, precise, rough), None, options)[0].rgba
        return io.as_type_of(made, image)

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
        """Separate a picture into complete layers.

        Args:
            image: The picture.
            layers: How many, the background included; only without a map. 2 by default.
            alpha, trimap, precise, rough: One map of the foreground.

        Returns:
            Layers of the size of `image`, back to front, that recompose to it.

        Raises:
            InputError: As `matte`.
        """
        return self._layers("decompose", image, None, _maps(alpha, trimap, precise, rough), layers, options)

    def complete(
        self, prompt: str, *, foreground: Any = None, background: Any = None, full: bool = True, **options: Any
    ) -> Any:
        """Make the picture around a foreground or on a background, or only the layer that is missing.

        Args:
            prompt: What to make, in words.
            foreground, background: A layer, or a list of them where the task takes several; one of the two.
            full: Whether the whole picture is made, not the missing layer alone.

        Returns:
            The picture or the layer, RGBA, of the size and type of the first layer given.

        Raises:
            InputError: As `matte`.
        """
        task = completion_task(foreground, background, full)
        given = foreground if foreground is not None else background
        given = [io.read_if_file(one) for one in (given if isinstance(given, list | tuple) else [given])]
        example = task.example({task.inputs[0]: given}, prompt=prompt)
        return io.as_type_of(self.run([example], **options)[0][0].rgba, given[0])

    def generate(self, prompt: str, *, size: tuple[int, int] | None = None, **options: Any) -> Any:
        """Make a transparent picture from text.

        Args:
            prompt: What to make, in words.
            size: (height, width) in pixels; the model's own by default.

        Returns:
            A PIL picture, mode RGBA.

        Raises:
            InputError: The size is out of range.
        """
        example = TASKS["text_to_image"].example(prompt=prompt, size=self.native_size() if size is None else size)
        from PIL import Image

        return io.as_type_of(self.run([example], **options)[0][0].rgba, Image.new("RGBA", (1, 1)))

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
        task = select_task(verb, maps, text, marked=bool(points or boxes))
        if points or boxes:
            image = io.to_rgba(image)
            maps[Role.ROUGH] = self.outline(image, points, boxes)
        self.card.check_reads(task.name)
        example = task.example({Role.COMPOSITE: image, **maps}, prompt=text, layers=layers)
        return self.run([example], **options)[0]


def _maps(alpha: Any, trimap: Any, precise: Any, rough: Any) -> dict[Role, Any]:
    return {role: given for role, given in zip(MAPS, (alpha, trimap, precise, rough), strict=True) if given is not None}
