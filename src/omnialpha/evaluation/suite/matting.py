"""What the suite asks of mattes: of one object, found or marked, and of one of two that a text names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from omnialpha.evaluation.datasets.heldout import HeldOutScenes
from omnialpha.evaluation.methods.baselines import best_constant
from omnialpha.evaluation.methods.classical import has_anchors
from omnialpha.evaluation.methods.constants import BEST_CONSTANT
from omnialpha.evaluation.metrics.matting import METRICS, POINTWISE, measure, soft_iou
from omnialpha.evaluation.suite.figures import by_picture, on_backgrounds
from omnialpha.evaluation.suite.suite import Figures, Scenes, Section
from omnialpha.tasks import MAPS, Role

TWO = "two objects"
ANCHORED = "matting_trimap: where there are anchors"
WORDINGS = {  # what the text says; "" is the caption as training composes it: the name, often colour and place
    "as composed": "", "name and place": "{name} at the {place}", "colour and name": "{color} {name}",
    "name alone": "{name}", "colour alone": "{color} object",
}  # fmt: skip


def matting(scenes: Scenes) -> Iterable[Section]:
    one, two = scenes.ones, scenes.twos
    constant = {BEST_CONSTANT: partial(constants, one)}
    for role in (None, *MAPS):
        name, guidance = f"matting_{role or 'auto'}", str(role or "nothing")
        best = "+composites" if role is Role.ALPHA else "mad"  # whose alpha is given
        yield Section(name, name, guidance, one.examples(name), partial(matte_figures, one), constant, best)
    anchored = {BEST_CONSTANT: partial(constants, one, anchored=True)}
    yield Section(ANCHORED, "matting_trimap", "truth", references=anchored)
    for wording, pattern in WORDINGS.items():
        phrases, first = two.phrases(pattern), not pattern
        keep = [b for b, (asked, other) in enumerate(phrases) if first or asked != other]
        if keep:
            whole = two.examples("matting_text", [asked for asked, _ in phrases])
            yield Section(
                f"matting_text: {wording}",
                "matting_text",
                f"text: {phrases[keep[0]][0]}",
                [whole[b] for b in keep],
                partial(matte_figures, two, keep=keep, whole=first),
                {BEST_CONSTANT: partial(constants, two)} if first else {},
                "mad" if first else "",
                baselines=first,
            )
    for task, guidance in (("matting_auto", "nothing"), ("matting_trimap", "trimap")):
        yield Section(f"{task}: {TWO}", task, guidance, two.examples(task), partial(matte_figures, two), models=False)


def matte_figures(
    held: HeldOutScenes, which: Sequence[int], out: Tensor, keep: Sequence[int] | None = None, whole: bool = True
) -> Figures:
    """Of foregrounds (B, 1, 4, H, W). keep: numbers of the scenes that examples are of; all in order if None.
    whole: the errors, not only which object was picked.
    """
    picks, alpha = [keep[i] if keep else i for i in which], out[:, 0, 3]
    true, trimap = held.target[picks, 3], held.trimap[picks]
    made: dict[str, Tensor] = {}
    if whole:
        made = measure(alpha, true, names=METRICS)
        made |= {f"{name}_unknown": v for name, v in measure(alpha, true, trimap, "unknown").items()}
        made["anchored"] = torch.tensor([float(has_anchors(t)) for t in trimap])
        made["composites"] = on_backgrounds(out[:, 0], held.target[picks])["mean"]
    if held.layers.shape[1] == 2:
        right = soft_iou(alpha, true) > soft_iou(alpha, held.other[picks, 3])
        made["right"] = 100.0 * right
    return by_picture(**made)


def constants(held: HeldOutScenes, anchored: bool = False) -> Figures:
    """The one alpha for all pictures that makes the mean of a metric smallest. anchored: for those whose trimap has
    anchors; the others get no figures.
    """
    keep = [b for b, trimap in enumerate(held.trimap) if not anchored or has_anchors(trimap)]
    true, trimap = held.target[keep, 3], held.trimap[keep]
    made: dict[str, Tensor] = {}
    for region, suffix in (("whole", ""), ("unknown", "_unknown")) if keep else ():
        where = (trimap > 0) & (trimap < 1) if region == "unknown" else None
        for metric in POINTWISE:
            flat = torch.full_like(true, best_constant(true, 2 if metric == "mse" else 1, where))
            made[f"{metric}{suffix}"] = measure(flat, true, trimap, region, names=(metric,))[metric]
    rows = dict(zip(keep, by_picture(**made), strict=True))
    return [rows.get(b, {}) for b in range(len(held))]
