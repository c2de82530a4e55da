"""A sample of a benchmark: where its pictures lie, what is asked of them, and what should come back."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
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
    inputs: Mapping[Role, tuple[Handle, ...]] = field(default_factory=dict)
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
        given = [handle for row in self.inputs.values() for handle in row]
        return given + [h for h in (*self.truths, self.trimap) if h is not None]

    def request(self) -> PredictionRequest:
        """What `predictions` keeps of it; pictures that lie in no file of their own have no path."""
        row, targets = find_task(self.task), self.targets
        if self.record:
            parts = [
                (p.role, p.handle, p.role in row.inputs and not p.name.startswith("out")) for p in self.record.parts()
            ]
            given = [(role, handle) for role, handle, is_input in parts if is_input]
            rest = [(role, handle) for role, handle, is_input in parts if not is_input]
            true = [next((rest.pop(k)[1] for k, (r, _) in enumerate(rest) if r is role), None) for role in targets]
        else:
            given = [(role, handle) for role, handles in self.inputs.items() for handle in handles]
            true = list(self.truths)
        inputs: dict[str, list[str]] = {}
        for role, handle in given:
            if isinstance(handle, Path):
                inputs.setdefault(str(role), []).append(str(handle.absolute()))
        truths = [str(handle.absolute()) if isinstance(handle, Path) else "" for handle in true]
        return PredictionRequest(
            self.key, self.task, self.instruction, self.prompt, self.category, inputs, truths, [*map(str, targets)]
        )

    def identity(self, longer: int | None) -> str:
        """The same for the same pictures and words, measured at the same size."""
        content = [self.key, self.task, self.instruction, longer, [digest(handle) for handle in self.handles]]
        return sha256(json.dumps(content))

    def load(self, longer: int | None = None) -> Example:
        """The example, with its truths.

        Args:
            longer: of the larger side in px, to which all pictures are resized.

        Raises:
            InputError: for pictures that are not what they should be.
        """
        return self._of_files(longer) if self.record is None else self._of_record(self.record, longer)

    def _of_files(self, longer: int | None) -> Example:
        inputs = [(role, handle) for role, handles in self.inputs.items() for handle in handles]
        truths = [handle for handle in self.truths if handle is not None]
        others = truths + [h for h in [self.trimap] if h is not None]
        roles = [role for role, _ in inputs] + [None] * len(truths) + [Role.TRIMAP]
        pictures = read_all([handle for _, handle in inputs] + others, roles[: len(inputs) + len(others)])
        size = sized(shape(pictures[0]), longer) if pictures else (longer or BLANK, longer or BLANK)
        resized = iter([rgba.resize(picture, size) for picture in pictures])
        given: dict[Role, list[Tensor]] = {}
        for role, _ in inputs:
            given.setdefault(role, []).append(levels(next(resized), role))
        true = [None if handle is None else next(resized) for handle in self.truths]
        trimap = None if self.trimap is None else (subject_mask(next(resized), Role.TRIMAP) * 2).round() / 2
        row = find_task(self.task)
        layers = len(self.truths) if row.many in row.targets else None
        example = row.example(given, prompt=self.prompt if row.text else None, layers=layers, size=size)
        if self.grey:
            colour = example.inputs[0][:3]
            true = [None if t is None else torch.cat([colour, subject_mask(t, Role.ALPHA)[None]]) for t in true]
        return self._asking(replace(example, truths=tuple(true), trimap=trimap))

    def _of_record(self, record: Record, longer: int | None) -> Example:
        size = sized(shape(read(self.handles[0])), longer)
        return self._asking(record.example(self.task, generator(self.key), size))

    def _asking(self, example: Example) -> Example:
        """In the words that `asked` keeps."""
        return replace(example, instruction=self.instruction, prompt=" ".join(self.prompt.split()) or None)


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


def shape(picture: Tensor) -> Size:
    """(height, width)"""
    return int(picture.shape[-2]), int(picture.shape[-1])


def sized(size: Size, longer: int | None) -> Size:
    """(height, width) with this longer side, and no side below 1."""
    if longer is None:
        return size
    scale = longer / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


# ---- pictures that are made of others -------------------------------------------------------------------------------


def digest(handle: Handle) -> str:
    """Of a picture's file, or of what it is made from."""
    made = getattr(handle, "digest", None)
    if made is not None:
        return str(made())
    try:
        data = handle.read_bytes() if hasattr(handle, "read_bytes") else handle.read()
    except OSError as error:
        raise InputError(f"{handle} cannot be read ({error.strerror or error}): check the data set.") from error
    return sha256(data)


@dataclass(frozen=True)
class Flattened:
    """Layers of one size, back to front, on white: the composite that a data set does not keep as a file."""

    layers: tuple[Handle, ...]

    suffix = ".png"

    def read(self) -> bytes:
        return png(rgba.opaque(rgba.flatten(rgba.recompose(read_all(self.layers)))))

    def digest(self) -> str:
        return sha256(*map(digest, self.layers))

    def __str__(self) -> str:
        return f"{self.layers[0]} and what lies before it"


def png(picture: Tensor) -> bytes:
    """(3 or 4, H, W) in [0, 1] as a file of 8 bits."""
    file = io.BytesIO()
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=1)
    return file.getvalue()
