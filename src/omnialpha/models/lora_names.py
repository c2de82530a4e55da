"""The names in LoRA files: keys to modules and back, in every form in use, and the modules that training adapts."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from omnialpha.errors import InputError

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
TARGETS = {"attention": ATTENTION, "attention+mlp": ATTENTION + MLP}


@dataclass(frozen=True)
class Naming:
    """How keys are written: prefix + module (dots to underscores if flat) + the end of the part."""

    prefix: str
    down: str = ".lora_A.weight"
    up: str = ".lora_B.weight"
    magnitude: str = ".lora_magnitude_vector"
    alpha: str | None = None  # the end of the key of alpha; None: alpha is written beside the tensors
    flat: bool = False

    def key(self, module: str, part: str) -> str:
        return self.prefix + (module.replace(".", "_") if self.flat else module) + getattr(self, part)


NAMINGS = {
    "diffusers": Naming("transformer."),
    "peft": Naming("base_model.model."),
    "kohya": Naming("lora_unet_", ".lora_down.weight", ".lora_up.weight", ".dora_scale", ".alpha", flat=True),
}


def split(key: str) -> tuple[str, str]:
    """A key to the name of its module, as written but for prefixes, and its part. InputError for anything else."""
    for pattern, reason in REFUSED.items():
        if pattern.search(key):
            raise InputError(f"key {key!r} {reason}.")
    for part, pattern in PARTS.items():
        if end := pattern.search(key):
            return _strip(key[: end.start()]), part
    raise InputError(f"key {key!r} is not of a LoRA (lora_A, lora_down, alpha, ...): use another file.")


def _strip(name: str) -> str:
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


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
        raise InputError(
            f"key {key!r} matches no weight of this transformer, the nearest is {near!r}: use a LoRA that was made "
            f"for this model."
        )


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
