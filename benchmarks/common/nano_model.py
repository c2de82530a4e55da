"""Nano: its transformer beside diffusers' on the same weights, and what the approximate savings cost in quality."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from common.savings import Bench, spread
from common.tables import Cell, Table
from common.timing import in_turn, medians
from omnialpha import rgba
from omnialpha.evaluation.datasets import heldout
from omnialpha.evaluation.datasets.heldout import HeldOutScenes
from omnialpha.evaluation.metrics.image import PSNR_8_BIT, psnr
from omnialpha.models.runtime.quantize import KINDS, quantize
from omnialpha.models.transformer.approximate import Approximations
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import TASKS, Example

TASK_LIST = ("matting_auto", "decompose_auto", "text_to_image")
INPUTS = ("matting_auto", "decompose_auto")
GUIDED = ("text_to_image",)


@dataclass(frozen=True)
class Method:
    """Approximations by name, as `--approximate` takes them. tasks: where it changes something; steps: their share;
    quantize: a kind of weights.
    """

    name: str
    given: Mapping[str, str] = field(default_factory=dict)
    tasks: Sequence[str] = TASK_LIST
    steps: float = 1.0
    quantize: str | None = None


def named(name: str, value: str, tasks: Sequence[str] = TASK_LIST) -> Method:
    return Method(f"{name}={value}", {name: value}, tasks)


EXACT = Method("exact")
METHODS = (
    Method("half the steps", steps=0.5),
    named("first-block", "0.1"),
    named("first-block", "0.3"),
    named("taylor", "2"),
    named("taylor", "3"),
    named("guidance", "0.2-0.9", GUIDED),
    named("guidance", "0.5-1", GUIDED),
    named("vision", "64", INPUTS),
    named("vision", "32", INPUTS),
    named("tiles", "64"),
    *(Method(f"quantize={kind}", quantize=kind) for kind in KINDS),
)


@contextmanager
def applied(model: OmniAlpha, given: Mapping[str, str]) -> Iterator[None]:
    """The model under approximations, and then exact again."""
    before = model.text_encoder.picture_pixels, model.vae.tiling, model.guidance_interval
    asked = Approximations.parse(given)
    asked.apply(model.transformer, model.text_encoder, model.vae)
    model.guidance_interval = asked.guidance
    try:
        yield
    finally:
        model.text_encoder.picture_pixels, model.vae.tiling, model.guidance_interval = before
        if model.transformer.is_cache_enabled:
            model.transformer.disable_cache()


def run(model: OmniAlpha, examples: Sequence[Example], method: Method, seed: int) -> Tensor:
    """The model's own pictures (n, m, 4, H, W) under an approximation."""
    steps = round(model.card.defaults(examples[0].task).steps * method.steps)
    with applied(model, method.given):
        stacks = model.run(examples, seed=[seed + i for i in range(len(examples))], steps=steps, raw=True)
    return torch.stack([torch.stack([layer.rgba for layer in stack]) for stack in stacks]).clamp(0, 1)


def quantized(model: OmniAlpha, kind: str) -> OmniAlpha:
    """A copy with the weights of its blocks in fewer bits."""
    model = copy.deepcopy(model)
    for part in (model.transformer, model.text_encoder.model):
        quantize(part, kind, model.device, model.device)
    return model


def examples_of(task: str, held: HeldOutScenes, size: tuple[int, int]) -> list[Example]:
    if task == "text_to_image":
        return [TASKS[task].example(prompt=scene.captions[0].text, size=size) for scene in held.scenes]
    return [TASKS[task].example(image=one) for one in held.composite]


def approximate(bench: Bench, n: int, seed: int) -> Iterator[Table]:
    """One table: time and pictures of each approximation beside the exact run; again after each task."""
    model = bench.ours
    size = model.native_size()
    held = heldout.draw(heldout.open_source(), n, size, seed)
    table = Table(
        "Approximate savings, all off by default: what they cost on nano",
        f"n={n} held-out procedural scenes in one batch, seed {seed}, {size[0]} px, "
        f"{bench.repeats} runs of each in turn, medians, {bench.where}",
        {
            "task": "",
            "approximation": "",
            "s": ".3f",
            "times faster": ".2f",
            "PSNR to exact, dB": ".1f",
            "alpha MAD to truth": ".4f",
        },
        notes=[
            "PSNR of each premultiplied RGBA picture without what `fidelity` restores, at most 60, then the mean.",
            "alpha MAD: of the subject against its true alpha; its row `exact` is what the others add to.",
        ],
    )
    fewer = {kind: quantized(model, kind) for kind, about in KINDS.items() if find_spec(about.package)}
    if missing := sorted(KINDS.keys() - fewer.keys()):
        table.notes.append(f"Not measured, for want of their package: {', '.join(missing)}.")
    run(model, examples_of("matting_auto", held, size), EXACT, seed)  # warms up
    for task in TASK_LIST:
        asked = examples_of(task, held, size)
        methods = [EXACT, *(m for m in METHODS if task in m.tasks and (not m.quantize or m.quantize in fewer))]
        made: dict[str, Tensor] = {}

        def keep(method: Method) -> None:
            made[method.name] = run(fewer.get(method.quantize or "", model), asked, method, seed)  # noqa: B023

        seconds = medians(in_turn({m.name: partial(keep, m) for m in methods}, bench.repeats, model.device, warm=0))
        for name in seconds:
            pictures = made[name]
            flat, wanted = (rgba.premultiply(p.flatten(0, 1)) for p in (pictures, made[EXACT.name]))
            error: Cell = None
            if task in INPUTS:  # the last layer is the one in front
                error = float((pictures[:, -1, 3] - held.target[:, 3]).abs().mean())
            near: Cell = None if name == EXACT.name else float(psnr(flat, wanted, ceiling=PSNR_8_BIT).mean())
            table.rows.append([task, name, seconds[name], seconds[EXACT.name] / seconds[name], near, error])
        yield table


@torch.inference_mode()
def step(bench: Bench, seed: int) -> list[Table]:
    """Nano's transformer, a branch of one and of eight pictures, beside diffusers' with the same weights."""
    model = bench.ours
    size = model.native_size()
    config = {k: v for k, v in model.transformer.config.items() if not k.startswith("_")}
    config.pop("condition_attention")
    theirs = QwenImageTransformer2DModel(**config).eval().requires_grad_(False).to(model.device)
    theirs.load_state_dict(model.transformer.state_dict())
    side = (1, *(s // (model.vae.ratio * 2) for s in size))
    table = Table(
        "Nano: the transformer beside diffusers' with the same weights",
        bench.about(f"n=1 m=1, {size[0]} px, a branch, seed {seed}"),
        {"batch": "d", "diffusers, ms": ".1f", "ours, ms": ".1f", "ratio": ".2f", "difference": ".1e"},
        notes=["difference: the largest one between the outputs, relative to the largest value."],
    )
    held = heldout.draw(heldout.open_source(), 8, size, seed)
    for batch in (1, 8):
        cond = model.condition([TASKS["matting_auto"].example(image=one) for one in held.composite[:batch]])
        x, t = model.noise(cond, seed), torch.full((batch,), 0.6, device=model.device)
        rows, shapes = torch.cat((x, cond.inputs), dim=1), [[side, side]] * batch

        def published() -> Tensor:
            out = theirs(rows, cond.text, None, t, img_shapes=shapes, return_dict=False)[0]  # noqa: B023
            return out[:, : x.shape[1]]  # noqa: B023

        def ours() -> Tensor:
            positions, shared = cond.positions, cond.shared  # noqa: B023
            return model.transformer(x, cond.inputs, cond.text, t, positions, shared)  # noqa: B023

        difference = spread(ours(), published())
        seconds = medians(in_turn({"diffusers": published, "ours": ours}, 4 * bench.repeats, model.device))
        ratio = seconds["diffusers"] / seconds["ours"]
        table.rows.append([batch, 1000 * seconds["diffusers"], 1000 * seconds["ours"], ratio, difference])
    return [table]
