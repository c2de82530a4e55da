"""The condition of a batch: encoded pictures, text and positions, computed once for all steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from omnialpha.canvas import Canvas
from omnialpha.models.transformer.model import Shared
from omnialpha.models.transformer.positions import Layout, Positions
from omnialpha.tasks import Example


@dataclass(frozen=True)
class Condition:
    """What the transformer takes in addition to the noisy targets, for B examples.

    Attributes:
        examples, canvases, layouts: One an example: what was asked for, its working size, its pictures in tokens.
        inputs: Tokens of the input pictures, (B, Li, C), zero-padded.
        text: Hidden states of the instruction, (B, T, D), zero-padded.
        lengths: Tokens of each text.
        positions: Rotary positions of all tokens.
        shared: What the transformer keeps from one step to the next.
        negative: The same with empty instructions, for classifier-free guidance.
        pooled: (B, P), one vector a text, of an encoder that gives one.
        guidance_scale: For a transformer that is distilled from guidance and takes the scale.
    """

    examples: tuple[Example, ...]
    canvases: tuple[Canvas, ...]
    layouts: tuple[Layout, ...]
    inputs: Tensor
    text: Tensor
    lengths: tuple[int, ...]
    positions: Positions
    shared: Shared = field(default_factory=Shared, compare=False, repr=False)
    negative: Condition | None = None
    pooled: Tensor | None = None
    guidance_scale: float | None = None

    @property
    def extra(self) -> dict[str, Tensor]:
        """Further arguments of a transformer that takes more than pictures and text."""
        made = {} if self.pooled is None else {"pooled": self.pooled}
        if self.guidance_scale is not None:
            made["guidance"] = self.text.new_full((len(self.examples),), self.guidance_scale)
        return made

    def with_negative(self, positions: Positions) -> Condition:
        """Both branches of guidance as one batch: the examples, then the same without instructions."""
        assert self.negative is not None
        pooled = (self.pooled, self.negative.pooled)
        return Condition(
            examples=self.examples * 2,
            canvases=self.canvases * 2,
            layouts=self.layouts * 2,
            inputs=torch.cat((self.inputs, self.inputs)),
            text=pad([*self.text, *self.negative.text], self.text.shape[2]),
            lengths=self.lengths + self.negative.lengths,
            positions=positions,
            pooled=None if pooled[0] is None or pooled[1] is None else torch.cat((pooled[0], pooled[1])),
        )

    def fresh(self) -> Condition:
        """The same, for weights that have changed since: without what the transformer keeps in it."""
        return replace(self, shared=Shared())

    def repeat(self, count: int, positions: Positions) -> Condition:
        """Each example `count` times, without the negative branch."""
        return Condition(
            examples=self.examples * count,
            canvases=self.canvases * count,
            layouts=self.layouts * count,
            inputs=self.inputs.repeat(count, 1, 1),
            text=self.text.repeat(count, 1, 1),
            lengths=self.lengths * count,
            positions=positions,
            pooled=None if self.pooled is None else self.pooled.repeat(count, 1),
            guidance_scale=self.guidance_scale,
        )

    @property
    def target_tokens(self) -> int:
        """Tokens of the longest sample's targets, Lt."""
        return max(layout.target_tokens for layout in self.layouts)

    @property
    def picture_tokens(self) -> int:
        """Tokens of all targets and inputs of the batch, padding included."""
        return len(self.examples) * self.positions.image_cos.shape[1]


def join(parts: list[Tensor]) -> Tensor | None:
    return torch.cat(parts) if parts else None


def pad(rows: Sequence[Tensor | None], channels: int) -> Tensor:
    """Rows of tokens (L_b, C) as one tensor (B, max L, C), zero-padded; None is a row without tokens."""
    some = [row for row in rows if row is not None]
    if not some:
        return torch.zeros(len(rows), 0, channels)
    empty = some[0].new_zeros(0, channels)
    return nn.utils.rnn.pad_sequence([empty if row is None else row for row in rows], batch_first=True)
