"""Multi-image diffusion transformer: diffusers' Qwen-Image weights, with our positions, packing and key masks.

Shape letters: B samples, L image tokens (Lt of targets, then Li of inputs), T text tokens, C channels of a token,
D model width, H heads, E channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from torch import Tensor, nn

from omnialpha.errors import InputError
from omnialpha.models.runtime.context_parallel import Shares, share
from omnialpha.models.transformer.blocks import JointAttention, KVCache, Modulation, MultiImageBlock, Rotary
from omnialpha.models.transformer.modulation import ModulationTable
from omnialpha.models.transformer.packing import INPUTS, TARGETS, TEXT, Counts, Packing, Padding, check_backend
from omnialpha.models.transformer.positions import PATCH_SIZE, Positions

ConditionAttention = Literal["joint", "cached"]
Times = Sequence[Tensor | Modulation | None]  # one a block
Call = Padding | Packing

# In the last block the text stream only serves as keys and values: nothing reads what these modules would compute.
DEAD = ("attn.add_q_proj", "attn.norm_added_q", "attn.to_add_out", "txt_mlp")


def pack(latents: Tensor, patch: int = PATCH_SIZE) -> Tensor:
    """Latents (B, C, h, w) to tokens (B, h/patch * w/patch, C * patch * patch), channels ordered C, row, column."""
    b, c, h, w = latents.shape
    assert h % patch == 0 and w % patch == 0, f"latents of {h} x {w} do not divide into patches of {patch}"
    cells = latents.reshape(b, c, h // patch, patch, w // patch, patch)
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, h: int, w: int, patch: int = PATCH_SIZE) -> Tensor:
    """Inverse of `pack`: tokens (B, h/patch * w/patch, C * patch * patch) to latents (B, C, h, w)."""
    rows, columns = h // patch, w // patch
    assert tokens.shape[1] == rows * columns, f"{tokens.shape[1]} tokens are not latents of {h} x {w}"
    cells = tokens.unflatten(2, (-1, patch, patch)).unflatten(1, (rows, columns))
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(tokens.shape[0], -1, h, w)


@dataclass
class Shared:
    """What all steps of one run have in common. The first call without gradients fills it, the others read it.

    It holds for the weights, the inputs and the text of that first call.
    """

    inputs: Tensor | None = None  # (B, Li, D) behind img_in
    text: Tensor | None = None  # (B, T, D) behind txt_in
    memory: list[KVCache] | None = None  # a block each, with condition_attention="cached"


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
        patch_size: int = PATCH_SIZE,
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
        condition_attention: ConditionAttention = "joint",
    ) -> None:
        if condition_attention not in get_args(ConditionAttention):
            raise InputError(f"condition_attention={condition_attention!r} is not known: use joint or cached.")
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
        self.table: ModulationTable | None = None  # see `tabulate`
        self.shares: Shares | None = None  # see `parallel`
        self.packs = False  # whether to leave the padding of unequal samples out, see `_call`

    def forward(  # type: ignore[override]
        self,
        targets: Tensor,
        inputs: Tensor,
        text: Tensor,
        t: Tensor,
        positions: Positions,
        shared: Shared | None = None,
    ) -> Tensor:
        """Predict the velocity of noisy targets.

        Args:
            targets: (B, Lt, C).
            inputs: (B, Li, C), Li may be 0.
            text: (B, T, joint_attention_dim).
            t: (B,) in [0, 1], on any device.
            positions: of all tokens.
            shared: what the steps of a run have in common.

        Returns:
            (B, Lt, patch * patch * out_channels). Rows that are padding hold arbitrary finite values.
        """
        if self.shares is None:
            return self._velocity(targets, inputs, text, t, positions, shared)
        rows = targets.shape[1]
        masked = any(mask is not None for mask in (positions.target_mask, positions.input_mask, positions.text_mask))
        self.shares.agree((rows, inputs.shape[1], text.shape[1]), masked)
        positions = self.shares.positions(positions, rows)
        targets, inputs, text = (self.shares.rows(x) for x in (targets, inputs, text))
        return self.shares.gather(self._velocity(targets, inputs, text, t, positions, shared), rows)

    def _velocity(
        self, targets: Tensor, inputs: Tensor, text: Tensor, t: Tensor, positions: Positions, shared: Shared | None
    ) -> Tensor:
        """`forward` on the rows of this process."""
        lengths = (targets.shape[1], inputs.shape[1], text.shape[1])
        rows = positions.image_cos.shape[1] + positions.text_cos.shape[1]
        assert rows == sum(lengths), f"positions of {rows} tokens for {sum(lengths)} tokens"
        call = self._call(positions, lengths)
        tables = ((positions.image_cos, positions.text_cos), (positions.image_sin, positions.text_sin))
        cos, sin = (
            torch.cat(call.gather(*image.split(lengths[:2], dim=1), text), dim=1)[:, :, None] for image, text in tables
        )  # (B, L + T, 1, E/2)
        targets, inputs, text = call.gather(targets, inputs, text)
        if torch.is_grad_enabled() or shared is None:
            shared = Shared()
        if shared.inputs is None:
            shared.inputs, shared.text = self.img_in(inputs), self.txt_in(self.txt_norm(text))
        times, times_zero, last_time = self._times(t, targets)
        run = self._joint if self.config.condition_attention == "joint" else self._cached
        image = run(call, shared, self.img_in(targets), times, times_zero, (cos, sin))
        return self.proj_out(self.norm_out(call.scatter(image), last_time))

    def _call(self, positions: Positions, lengths: Counts) -> Call:
        """Packed if `packs` is set and something is padded, unless a step cache or other processes need equal rows."""
        masks = (positions.target_mask, positions.input_mask, positions.text_mask)
        padded = any(mask is not None for mask in masks)
        if padded and self.packs and self.shares is None and not self.is_cache_enabled:
            return Packing.of(masks, lengths, len(positions.image_cos))
        if padded:
            texts = masks[TARGETS] is None and masks[INPUTS] is None
            check_backend(self, "texts of different lengths" if texts else "sample sizes", last=texts)
        return Padding(masks, lengths)

    def _joint(
        self, call: Call, shared: Shared, image: Tensor, times: Times, times_zero: Times, rotary: Rotary
    ) -> Tensor:
        """Everything attends to everything: targets (B, Lt, D) -> (B, Lt, D)."""
        text, rows = shared.text, call.rows([TARGETS, INPUTS], [TEXT])
        assert shared.inputs is not None
        image = torch.cat((image, shared.inputs), dim=1)
        for index, block in enumerate(self.transformer_blocks):
            # a step cache of diffusers compares blocks, so all of them must make the same rows
            last = index == len(self.transformer_blocks) - 1 and not self.is_cache_enabled
            image, text = self._block(block, image, text, times[index], times_zero[index], rotary, rows, last)
        return image[:, : rows.targets]

    def _cached(
        self, call: Call, shared: Shared, image: Tensor, times: Times, times_zero: Times, rotary: Rotary
    ) -> Tensor:
        """Inputs and text attend among themselves at time 0, once a picture; targets (B, Lt, D) attend to all."""
        length = image.shape[1]
        assert shared.inputs is not None and shared.text is not None
        here, there = zip(*(part.tensor_split((length,), dim=1) for part in rotary), strict=True)
        if shared.memory is None:
            condition, text, shared.memory = shared.inputs, shared.text, []
            rows = call.rows([INPUTS], [TEXT])
            for index, block in enumerate(self.transformer_blocks):
                last = index == len(self.transformer_blocks) - 1
                arguments = (condition, text, times_zero[index], None, there, rows, last, None, True)
                condition, text, memory = self._block(block, *arguments)
                shared.memory.append(memory)
        rows = call.rows([TARGETS], [], [INPUTS, TEXT])
        for index, block in enumerate(self.transformer_blocks):
            image, _ = self._block(block, image, None, times[index], None, here, rows, False, shared.memory[index])
        return image

    def _block(self, block: nn.Module, *arguments: Any) -> Any:
        """A block's outputs; recomputed in the backward pass if gradient checkpointing is on."""
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *arguments)  # type: ignore[misc]
        return block(*arguments)

    def _times(self, t: Tensor, like: Tensor) -> tuple[Times, Times, Tensor]:
        """For every block embedded t (B, D) or its modulation, the same for one time 0, and embedded t."""

        def embed(times: Tensor) -> Tensor:
            # In the dtype of the weights, as published, but never in autocast's: bf16 garbles the high frequencies.
            return self.time_text_embed(times.to(like.device, self.txt_norm.weight.dtype), like)  # type: ignore[union-attr]

        time, count = embed(t), len(self.transformer_blocks)
        if self.table is not None:
            assert not torch.is_grad_enabled(), "training needs the modulation in its blocks: call tabulate(False)"
            zeros = self.table.at([0.0], embed) if self.sees_zero else [None] * count
            return self.table.at(t.float().tolist(), embed), zeros, time
        return [time] * count, [embed(t.new_zeros(1)) if self.sees_zero else None] * count, time

    @property
    def sees_zero(self) -> bool:
        """Whether inputs are modulated with time 0."""
        return self.zero_cond_t or self.config.condition_attention == "cached"

    def tabulate(self, on: bool = True) -> None:
        """Answer modulation from a table and keep its weights off the device (no gradients then), or end that."""
        if on and self.table is None:
            self.table = ModulationTable(self.transformer_blocks)  # type: ignore[arg-type]
        elif not on and self.table is not None:
            self.table.restore(self.transformer_blocks, self.device)  # type: ignore[arg-type]
            self.table = None

    def parallelize(self) -> None:
        """Share every picture with the other processes of the default group, each of which calls this."""
        if self.is_cache_enabled:
            raise InputError("Several processes on one picture cannot use a step cache: leave it out.")
        self.shares = share(self)

    def enable_cache(self, config: Any) -> None:
        """A step cache of diffusers: approximate. Refused with condition_attention="cached", which has its own."""
        if self.config.condition_attention == "cached":
            raise InputError("A step cache cannot be used with condition_attention='cached': leave it out.")
        if self.shares is not None:
            raise InputError("A step cache cannot be used by several processes on one picture: leave it out.")
        super().enable_cache(config)

    def precompute_modulation(self, times: Tensor) -> None:
        """Make the table, if there is one, for all times (N,) of a run at once: its weights visit the device once."""
        if self.table is not None:
            self._times(times, self.proj_out.weight)

    def forget_tables(self) -> None:
        """Drop what was computed from weights that have changed."""
        if self.table is not None:
            self.table.forget()


def dead_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters (adapters included) of the last block that cannot get a gradient."""
    blocks = [name for name, module in model.named_modules() if isinstance(module, MultiImageBlock)]
    prefixes = tuple(f"{block}.{part}." for block in blocks[-1:] for part in DEAD)
    return [name for name, _ in model.named_parameters() if name.startswith(prefixes)]
