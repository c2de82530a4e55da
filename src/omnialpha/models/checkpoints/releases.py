"""Published checkpoints by their hub id: their base, which files are needed, how they differ. Others work as well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PIPELINE = (
    "model_index.json",
    "scheduler/*.json",
    "transformer/*.json",
    "transformer/*.safetensors",
    "vae/*.json",
    "vae/*.safetensors",
    "text_encoder/*.json",
    "text_encoder/*.safetensors",
    "tokenizer/*",
    "processor/*",
)
ABOUT = ("README.md", "LICENSE*")  # stored with every model, so that its terms lie beside it
ANY = ("*.json", "*.safetensors", "*.txt", "*.jinja")  # of a model that is not in the table


@dataclass(frozen=True)
class Texts:
    """Where a release shows the texts that it was trained on, see `instructions.parse`. url: of a Python file; field:
    what a text is called there; names: of our tasks, what they are called there.
    """

    url: str
    field: str
    names: Mapping[str, str]


@dataclass(frozen=True)
class Release:
    """A row of the table of known releases."""

    files: tuple[str, ...] = PIPELINE  # patterns of what is needed
    license: str | None = None  # where its page does not state one
    base: str | None = None  # the model that fills in what these files lack
    folders: tuple[str, ...] = ()  # by which a copy without its id is recognised
    lora: str | None = None  # applied without being asked for
    card: Mapping[str, Any] = field(default_factory=dict)  # fields of `Card` that differ from the base's
    texts: Texts | None = None


# Of one commit, as a later demo may be of other weights.
OMNIALPHA_TEXTS = Texts(
    "https://raw.githubusercontent.com/Longin-Yu/OmniAlpha/a5599febdf67e37dff1ade1e1b49424e9662b755"
    "/tasks/demo/gradio_demo.py",
    "fixed_prompt",
    {
        "text_to_image": "t2i",
        "removal_rough": "ObjectClear",
        "matting_auto": "automatting",
        "matting_text": "refmatting",
        "decompose_auto": "layerdecompose",
    },
)

RELEASES: dict[str, Release] = {
    "Longin-Yu/OmniAlpha": Release(
        files=("rgba_vae/*.json", "rgba_vae/*.safetensors", "lora/*.json", "lora/*.safetensors"),
        base="Qwen/Qwen-Image-Edit-2509",
        folders=("rgba_vae", "lora"),
        lora="lora/pytorch_lora_weights.safetensors",
        # Its training and its inference show the instruction encoder each picture as large as the canvas (0), where the
        # base shows 384 x 384 pixels.
        card={
            "picture_pixels": 0,
            # Each trained on one fixed text; a decomposition into two layers, back to front as in the base's card. (The
            # first version of the paper lists foregrounds first; the weights are of the second.)
            "tasks": [*OMNIALPHA_TEXTS.names],
        },
        texts=OMNIALPHA_TEXTS,
    ),
    # Confirmed by its public code, and by others who load it: these names, an AutoencoderKL of four channels with the
    # shift and scale of FLUX's, bare captions at FluxPipeline's defaults. Assumed, as no copy has been at hand: the
    # LoRA's modules, taken to be those that the public training code adapts. Its terms are left to its page.
    "o0o0o00o0/AlphaVAE": Release(
        files=(
            "finetune_VAE/config.json",
            "finetune_VAE/diffusion_pytorch_model.safetensors",
            "finetune_VAE/finetune_diffusion/pytorch_lora_weights.safetensors",
        ),
        base="black-forest-labs/FLUX.1-dev",
        folders=("finetune_VAE/finetune_diffusion",),
        lora="finetune_VAE/finetune_diffusion/pytorch_lora_weights.safetensors",
    ),
    "Qwen/Qwen-Image-Edit-2511": Release(license="apache-2.0"),
    "Qwen/Qwen-Image-Edit-2509": Release(license="apache-2.0"),
    "Qwen/Qwen-Image-Edit": Release(license="apache-2.0"),
    "Qwen/Qwen-Image-Layered": Release(("vae/*.json", "vae/*.safetensors"), license="apache-2.0"),
    "black-forest-labs/FLUX.1-dev": Release(
        (*PIPELINE, "text_encoder_2/*.json", "text_encoder_2/*.safetensors", "tokenizer_2/*"),
        license="flux-1-dev-non-commercial-license",
    ),
}

# Pipelines of diffusers that a folder's model_index.json may name: fields of `Card`, and in `picture` how its
# template shows a picture, where that is not the one of Qwen-Image-Edit-2509.
PIPELINES: dict[str, Mapping[str, Any]] = {
    "QwenImageEditPlusPipeline": {},
    "QwenImageEditPipeline": {
        "picture": "<|vision_start|><|image_pad|><|vision_end|>",
        "picture_pixels": 1024 * 1024,
    },
}


def release_of(folder: Path, hub_id: str | None) -> Release | None:
    """The row of a stored model by its id, of a copy by its folders; None for anything else."""
    if hub_id in RELEASES:
        return RELEASES[hub_id]
    rows = (row for row in RELEASES.values() if row.folders)
    return next((row for row in rows if all((folder / name).is_dir() for name in row.folders)), None)
