"""What the suite asks in each category, and which figures a picture gets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from omnialpha import fidelity, rgba
from omnialpha.data.scene import Caption, Scene, to_example
from omnialpha.data.synthetic import bank as banks
from omnialpha.evaluation.datasets.heldout import HeldOutScenes
from omnialpha.evaluation.datasets.rgba_pictures import TASK
from omnialpha.evaluation.methods.method import Method
from omnialpha.evaluation.metrics.matting import measure
from omnialpha.evaluation.metrics.reader import Reader, Request, requests
from omnialpha.evaluation.reports.report import Row
from omnialpha.evaluation.suite.figures import by_picture, error, on_backgrounds, weighted
from omnialpha.evaluation.suite.matting import matting
from omnialpha.evaluation.suite.suite import BATCH, Figures, Scenes, Section, identity
from omnialpha.masks import DEFINITE
from omnialpha.tasks import MAPS, TASKS, Example, Role

SEEN = 0.05  # a picture whose alpha never reaches this shows nothing


def autoencoder(scenes: Scenes) -> Iterable[Section]:
    held, model = scenes.ones, scenes.model

    def make(examples: Sequence[Example], seeds: Sequence[int]) -> list[Tensor]:
        like = [TASKS["text_to_image"].example(prompt="a picture", size=scenes.size)] * len(examples)
        cond = model.condition(like)
        again = model.pictures(model.encode_targets([[example.inputs[0]] for example in examples], cond), cond)
        return [picture.cpu().clamp(0, 1) for picture in again]

    def score(which: Sequence[int], out: Tensor, pictures: Tensor) -> Figures:
        back, true = out[:, 0], pictures[list(which)]
        mad = measure(back[:, 3], true[:, 3], names=("mad",))["mad"]
        return by_picture(**on_backgrounds(back, true), alpha_mad=mad)

    own = Method(model.card.name, make, TASK.__eq__, identity(model), batch=BATCH)
    for name, pictures in (("subject", held.target), ("background", held.background), ("composite", held.composite)):
        examples = [Example(TASK, (Role.FULL,), (p,), "", (Role.FULL,), scenes.size) for p in pictures]
        yield Section(
            f"autoencoder: {name}", TASK, name, examples, partial(score, pictures=pictures),
            models=False, baselines=False, own=(own,),
        )  # fmt: skip


def removal(scenes: Scenes) -> Iterable[Section]:
    held = scenes.ones

    def score(which: Sequence[int], out: Tensor, holes: Tensor) -> Figures:
        picks, rgb = list(which), out[:, 0, :3]
        true, hole = held.background[picks, :3], holes[picks]
        share = 100 * hole.float().mean(dim=(1, 2))
        return by_picture(hole_share=share, **error("hole", rgb, true, hole), **error("whole", rgb, true))

    for role in (Role.ROUGH, Role.TRIMAP, Role.PRECISE, Role.ALPHA, None):
        name = f"removal_{role or 'auto'}"
        examples = held.examples(name)
        # without a map nothing says where the hole is
        guides = held.rough if role is None else [example.inputs[1][0] for example in examples]
        holes = torch.stack([fidelity.removal_mask(guide, role or Role.ROUGH) for guide in guides])
        yield Section(name, name, str(role or "nothing"), examples, partial(score, holes=holes), best="+hole")


def decomposition(scenes: Scenes) -> Iterable[Section]:
    held = scenes.ones

    def score(which: Sequence[int], out: Tensor) -> Figures:
        picks, front = list(which), out[:, 1]
        true, back, seen = held.target[picks], held.background[picks], held.composite[picks, :3]
        return by_picture(
            background_l1=(out[:, 0, :3] - back[:, :3]).abs().double().mean(dim=(1, 2, 3)),
            foreground_l1=weighted((front[:, :3] - true[:, :3]).abs(), true[:, 3]),
            alpha_mad=measure(front[:, 3], true[:, 3], names=("mad",))["mad"],
            foreground_seen=front[:, 3].mean(dim=(1, 2)),
            **error("recomposed", rgba.recompose(list(out.unbind(1)))[:, :3], seen),
        )

    for role in (None, *MAPS):
        name = f"decompose_{role or 'auto'}"
        yield Section(name, name, str(role or "nothing"), held.examples(name), score, best="alpha_mad")


# ---- completion -----------------------------------------------------------------------------------------------------


def completion(scenes: Scenes) -> Iterable[Section]:
    """There is no one right answer: what the task implies is measured, and of the true layers too."""
    held = scenes.ones

    def score(which: Sequence[int], out: Tensor, figures: Completed) -> Figures:
        return by_picture(**figures(held, list(which), out[:, 0]))

    for name, figures in COMPLETED.items():
        examples = held.examples(name)
        of = partial(score, figures=figures)
        truths = {"the true layer": partial(of, range(scenes.n), torch.stack([e.true_layers() for e in examples]))}
        best = "+kept" if name.endswith("full") else ""
        yield Section(name, name, "text and layer", examples, of, truths, best)


def _keeps_foreground(held: HeldOutScenes, picks: list[int], out: Tensor) -> dict[str, Tensor]:
    """The given layer where it is solid; in pictures where it is nowhere, where it is most."""
    given = held.target[picks]
    solid = given[:, 3] > DEFINITE * given[:, 3].amax(dim=(1, 2), keepdim=True)
    return error("kept", out[:, :3], given[:, :3], solid) | {"opacity": 100 * out[:, 3].mean(dim=(1, 2))}


def _keeps_background(held: HeldOutScenes, picks: list[int], out: Tensor) -> dict[str, Tensor]:
    """The given scene in its better half: something was to be added, and nothing says where."""
    given = held.background[picks]
    apart = (out[:, :3] - given[:, :3]).abs().mean(dim=1)
    better = apart <= apart.flatten(1).median(dim=1).values[:, None, None]
    changed = torch.stack([fidelity.changed(a, b) for a, b in zip(out, given, strict=True)])
    return error("kept", out[:, :3], given[:, :3], better) | {"changed": 100 * changed.float().mean(dim=(1, 2))}


def _new_background(held: HeldOutScenes, picks: list[int], out: Tensor) -> dict[str, Tensor]:
    """How far the scene is from the given layer where that would cover it: a copy of the layer is no background."""
    given = held.target[picks]
    away = weighted((out[:, :3] - given[:, :3]).abs(), given[:, 3])
    return {"away": away, "opacity": 100 * out[:, 3].mean(dim=(1, 2))}


def _new_foreground(held: HeldOutScenes, picks: list[int], out: Tensor) -> dict[str, Tensor]:
    """Whether there is a layer with a shape of its own, and how far it is from the scene, over which it is laid."""
    given, alpha = held.background[picks], out[:, 3]
    shown = (alpha.amax(dim=(1, 2)) >= SEEN) & (alpha.amin(dim=(1, 2)) < SEEN)
    away = (rgba.flatten(out, given[:, :3]) - given[:, :3]).abs().mean(dim=(1, 2, 3))
    return {"shown": 100.0 * shown, "opacity": 100 * alpha.mean(dim=(1, 2)), "away": away}


Completed = Callable[[HeldOutScenes, list[int], Tensor], dict[str, Tensor]]
COMPLETED: dict[str, Completed] = {
    "foreground_to_full": _keeps_foreground,
    "background_to_full": _keeps_background,
    "foreground_to_background": _new_background,
    "background_to_foreground": _new_foreground,
}


# ---- generation -----------------------------------------------------------------------------------------------------


def generation(scenes: Scenes) -> Iterable[Section]:
    asked = requests(scenes.n, scenes.seed + banks.TEST_SEED, scenes.size[0])
    reader, row = Reader(scenes.seed), TASKS["text_to_image"]

    def hits(request: Request, color: str, shape: str) -> Row:
        right = {"colour": color == request.color, "shape": shape == request.shape}
        return {name: 100.0 * hit for name, hit in (right | {"both": all(right.values())}).items()}

    def score(which: Sequence[int], out: Tensor) -> Figures:
        return [hits(asked[b], *reader.read(layers[0])) for b, layers in zip(which, out, strict=True)]

    def chance() -> Figures:
        words = {"colour": [r.color for r in asked], "shape": [r.shape for r in asked]}
        words["both"] = [f"{r.color} {r.shape}" for r in asked]
        common = {name: max(said, key=said.count) for name, said in words.items()}
        return [{name: 100.0 * (said[b] == common[name]) for name, said in words.items()} for b in range(len(asked))]

    drawings = torch.stack([r.drawing for r in asked])
    drawn = [Scene(r.drawing[None], captions=(Caption(r.prompt),)) for r in asked]
    yield Section(
        "text_to_image",
        "text_to_image",
        f"text: {'; '.join(r.prompt for r in asked[:3])}",
        [to_example(scene, row, wording=i) for i, scene in enumerate(drawn)],
        score,
        {"true drawings": partial(score, range(scenes.n), drawings[:, None]), "chance": chance},
        "+both",
    )


CATEGORIES: dict[str, Callable[[Scenes], Iterable[Section]]] = {
    "autoencoder": autoencoder,
    "matting": matting,
    "removal": removal,
    "decomposition": decomposition,
    "completion": completion,
    "generation": generation,
}
