"""Layered records and published pairs: rows of a manifest, whose pictures are read when an example is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from omnialpha import masks
from omnialpha.data.records.pictures import Handle, Size, error_context, fitted, levels, read_all, subject_mask
from omnialpha.data.scene import Caption, Scene, to_example
from omnialpha.errors import InputError
from omnialpha.tasks import DERIVED, MAPS, MAX_LAYERS, TASKS, Example, Role, Task
from omnialpha.tasks import task as find_task

FG, BG, COMPOSITE, FULL = Role.FOREGROUND, Role.BACKGROUND, Role.COMPOSITE, Role.FULL
HELD = (FG, BG, COMPOSITE, *MAPS)  # the roles that a layered record may name
CAPTIONED = (FG, BG, FULL)
SHORT = {FG: "fg", BG: "bg"}  # names of parts in a shard; the other roles have their own
INPUTS, OUTPUTS = "input_images", "output_images"


class RecordPart(NamedTuple):
    """A picture of a record: its name as in a shard, its role (None: of a pair whose task is unknown), its file."""

    name: str
    role: Role | None
    handle: Handle


@dataclass(frozen=True)
class PairRecord:
    """A row of the published format: pictures in, pictures out, of the one task that its dataset is for ("": unknown).

    The prompt is what a text task describes; for another task it is the whole instruction, or "" for ours.
    """

    KEYS: ClassVar = ("id", "prompt", INPUTS, OUTPUTS)

    id: str
    task: str
    prompt: str
    inputs: tuple[Handle, ...]
    outputs: tuple[Handle, ...]

    @classmethod
    def parse(cls, values: Mapping[str, Any], handle: Callable[[Any], Handle], task: str) -> PairRecord:
        prompt = values.get("prompt", "")
        if not isinstance(prompt, str):
            raise InputError(f"the prompt is {prompt!r}: write text.")
        inputs, outputs = (tuple(map(handle, _list(values.get(key, []), key))) for key in (INPUTS, OUTPUTS))
        made = cls(_id(values), task, prompt, inputs, outputs)
        if task:
            made.roles()
        return made

    def roles(self) -> tuple[tuple[Role, ...], tuple[Role, ...]]:
        """Of the inputs and the outputs. InputError where their number does not fit the task."""
        row = find_task(self.task)
        several = row.many in row.inputs
        least, most = len(row.inputs), MAX_LAYERS if several else len(row.inputs)
        if not least <= len(self.inputs) <= most:
            raise InputError(f"{INPUTS} has {len(self.inputs)}, {self.task} takes {'1 to ' * several}{most}.")
        if not self.outputs:
            raise InputError(f"{OUTPUTS} is empty: give what {self.task} makes.")
        inputs = row.inputs + row.inputs[-1:] * (len(self.inputs) - len(row.inputs))
        return inputs, row.target_roles(len(self.outputs))

    def parts(self) -> list[RecordPart]:
        roles = sum(self.roles(), ()) if self.task else (None,) * (len(self.inputs) + len(self.outputs))
        names = [f"in{k}" for k in range(len(self.inputs))] + [f"out{k}" for k in range(len(self.outputs))]
        return [RecordPart(*part) for part in zip(names, roles, self.inputs + self.outputs, strict=True)]

    def text(self) -> dict[str, Any]:
        """The row without its pictures."""
        return {"id": self.id, "prompt": self.prompt}

    def row(self, name: Callable[[Handle], str]) -> dict[str, Any]:
        """The row of a manifest, its pictures by these names."""
        return self.text() | {INPUTS: [*map(name, self.inputs)], OUTPUTS: [*map(name, self.outputs)]}

    @property
    def layers(self) -> int:
        return len(self.outputs)

    def tasks(self) -> tuple[str, ...]:
        return (self.task,) if self.task else ()

    def check_words(self) -> None:
        """InputError for a prompt that its task cannot be asked with."""
        if self.task and find_task(self.task).text:
            find_task(self.task).instruct(self.prompt)

    def example(self, name: str, generator: torch.Generator, size: Size) -> Example:
        """The request with its truths; see `LayeredRecord.example`."""
        if name != self.task:
            raise InputError(f"record {self.id!r} is a pair for {self.task or 'no task'}, not for {name}.")
        row, (inputs, outputs) = find_task(name), self.roles()
        with error_context(self.id):
            raw = read_all([p.handle for p in self.parts()], [p.role for p in self.parts()])
        roles = zip(inputs + outputs, raw, strict=True)
        guides = [subject_mask(picture, role) for role, picture in roles if role is FG or role in MAPS]
        pictures = fitted(raw, size, guides, generator) if raw else []
        given: dict[Role, list[Tensor]] = {}
        for role, picture in zip(inputs, pictures, strict=False):
            given.setdefault(role, []).append(levels(picture, role))
        with error_context(self.id):
            wording = int(torch.randint(1 << 16, (1,), generator=generator))
            prompt = self.prompt if row.text else None
            made = row.example(given, prompt=prompt, layers=len(outputs), size=size, wording=wording)
        whole = " ".join(self.prompt.split()) if not row.text else ""
        made = replace(made, instruction=whole, prompt=whole) if whole else made
        trimap = made.given(Role.TRIMAP)
        return replace(made, truths=tuple(pictures[len(inputs) :]), trimap=None if trimap is None else trimap[0])


@dataclass(frozen=True)
class LayeredRecord:
    """A role-keyed row, which serves every task that its pictures and captions suffice for.

    pictures: by role; several foregrounds lie back to front. captions: of FOREGROUND one each, of BACKGROUND and FULL
    one.
    """

    KEYS: ClassVar = ("id", *map(str, HELD), "captions")

    id: str
    pictures: dict[Role, tuple[Handle, ...]]
    captions: dict[Role, tuple[str, ...]]

    @classmethod
    def parse(cls, values: Mapping[str, Any], handle: Callable[[Any], Handle], task: str) -> LayeredRecord:
        if task:
            raise InputError("the row is a layered record, and `task` is for pairs: use tasks = [...].")
        pictures: dict[Role, tuple[Handle, ...]] = {}
        for role in HELD:
            given = values.get(role)
            if given is not None:
                named = _list(given, role) if isinstance(given, list | tuple) and role is FG else [given]
                pictures[role] = tuple(map(handle, named))
        if not pictures:
            raise InputError("the row names no picture.")
        return cls(_id(values), pictures, cls._captions(values.get("captions") or {}, len(pictures.get(FG, ()))))

    @classmethod
    def _captions(cls, given: Any, count: int) -> dict[Role, tuple[str, ...]]:
        if not isinstance(given, Mapping):
            raise InputError(f"captions is {given!r}: write a table, such as {{'foreground': 'a red mug'}}.")
        _known(given, CAPTIONED, "captions.")
        made: dict[Role, tuple[str, ...]] = {}
        for key, value in ((key, value) for key, value in given.items() if value is not None):
            texts = tuple(_list(value, key)) if isinstance(value, list | tuple) and key == FG else (value,)
            if not all(isinstance(text, str) and text.strip() for text in texts):
                raise InputError(f"captions.{key} is {value!r}: write text, or leave it out.")
            if len(texts) != (count if key == FG else 1):
                raise InputError(f"captions.{key} has {len(texts)}, the row has {count} foreground(s): give each one.")
            made[Role(key)] = texts
        return made

    def parts(self) -> list[RecordPart]:
        fronts = [RecordPart(f"fg{k}", FG, handle) for k, handle in enumerate(self.pictures.get(FG, ()))]
        return fronts + [RecordPart(SHORT.get(r, str(r)), r, p[0]) for r, p in self.pictures.items() if r is not FG]

    def text(self) -> dict[str, Any]:
        """The row without its pictures."""
        words = {str(role): list(texts) if role is FG else texts[0] for role, texts in self.captions.items()}
        return {"id": self.id} | ({"captions": words} if words else {})

    def row(self, name: Callable[[Handle], str]) -> dict[str, Any]:
        """The row of a manifest, its pictures by these names."""
        named = {str(r): [*map(name, p)] if r is FG else name(p[0]) for r, p in self.pictures.items()}
        return {"id": self.id} | named | self.text()

    @property
    def layers(self) -> int:
        return len(self.pictures.get(FG, ()))

    def tasks(self) -> tuple[str, ...]:
        """The tasks that it serves, in the table's order."""
        have = set(self.pictures)
        have |= {role for role, parts in DERIVED.items() if have >= set(parts)}
        have |= {FULL} if COMPOSITE in have else set()
        words = set(self.captions) | ({FULL} if {FG, BG} <= self.captions.keys() else set())
        return tuple(
            row.name
            for row in TASKS.values()
            if have.issuperset(row.inputs + row.targets) and (row.text is None or row.text in words)
            if row.many is None or self.layers + (len(row.targets) - 1) * (FG in row.targets) <= MAX_LAYERS
        )

    def check_words(self) -> None:
        """InputError for captions that a task cannot be asked with."""
        for row in map(find_task, self.tasks()):
            if row.text:
                row.instruct(self.prompt(row, range(self.layers)))

    def prompt(self, row: Task, chosen: Sequence[int]) -> str | None:
        """What a text task is asked with, of these foregrounds."""
        return self._scene(torch.empty(self.layers, 4, 0, 0), range(self.layers), chosen).prompt(row)

    def _scene(self, layers: Tensor, fronts: Sequence[int], chosen: Sequence[int]) -> Scene:
        """Of these foregrounds (K, 4, H, W) and their captions, without the other pictures."""
        texts = self.captions.get(FG, ())
        back, full = (self.captions.get(role, ("",))[0] for role in (BG, FULL))
        captions = tuple(Caption(texts[k]) for k in fronts) if texts else ()
        return Scene(layers, None, None, captions, back, full, subject=tuple(map(fronts.index, chosen)))

    def example(self, name: str, generator: torch.Generator, size: Size) -> Example:
        """The request with its wording, its maps and its cut drawn anew, and its truths, all pictures of `size`.

        Which foregrounds it is about says `chosen`.

        Raises:
            InputError: for a task that it does not serve, and for pictures that cannot be read, differ in size, or are
                empty.
        """
        row = find_task(name)
        if name not in self.tasks():
            raise InputError(f"record {self.id!r} cannot serve {name}: it serves {', '.join(self.tasks()) or 'none'}.")
        chosen = self.chosen(row, generator)
        wanted = {COMPOSITE if role is FULL else role for role in row.inputs + row.targets}
        derived = COMPOSITE in wanted and COMPOSITE not in self.pictures
        fronts = list(range(self.layers)) if derived else chosen
        keys = [(FG, k) for k in fronts]
        keys += [(r, 0) for r in HELD if r is not FG and r in self.pictures and (r in wanted or derived and r is BG)]
        with error_context(self.id):
            raw = dict(zip(keys, read_all([self.pictures[r][k] for r, k in keys], [r for r, _ in keys]), strict=True))
            subjects = [subject_mask(p, r) for (r, k), p in raw.items() if r in MAPS or (r is FG and k in chosen)]
            if any(float(subject.max()) <= masks.PRESENT for subject in subjects):
                raise InputError("a foreground or a map is empty: take the row away.")
            pictures = dict(zip(keys, fitted([*raw.values()], size, subjects, generator), strict=True))
            layers = torch.stack([pictures[FG, k] for k in fronts]) if fronts else torch.empty(0, 4, *size)
            scene = replace(
                self._scene(layers, fronts, chosen),
                background=pictures.get((BG, 0)),
                composite=pictures.get((COMPOSITE, 0)),
                maps={role: levels(picture, role) for (role, _), picture in pictures.items() if role in MAPS},
            )
            return to_example(scene, row, generator)

    def chosen(self, row: Task, generator: torch.Generator) -> list[int]:
        """The foregrounds that a sample is about, back to front.

        All of them where the task may have several, each a layer of its own. One, drawn, where a text names it. Else
        all as one layer; where a map marks it, half of the time the front one alone, with the others as part of the
        background - only if map and composite are made here, as given ones show them all.
        """
        everything = list(range(self.layers))
        if row.many is FG or self.layers < 2:
            return everything
        if row.text is FG:
            return [int(torch.randint(self.layers, (1,), generator=generator))]
        ours = COMPOSITE not in self.pictures and not any(role in self.pictures for role in row.inputs)
        alone = any(role in MAPS for role in row.inputs) and float(torch.rand((), generator=generator)) < 0.5
        return everything[-1:] if ours and alone else everything


Record = PairRecord | LayeredRecord


def parse(values: Any, folder: Path | None, task: str = "") -> Record:
    """A row as a record. InputError says what is wrong with the row.

    Args:
        folder: Where the paths of its pictures begin; None: it names none, as it has the files themselves.
        task: What a pair is of.
    """

    def handle(value: Any) -> Handle:
        if folder and isinstance(value, str) and value.strip():
            return folder / value
        if not hasattr(value, "read"):
            raise InputError(f"{value!r} is no picture: write its path.")
        return value  # type: ignore[no-any-return]

    if not isinstance(values, Mapping):
        raise InputError(f"the row is {str(values)[:40]!r}, not a JSON object.")
    kind: type[Record] = PairRecord if {INPUTS, OUTPUTS} & values.keys() else LayeredRecord
    _known(values, kind.KEYS)
    return kind.parse(values, handle, task)


def _id(values: Mapping[str, Any]) -> str:
    ident = values.get("id")
    if not isinstance(ident, str | int) or isinstance(ident, bool) or ident == "":
        raise InputError("the row has no id: give it one of its own.")
    return str(ident)


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise InputError(f"{key} is {value!r}: write a list.")
    return list(value)


def _known(values: Mapping[str, Any], keys: Sequence[str], where: str = "") -> None:
    for key in values:
        if key not in keys:
            near = get_close_matches(str(key), keys, n=1, cutoff=0.0)[0]
            raise InputError(f"the key {where + str(key)!r} is unknown: did you mean {where + near!r}?")
