"""[kind = "finder"] Fine-tuning the finder: hints and true alpha of composed scenes, and photographs with its own
first answer as their truth, so that it does not forget them.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from omnialpha import rgba
from omnialpha.data.records import hints
from omnialpha.data.synthetic.bank import Bank
from omnialpha.data.synthetic.scenes import compose
from omnialpha.errors import InputError
from omnialpha.models.u2net import SIDE, U2NetP, stretched
from omnialpha.training.objective import FitSettings, Objective
from omnialpha.training.sources import DataSettings, load_banks

SEED = 1  # of what is validated, whatever the recipe's


@dataclass(frozen=True)
class FinderLoss:
    """Weights. alpha: L1. edge: L1 of its first differences. composition: L1 of the composite that it would give with
    the true colours. logistic: cross entropy of the fused map and of every scale [arXiv 2005.09007, eq. 1].
    """

    alpha: float = 1.0
    edge: float = 1.0
    composition: float = 1.0
    logistic: float = 0.3

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The sum of terms, of these names, by their weights."""
        return torch.stack([getattr(self, name) * term for name, term in terms.items()]).sum()


class FinderBatch(NamedTuple):
    """pictures (B, 4, H, W), hints (B, H, W), alpha (B, H, W), contrast (B, H, W): |foreground - background|, mean over
    colours, 0 where the layers are not known. kinds: of the hints.
    """

    pictures: Tensor
    hints: Tensor
    alpha: Tensor
    contrast: Tensor
    kinds: list[str]


class FinderObjective(Objective):
    """What is trained is `net`; it begins as its own teacher."""

    def __init__(
        self,
        net: U2NetP,
        bank: Bank,
        held_out: Bank,
        loss: FinderLoss,
        batch: int,
        photographs: int,
        side: int,
        seed: int,
    ) -> None:
        """photographs: of the backgrounds of each bank the first so many are. A quarter of a batch are photographs, a
        quarter scenes of two objects, the rest of one.
        """
        super().__init__()
        self.net, self.settings, self.batch, self.seed = net.requires_grad_(False), loss, batch, seed
        net.told.requires_grad_(True)
        self.side = side
        self.bank, self.held_out, self.photographs = bank, held_out, photographs
        self._teacher = (copy.deepcopy(net).eval().requires_grad_(False),)  # not a submodule: neither trained nor kept

    def forward(self, index: int, batch: Any = None) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        quarter = self.batch // 4
        photographs = quarter if self.photographs else 0
        parts = [
            self.scenes(self.bank, self.batch - photographs - quarter, 1, generator),
            self.scenes(self.bank, quarter, 2, generator),
            *([self.taught(self.bank, quarter, generator)] if photographs else []),
        ]
        pictures, marked, alpha, contrast = (torch.cat(maps) for maps in list(zip(*parts, strict=True))[:4])
        return self.losses(FinderBatch(pictures, marked, alpha, contrast, [k for part in parts for k in part.kinds]))

    def losses(self, drawn: FinderBatch) -> dict[str, Tensor]:
        seen = self.net.read(drawn.pictures, drawn.hints, self.side)
        logits = self.net(seen.contiguous(memory_format=torch.channels_last)).float()
        off = (logits[:, 0].sigmoid() - drawn.alpha).abs()
        terms = {**matte_losses(logits, drawn.alpha), "composition": (off * drawn.contrast).mean()}
        return {"loss": self.settings.total(terms), **terms}

    def scenes(self, bank: Bank, count: int, objects: int, generator: torch.Generator) -> FinderBatch:
        """Composed scenes. With a hint, the object that it marks is the subject, without one all of them are."""
        rows, kinds = [], []
        for scene in compose(bank, count, objects, (self.side, self.side), generator, apart=objects > 1):
            assert scene.background is not None and scene.composite is not None
            asked = int(torch.randint(objects, (1,), generator=generator))
            kind, hint = hints.draw_hint(scene.layers[asked, 3], generator)
            marked = bool(hint.any())
            front = scene.layers[asked] if marked else rgba.recompose(list(scene.layers))
            others = [scene.layers[k] for k in range(objects) if marked and k != asked]
            behind = rgba.recompose([scene.background, *others])
            contrast = (front[:3] - behind[:3]).abs().mean(0)
            maps = torch.cat([scene.composite, torch.stack([front[3], contrast, hint])])
            rows.append(cut(maps, generator))
            kinds.append(kind)
        made = torch.stack(rows)
        return FinderBatch(as_taken(made[:, :4], generator), made[:, 6], made[:, 4], made[:, 5], kinds)

    def taught(self, bank: Bank, count: int, generator: torch.Generator) -> FinderBatch:
        """Photographs with the teacher's answer, and hints drawn from that."""
        first = slice(self.photographs)
        photos = replace(bank, backgrounds=bank.backgrounds[first], background_captions=bank.background_captions[first])
        scenes = compose(photos, count, 1, (self.side, self.side), generator)
        pictures = torch.stack([scene.background for scene in scenes if scene.background is not None])
        with torch.no_grad():
            logits = self._teacher[0](self._teacher[0].read(pictures, side=self.side))
            alpha = stretched(logits[:, 0].float().sigmoid())
        kinds, marked = zip(*(hints.draw_hint(a, generator) for a in alpha), strict=True)
        return FinderBatch(pictures, torch.stack(marked), alpha, torch.zeros_like(alpha), list(kinds))

    @torch.no_grad()
    def validate(self, folder: Path, step: int) -> dict[str, float]:
        """Alpha MAD on held-out scenes by kind of hint, and on held-out photographs against the teacher."""
        generator = torch.Generator().manual_seed(SEED)
        seen: dict[str, list[float]] = defaultdict(list)
        for _ in range(6):
            for drawn, name in (
                (self.scenes(self.held_out, 8, 1, generator), ""),
                (self.scenes(self.held_out, 4, 2, generator), "two/"),
                *([(self.taught(self.held_out, 4, generator), "photo/")] if self.photographs else []),
            ):
                found = self.net.find(drawn.pictures, drawn.hints)[:, None]
                made = F.interpolate(found, size=drawn.alpha.shape[1:], mode="bilinear")[:, 0]
                for kind, off in zip(drawn.kinds, (made - drawn.alpha).abs().mean((1, 2)).tolist(), strict=True):
                    seen[f"mad/{name}{kind}"].append(off)
        return {name: sum(values) / len(values) for name, values in sorted(seen.items())}

    def export(self, folder: Path) -> None:
        self.net.save(folder)


def matte_losses(logits: Tensor, true: Tensor) -> dict[str, Tensor]:
    """Terms of `FinderLoss` that need no more than alpha: of logits (B, C, H, W), the fused ones first, and alpha
    (B, H, W).
    """
    made = logits[:, 0].sigmoid()
    steps = [(made.diff(dim=d) - true.diff(dim=d)).abs().mean() for d in (1, 2)]
    return {
        "alpha": (made - true).abs().mean(),
        "edge": steps[0] + steps[1],
        "logistic": F.binary_cross_entropy_with_logits(logits, true[:, None].expand_as(logits)),
    }


def cut(maps: Tensor, generator: torch.Generator) -> Tensor:
    """Every other time a window of (C, H, W), scaled up again: real subjects are often cut by the picture's edge."""
    draws = torch.rand(4, generator=generator).tolist()
    if draws[0] < 0.5:
        return maps
    height, width = maps.shape[1:]
    share = 0.55 + 0.4 * draws[1]
    rows, columns = round(share * height), round(share * width)
    top, left = round(draws[2] * (height - rows)), round(draws[3] * (width - columns))
    window = maps[None, :, top : top + rows, left : left + columns]
    return F.interpolate(window, size=(height, width), mode="bilinear", align_corners=False)[0]


def as_taken(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Composites (B, 4, H, W) with what a camera adds: another exposure, blur, noise."""
    rgb, count = pictures[:, :3], len(pictures)
    draws = torch.rand(count, 3, 1, 1, 1, generator=generator)
    blurred = F.avg_pool2d(rgb, 3, 1, 1, count_include_pad=False)
    rgb = torch.lerp(rgb, blurred, draws[:, 0])
    noise = torch.randn(rgb.shape, generator=generator) * 0.04 * draws[:, 1].square()
    rgb = (rgb.clamp_min(1e-4) ** (0.7 + 0.6 * draws[:, 2]) + noise).clamp(0, 1)
    return rgba.opaque(rgb)


@dataclass(frozen=True)
class FinderRecipe:
    """start: a folder of the finder that is fine-tuned, such as recipes/u2netp.py writes."""

    kind: str
    fit: FitSettings
    start: str
    data: DataSettings = DataSettings()
    loss: FinderLoss = FinderLoss()
    batch: int = 8
    side: int = SIDE  # of the pictures: fewer pixels, more steps an hour

    def objective(self) -> Objective:
        if self.batch < 4:
            raise InputError(f"batch={self.batch} is too small to hold scenes and photographs: use 4 or more.")
        bank, held_out = load_banks(self.data)
        drawn = self.data.backgrounds if self.data.foregrounds else 0
        photographs = len(bank.background_captions) - drawn if self.data.folders else 0
        how = (self.loss, self.batch, photographs, self.side, self.fit.seed)
        return FinderObjective(U2NetP.load(Path(self.start)), bank, held_out, *how)
