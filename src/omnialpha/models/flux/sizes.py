"""The sizes of FLUX's parts, from their folders."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import nn

from omnialpha.models.checkpoints.checking import check_component
from omnialpha.models.checkpoints.folders import Parts
from omnialpha.models.checkpoints.headers import read_header
from omnialpha.models.families import FAMILIES
from omnialpha.models.runtime.model_sizes import MAPS, ModelSizes, Weights, count, weights
from omnialpha.models.transformer.positions import PATCH_SIZE


def read_sizes(parts: Parts, vae: nn.Module, dtype: str | None = None, tabulated: bool = True) -> ModelSizes:
    """The sizes of a FLUX model, from its folders, without reading weights.

    Args:
        parts: the folders.
        vae: the autoencoder.
        dtype: what the model runs in, by default the card's.
        tabulated: makes no difference, since modulation is computed in the blocks.
    """
    components = FAMILIES["flux"].components
    transformer: Any = check_component(parts.transformer, components["transformer"])
    clip, t5 = (check_component(parts.text / n, components[n]) for n in ("text_encoder", "text_encoder_2"))
    text: Any = nn.ModuleDict({"clip": clip, "t5": t5})  # as in FluxText
    config = transformer.config
    blocks = [count(block) for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks)]
    adapters = [read_header(file.path).entries.values() for file in parts.adapters]
    factors = sum(math.prod(entry.shape) for entries in adapters for entry in entries)
    streamed = weights(transformer, count(transformer) - sum(blocks), max(blocks))
    network: Any = vae
    channels = next(m for name, m in network.named_modules() if name.endswith("decoder.conv_out")).in_channels
    return ModelSizes(
        vae=Weights(count(vae)),
        transformer=replace(streamed, total=streamed.total + factors, group=streamed.group + factors // len(blocks)),
        text=weights(text, count(text["clip"]), max(map(count, text["t5"].encoder.block))),
        dtype=dtype or parts.card.dtype,
        stored=parts.card.dtype,
        layers=config.num_layers + config.num_single_layers,
        width=transformer.inner_dim,
        head=config.attention_head_dim,
        context=config.joint_attention_dim,
        table=0,
        visiting=0,
        channels=channels,
        patch_size=1,
        pixel=MAPS * channels,
        token=6 * t5.config.d_model + 3 * t5.config.d_ff,
        patch=0,
        picture_tokens=0,
        side=network.ratio * PATCH_SIZE,
    )
