"""The dual-stream block: diffusers' Qwen-Image parameters, our attention over targets, inputs and text.

Shape letters: B samples, L image tokens, T text tokens, M remembered tokens, D model width, H heads, E channels of a
head. Packed rows are one sample to them: `packing` tells whose they are.
"""

from __future__ import annotations

import torch
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock
from torch import Tensor, nn

from omnialpha.models.transformer.packing import Packed, Padded

Rotary = tuple[Tensor, Tensor]  # cosine and sine, (B, rows, 1, E/2) each
KVCache = tuple[Tensor, Tensor]  # turned keys and values, (B, M, H, E) each
Modulation = tuple[Tensor, Tensor]  # shift, scale, gate of attention and of MLP: (B, 6 D) for image, for text


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the channel pairs (2i, 2i+1) of x (B, L, H, E) by the angles of cos, sin (B, L, 1, E/2); float32 out."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if not torch.compiler.is_compiling():  # a complex product has the same bits, is 5 times faster, but cannot be fused
        return torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin)).flatten(-2)
    even, odd = pairs.unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class JointAttention:
    """Attention over [image, text, memory] with rotary positions; with `query_rows` only that many outputs."""

    _attention_backend = None  # set by diffusers' set_attention_backend
    _parallel_config = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: None = None,  # diffusers hands every processor one; `rows` has it
        rows: Padded | Packed | None = None,
        rotary: Rotary | None = None,
        query_rows: int | None = None,
        memory: KVCache | None = None,
        own: KVCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Image (B, L, D), text (B, T, D) or None, of these rows, and tables of L + T rows -> both streams.

        With `query_rows` the image has that many rows, the first ones, and the text output is None. `own`: keys and
        values of the two streams where the caller has them.
        """
        assert rows is not None and rotary is not None
        key, value = own or self.memory(attn, hidden_states, encoder_hidden_states, rotary)
        query = _heads(attn, attn.norm_q, attn.to_q(hidden_states[:, :query_rows]))
        if query_rows is None and encoder_hidden_states is not None:
            text_query = _heads(attn, attn.norm_added_q, attn.add_q_proj(encoder_hidden_states))
            query = torch.cat((query, text_query), dim=1)
        cos, sin = rotary
        query = rotate(query, cos[:, : query.shape[1]], sin[:, : query.shape[1]]).to(value.dtype)
        if memory is not None:
            key, value = torch.cat((key, memory[0]), dim=1), torch.cat((value, memory[1]), dim=1)
        with torch.autocast(value.device.type, enabled=False):
            settings = {"backend": self._attention_backend, "parallel_config": self._parallel_config}
            out = rows.attend(query, key, value, **settings)
        out = out.flatten(2).to(hidden_states.dtype)  # (B, rows, D)
        length = hidden_states.shape[1]
        image = attn.to_out[1](attn.to_out[0](out[:, :length]))
        return image, attn.to_add_out(out[:, length:]) if out.shape[1] > length else None

    @staticmethod
    def memory(attn: Attention, image: Tensor, text: Tensor | None, rotary: Rotary) -> KVCache:
        """Turned keys and values (B, L + T, H, E) of both streams."""
        key = _heads(attn, attn.norm_k, attn.to_k(image))
        value = _heads(attn, None, attn.to_v(image))
        if text is not None:
            key = torch.cat((key, _heads(attn, attn.norm_added_k, attn.add_k_proj(text))), dim=1)
            value = torch.cat((value, _heads(attn, None, attn.add_v_proj(text))), dim=1)
        if torch.is_grad_enabled() and value.device.type == "cpu":
            value = value.float()  # the backward pass of bf16 attention is several times slower than float32's on a CPU
        return rotate(key, *rotary).to(value.dtype), value


def _heads(attn: Attention, norm: nn.Module | None, projected: Tensor) -> Tensor:
    """(B, rows, D) -> (B, rows, H, E), normalised; H may be a shard of the heads."""
    split = projected.unflatten(-1, (-1, attn.inner_dim // attn.heads))
    return split if norm is None else norm(split)


class MultiImageBlock(QwenImageTransformerBlock):
    """Dual-stream block with diffusers' parameters; inputs may be modulated with another time than the targets."""

    def modulation(self, time: Tensor | Modulation) -> Modulation:
        """From an embedded time (B, D), unless it was made before."""
        return (self.img_mod(time), self.txt_mod(time)) if isinstance(time, Tensor) else time

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        time: Tensor | Modulation,
        time_zero: Tensor | Modulation | None,
        rotary: Rotary,
        rows: Padded | Packed,
        last: bool = False,
        memory: KVCache | None = None,
        keep: bool = False,
    ) -> tuple[Tensor, Tensor | None] | tuple[Tensor, Tensor | None, KVCache]:
        """Image (B, L, D) and text (B, T, D) or None -> both, and with `keep` the memory that others may attend to.

        time is that of text and of the targets, time_zero, if any, that of the image rows behind them. In the last
        block only the targets are made, (B, Lt, D) and None: nothing reads its inputs and text.
        """
        text = encoder_hidden_states
        zero = None if time_zero is None else self.modulation(time_zero)[0]
        image_params, text_params = rows.spread(*self.modulation(time), zero)  # (B, 1 or rows, 6 D)
        shift, scale, gate, *mlp_params = image_params.chunk(6, dim=-1)
        text_shift, text_scale, text_gate, *text_mlp_params = text_params.chunk(6, dim=-1)
        image_in = self.img_norm1(hidden_states) * (1 + scale) + shift
        text_in = None if text is None else self.txt_norm1(text) * (1 + text_scale) + text_shift
        own = JointAttention.memory(self.attn, image_in, text_in, rotary) if keep else None
        if own and last:
            return hidden_states, None, own
        image_out, text_out = self.attn(
            hidden_states=image_in,
            encoder_hidden_states=text_in,
            rows=rows,
            rotary=rotary,
            query_rows=rows.targets if last else None,
            memory=memory,
            own=own,
        )
        length = image_out.shape[1]
        image = hidden_states[:, :length] + gate[:, :length] * image_out
        image = _add_mlp(image, self.img_norm2, self.img_mlp, [part[:, :length] for part in mlp_params])
        if text is not None and text_out is not None:
            text = _add_mlp(text + text_gate * text_out, self.txt_norm2, self.txt_mlp, text_mlp_params)
        else:
            text = None
        return (image, text, own) if own else (image, text)


def _add_mlp(x: Tensor, norm: nn.Module, mlp: nn.Module, params: list[Tensor]) -> Tensor:
    """x (B, rows, D) plus its gated MLP; params = shift, scale, gate. Half precision is kept from overflowing."""
    shift, scale, gate = params
    x = x + gate * mlp(norm(x) * (1 + scale) + shift)
    return x.clip(-65504, 65504) if x.dtype == torch.float16 else x


# What diffusers' step caches need to know of a block they wrap.
TransformerBlockRegistry.register(MultiImageBlock, TransformerBlockMetadata(0, 1))
