"""Nano's first steps, aligned and plain, on the same batches: `python benchmarks/aligned_start.py`.

recipes/nano-sft.toml's networks on drawn layers, batch 16, float32; docs/decisions/0026 has its table.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from common.documents import write_block
from common.tables import Cell, Table, save
from common.training_runs import first_steps, plain_start

from omnialpha import config
from omnialpha.models.transformer.aligned import align
from omnialpha.training.run import SFTRecipe
from omnialpha.training.sft import SFTObjective

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes/nano-sft.toml"
WARMUP, HELD_OUT = 20, 12  # steps; batches that the loss is measured on


def curve(recipe: SFTRecipe, aligned: bool, stops: Sequence[int]) -> Iterator[float]:
    """Held-out loss after so many steps each."""
    objective = recipe.objective()
    assert isinstance(objective, SFTObjective)
    plain_start(objective, recipe)
    if aligned:
        align(objective.model.transformer)
    unseen = objective.held_out.mixture(objective.weights(), objective.mixture.sizes, recipe.batch, seed=5)
    steps = first_steps(objective, recipe.fit, WARMUP)
    for first, last in pairwise((0, *stops)):
        for _ in range(first, last):
            next(steps)
        with torch.no_grad():
            yield sum(float(objective.losses(unseen, index)["loss"]) for index in range(HELD_OUT)) / HELD_OUT


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description="Nano's first steps from an aligned start and from a plain one.")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 30, 60], help="after which the loss is measured")
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it works: no figure to quote")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--document", type=Path, help="put the table into this file, between marks")
    options = parser.parse_args(argv)
    steps = [0, 1] if options.quick else options.steps
    vae = (ROOT / "src/omnialpha/weights/nano/vae").as_posix()
    changes = [f"vae={vae}", "batch=16", "data.foregrounds=400", "data.backgrounds=100", "fit.device=cpu"]
    table = Table(
        "Nano's loss after its first steps",
        f"n={HELD_OUT} batches of 16 held-out examples of all tasks, 96 px, drawn layers, the same times and noise; "
        f"trained on the same batches of 16 in float32, {WARMUP} steps of warm-up, seed 0, CPU",
        {"start": "", **{f"after {count}": ".3f" for count in steps}},
    )
    for name, aligned in (("plain", False), ("aligned", True)):
        with TemporaryDirectory() as folder:
            recipe = config.build(SFTRecipe, config.load(RECIPE, [*changes, f"fit.output={folder}"]))
            row: list[Cell] = [name, *curve(recipe, aligned, steps)]
        table.rows.append(row)
    print(table.text())
    save([table], {"steps": steps}, options.json, None)
    if options.document:
        write_block(options.document, "aligned", [table], shlex.join(["python", "benchmarks/aligned_start.py", *argv]))


if __name__ == "__main__":
    main()
