"""A tiny CLIP of random weights in the published layout of clip-vit-base-patch32: 16 px pictures, 12 numbers."""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import CLIPConfig, CLIPModel

from flux import write_clip
from released import _random, _write_json

SIDE, WIDTH = 16, 12
LAYERS = {"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}
PREPROCESSOR = {  # as published, in the words of old versions
    "crop_size": SIDE,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": SIDE,
}


def write_clip_folder(folder: Path) -> Path:
    """config.json, model.safetensors, preprocessor_config.json and the tokenizer's files, side by side."""
    folder.mkdir(parents=True)
    write_clip(folder / "parts")
    for file in (folder / "parts" / "tokenizer").iterdir():
        shutil.move(file, folder / file.name)
    shutil.rmtree(folder / "parts")
    vocabulary = len(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    config: dict[str, Any] = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": WIDTH,
        "text_config": LAYERS | {"eos_token_id": 2, "max_position_embeddings": 77, "vocab_size": vocabulary},
        "vision_config": LAYERS | {"image_size": SIDE, "patch_size": 4},
    }
    model = _random(lambda: CLIPModel(CLIPConfig(**config)), seed=6, noise=0.05)
    for name, weight in model.named_parameters():
        # What transformers draws suits widths of hundreds: here it leaves attention silent.
        weight.data *= 3 if weight.ndim == 2 and "embed" not in name else 1
    model.save_pretrained(folder)
    _write_json(folder / "config.json", config)
    _write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    return folder
