"""Condition pictures: the same numbers as the published processing, and the same vision tower, faster."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions
from PIL import Image
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omnialpha.models.text_encoder.vision import condition_size, patchify_all, speed_up, tower_inputs

RELEASED = 384 * 384


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """Opaque picture (4, H, W) of 8-bit values."""
    rgb = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)) / 255
    return torch.cat([rgb, torch.ones(1, height, width)])


def as_pil(rgba: Tensor) -> Image.Image:
    return Image.fromarray((rgba[:3] * 255).round().byte().permute(1, 2, 0).numpy())


def test_condition_size_is_that_of_the_edit_pipeline() -> None:
    for height, width in [(1024, 1024), (768, 1024), (1600, 900), (31, 47), (2000, 300), (1, 1)]:
        wide, high = calculate_dimensions(RELEASED, width / height)
        assert condition_size(height, width, RELEASED) == (high, wide)


@pytest.mark.parametrize("pixels", [96 * 96, 0])
@pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
def test_very_thin_pictures_still_have_a_size(size: tuple[int, int], pixels: int) -> None:
    high, wide = condition_size(*size, pixels)
    assert min(high, wide) == 32 and max(high, wide) / min(high, wide) < 200


@pytest.mark.parametrize("sizes", [[(96, 96)] * 3, [(300, 200), (96, 96), (300, 200), (40, 500)]])
@pytest.mark.parametrize("patch, pixels", [(14, RELEASED), (16, 96 * 96)])
def test_patches_equal_diffusers_resize_then_the_image_processor(
    sizes: list[tuple[int, int]], patch: int, pixels: int
) -> None:
    processor = Qwen2VLImageProcessorPil(patch_size=patch, size={"shortest_edge": 1024, "longest_edge": 2**20})
    pictures = [picture(*size, seed=i) for i, size in enumerate(sizes)]
    resizer, resized = VaeImageProcessor(vae_scale_factor=16), []
    for rgba in pictures:
        wide, high = calculate_dimensions(pixels, rgba.shape[-1] / rgba.shape[-2])
        resized.append(resizer.resize(as_pil(rgba), high, wide))
    expected = processor(images=resized, return_tensors="pt")
    patches, grids = patchify_all(pictures, processor, pixels)
    assert patches is not None and grids is not None
    assert torch.equal(grids, expected["image_grid_thw"])
    assert torch.allclose(patches, expected["pixel_values"], rtol=0, atol=1e-6)


def test_patches_of_pictures_at_their_own_size_equal_the_image_processor_alone() -> None:
    processor = Qwen2VLImageProcessorPil()
    pictures = [picture(*size, seed=i) for i, size in enumerate([(96, 160), (133, 61)])]
    expected = processor(images=[as_pil(rgba) for rgba in pictures], return_tensors="pt")
    patches, grids = patchify_all(pictures, processor, 0)
    assert patches is not None and grids is not None
    assert grids.tolist() == expected["image_grid_thw"].tolist() == [[1, 6, 12], [1, 10, 4]]
    assert torch.allclose(patches, expected["pixel_values"], rtol=0, atol=1e-6)


def test_transparency_is_composited_on_white() -> None:
    processor = Qwen2VLImageProcessorPil(patch_size=16)
    rgba = picture(96, 96)
    rgba[3] = torch.linspace(0, 1, 96)
    rgba[3, :48] = 0
    flat = torch.cat([rgba[:3] * rgba[3] + (1 - rgba[3]), torch.ones(1, 96, 96)])
    patches, other = (patchify_all([x], processor, 96 * 96)[0] for x in (rgba, flat))
    assert patches is not None and other is not None and torch.equal(patches, other)
    white = (1 - np.array(processor.image_mean)) / np.array(processor.image_std)
    first = patches[0].view(3, -1)  # upper left patch, all of it transparent
    assert np.allclose(first, np.broadcast_to(white[:, None], first.shape), atol=1e-6)


def test_no_picture_gives_no_patches() -> None:
    assert patchify_all([], Qwen2VLImageProcessorPil(), RELEASED) == (None, None)


@pytest.mark.parametrize("sizes", [[(96, 96)] * 3, [(96, 96), (192, 128), (96, 96)]], ids=["even", "uneven"])
@pytest.mark.parametrize("full", [[0, 1], [1]], ids=["full", "windows"])
def test_the_faster_tower_equals_transformers(sizes: list[tuple[int, int]], full: list[int]) -> None:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 16,
        "window_size": 64,
        "out_hidden_size": 32,
    }
    text: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 16,
    }
    text |= {"num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision | {"fullatt_block_indexes": full})
    torch.manual_seed(0)
    model = Qwen2_5_VLModel(config)
    fast = copy.deepcopy(model)
    speed_up(fast.visual)
    assert fast.state_dict().keys() == model.state_dict().keys()

    processor = Qwen2VLImageProcessorPil(patch_size=16)
    parts = [patchify_all([picture(*size)], processor, size[0] * size[1]) for size in sizes]
    patches = torch.cat([part[0] for part in parts if part[0] is not None])
    grids = torch.cat([part[1] for part in parts if part[1] is not None])
    made = tower_inputs(fast.visual, grids, torch.device("cpu"))
    expected = torch.cat(model.get_image_features(patches, grids).pooler_output)
    out = torch.cat(fast.get_image_features(patches, grids, **made).pooler_output)
    assert torch.allclose(out, expected, atol=1e-5)

    out.square().sum().backward()
    expected.square().sum().backward()
    for (name, ours), theirs in zip(fast.visual.named_parameters(), model.visual.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        scale = theirs.grad.abs().max().clamp(min=1)
        assert (ours.grad - theirs.grad).abs().max() / scale < 1e-4, name
