"""One model for all tasks beside one for each category, at equal total compute: `python benchmarks/unified.py`.

The paper's first claim, in small: recipes/nano-small.toml trains one transformer on all 21 tasks for N steps, and five
of them, one a category, for N / 5 steps each. A sixth run trains the unified one with condition_attention = "cached".
All are measured on held-out scenes. Runs resume: what is finished is not trained again.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from common.documents import write_block
from common.tables import Table, save
from common.training_runs import begin, tasks_of

from omnialpha import config, rgba
from omnialpha.data.stream.mixture import Mixture, examples
from omnialpha.data.synthetic.bank import Bank
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import CATEGORIES, TASKS
from omnialpha.training.loop import fit
from omnialpha.training.run import SFTRecipe
from omnialpha.training.sft import FlowLoss, SFTObjective
from omnialpha.training.sources import load_banks

RECIPE = Path(__file__).resolve().parents[1] / "recipes/nano-small.toml"
ALL, CACHED = "one model for all tasks", 'the same, condition_attention = "cached"'
ONE = "one model a category"
COLUMNS = ("category", "model", "steps", "loss", "from noise", "alpha MAD", "PSNR, dB")
BATCHES = 6  # of held-out examples of each task, for the loss


def train(folder: Path, overrides: Sequence[str], tasks: dict[str, float], transformer: dict[str, Any]) -> Path:
    """The folder of the model that this run ends with."""
    tree = config.load(RECIPE, [*overrides, f"fit.output={folder.as_posix()}"])
    tree["tasks"] = tasks
    tree["transformer"] |= transformer
    begin(folder, tree)
    if not (folder / "model").is_dir():
        recipe = config.build(SFTRecipe, tree)
        fit(recipe.objective(), recipe.fit)
    return folder / "model"


@torch.no_grad()
def from_noise(model: OmniAlpha, bank: Bank, size: tuple[int, int], category: str, loss: FlowLoss) -> float:
    """Mean squared error of the clean latents that the model answers to noise alone, on the examples of `losses`: what
    it makes of the pictures and the instruction, before anything of the answer is to be seen.
    """
    found = []
    for objective, mixture, index in batches(model, bank, size, category, loss):
        cond, x0, _ = objective.encoded(mixture, index, mixture[index])
        noise = model.noise(cond, index * 16)
        clean = noise - model.velocity(noise, torch.ones(len(noise)), cond)
        found.append(float((clean - x0).square().mean()))
    return sum(found) / len(found)


@torch.no_grad()
def losses(model: OmniAlpha, bank: Bank, size: tuple[int, int], category: str, loss: FlowLoss) -> float:
    """Mean held-out loss of a category's tasks, with times and noise that are the same for every model."""
    drawn = batches(model, bank, size, category, loss)
    found = [float(objective.losses(mixture, index)["loss"]) for objective, mixture, index in drawn]
    return sum(found) / len(found)


def batches(
    model: OmniAlpha, bank: Bank, size: tuple[int, int], category: str, loss: FlowLoss
) -> Iterator[tuple[SFTObjective, Mixture, int]]:
    """Batches 0, 1, .. of 16 examples of each task of a category, the same for every model."""
    for name in tasks_of(category):
        mixture = Mixture(bank, {name: 1.0}, [size], 16, seed=5)
        objective = SFTObjective(model, mixture, bank, loss)
        yield from ((objective, mixture, index) for index in range(BATCHES))


def pictures(model: OmniAlpha, bank: Bank, size: tuple[int, int], name: str, count: int) -> list[tuple[Any, Any]]:
    """(made, true), (m, 4, H, W) each, of `count` held-out examples of a task, as the network made them."""
    batch = examples(TASKS[name], bank, count, size, torch.Generator().manual_seed(11))
    pairs = []
    for first in range(0, count, 16):
        part = slice(first, first + 16)
        stacks = model.run(batch[part], raw=True)
        made = [torch.stack([layer.rgba for layer in stack]) for stack in stacks]
        pairs += zip(made, [example.true_layers() for example in batch[part]], strict=True)
    return pairs


def figures(model: OmniAlpha, bank: Bank, size: tuple[int, int], category: str, count: int) -> list[float | None]:
    """[alpha MAD, PSNR of what is opaque] where the category has one right answer."""
    task = {"matting": "matting_auto", "removal": "removal_rough", "decomposition": "decompose_auto"}.get(category)
    if task is None:
        return [None, None]
    pairs = pictures(model, bank, size, task, count)
    # the layers with an alpha are foregrounds; a background is opaque
    mads = [
        float((a[3] - b[3]).abs().mean())
        for made, true in pairs
        for a, b in zip(made, true, strict=True)
        if b[3].min() < 1
    ]
    psnrs = [
        rgba.psnr(a[:3], b[:3]) for made, true in pairs for a, b in zip(made, true, strict=True) if b[3].min() >= 1
    ]
    return [sum(mads) / len(mads) if mads else None, sum(psnrs) / len(psnrs) if psnrs else None]


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description="One model for all tasks beside one a category, at equal compute.")
    parser.add_argument("--data", help="a folder with foregrounds.jsonl and backgrounds.jsonl (default: drawn layers)")
    parser.add_argument("--runs", type=Path, default=Path("runs/unified"))
    parser.add_argument("--steps", type=int, help="N, of all models together")
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--only", help="train and measure these alone, with commas: all, cached, or categories")
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it works: no figure to quote")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--document", type=Path, help="put the tables into this file, between marks")
    options = parser.parse_args(argv)
    common = [f'data.folders=["{options.data}"]', "data.foregrounds=0"] if options.data else []
    if options.quick:
        common += ["fit.warmup=1", "batch=2", "data.foregrounds=24", "data.backgrounds=12", "fit.device=cpu"]
    recipe = config.build(SFTRecipe, config.load(RECIPE, common))
    steps = options.steps or (5 if options.quick else recipe.fit.steps)
    count = 4 if options.quick else options.pictures
    size = (recipe.sizes[0][0], recipe.sizes[0][1])
    plans: dict[str, tuple[str | None, int, dict[str, Any]]] = {
        "all": (None, steps, {}),
        **{category: (category, steps // len(CATEGORIES), {}) for category in CATEGORIES},
        "cached": (None, steps, {"condition_attention": "cached"}),
    }
    wanted = options.only.split(",") if options.only else list(plans)
    made = {}
    for name in wanted:
        category, own, changes = plans[name]
        overrides = [*common, f"fit.steps={own}", f"fit.decay_steps={own // 3}"]
        made[name] = train(options.runs / name, overrides, tasks_of(category), changes)
    _, held_out = load_banks(recipe.data)
    table = Table(
        "One model beside five, at equal total compute",
        f"n={count} held-out scenes of {size[0]} px a task, {'the folder given' if options.data else 'drawn layers'}, "
        f"region: whole; {steps} steps of {recipe.batch} in all, from nothing, seed {recipe.fit.seed}, CPU, float32",
        {
            "category": "",
            "model": "",
            "steps": "d",
            "loss": ".4f",
            "from noise": ".4f",
            "alpha MAD": ".4f",
            "PSNR, dB": ".2f",
        },
        notes=[
            "loss: of held-out examples of all tasks of the category, the same times and noise for every model.",
            "from noise: mean squared error of the latents answered to noise alone (t = 1), on those examples.",
            "alpha MAD and PSNR: of foregrounds and of backgrounds, as the network made them, by matting_auto, "
            "removal_rough and decompose_auto. Completion and text to picture have no one right answer.",
        ],
    )
    models = {name: OmniAlpha.from_folder(folder) for name, folder in made.items()}
    labels = {"all": ALL, "cached": CACHED}
    for category in CATEGORIES:
        for name, model in models.items():
            if name in (category, "all", "cached"):
                loss = losses(model, held_out, size, category, recipe.loss)
                blind = from_noise(model, held_out, size, category, recipe.loss)
                found = figures(model, held_out, size, category, count)
                table.rows.append([category, labels.get(name, ONE), plans[name][1], loss, blind, *found])
    print(table.text(), flush=True)
    save([table], {"steps": steps, "pictures": count}, options.json, None)
    if options.document:
        write_block(options.document, "unified", [table], shlex.join(["python", "benchmarks/unified.py", *argv]))


if __name__ == "__main__":
    main()
