"""Running a task on picture files: check, read, load, run, write, report.

All that can be checked is checked before the model is loaded.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from omnialpha import __version__
from omnialpha.cli.options import Options, Pictures
from omnialpha.cli.progress import Messages, duration, print_result, silence_libraries
from omnialpha.cutout_options import Cutout
from omnialpha.errors import InputError
from omnialpha.limits import by
from omnialpha.tasks import MAPS, TASKS, Example, Role, Task

if TYPE_CHECKING:
    from omnialpha.io import Format, Picture
    from omnialpha.io.layer_writing import LayerFormat
    from omnialpha.io.layers import LayerStack
    from omnialpha.loading import Setup
    from omnialpha.masks import Mark
    from omnialpha.models.checkpoints.folders import Parts
    from omnialpha.pipeline import OmniAlpha

PIPE = Path("-")  # standard input or output


def run_task(
    task: Task,
    paths: Pictures,
    output: Path,
    options: Options,
    *,
    prompt: str | None = None,
    layers: int | None = None,
    cutout: Cutout | None = None,
    marks: tuple[Sequence[Mark], Sequence[Mark]] = ((), ()),
) -> None:
    """Run a task on picture files and write what comes out.

    Args:
        task: The task.
        paths: The picture files by role.
        output: A file for one picture, a folder or a file of layers for several, `-` for standard output.
        options: How the model is run.
        prompt, layers: Of the task.
        cutout: How the subject that a matting cuts out is finished.
        marks: Points and boxes that stand for a rough map, see `masks.marks`.

    Raises:
        InputError: Something of it cannot be read, done or written.
    """
    from omnialpha.io import Format
    from omnialpha.models.checkpoints.folders import resolve

    began, messages = time.monotonic(), Messages(options.quiet)
    size, targets = options.height_width(task), task.target_roles(layers)
    options.check(task)
    if output == PIPE and options.json:
        raise InputError("-o - and --json both write to standard output: give a file, or leave --json out.")
    form = check_target(output, len(targets), [path for row in paths.values() for path in row if path != PIPE])
    pictures = read(paths, messages, task.inputs[0] if task.inputs else None, options.frame)
    main = pictures[task.inputs[0]][0] if task.inputs and pictures.get(task.inputs[0]) else None
    if any(marks):
        from omnialpha.hints import outline
        from omnialpha.models.finder import bundled_finder

        assert main is not None
        rough = {Role.ROUGH: [outline(bundled_finder(), main.rgba, *marks)]}
        example = task.example({**pictures, **rough}, layers=layers)
    else:
        example = task.example(dict(pictures), prompt=prompt, layers=layers, size=size or (1, 1))
    background = cutout.background if cutout else None
    if background:
        check_backdrop(background, example.size, output)
    if isinstance(form, Format):
        check_fits(output, form, example, options.raw, bool(background))

    parts = resolve(options.model, **options.parts)
    card = parts.card
    card.check_reads(task.name)
    if main is None and size is None:
        example = replace(example, size=card.native_size)
    defaults = card.defaults(task.name)
    used = options.used(defaults.steps, defaults.guidance)
    loaded, device, canvas = 0.0, "cpu", example.size
    stack = _cut_out(parts, example, options, messages)
    if stack is None:
        setup = build_setup(options, parts)
        forecast = setup.forecast(example, used["steps"], used["guidance"] != 1.0, options.raw)
        messages.say(f"{card.name} on {forecast}")
        if forecast.warning:
            messages.note(forecast.warning)
        loading = time.monotonic()
        model = load(options, setup)
        loaded = time.monotonic() - loading
        stack = _run(model, task, example, used, messages)
        device, canvas = str(model.device), model.canvas(example).size
    settings = {"task": task.name, "instruction": card.text(example), "model": card.name, **used}
    settings |= {"size": by(example.size), "version": __version__}
    if cutout and cutout.changed:
        settings |= cutout.changed
        stack = _finished(stack, example, cutout, messages)
    files = _write(output, stack, form, main, settings, messages)

    report: dict[str, Any] = {"output": str(output), **settings, "device": device}
    rows = [{"name": row.name, "role": row.role, "file": file} for row, file in zip(stack, files, strict=True)]
    report |= {"canvas": by(canvas), "layers": rows}
    if task.category == "decomposition":
        error = stack.error(example.inputs[0])
        messages.say(f"the layers recompose the picture to {error['psnr']:.1f} dB PSNR")
        report["recomposition"] = finite(error)
    report |= {"notes": messages.notes, "seconds": round(time.monotonic() - began, 3), "load_seconds": round(loaded, 3)}
    times = f"{duration(report['seconds'])}, of which loading {duration(loaded)}"
    line = f"wrote {output} ({by(example.size)}) in {times}"
    if output == PIPE:
        messages.say(line)
    else:
        print_result(options, report, line)


def check_target(output: Path, targets: int, inputs: Sequence[Path]) -> Format | LayerFormat | None:
    """The format of the output file, or None where layers make it a folder; InputError if it cannot be written."""
    from omnialpha.io import FORMATS, check_output
    from omnialpha.io.layer_writing import LAYER_FORMATS, check_layer_file
    from omnialpha.io.layers import check_folder

    if output == PIPE:
        if targets > 1:
            raise InputError(f"-o - takes one picture, not {targets} layers: name a folder.")
        if sys.stdout.isatty():
            raise InputError("-o - would write a PNG to the terminal: redirect standard output, or name a file.")
        return FORMATS[".png"]
    if targets == 1:
        return check_output(output, inputs)
    if output.suffix.lower() in LAYER_FORMATS and not output.is_dir():
        return check_layer_file(output, inputs)
    check_folder(output)
    for path in inputs:
        if output.resolve() in path.resolve().parents:
            raise InputError(
                f"The input {path} lies in the output folder {output}; choose another, so that it is kept."
            )
    return None


def check_fits(output: Path, form: Format, example: Example, raw: bool, covered: bool) -> None:
    """InputError where the picture will not fit its format, by transparency (covered: no alpha is left) or size."""
    flat = (Role.BACKGROUND, Role.FULL)
    see_through = raw or any(role not in flat for role in example.targets)
    for role, picture in zip(example.roles, example.inputs, strict=True):
        see_through |= role is Role.COMPOSITE and bool((picture[3] < 1).any())  # what is kept of it keeps its alpha
    if see_through and not covered and not form.alpha:
        way = ", or matte it with --background COLOUR" if TASKS[example.task].category == "matting" else ""
        raise InputError(f"The output {output} cannot hold transparency, as {form.name} has none; use .png{way}.")
    if max(example.size) > form.max_side:
        size = by(example.size)
        raise InputError(f"The output {output} would be {size}, but {form.name} ends at {form.max_side}; use .png.")


def check_backdrop(given: str, size: tuple[int, int], output: Path) -> None:
    """InputError, before the model is loaded, for what is no background, or is the output."""
    from omnialpha.cutout import backdrop
    from omnialpha.io import check_output

    backdrop(given, size)
    if Path(given).is_file():
        check_output(output, [given])


def read(
    paths: Mapping[Role, Sequence[Path]], messages: Messages, main: Role | None = None, frame: int | None = None
) -> dict[Role, list[Picture]]:
    """Read the picture files by role, with their notes as messages. frame: of the first file of role `main`."""
    from omnialpha.io import read_image

    pictures: dict[Role, list[Picture]] = {}
    for role, row in paths.items():
        for i, path in enumerate(row):
            given, wanted = sys.stdin.buffer if path == PIPE else path, frame if role is main and i == 0 else None
            picture = read_image(given, frame=wanted, data=role in MAPS)
            pictures.setdefault(role, []).append(picture)
            for note in picture.notes:
                messages.note(f"{path}: {note}")
    return pictures


def build_setup(options: Options, parts: Parts | None = None) -> Setup:
    """The model that the options name, and its placement, before anything is loaded. parts: where they are known."""
    silence_libraries()
    from omnialpha.loading import Approximations, Placement, Setup, resolve

    how = (options.dtype, options.offload, options.quantize, options.attention, options.compile)
    placement = Placement(options.device, *how)  # type: ignore[arg-type]
    parts = parts or resolve(options.model, **options.parts)
    return Setup(parts, placement, Approximations.parse(options.approximations))


def load(options: Options, setup: Setup) -> OmniAlpha:
    """The model of the options on its device; InputError where its files are damaged."""
    from safetensors import SafetensorError

    try:
        return setup.load()
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        name = options.model or "nano"
        raise InputError(f"model {name!r} cannot be loaded ({reason}); download it again.") from error


def _cut_out(parts: Parts, example: Example, options: Options, messages: Messages) -> LayerStack | None:
    """The subject by the model's finder, where that is all that is asked for; None where it is not, or where an option
    speaks of the networks beside it, which take longer to load than a picture takes.
    """
    if options.raw or options.of_networks or not parts.finder:
        return None
    from omnialpha.hints import cut_out
    from omnialpha.models.finder import open_finder

    with messages.steps(1, ""):
        cut = cut_out([example], open_finder(parts.finder), parts.card, options.refine)
    return cut[0] if cut else None


def _run(model: OmniAlpha, task: Task, example: Example, used: dict[str, Any], messages: Messages) -> LayerStack:
    """The layers, with progress."""
    from torch import OutOfMemoryError

    steps = used["steps"]
    canvas = model.canvas(example)
    enlarged = "" if canvas.size == example.size else f" for {by(example.size)}"
    messages.say(f"{steps} steps at {by(canvas.size)}{enlarged}")
    try:
        with messages.steps(steps, f"finishing at {by(example.size)}") as watch:
            return model.run([example], on_step=watch, **used)[0]
    except (OutOfMemoryError, MemoryError) as error:
        way = "make the picture smaller" if model.device.type == "cpu" else "use --device cpu"
        raise InputError(f"{model.device} has too little memory for {task.name}; {way}.") from error


def _finished(stack: LayerStack, example: Example, cutout: Cutout, messages: Messages) -> LayerStack:
    """The subject finished as the options of a cut-out say, which may have another size."""
    from omnialpha.cutout import finish
    from omnialpha.io.layers import Layer, LayerStack

    picture, notes = finish(stack[0].rgba, example.inputs[0].cpu(), cutout)
    for note in notes:
        messages.note(note)
    return LayerStack((picture.shape[1], picture.shape[2]), [Layer(stack[0].name, picture, role=stack[0].role)])


def _write(
    output: Path,
    stack: LayerStack,
    form: Format | LayerFormat | None,
    main: Picture | None,
    settings: dict[str, Any],
    messages: Messages,
) -> list[str]:
    """One picture with what else the main input's file held, or the folder of layers with its depth.

    Returns:
        The name of each layer's file."""
    from omnialpha.io import write_image
    from omnialpha.io.layer_writing import LayerFormat, write_layers

    where: Path | BinaryIO = sys.stdout.buffer if output == PIPE else output
    bits, icc, dpi = (main.bits, main.icc, main.dpi) if main else (8, None, None)
    if form is None:
        return stack.save(output, bits=bits, settings=settings, icc=icc, dpi=dpi)
    if isinstance(form, LayerFormat):
        write_layers(output, stack, bits=bits, settings=settings, icc=icc, dpi=dpi)
        return [output.name] * len(stack)
    for note in write_image(where, stack[0].rgba, settings=settings, bits=None, source=main):
        messages.note(note)
    return [output.name]


def finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Figures for JSON, which has no infinity and no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}
