"""Unequal samples packed, padded, or kept apart: `python benchmarks/packing.py`.

Training steps (forward and backward, no optimiser) on latents and texts of all tasks, of nano and of a mid-size random
transformer. The same mixed batches are padded and packed, and have to give the same loss. Then a mixture is trained on
in batches of one task and size, as large as its largest sample allows, and in batches by a budget of tokens. What a
budget holds is counted over a whole block of draws.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from common.documents import write_block
from common.tables import Table, save
from common.timing import in_turn, medians, surroundings
from torch import Tensor

from omnialpha import config
from omnialpha.canvas import Grid, plan
from omnialpha.condition import pad
from omnialpha.data.stream.batches import BLOCK, SEEN, Budget, SampleShape
from omnialpha.data.stream.mixture import Mixture
from omnialpha.data.synthetic import bank as banks
from omnialpha.limits import by
from omnialpha.models.transformer.model import MultiImageTransformer
from omnialpha.models.transformer.positions import PATCH_SIZE, Layout, Positions, batch_positions
from omnialpha.pipeline import OmniAlpha
from omnialpha.training.sft import flow_losses

RECIPE = Path(__file__).resolve().parents[1] / "recipes/nano-sft.toml"
DOCUMENT = Path(__file__).resolve().parents[1] / "docs/decisions/0014-packing.md"
SAME = 1e-5  # relative difference of losses
SIZES = [(64, 64), (96, 96), (64, 128), (160, 96), (128, 128)]
WORDS = (10, 50)  # text tokens of an instruction, from and to
MID = {
    "num_layers": 4,
    "num_attention_heads": 4,
    "attention_head_dim": 128,
    "joint_attention_dim": 512,
    "in_channels": 64,
    "out_channels": 16,
}


@dataclass(frozen=True)
class Side:
    """A transformer, the mixture it is trained on, and the tokens that a batch may have."""

    name: str
    transformer: MultiImageTransformer
    mixture: Mixture

    @property
    def budget(self) -> Budget:
        assert self.mixture.budget
        return self.mixture.budget

    @property
    def alike(self) -> Mixture:
        """The same in batches of one task and size: as many samples as of the largest ones are within the budget."""
        largest = max(self.budget.count(shape) for shape in self.mixture.shapes())
        return replace(self.mixture, batch_size=self.budget.tokens // largest, budget=None)


@dataclass(frozen=True)
class Step:
    """Arguments of the transformer, and what its velocity should be."""

    targets: Tensor
    inputs: Tensor
    text: Tensor
    t: Tensor
    positions: Positions
    wanted: Tensor
    tokens: int  # real ones

    @property
    def padded(self) -> int:
        """Rows with their padding."""
        return sum(x.shape[0] * x.shape[1] for x in (self.targets, self.inputs, self.text))


def nano(tokens: int) -> Side:
    """The bundled model with its own tasks, weights and sizes."""
    model = OmniAlpha.from_folder()
    tree = config.load(RECIPE)
    side = model.vae.ratio * PATCH_SIZE
    budget = Budget(tokens, 32, model.card.grid, side, model.card.picture_pixels)
    transformer = model.transformer.train().requires_grad_(True)
    return Side("nano", transformer, mixture(tree["tasks"], [(h, w) for h, w in tree["sizes"]], budget))


def mid(tokens: int, tasks: dict[str, float]) -> Side:
    """A random one, on pictures that keep their sizes."""
    torch.manual_seed(0)
    transformer = MultiImageTransformer(**MID)
    grid = Grid(multiple=16, picture_pixels=128 * 128, sample_pixels=8 * 128 * 128)
    budget = Budget(tokens, 32, grid, 16, 96 * 96)
    name = f"mid-size ({sum(p.numel() for p in transformer.parameters()) / 1e6:.0f} M)"
    return Side(name, transformer, mixture(tasks, SIZES, budget))


def mixture(tasks: dict[str, float], sizes: list[tuple[int, int]], budget: Budget) -> Mixture:
    return Mixture(banks.procedural(8, 4, 32, seed=0), tasks, sizes, 1, 0, budget=budget)  # no picture is drawn


def step(side: Side, shapes: Sequence[SampleShape], seed: int) -> Step:
    """Random latents and texts of these samples, padded; of a sample by its number."""
    layouts, rows, t = [], [], []
    settings, budget = side.transformer.config, side.budget
    for number, shape in enumerate(shapes):
        draw = torch.Generator().manual_seed(seed + number)
        height, width = plan(shape.size, shape.inputs + shape.targets, budget.grid).size
        size = (height // budget.side, width // budget.side)
        layout = Layout((size,) * shape.targets, (size,) * shape.inputs)
        text = math.ceil(budget.seen / SEEN) * shape.inputs + int(torch.randint(*WORDS, (1,), generator=draw))
        counts = (layout.target_tokens, layout.target_tokens, layout.input_tokens, text)
        channels = (settings.in_channels,) * 3 + (settings.joint_attention_dim,)
        rows.append([torch.randn(*pair, generator=draw) for pair in zip(counts, channels, strict=True)])
        layouts.append(layout)
        t.append(float(torch.rand(1, generator=draw)))
    x0, noise, inputs, text = (pad(part, part[0].shape[1]) for part in zip(*rows, strict=True))
    times, lengths = torch.tensor(t), [len(row[3]) for row in rows]
    positions = batch_positions(layouts, lengths, "paper", settings.axes_dims_rope)
    x_t = torch.lerp(x0, noise, times.view(-1, 1, 1))
    return Step(x_t, inputs, text, times, positions, noise - x0, sum(len(part) for row in rows for part in row[1:]))


def loss(side: Side, made: Step) -> Tensor:
    out = side.transformer(made.targets, made.inputs, made.text, made.t, made.positions)
    return flow_losses(out, made.wanted, torch.ones_like(made.t), made.positions.target_mask).mean()


def train(side: Side, steps: Sequence[Step], packs: bool) -> float:
    """Forward and backward through all of them; the mean of their losses."""
    side.transformer.packs = packs
    total = 0.0
    for made in steps:
        found = loss(side, made)
        found.backward()
        side.transformer.zero_grad(set_to_none=True)
        total += float(found.detach())
    return total / len(steps)


def processor_seconds(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Medians of what the processor spent on each call, in turn: other work on the machine is not in it."""
    spent: dict[str, list[float]] = {name: [] for name in calls}

    def watched(name: str) -> None:
        start = time.process_time()
        calls[name]()
        spent[name].append(time.process_time() - start)

    in_turn({name: partial(watched, name) for name in calls}, repeats, torch.device("cpu"))
    return medians({name: values[-repeats:] for name, values in spent.items()})


def shapes_of(drawn: Mixture, index: int) -> list[SampleShape]:
    return [drawn.shape(number) for number in drawn.members(index) for _ in range(drawn.batch_size)]


def mixed(sides: Sequence[Side], batches: int, repeats: int, about: str) -> Table:
    table = Table(
        "Mixed batches, padded and packed",
        about,
        {"model": "", "rows": "", "samples": "d", "tokens": "d", "padding": ".1%", "samples a second": ".2f",
         "tokens a second": ".0f", "ratio": ".2f", "loss": ".6f", "difference": ".1e", "met": ""},
        notes=[f"The same {batches} batches by tokens. Seconds: of the processor, medians of {repeats}, in turn.",
               f"padding: share of all rows. difference: of the losses, relative; required <= {SAME:g}."],
    )  # fmt: skip
    for side in sides:
        steps = [step(side, shapes_of(side.mixture, index), 1000 * index) for index in range(batches)]
        losses: dict[str, float] = {}

        def call(name: str, side: Side = side, steps: list[Step] = steps, losses: dict[str, float] = losses) -> None:
            losses[name] = train(side, steps, name == "packed")

        calls: dict[str, Callable[[], None]] = {name: lambda name=name: call(name) for name in ("padded", "packed")}
        seconds = processor_seconds(calls, repeats)
        samples, tokens = sum(len(s.t) for s in steps), sum(s.tokens for s in steps)
        apart = abs(losses["packed"] - losses["padded"]) / losses["padded"]
        for name, taken in seconds.items():
            padding = 1 - tokens / sum(s.padded for s in steps) if name == "padded" else 0.0
            judged = [apart, apart <= SAME] if name == "packed" else [None, None]
            ratio = seconds["padded"] / taken
            row = [samples, tokens, padding, samples / taken, tokens / taken, ratio, losses[name], *judged]
            table.rows.append([side.name, name, *row])
    return table


def ways(side: Side) -> dict[str, tuple[Mixture, bool]]:
    """How a mixture is trained on: the mixture, and whether packed."""
    count = side.alike.batch_size
    return {
        f"{count} alike, padded": (side.alike, False),
        f"{count} alike, packed": (side.alike, True),
        "by tokens, packed": (side.mixture, True),
    }


def kinds(sides: Sequence[Side], samples: int, repeats: int, about: str) -> Table:
    table = Table(
        "Batches that are alike, and by tokens",
        about,
        {"model": "", "batches": "", "samples": "d", "tokens of a batch": ".0f", "padding": ".1%",
         "samples a second": ".2f", "tokens a second": ".0f", "ratio": ".2f"},
        notes=[f"At least {samples} samples of each, not the same ones. Seconds as above, medians of {repeats}.",
               "ratio: of tokens a second, to the first row. padding: share of the rows that are computed."],
    )  # fmt: skip
    for side in sides:
        calls, facts = {}, {}
        for name, (drawn, packs) in ways(side).items():
            steps: list[Step] = []
            while sum(len(s.t) for s in steps) < samples:
                steps.append(step(side, shapes_of(drawn, len(steps)), 1000 * len(steps)))
            calls[name] = lambda side=side, steps=steps, packs=packs: train(side, steps, packs)
            count, tokens = sum(len(s.t) for s in steps), sum(s.tokens for s in steps)
            padding = 0.0 if packs else 1 - tokens / sum(s.padded for s in steps)
            facts[name] = (count, tokens, tokens / len(steps), padding)
        seconds = processor_seconds(calls, repeats)
        rates = {name: facts[name][1] / taken for name, taken in seconds.items()}
        for name, taken in seconds.items():
            count, _, each, padding = facts[name]
            row = [count, each, padding, count / taken, rates[name], rates[name] / next(iter(rates.values()))]
            table.rows.append([side.name, name, *row])
    return table


def filling(sides: Sequence[Side], about: str) -> Table:
    table = Table(
        f"What batches hold, of {BLOCK} draws",
        about,
        {"model": "", "tokens": "d", "batches": "", "samples a batch": ".1f", "least": "d", "most": "d", "used": ".1%"},
        notes=["Counted, not timed. used: of the tokens that a batch may have; text as the budget counts it."],
    )
    for side in sides:
        for name, drawn in ((f"{side.alike.batch_size} alike", side.alike), ("by tokens", side.mixture)):
            held = [shapes_of(drawn, index) for index in range(drawn.begins(1))]
            totals = [sum(map(side.budget.count, shapes)) for shapes in held]
            counts = [len(shapes) for shapes in held]
            used = sum(totals) / len(totals) / side.budget.tokens
            row = [sum(counts) / len(held), min(counts), max(counts), used]
            table.rows.append([side.name, side.budget.tokens, name, *row])
    return table


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description="Unequal samples packed, padded, or kept apart.")
    parser.add_argument("--tokens", type=int, default=2048, help="of a batch")
    parser.add_argument("--batches", type=int, default=4, help="mixed ones that are timed")
    parser.add_argument("--samples", type=int, default=48, help="of each kind of batch that are timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="few samples, to see that it works: no figure to quote")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--document", type=Path, help=f"where tables go (default: {DOCUMENT.name}, none if --quick)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    batches, samples, repeats = (1, 1, 1) if options.quick else (options.batches, options.samples, options.repeats)
    small = nano(options.tokens)
    sides = [small, mid(options.tokens, dict(small.mixture.weights))]
    where = surroundings(torch.device("cpu"), torch.float32)
    about = (
        f"all 21 tasks by the weights of {RECIPE.name}, {options.tokens} tokens a batch, random latents and texts of "
        f"{WORDS[0]} to {WORDS[1] - 1} tokens beside those of inputs; nano at its own sizes, mid-size at "
        f"{', '.join(map(by, SIZES))} px; {where}, seed 0"
    )
    tables = []
    for made in (
        lambda: filling(sides, about),
        lambda: mixed(sides, batches, repeats, about),
        lambda: kinds(sides, samples, repeats, about),
    ):
        tables.append(made())
        print(tables[-1].text(), end="\n\n", flush=True)
    save(tables, {"tokens": options.tokens, "batches": batches, "samples": samples}, options.json, None)
    document = options.document or (None if options.quick else DOCUMENT)
    if document:
        write_block(document, "packing", tables, shlex.join(["python", "benchmarks/packing.py", *argv]))


if __name__ == "__main__":
    main()
