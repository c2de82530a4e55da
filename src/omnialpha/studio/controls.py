"""The controls of the page, made from the table of tasks and the table of options; which of them a task shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from omnialpha.io.inputs import LAYERS
from omnialpha.io.writing import FORMATS
from omnialpha.models.checkpoints.folders import Card
from omnialpha.run_options import TEXTS, RunOption, cutout_options, options_of, run_options
from omnialpha.studio.drawn import LEVELS
from omnialpha.tasks import CATEGORIES, MEANING, TASKS, Role, Task

FIRST = next(row for row in TASKS.values() if row.automatic)  # the task that a page opens with
ROLES = tuple(dict.fromkeys(role for row in TASKS.values() for role in row.inputs))
PLAIN = ("prompt", "layers", "size", "seed")  # options that are not folded away
FILES = sorted({*FORMATS, *LAYERS, ".gif", ".bmp", ".avif"})


def words_of(row: Task) -> str:
    """A task in words: its summary, as a sentence begins."""
    return row.summary[:1].upper() + row.summary[1:]


def choices(category: str) -> list[tuple[str, str]]:
    """The tasks of a category: words and name."""
    return [(words_of(row), row.name) for row in TASKS.values() if row.category == category]


def control(row: RunOption, card: Card) -> gr.components.Component:
    """The control of an option."""
    label = row.name.replace("_", " ").capitalize()
    common: dict[str, Any] = {"label": label, "info": row.help, "elem_id": f"option-{row.name}", "min_width": 120}
    if row.kind is bool:
        return gr.Checkbox(value=bool(row.default), **common)
    if row.kind is str and row.choices:
        return gr.Dropdown(list(row.choices), value=row.default, **common)
    if row.kind is str:
        return gr.Textbox(value=row.default, lines=2 if row.name == "prompt" else 1, **common)
    if row.default is None:  # a field for numbers cannot be empty
        own = {"steps": card.defaults(FIRST.name).steps, "guidance": card.defaults(FIRST.name).guidance}.get(row.name)
        return gr.Textbox(placeholder="" if own is None else f"the model's own, such as {own:g}", **common)
    if row.kind is int:
        return gr.Number(value=row.default, precision=0, **common)
    return gr.Number(value=row.default, step=0.5, **common)


@dataclass(frozen=True)
class Controls:
    """category: of tasks. tasks: those of each, of which one is chosen. files: pictures by role. options: by name.
    cutout: the fold that holds the options of a cut-out.
    """

    category: gr.Radio
    tasks: dict[str, gr.Radio]
    files: dict[Role, gr.File]
    options: dict[str, gr.components.Component]
    cutout: gr.Accordion

    @classmethod
    def build(cls, card: Card) -> Controls:
        """Make all of them, in the block that is open, for the first task."""
        category = gr.Radio(
            list(CATEGORIES), value=FIRST.category, show_label=False, container=False, elem_id="studio-category"
        )
        tasks = {
            one: gr.Radio(
                choices(one),
                value=FIRST.name if one == FIRST.category else choices(one)[0][1],
                label="What is made",
                visible=one == FIRST.category,
                elem_classes="studio-task",
            )
            for one in CATEGORIES
        }
        files = {
            role: gr.File(
                label=role.capitalize(),
                file_types=FILES,
                file_count="multiple"
                if any(row.many is role and role in row.inputs for row in TASKS.values())
                else "single",
                height=92,
                elem_id=f"picture-{role}",
            )
            for role in ROLES
        }
        rows = TEXTS | run_options()
        made = {name: control(rows[name], card) for name in PLAIN}
        with gr.Accordion("Cut-out: edge, shadow, crop, background", open=False, elem_id="fold-cutout") as fold:
            made |= {name: control(row, card) for name, row in cutout_options().items()}
        with gr.Accordion("Model: steps, guidance, refining", open=False, elem_id="fold-model"):
            made |= {name: control(row, card) for name, row in rows.items() if name not in PLAIN}
        return cls(category, tasks, files, made, fold)

    @property
    def all(self) -> list[Any]:
        """Every control that may be changed by another."""
        return [*self.inputs, self.cutout]

    @property
    def inputs(self) -> list[Any]:
        """Those that hold what is asked for."""
        return [self.category, *self.tasks.values(), *self.files.values(), *self.options.values()]

    def chosen(self, values: Mapping[Any, Any]) -> Task:
        """The task that is chosen."""
        return TASKS[values[self.tasks[values[self.category]]]]

    def show(self, row: Task, values: Mapping[Any, Any] | None = None) -> dict[Any, Any]:
        """Updates for a task: its controls and no others. values: new ones, by control; others stay as they are."""
        values, taken = values or {}, options_of(row)
        updates: dict[Any, Any] = {
            self.category: gr.update(value=row.category),
            **{part: gr.update(visible=one == row.category) for one, part in self.tasks.items()},
            self.cutout: gr.update(visible=bool(set(taken) & set(cutout_options()))),
        }
        for role, file in self.files.items():
            info = f"{role.capitalize()} — {MEANING[role]}" + (", or paint it" if role in LEVELS else "")
            updates[file] = gr.update(visible=role in row.inputs, label=info)
        for name, option in self.options.items():
            updates[option] = gr.update(visible=name in taken)
        updates[self.tasks[row.category]] |= {"value": row.name}
        for part, value in values.items():
            updates[part] = updates[part] | {"value": value}
        return updates

    def texts(self, row: Task, values: Mapping[Any, Any]) -> dict[str, str]:
        """The options that a task takes and that are given, as texts."""
        given = {name: values.get(self.options[name]) for name in options_of(row)}
        return {name: as_text(value) for name, value in given.items() if value not in (None, "")}

    def values(self, row: Task, texts: Mapping[str, str]) -> dict[Any, Any]:
        """The values of controls for texts: the way back."""
        values: dict[Any, Any] = {}
        for name, option in options_of(row).items():
            given, part = texts.get(name), self.options[name]
            typed = given is None or isinstance(part, gr.Textbox)
            values[part] = (option.default if given is None else given) if typed else option.read(str(given))
        return values


def as_text(value: Any) -> str:
    """A value as the text that `RunOption.read` takes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)
