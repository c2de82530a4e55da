"""What is wrong with a checkpoint, told before anything large is built, from its small files and headers alone.

`check(parts)` names the file, the key, the shape found and the shape wanted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from omnialpha.errors import InputError
from omnialpha.models.checkpoints.card import AGAIN, read_json
from omnialpha.models.checkpoints.folders import Parts
from omnialpha.models.checkpoints.headers import Entry, Shape, read_header, read_weights

Config = dict[str, Any]
Found = Mapping[str, Entry]

FLOATS = ("F64", "F32", "F16", "BF16")
DIFFUSERS_STEM, TRANSFORMERS_STEM = "diffusion_pytorch_model", "model"


def compare(folder: Path, found: Found, wanted: Mapping[str, Shape]) -> None:
    """InputError for the first tensor that is missing, of the wrong shape, quantised, or that nothing would take."""
    if missing := [key for key in wanted if key not in found]:
        raise InputError(f"{folder} lacks {len(missing)} of {len(wanted)} weights, the first is {missing[0]}: {AGAIN}.")
    for key, shape in wanted.items():
        entry = found[key]
        if entry.shape != shape:
            raise InputError(
                f"{entry.file} holds {key} of shape {entry.shape}, but config.json beside it makes it {shape}: {AGAIN}."
            )
        if entry.dtype not in FLOATS:
            raise InputError(
                f"{entry.file} holds {key} as {entry.dtype}: use the weights in bf16, and quantise them on loading."
            )
    if extra := [key for key in found if key not in wanted]:
        raise InputError(
            f"{found[extra[0]].file} holds {extra[0]} ({len(extra)} such), which no part of the model takes: "
            "use weights and config.json of one model."
        )


# ---- what each part must hold ----------------------------------------------------------------------------------


def _transformer(config: Config, found: Found) -> nn.Module:
    from omnialpha.models.transformer.model import MultiImageTransformer

    return MultiImageTransformer.from_config(config)


def _own_vae(config: Config, found: Found) -> nn.Module:
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


def _text_encoder(config: Config, found: Found) -> nn.Module:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

    return Qwen2_5_VLModel(Qwen2_5_VLConfig.from_dict(config))


def _text_name(key: str) -> str | None:
    """One name for a weight of Qwen2.5-VL, whichever version of transformers named it; None: not needed."""
    if key == "lm_head.weight" or key.endswith("rotary_emb.inv_freq"):
        return None
    return re.sub(r"^(model\.)?(language_model\.)?(model\.)?", "", key)


@dataclass(frozen=True)
class Kind:
    """How the weights of a component are named and what module they fill, by the class in its config.json."""

    stem: str
    key: str  # in config.json, of the class
    builders: Mapping[str, Callable[[Config, Found], nn.Module]]
    name: Callable[[str], str | None] = str


KINDS = {
    "transformer": Kind(
        DIFFUSERS_STEM,
        "_class_name",
        {"QwenImageTransformer2DModel": _transformer, "MultiImageTransformer": _transformer},
    ),
    "vae": Kind(
        DIFFUSERS_STEM,
        "_class_name",
        {
            "AlphaVAE": _own_vae,
            "AutoencoderKLQwenImage": _qwen_vae,
            "AutoencoderKLQwenImageAlpha": _qwen_vae,
            "AutoencoderKL": _flux_vae,
        },
    ),
    "text_encoder": Kind(TRANSFORMERS_STEM, "model_type", {"qwen2_5_vl": _text_encoder}, _text_name),
}
# Files of which one must be there.
SMALL = {
    "tokenizer": ("tokenizer.json", "vocab.json"),
    "processor": ("preprocessor_config.json", "processor_config.json"),
}


def check(parts: Parts, gguf: Path | None = None) -> None:
    """InputError for the first thing that would keep the parts from loading, or from fitting each other.

    gguf: holds the transformer's weights, in the place of those in its folder.
    """
    folders = {"vae": parts.vae, "text_encoder": parts.text / "text_encoder"}
    configs = {"transformer": check_component(parts.transformer, KINDS["transformer"], gguf)}
    configs |= {name: check_component(folder, KINDS[name]) for name, folder in folders.items()}
    for name, files in SMALL.items():
        if not any((parts.text / name / file).is_file() for file in files):
            raise InputError(f"{parts.text / name} holds no {' and no '.join(files)}: {AGAIN}.")
    for file in parts.adapters:
        read_header(file.path)
    transformer, vae = configs["transformer"], configs["vae"]
    text = configs["text_encoder"].text_config.hidden_size
    pairs = (  # what goes from one part into another, in channels
        (parts.transformer, transformer["in_channels"], parts.vae, 4 * vae.get("z_dim", vae.get("latent_channels", 0))),
        (parts.transformer, transformer["joint_attention_dim"], folders["text_encoder"], text),
    )
    for one, takes, other, gives in pairs:
        if takes != gives:
            raise InputError(f"{one} takes {takes} channels and {other} gives {gives}: use parts of one model.")


def check_component(folder: Path, kind: Kind, gguf: Path | None = None) -> Any:
    """Check a component's files, or a GGUF one, against its config.json; the configuration of the module they fill."""
    config = read_json(folder / "config.json")
    cls = str(config.get(kind.key))
    if cls not in kind.builders:
        raise InputError(f"{folder / 'config.json'} is of a {cls}: use one of {', '.join(kind.builders)}.")
    entries = _gguf_entries(gguf) if gguf else read_weights(folder, kind.stem)
    named = {kind.name(key): entry for key, entry in entries.items()}
    found = {key: entry for key, entry in named.items() if key is not None}
    with torch.device("meta"):
        module = kind.builders[cls](config, found)
    wanted = {kind.name(key) or key: tuple(value.shape) for key, value in module.state_dict().items()}
    compare(gguf or folder, found, wanted)
    return module.config


def _gguf_entries(file: Path) -> dict[str, Entry]:
    """Whatever the bits, the loader takes them."""
    from omnialpha.models.runtime.quantize import GGUF

    return {name: Entry(FLOATS[0], shape, file) for name, shape in GGUF.read(file).shapes.items()}
