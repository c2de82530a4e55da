"""The nodes: a node for each category of tasks, and those that load a model and join, save and load layers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import ComfyExtension, io

import omnialpha
from omnialpha.cli.options import Options
from omnialpha.errors import InputError
from omnialpha.io.layer_files import LAYERED
from omnialpha.io.layer_writing import LAYER_FORMATS, write_layers
from omnialpha.io.layers import LayerStack
from omnialpha.io.stack_reading import READERS, read_stack
from omnialpha.tasks import MAPS, MAX_LAYERS, TASKS, Example, Role, Task

from . import inputs, tensors

READ = sorted({*LAYERED, *READERS})
IMAGE_OUTPUTS: list[Any] = [
    io.Image.Output(display_name="image", tooltip="RGBA, straight alpha"),
    io.Mask.Output(display_name="mask", tooltip=f"{inputs.CONVENTION}; to paste it, take image"),
]
LAYER_OUTPUTS: list[Any] = [
    inputs.LayersType.Output(display_name="stack", tooltip="all layers, to save or to complete"),
    io.Image.Output(display_name="layers", is_output_list=True, tooltip="RGBA, a list from back to front"),
    io.String.Output(display_name="names", is_output_list=True, tooltip="of the layers, in their order"),
]


def schema(name: str, about: str, given: list[Any], made: list[Any], **more: Any) -> io.Schema:
    """A node called `name` in the menu."""
    own = {"node_id": "OmniAlpha" + name.title().replace(" ", ""), "display_name": f"OmniAlpha {name}"}
    return io.Schema(**own, category="OmniAlpha", description=about, inputs=given, outputs=made, **more)


def layer_output(stacks: list[LayerStack], **more: Any) -> io.NodeOutput:
    """What `LAYER_OUTPUTS` says."""
    return io.NodeOutput(stacks, tensors.layer_images(stacks), [layer.name for layer in stacks[0]], **more)


def watch() -> Callable[..., None]:
    """Called after each step: shows ComfyUI's progress and lets its Cancel button stop the run."""
    if not find_spec("comfy"):  # the nodes run outside ComfyUI too
        return lambda *_: None
    bar = import_module("comfy.utils").ProgressBar(1)
    stop = import_module("comfy.model_management").throw_exception_if_processing_interrupted

    def show(step: Any, _: Any) -> None:
        bar.update_absolute(step.index, step.total)
        stop()

    return show


class LoadModel(io.ComfyNode):
    """Weights from the disk; nothing is downloaded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        about = "Load a model of OmniAlpha: the bundled one, a folder, or one that `omnialpha pull` has stored."
        made = [inputs.ModelType.Output(display_name="model")]
        return schema("Load Model", about, [inputs.option(name) for name in inputs.MODEL], made)

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        settings = inputs.values(inputs.MODEL, given)
        settings["approximate"] = Options(approximate=settings["approximate"]).approximations
        settings["lora"] = settings["lora"] or ()
        return io.NodeOutput(omnialpha.load(settings.pop("model"), **settings))


def read_examples(row: Task, given: Mapping[str, Any]) -> list[Example]:
    """The examples of a node's inputs, one for each picture of the batch.

    Raises:
        InputError: An input is missing, or the task does not take it.
    """
    pictures: dict[Role, list[Any]] = {}
    for role in (role for role in Role if given.get(str(role)) is not None and role not in MAPS):
        pictures[role] = tensors.pictures(given[str(role)])
    for role in (role for role in Role if given.get(inputs.several(role)) is not None):
        if role in pictures:
            raise InputError(f"{row.name} got {role} and {inputs.several(role)} together: give one of them.")
        pictures[role] = [[layer.placed(s.size) for layer in s] for s in given[inputs.several(role)]]
    if given.get("mask") is not None:
        role = next((role for role in row.inputs if role in MAPS), None)
        if role is None:
            raise InputError(f"{row.name} takes no mask: choose a task that is named after a map, or take it off.")
        pictures[role] = tensors.maps(given["mask"], given.get("mask_marks_subject", False))
    elif any(role in MAPS for role in row.inputs):
        raise InputError(f"{row.name} needs a mask: give one, or choose a task that needs none.")
    count = max(map(len, pictures.values()), default=1)
    whole = {role: tensors.repeated(str(role), row, count) for role, row in pictures.items()}
    size = Options(size=given.get("size") or None).height_width(row)
    more = {"prompt": given.get("prompt") or None, "layers": given.get("layers") or None, "size": size}
    return [row.example({role: row[b] for role, row in whole.items()}, **more) for b in range(count)]


class TaskNode(io.ComfyNode):
    """The tasks of a category. A batch runs picture by picture, in the memory of one; the seed counts up."""

    title, category, outputs = "", "", IMAGE_OUTPUTS

    @classmethod
    def define_schema(cls) -> io.Schema:
        about = "; ".join(dict.fromkeys(row.summary for row in inputs.rows_of(cls.category).values())) + "."
        return schema(cls.title, about, inputs.task_inputs(cls.category), cls.outputs)

    @classmethod
    def execute(cls, model: Any, task: str, **given: Any) -> io.NodeOutput:
        row = TASKS[task]
        model.card.check_reads(task)
        if not row.inputs and not given.get("size"):
            height, width = model.native_size()
            given["size"] = f"{width}x{height}"
        settings = inputs.values(inputs.RUN, given)
        seed, show = settings.pop("seed"), watch()
        examples = read_examples(row, given)
        stacks = [model.run([one], seed=seed + b, on_step=show, **settings)[0] for b, one in enumerate(examples)]
        return cls.output(stacks)

    @classmethod
    def output(cls, stacks: list[LayerStack]) -> io.NodeOutput:
        made = [stack[0].rgba for stack in stacks]
        return io.NodeOutput(tensors.as_image(made), tensors.as_mask(made))


class Matte(TaskNode):
    title, category = "Matte", "matting"


class Remove(TaskNode):
    title, category = "Remove", "removal"


class Decompose(TaskNode):
    title, category, outputs = "Decompose", "decomposition", LAYER_OUTPUTS

    @classmethod
    def output(cls, stacks: list[LayerStack]) -> io.NodeOutput:
        return layer_output(stacks)


class Complete(TaskNode):
    title, category = "Complete", "completion"


class Generate(TaskNode):
    title, category = "Generate", "generation"


class JoinLayers(io.ComfyNode):
    """Edited or foreign layers back into a stack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        tip = "RGBA or RGB (opaque), of one size; a list, as Decompose gives it, is several layers"
        given: list[Any] = [
            io.Image.Input(f"layer_{k}", optional=k > 1, tooltip=f"number {k} from the back: {tip}")
            for k in range(1, MAX_LAYERS + 1)
        ]
        names = io.String.Input("names", default="", multiline=True, optional=True, tooltip="one a line, from the back")
        about = "Join pictures, back to front, into a stack of layers."
        return schema("Join Layers", about, [*given, names], LAYER_OUTPUTS, is_input_list=True)

    @classmethod
    def execute(cls, names: list[str] | None = None, **given: Any) -> io.NodeOutput:
        images = [one for k in range(1, MAX_LAYERS + 1) for one in given.get(f"layer_{k}") or () if one is not None]
        lines = [line.strip() for text in names or () for line in text.splitlines()]
        return layer_output(tensors.join(images, [line for line in lines if line]))


class SaveLayers(io.ComfyNode):
    """Files in ComfyUI's output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        given = [
            inputs.LayersType.Input("stack"),
            io.String.Input("filename_prefix", default="layers", tooltip="may begin with folders: portraits/layers"),
            io.Combo.Input("format", options=list(LAYER_FORMATS), default=next(iter(LAYER_FORMATS))),
            io.Combo.Input("bits", options=["8", "16"], default="8", tooltip="a channel, where the format has both"),
        ]
        made = [io.String.Output(display_name="files", is_output_list=True, tooltip="where they were written")]
        about = "Save stacks of layers, a file each: PSD, OpenRaster, OpenEXR, TIFF, or a WebP to look at."
        return schema("Save Layers", about, given, made, is_output_node=True)

    @classmethod
    def execute(cls, stack: list[LayerStack], filename_prefix: str, format: str, bits: str) -> io.NodeOutput:
        root = Path(folder_paths.get_output_directory()).resolve()
        start = (root / filename_prefix).resolve()
        if root not in start.parents:
            raise InputError(f"filename_prefix {filename_prefix!r} leads out of the output folder: leave that out.")
        start.parent.mkdir(parents=True, exist_ok=True)
        files = []
        for one in stack:
            files.append(_next_file(start, format))
            write_layers(files[-1], one, bits=int(bits))
        shown = [str(file.relative_to(root)) for file in files]
        return io.NodeOutput([str(file) for file in files], ui={"text": shown})


def _next_file(start: Path, suffix: str) -> Path:
    """`name_00001.psd` and so on, after the last one that is there."""
    found = [
        path.stem[len(start.name) + 1 :] for path in start.parent.glob("*") if path.stem.startswith(f"{start.name}_")
    ]
    last = max((int(number) for number in found if number.isdecimal()), default=0)
    return start.with_name(f"{start.name}_{last + 1:05}{suffix}")


class LoadLayers(io.ComfyNode):
    """Files of ComfyUI's input folder, as no other may be read over the network."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        root = Path(folder_paths.get_input_directory())
        found = [path.relative_to(root) for path in root.rglob("*") if path.suffix.lower() in READ]
        tip = f"{', '.join(READ)} in ComfyUI's input folder"
        file = io.Combo.Input("file", options=sorted(path.as_posix() for path in found), tooltip=tip)
        return schema("Load Layers", "Load a file of layers, back to front.", [file], LAYER_OUTPUTS)

    @classmethod
    def fingerprint_inputs(cls, file: str) -> tuple[int, int]:
        state = os.stat(cls.path(file))
        return state.st_mtime_ns, state.st_size

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return layer_output([read_stack(cls.path(file))])

    @classmethod
    def path(cls, file: str) -> Path:
        """Of a file in the input folder; InputError for one outside, or none."""
        root = Path(folder_paths.get_input_directory()).resolve()
        path = (root / file).resolve()
        if root not in path.parents or not path.is_file():
            raise InputError(f"{file!r} is no file in ComfyUI's input folder {root}: put it there.")
        return path


NODES = [LoadModel, Matte, Remove, Decompose, Complete, Generate, JoinLayers, SaveLayers, LoadLayers]


class OmniAlphaExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [*NODES]


async def comfy_entrypoint() -> OmniAlphaExtension:
    """Called by ComfyUI when it starts."""
    return OmniAlphaExtension()
