"""The sizes of a model's parts, as far as a run's memory and time depend on them; see `estimate`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from torch import nn

from omnialpha.models.checkpoints.checking import check
from omnialpha.models.checkpoints.headers import read_header
from omnialpha.models.runtime.placement import Placement
from omnialpha.models.runtime.quantize import KINDS, linears, read_gguf
from omnialpha.models.transformer.modulation import PARTS
from omnialpha.models.transformer.positions import patch_of
from omnialpha.models.vae.alphavae import load_vae

if TYPE_CHECKING:
    from omnialpha.models.checkpoints.folders import Parts

GROUPS = 2  # on the device at once: one at work, one on its way


@dataclass(frozen=True)
class Weights:
    """Numbers of parameters: all, those that quantisation shrinks, and for streaming those that stay on the device and
    those of the largest group that moves; group 0: is not streamed. bits: of a weight in a file that keeps it small.
    """

    total: int
    linear: int = 0
    kept: int = 0
    group: int = 0
    bits: float = 0.0

    def bytes(self, placement: Placement, e: int) -> int:
        """Bytes of all parameters, as they are placed; e: bytes of a number."""
        bits = self.bits or (KINDS[placement.quantize].bits if placement.quantize in KINDS else 8 * e)
        return int((self.total - self.linear) * e + self.linear * bits / 8)

    def streamed(self, placement: Placement, e: int) -> int:
        """Bytes on the device at a time, where groups move; e: bytes of a number."""
        return min((self.kept + GROUPS * self.group) * e, self.bytes(placement, e)) if self.group else self.total * e


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of a model. token, patch: numbers that the instruction encoder and its vision tower hold for one at
    their widest.
    """

    vae: Weights
    transformer: Weights
    text: Weights
    dtype: str  # what it runs in by default
    stored: str  # of its files: weights that are to run in it need not leave them for main memory
    layers: int
    width: int
    head: int
    context: int  # width of the text that the transformer gets
    table: int  # modulation of one time; 0 where the blocks compute it
    visiting: int  # parameters that come to the device to make the table
    channels: int  # of the autoencoder, at full resolution
    patch_size: int  # of the autoencoder
    token: int
    patch: int
    picture_tokens: int  # that the instruction encoder sees of a picture
    side: int  # pixels that a transformer's token spans, each way

    @classmethod
    def planned(
        cls, vae: Any, transformer: Any, text: Any, picture_pixels: int, dtype: str, tabulated: bool = True
    ) -> ModelSizes:
        """Measure networks that may be in no memory.

        Args:
            vae: the autoencoder.
            transformer: of either family; its modulation is taken out if it is tabulated.
            text: a Qwen2_5_VLModel, or a module with `clip` and `t5`.
            picture_pixels: area of the pictures that the instruction encoder sees.
            dtype: what it runs in, and what its files hold.
            tabulated: whether modulation is answered from a table, in families that can.
        """
        qwen = hasattr(text, "visual")
        table = getattr(transformer, "table", None)
        if tabulated and qwen and not table:
            taken = [[block._modules.pop(part) for part in PARTS] for block in transformer.transformer_blocks]
            table = SimpleNamespace(modules=taken)
        if qwen:
            language, tower = text.config.text_config, text.visual.config
            token = 6 * language.hidden_size + 3 * language.intermediate_size
            values = tower.in_channels * tower.temporal_patch_size * tower.patch_size**2
            patch = 12 * tower.hidden_size + 3 * tower.intermediate_size + values
            picture_tokens = picture_pixels // (tower.patch_size * tower.spatial_merge_size) ** 2
            moving, around = [*text.visual.blocks, *text.language_model.layers], count(text.visual)
            around -= sum(map(count, text.visual.blocks))
        else:
            token = 6 * text.t5.config.d_model + 3 * text.t5.config.d_ff
            patch = picture_tokens = 0
            moving, around = [*text.t5.encoder.block], count(text.clip)
        blocks = [*transformer.transformer_blocks, *getattr(transformer, "single_transformer_blocks", ())]
        sizes = [count(block) for block in blocks]
        channels = next(m for name, m in vae.named_modules() if name.endswith("decoder.conv_out")).in_channels
        return cls(
            vae=Weights(count(vae)),
            transformer=_weights(transformer, count(transformer) - sum(sizes), max(sizes)),
            text=_weights(text, around, max(map(count, moving))),
            dtype=dtype,
            stored=dtype,
            layers=len(blocks),
            width=transformer.inner_dim,
            head=transformer.config.attention_head_dim,
            context=transformer.config.joint_attention_dim,
            table=12 * transformer.inner_dim * len(blocks) if table else 0,
            visiting=max(sum(map(count, modules)) for modules in table.modules) if table else 0,
            channels=channels,
            patch_size=vae.config.patch_size,
            token=token,
            patch=patch,
            picture_tokens=picture_tokens,
            side=vae.ratio * patch_of(transformer, vae),
        )

    @classmethod
    def read(
        cls, parts: Parts, dtype: str | None = None, tabulated: bool = True, gguf: Path | None = None
    ) -> ModelSizes:
        """Check and measure a model from its folders. Of the weights only the autoencoder's, which is small, are read.

        Args:
            parts: the folders.
            dtype: what the model runs in, by default the card's.
            tabulated: as of `planned`.
            gguf: a file with the transformer's weights.

        Raises:
            InputError: a part is missing, damaged or of another model.
        """
        modules, card = check(parts, gguf), parts.card
        text = modules["text_encoder"]
        if "text_encoder_2" in modules:
            text = nn.ModuleDict({"clip": text, "t5": modules["text_encoder_2"]})  # as in FluxText
        vae = load_vae(parts.vae, widen=True)
        made = cls.planned(vae, modules["transformer"], text, card.picture_pixels, dtype or card.dtype, tabulated)
        headers = [read_header(file.path).entries.values() for file in parts.adapters]
        factors = sum(math.prod(entry.shape) for entries in headers for entry in entries)
        there = made.transformer
        total, group = there.total + factors, there.group + factors // made.layers
        transformer = replace(there, total=total, group=group, bits=read_gguf(gguf)[1] if gguf else 0.0)
        return replace(made, stored=card.dtype, transformer=transformer)


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def _weights(part: nn.Module, kept: int, group: int) -> Weights:
    return Weights(count(part), sum(layer.weight.numel() for *_, layer in linears(part)), kept, group)
