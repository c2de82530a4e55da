"""Published word vectors as the start of token embeddings: WordLlama (MIT), whose package holds its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2Tokenizer

from omnialpha.errors import InputError


def word_vectors(tokenizer: Qwen2Tokenizer, width: int) -> Tensor:
    """Embeddings (V, width) of a tokenizer's V tokens, mean 0 and root mean square 1: WordLlama's 256 channels reduced
    to the first `width` principal ones; a token without letters gets zeros.

    Raises InputError where the package is not installed, or `width` is above 256.
    """
    try:
        import wordllama
    except ImportError:
        raise InputError("words=true needs published word vectors: pip install 'omnialpha[train]'.") from None
    if width > 256:
        raise InputError(f"text_dim={width} is wider than the 256 channels of the word vectors: use 256 or less.")
    # its own search looks for the tokenizer in a folder of another name than the one that it ships
    packaged = Path(wordllama.__file__).parent
    vectors: Any = wordllama.WordLlama.load(dim=256, cache_dir=packaged, disable_download=True)
    words = [tokenizer.decode([i]).strip() for i in range(len(tokenizer))]
    known = torch.tensor([any(c.isalnum() for c in word) for word in words])
    rows = torch.from_numpy(vectors.embed([word for word, is_word in zip(words, known, strict=True) if is_word]))
    rows = rows.double() - rows.double().mean(0)
    axes = torch.linalg.svd(rows, full_matrices=False).Vh[:width]
    made = torch.zeros(len(words), width, dtype=torch.double)
    made[known] = rows @ axes.T
    return (made / made.square().mean().sqrt()).float()
