"""A stand-in for a network that finds subjects, which answers its picture's red channel at 16 px."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch.nn.functional as F
from torch import Tensor

SIDE = 16


class Red:
    """hints: whether it says that it makes use of them. asked: the hints that it was given."""

    pointer = expert = None

    def __init__(self, hints: bool = False) -> None:
        self.hints, self.asked = hints, list[Tensor | None]()

    def find(self, pictures: Tensor, hints: Tensor | None = None, mirror: bool = True) -> Tensor:
        self.asked.append(hints)
        return F.interpolate(pictures[:, :1], size=(SIDE, SIDE), mode="area")[:, 0]


def fake_finder(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In place of whatever `models.finder` opens; the paths that it was asked for."""
    opened: list[str] = []

    def open_finder(path: str | Path) -> Red:
        opened.append(str(path))
        return Red()

    module = ModuleType("omnialpha.models.finder")
    module.open_finder = open_finder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return opened
