"""Any program as a method: `cmd {input} {output}` is run for each example, without a shell, on PNG files."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import torch
from torch import Tensor

from omnialpha import rgba
from omnialpha.errors import InputError
from omnialpha.evaluation.methods.baselines import with_color
from omnialpha.evaluation.methods.method import Method
from omnialpha.evaluation.methods.predictions import read_matte
from omnialpha.files import sha256
from omnialpha.io import FORMATS, read_image, write_image
from omnialpha.limits import by
from omnialpha.tasks import CATEGORIES, TASKS, Example, Role

TIMEOUT = 600.0  # seconds for one example
OUTPUT = "output"  # a PNG file, or where a task makes several layers a folder for them, read by name, back to front
# What a program can be given. A file: the roles it may be of.
FILES: dict[str, tuple[Role, ...]] = {
    "input": (Role.COMPOSITE, Role.FOREGROUND, Role.BACKGROUND),
    "trimap": (Role.TRIMAP,),
    "mask": (Role.ALPHA, Role.PRECISE, Role.ROUGH),
}
WORDS: dict[str, Callable[[Example, int], str]] = {
    "prompt": lambda example, seed: example.prompt or example.instruction,
    "seed": lambda example, seed: str(seed),
    "height": lambda example, seed: str(example.size[0]),
    "width": lambda example, seed: str(example.size[1]),
}
FIELDS = (*FILES, *WORDS, OUTPUT)
FIELD = re.compile(r"\{([a-z_]+)\}")


@dataclass(frozen=True)
class Program:
    """words: of the command, with fields in them. only: the task or category that it is for; "" for all that fit."""

    words: tuple[str, ...]
    only: str
    timeout: float

    @property
    def name(self) -> str:
        return Path(self.words[0]).name

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(found for word in self.words for found in FIELD.findall(word))

    def does(self, task: str) -> bool:
        """Whether its fields are what the task gives: all pictures, and the text."""
        row = TASKS[task]
        if self.only and self.only not in (row.name, row.category):
            return False
        taken = {field for field, roles in FILES.items() if any(role in roles for role in row.inputs)}
        return taken == self.fields & FILES.keys() and ("prompt" in self.fields) == (row.text is not None)

    def answer(self, example: Example, seed: int) -> Tensor:
        """(m, 4, H, W) of one example."""
        with TemporaryDirectory(prefix="omnialpha-") as place:
            folder, several = Path(place), len(example.targets) > 1
            output = folder / (OUTPUT if several else f"{OUTPUT}.png")
            if several:
                output.mkdir()
            values = {field: say(example, seed) for field, say in WORDS.items() if field in self.fields}
            values |= self._write_inputs(example, folder) | {OUTPUT: str(output)}
            self._run([FIELD.sub(lambda found: values[found[1]], word) for word in self.words])
            paths = [output]
            if several:
                paths = sorted(path for path in output.iterdir() if path.suffix.lower() in FORMATS)
            if len(paths) != (wanted := len(example.targets)):
                raise InputError(f"{self.name} wrote {len(paths)} pictures into its {{output}} folder, not {wanted}.")
            return torch.stack([self._layer(p, role, example) for p, role in zip(paths, example.targets, strict=True)])

    def _write_inputs(self, example: Example, folder: Path) -> dict[str, str]:
        """The path that stands for each field of a picture."""
        values = {}
        for field in self.fields & FILES.keys():
            found = [p for p, role in zip(example.inputs, example.roles, strict=True) if role in FILES[field]]
            if len(found) != 1:
                raise InputError(f"{{{field}}} of {self.name} is one picture, but {example.task} gives {len(found)}.")
            values[field] = str(folder / f"{field}.png")
            write_image(values[field], found[0])
        return values

    def _run(self, words: Sequence[str]) -> None:
        with TemporaryFile() as said:  # a file: a pipe would stay open as long as any child of the program lives
            try:
                process = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
                )
            except OSError as error:
                raise InputError(
                    f"the program {words[0]} cannot be run ({error.strerror}): check the command."
                ) from None
            try:
                code = process.wait(self.timeout)
            except subprocess.TimeoutExpired:
                raise InputError(
                    f"{self.name} took more than {self.timeout:g} s for one picture: allow more time, or mend it."
                ) from None
            finally:
                _end(process)
            if code:
                said.seek(0)
                lines = [line.strip() for line in said.read().decode(errors="replace").splitlines() if line.strip()]
                last = f": {lines[-1][:200]}" if lines else " and said nothing on standard error"
                raise InputError(f"{self.name} ended with exit code {code}{last}")

    def _layer(self, path: Path, role: Role, example: Example) -> Tensor:
        """A foreground from RGBA, or from a grey picture that is its alpha; other layers as they are."""
        if not path.is_file():
            raise InputError(f"{self.name} wrote no file to {{output}} ({path.name}): mend its command.")
        picture = read_image(path).rgba
        if picture.shape[1:] != example.size:
            sizes = f"{by(picture.shape[1:])} px, not {by(example.size)} px"
            raise InputError(f"{self.name} answers {sizes} as asked: mend its command.")
        matte = read_matte(path) if role is Role.FOREGROUND else None
        if matte is None:
            return picture
        source = example.given(Role.COMPOSITE)
        if source is None:
            return torch.cat([torch.ones_like(picture[:3]), matte])
        return with_color(rgba.flatten(source), matte[0])


def of_command(command: str, timeout: float = TIMEOUT, only: str = "") -> Method:
    """A program by its command line, `cmd {input} {output}`; further fields are FIELDS.

    It does the tasks whose pictures and text are its fields: of the task or category that stands in front, as in
    `matting=cmd {input} {output}`, else of `only`, if that is given.

    Foregrounds come back as RGBA or as grey alphas, whose colours pymatting estimates. InputError for a command that
    cannot work, and where a run fails.
    """
    stated, command = split_only(command)
    only = stated or only
    if only and only not in (*TASKS, *CATEGORIES):
        raise InputError(f"{only!r} is no task and no category: use one of {', '.join(CATEGORIES)}.")
    if not 0 < timeout < float("inf"):
        raise InputError(f"timeout={timeout:g} is out of range: use seconds above 0.")
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise InputError(f"the command {command!r} cannot be read ({error}): close its quotes.") from None
    program = Program(words, only, timeout)
    if unknown := sorted(program.fields - set(FIELDS)):
        known = ", ".join(f"{{{field}}}" for field in FIELDS)
        raise InputError(f"{{{unknown[0]}}} in the command {command!r} is no field: use {known}.")
    if OUTPUT not in program.fields:
        raise InputError(f"the command {command!r} says nowhere where the picture goes: put {{output}} into it.")
    if shutil.which(words[0]) is None:
        raise InputError(f"there is no program {words[0]}: install it, or give its path.")

    def make(examples: Sequence[Example], seeds: Sequence[int]) -> list[Tensor]:
        return [program.answer(example, seed) for example, seed in zip(examples, seeds, strict=True)]

    identity = "command " + sha256("\0".join((only, *words)))[:16]
    return Method(program.name, make, program.does, identity, given=f"command: {command.strip()}")


def split_only(command: str) -> tuple[str, str]:
    """`matting=cmd ...` -> the task or category in front, "" if there is none, and the command."""
    before, found, after = command.partition("=")
    return (before.strip(), after) if found and before.strip() in (*TASKS, *CATEGORIES) else ("", command)


def _end(process: subprocess.Popen[bytes]) -> None:
    """A program that still runs is ended, with all that it started."""
    if process.poll() is not None:
        return
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)  # its group has its number, as it began a session
    else:
        process.kill()
    process.wait()
