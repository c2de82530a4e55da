"""[kind = "pointer"] A finder learns where to look for what an instruction names, by an instruction encoder that stays
as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from omnialpha.data.synthetic.bank import Bank
from omnialpha.models.pointer import Pointer
from omnialpha.models.text_encoder.encoder import TextEncoder
from omnialpha.models.text_encoder.tiny import SHORT
from omnialpha.models.u2net import U2NetP
from omnialpha.training.grounding import SEED, misses, named_scenes
from omnialpha.training.objective import FitSettings, Objective
from omnialpha.training.sources import DataSettings, load_banks

ABSENT = 4  # one in so many pictures is asked for what another one shows, so that the map is empty


class PointerObjective(Objective):
    """Trains `pointer` on scenes of two objects, one of which is named; cross entropy of the map of where it lies."""

    def __init__(
        self,
        pointer: Pointer,
        finder: U2NetP,
        text_encoder: TextEncoder,
        bank: Bank,
        held_out: Bank,
        batch: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.pointer, self.bank, self.held_out, self.batch, self.seed = pointer, bank, held_out, batch, seed
        # in tuples they are no submodules: neither trained nor kept
        self._finder = (finder.requires_grad_(False),)
        self._text_encoder = (text_encoder.requires_grad_(False).eval(),)

    def forward(self, index: int, batch: Any = None) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        logits, maps = self.places(self.bank, generator, self.batch // ABSENT)
        return {"loss": F.binary_cross_entropy_with_logits(logits.float(), maps[:, 0])}

    def places(self, bank: Bank, generator: torch.Generator, absent: int = 0) -> tuple[Tensor, Tensor]:
        """Logits (B, CELLS, CELLS), and the true maps (B, 2, CELLS, CELLS) of both objects, the named one first. The
        first `absent` pictures are asked for what the next one shows, and their first map is empty.
        """
        words, pictures, maps = named_scenes(bank, self.batch, generator)
        maps[:absent, 0] = 0
        with torch.no_grad():
            text = self._text_encoder[0].summary([*words[1 : 1 + absent], *words[absent:]])
        device = self.pointer.out.weight.device
        return self.pointer(pictures.to(device), text.to(device)), maps.to(device)

    @torch.no_grad()
    def validate(self, folder: Path, step: int) -> dict[str, float]:
        """Of held-out scenes. missed: share in which the map lies on the other object. sure, sure_of_absent: greatest
        value of the map, of what is there and of what is not; means.
        """
        generator = torch.Generator().manual_seed(SEED)
        missed, sure, absent = [], [], []
        for _ in range(8):
            logits, maps = self.places(self.held_out, generator)
            missed.append(misses(logits, maps))
            sure.append(_greatest(logits))
            absent.append(_greatest(self.places(self.held_out, generator, self.batch - 1)[0][:-1]))
        figures = {"missed": missed, "sure": sure, "sure_of_absent": absent}
        return {name: sum(values) / len(values) for name, values in figures.items()}

    def export(self, folder: Path) -> None:
        finder = self._finder[0]
        finder.pointer = self.pointer
        finder.save(folder)


def _greatest(logits: Tensor) -> float:
    return float(logits.float().sigmoid().amax((1, 2)).mean())


@dataclass(frozen=True)
class PointerRecipe:
    """start: a finder's folder. text_encoder: a folder, such as `training.grounding` leaves. width, blocks: of the
    pointer. batch: pictures.
    """

    kind: str
    fit: FitSettings
    start: str
    text_encoder: str
    data: DataSettings = DataSettings()
    batch: int = 64
    width: int = 40
    blocks: int = 4

    def objective(self) -> PointerObjective:
        bank, held_out = load_banks(self.data)
        finder, reader = U2NetP.load(Path(self.start)), TextEncoder.from_pretrained(self.text_encoder, template=SHORT)
        torch.manual_seed(self.fit.seed)
        pointer = Pointer(reader.model.config.text_config.hidden_size, self.width, self.blocks)
        return PointerObjective(pointer, finder, reader, bank, held_out, self.batch, self.fit.seed)
