"""What a model is measured beside: classical methods and baselines behind the interface of a `Method`.

Each answers in the task's layers (m, 4, H, W) at the size that came in, and says what it is given beside the example.
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
from omnialpha.evaluation.methods.classical import (
    FRAME,
    grabcut_rectangle,
    grabcut_trimap,
    mean_colour,
    navier_stokes,
    solve,
    telea,
)
from omnialpha.evaluation.methods.method import Method, digests
from omnialpha.files import sha256
from omnialpha.refine import foreground
from omnialpha.tasks import MAPS, TASKS, Example, Role

GREY = 0.5  # of an empty scene


def best_constant(true: Tensor, power: int = 1, where: Tensor | None = None) -> float:
    """The one alpha that minimises mean |true - c|^power: the median (power 1: SAD, MAD) or the mean (power 2: MSE).

    No baseline, as it needs the truth."""
    if power not in (1, 2):
        raise InputError(f"power={power} has no closed form here: use 1 (SAD, MAD) or 2 (MSE).")
    values = (true if where is None else true[where]).double().flatten()
    if not len(values):
        raise InputError("0 pixels are counted, so no constant is best: pass a map that is not empty.")
    return float(values.median() if power == 1 else values.mean())


# ---- from examples to layers ----------------------------------------------------------------------------------------

Cut = Callable[[Tensor, Tensor | None, Role | None], Tensor]  # rgb, the map and which it is -> alpha (H, W)
Fill = Callable[[Tensor, Tensor], Tensor]  # rgb and a hole (H, W) bool -> rgb


def given(example: Example) -> tuple[Tensor, Tensor | None, Role | None]:
    """rgb (3, H, W) of an example's composite, on white where it is see-through, with its map (H, W) and which."""
    pictures = dict(zip(example.roles, example.inputs, strict=True))
    role = next((r for r in example.roles if r in MAPS), None)
    return rgba.flatten(pictures[Role.COMPOSITE]), None if role is None else pictures[role][0], role


def with_colour(rgb: Tensor, alpha: Tensor) -> Tensor:
    """(4, H, W): an alpha with the subject's colours, which pymatting's multi-level estimate (Germer et al. 2020) frees
    of the background's. So those that make only an alpha can be compared as layers.
    """
    return torch.cat([foreground(rgb, alpha), alpha[None]])


def solid(rgb: Tensor) -> Tensor:
    return torch.cat([rgb, torch.ones_like(rgb[:1])])


def _grabcut(rgb: Tensor, guide: Tensor | None, role: Role | None) -> Tensor:
    if guide is None:
        return grabcut_rectangle(rgb)
    if role is Role.PRECISE:  # sure inside, and unknown as far as `fidelity` lets such a subject reach
        guide = (guide.float() + fidelity.removal_mask(guide, role).float()) / 2
    elif role is Role.ROUGH:
        guide = guide / 2
    return grabcut_trimap(rgb, guide)


def _by_trimap(kind: str) -> Cut:
    def cut(rgb: Tensor, guide: Tensor | None, role: Role | None) -> Tensor:
        assert guide is not None
        return solve(kind, rgb, guide)

    return cut


def _map_itself(rgb: Tensor, guide: Tensor | None, role: Role | None) -> Tensor:
    assert guide is not None
    return guide


def _opaque(rgb: Tensor, guide: Tensor | None, role: Role | None) -> Tensor:
    return torch.ones_like(rgb[0])


def _matting(cut: Cut) -> Callable[[Example], Tensor]:
    def make_one(example: Example) -> Tensor:
        rgb, guide, role = given(example)
        return with_colour(rgb, cut(rgb, guide, role))[None]

    return make_one


def _removal(fill: Fill) -> Callable[[Example], Tensor]:
    def make_one(example: Example) -> Tensor:
        rgb, guide, role = given(example)
        assert guide is not None
        return solid(_filled(fill, rgb, fidelity.removal_mask(guide, role)))[None]

    return make_one


def _both(cut: Cut, fill: Fill = telea) -> Callable[[Example], Tensor]:
    """A matte, and what it touches filled: a removal or a decomposition."""

    def make_one(example: Example) -> Tensor:
        rgb, guide, role = given(example)
        alpha = cut(rgb, guide, role)
        touched = masks.dilate(alpha > masks.PRESENT, fidelity.SOFT_EDGE * min(alpha.shape))
        behind = solid(_filled(fill, rgb, touched))
        return torch.stack([behind] if len(example.targets) == 1 else [behind, with_colour(rgb, alpha)])

    return make_one


def _filled(fill: Fill, rgb: Tensor, hole: Tensor) -> Tensor:
    """Nothing can be continued into a hole that is everywhere: it gets the mean colour."""
    return mean_colour(rgb, hole) if bool(hole.all()) else fill(rgb, hole)


def _unchanged(example: Example) -> Tensor:
    """The given picture, and no layer before it."""
    first = example.inputs[0]
    return torch.stack([first, *[torch.zeros_like(first)] * (len(example.targets) - 1)])


def _blank(example: Example) -> Tensor:
    """Foregrounds of which nothing is seen, and mid-grey scenes."""
    height, width = example.size
    alphas = torch.tensor([float(role is not Role.FOREGROUND) for role in example.targets])
    return torch.cat(
        [torch.full((len(alphas), 3, height, width), GREY), alphas.view(-1, 1, 1, 1).expand(-1, 1, height, width)],
        dim=1,
    )


# ---- the table ------------------------------------------------------------------------------------------------------


def _method(
    name: str, make_one: Callable[[Example], Tensor], tasks: Iterable[str], given: str, package: str = ""
) -> Method:
    def make(examples: Sequence[Example], seeds: Sequence[int]) -> list[Tensor]:
        return [make_one(example).float().cpu() for example in examples]

    return Method(name, make, frozenset(tasks).__contains__, identity=f"{name} {_version(package)}", given=given)


def _version(package: str) -> str:
    try:
        return version(package) if package else ""
    except PackageNotFoundError:
        return ""


def _rows(category: str, *roles: Role | str) -> list[str]:
    """Names of a category's tasks: those of these maps, and "auto"."""
    stem = {"matting": "matting", "removal": "removal", "decomposition": "decompose"}[category]
    return [f"{stem}_{role}" for role in roles]


CV, PM = "opencv-python-headless", "pymatting"
MARKS = (Role.TRIMAP, Role.PRECISE, Role.ROUGH)
KINDS = {"closed-form": "cf", "knn": "knn", "lbdm": "lbdm", "lkm": "lkm"}
WORDS = {"closed-form": "closed form", "knn": "KNN matting", "lbdm": "learning-based matting", "lkm": "large kernels"}
COLOUR = "colours by pymatting's estimate_foreground_ml"
BORDER = f"without a map: that {FRAME:.0%} of each side is background"
BOTH = f"what its matte touches, {fidelity.SOFT_EDGE:.1%} wider, is filled by Telea"

# By the name that `--peer` takes. given: what it is given beside the example, and what is added to it.
BASELINES: dict[str, Method] = {
    "grabcut": _method("GrabCut", _matting(_grabcut), _rows("matting", "auto", *MARKS), f"{BORDER}; {COLOUR}", CV),
    **{
        key: _method(WORDS[key], _matting(_by_trimap(kind)), _rows("matting", Role.TRIMAP), COLOUR, PM)
        for key, kind in KINDS.items()
    },
    "map": _method("the map itself", _matting(_map_itself), _rows("matting", *MAPS), COLOUR, PM),
    "opaque": _method(
        "opaque", _matting(_opaque), [name for name, row in TASKS.items() if row.category == "matting"], "nothing"
    ),
    "telea": _method("Telea", _removal(telea), _rows("removal", *MAPS), "fills all that the map touches", CV),
    "navier-stokes": _method(
        "Navier-Stokes", _removal(navier_stokes), _rows("removal", *MAPS), "fills all that the map touches", CV
    ),
    "mean-colour": _method(
        "mean colour around", _removal(mean_colour), _rows("removal", *MAPS), "fills all that the map touches"
    ),
    "grabcut-telea": _method(
        "GrabCut, Telea",
        _both(_grabcut),
        ["removal_auto", *_rows("decomposition", "auto", *MARKS)],
        f"{BORDER}; {BOTH}; {COLOUR}",
        CV,
    ),
    "closed-form-telea": _method(
        "closed form, Telea", _both(_by_trimap("cf")), _rows("decomposition", Role.TRIMAP), f"{BOTH}; {COLOUR}", PM
    ),
    "map-telea": _method(
        "the map itself, Telea", _both(_map_itself), _rows("decomposition", Role.ALPHA), f"{BOTH}; {COLOUR}", PM
    ),
    "unchanged": _method(
        "input unchanged",
        _unchanged,
        [n for n, row in TASKS.items() if row.category in ("removal", "decomposition")] + ["background_to_full"],
        "nothing",
    ),
    "blank": _method("blank", _blank, TASKS, "nothing"),
}


# ---- finders --------------------------------------------------------------------------------------------------------

OWN_FINDER = "its finder alone"  # what the suite calls the one in a model's folder
FINDER = "onnx:"  # before a path, where `--peer` takes the name of a baseline


def finder(path: str | Path, name: str = "") -> Method:
    """What a finder (`models.finder`) finds by itself: a salient-object ONNX file, or a folder of a model's own.

    name: its file's if left out. InputError for what is no finder, or needs a package.
    """
    from omnialpha.models.finder import open_finder

    found, place = open_finder(path), Path(path).expanduser()

    def cut(rgb: Tensor, guide: Tensor | None, role: Role | None) -> Tensor:
        alpha = found.find(solid(rgb)[None])
        size = (int(rgb.shape[1]), int(rgb.shape[2]))
        return F.interpolate(alpha[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0, 0]

    made = _method(name or place.stem, _matting(cut), _rows("matting", "auto"), COLOUR, "onnxruntime")
    identity = sha256("\n".join(digests(place)))[:16]
    return replace(made, identity=f"{made.identity} {identity}")
