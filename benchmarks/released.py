"""The released layout beside diffusers, on the same weights in one process: `python benchmarks/released.py`.

Sections: `mid`, a random model of 300 M parameters in the released classes; `savings`, each exact saving off and on;
`approximate`, what the approximate ones cost on nano; `nano`, its transformer beside diffusers'. What is printed goes
into docs/performance.md. `--full` does the same for the released transformer's 20.4 B shape, which needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from common import full_size, nano_model
from common.documents import grown, write_block
from common.released_layout import MID, SMALL, load_ours, load_theirs, write
from common.runs import RUNNERS, Phases, example, placed, theirs_settings
from common.savings import Bench, batching, blind, exact, spread
from common.tables import Table, save
from common.timing import surroundings
from speed import in_new_process
from torch import Tensor
from transformers.utils import logging

import omnialpha
from omnialpha import rgba
from omnialpha.sampling import sample, schedule

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "performance.md"
GUIDANCE = 4.0
FASTER = 1.5  # required of the whole run of the mid-size model on a CPU
SAME = {torch.float32: 1e-4}  # largest relative difference of latents; other types are shown and not judged
MEMORY = "import sys; sys.path.insert(0, {here!r}); import torch; torch.set_num_threads({threads}); \
from common import runs; runs.print_memory({side!r}, {folder!r}, {size}, {device!r}, {dtype!r})"


@dataclass(frozen=True)
class Sizes:
    """px and steps: of the whole run; check: px of the equality check; runs: of the whole run; scenes: of nano."""

    px: int = 512
    steps: int = 10
    check: int = 128
    savings: int = 256
    runs: int = 2
    repeats: int = 3
    scenes: int = 8


SHORT = Sizes(px=256, steps=4, savings=128, runs=1, repeats=2, scenes=4)
QUICK = Sizes(px=96, steps=2, check=64, savings=64, runs=1, repeats=1, scenes=2)


class Setup:
    """What the sections share; models are written and loaded when a section first asks for them."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.device, self.dtype = torch.device(options.device), getattr(torch, options.dtype)
        self.sizes = QUICK if options.quick else SHORT if options.short else Sizes()
        self.seed, self.folder = options.seed, folder
        self.shape, self.kind = (SMALL, "tiny") if options.quick else (MID, "mid-size")
        self.where = f"{surroundings(self.device, self.dtype)}, seed {self.seed}"

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Of each network; writes the folder that both sides read."""
        return write(self.folder, self.shape, self.seed)

    @cached_property
    def bench(self) -> Bench:
        """Both sides, loaded from the same folder."""
        assert self.parameters
        ours, theirs = (load(self.folder, self.device, self.dtype) for load in (load_ours, load_theirs))
        return Bench(ours, theirs, self.sizes.repeats, self.where)

    @cached_property
    def nano(self) -> Bench:
        return Bench(omnialpha.load(device=str(self.device)), None, self.sizes.repeats, self.where_nano)

    @property
    def where_nano(self) -> str:
        return surroundings(self.device, torch.float32)

    def about(self, px: int, rest: str) -> str:
        total = sum(self.parameters.values()) / 1e6
        return f"{self.kind} random model ({total:.0f} M parameters), n=1 m=1, {px} px, {rest}, {self.where}"


# ---- sections ----------------------------------------------------------------------------------------------------


# Each gives a table as soon as it is there, and may give it again with more rows.


def mid(setup: Setup) -> Iterator[Table]:
    memory = peak_memory(setup)  # before anything is loaded here
    yield equality(setup)
    yield whole_run(setup)
    yield memory


@torch.no_grad()
def equality(setup: Setup) -> Table:
    """The same noise through both sides; stops the benchmark where they differ."""
    model, pipeline, px, steps = setup.bench.ours, setup.bench.theirs, setup.sizes.check, 3
    asked = example(px)
    cond = model.condition([asked], guided=True)
    noise, times = model.noise(cond, setup.seed), schedule(steps, cond.target_tokens, model.card.shift)
    *_, last = sample(model.guided(cond, GUIDANCE), noise, times)
    made = model.pictures(last.x, cond)[0][0, :3]
    theirs: dict[str, Tensor] = {}

    def keep(_: Any, index: int, time: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        theirs.update(tensors)
        return {}

    with placed(pipeline.text_encoder):
        image = pipeline(
            **theirs_settings(asked, steps, GUIDANCE),
            latents=noise,
            callback_on_step_end=keep,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        ).images[0]
    bound = SAME.get(setup.dtype)
    table = Table(
        f"Equality of both sides, {setup.kind} model",
        setup.about(px, f"{steps} steps, guidance {GUIDANCE:g}"),
        {"compared": "", "difference": ".1e", "PSNR, dB": ".1f", "required": "", "met": ""},
        notes=[
            "Same noise. difference: the largest one, relative to the largest value.",
            "Here, not where it is timed, diffusers' text model is told where picture tokens stand in three dimensions:"
            " under transformers 5 its pipeline places them in one, and other embeddings come out.",
        ],
    )
    pairs = {"embeddings of the prompt": (cond.text, theirs["prompt_embeds"]), "latents": (last.x, theirs["latents"])}
    for what, pair in pairs.items():
        difference = spread(*pair)
        table.rows.append([what, difference, None, f"<= {bound:g}" if bound else "", bound and difference <= bound])
    table.rows.append(["picture, RGB", spread(made, image), rgba.psnr(made, image.float()), "", ""])
    if any(row[-1] is False for row in table.rows):
        raise SystemExit(f"{table.text()}\nThe sides differ: their times would be of different work.")
    return table


def whole_run(setup: Setup) -> Table:
    """Whole runs of both sides in turn, with the parts they consist of."""
    sizes, bench = setup.sizes, setup.bench
    asked, sides = example(sizes.px), {"diffusers": bench.theirs, "ours": bench.ours}
    runs: dict[str, list[Phases]] = {name: [] for name in sides}
    for number in range(sizes.runs):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            runs[name].append(RUNNERS[name](sides[name], asked, sizes.steps, GUIDANCE, setup.seed))
    table = Table(
        f"A whole run, {setup.kind} model",
        setup.about(sizes.px, f"{sizes.steps} steps, guidance {GUIDANCE:g}, {sizes.runs} runs of each in turn"),
        {"part": "", "n": "d", "diffusers, s": ".3f", "ours, s": ".3f", "ratio": ".2f", "required": "", "met": ""},
        notes=[
            "Medians. Before this, both sides have run once at another size.",
            "Diffusers' pipeline works at the same size instead of a megapixel, and on RGB; ours on RGBA.",
        ],
    )
    parts: dict[str, Callable[[Phases], list[float]]] = {
        "condition: picture and both prompts encoded": lambda run: [run.condition],
        "one guided step": lambda run: run.steps,
        "decode": lambda run: [run.decode],
        "whole run": lambda run: [run.whole],
    }
    for name, part in parts.items():
        values = {side: [v for run in runs[side] for v in part(run)] for side in sides}
        theirs, ours = (statistics.median(values[side]) for side in sides)
        required = name == "whole run" and setup.device.type == "cpu" and setup.kind == "mid-size"
        judged = [f">= {FASTER:g}", theirs / ours >= FASTER] if required else ["", ""]
        table.rows.append([name, len(values["ours"]), theirs, ours, theirs / ours, *judged])
    return table


def peak_memory(setup: Setup) -> Table:
    """Each side alone in a process of its own."""
    kind = "allocated on the device" if setup.device.type == "cuda" else "resident set of the process"
    table = Table(
        f"Peak memory, {setup.kind} model",
        setup.about(setup.sizes.px, "guided, 1 step"),
        {"side": "", "after loading, MB": ".0f", "peak of the run, MB": ".0f"},
        notes=[
            f"Peak {kind}, from its start; MB = 1e6 bytes. Each side in a process of its own, from the same folder."
        ],
    )
    settings = {"folder": str(setup.folder), "size": setup.sizes.px, "device": str(setup.device)}
    settings |= {"dtype": str(setup.dtype).removeprefix("torch."), "threads": torch.get_num_threads()}
    for side in RUNNERS:
        code = MEMORY.format(here=str(Path(__file__).parent), side=side, **settings)
        table.rows.append([side, *(value / 1e6 for value in in_new_process(code, 1)[0])])
    return table


def savings(setup: Setup) -> Iterator[Table]:
    sizes, bench, nano = setup.sizes, setup.bench, setup.nano
    native = nano.ours.native_size()[0]
    models = [("nano", nano.ours, native, 4 * sizes.repeats), (setup.kind, bench.ours, sizes.savings, sizes.repeats)]
    models.append((setup.kind, bench.ours, sizes.px, sizes.runs))
    yield from exact(bench, sizes.savings)
    yield from blind(bench, sizes.savings)
    yield from batching(bench, models)


def approximate(setup: Setup) -> Iterator[Table]:
    yield from nano_model.approximate(replace(setup.nano, repeats=setup.sizes.runs), setup.sizes.scenes, setup.seed)


def nano(setup: Setup) -> Iterator[Table]:
    yield from nano_model.step(setup.nano, setup.seed)


SECTIONS: dict[str, Callable[[Setup], Iterator[Table]]] = {f.__name__: f for f in (mid, savings, approximate, nano)}


def full(options: argparse.Namespace) -> list[Table]:
    """The full shape, from a file of figures alone if so asked."""
    if options.figures:
        return full_size.tables(json.loads(options.figures.read_text(encoding="utf-8")))
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    settings = full_size.settings_of(options, device, dtype)
    return full_size.tables(full_size.measure(settings, options.json, device, dtype))


# ---- command line ------------------------------------------------------------------------------------------------


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The released layout beside diffusers, on the same weights.")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="which of them, with commas")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works: no figure to quote")
    parser.add_argument("--short", action="store_true", help="smaller pictures and fewer repeats; tables say how many")
    parser.add_argument("--device", help="default: cpu, with --full cuda")
    parser.add_argument("--dtype", help="default: float32, with --full bfloat16")
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    parser.add_argument("--seed", default=0, type=int, help="of weights, pictures and noise")
    parser.add_argument("--json", type=Path, help="also write the tables here; with --full the figures, to go on from")
    parser.add_argument("--document", type=Path, help=f"where tables go (default: {DOCUMENT.name}, none if --quick)")
    group = parser.add_argument_group("--full", "the released transformer's shape, which needs a GPU of 80 GB")
    group.add_argument("--full", action="store_true")
    group.add_argument("--from", dest="figures", type=Path, help="figures of another machine: measure nothing")
    group.add_argument("--layers", default=60, type=int)
    group.add_argument("--heads", default=24, type=int)
    group.add_argument("--sides", default="512,1024", help="px of a picture, with commas")
    group.add_argument("--repeats", default=3, type=int)
    options = parser.parse_args(argv)
    options.device = options.device or ("cuda" if options.full else "cpu")
    options.dtype = options.dtype or ("bfloat16" if options.full else "float32")
    options.sides = tuple(int(side) for side in options.sides.split(","))
    options.sections = options.sections.split(",")
    if unknown := set(options.sections) - SECTIONS.keys():
        parser.error(f"no section {', '.join(sorted(unknown))}: use {', '.join(SECTIONS)}.")
    if options.full and not (options.figures or options.json):
        parser.error("--full needs --json FILE, where each figure goes as soon as it is there.")
    if options.device.startswith("cuda") and not (torch.cuda.is_available() or options.figures):
        parser.error("no CUDA device is available here.")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    options = options_of(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    start = time.perf_counter()
    shape = (options.layers, options.heads) if options.device.startswith("cuda") else (60, options.heads)
    partial = options.full and not options.figures and shape != (60, 24)
    document = options.document or (None if options.quick or partial else DOCUMENT)
    words = [Path(word).name if Path(word).is_absolute() else word for word in argv]  # names nobody's disk
    command = shlex.join(["python", "benchmarks/released.py", *words])
    done: dict[str, list[Table]] = {}
    for name, table in made(options):
        done[name] = grown(done.get(name, []), table)
        print(table.text(), end="\n\n", flush=True)
        if document:
            write_block(document, name, done[name], command)
        print(f"{name}: {time.perf_counter() - start:.0f} s so far", file=sys.stderr, flush=True)
    if not options.full:
        tables = [table for part in done.values() for table in part]
        save(tables, {"seed": options.seed, "quick": options.quick, "short": options.short}, options.json, None)


def made(options: argparse.Namespace) -> Iterator[tuple[str, Table]]:
    """The tables of each section that was asked for, with its name."""
    if options.full:
        block = "full" if options.device.startswith("cuda") else "full-cpu"
        yield from ((block, table) for table in full(options))
        return
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(options, Path(folder))
        for name in options.sections:
            block = name if setup.device.type == "cpu" else f"{name}-{setup.device.type}"
            yield from ((block, table) for table in SECTIONS[name](setup))


if __name__ == "__main__":
    main()
