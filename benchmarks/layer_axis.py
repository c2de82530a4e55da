"""The layer axis of the positions, in small: `python benchmarks/layer_axis.py [--steps N] [--seeds 0,1]`.

recipes/nano-small.toml's transformer learns, from nothing, to take pictures of one to three objects apart into two to
four layers, and to put one to three layers into a picture, with three layer axes on the same batches: both ways around
the inputs (MSRoPE-BiL, OmniAlpha), forwards only (targets behind the inputs), and none (all pictures in one place).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import torch
from common.documents import write_block
from common.held_out import interval, latent_errors
from common.tables import Table, save
from common.training_runs import first_steps, plain_start

from omnialpha import config
from omnialpha.data.scene import to_example
from omnialpha.data.stream.mixture import Mixture
from omnialpha.data.synthetic.bank import Bank
from omnialpha.data.synthetic.scenes import compose
from omnialpha.models.transformer import positions
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import TASKS, Example, Task
from omnialpha.training.run import SFTRecipe

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes/nano-small.toml"
WARMUP, MOST = 50, 3  # steps; objects of a scene
SPLIT, JOIN = TASKS["decompose_auto"], TASKS["foreground_to_full"]
LayerAxis = Callable[[int, int, str], list[int]]  # targets, inputs, order -> place of each picture, targets first
PAPER = "both ways (MSRoPE-BiL)"
AXES: Mapping[str, LayerAxis] = {
    PAPER: positions.layer_ids,
    "forwards only": lambda targets, inputs, order: [*range(inputs, inputs + targets), *range(inputs)],
    "none": lambda targets, inputs, order: [0] * (targets + inputs),
}


class ManyLayers(Mixture):
    """Batches of scenes of one, two and three objects in turn."""

    def _draw(self, number: int) -> list[Example]:
        task, size, generator = self._begin(number)
        return scenes(task, self.bank, self.batch_size, 1 + number % MOST, size, generator)


def scenes(
    task: Task, bank: Bank, count: int, objects: int, size: tuple[int, int], generator: torch.Generator
) -> list[Example]:
    """Examples of a task with their truths, of scenes of so many objects."""
    return [to_example(scene, task, generator, 0) for scene in compose(bank, count, objects, size, generator)]


def trained(recipe: SFTRecipe, steps: int) -> OmniAlpha:
    """A model after so many steps from nothing, with a plain start: the aligned one is made for one axis."""
    objective = recipe.objective()
    plain_start(objective, recipe)
    mixture = objective.mixture
    assert isinstance(mixture, Mixture)
    objective.mixture = ManyLayers(mixture.bank, mixture.weights, mixture.sizes, mixture.batch_size, mixture.seed)
    run = first_steps(objective, recipe.fit, min(WARMUP, steps))
    for step in range(steps):
        loss = next(run)
        if not step % 50:
            print(f"  {step} of {steps}: {loss:.4f}", file=sys.stderr, flush=True)
    return objective.model.eval()


def asked(bank: Bank, count: int, size: tuple[int, int]) -> dict[str, list[Example]]:
    """Held-out examples by what a row of the table says of them."""
    made = {}
    for objects in range(1, MOST + 1):
        for task, words in ((SPLIT, f"1 input, {objects + 1} targets"), (JOIN, f"{objects} input(s), 1 target")):
            made[words] = scenes(task, bank, count, objects, size, torch.Generator().manual_seed(11 + objects))
    return dict(sorted(made.items(), key=lambda row: row[0].endswith("1 target")))


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description="Three layer axes, trained from nothing on the same batches.")
    parser.add_argument("--steps", type=int, default=600, help="of each training")
    parser.add_argument("--seeds", default="0,1", help="of weights and batches, with commas")
    parser.add_argument("-n", type=int, default=128, help="held-out scenes a row")
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it works: no figure to quote")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--document", type=Path, help="put the table into this file, between marks")
    options = parser.parse_args(argv)
    steps, count = (2, 4) if options.quick else (options.steps, options.n)
    seeds = [0] if options.quick else [int(seed) for seed in options.seeds.split(",")]
    errors: dict[tuple[str, str], list[float]] = {}
    for seed in seeds:
        for name, axis in AXES.items():
            print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
            changes = [f"fit.seed={seed}", "fit.device=cpu", "prompt_dropout=0.0"]
            changes += ["batch=2", "data.foregrounds=24", "data.backgrounds=12"] if options.quick else []
            positions._image_table.cache_clear()
            with TemporaryDirectory() as folder, patch.object(positions, "layer_ids", axis):
                tree = config.load(RECIPE, [*changes, f"fit.output={folder}"])
                tree["tasks"] = {SPLIT.name: 0.6, JOIN.name: 0.4}
                recipe = config.build(SFTRecipe, tree)
                model = trained(recipe, steps)
                held_out = recipe.unseen(recipe.mixture(model.card, model.vae.ratio * model.patch))
                assert isinstance(held_out, Bank)
                for words, examples in asked(held_out, count, (recipe.sizes[0][0], recipe.sizes[0][1])).items():
                    errors.setdefault((words, name), []).extend(latent_errors(model, examples))
    table = Table(
        "Three layer axes",
        f"n={count} held-out scenes of 64 px a row and seed, drawn layers; {steps} steps of 16 from nothing, seeds "
        f"{', '.join(str(seed) for seed in seeds)}, the same batches, CPU, float32",
        {"pictures": "", "layer axis": "", "error of clean latents": ".4f", "to both ways, 95 %": ""},
        notes=[
            "error: mean squared, of the latents that are answered, the same times and noise for every model.",
            "95 %: of the mean difference over scenes, by bootstrap; it holds for these trainings, not for others.",
        ],
    )
    for (words, name), values in sorted(errors.items(), key=lambda row: list(errors).index((row[0][0], PAPER))):
        low, high = interval(np.array(errors[words, PAPER]), np.array(values))
        table.rows.append([words, name, float(np.mean(values)), "" if name == PAPER else f"{low:+.4f} to {high:+.4f}"])
    print(table.text(), flush=True)
    save([table], {"steps": steps, "n": count, "seeds": seeds}, options.json, None)
    if options.document:
        write_block(options.document, "axis", [table], shlex.join(["python", "benchmarks/layer_axis.py", *argv]))


if __name__ == "__main__":
    main()
