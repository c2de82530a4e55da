"""FLUX's two text encoders as one `TextEncoder`: CLIP's pooled vector and T5's tokens of one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from omnialpha.errors import InputError
from omnialpha.models.runtime.offload import Streams
from omnialpha.models.text_encoder.encoder import read_model, save_parts

Encoded = tuple[Tensor, Tensor, Tensor]  # tokens (B, T, D), their mask (B, T) bool, pooled vectors (B, P)


@dataclass(frozen=True)
class PromptBatch:
    """Padded ids of CLIP (N, 77) and of T5 (N, T), int64; with `pair`, B prompts and then B negative ones."""

    clip: Tensor
    t5: Tensor
    pair: bool = False


class FluxText(nn.Module):
    """CLIP's text model, T5's encoder and their tokenizers."""

    def __init__(
        self,
        clip: CLIPTextModel,
        t5: T5EncoderModel,
        tokenizer: CLIPTokenizer,
        tokenizer_2: T5TokenizerFast,
        max_tokens: int,
    ) -> None:
        """tokenizer, tokenizer_2: of clip and t5. max_tokens: to which T5's prompts are padded, T."""
        super().__init__()
        self.clip, self.t5, self.max_tokens = clip, t5, max_tokens
        self.tokenizer, self.tokenizer_2 = tokenizer, tokenizer_2

    @property
    def model(self) -> nn.Module:
        """All that holds weights."""
        return self

    @property
    def streams(self) -> Streams:
        """CLIP is small beside T5."""
        return Streams((self.t5.encoder,), (self.clip,), self.t5.encoder.embed_tokens)

    def tokenize(
        self,
        instructions: Sequence[str],
        pictures: Sequence[Sequence[Tensor]],
        negatives: Sequence[str] | None = None,
    ) -> PromptBatch:
        """B prompts, and with `negatives` as many of those; pictures are none.

        T5's limit is an InputError; CLIP sees the first 77 tokens of a longer prompt, as published.
        """
        assert not any(pictures), "FLUX reads no pictures"
        prompts = [*instructions, *(negatives or ())]
        for length in (len(ids) for ids in self.tokenizer_2(prompts)["input_ids"]):
            if length > self.max_tokens:
                raise InputError(f"The prompt is {length} tokens long, the limit is {self.max_tokens}; shorten it.")
        limits = ((self.tokenizer, self.tokenizer.model_max_length), (self.tokenizer_2, self.max_tokens))
        clip, t5 = (
            tokenizer(prompts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")[
                "input_ids"
            ]
            for tokenizer, limit in limits
        )
        return PromptBatch(clip, t5, negatives is not None)

    def forward(self, batch: PromptBatch) -> Encoded | tuple[Encoded, Encoded]:
        """Tokens, mask and pooled vectors of the prompts, and of a batch with negatives of those too.

        Padding counts as text, as in the published pipeline: no mask goes into T5 or out of it.
        """
        device = self.clip.device  # T5's word embedding may wait elsewhere
        tokens = self.t5(batch.t5.to(device)).last_hidden_state
        pooled = self.clip(batch.clip.to(device)).pooler_output
        encoded = (tokens, torch.ones_like(batch.t5, dtype=torch.bool, device=device), pooled)
        if not batch.pair:
            return encoded
        positive, negative = zip(*(part.chunk(2) for part in encoded), strict=True)
        return positive, negative

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype = torch.float32, max_tokens: int = 512) -> Self:
        """Read text_encoder/, text_encoder_2/, tokenizer/ and tokenizer_2/."""
        folder = Path(folder)
        clip = read_model(CLIPTextModel, folder / "text_encoder", dtype)
        t5 = read_model(T5EncoderModel, folder / "text_encoder_2", dtype)
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        tokenizer_2 = T5TokenizerFast.from_pretrained(folder / "tokenizer_2", local_files_only=True)
        for own, model, name in ((tokenizer, clip, "tokenizer"), (tokenizer_2, t5, "tokenizer_2")):
            if len(own) > model.config.vocab_size:
                raise InputError(f"{folder / name} does not belong to the weights beside it; download it again.")
        return cls(clip, t5, tokenizer, tokenizer_2, max_tokens)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write what `from_pretrained` reads, weights as `dtype`."""
        parts = {"text_encoder": self.clip, "text_encoder_2": self.t5}
        save_parts(folder, parts | {"tokenizer": self.tokenizer, "tokenizer_2": self.tokenizer_2}, dtype)
