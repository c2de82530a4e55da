"""Where in a picture lies what an instruction names: a small network that a finder is told by."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnialpha import rgba
from omnialpha.models.network_files import read_network, write_network

POINTER = "pointer"  # the folder of a finder's pointer in its own
SIDE, CELLS = 96, 12  # pixels of what it sees, each way; cells of what it answers


class ModulatedBlock(nn.Module):
    """Two convolutions, the scale and shift between them by a text [FiLM, arXiv 1709.07871], added to what came in."""

    def __init__(self, width: int, text_dim: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.norm, self.modulation = nn.GroupNorm(8, width), nn.Linear(text_dim, 2 * width)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """x (B, C, h, w), text (B, D) -> (B, C, h, w)."""
        scale, shift = self.modulation(text)[:, :, None, None].chunk(2, dim=1)
        return x + self.second(F.gelu(self.norm(self.first(x)) * (1 + scale) + shift))


class Pointer(nn.Module):
    """Pictures and what `TextEncoder.summary` makes of instructions -> where it is."""

    def __init__(self, text_dim: int, width: int = 40, blocks: int = 4) -> None:
        super().__init__()
        self.config = {"text_dim": text_dim, "width": width, "blocks": blocks}
        widths = (5, 24, 32, width)  # colours, row and column
        stem: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            stem += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GELU(), nn.GroupNorm(8, after)]
        self.stem = nn.Sequential(*stem[:-2])
        self.blocks = nn.ModuleList(ModulatedBlock(width, text_dim) for _ in range(blocks))
        self.out = nn.Conv2d(width, 1, 1)

    def forward(self, pictures: Tensor, text: Tensor) -> Tensor:
        """Straight RGBA (B, 4, H, W) in [0, 1], stretched to a square, and text (B, D) -> logits (B, CELLS, CELLS)."""
        rgb = F.interpolate(rgba.flatten(pictures), size=(SIDE, SIDE), mode="bilinear", antialias=True)
        line = torch.linspace(-1, 1, SIDE, device=rgb.device).expand(len(rgb), 1, SIDE, SIDE)
        seen = torch.cat([rgb * 2 - 1, line.transpose(2, 3), line], dim=1)
        x = self.stem(seen.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            x = block(x, text)
        return self.out(x)[:, 0]

    def save(self, folder: Path, dtype: torch.dtype = torch.float16) -> None:
        """Weights and sizes, as `load` reads them."""
        write_network(folder, {"class": type(self).__name__, **self.config}, self.state_dict(), dtype)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote. Raises InputError where it is damaged."""
        return read_network(folder, POINTER, lambda config: cls(config["text_dim"], config["width"], config["blocks"]))
