"""`omnialpha.json`, what a checkpoint was trained with, and the same of a folder that diffusers wrote."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omnialpha import config
from omnialpha.canvas import Grid
from omnialpha.errors import InputError
from omnialpha.files import atomic_write
from omnialpha.models.checkpoints import releases
from omnialpha.sampling import Shift
from omnialpha.tasks import TASKS, Example, Role

FamilyName = Literal["qwen", "flux"]
CARD, INDEX = "omnialpha.json", "model_index.json"
AGAIN = "download or convert the model again"
# Of the released weights: sides in multiples of 32, all pictures of a sample within a megapixel, small ones not
# enlarged, as the published code sizes them in training and after.
RELEASED_GRID = Grid(multiple=32, picture_pixels=1024 * 1024, sample_pixels=1024 * 1024)
# What `Shift` cannot express of diffusers' FlowMatchEulerDiscreteScheduler.
PLAIN_SCHEDULER = {
    "invert_sigmas": False,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
    "use_beta_sigmas": False,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}


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
    family: FamilyName = "qwen"  # see `models.families`
    tasks: list[str] = field(default_factory=list)  # that it can do; empty: all
    prediction: Literal["velocity", "x0"] = "velocity"  # what the transformer's output means
    target_order: Literal["paper", "released"] = "released"
    layer_order: Literal["back_to_front", "foregrounds_first"] = "back_to_front"  # in which it is shown targets
    template: dict[str, str] | None = None  # None: the released wording
    # The one text of a task that it was trained on, "{prompt}" where the prompt goes; of other tasks it reads any.
    instructions: dict[str, str] = field(default_factory=dict)
    # How guidance is applied: against an empty instruction, in a second pass, or by a transformer that was distilled
    # from such passes and takes the scale as an input.
    guidance: Literal["negative", "embedded"] = "negative"
    picture_pixels: int = 384 * 384  # area of the pictures that the instruction encoder sees; 0: as the canvas
    max_tokens: int = 1024
    finder: str | None = None  # what finds subjects for it: a folder inside its own, or a path; see `models.finder`
    # Tasks whose foreground's alpha is the finder's, as the transformer's was measured to be worse.
    alpha_from_finder: list[str] = field(default_factory=list)
    reads: bool = True  # whether its words choose a subject; measured, as tasks that need it are refused otherwise
    refine: bool = False  # finish mattes of pictures larger than the canvas with closed-form matting
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"  # of the weights when they run
    shift: Shift = field(default_factory=Shift)
    sampling: dict[str, Defaults] = field(default_factory=lambda: {"*": Defaults()})
    adapters: dict[str, float] = field(default_factory=dict)  # LoRA files of the folder to apply, and their weights

    def defaults(self, task: str) -> Defaults:
        """Steps and guidance of a task by its name: its own, or its category's, or those of "*"."""
        keys = (task, TASKS[task].category, "*")
        return next((self.sampling[key] for key in keys if key in self.sampling), Defaults())

    def text(self, example: Example) -> str:
        """The instruction that the model reads of an example. Raises InputError for a task that it cannot do."""
        self.check_task(example.task)
        text, prompt = self.instructions.get(example.task), example.prompt
        own = prompt is not None and TASKS[example.task].text is None
        if text is None or own or not example.instruction:  # without an instruction, it is left out
            return example.instruction
        return text.replace("{prompt}", prompt or "")

    def order(self, targets: Sequence[Role]) -> list[int]:
        """Which of the targets, back to front, stands at each of the places that the model knows."""
        last = self.layer_order == "foregrounds_first"
        return sorted(range(len(targets)), key=lambda k: last and targets[k] is Role.BACKGROUND)

    def check_task(self, task: str) -> None:
        """InputError for a task that the model cannot do."""
        if self.tasks and task not in self.tasks:
            able = ", ".join(self.tasks)
            raise InputError(f"{self.name} cannot do {task}, only {able}: use --model nano, which can.")

    def with_instructions(self, texts: Mapping[str, str]) -> Card:
        """Trained on these texts, task -> text. InputError for a task that the model cannot do."""
        for task in texts:
            self.check_task(task)
        return dataclasses.replace(self, instructions=self.instructions | dict(texts))

    def follows(self, task: str) -> bool:
        """Whether the model does a task, unless words alone choose its subject and the model does not follow them."""
        return bool(self.reads or TASKS[task].inputs != (Role.COMPOSITE,) or not TASKS[task].text)

    def check_reads(self, task: str) -> None:
        """InputError where words alone would choose the subject, for a model that does not follow them."""
        if not self.follows(task):
            raise InputError(
                f"{self.name} cannot tell subjects apart by words: mark yours with --point X,Y or --box X,Y,W,H, or "
                "give a model that reads, such as --model Longin-Yu/OmniAlpha."
            )

    @property
    def native_size(self) -> tuple[int, int]:
        """(height, width) of the largest square that the model takes for one picture."""
        side = int(min(self.grid.picture_pixels, self.grid.sample_pixels) ** 0.5) // self.grid.multiple
        return side * self.grid.multiple, side * self.grid.multiple

    @classmethod
    def read(cls, folder: Path) -> Card:
        """Read the card of a model folder of ours. Raises InputError where there is none."""
        if not (folder / CARD).is_file():
            raise InputError(f"{folder} has no {CARD}: it is not a model folder of ours.")
        return config.build(cls, read_json(folder / CARD))

    @classmethod
    def of_diffusers(cls, folder: Path, name: str, license: str) -> Card:
        """Make the card of a diffusers pipeline; what its files do not hold is as the published code has it. Raises
        InputError for a pipeline of another class.
        """
        pipeline = read_json(folder / INDEX).get("_class_name")
        if pipeline not in PIPELINES:
            raise InputError(f"{folder / INDEX} is of a {pipeline}: use the folder of a {' or '.join(PIPELINES)}.")
        values = dict(PIPELINES[pipeline])
        if picture := values.pop("picture", None):
            from omnialpha.models.text_encoder.encoder import Template

            values["template"] = dataclasses.asdict(dataclasses.replace(Template.EDIT, picture=picture))
        embedded = values.get("guidance") == "embedded"
        if embedded and not read_json(folder / "transformer" / "config.json").get("guidance_embeds"):
            values |= {"guidance": "negative", "sampling": {"*": Defaults(guidance=1.0)}}
        shift = read_shift(folder / "scheduler" / "scheduler_config.json")
        return cls(name, license, values.pop("grid", RELEASED_GRID), shift=shift, **values)

    def write(self, folder: Path) -> None:
        """Write the card into a folder, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CARD, dataclasses.asdict(self))


# Pipelines of diffusers by the class in model_index.json: fields of `Card`, as in `releases`.
PIPELINES: dict[str, Mapping[str, Any]] = {
    **releases.PIPELINES,
    # FLUX as AlphaVAE trained and ran it: from the bare caption, with diffusers' own steps and guidance.
    "FluxPipeline": {
        "family": "flux",
        "tasks": ["text_to_image"],
        "grid": dataclasses.replace(RELEASED_GRID, multiple=16),
        "instructions": {"text_to_image": "{prompt}"},
        "max_tokens": 512,
        "guidance": "embedded",
        "sampling": {"*": Defaults(steps=28, guidance=3.5)},
    },
}


def family_of(folder: Path) -> FamilyName | None:
    """The family that a model folder says its parts are of; None where it says nothing, as it holds a part alone."""
    if (folder / CARD).is_file():
        return Card.read(folder).family
    if (folder / INDEX).is_file():
        return PIPELINES.get(str(read_json(folder / INDEX).get("_class_name")), {}).get("family", "qwen")
    return None


def read_shift(path: Path) -> Shift:
    """The schedule of a scheduler_config.json of diffusers' FlowMatchEulerDiscreteScheduler."""
    settings = read_json(path)
    for name, wanted in PLAIN_SCHEDULER.items():
        if (found := settings.get(name, wanted)) != wanted:
            raise InputError(f"{path} has {name}={found!r}, which is not supported: use a scheduler with {wanted!r}.")
    # What a file leaves out has the class's default.
    dynamic = settings.get("use_dynamic_shifting", False)
    return Shift(
        base=settings.get("base_shift", 0.5),
        maximum=settings.get("max_shift", 1.15),
        base_tokens=settings.get("base_image_seq_len", 256),
        maximum_tokens=settings.get("max_image_seq_len", 4096),
        terminal=settings.get("shift_terminal") or 0.0,
        fixed=None if dynamic else math.log(settings.get("shift", 1.0)),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A table in JSON; InputError where the file is missing, damaged or holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {AGAIN}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): {AGAIN}.") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds {type(value).__name__}, not a table: {AGAIN}.")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a table as JSON, whole or not at all."""
    atomic_write(path, json.dumps(value, indent=2) + "\n")


def forget_origin(path: Path) -> None:
    """Take the folder that diffusers loaded from out of a config.json: it names somebody's disk."""
    write_json(path, {key: value for key, value in read_json(path).items() if key != "_name_or_path"})
