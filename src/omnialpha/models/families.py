"""The families of models, a row each: their classes, folders, checks and sizes.

Only data and what builds a part in no memory. Classes are named and imported on use, since that takes seconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, Literal

from torch import nn

from omnialpha.models.checkpoints.card import Card, FamilyName
from omnialpha.models.checkpoints.headers import TensorInfo
from omnialpha.models.transformer.positions import PATCH_SIZE

Config = dict[str, Any]
Found = Mapping[str, TensorInfo]
Configs = Mapping[str, Any]  # of the modules of a model, by component

DIFFUSERS_STEM, TRANSFORMERS_STEM = "diffusion_pytorch_model", "model"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")


@dataclass(frozen=True)
class Component:
    """How the weights of a part are named, and which module they fill.

    Args:
        stem: of the names of its weight files.
        key: in config.json, of the class.
        builders: by class, from config.json and the weights that were found to a module.
        name: one name for a weight, whichever version of a library named it; None where it is not needed.
    """

    stem: str
    key: str
    builders: Mapping[str, Callable[[Config, Found], nn.Module]]
    name: Callable[[str], str | None] = str


@dataclass(frozen=True)
class Family:
    """What models of one architecture have in common.

    Args:
        transformer: "module:name" of the class; so are the next three.
        text_encoder: of the class that reads instructions.
        positions: of a function: layouts, text lengths, target order, axes and device -> `Positions`.
        sizes: of a function: parts, autoencoder, dtype and whether modulation is tabulated -> `ModelSizes`.
        card_settings: fields of `Card` that the text encoder takes.
        components: parts with weights, by folder.
        files: folders without weights, of whose files one must be there.
        channels: from the configurations of all components to (part, what it takes, part, what it gives).
        text_tokens: of a run, beside those of pictures.
        unsupported: settings that do not work with it.
    """

    transformer: str
    text_encoder: str
    positions: str
    sizes: str
    card_settings: tuple[str, ...]
    components: Mapping[str, Component]
    files: Mapping[str, tuple[str, ...]]
    channels: Callable[[Configs], tuple[tuple[str, int, str, int], ...]]
    text_tokens: Callable[[Card], int]
    unsupported: tuple[str, ...] = ()

    @property
    def text_folders(self) -> tuple[str, ...]:
        """Folders of what reads instructions: they belong to each other."""
        return tuple(name for name in (*self.components, *self.files) if name not in ("transformer", "vae"))

    def load(self, what: Literal["transformer", "text_encoder", "positions", "sizes"]) -> Any:
        """Import a class or function of the row."""
        return resolve_name(getattr(self, what))


# ---- modules, in no memory -------------------------------------------------------------------------------------


def _qwen_transformer(config: Config, found: Found) -> nn.Module:
    from omnialpha.models.transformer.model import MultiImageTransformer

    return MultiImageTransformer.from_config(config)


def _flux_transformer(config: Config, found: Found) -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel.from_config(config)


def _alpha_vae(config: Config, found: Found) -> nn.Module:
    from omnialpha.models.vae.alphavae import AlphaVAE

    return AlphaVAE.from_config(config)


def _qwen_vae(config: Config, found: Found) -> nn.Module:
    from diffusers import AutoencoderKLQwenImage

    # The class of the released RGBA VAE has two settings where diffusers' has one.
    own = {k: v for k, v in config.items() if k not in ("_class_name", "in_channels", "out_channels")}
    return AutoencoderKLQwenImage.from_config(own | {"input_channels": _channels(found)})


def _flux_vae(config: Config, found: Found) -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_config(config | {"in_channels": _channels(found), "out_channels": _channels(found)})


def _channels(found: Found) -> int:
    """Of a VAE's pictures, by its weights, as the loader has it: its config.json may say nothing."""
    first = found.get("encoder.conv_in.weight")
    return first.shape[1] if first and len(first.shape) > 1 else 3


def _qwen_text(config: Config, found: Found) -> nn.Module:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

    return Qwen2_5_VLModel(Qwen2_5_VLConfig.from_dict(config))


def _clip(config: Config, found: Found) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig.from_dict(config))


def _t5(config: Config, found: Found) -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config.from_dict(config))


# ---- one name for a weight -------------------------------------------------------------------------------------


def _qwen_text_name(key: str) -> str | None:
    if key == "lm_head.weight" or key.endswith("rotary_emb.inv_freq"):
        return None
    return re.sub(r"^(model\.)?(language_model\.)?(model\.)?", "", key)


def _clip_name(key: str) -> str | None:
    return None if key.endswith("position_ids") else re.sub(r"^text_model\.", "", key)


def _t5_name(key: str) -> str:
    """The word embedding has two names."""
    return "shared.weight" if key == "encoder.embed_tokens.weight" else key


# ---- the rows --------------------------------------------------------------------------------------------------


def _qwen_channels(configs: Configs) -> tuple[tuple[str, int, str, int], ...]:
    transformer, vae, text = configs["transformer"], configs["vae"], configs["text_encoder"]
    latents = vae.get("z_dim", vae.get("latent_channels", 0))
    return (
        ("transformer", transformer["in_channels"], "vae", PATCH_SIZE**2 * latents),
        ("transformer", transformer["joint_attention_dim"], "text_encoder", text.text_config.hidden_size),
    )


def _flux_channels(configs: Configs) -> tuple[tuple[str, int, str, int], ...]:
    transformer = configs["transformer"]
    return (
        ("transformer", transformer["in_channels"], "vae", PATCH_SIZE**2 * configs["vae"]["latent_channels"]),
        ("transformer", transformer["pooled_projection_dim"], "text_encoder", configs["text_encoder"].hidden_size),
        ("transformer", transformer["joint_attention_dim"], "text_encoder_2", configs["text_encoder_2"].d_model),
    )


QWEN_VAES = {
    "AlphaVAE": _alpha_vae,
    "AutoencoderKLQwenImage": _qwen_vae,
    "AutoencoderKLQwenImageAlpha": _qwen_vae,
    "AutoencoderKL": _flux_vae,
}
FAMILIES: dict[FamilyName, Family] = {
    "qwen": Family(
        transformer="omnialpha.models.transformer.model:MultiImageTransformer",
        text_encoder="omnialpha.models.text_encoder.encoder:TextEncoder",
        positions="omnialpha.models.transformer.positions:batch_positions",
        sizes="omnialpha.models.runtime.model_sizes:ModelSizes.read",
        card_settings=("picture_pixels", "max_tokens", "template"),
        components={
            "transformer": Component(
                DIFFUSERS_STEM,
                "_class_name",
                {"QwenImageTransformer2DModel": _qwen_transformer, "MultiImageTransformer": _qwen_transformer},
            ),
            "vae": Component(DIFFUSERS_STEM, "_class_name", QWEN_VAES),
            "text_encoder": Component(TRANSFORMERS_STEM, "model_type", {"qwen2_5_vl": _qwen_text}, _qwen_text_name),
        },
        files={
            "tokenizer": TOKENIZER_FILES,
            "processor": ("preprocessor_config.json", "processor_config.json"),
        },
        channels=_qwen_channels,
        text_tokens=lambda card: 100,
    ),
    "flux": Family(
        transformer="omnialpha.models.flux.transformer:FluxTransformer",
        text_encoder="omnialpha.models.flux.text_encoder:FluxText",
        positions="omnialpha.models.flux.transformer:positions",
        sizes="omnialpha.models.flux.sizes:read_sizes",
        card_settings=("max_tokens",),
        components={
            "transformer": Component(
                DIFFUSERS_STEM,
                "_class_name",
                {"FluxTransformer2DModel": _flux_transformer, "FluxTransformer": _flux_transformer},
            ),
            "vae": Component(DIFFUSERS_STEM, "_class_name", {"AutoencoderKL": _flux_vae}),
            "text_encoder": Component(TRANSFORMERS_STEM, "model_type", {"clip_text_model": _clip}, _clip_name),
            "text_encoder_2": Component(TRANSFORMERS_STEM, "model_type", {"t5": _t5}, _t5_name),
        },
        files={"tokenizer": TOKENIZER_FILES, "tokenizer_2": ("tokenizer.json", "spiece.model")},
        channels=_flux_channels,
        text_tokens=lambda card: card.max_tokens,  # to which every prompt is padded
        unsupported=("gguf", "vision"),
    ),
}
