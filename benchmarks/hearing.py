"""Whether a model hears its captions: `python benchmarks/hearing.py MODEL [MODEL ...]`, folders or names.

The held-out loss of tasks with a text, with each example's own caption and with that of another one. A model that
does not hear has the same loss twice. Then what it makes of a few held-out scenes: there, too, the instruction alone
says what is wanted.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from common.held_out import FIGURES, made
from common.tables import Table, save

from omnialpha import config
from omnialpha.data.stream.mixture import Mixture
from omnialpha.pipeline import OmniAlpha
from omnialpha.training.sft import FlowLoss, SFTObjective
from omnialpha.training.sources import DataSettings, held_out

TASK_LIST = ("text_to_image", "matting_text", "foreground_to_full")
BATCH, SIZE, SCENES = 16, (96, 96), 12
RECIPE = Path(__file__).resolve().parents[1] / "recipes/nano-sft.toml"  # whose loss it is


@torch.no_grad()
def losses(model: OmniAlpha, mixture: Mixture, batches: int) -> tuple[float, float]:
    """(with their own captions, with others'): mean losses, at the same times and noise."""
    loss = config.build(FlowLoss, config.load(RECIPE)["loss"])
    objective, own, other = SFTObjective(model, mixture, mixture.bank, loss), 0.0, 0.0
    objective.eval()
    for index in range(batches):
        examples, weight = mixture[index]
        words = [example.instruction for example in examples]
        turned = [replace(e, instruction=w) for e, w in zip(examples, [*words[1:], words[0]], strict=True)]
        own += float(objective.losses(mixture, index, (examples, weight))["loss"]) / batches
        other += float(objective.losses(mixture, index, (turned, weight))["loss"]) / batches
    return own, other


def main() -> None:
    parser = argparse.ArgumentParser(description="Held-out loss with own captions and with others'.")
    parser.add_argument("models", nargs="*", default=["nano"])
    parser.add_argument("--data", help="a folder with foregrounds.jsonl and backgrounds.jsonl (default: drawn layers)")
    parser.add_argument("--batches", type=int, default=8, help=f"of {BATCH}, of each task")
    parser.add_argument("--quick", action="store_true", help="one batch, to see that it works: no figure to quote")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    count, source = 1 if options.quick else options.batches, "the folder given" if options.data else "drawn layers"
    bank = held_out(DataSettings(folders=[options.data] if options.data else []))
    table = Table(
        "Loss by caption",
        f"n={count * BATCH} held-out examples of each task, {SIZE[0]} px, "
        f"{source}, the same times and noise, seed 5, CPU, float32",
        {"model": "", "task": "", "own caption": ".4f", "another's": ".4f", "more, %": ".1f"},
    )
    results = Table(
        "What the network makes",
        f"n={SCENES} held-out scenes of {SIZE[0]} px a task, {source}, CPU, float32",
        {"model": "", **{column: form for column, (_, form) in FIGURES.items()}},
    )
    for name in options.models:
        model = OmniAlpha.from_folder(name)
        for task in TASK_LIST:
            own, other = losses(model, Mixture(bank, {task: 1.0}, [SIZE], BATCH, seed=5), count)
            table.rows.append([Path(name).name, task, own, other, 100 * (other / own - 1)])
            print(table.text(), flush=True)
        results.rows.append([Path(name).name, *made(model, bank, SCENES, SIZE)])
    print(results.text())
    save([table, results], {"batches": count}, options.json, None)


if __name__ == "__main__":
    main()
