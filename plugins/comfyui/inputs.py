"""What the nodes take, derived from the table of tasks and from the options of the command line."""

from __future__ import annotations

import dataclasses
from types import NoneType
from typing import Any, get_args, get_type_hints

from comfy_api.latest import io

from omnialpha.cli.options import Options
from omnialpha.limits import MAX_GUIDANCE, MAX_SEED, MAX_STEPS
from omnialpha.tasks import MAPS, MAX_LAYERS, MEANING, TASKS, Role, Task

ModelType = io.Custom("OMNIALPHA_MODEL")
LayersType = io.Custom("OMNIALPHA_LAYERS")

# name -> (lowest, highest). A widget always has a value: the one below the lowest stands for None.
RANGES: dict[str, tuple[Any, Any]] = {"seed": (0, MAX_SEED), "steps": (1, MAX_STEPS), "guidance": (0.0, MAX_GUIDANCE)}
RUN = ("seed", "steps", "guidance", "raw")
MODEL = (
    *("model", "device", "dtype", "offload", "quantize", "attention"),
    *("base", "finder", "vae", "lora", "instructions", "approximate", "compile"),
)
CONVENTION = "white is transparent: 1 - alpha, as Load Image gives it"


def rows_of(category: str) -> dict[str, Task]:
    """The tasks of a category by name."""
    return {name: row for name, row in TASKS.items() if row.category == category}


def option(name: str) -> Any:
    """The widget of an option of `Options`: its type, default and help are those of the command line."""
    default = next(field.default for field in dataclasses.fields(Options) if field.name == name)
    kind, note = get_args(get_type_hints(Options, include_extras=True)[name])[:2]
    kinds = [one for one in get_args(kind) if one is not NoneType] or [kind]
    about = {"tooltip": note if isinstance(note, str) else note.help, "optional": True}
    if name not in ("seed", "model", "device"):
        about["extra_dict"] = {"advanced": True}  # older versions of ComfyUI have no parameter for it
    if kinds[0] is bool:
        return io.Boolean.Input(name, default=default, **about)
    if kinds[0] not in (int, float):
        several = "; one a line" if getattr(kinds[0], "__origin__", None) is list else ""
        about["tooltip"] += several
        return io.String.Input(name, default=default or "", multiline=bool(several), **about)
    low, high = RANGES[name]
    if default is None:
        low = default = low - 1
        about["tooltip"] += f", which is {default:g} here"
    if kinds[0] is float:
        return io.Float.Input(name, default=default, min=low, max=high, step=0.1, **about)
    return io.Int.Input(name, default=default, min=low, max=high, control_after_generate=name == "seed", **about)


def values(names: tuple[str, ...], given: dict[str, Any]) -> dict[str, Any]:
    """The values of options as the library takes them, from those of widgets. What is left out gets its default."""
    found = {}
    for field in dataclasses.fields(Options):
        if field.name in names:
            value = given.get(field.name, field.default)
            unset = value == "" or (
                field.name in RANGES and field.default is None and value == RANGES[field.name][0] - 1
            )
            found[field.name] = field.default if unset else value
    for name in ("lora", "approximate"):
        if isinstance(found.get(name), str):
            found[name] = [line.strip() for line in found[name].splitlines() if line.strip()]
    return found


def task_inputs(category: str) -> list[Any]:
    """The inputs of the node of a category: what any of its tasks takes."""
    rows = list(rows_of(category).values())
    given = dict.fromkeys(role for row in rows for role in row.inputs)
    summaries = "\n".join(f"{row.name}: {row.summary}" for row in rows)
    made = [ModelType.Input("model"), io.Combo.Input("task", options=[row.name for row in rows], tooltip=summaries)]
    for role in (role for role in given if role not in MAPS):
        always = all(role in row.inputs for row in rows)
        made.append(io.Image.Input(str(role), optional=not always, tooltip=f"{MEANING[role]}; RGB, or RGBA"))
        if any(row.many is role and role in row.inputs for row in rows):
            made.append(LayersType.Input(several(role), optional=True, tooltip=f"up to {MAX_LAYERS}, back to front"))
    if any(role in MAPS for role in given):
        tip = f"for the tasks named after a map, which it is; {CONVENTION}"
        made.append(io.Mask.Input("mask", optional=True, tooltip=tip))
        tip = f"on: white is the subject, as the mask editor paints it; off: {CONVENTION}"
        made.append(io.Boolean.Input("mask_marks_subject", default=False, optional=True, tooltip=tip))
    if any(row.text for row in rows):
        tip = "for " + ", ".join(row.name for row in rows if row.text)
        made.append(io.String.Input("prompt", default="", multiline=True, optional=True, tooltip=tip))
    if any(row.many in row.targets for row in rows if row.many):
        most = {"default": 0, "min": 0, "max": MAX_LAYERS, "optional": True}
        names = ", ".join(row.name for row in rows if row.many in row.targets)
        made.append(io.Int.Input("layers", tooltip=f"how many, for {names}; 0 is the task's own number", **most))
    own = RUN if any(row.inputs for row in rows) else ("size", *RUN)
    return made + [option(name) for name in own]


def several(role: Role) -> str:
    """The name of the input for more than one picture of a role."""
    return f"{role}s"
