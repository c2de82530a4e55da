"""How predictions for a task are scored, a row for each kind of task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from omnialpha import rgba
from omnialpha.errors import InputError
from omnialpha.evaluation.metrics import crello, image, matting
from omnialpha.evaluation.metrics.clip import Clip
from omnialpha.evaluation.metrics.features import Features, digest_of_weights
from omnialpha.evaluation.metrics.lpips import LPIPS
from omnialpha.evaluation.reports.report import Column
from omnialpha.tasks import MAPS, Example, Role

Figures = dict[str, float]
UNKNOWN = "unknown_"  # before the name of a figure: of the grey band of a trimap alone
FG, BG = Role.FOREGROUND, Role.BACKGROUND

SAD, MSE = Column("sad", "SAD", 3, "lower"), Column("mse", "MSE", 4, "lower")
MAD, CONN = Column("mad", "MAD", 4, "lower"), Column("conn", "CONN", 3, "lower")
GRAD, GRAD_AIM = Column("grad", "GRAD", 3, "lower"), Column("grad_aim", "GRAD (aim)", 3, "lower")
PSNR, SSIM = Column("psnr", "PSNR (dB)", 2, "higher"), Column("ssim", "SSIM", 4, "higher")
LPIPS_COLUMN, CLIP_SCORE = Column("lpips", "LPIPS", 4, "lower"), Column("clip_score", "CLIP score", 4, "higher")
FID, KID = Column("fid", "FID", 3, "lower"), Column("kid", "KID", 5, "lower")
CLIP_FID = Column("clip_fid", "CLIP-FID", 3, "lower")
SETS: Mapping[str, tuple[str, Callable[[Tensor, Tensor], float]]] = {  # column -> whose features, and their distance
    "fid": ("features", image.frechet),
    "kid": ("features", image.kid),
    "clip_fid": ("clip", image.frechet),
}


@dataclass(frozen=True)
class Networks:
    """Networks that some figures need, each with weights of the user's: `lpips` for LPIPS, `features` for FID and KID,
    `clip` for the CLIP score and CLIP-FID.
    """

    lpips: LPIPS | None = None
    features: Features | None = None
    clip: Clip | None = None

    def identity(self) -> dict[str, Any]:
        """The same for the same figures."""
        return {
            "lpips": digest_of_weights(self.lpips) if self.lpips else None,
            "features": self.features.identity if self.features else None,
            "clip": self.clip.identity if self.clip else None,
        }

    def lacking(self) -> dict[str, str]:
        """Figures that cannot be had -> why."""
        needs = {
            ("lpips", "background_lpips"): (
                self.lpips,
                "no backbone: give the weights of VGG16 or AlexNet (--lpips FILE)",
            ),
            ("fid", "kid"): (self.features, "no features: give a TorchScript file or package.module:function (--fid)"),
            ("clip_fid", "clip_score"): (self.clip, "no CLIP: give its folder (--clip FOLDER)"),
        }
        made = {name: why for names, (network, why) in needs.items() if network is None for name in names}
        try:
            matting.opencv()
        except InputError as error:
            made |= dict.fromkeys(("grad", "grad_aim", "conn"), str(error))
        return made


@dataclass(frozen=True)
class Scoring:
    """How predictions for a task are scored.

    Args:
        name: the same for the same figures.
        figures: of a picture, those that tables show; the first one ranks pictures.
        score: (example with its truths, prediction (m, 4, H, W), networks) -> these and more, as far as the networks
            allow.
        sets: figures of all pictures, by the features of what `seen` shows.
        seen: (example, prediction) -> prediction and truth as (K, 3, H, W) each, None where nothing is comparable.
        ways: names of the K ways to see them, where tables show each.
        mattes: whether a prediction may be a grey matte.
        region, seed, notes: for the report. absent: why a figure that needs no network is missing.
    """

    name: str
    figures: tuple[Column, ...]
    score: Callable[[Example, Tensor, Networks], Figures]
    sets: tuple[Column, ...] = ()
    seen: Callable[[Example, Tensor], tuple[Tensor, Tensor] | None] = lambda example, made: None
    ways: tuple[str, ...] = ()
    mattes: bool = False
    region: str = ""
    seed: str = ""
    notes: tuple[str, ...] = ()
    absent: str = "no sample has what it is measured against"

    @property
    def columns(self) -> tuple[Column, ...]:
        return (*self.figures, *self.sets)

    @torch.inference_mode()
    def features(self, example: Example, made: Tensor, networks: Networks) -> dict[str, Tensor]:
        """By whose they are: (K, 2, D), of the answer and of the truth."""
        pair = self.seen(example, made) if self.sets else None
        if pair is None:
            return {}
        asked = {"features": networks.features, "clip": networks.clip.features if networks.clip else None}
        both = torch.cat(pair)
        return {name: torch.stack(f(both).chunk(2), dim=1) for name, f in asked.items() if f is not None}


def layer(example: Example, made: Tensor, role: Role) -> Tensor:
    """Of an answer (m, 4, H, W), the first layer of that role."""
    return made[example.targets.index(role)]


# ---- matting --------------------------------------------------------------------------------------------------------


def score_matting(example: Example, made: Tensor, networks: Networks) -> Figures:
    true = example.truth(FG)
    assert true is not None, "matting is measured against a true foreground"
    alpha, trimap = layer(example, made, FG)[3], example.trimap
    grey = trimap is not None and bool(matting.is_unknown(trimap).any())
    names = [name for name in matting.ALL if name not in networks.lacking()]
    figures: Figures = {}
    for region, prefix in (("whole", ""), ("unknown", UNKNOWN))[: 1 + grey]:
        values = matting.measure(alpha, true[3], trimap, region, names)
        figures |= {prefix + name: float(value) for name, value in values.items()}
    return figures


# ---- removal --------------------------------------------------------------------------------------------------------


def score_removal(example: Example, made: Tensor, networks: Networks) -> Figures:
    pair = see_background(example, made)
    assert pair is not None, "removal is measured against a true background"
    figures = {name: float(value) for name, value in similarity(*pair, networks).items()}
    mask = next((p[0] for r, p in zip(example.roles, example.inputs, strict=True) if r in MAPS), None)
    if mask is not None and bool((mask > 0.5).any()):
        figures["hole_psnr"] = float(image.psnr(*pair, (mask > 0.5)[None]))
    return figures


def see_background(example: Example, made: Tensor) -> tuple[Tensor, Tensor] | None:
    true = example.truth(BG)
    return None if true is None else (rgba.flatten(layer(example, made, BG))[None], rgba.flatten(true)[None])


def similarity(predicted: Tensor, true: Tensor, networks: Networks) -> dict[str, Tensor]:
    """PSNR, SSIM and, with its network, LPIPS of RGB pictures (B, 3, H, W) in [0, 1]: (B,) each."""
    figures = {"psnr": image.psnr(predicted, true), "ssim": image.ssim(predicted, true)}
    if networks.lpips:
        device = networks.lpips.shift.device
        figures["lpips"] = networks.lpips((2 * predicted - 1).to(device), (2 * true - 1).to(device)).cpu()
    return figures


# ---- decomposition --------------------------------------------------------------------------------------------------


def score_decomposition(example: Example, made: Tensor, networks: Networks) -> Figures:
    """Layers as `crello` compares them; the background by itself."""
    composite = example.given(Role.COMPOSITE)
    true = [layer for layer in example.truths if layer is not None]
    assert composite is not None and len(true) == len(example.truths), "decomposition is measured against true layers"
    figures = crello.measure(made, true) | {"recomposed_psnr": crello.recomposition(made, composite)}
    pair = see_background(example, made)
    assert pair is not None
    return figures | {f"background_{name}": float(value) for name, value in similarity(*pair, networks).items()}


# ---- generation -----------------------------------------------------------------------------------------------------


def score_generation(example: Example, made: Tensor, networks: Networks) -> Figures:
    """CLIP score, the mean over nine backgrounds; of a flat picture they are all the same."""
    if networks.clip is None or not example.prompt:
        return {}
    whole = rgba.recompose(list(made))
    seen = image.composites(whole) if bool((made[:, 3] < 1).any()) else rgba.flatten(whole)[None]
    return {"clip_score": float(networks.clip.score(seen, [example.prompt] * len(seen)).mean())}


def see_generated(example: Example, made: Tensor) -> tuple[Tensor, Tensor] | None:
    true = example.truths[0]
    return None if true is None else (image.composites(made[0]), image.composites(true))


SCORINGS: dict[str, Scoring] = {
    "matting": Scoring("matting", (SAD, MSE, MAD, GRAD, GRAD_AIM, CONN), score_matting, mattes=True),
    "removal": Scoring(
        "removal", (PSNR, SSIM, LPIPS_COLUMN, Column("hole_psnr", "PSNR in the mask (dB)", 2, "higher")),
        score_removal, (FID, KID, CLIP_FID), see_background,
    ),
    "decomposition": Scoring(
        "decomposition", (
            Column("rgb_l1_0", "RGB L1", 4, "lower"), Column("alpha_iou_0", "alpha soft IoU", 4, "higher"),
            Column("rgb_l1_5", "RGB L1, 5 merges", 4, "lower"), Column("alpha_iou_5", "IoU, 5 merges", 4, "higher"),
            Column("recomposed_psnr", "PSNR recomposed (dB)", 2, "higher"),
            Column("background_psnr", "PSNR of the background (dB)", 2, "higher"),
            Column("background_ssim", "SSIM of the background", 4, "higher"),
            Column("background_lpips", "LPIPS of the background", 4, "lower"),
        ),
        score_decomposition,
    ),
    "generation": Scoring("generation", (CLIP_SCORE,), score_generation, (FID, KID, CLIP_FID), see_generated),
    "completion": Scoring("completion", (CLIP_SCORE,), score_generation),
}  # fmt: skip


def of_sets(pairs: Sequence[Mapping[str, Tensor]], kind: Scoring) -> dict[str, float | None]:
    """FID and its kin of many pictures' features (K, 2, D): the mean over the K ways to see them, and NAME_WAY of each
    that the kind names. None for fewer than two pictures, which are no distribution.
    """
    made: dict[str, float | None] = {}
    for column in kind.sets:
        whose, distance = SETS[column.key]
        features = [pair[whose] for pair in pairs if whose in pair]
        each: list[float] = []
        if len(features) > 1:
            stacked = torch.stack(features)  # (N, K, 2, D)
            each = [distance(stacked[:, k, 0], stacked[:, k, 1]) for k in range(stacked.shape[1])]
        made[column.key] = sum(each) / len(each) if each else None
        made |= {f"{column.key}_{way}": each[k] if each else None for k, way in enumerate(kind.ways)}
    return made
