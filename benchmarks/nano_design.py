"""Designs of a small transformer at equal compute: `python benchmarks/nano_design.py [--seconds N]`.

recipes/nano-small.toml from nothing, changed in one way at a time: width and depth, latents a token, native size,
shares of the tasks, the finder's hints. Each trains for the same processor time, whatever else the machine does, and
makes the same held-out scenes of 128 px, which it sees at its own size.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common.documents import write_block
from common.held_out import FIGURES, made
from common.tables import Table, save
from common.training_runs import first_steps, tasks_of

from omnialpha import config
from omnialpha.data.synthetic.bank import Bank
from omnialpha.pipeline import OmniAlpha
from omnialpha.training.run import SFTRecipe

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes/nano-small.toml"
WARMUP, DECAY = 50, 1 / 3  # steps; share of the time in which the rate falls to 0
SIZE = (128, 128)  # pixels of the scenes


def side(pixels: int) -> list[str]:
    """Changes of the recipe for another native size."""
    area = pixels * pixels
    return [
        f"sizes=[[{pixels}, {pixels}]]",
        f"card.picture_pixels={area}",
        f"card.grid.picture_pixels={area}",
        f"card.grid.sample_pixels={8 * area}",
        "data.size=128",
    ]


ONE_LATENT = ["transformer.patch_size=1", "transformer.in_channels=32", "transformer.out_channels=32"]
DESIGNS: dict[str, list[str]] = {
    "4 blocks of width 192, 64 px": [],
    "2 blocks of width 256": ["transformer.num_layers=2", "transformer.num_attention_heads=8"],
    "9 blocks of width 128": ["transformer.num_layers=9", "transformer.num_attention_heads=4"],
    "one latent a token": ONE_LATENT,
    "one latent a token, 2 blocks of width 192": [*ONE_LATENT, "transformer.num_layers=2"],
    "96 px": side(96),
    "128 px": side(128),
    "every category alike": [f"tasks.{name}={share:.4f}" for name, share in tasks_of(None).items()],
    "told by the finder": [f"finder={(ROOT / 'src/omnialpha/weights/nano/finder').as_posix()}", "hint_dropout=0.25"],
}


def trained(recipe: SFTRecipe, seconds: float, most: int) -> tuple[OmniAlpha, int, Bank]:
    """A model after so much processor time of training, or so many steps, their number, and what is held out."""
    objective, began, steps = recipe.objective(), time.process_time(), 0
    left = lambda: max(0.0, 1 - (time.process_time() - began) / seconds)  # noqa: E731
    run = first_steps(objective, recipe.fit, WARMUP, lambda: min(1.0, left() / DECAY))
    while time.process_time() - began < seconds and steps < most:
        loss = next(run)
        steps += 1
        if not steps % 50:
            print(f"  {time.process_time() - began:.0f} of {seconds:.0f} s: {loss:.4f}", file=sys.stderr, flush=True)
    held_out = objective.held_out.source
    assert isinstance(held_out, Bank)
    return objective.model.eval(), steps, held_out


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description="Designs of a small transformer, trained for the same time each.")
    parser.add_argument("--seconds", type=float, default=900, help="of processor time, for each training")
    parser.add_argument("-n", type=int, default=64, help="held-out scenes of each task")
    parser.add_argument("--only", help="names of designs, with semicolons")
    parser.add_argument("--quick", action="store_true", help="one step, to see that it works: no figure to quote")
    parser.add_argument("--json", type=Path, help="goes on with the rows that it has, of the same settings")
    parser.add_argument("--document", type=Path, help="put the table into this file, between marks")
    options = parser.parse_args(argv)
    count, most = (2, 1) if options.quick else (options.n, sys.maxsize)
    vae = (ROOT / "src/omnialpha/weights/nano/vae").as_posix()
    common = [f"vae={vae}", "fit.device=cpu", "prompt_dropout=0.0"]
    common += ["batch=2", "data.foregrounds=24", "data.backgrounds=12"] if options.quick else []
    table = Table(
        "Designs at equal compute",
        f"n={count} held-out scenes of {SIZE[0]} px a task, drawn layers, region: whole; each trained for "
        f"{options.seconds:.0f} s of processor time from nothing, seed 0, CPU, float32",
        {"design": "", "steps": "d", "million weights": ".1f", **{name: form for name, (_, form) in FIGURES.items()}},
        notes=["As the network itself makes it, by validation's figures; other rows change the first in one way."],
    )
    settings = {"seconds": options.seconds, "n": count, "most": most}
    if options.json and options.json.is_file():
        kept = json.loads(options.json.read_text())
        if kept["settings"] == settings:
            table.rows += [list(row.values()) for row in kept["tables"][0]["rows"]]
    there = {row[0] for row in table.rows}
    for name in options.only.split(";") if options.only else DESIGNS:
        if name in there:
            continue
        print(name, file=sys.stderr, flush=True)
        with TemporaryDirectory() as folder:
            tree: dict[str, Any] = config.load(RECIPE, [*common, *DESIGNS[name], f"fit.output={folder}"])
            model, steps, bank = trained(config.build(SFTRecipe, tree), options.seconds, most)
        weights = sum(p.numel() for p in model.transformer.parameters()) / 1e6
        table.rows.append([name, steps, weights, *made(model, bank, count, SIZE)])
        print(table.text(), flush=True)
        save([table], settings, options.json, None)
    if options.document:
        write_block(options.document, "design", [table], shlex.join(["python", "benchmarks/nano_design.py", *argv]))


if __name__ == "__main__":
    main()
