"""[kind = "finder-expert"] Fine-tuning what a finder has learnt from photographs for drawings, and a gate that says
which pictures are drawings, so that photographs stay the finder's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from omnialpha import rgba
from omnialpha.data.synthetic import bank as banks
from omnialpha.data.synthetic.bank import Bank
from omnialpha.data.synthetic.scenes import compose
from omnialpha.errors import InputError
from omnialpha.models.u2net import SURE, DrawingExpert, U2NetP
from omnialpha.training.finder import SEED, FinderLoss, as_taken, cut, matte_losses
from omnialpha.training.objective import FitSettings, Objective
from omnialpha.training.sources import DataSettings

SIZES = (96, 96, 128, 192)  # pixels of what is composed, a side, before the expert sees it at its own
TAKEN, GREY = 0.2, 0.1  # shares of batches that look as a camera takes them, and without colour


class ExpertObjective(Objective):
    """What is trained is `finder.expert`. Of a batch a fifth are photographs, for the gate alone, a fifth scenes of the
    folders' layers, for alpha alone, an eighth drawn scenes of two objects, the rest of one.
    """

    def __init__(
        self, finder: U2NetP, drawn: Bank, folders: Bank, held_out: tuple[Bank, Bank], loss: FinderLoss, batch: int,
        seed: int,
    ) -> None:  # fmt: skip
        """drawn, folders: banks; held_out: the same two of the test split."""
        super().__init__()
        assert finder.expert is not None
        self.net = finder.expert.requires_grad_(True)
        self._finder = (finder,)  # in a tuple it is no submodule: neither trained nor kept
        self.drawn, self.folders, self.held_out = drawn, folders, held_out
        self.settings, self.batch, self.seed = loss, batch, seed

    def forward(self, index: int, batch: Any = None) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        few, two = self.batch // 5, self.batch // 8
        parts = [
            self.scenes(self.drawn, self.batch - 2 * few - two, 1, generator),
            self.scenes(self.drawn, two, 2, generator),
            self.scenes(self.folders, few, 1, generator),
        ]
        photographs = self.photographs(self.folders, few, generator)
        x = torch.cat([*(pictures for pictures, _ in parts), photographs]).contiguous(memory_format=torch.channels_last)
        true = torch.cat([alpha for _, alpha in parts])
        seen = self.net.encode(x)
        logits = self.net.decode([y[: len(true)] for y in seen], x[: len(true)]).float()
        gate = self.net.judge(seen).float()
        drawings = len(true) - few
        told = torch.cat([gate[:drawings], gate[len(true) :]])
        is_drawing = (torch.arange(len(told), device=told.device) < drawings).float()
        terms = matte_losses(logits, true.to(logits.device))
        gate_loss = F.binary_cross_entropy_with_logits(told, is_drawing)
        return {"loss": self.settings.total(terms) + gate_loss, **terms, "gate": gate_loss}

    def scenes(
        self, bank: Bank, count: int, objects: int, generator: torch.Generator, plain: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Composed scenes as the expert reads them, and the alpha of all their objects, at its size. plain: none looks
        as a camera takes it, or grey.
        """
        size = SIZES[int(torch.randint(len(SIZES), (1,), generator=generator))]
        rows = []
        for scene in compose(bank, count, objects, (size, size), generator, apart=objects > 1):
            assert scene.composite is not None
            rows.append(cut(torch.cat([scene.composite, rgba.recompose(list(scene.layers))[3:]]), generator))
        made = torch.stack(rows)
        side = (self.net.side_length,) * 2
        alpha = F.interpolate(made[:, 4:], size=side, mode="bilinear", antialias=True)[:, 0]
        return self._read(made[:, :4], None if plain else generator), alpha

    def photographs(self, bank: Bank, count: int, generator: torch.Generator, plain: bool = False) -> Tensor:
        """Backgrounds as the expert reads them, see `scenes`."""
        size = SIZES[int(torch.randint(len(SIZES), (1,), generator=generator))]
        scenes = compose(bank, count, 1, (size, size), generator)
        pictures = [cut(scene.background, generator) for scene in scenes if scene.background is not None]
        return self._read(torch.stack(pictures), None if plain else generator)

    def _read(self, pictures: Tensor, generator: torch.Generator | None) -> Tensor:
        if generator is not None:
            taken, grey = (torch.rand(2, generator=generator) < torch.tensor([TAKEN, GREY])).tolist()
            pictures = as_taken(pictures, generator) if taken else pictures
            light = pictures[:, :3].mean(1, keepdim=True).expand(-1, 3, -1, -1)
            pictures = torch.cat([light, pictures[:, 3:]], dim=1) if grey else pictures
        return self.net.read(pictures).to(self.net.gate.weight.device)

    @torch.no_grad()
    def validate(self, folder: Path, step: int) -> dict[str, float]:
        """Of held-out pictures. mad/drawn, mad/folders: of alpha. drawings, photographs: share that the expert gets."""
        generator, mad = torch.Generator().manual_seed(SEED), dict[str, float]()
        gates: dict[str, list[Tensor]] = {"drawings": [], "photographs": []}
        drawn, folders = self.held_out
        for name, bank in (("drawn", drawn), ("folders", folders)):
            off = []
            for _ in range(8):
                x, alpha = self.scenes(bank, 8, 1, generator, plain=True)
                seen = self.net.encode(x)
                off.append((self.net.decode(seen, x)[:, 0].sigmoid().cpu() - alpha).abs().mean())
                if bank is drawn:
                    gates["drawings"].append(self.net.judge(seen))
                    photographs = self.photographs(folders, 8, generator, plain=True)
                    gates["photographs"].append(self.net.judge(self.net.encode(photographs)))
            mad[f"mad/{name}"] = float(torch.stack(off).mean())
        return mad | {name: float((torch.cat(g).sigmoid() > SURE).float().mean()) for name, g in gates.items()}

    def export(self, folder: Path) -> None:
        self._finder[0].save(folder)


@dataclass(frozen=True)
class ExpertRecipe:
    """start: a finder's folder; its expert goes on where it has one. data.folders: with the photographs that the gate
    learns to leave alone. loss: its composition counts for nothing here.
    """

    kind: str
    fit: FitSettings
    start: str
    data: DataSettings = DataSettings()
    loss: FinderLoss = FinderLoss()
    batch: int = 16

    def objective(self) -> ExpertObjective:
        data = self.data
        if self.batch < 8:
            raise InputError(f"batch={self.batch} is too small to hold all kinds of pictures: use 8 or more.")
        if not data.folders or not data.foregrounds:
            raise InputError("a gate is learnt from drawings and photographs: give data.foregrounds and data.folders.")
        finder = U2NetP.load(Path(self.start))
        if finder.expert is None:
            torch.manual_seed(self.fit.seed)
            finder.expert = DrawingExpert.of(finder)
        folders, unseen = (banks.join([banks.read(f, data.size, s) for f in data.folders]) for s in ("train", "test"))
        drawn = banks.procedural(data.foregrounds, data.backgrounds, data.size, data.seed)
        held_out = (banks.unseen(data.size), unseen)
        return ExpertObjective(finder, drawn, folders, held_out, self.loss, self.batch, self.fit.seed)
