"""The names in LoRA files: keys to modules, in every form in use, and the modules that training adapts."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

from omnialpha.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

# What a tensor is, by the end of its key. diffusers and peft: lora_A, lora_B, with or without the adapter's name;
# kohya and lightning files: lora_down, lora_up, alpha, dora_scale; before peft: lora.down, lora.up.
PARTS = {
    "down": re.compile(r"\.(?:lora_A|lora_down|lora\.down)(?:\.[^.]+)?\.weight$"),
    "up": re.compile(r"\.(?:lora_B|lora_up|lora\.up)(?:\.[^.]+)?\.weight$"),
    "alpha": re.compile(r"\.alpha$"),
    "magnitude": re.compile(r"\.(?:lora_magnitude_vector(?:\.[^.]+)*|dora_scale|magnitude)$"),
}
# What may stand before a module's name, in any order and number.
PREFIXES = (
    *("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "_orig_mod."),
    *("lora_unet_", "lora_transformer_", "lycoris_"),
)
REFUSED = {
    re.compile(r"^(?:lora_)?(?:te\d?|text_encoders?)(?:_\d)?[._]"): (
        "adapts the text encoder, which stays as it is here: use a LoRA of the transformer alone"
    ),
    re.compile(r"\.(?:lokr|hada|oft|boft|glora)_?\w*(?:\.\w+)*$"): (
        "is of another kind of adapter (LoKr, LoHa, OFT): use one that is LoRA or DoRA"
    ),
    re.compile(r"\.(?:diff\w*|set_weight|lora_mid\.weight|lora_B(?:\.[^.]+)?\.bias)$"): (
        "changes more than a low-rank part of a weight: use a plain LoRA or DoRA"
    ),
}

ATTENTION = tuple(
    f"attn.{name}"
    for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
)
MLP = tuple(f"{stream}_mlp.net.{layer}" for stream in ("img", "txt") for layer in ("0.proj", "2"))
FLUX_MLP = tuple(f"{stream}.net.{layer}" for stream in ("ff", "ff_context") for layer in ("0.proj", "2"))
TARGETS = {
    "attention": ATTENTION,
    "attention+mlp": ATTENTION + MLP,
    "flux": ATTENTION + FLUX_MLP,  # as AlphaVAE trains: of FLUX's single-stream blocks the attention alone
}

# FLUX's own names of the modules of a block, flat, and diffusers' of the same rows, in order.
FLUX_BLOCKS = {"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"}
FLUX_KEY = re.compile(rf"({'|'.join(FLUX_BLOCKS)})[._](\d+)[._](.+)")
FLUX_MODULES = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn_proj": ("attn.to_out.0",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "img_mod_lin": ("norm1.linear",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn_proj": ("attn.to_add_out",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
    "txt_mod_lin": ("norm1_context.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
}


def split(key: str) -> tuple[str, str]:
    """A key to the name of its module, as written but for prefixes, and its part. InputError for anything else."""
    for pattern, reason in REFUSED.items():
        if pattern.search(key):
            raise InputError(f"key {key!r} {reason}.")
    for part, pattern in PARTS.items():
        if end := pattern.search(key):
            name = key[: end.start()]
            while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
                name = name.removeprefix(prefix)
            return name, part
    raise InputError(f"key {key!r} is not of a LoRA (lora_A, lora_down, alpha, ...): use another file.")


def unfused(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """Tensors of a LoRA file by key, those under FLUX's own names under diffusers'; a fused module's rows are divided.

    shapes: of the model's modules, (out, in). What is of no module there keeps its key.
    """
    ends_of = {"down": "lora_down.weight", "up": "lora_up.weight", "magnitude": "dora_scale", "alpha": "alpha"}
    made = {}
    for key, tensor in tensors.items():
        name, part = split(key)
        found = FLUX_KEY.fullmatch(name)
        ends = FLUX_MODULES.get(found[3].replace(".", "_"), ()) if found else ()
        modules = [f"{FLUX_BLOCKS[found[1]]}.{found[2]}.{end}" for end in ends] if found else []
        rows = [shapes[module][0] for module in modules if module in shapes]
        divides = part in ("up", "magnitude")
        if not modules or len(rows) < len(modules) or (divides and sum(rows) != len(tensor)):
            made[key] = tensor
            continue
        values = tensor.split(rows) if divides else [tensor] * len(modules)
        made |= {f"{module}.{ends_of[part]}": value for module, value in zip(modules, values, strict=True)}
    return made


class Modules:
    """The names of a model's modules, found again from what files make of them."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = frozenset(names)
        self.flat: dict[str, list[str]] = {}
        for name in sorted(names):
            self.flat.setdefault(name.replace(".", "_"), []).append(name)

    def find(self, name: str, key: str) -> str:
        """The module that `name`, from `key`, means: as it is, or with underscores for dots, which may be ambiguous."""
        if name in self.names:
            return name
        flat = name.replace(".", "_")
        found = self.flat.get(flat, [])
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(f"key {key!r} can mean {' or '.join(found)}: use a file with dots in its keys.")
        near = self.flat[get_close_matches(flat, self.flat, n=1, cutoff=0.0)[0]][0]
        problem = f"key {key!r} matches no weight of this transformer, the nearest is {near!r}"
        raise InputError(f"{problem}: use a LoRA that was made for this model.")


def find_targets(targets: str | Sequence[str], modules: Collection[str]) -> list[str]:
    """The modules that a name of TARGETS or a list of name endings means; InputError for one that means none."""
    if isinstance(targets, str):
        if targets not in TARGETS:
            raise InputError(f"LoRA targets {targets!r} are not known: use {', '.join(TARGETS)} or a list of modules.")
        targets = TARGETS[targets]
    found: dict[str, None] = {}
    for target in targets:
        names = [name for name in modules if name == target or name.endswith("." + target)]
        if not names:
            near = get_close_matches(target, {*ATTENTION, *MLP, *modules}, n=1, cutoff=0.0)[0]
            raise InputError(f"LoRA target {target!r} matches no module: did you mean {near!r}?")
        found |= dict.fromkeys(names)
    return list(found)
