"""Modulation ahead of time: it depends on t alone, and a schedule has few times.

A third of the released transformer's parameters (6.8 of 20.4 billion) compute nothing else. They wait in main memory
while a table of their results serves the run: exact but for the rounding of a matrix product over more rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from omnialpha.models.transformer.blocks import Modulation, MultiImageBlock

PARTS = ("img_mod", "txt_mod")
MOST_TIMES = 256  # a table of more is begun anew; 221 MB hold 50 times of the released transformer in bfloat16


class ModulationTable:
    """Takes the modulation modules out of the blocks, so that nothing moves, hooks or counts them; `restore` undoes it.

    The modules stay in main memory and visit the device one block at a time when new times are asked for.
    """

    def __init__(self, blocks: Sequence[MultiImageBlock]) -> None:
        self.modules: list[tuple[nn.Module, ...]] = []
        for block in blocks:
            self.modules.append(tuple(block._modules.pop(part).to("cpu") for part in PARTS))  # type: ignore[union-attr]
        self.forget()

    def forget(self) -> None:
        """Drop the table: the weights behind it have changed."""
        self.index: dict[float, int] = {}
        self.values: list[Modulation] = []

    def restore(self, blocks: Sequence[MultiImageBlock], device: torch.device) -> None:
        """Give the blocks their modules back."""
        for block, modules in zip(blocks, self.modules, strict=True):
            for part, module in zip(PARTS, modules, strict=True):
                setattr(block, part, module.to(device))

    def at(self, times: list[float], embed: Callable[[Tensor], Tensor]) -> list[Modulation]:
        """Every block's (B, 6 D) for image and for text at B times, computed where new. embed: (N,) -> (N, D)."""
        if missing := sorted(set(times) - self.index.keys()):
            self._add(missing, embed)
        rows = torch.tensor([self.index[time] for time in times], device=self.values[0][0].device)
        return [(image[rows], text[rows]) for image, text in self.values]

    @torch.no_grad()
    def _add(self, times: list[float], embed: Callable[[Tensor], Tensor]) -> None:
        if len(self.index) + len(times) > MOST_TIMES:
            self.forget()
        embedded = embed(torch.tensor(times))
        for number, modules in enumerate(self.modules):
            image, text = (_visit(module, embedded) for module in modules)
            if self.index:
                image, text = torch.cat((self.values[number][0], image)), torch.cat((self.values[number][1], text))
            self.values[number : number + 1] = [(image, text)]
        self.index |= {time: len(self.index) + row for row, time in enumerate(times)}


def _visit(module: nn.Module, embedded: Tensor) -> Tensor:
    """Run a module in main memory on the device of its input; its weights are copied, not moved."""
    weights = {name: weight.to(embedded.device) for name, weight in module.named_parameters()}
    return torch.func.functional_call(module, weights, (embedded,))
