"""What the sections of a quality benchmark share: the model, the scenes, the one way to run them, the matting table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from _report import Cell, Table
from torch import Tensor

from omnialpha import masks, rgba
from omnialpha.evaluation import heldout, peers
from omnialpha.evaluation.heldout import HeldOut, Source
from omnialpha.evaluation.matting import measure
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import TASKS, Example, Role

BATCH = 16
PSNR_CAP = 60.0  # dB of one picture, about what 8 bits can say: an untouched picture must not make a mean infinite
METRICS = {"sad": ".3f", "mad": ".4f", "mse": ".4f"}

Alphas = dict[str, tuple[str, Tensor]]  # method -> (what it is told, alphas (n, H, W))


@dataclass(frozen=True)
class Made:
    """Output pictures (n, m, 4, H, W) in [0, 1]: what a user gets, and the model's own."""

    default: Tensor
    raw: Tensor


@dataclass(frozen=True)
class Required:
    """A figure that this model has to reach, by the default output and by the raw one."""

    what: str
    bound: str
    passes: Callable[[float], bool]
    default: float
    raw: float


class Bench:
    """A model and its scenes: `ones` with one object, `twos` with two that stand apart."""

    def __init__(self, model: OmniAlpha, source: Source, n: int, seed: int) -> None:
        self.model, self.source, self.n, self.seed, self.size = model, source, n, seed, model.native_size()
        self.ones = heldout.draw(source, n, self.size, seed)
        self.twos = heldout.draw(source, n, self.size, seed, objects=2)
        cuda = model.device.type == "cuda"
        device = torch.cuda.get_device_name() if cuda else f"{model.device.type} ({torch.get_num_threads()} threads)"
        self.where = f"seed {seed}, model {model.card.name}, {device}, data: {source.about}"

    def about(self, region: str = "whole", n: int | None = None) -> str:
        size = f"{self.size[0]}x{self.size[1]} px"
        return f"n={self.n if n is None else n}, {size}, region: {region}, {self.where}"

    def make(self, examples: Sequence[Example]) -> Made:
        """One sampling of every example, decoded in both ways. Example i draws its noise from seed + i."""
        default: list[Tensor] = []
        raw: list[Tensor] = []
        for start in range(0, len(examples), BATCH):
            batch = examples[start : start + BATCH]
            seeds = [self.seed + start + i for i in range(len(batch))]
            steps: list[Any] = []
            stacks = self.model.run(batch, seed=seeds, on_step=lambda *last, steps=steps: steps.append(last))
            step, cond = steps[-1]
            for done, out in ((default, stacks), (raw, self.model.decode(step.x, cond, raw=True))):
                done += [torch.stack([layer.rgba for layer in stack]).clamp(0, 1) for stack in out]
        return Made(torch.stack(default), torch.stack(raw))

    def examples(
        self, task: str, held: HeldOut, maps: Tensor | None = None, prompts: Sequence[str] | None = None
    ) -> list[Example]:
        """One request of a task for every scene; the wordings of its instruction take turns."""
        made = []
        for b in range(len(held)):
            pictures: dict[Role, Any] = {Role.COMPOSITE: held.composite[b]}
            if maps is not None:
                pictures[TASKS[task].inputs[1]] = masks.as_picture(maps[b])
            made.append(TASKS[task].example(pictures, prompt=prompts[b] if prompts else None, wording=b))
        return made


def mean_psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> float:
    """PSNR of each picture (B, C, H, W), at most PSNR_CAP, then the mean in dB."""
    each = [min(rgba.psnr(a[i], b[i], None if mask is None else mask[i]), PSNR_CAP) for i in range(len(a))]
    return sum(each) / len(each)


def number(cell: Cell) -> float:
    assert isinstance(cell, float)
    return cell


def ours(made: Made, told: str) -> Alphas:
    return {"nano, default": (told, made.default[:, 0, 3]), "nano, raw": (told, made.raw[:, 0, 3])}


def rivals(held: HeldOut) -> Alphas:
    rgb = held.composite[:, :3]
    pairs = list(zip(rgb, held.trimap, strict=True))
    return {
        "GrabCut, centred rectangle": ("nothing", torch.stack([peers.grabcut_rectangle(p) for p in rgb])),
        "GrabCut, trimap": ("trimap", torch.stack([peers.grabcut_trimap(p, t) for p, t in pairs])),
        "closed form, trimap": ("trimap", torch.stack([peers.closed_form(p, t) for p, t in pairs])),
    }


def matting_table(
    title: str, bench: Bench, held: HeldOut, alphas: Alphas, unknown: bool = False, keep: Tensor | None = None
) -> Table:
    """Mean SAD (thousands), MAD and MSE of all methods over scenes `keep`; also in the trimap's band if `unknown`."""
    regions = ("whole", "unknown") if unknown else ("whole",)
    keep = torch.ones(len(held), dtype=torch.bool) if keep is None else keep
    columns = {f"{m.upper()}{', unknown' * (r != 'whole')}": form for r in regions for m, form in METRICS.items()}
    about = bench.about(" and ".join(regions), int(keep.sum()))
    table = Table(
        title, about, {"method": "", "told": "", **columns}, notes=["A metric of each picture, then the mean."]
    )
    true, trimap = held.target[keep, 3], held.trimap[keep]
    for name, (told, alpha) in alphas.items():
        figures = [measure(alpha[keep], true, trimap, region) for region in regions]
        table.rows.append([name, told, *(float(f[m].mean()) for f in figures for m in METRICS)])
    constants: list[Cell] = []
    for region in regions:
        where = (trimap > 0) & (trimap < 1) if region == "unknown" else None
        for metric, power in (("sad", 1), ("mad", 1), ("mse", 2)):
            flat = torch.full_like(true, peers.best_constant(true, power, where))
            constants.append(float(measure(flat, true, trimap, region)[metric].mean()))
    table.rows.append(["best constant", "truth", *constants])
    table.notes.append("Best constant: the median (SAD, MAD) or the mean (MSE) of all counted pixels.")
    return table
