"""The families of models, a row each: their classes, folders, checks and sizes.

Classes are named and imported on use, since that takes seconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, Literal

from torch import nn

from omnialpha.models.checkpoints.card import Card, FamilyName
from omnialpha.models.checkpoints.headers import DIFFUSERS_STEM, TRANSFORMERS_STEM, TensorInfo
from omnialpha.models.transformer.positions import PATCH_SIZE

TOKENIZER_FILES = ("tokenizer.json", "vocab.json")


@dataclass(frozen=True)
class Component:
    """A part with weights: how they are named, and which module they fill.

    Args:
        classes: what config.json may name -> "module:name" of the class.
        key: under which config.json does.
        stem: of the names of its weight files.
        ignored: endings of weights that are not needed.
        renamed: pattern and replacement that give a weight one name, whichever version of a library wrote it.
    """

    classes: Mapping[str, str]
    key: str = "_class_name"
    stem: str = DIFFUSERS_STEM
    ignored: tuple[str, ...] = ()
    renamed: tuple[str, str] = ("^$", "")

    def name(self, key: str) -> str | None:
        """The one name of a weight; None where it is not needed."""
        return None if key.endswith(self.ignored) else re.sub(*self.renamed, key)

    def build(self, config: Mapping[str, Any], found: Mapping[str, TensorInfo]) -> nn.Module:
        """The module of a config.json whose class is known, and of the weights that were found."""
        name = config[self.key]
        made = resolve_name(self.classes[name])
        if self.stem == TRANSFORMERS_STEM:
            return made(made.config_class.from_dict(config))
        # As the loader has it, a VAE's channels are those of its weights: config.json may say nothing.
        first = found.get("encoder.conv_in.weight")
        channels = first.shape[1] if first and len(first.shape) > 1 else 3
        if name == "AutoencoderKL":
            config = {**config, "in_channels": channels, "out_channels": channels}
        elif name in QWEN_VAES:  # the class of the released RGBA VAE has two settings where diffusers' has one
            own = ("_class_name", "in_channels", "out_channels")
            config = {k: v for k, v in config.items() if k not in own} | {"input_channels": channels}
        return made.from_config(config)


@dataclass(frozen=True)
class Family:
    """What models of one architecture have in common.

    Args:
        transformer: "module:name" of the class; so is the next.
        text_encoder: of the class that reads instructions.
        positions: of a function: layouts, text lengths, target order, axes and device -> `Positions`.
        card_settings: fields of `Card` that the text encoder takes.
        components: parts with weights, by folder.
        files: folders without weights, of whose files one must be there.
        channels: what has to agree: a setting of the transformer, and a component with a function of its
            configuration and the transformer's.
        text_tokens: of a run, beside those of pictures.
        unsupported: settings that do not work with it.
    """

    transformer: str
    text_encoder: str
    positions: str
    card_settings: tuple[str, ...]
    components: Mapping[str, Component]
    files: Mapping[str, tuple[str, ...]]
    channels: tuple[tuple[str, str, Callable[[Any, Any], int]], ...]
    text_tokens: Callable[[Card], int]
    unsupported: tuple[str, ...] = ()

    @property
    def text_folders(self) -> tuple[str, ...]:
        """Folders of what reads instructions: they belong to each other."""
        return tuple(name for name in (*self.components, *self.files) if name not in ("transformer", "vae"))

    def load(self, what: Literal["transformer", "text_encoder", "positions"]) -> Any:
        """Import a class or function of the row."""
        return resolve_name(getattr(self, what))


QWEN = "omnialpha.models.transformer.model:MultiImageTransformer"
FLUX = "diffusers:FluxTransformer2DModel"
QWEN_VAES = ("AutoencoderKLQwenImage", "AutoencoderKLQwenImageAlpha")
FLUX_VAE = {"AutoencoderKL": "diffusers:AutoencoderKL"}
FAMILIES: dict[FamilyName, Family] = {
    "qwen": Family(
        transformer=QWEN,
        text_encoder="omnialpha.models.text_encoder.encoder:TextEncoder",
        positions="omnialpha.models.transformer.positions:batch_positions",
        card_settings=("picture_pixels", "max_tokens", "template"),
        components={
            "transformer": Component({"QwenImageTransformer2DModel": QWEN, "MultiImageTransformer": QWEN}),
            "vae": Component(
                {"AlphaVAE": "omnialpha.models.vae.alphavae:AlphaVAE"}
                | dict.fromkeys(QWEN_VAES, "diffusers:AutoencoderKLQwenImage")
                | FLUX_VAE
            ),
            "text_encoder": Component(
                {"qwen2_5_vl": "transformers:Qwen2_5_VLModel"},
                "model_type",
                TRANSFORMERS_STEM,
                ("lm_head.weight", "rotary_emb.inv_freq"),
                (r"^(model\.)?(language_model\.)?(model\.)?", ""),
            ),
        },
        files={
            "tokenizer": TOKENIZER_FILES,
            "processor": ("preprocessor_config.json", "processor_config.json"),
        },
        channels=(
            (
                "in_channels",
                "vae",
                lambda vae, own: own.patch_size**2 * vae.get("z_dim", vae.get("latent_channels", 0)),
            ),
            ("joint_attention_dim", "text_encoder", lambda text, own: text.text_config.hidden_size),
        ),
        text_tokens=lambda card: 100,
    ),
    "flux": Family(
        transformer="omnialpha.models.flux.transformer:FluxTransformer",
        text_encoder="omnialpha.models.flux.text_encoder:FluxText",
        positions="omnialpha.models.flux.transformer:positions",
        card_settings=("max_tokens",),
        components={
            "transformer": Component({"FluxTransformer2DModel": FLUX, "FluxTransformer": FLUX}),
            "vae": Component(FLUX_VAE),
            "text_encoder": Component(
                {"clip_text_model": "transformers:CLIPTextModel"},
                "model_type",
                TRANSFORMERS_STEM,
                ("position_ids",),
                (r"^text_model\.", ""),
            ),
            "text_encoder_2": Component(
                {"t5": "transformers:T5EncoderModel"},
                "model_type",
                TRANSFORMERS_STEM,
                renamed=(r"^encoder\.embed_tokens\.weight$", "shared.weight"),  # the word embedding has two names
            ),
        },
        files={"tokenizer": TOKENIZER_FILES, "tokenizer_2": ("tokenizer.json", "spiece.model")},
        channels=(
            ("in_channels", "vae", lambda vae, own: PATCH_SIZE**2 * vae["latent_channels"]),
            ("pooled_projection_dim", "text_encoder", lambda clip, own: clip.hidden_size),
            ("joint_attention_dim", "text_encoder_2", lambda t5, own: t5.d_model),
        ),
        text_tokens=lambda card: card.max_tokens,  # to which every prompt is padded
        unsupported=("gguf", "vision"),
    ),
}
