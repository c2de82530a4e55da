"""Diffusers' QwenImageEditPlusPipeline as the reference: its own code, fed by transformers with the right positions.

Two things are replaced. Its processor needs torchvision: here it is transformers' tokenizer and PIL image processor.
And transformers places picture tokens in one dimension unless it is told better: here it is.
"""

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
from torch import Tensor
from transformers import BatchFeature, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

PAD = "<|image_pad|>"


class TextEncoder:
    """A Qwen2_5_VLForConditionalGeneration called with explicit positions in three dimensions."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration) -> None:
        self.model, self.dtype = model, model.dtype

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, image_grid_thw: Tensor | None, **rest: Any) -> Any:
        pictures = (input_ids == self.model.config.image_token_id).int()
        positions, _ = self.model.model.get_rope_index(
            input_ids, pictures, image_grid_thw=image_grid_thw, attention_mask=attention_mask
        )
        return self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions,
            image_grid_thw=image_grid_thw,
            **rest,
        )


class Processor:
    """What Qwen2VLProcessor makes of one text and its pictures."""

    def __init__(self, tokenizer: Qwen2Tokenizer, pictures: Qwen2VLImageProcessorPil) -> None:
        self.tokenizer, self.pictures = tokenizer, pictures

    def __call__(self, text: list[str], images: list[Image.Image] | None, **_: Any) -> BatchFeature:
        features = dict(self.pictures(images=images, return_tensors="pt")) if images else {}
        counts = [int(grid.prod()) // self.pictures.merge_size**2 for grid in features.get("image_grid_thw", [])]
        first, *others = text[0].split(PAD)
        joined = first + "".join(PAD * n + part for n, part in zip(counts, others, strict=True))
        ids = torch.tensor([self.tokenizer(joined)["input_ids"]])
        return BatchFeature(features | {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def published_pipeline(folder: Path) -> Any:
    """The pipeline of a released folder, float32."""
    tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
    pictures = Qwen2VLImageProcessorPil.from_pretrained(folder / "processor")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    pipeline: Any = QwenImageEditPlusPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        vae=AutoencoderKLQwenImage.from_pretrained(folder / "vae", torch_dtype=torch.float32),
        text_encoder=None,
        tokenizer=tokenizer,
        processor=None,
        transformer=QwenImageTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32),
    )
    pipeline.text_encoder, pipeline.processor = TextEncoder(model), Processor(tokenizer, pictures)
    assert pipeline.prompt_template_encode_start_idx == 64  # true of the released tokenizer only
    prefix = pipeline.prompt_template_encode.split("{}")[0]
    pipeline.prompt_template_encode_start_idx = len(tokenizer(prefix)["input_ids"])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
