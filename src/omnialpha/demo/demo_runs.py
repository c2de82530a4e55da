"""What the demo shows: every run as a `DemoRun` of written files, on photographs and on held-out layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from omnialpha import masks, rgba
from omnialpha.data.stream import mixture
from omnialpha.data.synthetic import bank
from omnialpha.errors import InputError
from omnialpha.io import to_rgba, write_image
from omnialpha.io.layers import INDEX, Layer, LayerStack
from omnialpha.tasks import TASKS, Example, numbered

if TYPE_CHECKING:
    from omnialpha.pipeline import OmniAlpha

LONG_SIDE = 4096  # of a photograph; they are shown as they come
LAYERS, SCENES = 140, 26  # a multiple of the kinds that are drawn
GROUNDS = ("checkerboard", "black", "white")  # that every output is shown on
ONE_ANSWER = ("matting", "removal", "decomposition")  # the others have as many right answers as there are pictures


@dataclass(frozen=True)
class Photo:
    """A photograph that comes with scikit-image, and what is asked about it. Places are shares of its sides."""

    name: str
    outline: tuple[tuple[float, float], ...]  # (x, y) corners of a rough mask, drawn by hand, around what is removed
    removed: str
    scene: str  # the text for a new background
    wish: str  # the text for a new layer
    where: tuple[float, float, float]  # centre (x, y) and side of that layer, the side as a share of the shorter side
    click: tuple[float, float] | None = None  # on a subject that is not the most salient one


PHOTOS = (
    Photo(
        "cat",
        ((0, 0.36), (0.07, 0.2), (0.07, 0), (0.89, 0), (0.82, 0.25), (0.83, 0.45), (0.77, 0.7), (0.7, 1), (0, 1)),
        "the cat", "dark green hills under a pink sky", "a red heart", (0.88, 0.3, 0.4),
    ),
    Photo(
        "astronaut",
        ((0.77, 0), (0.88, 0), (0.92, 0.09), (0.93, 0.42), (0.96, 0.57), (0.68, 0.57), (0.67, 0.44), (0.73, 0.35),
         (0.73, 0.09)),
        "the model of a space shuttle", "blue bokeh lights on black", "a yellow star", (0.3, 0.2, 0.34), (0.78, 0.3),
    ),
    Photo(
        "coffee",
        ((0.11, 0.47), (0.16, 0.31), (0.28, 0.18), (0.27, 0.1), (0.34, 0.03), (0.49, 0.02), (0.65, 0.05), (0.72, 0.15),
         (0.73, 0.26), (0.81, 0.39), (0.83, 0.57), (0.78, 0.81), (0.66, 0.96), (0.49, 1), (0.32, 0.94), (0.18, 0.74)),
        "the cup and its saucer", "a white wallpaper with light blue stripes", "a puff of white smoke", (0.5, 0.3, 0.6),
    ),
    Photo(
        "rocket",
        ((0.46, 0.32), (0.5, 0.27), (0.54, 0.32), (0.57, 0.82), (0.59, 0.97), (0.41, 0.97), (0.43, 0.82)),
        "the rocket", "a smooth gradient from orange to purple", "a plain yellow crescent moon", (0.76, 0.24, 0.36),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class DemoPicture:
    """A written picture: what it is, its file relative to the demo's folder with `/`, its (height, width)."""

    label: str
    file: str
    size: tuple[int, int]


@dataclass(frozen=True)
class DemoRun:
    """One run of the model. name: what its files are called, relative to the demo's folder."""

    name: str
    task: str
    photo: str  # the photograph's name; "" for held-out layers
    instruction: str
    inputs: tuple[DemoPicture, ...]
    outputs: tuple[DemoPicture, ...]
    seconds: float
    more: tuple[str, ...] = ()  # other files it wrote
    compared: tuple[DemoPicture, ...] = ()  # the true layer of every output, or one picture of the outputs in use
    compared_title: str = ""
    note: str = ""

    @property
    def category(self) -> str:
        return TASKS[self.task].category

    @property
    def files(self) -> list[str]:
        """All of it, each once."""
        pictures = [shown.file for shown in (*self.compared, *self.inputs)]
        return list(dict.fromkeys([*(shown.file for shown in self.outputs), *self.more, *pictures]))


@dataclass(frozen=True)
class DemoRunner:
    """Runs one example at a time and writes what comes out under `folder`."""

    model: OmniAlpha
    folder: Path
    seed: int

    def picture(self, file: str, label: str, pixels: Tensor, settings: dict[str, Any] | None = None) -> DemoPicture:
        write_image(self.folder / file, pixels, settings=settings)
        return DemoPicture(label, file, (int(pixels.shape[-2]), int(pixels.shape[-1])))

    def inputs(self, name: str, example: Example) -> tuple[DemoPicture, ...]:
        """The example's pictures, written as NAME-in-ROLE.png, numbered where a role repeats."""
        return tuple(
            self.picture(f"{name}-in-{label}.png", label.replace("-", " "), pixels)
            for label, pixels in zip(numbered(example.roles), example.inputs, strict=True)
        )

    def run(
        self, name: str, example: Example, inputs: Sequence[DemoPicture], photo: str = ""
    ) -> tuple[LayerStack, DemoRun]:
        """Runs an example and writes its one layer as NAME.png, or its several as a stack in the folder NAME."""
        start = perf_counter()
        stack = self.model.run([example], seed=self.seed)[0]
        seconds = perf_counter() - start
        more: tuple[str, ...] = ()
        if len(stack) == 1:
            card, defaults = self.model.card, self.model.card.defaults(example.task)
            settings: dict[str, Any] = {"task": example.task, "instruction": example.instruction, "model": card.name}
            settings |= {"seed": self.seed, "steps": defaults.steps, "guidance": defaults.guidance}
            outputs = [self.picture(f"{name}.png", stack[0].name, stack[0].rgba, settings)]
        else:
            files, more = stack.save(self.folder / name), (f"{name}/{INDEX}",)
            outputs = [
                DemoPicture(layer.name.replace("-", " "), f"{name}/{file}", stack.size)
                for layer, file in zip(stack, files, strict=True)
            ]
        made = (tuple(inputs), tuple(outputs), seconds, more)
        return stack, DemoRun(name, example.task, photo, example.instruction, *made)

    def compare(
        self, entry: DemoRun, title: str, pictures: Iterable[tuple[str, Tensor]], note: str = "", prefix: str = ""
    ) -> DemoRun:
        """The entry with labelled pictures to compare its outputs with, written as NAME-PREFIX-LABEL.png."""
        base = f"{entry.name}-{prefix}-" if prefix else f"{entry.name}-"
        shown = [self.picture(f"{base}{label.replace(' ', '-')}.png", label, pixels) for label, pixels in pictures]
        return replace(entry, compared=tuple(shown), compared_title=title, note=note)


def photograph(photo: Photo) -> Tensor:
    """The photograph (4, H, W), its long side at most LONG_SIDE."""
    import skimage.data

    pixels = to_rgba(getattr(skimage.data, photo.name)())
    return rgba.scale(pixels, min(1.0, LONG_SIDE / max(pixels.shape[-2:])))


def outline_mask(photo: Photo, size: tuple[int, int]) -> Tensor:
    """The outline filled with white on black, as a rough mask (4, H, W)."""
    image = Image.new("L", (size[1], size[0]))
    ImageDraw.Draw(image).polygon([(x * size[1], y * size[0]) for x, y in photo.outline], fill=255)
    return masks.as_picture(torch.from_numpy(np.asarray(image) / np.float32(255)))


def of_photograph(runner: DemoRunner, photo: Photo) -> Iterator[DemoRun]:
    """All five categories on one photograph, its cut-out first, which goes on into the completion."""
    picture = photograph(photo)
    size, base = (int(picture.shape[1]), int(picture.shape[2])), f"photos/{photo.name}"
    whole = runner.picture(f"{base}.png", "photograph", picture)

    def run(example: Example, *inputs: DemoPicture) -> tuple[LayerStack, DemoRun]:
        return runner.run(f"{base}-{example.task}", example, inputs, photo.name)

    stack, entry = run(TASKS["matting_auto"].example(image=picture), whole)
    cutout, shown = stack[0].rgba, replace(entry.outputs[0], label="cut-out")
    yield runner.compare(entry, "alpha", [("its alpha", masks.as_picture(cutout[3]))])

    if photo.click:
        x, y = photo.click[0] * size[1], photo.click[1] * size[0]
        rough = masks.as_picture(runner.model.outline(picture, [(x, y)], ()))
        clicked = runner.picture(f"{base}-in-click.png", "what a click found", rough)
        stack, entry = run(TASKS["matting_rough"].example(composite=picture, rough=rough), whole, clicked)
        yield replace(entry, note=f"Chosen by one click: --point {x:.0f},{y:.0f}")

    stack, entry = run(TASKS["foreground_to_background"].example(foreground=cutout, prompt=photo.scene), shown)
    yield runner.compare(entry, "in use", [("under the cut-out", rgba.recompose([stack[0].rgba, cutout]))])

    mask = outline_mask(photo, size)
    marked = runner.picture(f"{base}-in-rough.png", "rough mask", mask)
    stack, entry = run(TASKS["removal_rough"].example(composite=picture, rough=mask), whole, marked)
    yield replace(entry, note=f"To go: {photo.removed}. Outside the mask every pixel is the photograph's.")

    stack, entry = run(TASKS["decompose_auto"].example(image=picture, layers=2), whole)
    note = f"PSNR {stack.error(picture)['psnr']:.1f} dB to the photograph when put together again."
    yield runner.compare(entry, "put together", [("all layers", stack.recompose())], note)

    stack, entry = run(TASKS["text_to_image"].example(prompt=photo.wish, size=runner.model.native_size()))
    yield runner.compare(entry, "in use", [("over the photograph", laid_over(picture, stack[0].rgba, photo.where))])


def laid_over(picture: Tensor, layer: Tensor, where: tuple[float, float, float]) -> Tensor:
    """The layer over the picture (4, H, W), centred at (x, y), its longer side a share of the picture's shorter one."""
    height, width = picture.shape[-2:]
    small = rgba.scale(layer, where[2] * min(height, width) / max(layer.shape[-2:]))
    offset = (round(where[1] * height - small.shape[-2] / 2), round(where[0] * width - small.shape[-1] / 2))
    return LayerStack((height, width), [Layer("picture", picture), Layer("layer", small, offset)]).recompose()


def refused(model: OmniAlpha) -> list[str]:
    """The tasks that a model does not do, as its card says."""
    names = []
    for name in TASKS:
        try:
            model.card.check_task(name)
            model.card.check_reads(name)
        except InputError:
            names.append(name)
    return names


def of_held_out(runner: DemoRunner) -> Iterator[DemoRun]:
    """Every task that the model does, on its own scene of procedural layers of the test split, with the truth."""
    size = runner.model.native_size()
    layers = bank.procedural(LAYERS, SCENES, max(size) * 4 // 3, bank.TEST_SEED, "test")
    left_out = refused(runner.model)
    for index, (name, task) in enumerate(TASKS.items()):
        if name in left_out:
            continue
        generator = torch.Generator().manual_seed(runner.seed * len(TASKS) + index)
        (example,) = mixture.examples(task, layers, 1, size, generator)
        truth = example.true_layers()
        stack, entry = runner.run(f"tasks/{name}", example, runner.inputs(f"tasks/{name}", example))
        title, note = "one right answer", ""
        if task.category in ONE_ANSWER:
            pixels = torch.stack([layer.rgba for layer in stack])
            score = rgba.psnr(rgba.premultiply(pixels), rgba.premultiply(truth))
            title, note = "truth", f"PSNR {score:.1f} dB to the truth."
        true = [(shown.label, pixels) for shown, pixels in zip(entry.outputs, truth, strict=True)]
        yield runner.compare(entry, title, true, note, prefix="true")
