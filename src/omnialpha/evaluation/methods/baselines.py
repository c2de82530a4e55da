"""What a model is measured against: classical methods and trivial baselines, as a `Method` each.

Each answers in the task's layers (m, 4, H, W) at the size that came in, and says what it is given besides the example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from omnialpha import fidelity, masks, rgba
from omnialpha.errors import InputError
from omnialpha.evaluation.methods import classical
from omnialpha.evaluation.methods.method import Method, digests
from omnialpha.files import sha256
from omnialpha.refine import foreground
from omnialpha.tasks import MAPS, TASKS, Example, Role

GREY = 0.5  # of an empty scene


def best_constant(true: Tensor, power: int = 1, where: Tensor | None = None) -> float:
    """The one alpha that minimises mean |true - c|^power: the median (power 1: SAD, MAD) or the mean (power 2: MSE).

    No baseline, as it needs the truth."""
    values = (true if where is None else true[where]).double().flatten()
    if not len(values):
        raise InputError("0 pixels are counted, so no constant is best: pass a map that is not empty.")
    return float(values.median() if power == 1 else values.mean())


# ---- from examples to layers ----------------------------------------------------------------------------------------

Answer = Callable[[Example], Tensor]
Cut = Callable[[Tensor, Tensor, Role | None], Tensor]  # rgb, the map (of any values without one), which -> alpha (H, W)
Inpaint = Callable[[Tensor, Tensor], Tensor]  # rgb and a hole (H, W) bool -> rgb


def given(example: Example) -> tuple[Tensor, Tensor, Role | None]:
    """rgb (3, H, W) of an example's composite, on white where it is see-through, with its map (H, W) and which; the
    composite's alpha where there is no map.
    """
    pictures = dict(zip(example.roles, example.inputs, strict=True))
    role, composite = next((r for r in example.roles if r in MAPS), None), pictures[Role.COMPOSITE]
    return rgba.flatten(composite), composite[3] if role is None else pictures[role][0], role


def with_color(rgb: Tensor, alpha: Tensor) -> Tensor:
    """(4, H, W): an alpha with the subject's colours, which pymatting's multi-level estimate (Germer et al. 2020) frees
    of the background's. So those that make only an alpha can be compared as layers.
    """
    return torch.cat([foreground(rgb, alpha), alpha[None]])


def _grabcut(rgb: Tensor, guide: Tensor, role: Role | None) -> Tensor:
    if role is None:
        return classical.grabcut_rectangle(rgb)
    if role is Role.PRECISE:  # sure inside, and unknown as far as `fidelity` lets such a subject reach
        guide = (guide.float() + fidelity.removal_mask(guide, role).float()) / 2
    elif role is Role.ROUGH:
        guide = guide / 2
    return classical.grabcut_trimap(rgb, guide)


def _by_trimap(kind: str) -> Cut:
    return lambda rgb, guide, role: classical.solve(kind, rgb, guide)


def _map_itself(rgb: Tensor, guide: Tensor, role: Role | None) -> Tensor:
    return guide


def _opaque(rgb: Tensor, guide: Tensor, role: Role | None) -> Tensor:
    return torch.ones_like(guide)


def _matting(cut: Cut) -> Answer:
    def answer(example: Example) -> Tensor:
        rgb, guide, role = given(example)
        return with_color(rgb, cut(rgb, guide, role))[None]

    return answer


def _removal(inpaint: Inpaint) -> Answer:
    def answer(example: Example) -> Tensor:
        rgb, guide, role = given(example)
        assert role is not None
        return _inpainted(inpaint, rgb, fidelity.removal_mask(guide, role))[None]

    return answer


def _both(cut: Cut) -> Answer:
    """A matte, and what it touches inpainted: a removal or a decomposition."""

    def answer(example: Example) -> Tensor:
        rgb, guide, role = given(example)
        alpha = cut(rgb, guide, role)
        touched = masks.dilate(alpha > masks.PRESENT, fidelity.SOFT_EDGE * min(alpha.shape))
        behind = _inpainted(classical.telea, rgb, touched)
        return torch.stack([behind] if len(example.targets) == 1 else [behind, with_color(rgb, alpha)])

    return answer


def _inpainted(inpaint: Inpaint, rgb: Tensor, hole: Tensor) -> Tensor:
    """(4, H, W). Nothing can be continued into a hole that is everywhere: it gets the mean colour."""
    return rgba.opaque(classical.mean_color(rgb, hole) if bool(hole.all()) else inpaint(rgb, hole))


def _unchanged(example: Example) -> Tensor:
    """The given picture, and no layer before it."""
    first = example.inputs[0]
    return torch.stack([first, *[torch.zeros_like(first)] * (len(example.targets) - 1)])


def _blank(example: Example) -> Tensor:
    """Foregrounds of which nothing is seen, and mid-grey scenes."""
    layers = torch.full((len(example.targets), 4, *example.size), GREY)
    for layer, role in zip(layers, example.targets, strict=True):
        layer[3] = float(role is not Role.FOREGROUND)
    return layers


# ---- the table ------------------------------------------------------------------------------------------------------


def _method(name: str, answer: Answer, tasks: Iterable[str], given: str, package: str = "") -> Method:
    def make(examples: Sequence[Example], seeds: Sequence[int]) -> list[Tensor]:
        return [answer(example).float().cpu() for example in examples]

    try:
        identity = f"{name} {version(package) if package else ''}"
    except PackageNotFoundError:
        identity = f"{name} "
    return Method(name, make, frozenset(tasks).__contains__, identity=identity, given=given)


def _tasks(*categories: str) -> list[str]:
    return [name for name, row in TASKS.items() if row.category in categories]


def _rows(stem: str, *roles: Role | str) -> list[str]:
    """Names of tasks: those of these maps, and "auto"."""
    return [f"{stem}_{role}" for role in roles]


CV, PM = "opencv-python-headless", "pymatting"
MARKS = (Role.TRIMAP, Role.PRECISE, Role.ROUGH)
TRIMAP = _rows("matting", Role.TRIMAP)
COLOUR = "colours by pymatting's estimate_foreground_ml"
BORDER = f"without a map: that {classical.FRAME:.0%} of each side is background"
BOTH = f"what its matte touches, {fidelity.SOFT_EDGE:.1%} wider, is filled by Telea"
ALL = "fills all that the map touches"

# By the name that `--peer` takes. given: what it is given besides the example, and what is added to it.
BASELINES: dict[str, Method] = {
    "grabcut": _method("GrabCut", _matting(_grabcut), _rows("matting", "auto", *MARKS), f"{BORDER}; {COLOUR}", CV),
    "closed-form": _method("closed form", _matting(_by_trimap("cf")), TRIMAP, COLOUR, PM),
    "knn": _method("KNN matting", _matting(_by_trimap("knn")), TRIMAP, COLOUR, PM),
    "lbdm": _method("learning-based matting", _matting(_by_trimap("lbdm")), TRIMAP, COLOUR, PM),
    "lkm": _method("large kernels", _matting(_by_trimap("lkm")), TRIMAP, COLOUR, PM),
    "map": _method("the map itself", _matting(_map_itself), _rows("matting", *MAPS), COLOUR, PM),
    "opaque": _method("opaque", _matting(_opaque), _tasks("matting"), "nothing"),
    "telea": _method("Telea", _removal(classical.telea), _rows("removal", *MAPS), ALL, CV),
    "navier-stokes": _method("Navier-Stokes", _removal(classical.navier_stokes), _rows("removal", *MAPS), ALL, CV),
    "mean-colour": _method("mean colour around", _removal(classical.mean_color), _rows("removal", *MAPS), ALL),
    "grabcut-telea": _method(
        "GrabCut, Telea", _both(_grabcut), ["removal_auto", *_rows("decompose", "auto", *MARKS)],
        f"{BORDER}; {BOTH}; {COLOUR}", CV,
    ),
    "closed-form-telea": _method(
        "closed form, Telea", _both(_by_trimap("cf")), _rows("decompose", Role.TRIMAP), f"{BOTH}; {COLOUR}", PM
    ),
    "map-telea": _method(
        "the map itself, Telea", _both(_map_itself), _rows("decompose", Role.ALPHA), f"{BOTH}; {COLOUR}", PM
    ),
    "unchanged": _method(
        "input unchanged", _unchanged, [*_tasks("removal", "decomposition"), "background_to_full"], "nothing"
    ),
    "blank": _method("blank", _blank, TASKS, "nothing"),
}  # fmt: skip


# ---- finders --------------------------------------------------------------------------------------------------------

OWN_FINDER = "its finder alone"  # what the suite calls the one in a model's folder
FINDER = "onnx:"  # before a path, where `--peer` takes the name of a baseline


def finder(path: str | Path, name: str = "") -> Method:
    """What a finder (`models.finder`) finds by itself: a salient-object ONNX file, or a folder of a model's own.

    name: its file's if left out. InputError for what is no finder, or needs a package.
    """
    from omnialpha.models.finder import open_finder

    found, place = open_finder(path), Path(path).expanduser()

    def cut(rgb: Tensor, guide: Tensor, role: Role | None) -> Tensor:
        alpha = found.find(rgba.opaque(rgb)[None])
        return F.interpolate(alpha[None], guide.shape, mode="bilinear", antialias=True, align_corners=False)[0, 0]

    made = _method(name or place.stem, _matting(cut), _rows("matting", "auto"), COLOUR, "onnxruntime")
    identity = sha256("\n".join(digests(place)))[:16]
    return replace(made, identity=f"{made.identity} {identity}")
