"""The released transformer's shape, 20.4 billion parameters, with random weights made on the device: time and memory of
a guided step with each saving, beside diffusers'.

One side after the other in one process, so that one 80 GB card is enough: our transformer takes over the tensors of
diffusers'. Each figure is in the JSON file as soon as it is measured, and is not measured again.
"""

from __future__ import annotations

import gc
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.released_shape import (
    METHODS,
    STEPS,
    Case,
    Method,
    prepare,
    published,
    random_transformer,
    request,
    stepper,
    wrap,
)
from common.savings import Make, adopt
from common.tables import Cell, Table
from common.timing import now, peak_bytes, surroundings
from omnialpha.files import atomic_write
from omnialpha.models.runtime.quantize import KINDS
from omnialpha.pipeline import OmniAlpha

PICTURES = ((1, 1), (1, 2), (2, 1))  # inputs, targets
GB = 1e9
THEIRS = "diffusers"


@dataclass(frozen=True)
class Settings:
    """sides: of a picture in pixels. All that a figure depends on."""

    layers: int
    heads: int
    sides: tuple[int, ...]
    repeats: int
    seed: int
    where: str


class Rows:
    """Figures by name in a JSON file, written after each one."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path, self.settings = path, json.loads(json.dumps(asdict(settings)))
        self.rows: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            tree = json.loads(path.read_text(encoding="utf-8"))
            if tree["settings"] != self.settings:
                raise SystemExit(f"{path} holds figures of other settings ({tree['settings']}): give another --json.")
            self.rows = tree["rows"]

    def add(self, key: str, **figures: float | None) -> None:
        self.rows[key] = figures
        atomic_write(self.path, json.dumps({"settings": self.settings, "rows": self.rows}, indent=2) + "\n")
        print(key, {name: value if value is None else round(value, 4) for name, value in figures.items()}, flush=True)


def measure(settings: Settings, path: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Everything that `path` does not hold yet; returns what it then holds."""
    rows = Rows(path, settings)
    cases = [Case(n, m, side) for side in settings.sides for n, m in PICTURES]
    methods = [method for method in METHODS if not method.quantize or find_spec(KINDS[method.quantize].package)]
    if any(case.key(name) not in rows.rows for case in cases for name in (THEIRS, *(m.name for m in methods))):
        theirs = random_transformer(settings.layers, settings.heads, settings.seed, device, dtype)
        model = wrap(adopt(theirs))
        with torch.inference_mode():
            wanted = {case: _theirs(rows, theirs, model, case) for case in cases}
            del theirs
            gc.collect()
            for method in methods:
                if todo := [case for case in cases if case.key(method.name) not in rows.rows]:
                    took = prepare(model, method)
                    for case in todo:
                        _ours(rows, model, method, case, wanted[case], took)
    return {"settings": rows.settings, "rows": rows.rows}


def _theirs(rows: Rows, theirs: Any, model: OmniAlpha, case: Case) -> Tensor:
    """A branch's velocity by diffusers' transformer, on the CPU, and its row."""
    cond, x, t = request(model, case, rows.settings["seed"])
    branch, guided = published(theirs, cond, case)
    if (key := case.key(THEIRS)) not in rows.rows:
        rows.add(key, **timed(lambda: guided(x, t), rows.settings["repeats"], model.device), difference=0.0)
    return branch(x, t).cpu()


def _ours(rows: Rows, model: OmniAlpha, method: Method, case: Case, wanted: Tensor, took: float | None) -> None:
    cond, x, t = request(model, case, rows.settings["seed"])
    difference = None
    if method.attention == "joint":
        difference = float((model.velocity(x, t, cond).cpu() - wanted).norm() / wanted.norm())
    figures = timed(stepper(model, method, cond, x, t), rows.settings["repeats"], model.device)
    rows.add(case.key(method.name), **figures, difference=difference, table=took)


def timed(step: Make, repeats: int, device: torch.device) -> dict[str, float | None]:
    """Median seconds after one that is not counted, and peak GB on a CUDA device."""
    step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(repeats):
        start = now(device)
        step()
        seconds.append(now(device) - start)
    peak = peak_bytes(device) / GB if device.type == "cuda" else None
    return {"seconds": statistics.median(seconds), "peak": peak}


# ---- tables ------------------------------------------------------------------------------------------------------


def tables(tree: dict[str, Any]) -> list[Table]:
    """One table for each size of pictures, from what `measure` returned."""
    settings, rows = tree["settings"], tree["rows"]
    return [_table(settings, rows, side) for side in settings["sides"]]


def _table(settings: dict[str, Any], rows: dict[str, dict[str, Any]], side: int) -> Table:
    about = f"{settings['layers']} blocks of {settings['heads']} heads of 128, random weights, {settings['where']}"
    took = next((row["table"] for row in rows.values() if row.get("table")), None)
    table = Table(
        f"A guided step of the released transformer's shape at {side} px",
        f"{about}, seed {settings['seed']}, median of {settings['repeats']} after one, a batch of one",
        {
            "inputs": "d",
            "targets": "d",
            "tokens": "d",
            "side and savings": "",
            "step, s": ".3f",
            "times faster": ".2f",
            "peak, GB": ".1f",
            "GB under diffusers'": ".1f",
            "difference": ".1e",
        },
        notes=[
            "tokens: of all pictures, and of the text with instruction.",
            f"peak: most allocated in a step, weights of the transformer included; GB = {GB:.0e} bytes.",
            "difference: of a branch's velocity, norm relative to diffusers'; what is left is rounding.",
            "Inputs that do not see targets: a further step; the first one of a picture also encodes inputs and text.",
            "Without `one batch` the two branches of guidance run one after the other, as diffusers' do.",
        ],
    )
    if took is not None:
        table.notes.append(f"Making the table for a schedule of {STEPS} steps took {took:.2f} s, once.")
    for case, name in _order(side):
        row, theirs = rows.get(case.key(name)), rows.get(case.key(THEIRS))
        if row is None or theirs is None:
            continue
        tokens = sum(h * w for h, w in case.layout.pictures) + case.texts[0]
        under: Cell = None if row["peak"] is None else theirs["peak"] - row["peak"]
        faster = theirs["seconds"] / row["seconds"]
        figures = [row["seconds"], faster, row["peak"], under, row["difference"]]
        table.rows.append([case.n, case.m, tokens, name, *figures])
    return table


def _order(side: int) -> Iterator[tuple[Case, str]]:
    for n, m in PICTURES:
        yield from ((Case(n, m, side), name) for name in (THEIRS, *(method.name for method in METHODS)))


def settings_of(options: Any, device: torch.device, dtype: torch.dtype) -> Settings:
    where = surroundings(device, dtype)
    return Settings(options.layers, options.heads, options.sides, options.repeats, options.seed, where)
