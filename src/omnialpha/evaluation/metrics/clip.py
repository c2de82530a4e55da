"""CLIP scores of pictures and texts, and CLIP's features for CLIP-FID, by a local folder: nothing is ever downloaded.

What CLIP-FID stands on and known traps: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.evaluation.metrics.features import Features, digest_of_weights
from omnialpha.files import sha256

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


@dataclass(frozen=True)
class Clip:
    """A CLIP with its tokenizer and its own resizing. name: the folder's."""

    name: str
    model: CLIPModel
    tokenizer: CLIPTokenizer
    processor: CLIPImageProcessorPil

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> Self:
        """Of a folder as transformers publishes CLIP (config.json, weights, tokenizer, preprocessor_config.json), in
        float32. InputError where it is none or lacks weights.
        """
        from safetensors import SafetensorError
        from transformers import AutoConfig, CLIPModel, CLIPTokenizer
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        path = Path(folder).expanduser()
        try:
            if not path.is_dir():
                raise OSError("there is no such folder")
            kind = AutoConfig.from_pretrained(path, local_files_only=True).model_type
            if kind != "clip":
                raise OSError(f"its config.json is of a {kind}")
            settings: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True, "local_files_only": True}
            model, info = CLIPModel.from_pretrained(path, **settings)
            tokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=True)
            processor = CLIPImageProcessorPil.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, RuntimeError, UnpicklingError, SafetensorError) as error:
            reason = shorten(str(error), 160)
            raise InputError(
                f"{path} is no folder of a CLIP model ({reason}): give one with config.json, weights, "
                "tokenizer and preprocessor_config.json."
            ) from None
        if missing := sorted(info["missing_keys"]):
            raise InputError(f"{path} lacks {len(missing)} weights, the first is {missing[0]}: copy it again.")
        if len(tokenizer) > model.config.text_config.vocab_size:
            raise InputError(f"{path} has a tokenizer that does not belong to its weights: copy it again.")
        return cls(path.resolve().name, model.eval().requires_grad_(False).to(device), tokenizer, processor)

    @cached_property
    def identity(self) -> str:
        """The same for the same weights, tokens and resizing."""
        words, resizing = sorted(self.tokenizer.get_vocab().items()), sorted(self.processor.to_dict().items())
        return sha256(repr([words, resizing]), digest_of_weights(self.model))

    @property
    def limit(self) -> int:
        """Tokens of a text, its first and last one among them: 77 in the published models."""
        return int(self.model.config.text_config.max_position_embeddings)

    def score(self, pictures: Tensor, texts: Sequence[str]) -> Tensor:
        """Cosine of each RGB picture's (B, 3, H, W, in [0, 1]) embedding and its text's, (B,) float64 on the CPU."""
        assert len(pictures) == len(texts)
        return F.cosine_similarity(self.features(pictures).double(), self.embed_texts(texts).double())

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts, cut at `limit` tokens -> (B, D) float32 on the CPU, not of unit length."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=self.limit, return_tensors="pt")
        with torch.inference_mode():
            pooled = self.model.text_model(**tokens.to(self.model.device)).pooler_output
            return self.model.text_projection(pooled).cpu()

    @cached_property
    def features(self) -> Features:
        """Picture embeddings for CLIP-FID: after the projection and before normalisation, as clean-fid takes them."""
        return Features(f"{self.name} (CLIP)", self.identity, self._embed)

    def _embed(self, pictures: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> (B, D)."""
        assert pictures.ndim == 4 and pictures.shape[1] == 3
        arrays = list(pictures.permute(0, 2, 3, 1).contiguous().cpu().numpy())
        pixels = self.processor(arrays, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            pooled = self.model.vision_model(pixel_values=pixels.to(self.model.device)).pooler_output
            return self.model.visual_projection(pooled)
