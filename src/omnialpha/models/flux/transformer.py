"""FLUX's transformer, called as the multi-image one is; AlphaVAE (arXiv 2507.09308) trains a LoRA of it.

It takes no input pictures and makes one target. Shape letters: B samples, Lt target tokens, T text tokens, C channels
of a token, P of the pooled text, D model width, H heads, E channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from omnialpha.models.transformer.blocks import Rotary, rotate
from omnialpha.models.transformer.model import Shared
from omnialpha.models.transformer.packing import check_backend
from omnialpha.models.transformer.positions import THETA, Layout, Positions, TargetOrder, padding_mask

UNGUIDED = 1.0  # guidance scale of a distilled transformer where none is given; AlphaVAE trains with it


def positions(
    layouts: Sequence[Layout],
    text_lengths: Sequence[int],
    target_order: TargetOrder,
    axes: Sequence[int],
    device: torch.device | str = "cpu",
) -> Positions:
    """Tables and masks of a batch, as `positions.batch_positions`: pictures at (0, row, column), all text at 0."""
    assert all(len(layout.targets) == 1 and not layout.inputs for layout in layouts), "one target and no input pictures"
    assert len(set(text_lengths)) == 1, "texts are padded to one length, and the padding counts"
    counts = [layout.target_tokens for layout in layouts]
    pictures = [_table(torch.cartesian_prod(*map(torch.arange, (1, *layout.targets[0]))), axes) for layout in layouts]
    image = torch.stack([F.pad(table, (0, 0, 0, max(counts) - table.shape[1])) for table in pictures]).to(device)
    text = _table(torch.zeros(text_lengths[0], len(axes)), axes).expand(len(layouts), -1, -1, -1).to(device)
    return Positions(image[:, 0], image[:, 1], text[:, 0], text[:, 1], padding_mask(counts, torch.device(device)))


def _table(ids: Tensor, axes: Sequence[int]) -> Tensor:
    """Cosine and sine (2, rows, E/2), float32, of ids (rows, axes); angles in float64, as published."""
    steps = [torch.arange(0, channels, 2, dtype=torch.float64) / channels for channels in axes]
    angles = torch.cat([ids[:, axis, None] / THETA**step for axis, step in enumerate(steps)], dim=-1)
    return torch.stack((angles.cos(), angles.sin())).float()


class FluxJointAttention:
    """Attention over [text, image] with rotary tables of each sample; a single-stream block has both in one."""

    _attention_backend = None  # set by diffusers' set_attention_backend
    _parallel_config = None

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Image (B, Lt, D) and text (B, T, D), or both in the first -> the same. Mask (B, 1, 1, T + Lt) of keys."""
        assert image_rotary_emb is not None

        def heads(x: Tensor, *layers: Any) -> list[Tensor]:
            return [layer(x).unflatten(-1, (-1, attn.head_dim)) for layer in layers]

        query, key, value = heads(hidden_states, attn.to_q, attn.to_k, attn.to_v)
        query, key = attn.norm_q(query), attn.norm_k(key)
        if encoder_hidden_states is not None:
            text = heads(encoder_hidden_states, attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            query = torch.cat((attn.norm_added_q(text[0]), query), dim=1)
            key = torch.cat((attn.norm_added_k(text[1]), key), dim=1)
            value = torch.cat((text[2], value), dim=1)
        with torch.autocast(value.device.type, enabled=False):
            out = dispatch_attention_fn(
                rotate(query, *image_rotary_emb).to(value.dtype),
                rotate(key, *image_rotary_emb).to(value.dtype),
                value,
                attn_mask=attention_mask,
                backend=self._attention_backend,
                parallel_config=self._parallel_config,
            )
        out = out.flatten(2).to(hidden_states.dtype)  # (B, rows, D)
        if encoder_hidden_states is None:
            return out
        rows = encoder_hidden_states.shape[1]
        return attn.to_out[1](attn.to_out[0](out[:, rows:])), attn.to_add_out(out[:, :rows])


class FluxTransformer(FluxTransformer2DModel):
    """Velocity of the target of a sample, given its text and the positions of every token.

    State dict, configuration and adapters are those of diffusers' FluxTransformer2DModel.
    """

    _cp_plan = None  # type: ignore[assignment]  # diffusers' plan names arguments that this forward does not have

    @wraps(FluxTransformer2DModel.__init__)  # type: ignore[misc]
    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        for block in self.blocks:
            block.attn.set_processor(FluxJointAttention())  # type: ignore[operator,union-attr]
        del self.pos_embed  # positions come as data

    @property
    def blocks(self) -> list[nn.Module]:
        """The dual-stream blocks, then the single-stream ones."""
        return [*self.transformer_blocks, *self.single_transformer_blocks]

    def forward(  # type: ignore[override]
        self,
        targets: Tensor,
        inputs: Tensor,
        text: Tensor,
        t: Tensor,
        positions: Positions,
        shared: Shared | None = None,
        pooled: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """As `MultiImageTransformer.forward`, with inputs (B, 0, C); pooled (B, P); guidance scale (B,), used with
        guidance_embeds alone.
        """
        assert inputs.shape[1] == 0 and pooled is not None, "FLUX takes a pooled text and no input pictures"
        rotary = (
            torch.cat((positions.text_cos, positions.image_cos), dim=1)[:, :, None],  # (B, T + Lt, 1, E/2)
            torch.cat((positions.text_sin, positions.image_sin), dim=1)[:, :, None],
        )
        mask = positions.target_mask
        if mask is not None:
            check_backend(self, "sample sizes", last=True)
            mask = F.pad(mask, (positions.text_cos.shape[1], 0), value=True)[:, None, None]  # (B, 1, 1, T + Lt)
        # in the dtype of the weights, as published, but never in autocast's: bf16 garbles the high frequencies
        numbers = [t.to(pooled.device, pooled.dtype) * 1000]
        if self.config.guidance_embeds:
            scale = torch.full_like(numbers[0], UNGUIDED) if guidance is None else guidance
            numbers.append(scale.to(pooled.dtype) * 1000)
        time = self.time_text_embed(*numbers, pooled)  # (B, D), which modulates every block
        image, text = self.x_embedder(targets), self.context_embedder(text)
        again = torch.is_grad_enabled() and self.gradient_checkpointing
        for block in self.blocks:
            arguments = (image, text, time, rotary, {"attention_mask": mask})
            text, image = self._gradient_checkpointing_func(block, *arguments) if again else block(*arguments)  # type: ignore[misc]
        return self.proj_out(self.norm_out(image, time))

    def tabulate(self, on: bool = True) -> None:
        """Do nothing: modulation depends on the text too."""

    def precompute_modulation(self, times: Tensor) -> None:
        """Do nothing, as above."""
