"""How near to the truth nano comes in how many steps of sampling: `python benchmarks/sampling_steps.py`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.documents import write_block
from common.held_out import FIGURES, made
from common.tables import Table, save

import omnialpha
from omnialpha.models.checkpoints.card import Defaults
from omnialpha.training.sources import DataSettings, held_out

SIZE = (96, 96)  # pixels
STEPS = (1, 2, 4, 8, 16)


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description="What the network makes of held-out scenes, by the number of steps.")
    parser.add_argument("--model", default="nano")
    parser.add_argument("-n", type=int, default=48, help="held-out scenes a task")
    parser.add_argument("--quick", action="store_true", help="two scenes, to see that it works: no figure to quote")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--document", type=Path, help="put the table into this file, between marks")
    options = parser.parse_args(argv)
    count, model, bank = 2 if options.quick else options.n, omnialpha.load(options.model), held_out(DataSettings())
    table = Table(
        "By steps of sampling",
        f"n={count} held-out scenes of {SIZE[0]} px a task, drawn layers, seed 0, CPU, float32",
        {"steps": "d", **{column: form for column, (_, form) in FIGURES.items()}},
    )
    for steps in STEPS:
        model.card = replace(model.card, sampling={"*": Defaults(steps=steps, guidance=1.0)})
        table.rows.append([steps, *made(model, bank, count, SIZE)])
    print(table.text())
    save([table], {"n": count, "model": options.model}, options.json, None)
    if options.document:
        write_block(options.document, "steps", [table], shlex.join(["python", "benchmarks/sampling_steps.py", *argv]))


if __name__ == "__main__":
    main()
