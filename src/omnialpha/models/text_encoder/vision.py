"""Condition pictures as Qwen2.5-VL takes them: processing, and a faster forward pass of its vision tower.

Sizes are (height, width) in pixels; grids are (1, rows, columns) in patches. Parameters and results are transformers'.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionPatchEmbed,
    Qwen2_5_VLVisionAttention,
    apply_rotary_pos_emb_vision,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from omnialpha.rgba import flatten

SIZE_STEP = 32  # condition pictures are resized to multiples of this (diffusers, QwenImageEditPlusPipeline)
MAX_RATIO = 100.0  # width : height; the processor refuses pictures thinner than 200 : 1


def condition_size(height: int, width: int, pixels: int) -> tuple[int, int]:
    """Size of about `pixels` area and the picture's aspect in multiples of 32, as diffusers' edit pipeline takes it.

    With 0 pixels a picture keeps its size.
    """
    ratio = min(max(width / height, 1 / MAX_RATIO), MAX_RATIO)
    if not pixels and ratio == width / height:
        return height, width
    wide = math.sqrt((pixels or height * width) * ratio)
    high = wide / ratio
    return max(round(high / SIZE_STEP), 1) * SIZE_STEP, max(round(wide / SIZE_STEP), 1) * SIZE_STEP


def resize(rgb: Tensor, size: tuple[int, int], method: Image.Resampling) -> Tensor:
    """(N, 3, H, W) uint8 -> (N, 3, *size) uint8 by Pillow, whose filters the weights were trained with."""
    if rgb.shape[-2:] == size:
        return rgb
    pictures = [Image.fromarray(picture) for picture in rgb.permute(0, 2, 3, 1).contiguous().cpu().numpy()]
    resized = np.stack([np.asarray(picture.resize(size[::-1], method)) for picture in pictures])
    return torch.from_numpy(resized).permute(0, 3, 1, 2).to(rgb.device)


def patchify(rgba: Tensor, processor: Qwen2VLImageProcessorPil, pixels: int) -> tuple[Tensor, tuple[int, int, int]]:
    """(N, 4, H, W) [0, 1] -> composites on white as patches (N, rows * columns, 3 * time * patch^2), and their grid."""
    patch, merge = processor.patch_size, processor.merge_size
    rgb = flatten(rgba.float()).mul_(255).round_().clamp_(0, 255).to(torch.uint8)
    size = condition_size(rgb.shape[-2], rgb.shape[-1], pixels)
    rgb = resize(rgb, size, Image.Resampling.LANCZOS)
    size = smart_resize(*size, patch * merge, processor.size["shortest_edge"], processor.size["longest_edge"])
    rgb = resize(rgb, size, Image.Resampling.BICUBIC)
    mean, std = (torch.tensor(v, device=rgb.device).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
    x = (rgb.float() * processor.rescale_factor - mean) / std
    rows, columns = size[0] // patch, size[1] // patch
    x = x.view(len(x), 3, rows // merge, merge, patch, columns // merge, merge, patch)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7)  # blocks of merge x merge patches stay together
    x = x.unsqueeze(6).expand(*x.shape[:6], processor.temporal_patch_size, patch, patch)  # a still, repeated in time
    return x.reshape(len(x), rows * columns, -1), (1, rows, columns)


def patchify_all(
    pictures: Sequence[Tensor], processor: Qwen2VLImageProcessorPil, pixels: int
) -> tuple[Tensor | None, Tensor | None]:
    """Pictures (4, H, W) of any sizes -> patches of all in their order, and grids (pictures, 3) on the CPU."""
    if not pictures:
        return None, None
    assert all(picture.ndim == 3 and picture.shape[0] == 4 for picture in pictures), "pictures are (4, H, W)"
    groups: dict[torch.Size, list[int]] = {}
    for index, picture in enumerate(pictures):
        groups.setdefault(picture.shape, []).append(index)
    patches, grids = [pictures[0]] * len(pictures), torch.empty(len(pictures), 3, dtype=torch.int64)
    for indices in groups.values():  # equal sizes together: a batch of small pictures costs a handful of operations
        parts, grid = patchify(torch.stack([pictures[i] for i in indices]), processor, pixels)
        grids[indices] = torch.tensor(grid)
        for i, part in zip(indices, parts, strict=True):
            patches[i] = part
    return torch.cat(patches), grids


class EvenAttention(Qwen2_5_VLVisionAttention):
    """The parent calls attention once per picture or window; equally long ones fit one call, which a GPU needs."""

    def forward(
        self,
        hidden_states: Tensor,  # (S, C), all pictures one after the other
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        max_seqlen: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(S, C) -> (S, C); `cu_seqlens`: where each picture or window begins, and S."""
        lengths = cu_seqlens.diff().tolist()
        if len(set(lengths)) > 1 or position_embeddings is None:
            return super().forward(hidden_states, cu_seqlens, position_embeddings, max_seqlen, **kwargs)
        q, k, v = self.qkv(hidden_states).view(len(hidden_states), 3, self.num_heads, -1).unbind(1)
        q, k = apply_rotary_pos_emb_vision(q, k, *position_embeddings)
        q, k, v = (x.unflatten(0, (len(lengths), -1)).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scaling)
        return self.proj(out.transpose(1, 2).reshape(hidden_states.shape))


class PatchProduct(Qwen2_5_VisionPatchEmbed):
    """Patches come cut and flat, so the parent's strided 3-D convolution is one matrix product: same sum, faster."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(S, 3 * time * patch^2) -> (S, C)."""
        return F.linear(hidden_states.to(self.proj.weight.dtype), self.proj.weight.flatten(1))


def speed_up(tower: nn.Module) -> None:
    """Give a tower the two forward passes above, in place; parameters and their names stay."""
    for module in tower.modules():
        if type(module) is Qwen2_5_VLVisionAttention:
            module.__class__ = EvenAttention
        elif type(module) is Qwen2_5_VisionPatchEmbed:
            module.__class__ = PatchProduct


def tower_inputs(tower: Any, grids: Tensor, device: torch.device) -> dict[str, Tensor]:
    """What a tower derives from grids (pictures, 3), as arguments of Qwen2_5_VLModel.

    Made once per size and, where Python loops read it, left on the CPU: otherwise a GPU waits for it in every block.
    """
    known: dict[tuple[int, ...], tuple[Tensor, Tensor, Tensor]] = {}
    positions, windows, lengths, start = [], [], [], 0
    for grid in map(tuple, grids.tolist()):
        if grid not in known:
            one, merge = torch.tensor([grid]), tower.spatial_merge_size
            index, ends = get_vision_window_index(one, merge, tower.window_size, tower.patch_size)
            known[grid] = get_vision_position_ids(one, merge), index, ends.diff()
        position, index, length = known[grid]
        positions.append(position)
        windows.append(index + start)
        lengths.append(length)
        start += len(index)
    return {
        "image_position_ids": torch.cat(positions).to(device, non_blocking=True),
        "image_window_index": torch.cat(windows).to(device, non_blocking=True),
        "image_cu_window_seqlens": F.pad(torch.cat(lengths).cumsum(0), (1, 0)),
        "image_cu_seqlens": F.pad(grids.prod(-1).cumsum(0), (1, 0)),
    }
