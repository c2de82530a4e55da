"""FLUX's transformer, called as the multi-image one is; AlphaVAE (arXiv 2507.09308) trains a LoRA of it.

It takes no input pictures and makes one target. Shape letters: B samples, Lt target tokens, T text tokens, C channels
of a token, P of the pooled text, D model width, H heads, E channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from omnialpha.errors import InputError
from omnialpha.models.transformer.blocks import Rotary, rotate
from omnialpha.models.transformer.model import NO_MASK, Shared
from omnialpha.models.transformer.packing import active_backend
from omnialpha.models.transformer.positions import THETA, Layout, Positions, TargetOrder

UNGUIDED = 1.0  # the guidance that a distilled transformer is told where nobody says one; AlphaVAE trains with it


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
    mask = None
    if min(counts) < max(counts):
        mask = (torch.arange(max(counts)) < torch.tensor(counts)[:, None]).to(device)
    return Positions(image[:, 0], image[:, 1], text[:, 0], text[:, 1], target_mask=mask)


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
        query, key, value = (
            layer(hidden_states).unflatten(-1, (-1, attn.head_dim)) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = attn.norm_q(query), attn.norm_k(key)
        if encoder_hidden_states is not None:
            text = [
                layer(encoder_hidden_states).unflatten(-1, (-1, attn.head_dim))
                for layer in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            ]
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

    @register_to_config
    def __init__(
        self,
        patch_size: int = 1,
        in_channels: int = 64,
        out_channels: int | None = None,
        num_layers: int = 19,
        num_single_layers: int = 38,
        attention_head_dim: int = 128,
        num_attention_heads: int = 24,
        joint_attention_dim: int = 4096,
        pooled_projection_dim: int = 768,
        guidance_embeds: bool = False,
        axes_dims_rope: tuple[int, int, int] = (16, 56, 56),
    ) -> None:
        super().__init__(
            patch_size=patch_size,
            in_channels=in_channels,
            out_channels=out_channels,
            num_layers=num_layers,
            num_single_layers=num_single_layers,
            attention_head_dim=attention_head_dim,
            num_attention_heads=num_attention_heads,
            joint_attention_dim=joint_attention_dim,
            pooled_projection_dim=pooled_projection_dim,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=axes_dims_rope,
        )
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
        """Velocity (B, Lt, C) of noisy targets (B, Lt, C) at time t (B,) in [0, 1].

        inputs (B, 0, C); text (B, T, joint_attention_dim); pooled (B, P); guidance (B,), heard with guidance_embeds
        alone. Rows of the output that are padding hold arbitrary finite values.
        """
        assert inputs.shape[1] == 0 and pooled is not None, "FLUX takes a pooled text and no input pictures"
        rotary = (
            torch.cat((positions.text_cos, positions.image_cos), dim=1)[:, :, None],  # (B, T + Lt, 1, E/2)
            torch.cat((positions.text_sin, positions.image_sin), dim=1)[:, :, None],
        )
        mask = self._key_mask(positions)
        time = self._time(t, pooled, guidance)
        image, text = self.x_embedder(targets), self.context_embedder(text)
        for block in self.blocks:
            text, image = self._block(block, image, text, time, rotary, {"attention_mask": mask})
        return self.proj_out(self.norm_out(image, time))

    def _time(self, t: Tensor, pooled: Tensor, guidance: Tensor | None) -> Tensor:
        """What modulates every block, (B, D): time, guidance and the pooled text together."""
        # in the dtype of the weights, as published, but never in autocast's: bf16 garbles the high frequencies
        numbers = [t.to(pooled.device, pooled.dtype) * 1000]
        if self.config.guidance_embeds:
            scale = torch.full_like(numbers[0], UNGUIDED) if guidance is None else guidance
            numbers.append(scale.to(pooled.dtype) * 1000)
        return self.time_text_embed(*numbers, pooled)

    def _block(self, block: nn.Module, *arguments: Any) -> tuple[Tensor, Tensor]:
        """A block's text and image; recomputed in the backward pass if gradient checkpointing is on."""
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *arguments)  # type: ignore[misc]
        return block(*arguments)

    def _key_mask(self, positions: Positions) -> Tensor | None:
        """Boolean (B, 1, 1, T + Lt), True on the keys that count; None if nothing is padded."""
        mask = positions.target_mask
        if mask is None:
            return None
        processor: Any = self.get_submodule("transformer_blocks.0.attn").processor
        name = active_backend(processor._attention_backend)
        if name in NO_MASK:
            raise InputError(f"Attention back end {name!r} cannot mix sample sizes: use 'native' or equal ones.")
        return F.pad(mask, (positions.text_cos.shape[1], 0), value=True)[:, None, None]

    def tabulate(self, on: bool = True) -> None:
        """Nothing to take out: modulation depends on the text too."""

    def precompute_modulation(self, times: Tensor) -> None:
        """Nothing to make ahead, as above."""
