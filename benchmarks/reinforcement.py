"""What reinforcement adds to the bundled model at equal compute, held out, beside more fine-tuning.

`python benchmarks/reinforcement.py --minutes 60 --output runs/reinforcement` trains a LoRA of the same rank in each way
for so many minutes, one way after another, then measures all of them on the same held-out scenes. `--only` trains or
goes on with one way, so that several can run at once; `--minutes 0` measures what is there. Intervals: bootstrap over
scenes, 95 %, of the difference to the model before.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common.held_out import BATCH, interval, latent_errors
from common.tables import Cell, Table, save
from common.timing import surroundings
from PIL import Image, ImageDraw
from torch import Tensor

import omnialpha
from omnialpha import masks, rgba
from omnialpha.data.synthetic import bank as banks
from omnialpha.evaluation.metrics import matting
from omnialpha.io import contact_sheet
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import TASKS, Example, Role
from omnialpha.training import run as runs
from omnialpha.training.validation import ValidationSet

ROOT = Path(__file__).parents[1]
TASK_LIST = ("decompose_rough", "matting_rough", "removal_rough")
SHARED = [
    "tasks={decompose_rough=0.5, matting_rough=0.3, removal_rough=0.2}",
    *("validation_tasks=[]", "fit.validate_every=0", "fit.steps=1000000", "fit.trackers=[]", "fit.save_every=20"),
]
RELEASED = [
    *("rollout.transition=dance", "rollout.strength=0.3", "rollout.window=0", "rollout.keep=0.6"),
    *("rollout.times=released", "grpo={updates=1, clip=1e-4}", "guards={}", "groups=2", "advantages={floor=1e-8}"),
    "rewards={layer_ssim=1, layer_psnr=1, composite_ssim=1, composite_psnr=1, composite_lpips=1, background_lpips=1, "
    "soft_band=1}",
]
# way -> (recipe, changes)
WAYS: dict[str, tuple[str, list[str]]] = {
    "more fine-tuning": ("nano-sft-lora.toml", []),
    "GRPO, released": ("nano-grpo.toml", [*RELEASED, "rollout.steps=6"]),
    "GRPO, ours": ("nano-grpo.toml", ["rollout.steps=6"]),
    "DiffusionNFT": ("nano-nft.toml", ["rollout.steps=6"]),
}
FIGURES = {  # name -> (format, whether less is better)
    "decomposition RGB L1": (".4f", True),
    "decomposition alpha MAD": (".4f", True),
    "recomposition PSNR, dB": (".2f", False),
    "matting SAD, thousands": (".4f", True),
    "matting GRAD, thousands": (".4f", True),
    "boundary error": (".4f", True),
    "removal PSNR, dB": (".2f", False),
    "completion, error of clean latents": (".4f", True),
    "generation, error of clean latents": (".4f", True),
}
OTHERS = {"completion": "foreground_to_full", "generation": "text_to_image"}  # not trained here: are they forgotten?


def folder(output: Path, way: str) -> Path:
    return output / way.replace(",", "").replace(" ", "-").lower()


def train(way: str, output: Path, minutes: float) -> None:
    """Train in one way, or go on, for so many minutes."""
    recipe, changes = WAYS[way]
    target = [f"fit.output={folder(output, way)}", f"fit.minutes={minutes}"]
    runs.run(ROOT / "recipes" / recipe, [*SHARED, *changes, *target])


@torch.no_grad()
def measure(
    model: OmniAlpha, examples: dict[str, list[Example]]
) -> tuple[dict[str, np.ndarray], dict[str, list[Tensor]]]:
    """Figures of each scene by name, and what was made of each by task, without `fidelity`."""
    made = {}
    for name in TASK_LIST:
        asked, stacks = examples[name], []
        for first in range(0, len(asked), BATCH):
            part = asked[first : first + BATCH]
            stacks += model.run(part, seed=list(range(first, first + len(part))), steps=8, raw=True)
        made[name] = [torch.stack([layer.rgba for layer in stack]) for stack in stacks]
    figures: dict[str, list[float]] = {name: [] for name in FIGURES}
    for example, layers in zip(examples["decompose_rough"], made["decompose_rough"], strict=True):
        true, front = example.true_layers(), example.targets.index(Role.FOREGROUND)
        error = (rgba.premultiply(layers) - rgba.premultiply(true))[:, :3].abs()
        figures["decomposition RGB L1"].append(float(error.mean()))
        figures["decomposition alpha MAD"].append(float((layers[front, 3] - true[front, 3]).abs().mean()))
        whole = rgba.recompose(list(layers))
        figures["recomposition PSNR, dB"].append(rgba.psnr(whole[:3], example.inputs[0][:3]))
    for example, layers in zip(examples["matting_rough"], made["matting_rough"], strict=True):
        got, wanted = layers[0, 3].clamp(0, 1), example.true_layers()[0, 3]
        scores = matting.measure(got[None], wanted[None], names=("sad", "grad"))
        figures["matting SAD, thousands"].append(float(scores["sad"]))
        figures["matting GRAD, thousands"].append(float(scores["grad"]))
        band = masks.trimap(wanted, 3.0) == 0.5
        figures["boundary error"].append(float((got - wanted).abs()[band].mean()))
    for example, layers in zip(examples["removal_rough"], made["removal_rough"], strict=True):
        figures["removal PSNR, dB"].append(rgba.psnr(layers[0, :3], example.true_layers()[0, :3]))
    for category, name in OTHERS.items():
        figures[f"{category}, error of clean latents"] = latent_errors(model, examples[name])
    return {name: np.array(values) for name, values in figures.items()}, made


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Reinforcement of nano beside more fine-tuning.")
    parser.add_argument("--minutes", type=float, default=60.0, help="of training, each way")
    parser.add_argument("--only", choices=WAYS, help="train in this way alone, and measure nothing")
    parser.add_argument("--output", type=Path, default=Path("runs/reinforcement"))
    parser.add_argument("-n", type=int, default=128, help="held-out scenes a task")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args(argv)
    for way in [options.only] if options.only else WAYS:
        if options.minutes:
            train(way, options.output, options.minutes)
    if options.only:
        return
    held_out = ValidationSet(banks.unseen(128))
    examples = {name: held_out.examples(name, options.n, (96, 96)) for name in (*TASK_LIST, *OTHERS.values())}
    models: dict[str, OmniAlpha] = {"before": omnialpha.load()}
    for way in WAYS:
        if (folder(options.output, way) / "model").is_dir():
            models[way] = omnialpha.load(lora=folder(options.output, way) / "model")
    for model in models.values():  # its own alphas, not its finder's
        model.card = replace(model.card, alpha_from_finder=[])
    results = {way: measure(model, examples) for way, model in models.items()}
    table = Table(
        "Reinforcement of nano, held out",
        f"n={options.n} drawn scenes a task at 96x96, whole picture, raw, 8 steps, "
        f"{surroundings(torch.device('cpu'), torch.float32)}",
        {"figure": "", "way": "", "mean": ".4f", "change, %": "+.1f", "95 % of the difference": ""},
        notes=[f"training: {options.minutes:g} minutes each in this call; LoRA of rank 32 of the bundled model"],
    )
    for name in FIGURES:
        before = results["before"][0][name]
        for way, (figures, _) in results.items():
            after, row = figures[name], list[Cell]()
            low, high = interval(before, after)
            change = 100 * (after.mean() / before.mean() - 1)
            row = [name, way, float(after.mean()), float(change), f"{low:+.4f} to {high:+.4f}"]
            table.rows.append(row if way != "before" else [name, way, float(after.mean()), None, ""])
    tables = [table, progress(options.output)]
    for one in tables:
        print(one.text())
    save(tables, {"n": options.n, "minutes": options.minutes}, options.json, None)
    curves(options.output)
    draw(options.output / "before-after.png", examples, {way: made for way, (_, made) in results.items()})


def progress(output: Path) -> Table:
    """What the logs say: steps, seconds, and the mean reward of the first and the last third of the run."""
    table = Table(
        "Reinforcement of nano, in training",
        "mean reward of a group, over the logged steps of each third; tasks differ from step to step",
        {"way": "", "steps": "d", "minutes": ".0f", "first third": ".4f", "last third": ".4f"},
    )
    for way in WAYS:
        log = folder(output, way) / "log.jsonl"
        rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
        rewards = [row["reward"] for row in rows if "reward" in row]
        if rows:
            third, minutes = max(1, len(rewards) // 3), (rows[-1]["time"] - rows[0]["time"]) / 60
            ends = [float(np.mean(part)) if part else None for part in (rewards[:third], rewards[-third:])]
            saved = torch.load(log.with_name("checkpoint.pt"), weights_only=True, mmap=True)
            table.rows.append([way, saved["step"], minutes, *ends])
    return table


def curves(output: Path) -> None:
    """The mean reward of groups over the steps of each run, as logged, into a picture."""
    sheet = Image.new("RGB", (640, 360), "white")
    pen, colors = ImageDraw.Draw(sheet), ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
    points = {}
    for way in WAYS:
        log = folder(output, way) / "log.jsonl"
        rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
        points[way] = [(row["step"], row["reward"]) for row in rows if "reward" in row]
    every = [point for row in points.values() for point in row]
    if not every:
        return
    steps, low, high = max(x for x, _ in every), min(y for _, y in every) - 0.01, max(y for _, y in every) + 0.01
    for (way, row), color in zip(points.items(), colors, strict=True):
        line = [(50 + 570 * x / steps, 320 - 290 * (y - low) / (high - low)) for x, y in row]
        if line:
            pen.line(line, fill=color, width=2)
            pen.text((line[-1][0] - 90, line[-1][1] - 16), way, fill=color)
    pen.line([(50, 20), (50, 320), (620, 320)], fill="black")
    for words, place in ((f"{high:.2f}", (12, 25)), (f"{low:.2f}", (12, 308)), (f"step {steps}", (570, 328))):
        pen.text(place, words, fill="black")
    pen.text((60, 5), "mean reward of a group, by optimiser step", fill="black")
    sheet.save(output / "curves.png")


def draw(path: Path, examples: dict[str, list[Example]], made: dict[str, dict[str, list[Tensor]]]) -> None:
    """A sheet of the first scenes: the input, what each way makes of it, and the truth."""
    cards = []
    for name in TASK_LIST:
        for k, example in enumerate(examples[name][:2]):
            rows = [[(str(role), picture) for role, picture in zip(example.roles, example.inputs, strict=True)]]
            for way, layers in [
                *((way, rows_[name][k]) for way, rows_ in made.items()),
                ("true", example.true_layers()),
            ]:
                rows.append([(f"{way} {role}", layer) for role, layer in zip(example.targets, layers, strict=True)])
            cards.append(contact_sheet.card(name.replace("_", " "), rows, TASKS[name].summary, 144))
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet.write(path, cards)


if __name__ == "__main__":
    main()
