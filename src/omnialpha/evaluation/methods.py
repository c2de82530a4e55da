"""What is measured on a benchmark: anything that makes pictures for examples, be it a model or a classical method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import Example

Make = Callable[[Sequence[Example], Sequence[int]], list[Tensor]]


@dataclass(frozen=True)
class Method:
    """make: examples of one task and a seed each -> their targets (m, 4, H, W), float32 in [0, 1] on the CPU, at the
    size of the example. does: whether it knows a task. told: what it is given beside the example, in words.
    identity: the same for the same pictures, as far as that can be known.
    """

    name: str
    make: Make
    does: Callable[[str], bool]
    identity: str
    told: str = ""
    batch: int = 1


def of_model(model: OmniAlpha, name: str, identity: str, raw: bool = False, batch: int = 1) -> Method:
    """The model's own steps and guidance. raw: without what `fidelity` copies from the input."""

    def make(examples: Sequence[Example], seeds: Sequence[int]) -> list[Tensor]:
        stacks = model.run(examples, seed=seeds, raw=raw)
        return [torch.stack([layer.rgba for layer in stack]).clamp(0, 1) for stack in stacks]

    able = model.card.tasks
    return Method(name, make, lambda task: not able or task in able, identity, batch=batch)
