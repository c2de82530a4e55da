"""A sample of a benchmark: where its pictures lie, what is asked of them, and what should come back."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from omnialpha import rgba
from omnialpha.data.records.pictures import Handle, Size, levels, read, read_all, subject_mask
from omnialpha.data.records.records import LayeredRecord, Record
from omnialpha.errors import InputError
from omnialpha.evaluation.methods.predictions import PredictionRequest
from omnialpha.files import sha256
from omnialpha.tasks import Example, Role
from omnialpha.tasks import task as find_task

BLANK = 1024  # px a side of a picture that is made from text alone and has no truth


@dataclass(frozen=True)
class Sample:
    """key: its file name in a folder of predictions, which may have folders (`/`). inputs: by role. truths: of each
    target, None where nobody knows it. grey: true foregrounds are grey mattes. record: where the pictures are those of
    a record, which then says what is asked for.
    """

    key: str
    task: str
    inputs: Mapping[Role, Handle] = field(default_factory=dict)
    truths: tuple[Handle | None, ...] = ()
    prompt: str = ""
    category: str = ""
    trimap: Handle | None = None
    grey: bool = False
    record: Record | None = None

    @property
    def targets(self) -> tuple[Role, ...]:
        row = find_task(self.task)
        if isinstance(self.record, LayeredRecord):
            several = row.many is Role.FOREGROUND and Role.FOREGROUND in row.targets
            return row.target_roles(self.record.layers + len(row.targets) - 1 if several else None)
        return self.record.roles()[1] if self.record else row.target_roles(len(self.truths))

    @property
    def instruction(self) -> str:
        """The whole text that is asked: the first wording, unless a published pair has its own."""
        row = find_task(self.task)
        return row.instruct(self.prompt) if row.text else self.prompt or row.instruct()

    @property
    def handles(self) -> list[Handle]:
        """Of all pictures."""
        if self.record:
            return [part.handle for part in self.record.parts()]
        return [*self.inputs.values(), *(h for h in (*self.truths, self.trimap) if h is not None)]

    def request(self) -> PredictionRequest:
        """What `predictions` keeps of it; pictures that lie in no file of their own have no path."""
        given, true = list(self.inputs.items()), list(self.truths)
        if self.record:
            row = find_task(self.task)
            rest: list[tuple[Role | None, Handle]] = []
            for name, role, handle in self.record.parts():
                is_input = role in row.inputs and not name.startswith("out")
                (given if is_input else rest).append((role, handle))  # type: ignore[arg-type]
            true = [next((rest.pop(k)[1] for k, (r, _) in enumerate(rest) if r is role), None) for role in self.targets]
        inputs: dict[str, list[str]] = {}
        for role, handle in given:
            if isinstance(handle, Path):
                inputs.setdefault(str(role), []).append(str(handle.absolute()))
        truths = [str(handle.absolute()) if isinstance(handle, Path) else "" for handle in true]
        targets = [*map(str, self.targets)]
        return PredictionRequest(
            self.key, self.task, self.instruction, self.prompt, self.category, inputs, truths, targets
        )

    def identity(self, longer: int | None) -> str:
        """The same for the same pictures and words, measured at the same size."""
        content = [self.key, self.task, self.instruction, longer, [digest(handle) for handle in self.handles]]
        return sha256(json.dumps(content))

    def load(self, longer: int | None = None) -> Example:
        """The example, with its truths. longer: the larger side in px, to which all pictures are resized.

        InputError for pictures that are not what they should be.
        """
        if self.record:
            size = sized(read(self.handles[0]).shape, longer)
            example = self.record.example(self.task, generator(self.key), size)
        else:
            example = self._of_files(longer)
        return replace(example, instruction=self.instruction, prompt=" ".join(self.prompt.split()) or None)

    def _of_files(self, longer: int | None) -> Example:
        known = [handle for handle in self.truths if handle is not None]
        roles = [*self.inputs, *[None] * len(known), *([Role.TRIMAP] if self.trimap else [])]
        pictures = read_all(self.handles, roles)
        size = sized(pictures[0].shape, longer) if pictures else (longer or BLANK, longer or BLANK)
        resized = iter([rgba.resize(picture, size) for picture in pictures])
        given = {role: [levels(next(resized), role)] for role in self.inputs}
        true = [None if handle is None else next(resized) for handle in self.truths]
        trimap = (subject_mask(next(resized), Role.TRIMAP) * 2).round() / 2 if self.trimap else None
        row = find_task(self.task)
        layers = len(self.truths) if row.many in row.targets else None
        example = row.example(given, prompt=self.prompt if row.text else None, layers=layers, size=size)
        if self.grey:
            color = example.inputs[0][:3]
            true = [None if t is None else torch.cat([color, subject_mask(t, Role.ALPHA)[None]]) for t in true]
        return replace(example, truths=tuple(true), trimap=trimap)


def of_record(record: Record, task: str, key: str) -> Sample:
    """InputError for a task that the record cannot serve."""
    if not isinstance(record, LayeredRecord):
        record = replace(record, task=task)
        record.roles()
        return Sample(key, task, prompt=" ".join(record.prompt.split()), record=record)
    row = find_task(task)
    prompt = record.prompt(row, record.chosen(row, generator(key)))  # the first draw of `example`, which makes it too
    return Sample(key, task, prompt=prompt or "", record=record)


def generator(key: str) -> torch.Generator:
    """Draws what a record leaves open, the same for the same sample."""
    return torch.Generator().manual_seed(int(sha256(key)[:8], 16))


def sized(shape: torch.Size, longer: int | None) -> Size:
    """(height, width) of pictures (..., H, W) with this longer side, and no side below 1; None: their own."""
    height, width = int(shape[-2]), int(shape[-1])
    scale = 1 if longer is None else longer / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


# ---- pictures that are made of others -------------------------------------------------------------------------------


@dataclass(frozen=True)
class MadePicture:
    """A picture that lies in no file of its own. name: what a mistake in it is called by. make: gives the bytes of its
    file. sources, recipe: of what it is made and how, the same for the same picture; () where only the bytes say that.
    """

    name: str
    make: Callable[[], bytes]
    sources: tuple[Handle, ...] = ()
    recipe: str = ""

    suffix = ".png"

    def read(self) -> bytes:
        return self.make()

    def digest(self) -> str:
        return sha256(self.recipe, *map(digest, self.sources)) if self.sources else sha256(self.make())

    def __str__(self) -> str:
        return self.name


def digest(handle: Handle) -> str:
    """Of a picture's file, or of what it is made from."""
    if isinstance(handle, MadePicture):
        return handle.digest()
    try:
        return sha256(handle if isinstance(handle, Path) else handle.read())
    except OSError as error:
        raise InputError(f"{handle} cannot be read ({error.strerror or error}): check the data set.") from error


def flattened(layers: tuple[Handle, ...]) -> MadePicture:
    """Layers of one size, back to front, on white: the composite that a data set does not keep as a file."""

    def make() -> bytes:
        return png_of(rgba.opaque(rgba.flatten(rgba.recompose(read_all(layers)))))

    return MadePicture(f"{layers[0]} and what lies before it", make, layers, "flattened")


def png_of(picture: Tensor) -> bytes:
    """(3 or 4, H, W) in [0, 1] as a file of 8 bits."""
    return png(Image.fromarray((picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
