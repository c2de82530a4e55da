"""A random model in exactly the released layout, of any size, through both sides: ours and diffusers' own pipeline.

Both read one folder. Diffusers' pipeline runs as it is but for three things: its processor class needs torchvision, so
it gets our tokenizer and transformers' PIL image processor; the length of the template is computed, because 64 is true
of the released tokenizer alone; and it sizes pictures to the benchmark's area instead of a megapixel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from PIL import Image
from transformers import BatchFeature, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import omnialpha
from omnialpha.models.checkpoints.card import INDEX, write_json
from omnialpha.models.text_encoder.encoder import PAD, Template
from omnialpha.models.text_encoder.tiny import train_tokenizer
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import TASKS

SCHEDULER = {
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
    "use_dynamic_shifting": True,
}


@dataclass(frozen=True)
class Shape:
    """Settings of the four networks; all others are those of the released weights."""

    vae: dict[str, Any] = field(default_factory=dict)
    transformer: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)
    mrope_section: tuple[int, int, int] = (16, 24, 24)


# The autoencoder is the released one; the others have the released widths of a head and proportions, and fewer of each.
MID = Shape(
    transformer={"num_layers": 8, "num_attention_heads": 5, "joint_attention_dim": 512},
    text={
        "vocab_size": 8192,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 9,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    vision={
        "depth": 8,
        "hidden_size": 320,
        "intermediate_size": 864,
        "num_heads": 4,
        "out_hidden_size": 512,
        "fullatt_block_indexes": [1, 3, 5, 7],
    },
)
SMALL = Shape(
    vae={"base_dim": 8, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1},
    transformer={
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "joint_attention_dim": 32,
        "axes_dims_rope": (4, 6, 6),
    },
    text={
        "vocab_size": 2048,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
    vision={
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
    },
    mrope_section=(2, 3, 3),
)


# ---- writing and reading -----------------------------------------------------------------------------------------


def write(folder: Path, shape: Shape, seed: int) -> dict[str, int]:
    """The folder of a QwenImageEditPlusPipeline, weights in bfloat16 as published -> parameters of each network."""
    corpus = [Template.EDIT.prefix, Template.EDIT.suffix, *(words for t in TASKS.values() for words in t.instructions)]
    tokenizer = train_tokenizer([*corpus, Template.EDIT.picture.format(i=1)], shape.text["vocab_size"])
    ids = tokenizer.get_vocab()
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(shape.mrope_section)}
    text = shape.text | {"rope_parameters": rope, "bos_token_id": None, "eos_token_id": ids["<|im_end|>"]}
    tokens = {
        "image_token_id": ids[PAD],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=shape.vision, **tokens)
    models: dict[str, Callable[[], Any]] = {
        "transformer": lambda: QwenImageTransformer2DModel(**shape.transformer),
        "vae": lambda: AutoencoderKLQwenImage(**shape.vae),
        "text_encoder": lambda: Qwen2_5_VLForConditionalGeneration(config),
    }
    counts = {}
    for name, build in models.items():
        model = _random(build, seed)
        if name == "vae":
            model.decoder.conv_out.weight.data *= 10  # a picture with contrast
        counts[name] = sum(p.numel() for p in model.parameters())
        model.bfloat16().save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / "tokenizer")
    Qwen2VLImageProcessorPil().save_pretrained(folder / "processor")
    FlowMatchEulerDiscreteScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    write_json(folder / INDEX, {"_class_name": "QwenImageEditPlusPipeline"})
    return counts


@torch.no_grad()
def _random(build: Callable[[], Any], seed: int) -> Any:
    """A model whose biases and norms are random too: what starts at one or zero takes part in the comparison."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        for name, weight in model.named_parameters():
            if weight.squeeze().ndim == 1:
                weight += 0.1 * torch.randn_like(weight)
            elif isinstance(model, Qwen2_5_VLForConditionalGeneration) and weight.ndim == 2 and "embed" not in name:
                weight *= 3  # the 0.02 that transformers draws with suits widths of thousands
    return model.eval()


def load_ours(folder: Path, device: torch.device, dtype: torch.dtype) -> OmniAlpha:
    """The folder as our model, its RGB autoencoder widened to RGBA."""
    return omnialpha.load(folder, device=str(device), dtype=str(dtype).removeprefix("torch."))


class Processor:
    """What Qwen2VLProcessor makes of one text and its pictures, without torchvision."""

    def __init__(self, tokenizer: Qwen2Tokenizer, pictures: Qwen2VLImageProcessorPil) -> None:
        self.tokenizer, self.pictures = tokenizer, pictures

    def __call__(self, text: list[str], images: list[Image.Image], **_: Any) -> BatchFeature:
        features = dict(self.pictures(images=images, return_tensors="pt"))
        counts = [int(grid.prod()) // self.pictures.merge_size**2 for grid in features["image_grid_thw"]]
        first, *others = text[0].split(PAD)
        ids = self.tokenizer(first + "".join(PAD * n + part for n, part in zip(counts, others, strict=True)))
        tokens = torch.tensor([ids["input_ids"]])
        return BatchFeature(features | {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})


def load_theirs(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The folder as diffusers' pipeline."""
    tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    pictures = Qwen2VLImageProcessorPil.from_pretrained(folder / "processor", local_files_only=True)
    options = {"torch_dtype": dtype, "local_files_only": True}
    text = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder / "text_encoder", dtype=dtype, attn_implementation="sdpa", local_files_only=True
    )
    pipeline: Any = QwenImageEditPlusPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler", local_files_only=True),
        vae=AutoencoderKLQwenImage.from_pretrained(folder / "vae", **options),
        text_encoder=text.eval(),
        tokenizer=tokenizer,
        processor=None,
        transformer=QwenImageTransformer2DModel.from_pretrained(folder / "transformer", **options),
    )
    pipeline.to(device)
    pipeline.processor = Processor(tokenizer, pictures)
    prefix = pipeline.prompt_template_encode.split("{}")[0]
    pipeline.prompt_template_encode_start_idx = len(tokenizer(prefix)["input_ids"])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


LOADERS: dict[str, Callable[[Path, torch.device, torch.dtype], Any]] = {"diffusers": load_theirs, "ours": load_ours}
