"""An aligned start of a transformer that predicts clean latents: at step 0 its answer is the input picture.

From a plain start the first samples go into finding out that a target looks like its input, token by token. Here
block 0 begins with heads that look by position alone at the token of the same row and column, one layer on or two. What
they see one layer on, where the nearest target has its input, is the answer: docs/decisions/0026.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from omnialpha.models.transformer.model import MultiImageTransformer
from omnialpha.models.transformer.positions import THETA

GAIN = 10.0  # of the norms of queries and keys: a head sees one token alone


@torch.no_grad()
def align(transformer: MultiImageTransformer) -> None:
    """Set what an aligned start needs, after `training.sft.initialize`.

    A token begins as its C latents in C orthogonal channels. Block 0 adds what it looks at in the others: all latents,
    or all but one where the width is 2 C, or the coarsest where it is less. Latents are taken to have unit variance.
    """
    config, block = transformer.config, cast(Any, transformer.transformer_blocks[0])
    width, channels = transformer.inner_dim, config.in_channels
    half = config.num_attention_heads // 2 * config.attention_head_dim  # values of half of the heads
    carried = min(channels, half, width - channels - 1)
    if carried < 1:
        return
    # layer norm takes out the mean: no channel of ours has one
    basis = torch.linalg.qr(torch.cat([torch.ones(width, 1), torch.randn(width, width - 1)], dim=1)).Q
    own, seen = basis[:, 1 : 1 + channels], basis[:, 1 + channels :][:, :carried]  # (D, C), (D, carried)
    chosen = coarse_to_fine(channels, config.patch_size)[:carried]  # (carried, C)
    before, after = (math.sqrt(count / width) for count in (channels, channels + carried))  # what layer norm divides by
    transformer.img_in.weight.copy_(own)
    look_ahead(block.attn, config.axes_dims_rope)
    block.attn.to_v.weight.zero_()
    for first in (0, half):
        block.attn.to_v.weight[first : first + carried] = before * chosen @ own.T
    block.attn.to_out[0].weight.zero_()
    block.attn.to_out[0].weight[:, :carried] = seen
    block.img_mod[1].bias[2 * width : 3 * width] = 1.0  # the gate of attention
    transformer.proj_out.weight.copy_(after * chosen.T @ seen.T)


def coarse_to_fine(channels: int, patch: int) -> Tensor:
    """An orthogonal basis (C, C) of a token's latents: the means over its patch first, what differs diagonally last.
    patch: 1 or 2, latents each way.
    """
    waves = torch.tensor([[1.0, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2
    waves = {1: torch.ones(1, 1), 2: waves}[patch]
    return torch.einsum("wp,cd->wcdp", waves, torch.eye(channels // patch**2)).reshape(channels, channels)


def look_ahead(attn: Any, axes: tuple[int, ...]) -> None:
    """Constant queries and keys, turned so that they agree most at the same row and column, one layer on in the first
    half of the heads and two in the others; where there is no such layer, at the nearest.
    """
    heads, pairs = attn.heads, attn.inner_dim // attn.heads // 2
    turns = torch.zeros(pairs)  # of a pair of channels, by one layer
    turns[: axes[0] // 2] = THETA ** -(torch.arange(0, axes[0], 2) / axes[0])
    layers = torch.where(torch.arange(heads) < heads // 2, 1.0, 2.0)
    angles = layers[:, None] * turns  # (H, E/2)
    for projection, turned in ((attn.to_q, angles), (attn.to_k, torch.zeros_like(angles))):
        projection.weight.zero_()
        projection.bias.copy_(torch.stack([turned.cos(), turned.sin()], dim=-1).flatten())
    attn.norm_q.weight.fill_(GAIN)
    attn.norm_k.weight.fill_(GAIN)
