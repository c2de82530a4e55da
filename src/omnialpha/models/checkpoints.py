"""Where weights live, and `omnialpha.json`: what a checkpoint was trained with. Nothing in the code branches on a
model's name.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from omnialpha import config
from omnialpha.canvas import Grid
from omnialpha.errors import InputError
from omnialpha.sampling import Shift
from omnialpha.tasks import TASKS

CARD = "omnialpha.json"
BUNDLED = {"nano": Path(__file__).parent.parent / "weights" / "nano"}
PARTS = ("vae", "transformer", "text_encoder", "tokenizer", "processor")


@dataclass(frozen=True)
class Defaults:
    """Sampling defaults of a task or a category of tasks."""

    steps: int = 50
    guidance: float = 4.0


@dataclass(frozen=True)
class Card:
    """The settings of a checkpoint. grid: sizes it takes; sampling: defaults by task or category, "*" for others."""

    name: str
    license: str
    grid: Grid
    prediction: Literal["velocity", "x0"] = "velocity"  # what the transformer's output means
    target_order: Literal["paper", "released"] = "released"
    layer_order: Literal["back_to_front"] = "back_to_front"
    template: dict[str, str] | None = None  # None: the released wording
    picture_pixels: int = 384 * 384  # area of the pictures that the instruction encoder sees
    max_tokens: int = 1024
    refine: bool = False  # finish mattes of pictures larger than the canvas with closed-form matting
    shift: Shift = field(default_factory=Shift)
    sampling: dict[str, Defaults] = field(default_factory=lambda: {"*": Defaults()})

    def defaults(self, task: str) -> Defaults:
        """Of a task by its name: its own, or its category's, or "*"."""
        keys = (task, TASKS[task].category, "*")
        return next((self.sampling[key] for key in keys if key in self.sampling), Defaults())

    @classmethod
    def read(cls, folder: Path) -> Card:
        path = folder / CARD
        if not path.is_file():
            raise InputError(f"{folder} has no {CARD}: it is not a model folder of ours.")
        try:
            return config.build(cls, json.loads(path.read_text()))
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is not valid JSON ({error}): restore the file.") from None

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CARD).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def forget_origin(path: Path) -> None:
    """Take the folder that diffusers loaded from out of a config.json: it names somebody's disk."""
    settings = json.loads(path.read_text())
    settings.pop("_name_or_path", None)
    path.write_text(json.dumps(settings, indent=2) + "\n")


def locate(where: str | Path | None) -> Path:
    """The folder of a bundled name (None: nano) or a path; InputError with what there is otherwise."""
    name = "nano" if where is None else str(where)
    folder = BUNDLED.get(name, Path(name))
    if not folder.is_dir():
        raise InputError(f"model {name!r} is neither bundled ({', '.join(BUNDLED)}) nor a folder: check the path.")
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise InputError(f"model folder {folder} lacks {missing[0]}/: download or convert it again.")
    return folder
