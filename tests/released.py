"""Tiny checkpoints of random weights in the published layouts: Qwen-Image-Edit-2509 (2511) and the OmniAlpha release.

Ready made, once a session and read only, as fixtures: `released_base`, `released_omnialpha` (folders). Variants:
`from released import write_base` and `write_base(tmp_path, zero_cond_t=True)`; each part has a writer of its own.
Every parameter is random, biases and norms too; on disk the base is in bfloat16 and the release in float32.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from omnialpha.models.text_encoder.encoder import Template

RANK = 4
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
TEXT_DIM = 64
VOCABULARY = 384  # rows of the embedding; as in the published weights the tokenizer needs fewer
# In the order of their ids, which follow those of vocab.json.
SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]

TRANSFORMER = {
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT_DIM,
    "guidance_embeds": False,
    "axes_dims_rope": [4, 6, 6],
}
VAE = {
    "base_dim": 8,
    "z_dim": 16,
    "dim_mult": [1, 2, 2, 2],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "dropout": 0.0,
    "latents_mean": [round(0.9 * (-1) ** k - 0.1 * k, 4) for k in range(16)],
    "latents_std": [round(0.6 + 0.15 * k, 4) for k in range(16)],
}
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.36.0.dev0",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "invert_sigmas": False,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
    "use_beta_sigmas": False,
    "use_dynamic_shifting": True,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}
IMAGE_PROCESSOR = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": 12845056,
    "merge_size": 2,
    "min_pixels": 3136,
    "patch_size": 14,
    "processor_class": "Qwen2_5_VLProcessor",
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"longest_edge": 12845056, "shortest_edge": 3136},
    "temporal_patch_size": 2,
}


def write_base(folder: Path, zero_cond_t: bool = False) -> Path:
    """The folder of a QwenImageEditPlusPipeline; `zero_cond_t`: as Qwen-Image-Edit-2511."""
    library = {
        "processor": ["transformers", "Qwen2VLProcessor"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "QwenImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLQwenImage"],
    }
    head = {"_class_name": "QwenImageEditPlusPipeline", "_diffusers_version": "0.36.0.dev0"}
    _write_json(folder / "model_index.json", head | library)
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_transformer(folder / "transformer", zero_cond_t)
    write_vae(folder / "vae")
    vocabulary = write_tokenizer(folder / "tokenizer")
    write_tokenizer(folder / "processor")
    _write_json(folder / "processor" / "preprocessor_config.json", IMAGE_PROCESSOR)
    write_text_encoder(folder / "text_encoder", vocabulary)
    return folder


def write_release(folder: Path) -> Path:
    """The published OmniAlpha folder: an RGBA autoencoder and a LoRA on the attention of the transformer."""
    write_vae(folder / "rgba_vae", channels=4)
    write_lora(folder / "lora")
    return folder


def write_transformer(folder: Path, zero_cond_t: bool = False) -> Path:
    """QwenImageTransformer2DModel in two shards with their index."""
    extra = {"zero_cond_t": True} if zero_cond_t else {}
    model = _random(lambda: QwenImageTransformer2DModel(**TRANSFORMER, **extra), seed=1, noise=0.05).bfloat16()
    model.save_pretrained(folder, max_shard_size=2 * sum(p.numel() for p in model.parameters()) * 3 // 5)
    assert len(list(folder.glob("*-of-00002.safetensors"))) == 2
    _write_json(folder / "config.json", {"_class_name": "QwenImageTransformer2DModel"} | TRANSFORMER | extra)
    return folder


def write_vae(folder: Path, channels: int = 3) -> Path:
    """Three channels: the base's. Four: the RGBA one of the release, under the names of its own class and settings."""
    vae = _random(lambda: AutoencoderKLQwenImage(**VAE, input_channels=channels), seed=channels, noise=0.05)
    vae.decoder.conv_out.weight.data *= 2  # some of the output beyond the clamp
    if channels == 4:
        vae.decoder.conv_out.bias.data[3] += 0.5
    (vae.bfloat16() if channels == 3 else vae).save_pretrained(folder)
    name = {"_class_name": "AutoencoderKLQwenImage"}
    if channels == 4:
        name = {"_class_name": "AutoencoderKLQwenImageAlpha", "in_channels": 4, "out_channels": 4}
    _write_json(folder / "config.json", name | VAE)
    return folder


def write_lora(folder: Path, rank: int = RANK, seed: int = 5, scale: float = 0.1) -> Path:
    """pytorch_lora_weights.safetensors in diffusers' names; as published without alphas, so that alpha = rank."""
    generator = torch.Generator().manual_seed(seed)
    width = TRANSFORMER["num_attention_heads"] * TRANSFORMER["attention_head_dim"]
    weights = {}
    for block in range(TRANSFORMER["num_layers"]):
        for module in ATTENTION:
            for part, shape in (("A", (rank, width)), ("B", (width, rank))):
                name = f"transformer.transformer_blocks.{block}.attn.{module}.lora_{part}.weight"
                weights[name] = scale * torch.randn(shape, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "pytorch_lora_weights.safetensors", {"format": "pt"})
    return folder


def write_tokenizer(folder: Path) -> dict[str, int]:
    """Qwen2's files with a byte-level BPE of our own; returns the ids of the special tokens."""
    rules = Qwen2Tokenizer().backend_tokenizer
    bpe = Tokenizer(models.BPE())
    bpe.normalizer, bpe.pre_tokenizer = rules.normalizer, rules.pre_tokenizer
    text = [Template.EDIT.prefix, "Picture 1: ", "remove the red cat and make the background green"]
    alphabet = ByteLevel.alphabet()
    bpe.train_from_iterator(text, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False))
    state = json.loads(bpe.to_str())["model"]
    ids = {token: len(state["vocab"]) + k for k, token in enumerate(SPECIAL)}
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    added = {str(i): {"content": token, "special": True} | plain for token, i in ids.items()}
    _write_json(folder / "vocab.json", state["vocab"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in state["merges"]))
    _write_json(folder / "added_tokens.json", ids)
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": SPECIAL[1:-1],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    _write_json(folder / "tokenizer_config.json", settings)
    named = {"additional_special_tokens": SPECIAL[1:-1], "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    _write_json(folder / "special_tokens_map.json", named)
    return ids


def write_text_encoder(folder: Path, ids: dict[str, int]) -> Path:
    """Qwen2_5_VLForConditionalGeneration with an untied head, in two shards, names and settings as published."""
    text = {
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "hidden_act": "silu",
        "hidden_size": TEXT_DIM,
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "max_position_embeddings": 128000,
        "max_window_layers": 2,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"},
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": VOCABULARY,
    }
    vision = {
        "depth": 2,
        "fullatt_block_indexes": [1],
        "hidden_act": "silu",
        "hidden_size": 32,
        "in_channels": 3,
        "in_chans": 3,
        "intermediate_size": 48,
        "model_type": "qwen2_5_vl",
        "num_heads": 2,
        "out_hidden_size": TEXT_DIM,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
    }
    config: dict[str, Any] = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "image_token_id": ids["<|image_pad|>"],
        "model_type": "qwen2_5_vl",
        "text_config": text | {"model_type": "qwen2_5_vl_text"},
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.53.1",
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": vision,
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_token_id": ids["<|vision_pad|>"],
    }
    config |= text
    _write_json(folder / "config.json", config)
    settings = Qwen2_5_VLConfig.from_pretrained(folder)
    model = _random(lambda: Qwen2_5_VLForConditionalGeneration(settings), seed=6, noise=0.05)
    for name, weight in model.named_parameters():
        # The 0.02 that transformers draws with suits widths of thousands: here it leaves attention silent.
        weight.data *= 20 if "embed_tokens" in name else 2.5 if weight.ndim == 2 else 1
    model = model.bfloat16()
    model.save_pretrained(folder, max_shard_size=2 * sum(p.numel() for p in model.parameters()) * 3 // 5)
    names = {name for file in folder.glob("model-*-of-00002.safetensors") for name in load_file(file)}
    assert {name.split(".")[0] for name in names} == {"model", "visual", "lm_head"}
    assert "model.layers.0.self_attn.q_proj.weight" in names
    _write_json(folder / "config.json", config)
    return folder


@torch.no_grad()
def _random(build: Callable[[], Any], seed: int, noise: float) -> Any:
    """A model with noise on every parameter: what starts at one or at zero takes part in a comparison too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        for parameter in model.parameters():
            parameter += noise * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
