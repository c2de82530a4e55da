"""The sizes of a model's parts, as far as a run's memory and time depend on them; see `estimate`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

from omnialpha.models.checkpoints.headers import read_header
from omnialpha.models.runtime.placement import Placement
from omnialpha.models.runtime.quantize import KINDS, linears
from omnialpha.models.transformer.model import MultiImageTransformer
from omnialpha.models.transformer.modulation import PARTS

if TYPE_CHECKING:
    from omnialpha.models.checkpoints.folders import Parts

MAPS = 6  # as large as an autoencoder's at full resolution, at one time
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
    """The sizes of a model. pixel, token, patch: numbers that the VAE, the instruction encoder and its vision tower
    hold for one at their widest.
    """

    vae: Weights
    transformer: Weights
    text: Weights
    dtype: str  # what it runs in unless told otherwise
    stored: str  # of its files: weights that are to run in it need not leave them for main memory
    layers: int
    width: int
    head: int
    context: int  # width of the text that the transformer gets
    table: int  # modulation of one time; 0 where the blocks compute it
    visiting: int  # parameters that come to the device to make the table
    channels: int  # of the autoencoder, at full resolution
    patch_size: int  # of the autoencoder
    pixel: float
    token: int
    patch: int
    picture_tokens: int  # that the instruction encoder sees of a picture
    side: int  # pixels that a transformer's token spans, each way

    @classmethod
    def of(cls, model: Any, dtype: str | None = None) -> ModelSizes:
        """Measure a model before it is placed."""
        vae, transformer, text_encoder = model.vae, model.transformer, model.text_encoder
        text, language, tower = (
            text_encoder.model,
            text_encoder.model.config.text_config,
            text_encoder.model.visual.config,
        )
        blocks, table = list(transformer.transformer_blocks), getattr(transformer, "table", None)
        modules, streamed = table.modules if table else [()], [count(block) for block in blocks]
        tower_blocks = [count(block) for block in text.visual.blocks]
        layers = [count(block) for block in text.language_model.layers]
        values = tower.in_channels * tower.temporal_patch_size * tower.patch_size**2
        channels = next(m for name, m in vae.named_modules() if name.endswith("decoder.conv_out")).in_channels
        dtype = dtype or str(transformer.dtype).removeprefix("torch.")
        return cls(
            vae=Weights(count(vae)),
            transformer=weights(transformer, count(transformer) - sum(streamed), max(streamed)),
            text=weights(text, count(text.visual) - sum(tower_blocks), max(layers + tower_blocks)),
            dtype=dtype,
            stored=dtype,
            layers=len(blocks),
            width=transformer.inner_dim,
            head=transformer.config.attention_head_dim,
            context=language.hidden_size,
            table=12 * transformer.inner_dim * len(blocks) if table else 0,
            visiting=max(sum(map(count, pair)) for pair in modules),
            channels=channels,
            patch_size=vae.config.patch_size,
            pixel=MAPS * channels / vae.config.patch_size**2,
            token=6 * language.hidden_size + 3 * language.intermediate_size,
            patch=12 * tower.hidden_size + 3 * tower.intermediate_size + values,
            picture_tokens=text_encoder.picture_pixels // (tower.patch_size * tower.spatial_merge_size) ** 2,
            side=vae.ratio * transformer.config.patch_size,
        )

    @classmethod
    def planned(
        cls, vae: nn.Module, transformer: Any, text: nn.Module, picture_pixels: int, dtype: str, tabulated: bool = True
    ) -> ModelSizes:
        """Measure networks that may be in no memory. tabulated: modulation is taken out of the transformer."""
        if tabulated:
            taken = [tuple(block._modules.pop(part) for part in PARTS) for block in transformer.transformer_blocks]
            transformer.table = SimpleNamespace(modules=taken)
        text_encoder = SimpleNamespace(model=text, picture_pixels=picture_pixels)
        return cls.of(SimpleNamespace(vae=vae, transformer=transformer, text_encoder=text_encoder), dtype)

    @classmethod
    def read(cls, parts: Parts, vae: nn.Module, dtype: str | None = None, tabulated: bool = True) -> ModelSizes:
        """Measure a model from its folders, without reading weights.

        Args:
            parts: the folders.
            vae: the autoencoder, which is small.
            dtype: what the model runs in, by default the card's.
            tabulated: whether modulation is taken out of the transformer.
        """
        with torch.device("meta"):
            transformer = MultiImageTransformer.from_config(MultiImageTransformer.load_config(parts.transformer))
            text = Qwen2_5_VLModel(Qwen2_5_VLConfig.from_pretrained(parts.text / "text_encoder"))
        adapters = [read_header(file.path).entries.values() for file in parts.adapters]
        factors = sum(math.prod(entry.shape) for entries in adapters for entry in entries)
        card = parts.card
        made = cls.planned(vae, transformer, text, card.picture_pixels, dtype or card.dtype, tabulated)
        return replace(made._adapted(factors), stored=card.dtype)

    def _adapted(self, factors: int) -> ModelSizes:
        """With so many more parameters beside the transformer's layers."""
        there = self.transformer
        wider = replace(there, total=there.total + factors, group=there.group + factors // self.layers)
        return replace(self, transformer=wider)


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def weights(part: nn.Module, kept: int, group: int) -> Weights:
    """Parameters of a part, of which `kept` stay on the device and the largest moving group has `group`."""
    return Weights(count(part), sum(layer.weight.numel() for *_, layer in linears(part)), kept, group)
