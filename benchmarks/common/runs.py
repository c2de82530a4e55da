"""One run of the released layout through either side, timed part by part; its peak memory; its pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as published
from PIL import Image
from torch import Tensor

from common.released_layout import LOADERS
from common.timing import now, peak_bytes
from omnialpha.pipeline import OmniAlpha
from omnialpha.sampling import sample, schedule
from omnialpha.tasks import TASKS, Example


def picture(size: int, seed: int) -> Tensor:
    """(4, size, size) of smooth, opaque colours in whole 8-bit values."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 5, generator=generator)
    rgb = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")[0].clamp(0, 1)
    return torch.cat([rgb.mul(255).round() / 255, torch.ones(1, size, size)])


def example(size: int, n: int = 1, m: int = 1, seed: int = 0) -> Example:
    """A request with n inputs and m targets: one and one, two and one, or one and two."""
    image = picture(size, seed)
    if n == 2:
        return TASKS["matting_precise"].example(image=image, precise=picture(size, seed + 1))
    return (
        TASKS["decompose_auto"].example(image=image, layers=m) if m > 1 else TASKS["matting_auto"].example(image=image)
    )


def as_image(rgba: Tensor) -> Image.Image:
    return Image.fromarray(rgba[:3].mul(255).round().byte().permute(1, 2, 0).numpy())


@dataclass
class Phases:
    """Seconds of one run. condition: pictures and both prompts encoded; steps: one each; decode: to a picture."""

    condition: float
    steps: list[float]
    decode: float

    @classmethod
    def between(cls, marks: list[float]) -> Phases:
        condition, *steps, decode = (b - a for a, b in zip(marks[:-1], marks[1:], strict=True))
        return cls(condition, steps, decode)

    @property
    def whole(self) -> float:
        return self.condition + sum(self.steps) + self.decode


@torch.inference_mode()
def run_ours(model: OmniAlpha, asked: Example, steps: int, guidance: float, seed: int = 0) -> Phases:
    """One guided run, as `OmniAlpha.run` makes it, to the model's own picture."""
    marks = [now(model.device)]
    cond = model.condition([asked], guided=True)
    noise, times = model.noise(cond, seed), schedule(steps, cond.target_tokens, model.card.shift)
    marks.append(now(model.device))
    for step in sample(model.guided(cond, guidance), noise, times):
        x = step.x
        marks.append(now(model.device))
    model.decode(x, cond, raw=True)
    marks.append(now(model.device))
    return Phases.between(marks)


def run_theirs(pipeline: Any, asked: Example, steps: int, guidance: float, seed: int = 0) -> Phases:
    """One guided run of diffusers' pipeline."""
    device = pipeline.transformer.device
    settings = theirs_settings(asked, steps, guidance) | {"generator": torch.Generator().manual_seed(seed)}
    marks = [now(device)]

    def begin(*_: Any) -> None:
        if len(marks) == 1:
            marks.append(now(device))

    def end(_: Any, index: int, time: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        marks.append(now(device))
        return {}

    hook = pipeline.transformer.register_forward_pre_hook(begin)
    pipeline(**settings, callback_on_step_end=end)
    hook.remove()
    marks.append(now(device))
    return Phases.between(marks)


def theirs_settings(asked: Example, steps: int, guidance: float) -> dict[str, Any]:
    """Arguments of diffusers' pipeline for an example of square pictures, at their size."""
    height, width = asked.size
    published.VAE_IMAGE_SIZE = height * width
    return {
        "image": [as_image(one) for one in asked.inputs],
        "prompt": asked.instruction,
        "negative_prompt": "",
        "true_cfg_scale": guidance,
        "height": height,
        "width": width,
        "num_inference_steps": steps,
        "output_type": "pt",
    }


@contextmanager
def placed(encoder: Any) -> Iterator[None]:
    """Have diffusers' text model place pictures in three dimensions; its pipeline under transformers 5 does in one."""
    real = encoder.forward

    def forward(input_ids: Tensor, image_grid_thw: Tensor, **rest: Any) -> Any:
        kinds = (input_ids == encoder.config.image_token_id).int()
        positions, _ = encoder.model.get_rope_index(input_ids, kinds, image_grid_thw=image_grid_thw)
        return real(input_ids=input_ids, image_grid_thw=image_grid_thw, position_ids=positions, **rest)

    encoder.forward = forward
    try:
        yield
    finally:
        del encoder.forward


RUNNERS: dict[str, Callable[..., Phases]] = {"diffusers": run_theirs, "ours": run_ours}


def print_memory(side: str, folder: str, size: int, device: str, dtype: str) -> None:
    """In a process of its own: peak bytes [after loading, after a guided run of one step], as JSON."""
    where = torch.device(device)
    model = LOADERS[side](Path(folder), where, getattr(torch, dtype))
    loaded = peak_bytes(where)
    RUNNERS[side](model, example(size), 1, 4.0)
    print(json.dumps([loaded, peak_bytes(where)]))
