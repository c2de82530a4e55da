"""A checked request: an example, how it is run, and the picture whose depth and metadata the result gets."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

from PIL import Image, ImageColor, UnidentifiedImageError

from omnialpha import __version__
from omnialpha.cutout import finish
from omnialpha.cutout_options import Cutout
from omnialpha.errors import InputError
from omnialpha.io import DAMAGED, Picture, read_image
from omnialpha.io.layers import LayerStack
from omnialpha.limits import by
from omnialpha.models.checkpoints.folders import Card
from omnialpha.run_options import TEXTS, RunOptions, cutout_options, options_of, run_options
from omnialpha.server.config import MEGA, ServerConfig
from omnialpha.server.refusals import Refusal
from omnialpha.tasks import MAPS, Example, Role, Task


@dataclass(frozen=True, eq=False)
class TaskCall:
    """The call of a task that a job makes: its example and every setting."""

    example: Example
    seed: int
    steps: int
    guidance: float
    raw: bool
    source: Picture | None = None
    refine: str = "auto"
    cutout: Cutout = Cutout()

    @property
    def task(self) -> str:
        return self.example.task

    @property
    def pixels(self) -> int:
        """Of all its pictures, or of the one that is made."""
        height, width = self.example.size
        return height * width * max(len(self.example.inputs), 1)

    @property
    def kind(self) -> Hashable:
        """Calls of one kind may run together."""
        one = self.example
        return one.task, one.size, one.roles, one.targets, self.steps, self.guidance, self.raw, self.refine

    def settings(self, card: Card) -> dict[str, Any]:
        """What is stored in the PNG, as the command line stores it."""
        made: dict[str, Any] = {"task": self.task, "instruction": card.text(self.example), "model": card.name}
        made |= {"seed": self.seed, "steps": self.steps, "guidance": self.guidance, "raw": self.raw}
        made |= ({"refine": self.refine} if self.refine != "auto" else {}) | self.cutout.changed
        return made | {"size": by(self.example.size), "version": __version__}

    def finish(self, stack: LayerStack) -> tuple[LayerStack, tuple[str, ...]]:
        """What was made, finished as the options of a cut-out say, which may give it another size, and notes."""
        if not self.cutout.changed:
            return stack, ()
        picture, notes = finish(stack[0].rgba, self.example.inputs[0].cpu(), self.cutout)
        return LayerStack((picture.shape[1], picture.shape[2]), [replace(stack[0], rgba=picture)]), notes


class NamedBytes(BytesIO):
    """A file in memory with the name that messages call it; the name of the client's file is not used."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name


def count_pixels(data: bytes) -> int:
    """Pixels of a picture by its header, 0 where that says nothing; what it is, reading decides."""
    try:
        with Image.open(BytesIO(data)) as image:
            return image.width * image.height
    except Image.DecompressionBombError:
        return 2**63
    except (UnidentifiedImageError, *DAMAGED):
        return 0


def check_pictures(pictures: Sequence[bytes], config: ServerConfig) -> None:
    """Refusal where pictures are too large together, before any is decoded."""
    if sum(map(count_pixels, pictures)) > config.max_pixels:
        most = f"{config.max_pixels / MEGA:g} megapixels"
        raise Refusal("too_large", f"the pictures have more than {most} together: make them smaller.")


def read_picture(data: bytes, name: str, *, frame: int | None = None, is_map: bool = False) -> Picture:
    """Read an uploaded picture. name: what messages call it. Raises InputError where it cannot be read."""
    return read_image(NamedBytes(data, f"the {name}"), frame=frame, data=is_map)


def read_options(task: Task, texts: Mapping[str, str]) -> tuple[RunOptions, dict[str, Any]]:
    """The options of a run, and prompt and layers, from texts whose names are known. InputError for a wrong value."""
    rows = options_of(task)
    read = {name: rows[name].read(text) for name, text in texts.items() if name in (*TEXTS, *run_options())}
    own = {name: read.pop(name, None) for name in TEXTS}
    options = RunOptions(**read)
    options.check(task)
    return options, own


def read_cutout(task: Task, texts: Mapping[str, str]) -> Cutout:
    """How a cut-out is finished. InputError for a wrong value; a background is a colour here, never a file."""
    if task.category != "matting":
        return Cutout()
    given = {name: row.read(texts[name]) for name, row in cutout_options().items() if texts.get(name)}
    if "background" in given:
        try:
            red, green, blue = ImageColor.getrgb(given["background"])[:3]
        except ValueError:
            raise InputError(f"background={given['background'][:40]!r} is no colour: write white or #336699.") from None
        given["background"] = f"#{red:02x}{green:02x}{blue:02x}"
    return Cutout(**given)


def check_margin(size: tuple[int, int], margin: int, config: ServerConfig) -> None:
    """Refusal where a picture of a size is too large with a margin around it."""
    if (size[0] + 2 * margin) * (size[1] + 2 * margin) > config.max_pixels:
        most = f"{config.max_pixels / MEGA:g} megapixels"
        raise Refusal("too_large", f"with a margin of {margin} px the picture has more than {most}: use a smaller one.")


def check_call(
    task: Task,
    files: Mapping[Role, Sequence[bytes | Picture]],
    texts: Mapping[str, str],
    card: Card,
    config: ServerConfig,
) -> TaskCall:
    """Check a request and decode its pictures.

    Args:
        task: The task.
        files: Uploaded pictures by role, or what was made of them.
        texts: The options of `options_of(task)` that are given, by name.
        card: Of the model, for its own settings.
        config: For the limits.

    Raises:
        InputError: Anything of it is wrong.
    """
    options, own = read_options(task, texts)
    card.check_task(task.name)
    check_words(card, task)
    check_pictures([data for row in files.values() for data in row if isinstance(data, bytes)], config)
    pictures: dict[Role, list[Picture]] = {}
    for role, row in files.items():
        for data in row:
            frame = options.frame if role is task.inputs[0] and role not in pictures else None
            given = data if isinstance(data, Picture) else read_picture(data, role, frame=frame, is_map=role in MAPS)
            pictures.setdefault(role, []).append(given)
    size = options.height_width(task) or (None if task.inputs else card.native_size)
    example = task.example(dict(pictures), prompt=own["prompt"], layers=own["layers"], size=size)
    defaults = card.defaults(task.name)
    used = options.used(defaults.steps, defaults.guidance)
    call = TaskCall(
        example,
        options.seed,
        used["steps"],
        used["guidance"],
        options.raw,
        pictures[task.inputs[0]][0] if task.inputs else None,
        options.refine,
        read_cutout(task, texts),
    )
    if call.cutout.crop is not None:
        check_margin(example.size, call.cutout.margin(max(example.size)), config)
    if call.pixels > config.max_pixels:  # of a picture from text, or of a file whose header did not say
        most = f"{config.max_pixels / MEGA:g} megapixels"
        raise Refusal("too_large", f"{by(example.size)} is more than {most}: ask for a smaller picture.")
    return call


def check_words(card: Card, task: Task) -> None:
    """InputError where words alone would choose the subject, for a model that does not follow them."""
    if not card.follows(task.name):  # the card's own sentence speaks of the options of the command line
        fix = "send a map of yours, as in matting_rough, or ask a server of a model that reads"
        raise InputError(f"{card.name} cannot tell subjects apart by words: {fix}.")
