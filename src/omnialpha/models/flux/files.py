"""FLUX's folders before anything large is built: what is wrong with them, and the sizes of what they hold."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from omnialpha.errors import InputError
from omnialpha.models.checkpoints import checking
from omnialpha.models.checkpoints.card import AGAIN
from omnialpha.models.checkpoints.checking import (
    DIFFUSERS_STEM,
    TRANSFORMERS_STEM,
    Config,
    Found,
    Kind,
    check_component,
)
from omnialpha.models.checkpoints.folders import Parts
from omnialpha.models.checkpoints.headers import read_header
from omnialpha.models.runtime.model_sizes import MAPS, ModelSizes, Weights, count, weights

PATCH = 2  # latents a token spans, each way


def _transformer(config: Config, found: Found) -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel.from_config(config)


def _clip(config: Config, found: Found) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig.from_dict(config))


def _t5(config: Config, found: Found) -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config.from_dict(config))


def _clip_name(key: str) -> str | None:
    """One name for a weight, whichever version of transformers named it; None: not needed."""
    return None if key.endswith("position_ids") else re.sub(r"^text_model\.", "", key)


def _t5_name(key: str) -> str:
    """The word embedding has two names."""
    return "shared.weight" if key == "encoder.embed_tokens.weight" else key


KINDS = {
    "transformer": Kind(
        DIFFUSERS_STEM,
        "_class_name",
        {"FluxTransformer2DModel": _transformer, "FluxTransformer": _transformer},
    ),
    "vae": Kind(DIFFUSERS_STEM, "_class_name", {"AutoencoderKL": checking.KINDS["vae"].builders["AutoencoderKL"]}),
    "text_encoder": Kind(TRANSFORMERS_STEM, "model_type", {"clip_text_model": _clip}, _clip_name),
    "text_encoder_2": Kind(TRANSFORMERS_STEM, "model_type", {"t5": _t5}, _t5_name),
}
# Files of which one must be there.
SMALL = {"tokenizer": ("tokenizer.json", "vocab.json"), "tokenizer_2": ("tokenizer.json", "spiece.model")}


def check(parts: Parts) -> None:
    """InputError for the first thing that would keep the parts from loading, or from fitting each other."""
    folders = {"transformer": parts.transformer, "vae": parts.vae}
    folders |= {name: parts.text / name for name in ("text_encoder", "text_encoder_2")}
    configs = {name: check_component(folder, KINDS[name]) for name, folder in folders.items()}
    for name, files in SMALL.items():
        if not any((parts.text / name / file).is_file() for file in files):
            raise InputError(f"{parts.text / name} holds no {' and no '.join(files)}: {AGAIN}.")
    for file in parts.adapters:
        read_header(file.path)
    transformer = configs["transformer"]
    pairs = (  # what the transformer takes, and which part gives it, in channels
        (transformer["in_channels"], "vae", PATCH**2 * configs["vae"]["latent_channels"]),
        (transformer["pooled_projection_dim"], "text_encoder", configs["text_encoder"].hidden_size),
        (transformer["joint_attention_dim"], "text_encoder_2", configs["text_encoder_2"].d_model),
    )
    for takes, name, gives in pairs:
        if takes != gives:
            raise InputError(
                f"{parts.transformer} takes {takes} channels and {folders[name]} gives {gives}: use parts of one model."
            )


def read_sizes(parts: Parts, vae: nn.Module, dtype: str | None = None, tabulated: bool = True) -> ModelSizes:
    """As `ModelSizes.read`. tabulated: no difference, since modulation is computed in the blocks."""
    with torch.device("meta"):
        config: Any = check_component(parts.transformer, KINDS["transformer"])
        transformer: Any = _transformer(dict(config), {})
        clip = check_component(parts.text / "text_encoder", KINDS["text_encoder"])
        t5 = check_component(parts.text / "text_encoder_2", KINDS["text_encoder_2"])
        text: Any = nn.ModuleDict({"clip": _clip(clip.to_dict(), {}), "t5": _t5(t5.to_dict(), {})})  # as in FluxText
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
        token=6 * t5.d_model + 3 * t5.d_ff,
        patch=0,
        picture_tokens=0,
        kept=0,  # it is diffusers' own network
        side=network.ratio * PATCH,
    )
