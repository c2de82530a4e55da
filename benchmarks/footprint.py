"""What a GPU must hold for the released 20.4 B shape, diffusers' and ours: `python benchmarks/footprint.py`.

Needs no GPU and no weights: tensors of the device are counted and never made (torch's device "meta"). Both sides keep
all of their weights on the device. What is printed goes into docs/performance.md.
"""

from __future__ import annotations

import argparse
import gc
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import torch
import torch.nn.functional as F
from common.documents import write_block
from common.memory import Peak
from common.released_shape import METHODS, STEPS, Case, published, random_transformer, request, stepper, wrap
from common.savings import adopt
from common.tables import Table
from diffusers import AutoencoderKLQwenImage
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from omnialpha.models.runtime import estimate as estimating
from omnialpha.models.runtime.estimate import Job
from omnialpha.models.runtime.model_sizes import ModelSizes, count
from omnialpha.models.runtime.placement import Placement
from omnialpha.models.transformer.model import MultiImageTransformer
from omnialpha.models.transformer.modulation import PARTS
from omnialpha.models.vae.alphavae import AlphaVAE
from omnialpha.sampling import schedule

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
DEVICE, DTYPE = torch.device("meta"), torch.bfloat16
PICTURES = ((1, 1), (2, 1), (1, 2))  # inputs, targets
GB, LESS, CARD = 1e9, 13.0, 48.0  # required: GB under diffusers', and of the card that holds everything
CARDS = (4, 6, 8, 12, 16, 24, 32, 48, 80)  # GB
MODES: tuple[dict[str, Any], ...] = (
    {},
    {"offload": "model"},
    {"offload": "group"},
    {"offload": "disk"},
    {"quantize": "int8"},
    {"quantize": "int8", "offload": "model"},
    {"quantize": "int8", "offload": "group"},
    {"quantize": "nf4"},
    {"quantize": "nf4", "offload": "model"},
)
TEXT = {  # Qwen2.5-VL-7B-Instruct
    "text_config": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584},
}
METHOD = next(method for method in METHODS if method.table)  # ours by default

Stages = dict[str, Callable[[Case], Any]]  # they hold the weights of their side


@dataclass(frozen=True)
class Held:
    """Bytes: weights, and each stage's peak with them."""

    weights: int
    stages: dict[str, int]

    @property
    def peak(self) -> int:
        return max(self.stages.values())


# ---- both sides -----------------------------------------------------------------------------------------------------


def text_model() -> Any:
    with DEVICE:
        return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**TEXT))


def autoencoder(kind: Callable[[], Any]) -> Any:
    with DEVICE:
        return nn.Module.to(kind().requires_grad_(False), DTYPE).eval()


def diffusers_side(layers: int, heads: int) -> Stages:
    vae = autoencoder(partial(AutoencoderKLQwenImage, input_channels=4))
    transformer = random_transformer(layers, heads, 0, DEVICE, DTYPE)
    model = wrap(adopt(transformer))  # for its positions; the tensors are the same

    def step(case: Case) -> Tensor:
        cond, x, t = request(model, case, 0)
        return published(transformer, cond, case)[1](x, t)

    return {
        "encode": lambda case: vae.encode(pictures(case.n, case.side)[:, :, None]).latent_dist.mode(),
        "step": step,
        "decode": lambda case: vae.decode(latents(case.m, case.side)[:, :, None]).sample,
    }


def our_side(layers: int, heads: int) -> Stages:
    vae = autoencoder(AlphaVAE)
    model = wrap(adopt(random_transformer(layers, heads, 0, DEVICE, DTYPE)))
    for block in model.transformer.transformer_blocks:
        for part in PARTS:
            block.get_submodule(part).to_empty(device="cpu")  # 13.6 GB that are never touched
    model.transformer.tabulate()
    model.transformer.precompute_modulation(schedule(STEPS, 1024, model.card.shift)[:-1])

    def step(case: Case) -> Tensor:
        cond, x, t = request(model, case, 0)
        return stepper(model, METHOD, cond, x, t)()

    return {
        "encode": lambda case: vae.encode(pictures(case.n, case.side)),
        "step": step,
        "decode": lambda case: vae.decode(latents(case.m, case.side)),
    }


def pictures(count: int, side: int) -> Tensor:
    return torch.rand(count, 4, side, side, device=DEVICE, dtype=DTYPE)


def latents(count: int, side: int) -> Tensor:
    return torch.randn(count, 16, side // 8, side // 8, device=DEVICE, dtype=DTYPE)


SIDES = {"diffusers": diffusers_side, "ours": our_side}


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Attention makes its output and nothing beside it, as fused kernels do; the meta device knows no autocast."""
    fused = patch.object(F, "scaled_dot_product_attention", lambda query, *rest, **settings: torch.empty_like(query))
    with fused, patch.object(torch, "autocast", lambda *of, **settings: nullcontext()):
        yield


@torch.inference_mode()
def measure(side: str, cases: Sequence[Case], layers: int = 60, heads: int = 24) -> dict[Case, Held]:
    """What one side holds at most, in each stage of each case."""
    model = text_model()
    # ours without the language model's head
    text = DTYPE.itemsize * count(model if side == "diffusers" else model.model)
    with Peak(DEVICE.type) as peak, as_on_a_gpu():
        stages = SIDES[side](layers, heads)
        gc.collect()
        weights, held = text + peak.now, {}
        for case in cases:
            most = {}
            for name, stage in stages.items():
                gc.collect()
                peak.most = peak.now
                stage(case)
                most[name] = text + peak.most
            held[case] = Held(weights, most)
    return held


# ---- ways of placing ours --------------------------------------------------------------------------------------------


def modes(side: int, layers: int, heads: int) -> Table:
    """What each way needs by `estimate`, which is what a run says before it starts."""
    with DEVICE:
        transformer = MultiImageTransformer(num_layers=layers, num_attention_heads=heads)
    sizes = ModelSizes.planned(autoencoder(AlphaVAE), transformer, text_model().model, 384 * 384, "bfloat16")
    result = Table(
        f"The same by way of placing it: a picture of {side} px from one of {side} px",
        f"estimated, as a run does before it starts; bfloat16, {STEPS} guided steps, a batch of one",
        {"setting": "", "GPU, GB": ".1f", "main memory, GB": ".1f", "smallest card, GB": "d", "same picture": ""},
        notes=[
            "Main memory: beside weights that need not leave their files, modulation and with --offload disk all.",
            f"Cards of {', '.join(map(str, CARDS))} GB. Adapters and other programs come on top.",
        ],
    )
    with patch.object(estimating, "pick_device", lambda name: name):  # that there is none here does not matter
        for mode in MODES:
            job = Job(sizes, Case(1, 1, side).layout, Placement(device="cuda", **mode), STEPS, guided=True)
            made = estimating.estimate(job)
            words = " ".join(f"--{name} {value}" for name, value in mode.items()) or "none"
            fits = next(card for card in CARDS if made.peak_bytes < card * GB)
            result.rows.append([words, made.peak_bytes / GB, made.host_bytes / GB, fits, "quantize" not in mode])
    return result


# ---- command line ---------------------------------------------------------------------------------------------------


def table(sides: Sequence[int], layers: int, heads: int) -> Table:
    cases = [Case(n, m, side) for side in sides for n, m in PICTURES]
    made = {side: measure(side, cases, layers, heads) for side in SIDES}
    result = Table(
        "Memory of the released shape, everything on the device",
        f"{layers} blocks of {heads} heads of 128, Qwen2.5-VL-7B, the RGBA autoencoder; guided, a batch of one; "
        f"bfloat16, tensors counted; torch {torch.__version__}, diffusers {diffusers.__version__}",
        {"px": "d", "inputs": "d", "targets": "d", "side": "", "weights, GB": ".1f"}
        | {f"{stage}, GB": ".2f" for stage in ("encode", "step", "decode")}
        | {"peak, GB": ".1f", "GB less": ".1f", f">= {LESS:g}": "", f"on {CARD:g} GB": ""},
        notes=[
            "encode, step, decode: what a stage adds to the weights at its widest; peak: the widest stage with them.",
            "Not counted: the work space of a GPU's libraries, and what its allocator leaves unused.",
            f"Ours: with a table of modulation for {STEPS} steps in place of its weights, which stay in main memory.",
            "The text model's own pass is not counted: a few hundred tokens, before the step.",
        ],
    )
    for case in cases:
        theirs = made["diffusers"][case].peak / GB
        for side, held in made.items():
            row = held[case]
            added = [(row.stages[stage] - row.weights) / GB for stage in ("encode", "step", "decode")]
            peak = row.peak / GB
            less = None if side == "diffusers" else theirs - peak
            result.rows.append(
                [case.side, case.n, case.m, side, row.weights / GB, *added, peak]
                + [less, less and less >= LESS, peak < CARD]
            )
    return result


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description="What a GPU must hold for the released shape: tensors counted.")
    parser.add_argument("--sides", default="512,1024", help="px of a picture, with commas")
    parser.add_argument("--layers", default=60, type=int)
    parser.add_argument("--heads", default=24, type=int)
    options = parser.parse_args(argv)
    sides = [int(side) for side in options.sides.split(",")]
    tables = [table(sides, options.layers, options.heads), modes(max(sides), options.layers, options.heads)]
    print("\n\n".join(made.text() for made in tables))
    if (options.layers, options.heads) == (60, 24):
        write_block(DOCUMENT, "footprint", tables, shlex.join(["python", "benchmarks/footprint.py", *argv]))


if __name__ == "__main__":
    main()
