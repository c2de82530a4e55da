"""Small Qwen2.5-VL text encoders with random weights and their own byte-level BPE: the start of nano, and for tests."""

import json
from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omnialpha.models.text_encoder.encoder import PAD, Template, TextEncoder

END = "<|endoftext|>"
SPECIAL = (END, "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", PAD, "<|video_pad|>")
SHORT = Template(
    prefix="<|im_start|>",
    picture="Picture {i}: <|vision_start|><|image_pad|><|vision_end|>",
    suffix="<|im_end|>",
)


def train_tokenizer(corpus: Iterable[str], vocab_size: int) -> Qwen2Tokenizer:
    """Byte-level BPE with Qwen's splitting rules and special tokens; smaller than `vocab_size` if the corpus is."""
    rules = Qwen2Tokenizer().backend_tokenizer
    bpe = Tokenizer(models.BPE())
    bpe.normalizer, bpe.pre_tokenizer = rules.normalizer, rules.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    state = json.loads(bpe.to_str())["model"]
    merges: Any = [tuple(pair) for pair in state["merges"]]
    return Qwen2Tokenizer(vocab=state["vocab"], merges=merges, pad_token=END, extra_special_tokens=list(SPECIAL[1:]))


@torch.no_grad()
def _initialize(model: nn.Module) -> None:
    """Xavier matrices and unit embeddings: transformers' 0.02 is too small for a width of 192 (decision 10)."""
    for name, weight in model.named_parameters():
        if "embed_tokens" in name:
            nn.init.normal_(weight)
        elif weight.ndim == 2:
            nn.init.xavier_uniform_(weight)


def build_tiny_text_encoder(
    corpus: Iterable[str],
    vocab_size: int = 4096,
    text_dim: int = 256,
    text_layers: int = 4,
    heads: int = 4,
    vision_dim: int = 128,
    vision_depth: int = 2,
    patch_size: int = 16,
    picture_pixels: int = 96 * 96,
    max_tokens: int = 256,
    template: Template = SHORT,
    seed: int = 0,
) -> TextEncoder:
    """Random text encoder of about 4.6 M parameters at default; a picture token covers (2 * patch_size)^2 pixels."""
    tokenizer = train_tokenizer([*corpus, *(template.picture.format(i=i) for i in range(1, 10))], vocab_size)
    vocab = tokenizer.get_vocab()
    half = text_dim // heads // 2  # rotary frequencies of a head: a quarter for time, the rest for rows and columns
    sections = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": text_dim,
        "intermediate_size": 2 * text_dim,
        "num_hidden_layers": text_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections},
        "bos_token_id": None,
        "eos_token_id": vocab["<|im_end|>"],
    }
    vision = {
        "depth": vision_depth,
        "hidden_size": vision_dim,
        "intermediate_size": 2 * vision_dim,
        "num_heads": heads,
        "patch_size": patch_size,
        "window_size": 8 * 2 * patch_size,  # 8 x 8 tokens: one window holds the whole of a small picture
        "fullatt_block_indexes": list(range(vision_depth)),
        "out_hidden_size": text_dim,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=vocab[PAD],
        video_token_id=vocab["<|video_pad|>"],
        vision_start_token_id=vocab["<|vision_start|>"],
        vision_end_token_id=vocab["<|vision_end|>"],
        tie_word_embeddings=True,  # no head is stored, and Qwen2_5_VLForConditionalGeneration still loads the folder
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLModel(config)
        _initialize(model)
    side = 2 * patch_size
    processor = Qwen2VLImageProcessorPil(
        patch_size=patch_size, size={"shortest_edge": side * side, "longest_edge": 1024 * side * side}
    )
    return TextEncoder(model, tokenizer, processor, template, picture_pixels, max_tokens)
