"""What the suite asks of mattes: of one object, found or marked, and of one of two that a text names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from omnialpha import rgba
from omnialpha.evaluation.datasets.heldout import HeldOutScenes
from omnialpha.evaluation.methods.baselines import best_constant
from omnialpha.evaluation.methods.classical import has_anchors
from omnialpha.evaluation.methods.constants import BEST_CONSTANT
from omnialpha.evaluation.metrics.backgrounds import BACKGROUNDS
from omnialpha.evaluation.metrics.matting import METRICS, POINTWISE, measure, soft_iou
from omnialpha.evaluation.suite import Figures, Scenes, Section
from omnialpha.evaluation.suite_figures import by_picture, error
from omnialpha.tasks import MAPS, Example, Role

TWO = "two objects"
ANCHORED = "matting_trimap: where there are anchors"
WORDINGS = {  # what the text says; "" is the caption as training composes it: the name, often colour and place
    "as composed": "", "name and place": "{name} at the {place}", "colour and name": "{color} {name}",
    "name alone": "{name}", "colour alone": "{color} object",
}  # fmt: skip


def matting(scenes: Scenes) -> Iterable[Section]:
    held = scenes.ones

    def section(name: str, guidance: str, examples: Sequence[Example]) -> Section:
        score, constant = partial(matte_figures, held), {BEST_CONSTANT: partial(constants, held)}
        best = "+composites" if guidance == Role.ALPHA else "mad"  # whose alpha is given
        return Section(name, "matting", name, guidance, examples, score, constant, best)

    yield section("matting_auto", "nothing", held.examples("matting_auto"))
    for role in MAPS:
        yield section(f"matting_{role}", str(role), held.examples(f"matting_{role}"))
    of_anchored = {BEST_CONSTANT: partial(constants, held, anchored=True)}
    yield Section(ANCHORED, "matting", "matting_trimap", "truth", references=of_anchored)
    yield from text(scenes)


def text(scenes: Scenes) -> Iterable[Section]:
    held = scenes.twos
    for wording, pattern in WORDINGS.items():
        phrases = held.phrases(pattern)
        keep = [b for b, (asked, other) in enumerate(phrases) if not pattern or asked != other]
        if not keep:
            continue
        whole = held.examples("matting_text", [asked for asked, _ in phrases])
        first = not pattern
        yield Section(
            f"matting_text: {wording}",
            "matting",
            "matting_text",
            f"text: {phrases[keep[0]][0]}",
            [whole[b] for b in keep],
            partial(_picked, held, keep, first),
            {BEST_CONSTANT: partial(constants, held)} if first else {},
            "mad" if first else "",
            baselines=first,
        )
    for task, guidance in (("matting_auto", "nothing"), ("matting_trimap", "trimap")):
        score = partial(matte_figures, held)
        yield Section(f"{task}: {TWO}", "matting", task, guidance, held.examples(task), score, models=False)


def _picked(held: HeldOutScenes, keep: Sequence[int], whole: bool, which: Sequence[int], out: Tensor) -> Figures:
    return matte_figures(held, [keep[i] for i in which], out, whole)


def matte_figures(held: HeldOutScenes, which: Sequence[int], out: Tensor, whole: bool = True) -> Figures:
    """Of foregrounds (B, 1, 4, H, W). whole: the errors, not only which object was picked."""
    picks, alpha = list(which), out[:, 0, 3]
    true, trimap = held.target[picks, 3], held.trimap[picks]
    made: dict[str, Tensor] = {}
    if whole:
        made = measure(alpha, true, names=METRICS)
        made |= {f"{name}_unknown": v for name, v in measure(alpha, true, trimap, "unknown").items()}
        made["anchored"] = torch.tensor([float(has_anchors(t)) for t in trimap])
        each = [
            error("psnr", rgba.flatten(out[:, 0], color), rgba.flatten(held.target[picks], color))["psnr"]
            for color in BACKGROUNDS.values()
        ]
        made["composites"] = torch.stack(each).mean(dim=0)
    if held.layers.shape[1] == 2:
        right = soft_iou(alpha, true) > soft_iou(alpha, held.other[picks, 3])
        made["right"] = 100.0 * right
    return by_picture(**made)


def constants(held: HeldOutScenes, anchored: bool = False) -> Figures:
    """The one alpha for all pictures that makes the mean of a metric smallest. anchored: for those whose trimap has
    anchors; the others get no figures.
    """
    bare = [anchored and not has_anchors(trimap) for trimap in held.trimap]
    keep = [b for b, without in enumerate(bare) if not without]
    true, trimap = held.target[keep, 3], held.trimap[keep]
    made: dict[str, Tensor] = {}
    for region, suffix in (("whole", ""), ("unknown", "_unknown")) if keep else ():
        where = (trimap > 0) & (trimap < 1) if region == "unknown" else None
        for metric in POINTWISE:
            flat = torch.full_like(true, best_constant(true, 2 if metric == "mse" else 1, where))
            made[f"{metric}{suffix}"] = measure(flat, true, trimap, region, names=(metric,))[metric]
    rows = iter(by_picture(**made))
    return [{} if without else next(rows) for without in bare]
