"""Multi-image diffusion transformer: diffusers' Qwen-Image weights, with our positions, packing and key masks.

Shape letters: B samples, L image tokens (Lt of targets, then Li of inputs), T text tokens, C channels of a token,
D model width, H heads, E channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_dispatch import _AttentionBackendRegistry, dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel, QwenImageTransformerBlock
from torch import Tensor, nn

from omnialpha.errors import InputError
from omnialpha.models.positions import Positions

# In the last block the text stream only serves as keys and values: nothing reads what these modules would compute.
DEAD = ("attn.add_q_proj", "attn.norm_added_q", "attn.to_add_out", "txt_mlp")

# Attention back ends that take any key mask. The others keep the first keys: right for padded text, which comes last,
# but they would drop real tokens that follow a padded picture.
ANY_MASK = ("native", "_native_cudnn", "_native_efficient", "_native_math", "_native_npu", "_native_xla", "xformers")


def pack(latents: Tensor, patch: int = 2) -> Tensor:
    """Latents (B, C, h, w) to tokens (B, h/patch * w/patch, C * patch * patch), channels ordered C, row, column."""
    b, c, h, w = latents.shape
    assert h % patch == 0 and w % patch == 0, f"latents of {h} x {w} do not divide into patches of {patch}"
    cells = latents.reshape(b, c, h // patch, patch, w // patch, patch)
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, h: int, w: int, patch: int = 2) -> Tensor:
    """Inverse of `pack`: tokens (B, h/patch * w/patch, C * patch * patch) to latents (B, C, h, w)."""
    rows, columns = h // patch, w // patch
    assert tokens.shape[1] == rows * columns, f"{tokens.shape[1]} tokens are not latents of {h} x {w}"
    cells = tokens.unflatten(2, (-1, patch, patch)).unflatten(1, (rows, columns))
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(tokens.shape[0], -1, h, w)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the channel pairs (2i, 2i+1) of x (B, L, H, E) by the angles of cos, sin (B, L, 1, E/2); float32 out."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if not torch.compiler.is_compiling():  # a complex product has the same bits, is 5 times faster, but cannot be fused
        return torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin)).flatten(-2)
    even, odd = pairs.unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class JointAttention:
    """Attention over [image, text] with rotary positions; with `query_rows` only that many outputs."""

    _attention_backend = None  # set by diffusers' set_attention_backend
    _parallel_config = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
        query_rows: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Image (B, L, D), text (B, T, D), key mask (B, 1, 1, L + T), tables (B, L + T, 1, E/2) -> image and text.

        With `query_rows` the image has that many rows, the first ones, and the text output is None.
        """
        assert rotary is not None
        image, text = hidden_states, encoder_hidden_states
        cos, sin = rotary
        channels = attn.inner_dim // attn.heads

        def heads(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (-1, channels))  # (B, rows, H, E); H may be a shard of the heads

        query = attn.norm_q(heads(attn.to_q(image[:, :query_rows])))  # type: ignore[misc]
        image_key = attn.norm_k(heads(attn.to_k(image)))  # type: ignore[misc]
        text_key = attn.norm_added_k(heads(attn.add_k_proj(text)))  # type: ignore[misc]
        if query_rows is None:
            text_query = attn.norm_added_q(heads(attn.add_q_proj(text)))  # type: ignore[misc]
            query = torch.cat((query, text_query), dim=1)
        key = torch.cat((image_key, text_key), dim=1)
        value = torch.cat((heads(attn.to_v(image)), heads(attn.add_v_proj(text))), dim=1)
        dtype = value.dtype
        if torch.is_grad_enabled() and value.device.type == "cpu":
            value = value.float()  # the backward pass of bf16 attention is several times slower than float32's on a CPU
        with torch.autocast(value.device.type, enabled=False):
            out = dispatch_attention_fn(
                rotate(query, cos[:, :query_rows], sin[:, :query_rows]).to(value.dtype),
                rotate(key, cos, sin).to(value.dtype),
                value,
                attn_mask=attention_mask,
                backend=self._attention_backend,
                parallel_config=self._parallel_config,
            )
        out = out.flatten(2).to(dtype)  # (B, L + T or query_rows, D)
        if query_rows is not None:
            return attn.to_out[1](attn.to_out[0](out)), None
        rows = image.shape[1]
        return attn.to_out[1](attn.to_out[0](out[:, :rows])), attn.to_add_out(out[:, rows:])


class MultiImageBlock(QwenImageTransformerBlock):
    """Dual-stream block with diffusers' parameters; inputs may be modulated with another time than the targets."""

    def forward(  # type: ignore[override]
        self,
        image: Tensor,
        text: Tensor,
        time: Tensor,
        time_zero: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        key_mask: Tensor | None,
        target_rows: int,
        last: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Image (B, L, D), text (B, T, D), embedded time (B, D) and, for the inputs, time_zero (1, D) -> image, text.

        The last block returns (B, Lt, D) and None: nothing reads its inputs and text.
        """
        image_params = self.img_mod(time)[:, None]  # (B, 1, 6 D)
        if time_zero is not None:
            zero = self.img_mod(time_zero)[:, None].expand(image.shape[0], image.shape[1] - target_rows, -1)
            image_params = torch.cat((image_params.expand(-1, target_rows, -1), zero), dim=1)  # (B, L, 6 D)
        shift, scale, gate, *mlp_params = image_params.chunk(6, dim=-1)
        text_shift, text_scale, text_gate, *text_mlp_params = self.txt_mod(time)[:, None].chunk(6, dim=-1)

        image_out, text_out = self.attn(
            hidden_states=self.img_norm1(image) * (1 + scale) + shift,
            encoder_hidden_states=self.txt_norm1(text) * (1 + text_scale) + text_shift,
            attention_mask=key_mask,
            rotary=rotary,
            query_rows=target_rows if last else None,
        )
        rows = image_out.shape[1]
        image = image[:, :rows] + gate[:, :rows] * image_out
        image = _add_mlp(image, self.img_norm2, self.img_mlp, [part[:, :rows] for part in mlp_params])
        if text_out is None:
            return image, None
        return image, _add_mlp(text + text_gate * text_out, self.txt_norm2, self.txt_mlp, text_mlp_params)


def _add_mlp(x: Tensor, norm: nn.Module, mlp: nn.Module, params: list[Tensor]) -> Tensor:
    """x (B, rows, D) plus its gated MLP; params = shift, scale, gate. Half precision is kept from overflowing."""
    shift, scale, gate = params
    x = x + gate * mlp(norm(x) * (1 + scale) + shift)
    return x.clip(-65504, 65504) if x.dtype == torch.float16 else x


class MultiImageTransformer(QwenImageTransformer2DModel):
    """Velocity of all targets of a sample, given its input pictures, its text and the positions of every token.

    State dict, configuration and adapters are those of diffusers' QwenImageTransformer2DModel.
    """

    _no_split_modules = ["MultiImageBlock"]
    _repeated_blocks = ["MultiImageBlock"]
    _cp_plan = None  # type: ignore[assignment]  # diffusers' plan names arguments that this forward does not have

    @register_to_config
    def __init__(
        self,
        patch_size: int = 2,
        in_channels: int = 64,
        out_channels: int | None = 16,
        num_layers: int = 60,
        attention_head_dim: int = 128,
        num_attention_heads: int = 24,
        joint_attention_dim: int = 3584,
        guidance_embeds: bool = False,
        axes_dims_rope: tuple[int, int, int] = (16, 56, 56),
        zero_cond_t: bool = False,
        use_additional_t_cond: bool = False,
        use_layer3d_rope: bool = False,
    ) -> None:
        for name, given in (("use_additional_t_cond", use_additional_t_cond), ("use_layer3d_rope", use_layer3d_rope)):
            if given:
                raise InputError(f"These weights need {name}=True (Qwen-Image-Layered): use Qwen-Image-Edit weights.")
        super().__init__(
            patch_size=patch_size,
            in_channels=in_channels,
            out_channels=out_channels,
            num_layers=0,  # our blocks follow
            attention_head_dim=attention_head_dim,
            num_attention_heads=num_attention_heads,
            joint_attention_dim=joint_attention_dim,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=axes_dims_rope,
            zero_cond_t=zero_cond_t,
            use_additional_t_cond=use_additional_t_cond,
            use_layer3d_rope=use_layer3d_rope,
        )
        self.register_to_config(num_layers=num_layers)
        blocks = [
            MultiImageBlock(self.inner_dim, num_attention_heads, attention_head_dim, zero_cond_t=zero_cond_t)
            for _ in range(num_layers)
        ]
        self.transformer_blocks = nn.ModuleList(blocks)
        for block in blocks:
            block.attn.set_processor(JointAttention())  # type: ignore[arg-type]
        del self.pos_embed  # positions come as data

    def forward(  # type: ignore[override]
        self,
        targets: Tensor,
        inputs: Tensor,
        text: Tensor,
        t: Tensor,
        positions: Positions,
        target_mask: Tensor | None = None,
        input_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Velocity (B, Lt, patch * patch * out_channels) of noisy targets (B, Lt, C) at time t (B,) in [0, 1].

        Inputs (B, Li, C), Li may be 0; text (B, T, joint_attention_dim). Masks that are not given are those of
        `positions`. Rows of the output that are padding hold arbitrary finite values.
        """
        target_rows = targets.shape[1]
        image = self.img_in(torch.cat((targets, inputs), dim=1))
        text_stream: Tensor | None = self.txt_in(self.txt_norm(text))
        time, time_zero = self._embed_time(t, image)
        target_mask = positions.target_mask if target_mask is None else target_mask
        input_mask = positions.input_mask if input_mask is None else input_mask
        text_mask = positions.text_mask if text_mask is None else text_mask
        if target_mask is not None or input_mask is not None:
            self._check_backend()
        key_mask = _key_mask((target_mask, input_mask, text_mask), (targets, inputs, text))
        rotary = (
            torch.cat((positions.image_cos, positions.text_cos), dim=1)[:, :, None],  # (B, L + T, 1, E/2)
            torch.cat((positions.image_sin, positions.text_sin), dim=1)[:, :, None],
        )
        rows = image.shape[1] + text.shape[1]
        assert rotary[0].shape[1] == rows, f"positions of {rotary[0].shape[1]} tokens for {rows} tokens"

        checkpointing = torch.is_grad_enabled() and self.gradient_checkpointing
        for index, block in enumerate(self.transformer_blocks):
            last = index == len(self.transformer_blocks) - 1
            arguments = (image, text_stream, time, time_zero, rotary, key_mask, target_rows, last)
            if checkpointing:
                image, text_stream = self._gradient_checkpointing_func(block, *arguments)  # type: ignore[misc]
            else:
                image, text_stream = block(*arguments)
        return self.proj_out(self.norm_out(image[:, :target_rows], time))

    def _embed_time(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embedded t (B, D) and, for models that see their inputs at time 0, embedded 0 (1, D)."""
        # In the dtype of the weights, as published, but never in autocast's: bf16 garbles the high frequencies.
        t = t.to(self.txt_norm.weight.dtype)  # type: ignore[union-attr]
        if not self.zero_cond_t:
            return self.time_text_embed(t, like), None
        time = self.time_text_embed(torch.cat((t, t.new_zeros(1))), like)
        return time[:-1], time[-1:]

    def _check_backend(self) -> None:
        """Refuse an attention back end that would get padded pictures wrong without a word."""
        processor: Any = self.get_submodule("transformer_blocks.0.attn").processor
        name = (processor._attention_backend or _AttentionBackendRegistry.get_active_backend()[0]).value
        if name not in ANY_MASK:
            raise InputError(f"Attention back end {name!r} cannot mix sample sizes: use 'native' or equal sizes.")


def _key_mask(masks: tuple[Tensor | None, ...], tokens: tuple[Tensor, ...]) -> Tensor | None:
    """Boolean (B, 1, 1, L + T), True on the keys that count; None if nothing is padded."""
    if all(mask is None for mask in masks):
        return None
    full = [
        torch.ones(part.shape[:2], dtype=torch.bool, device=part.device) if mask is None else mask
        for mask, part in zip(masks, tokens, strict=True)
    ]
    return torch.cat(full, dim=1)[:, None, None]


def dead_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters (adapters included) of the last block that cannot get a gradient."""
    blocks = [name for name, module in model.named_modules() if isinstance(module, MultiImageBlock)]
    prefixes = tuple(f"{blocks[-1]}.{part}." for part in DEAD)
    return [name for name, _ in model.named_parameters() if name.startswith(prefixes)]
