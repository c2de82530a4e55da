"""The options of one run, in one table: the command line and the server take theirs from it.

A field is an option: its type says how a text is read, its note what it does. Which of them a task takes follows from
the task's row.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args, get_origin, get_type_hints

from omnialpha.cutout_options import Cutout
from omnialpha.errors import InputError
from omnialpha.limits import REFINE, check_guidance, check_refine, check_seed, check_size, check_steps
from omnialpha.tasks import Task

YES_NO = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


@dataclass(frozen=True)
class RunOptions:
    """Options of a run. None is the checkpoint's own value."""

    seed: Annotated[int, "one seed gives one picture, on any device"] = 0
    steps: Annotated[int | None, "sampling steps; the model's own if left out"] = None
    guidance: Annotated[float | None, "1 is none; the model's own if left out"] = None
    size: Annotated[str | None, "of a picture made from text alone"] = None
    frame: Annotated[int | None, "which frame or page of the picture, from 0; the first if left out"] = None
    refine: Annotated[str, "auto refines coarse edges and fills, closed-form all edges, off none"] = "auto"
    raw: Annotated[bool, "leave the model's pixels as they are: nothing from the input"] = False

    dashes: ClassVar[str] = ""  # what a message puts before the name of an option

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_refine(self.refine)

    def check(self, task: Task) -> None:
        """InputError where a value is out of range, or the task does not take the option."""
        if self.steps is not None:
            check_steps(self.steps)
        if self.guidance is not None:
            check_guidance(self.guidance)
        self.height_width(task)
        if self.frame is not None and not task.inputs:
            given = f"{self.dashes}frame {self.frame}"
            raise InputError(f"{given} is not for {task.name}, which takes no picture: leave it out.")

    def used(self, steps: int, guidance: float) -> dict[str, Any]:
        """The settings of a run, which are stored with what it makes. steps, guidance: those of the checkpoint."""
        steps = steps if self.steps is None else self.steps
        guidance = guidance if self.guidance is None else self.guidance
        used: dict[str, Any] = {"seed": self.seed, "steps": steps, "guidance": guidance, "raw": self.raw}
        return used | ({"refine": self.refine} if self.refine != "auto" else {})

    def height_width(self, task: Task) -> tuple[int, int] | None:
        """`size` as (height, width); InputError where it is no size, or the task takes its size from a picture."""
        if self.size is None:
            return None
        named = f"{self.dashes}size"
        if task.inputs:
            given = f"its output has the size of the {task.inputs[0]}"
            raise InputError(f"{named} {self.size} is not for {task.name}, as {given}: leave it out.")
        match = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", self.size.strip().lower())
        if not match:
            raise InputError(f"{named} {self.size!r} is not a size: write WIDTHxHEIGHT, such as 128x96, or one number.")
        width, height = int(match[1]), int(match[2] or match[1])
        return check_size((height, width), f"{named} {self.size}")


class RunOption(NamedTuple):
    """A row of the table. kind: int, float, str or bool. choices: of a text that is one of a few."""

    name: str
    kind: type
    default: Any
    help: str
    choices: tuple[str, ...] = ()

    def read(self, text: str) -> Any:
        """The value of a text; InputError where it is none of the kind."""
        if self.kind is bool:
            if text.strip().lower() not in YES_NO:
                raise InputError(f"{self.name}={text[:40]!r} is neither true nor false: use one of them.")
            return YES_NO[text.strip().lower()]
        try:
            return self.kind(text)
        except ValueError:
            words = "a whole number" if self.kind is int else "a number"
            raise InputError(f"{self.name}={text[:40]!r} is not {words}: give one.") from None


@cache
def run_options() -> dict[str, RunOption]:
    """All rows by name, in the order of the fields."""
    hints, rows = get_type_hints(RunOptions, include_extras=True), {}
    for field in dataclasses.fields(RunOptions):
        kind, note = get_args(hints[field.name])
        kinds = [one for one in get_args(kind) if one is not type(None)] or [kind]
        choices = REFINE if field.name == "refine" else ()
        rows[field.name] = RunOption(field.name, kinds[0], field.default, note, choices)
    return rows


@cache
def cutout_options() -> dict[str, RunOption]:
    """The options that finish a cut-out, by name: the fields of `Cutout`."""
    hints, rows = get_type_hints(Cutout), {}
    for field in dataclasses.fields(Cutout):
        hint = hints[field.name]
        kind, choices = hint if hint in (float, bool) else str, get_args(hint) if get_origin(hint) is Literal else ()
        rows[field.name] = RunOption(field.name, kind, field.default, field.metadata["help"], choices)
    return rows


TEXTS = {  # beside the fields: what a task takes in words or numbers of its own
    "prompt": RunOption("prompt", str, None, "for the tasks that take a text"),
    "layers": RunOption("layers", int, None, "how many, the background included; 2 if left out"),
}


def options_of(task: Task) -> dict[str, RunOption]:
    """What a task takes beside its pictures, by name: all but what `RunOptions.check` and the task would refuse."""
    rows = TEXTS | run_options() | (cutout_options() if task.category == "matting" else {})
    refused = {
        "prompt": task.text is None,
        "layers": task.many is None or task.many not in task.targets,
        "size": bool(task.inputs),
        "frame": not task.inputs,
    }
    return {name: row for name, row in rows.items() if not refused.get(name)}


def check_known(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """InputError with the nearest name for the first of `given` that is not among `known`. what: takes them."""
    names = list(known)
    for name in given:
        if name not in names:
            near = get_close_matches(name, names, n=1, cutoff=0.0)
            fix = f"did you mean {near[0]!r}? It takes {', '.join(names)}" if near else "it takes none: leave it out"
            raise InputError(f"{what} has no option {name[:40]!r}: {fix}.")
