"""The released transformer's shape with random weights: both sides on the same tensors, and steps with any savings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope
from torch import Tensor, nn

from common.runs import example
from common.savings import TIME, Make, WholeLastBlock, branches
from common.timing import now
from omnialpha.condition import Condition
from omnialpha.models.checkpoints.card import RELEASED_GRID, Card
from omnialpha.models.runtime.quantize import quantize
from omnialpha.models.transformer.model import MultiImageTransformer, Shared
from omnialpha.models.transformer.positions import Layout
from omnialpha.pipeline import OmniAlpha
from omnialpha.sampling import apply_guidance, schedule

PICTURE_TOKENS, PROMPT_TOKENS = 196, (34, 14)  # of a text, for each input of 384 x 384 px; with and without instruction
STEPS, GUIDANCE = 50, 4.0
WHEN = torch.full((1,), TIME)


@dataclass(frozen=True)
class Case:
    n: int
    m: int
    side: int

    def key(self, method: str) -> str:
        return f"{method} | {self.n} {self.m} {self.side}"

    @property
    def layout(self) -> Layout:
        size = (self.side // 16, self.side // 16)
        return Layout((size,) * self.m, (size,) * self.n)

    @property
    def texts(self) -> tuple[int, int]:
        """Tokens of the text with and without instruction."""
        return tuple(self.n * PICTURE_TOKENS + rest for rest in PROMPT_TOKENS)  # type: ignore[return-value]


@dataclass(frozen=True)
class Method:
    """Savings in use. hoist: constants of a run; trim: last block on target rows; together: both branches at once."""

    name: str
    hoist: bool = True
    trim: bool = True
    table: bool = True
    together: bool = False
    attention: str = "joint"
    quantize: str | None = None


METHODS = (  # in this order: modulation leaves the device with a table, and int8 weights stay int8
    Method("ours, none of the savings", hoist=False, trim=False, table=False),
    Method("+ constants hoisted", trim=False, table=False),
    Method("+ last block on target rows", table=False),
    Method("+ modulation from a table"),
    Method("the same, both branches in one batch", together=True),
    Method("inputs do not see targets (other weights)", attention="cached"),
    Method("with a table, weights in int8 (approximate)", quantize="int8"),
)


@torch.no_grad()
def random_transformer(layers: int, heads: int, seed: int, device: torch.device, dtype: torch.dtype) -> Any:
    """Diffusers' transformer with random weights that were never anywhere but on the device."""
    with torch.device("meta"):
        model = QwenImageTransformer2DModel(num_layers=layers, num_attention_heads=heads)
    nn.Module.to(model, dtype).to_empty(device=device)
    # its tables are no buffers, and were left on the meta device
    model.pos_embed = QwenEmbedRope(theta=10000, axes_dim=list(model.config.axes_dims_rope), scale_rope=True)
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            weight.normal_(0, 0.6 / math.sqrt(weight.shape[1]))
        else:
            weight.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.05)
    return model.eval().requires_grad_(False)


def wrap(transformer: MultiImageTransformer) -> OmniAlpha:
    """The pipeline around it, without the parts that a step does not need."""
    return OmniAlpha(nn.Identity(), transformer, nn.Identity(), Card("full", "none", RELEASED_GRID))  # type: ignore[arg-type]


def prepare(model: OmniAlpha, method: Method) -> float | None:
    """Switch on what the method has; seconds for the table of a whole schedule, where one is made now."""
    transformer, took = model.transformer, None
    transformer.__class__ = MultiImageTransformer if method.trim else WholeLastBlock
    transformer.register_to_config(condition_attention=method.attention)
    if method.table and transformer.table is None:
        transformer.tabulate()
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
        start = now(model.device)
        times = torch.cat([schedule(STEPS, 1024, model.card.shift)[:-1], torch.tensor([TIME, 0.0])])
        transformer.precompute_modulation(times)
        took = now(model.device) - start
    if method.quantize:
        quantize(transformer, method.quantize, model.device, model.device)
    return took


# ---- steps -------------------------------------------------------------------------------------------------------


def request(model: OmniAlpha, case: Case, seed: int) -> tuple[Condition, Tensor, Tensor]:
    """A condition of random inputs and texts, the targets and their time."""
    generator = torch.Generator().manual_seed(seed)
    transformer = model.transformer

    def draw(rows: int, channels: int) -> Tensor:
        return torch.randn(1, rows, channels, generator=generator).to(model.device, transformer.dtype)

    layout, channels = case.layout, transformer.config.in_channels
    inputs, x = draw(layout.input_tokens, channels), draw(layout.target_tokens, channels).float()

    def made(tokens: int, negative: Condition | None = None) -> Condition:
        text, positions = draw(tokens, transformer.config.joint_attention_dim), model._positions([layout], (tokens,))
        asked = (example(case.side, case.n, case.m),)
        return Condition(asked, (), (layout,), inputs, text, (tokens,), positions, Shared(), negative)

    long, short = case.texts
    return made(long, made(short)), x, WHEN


def stepper(model: OmniAlpha, method: Method, cond: Condition, x: Tensor, t: Tensor) -> Make:
    """A guided step as the method makes it."""
    assert cond.negative is not None
    with branches(together=method.together):
        kept = model.guided(cond, GUIDANCE)

    def fresh() -> Tensor:
        assert cond.negative is not None
        again = replace(cond, shared=Shared(), negative=replace(cond.negative, shared=Shared()))
        with branches(together=method.together):
            return model.guided(again, GUIDANCE)(x, t)

    return (lambda: kept(x, t)) if method.hoist else fresh


def published(theirs: Any, cond: Condition, case: Case) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """A branch and a guided step of diffusers' transformer."""
    assert cond.negative is not None
    shapes = [[(1, *size) for size in case.layout.pictures]]

    def branch(x: Tensor, t: Tensor, text: Tensor = cond.text) -> Tensor:
        rows = torch.cat((x.to(text.dtype), cond.inputs), dim=1)
        out = theirs(rows, text, None, t.to(text), img_shapes=shapes, return_dict=False)[0]
        return out[:, : x.shape[1]].float()

    other = cond.negative.text
    return branch, apply_guidance(branch, lambda x, t: (branch(x, t), branch(x, t, other)), GUIDANCE)
