"""A tiny checkpoint of random weights in the published layout of FLUX.1-dev.

Ready made, once a session and read only, as the fixture `flux_folder`. Every parameter is random, biases and norms
too; on disk all parts are in bfloat16, as published.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers.decoders import Metaspace
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from released import _random, _write_json

WORDS = [
    "a glass of red wine",
    "burning firewood in the dark, with smoke",
    "a small green parrot on a branch",
    "long hair, soft edges and a blue ribbon",
]
ATTENTION = tuple(
    f"attn.{name}"
    for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
)
MLP = tuple(f"{stream}.net.{layer}" for stream in ("ff", "ff_context") for layer in ("0.proj", "2"))
POOLED, TEXT_DIM, VOCABULARY = 24, 32, 256

TRANSFORMER = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT_DIM,
    "pooled_projection_dim": POOLED,
    "guidance_embeds": True,
    "axes_dims_rope": [4, 6, 6],
}
VAE = {
    "act_fn": "silu",
    "block_out_channels": [8, 8, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "force_upcast": True,
    "latent_channels": 16,
    "layers_per_block": 1,
    "mid_block_add_attention": True,
    "norm_num_groups": 4,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.30.0.dev0",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
CLIP = {
    "architectures": ["CLIPTextModel"],
    "bos_token_id": 0,
    "eos_token_id": 2,  # as published: the pooled token is then the one of the largest id
    "hidden_act": "quick_gelu",
    "hidden_size": POOLED,
    "intermediate_size": 48,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "pad_token_id": 1,
    "projection_dim": POOLED,
}
T5 = {
    "architectures": ["T5EncoderModel"],
    "d_ff": 64,
    "d_kv": 8,
    "d_model": TEXT_DIM,
    "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new",
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_heads": 4,
    "num_layers": 2,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "vocab_size": VOCABULARY,
}


def write_flux(folder: Path, guidance_embeds: bool = True) -> Path:
    """The folder of a FluxPipeline; without `guidance_embeds` the transformer is not told a guidance."""
    library = {
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    head = {"_class_name": "FluxPipeline", "_diffusers_version": "0.30.0.dev0"}
    _write_json(folder / "model_index.json", head | library)
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_flux_transformer(folder / "transformer", guidance_embeds)
    write_flux_vae(folder / "vae")
    write_clip(folder)
    write_t5(folder)
    return folder


def write_flux_transformer(folder: Path, guidance_embeds: bool = True) -> Path:
    settings = TRANSFORMER | {"guidance_embeds": guidance_embeds}
    model = _random(lambda: FluxTransformer2DModel(**settings), seed=1, noise=0.05).bfloat16()
    model.save_pretrained(folder)
    _write_json(folder / "config.json", {"_class_name": "FluxTransformer2DModel"} | settings)
    return folder


def write_flux_vae(folder: Path, channels: int = 3) -> Path:
    """Three channels: FLUX's own. Four: an RGBA one, as AlphaVAE's folder holds."""
    settings: dict[str, Any] = VAE | {"in_channels": channels, "out_channels": channels}
    vae = _random(lambda: AutoencoderKL(**settings), seed=channels, noise=0.05)
    (vae.bfloat16() if channels == 3 else vae).save_pretrained(folder)
    _write_json(folder / "config.json", {"_class_name": "AutoencoderKL"} | settings)
    return folder


def write_flux_lora(folder: Path, rank: int = 4) -> Path:
    """pytorch_lora_weights.safetensors in diffusers' names, on what AlphaVAE adapts, without alphas."""
    generator, weights = torch.Generator().manual_seed(5), {}
    width = TRANSFORMER["num_attention_heads"] * TRANSFORMER["attention_head_dim"]
    blocks = {
        "transformer_blocks": (TRANSFORMER["num_layers"], (*ATTENTION, *MLP)),
        "single_transformer_blocks": (TRANSFORMER["num_single_layers"], ATTENTION[:3]),
    }
    for group, (count, modules) in blocks.items():
        for name in (f"transformer.{group}.{block}.{module}" for block in range(count) for module in modules):
            reads = 4 * width if name.endswith("net.2") else width
            writes = 4 * width if name.endswith("proj") and ".net." in name else width
            for part, shape in (("A", (rank, reads)), ("B", (writes, rank))):
                weights[f"{name}.lora_{part}.weight"] = 0.2 * torch.randn(shape, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "pytorch_lora_weights.safetensors", {"format": "pt"})
    return folder


def write_alphavae(folder: Path) -> Path:
    """The published AlphaVAE folder: an RGBA autoencoder and, inside its folder, a LoRA on the transformer."""
    write_flux_vae(folder / "finetune_VAE", channels=4)
    write_flux_lora(folder / "finetune_VAE" / "finetune_diffusion")
    return folder


def write_clip(folder: Path) -> None:
    """text_encoder/ and tokenizer/, the latter without tokenizer.json, as published."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False, False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(WORDS, trainer)
    state = json.loads(bpe.to_str())["model"]
    tokens = dict.fromkeys([*sorted(alphabet), *(f"{letter}</w>" for letter in sorted(alphabet)), *state["vocab"]])
    vocab = {token: number for number, token in enumerate([*tokens, *special])}
    _write_json(folder / "tokenizer" / "vocab.json", vocab)
    merges = [" ".join(pair) for pair in state["merges"]]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    plain = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(vocab[token]): {"content": token, "special": True} | plain for token in special},
        "bos_token": "<|startoftext|>",
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "eos_token": "<|endoftext|>",
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": "<|endoftext|>",
    }
    _write_json(folder / "tokenizer" / "tokenizer_config.json", settings)
    config = CLIP | {"vocab_size": len(vocab)}
    _save(folder / "text_encoder", lambda: CLIPTextModel(CLIPTextConfig(**config)), config, seed=3)
    file = folder / "text_encoder" / "model.safetensors"
    save_file({f"text_model.{key}": value for key, value in load_file(file).items()}, file, {"format": "pt"})


def write_t5(folder: Path) -> None:
    """text_encoder_2/ in two shards and tokenizer_2/, a Unigram with T5's special tokens in tokenizer.json."""
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    unigram.train_from_iterator(WORDS * 4, trainer)
    unigram.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    target = folder / "tokenizer_2"
    target.mkdir(parents=True)
    unigram.save(str(target / "tokenizer.json"))
    settings = {
        "clean_up_tokenization_spaces": True,
        "eos_token": "</s>",
        "extra_ids": 0,
        "model_max_length": 512,
        "pad_token": "<pad>",
        "tokenizer_class": "T5Tokenizer",
        "unk_token": "<unk>",
    }
    _write_json(target / "tokenizer_config.json", settings)
    _save(folder / "text_encoder_2", lambda: T5EncoderModel(T5Config(**T5)), T5, seed=4, shards=2)


@torch.no_grad()
def _save(folder: Path, build: Any, config: dict[str, Any], seed: int, shards: int = 1) -> None:
    model = _random(build, seed, noise=0.05)
    for name, weight in model.named_parameters():
        # What transformers draws suits widths of thousands: here it leaves attention silent.
        weight.data *= 3 if weight.ndim == 2 and "embed" not in name and "shared" not in name else 1
    model = model.bfloat16()
    size = 2 * sum(p.numel() for p in model.parameters())
    model.save_pretrained(folder, max_shard_size=size if shards == 1 else size * 3 // 5)
    assert len(list(folder.glob("*.safetensors"))) == shards
    _write_json(folder / "config.json", config | {"torch_dtype": "bfloat16", "transformers_version": "4.43.3"})
