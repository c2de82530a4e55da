"""Each exact saving switched off and on, on the mid-size random model: seconds, ratio, and how far outputs differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from common.runs import example
from common.tables import Cell, Table
from common.timing import in_turn, medians
from omnialpha import pipeline as pipelines
from omnialpha.condition import Condition
from omnialpha.models.transformer.model import MultiImageTransformer, Shared
from omnialpha.pipeline import OmniAlpha
from omnialpha.sampling import Velocity, apply_guidance

TIME = 0.6
Make = Callable[[], Any]


class WholeLastBlock(MultiImageTransformer):
    """Without one saving: the last block makes all its rows, as diffusers' does."""

    is_cache_enabled = True  # which is when ours has to do so


@dataclass(frozen=True)
class Bench:
    """Both sides on the same weights. where: dtype, device, threads, versions, seed."""

    ours: OmniAlpha
    theirs: Any
    repeats: int
    where: str

    def about(self, sizes: str) -> str:
        return f"{sizes}, n={self.repeats} of each in turn, medians, {self.where}"


def adopt(source: Any, kind: type[MultiImageTransformer] = MultiImageTransformer, **settings: Any) -> Any:
    """A transformer of ours with the very tensors of another, ours or diffusers'."""
    said = {key: value for key, value in source.config.items() if not key.startswith("_")}  # _use_default_values wins
    with torch.device("meta"):
        made = kind.from_config(said | settings)
    assert all(made.config[key] == value for key, value in settings.items())
    made.load_state_dict(source.state_dict(), assign=True)
    return made.eval().requires_grad_(False)


def twin(model: OmniAlpha, kind: type[MultiImageTransformer] = MultiImageTransformer, **settings: Any) -> OmniAlpha:
    """The same model around a second transformer that has the very same weights in memory."""
    return OmniAlpha(model.vae, adopt(model.transformer, kind, **settings), model.text_encoder, model.card)


@contextmanager
def branches(together: bool) -> Iterator[None]:
    """Have both branches of guidance run as one batch, or one after the other, whatever their size."""
    before, pipelines.sampling.MAX_PAIRED_TOKENS = pipelines.sampling.MAX_PAIRED_TOKENS, 10**9 if together else 0
    try:
        yield
    finally:
        pipelines.sampling.MAX_PAIRED_TOKENS = before


def spread(made: Any, wanted: Any) -> float:
    """Largest difference, relative to the largest value."""
    pairs = zip(made, wanted, strict=True) if isinstance(made, tuple) else [(made, wanted)]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def stock(bench: Bench, cond: Condition, size: int) -> Velocity:
    """The velocity of diffusers' transformer for a condition of ours."""
    side = (1, size // 16, size // 16)
    shapes = [[side] * len(cond.layouts[0].pictures)]

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        dtype = bench.theirs.transformer.dtype
        rows = torch.cat((x, cond.inputs), dim=1).to(dtype)
        options = {"img_shapes": shapes, "return_dict": False}
        out = bench.theirs.transformer(rows, cond.text.to(dtype), None, t.to(dtype), **options)[0]
        return out[:, : x.shape[1]].float()

    return velocity


@torch.inference_mode()
def exact(bench: Bench, size: int) -> list[Table]:
    """One table: what is saved, without and with it."""
    model, device = bench.ours, bench.ours.device
    model.transformer.tabulate(False)
    cond = model.condition([example(size)], guided=True)
    assert cond.negative is not None
    x, t = model.noise(cond), torch.full((1,), TIME, device=device)
    published = stock(bench, cond, size)
    table = Table(
        "Exact savings, one by one",
        bench.about(f"n=1 m=1, {size} px"),
        {"saving": "", "timed": "", "without, s": ".4f", "with, s": ".4f", "ratio": ".2f", "difference": ".1e"},
        notes=[
            "difference: the largest one between the outputs, relative to the largest value.",
            "A branch is one pass of the transformer, with the conditions of the run known.",
        ],
    )
    tabulated = twin(model)
    tabulated.transformer.tabulate()
    whole = twin(model, WholeLastBlock)
    negative = stock(bench, cond.negative, size)
    theirs = apply_guidance(published, lambda x, t: (published(x, t), negative(x, t)), 4.0)
    ours = tabulated.guided(replace(cond, shared=Shared(), negative=replace(cond.negative, shared=Shared())), 4.0)
    shared = replace(cond, shared=Shared())
    rows: list[tuple[str, str, Make, Make]] = [
        *_texts(bench, size),
        (
            "constants of the run hoisted",
            "a branch",
            lambda: model.velocity(x, t, replace(cond, shared=Shared())),
            lambda: model.velocity(x, t, cond),
        ),
        (
            "modulation from a table",
            "a branch",
            lambda: model.velocity(x, t, cond),
            lambda: tabulated.velocity(x, t, cond),
        ),
        (
            "last block on target rows only",
            "a branch",
            lambda: whole.velocity(x, t, shared),
            lambda: model.velocity(x, t, cond),
        ),
        (
            "all of the transformer's",
            "a branch, diffusers' beside ours",
            lambda: published(x, t),
            lambda: tabulated.velocity(x, t, cond),
        ),
        ("all of the transformer's", "a guided step, diffusers' beside ours", lambda: theirs(x, t), lambda: ours(x, t)),
    ]
    for saving, timed, without, having in rows:
        table.rows.append([saving, timed, *compared(without, having, bench)])
    return [table]


def compared(without: Make, having: Make, bench: Bench) -> list[Cell]:
    """Seconds without and with, their ratio, and the difference of the outputs."""
    difference = spread(having(), without())
    seconds = medians(in_turn({"without": without, "with": having}, bench.repeats, bench.ours.device, warm=0))
    return [seconds["without"], seconds["with"], seconds["without"] / seconds["with"], difference]


def _texts(bench: Bench, size: int) -> list[tuple[str, str, Make, Make]]:
    """The savings of the instruction encoder."""
    text_encoder, asked = bench.ours.text_encoder, example(size)
    prompts, pictures = [asked.instruction], [[p.to(bench.ours.device) for p in asked.inputs]]
    batch = text_encoder.tokenize(prompts, pictures).to(bench.ours.device)
    kept = ("input_ids", "attention_mask", "position_ids", "pixel_values", "image_grid_thw")
    arguments = {name: getattr(batch, name) for name in kept} | {"use_cache": False}
    full = bench.theirs.text_encoder

    def alone() -> tuple[Tensor, Tensor]:
        return tuple(text_encoder(text_encoder.tokenize([p], pictures))[0] for p in (prompts[0], ""))  # type: ignore[return-value]

    def pair() -> tuple[Tensor, Tensor]:
        return tuple(text for text, _ in text_encoder(text_encoder.tokenize(prompts, pictures, [""])))  # type: ignore[return-value]

    return [
        (
            "no language-model head",
            "one prompt",
            lambda: full(**arguments, output_hidden_states=True).hidden_states[-1],
            lambda: full.model(**arguments).last_hidden_state,
        ),
        ("prefix of both prompts encoded once", "both prompts", alone, pair),
    ]


@torch.inference_mode()
def batching(bench: Bench, models: list[tuple[str, OmniAlpha, int, int]]) -> list[Table]:
    """Both branches of guidance one after the other or as one batch, for (name, model, size, repeats)."""
    table = Table(
        "Both branches of guidance: one after the other, or one batch",
        f"n=1 m=1, a guided step, medians, {bench.where}",
        {
            "model": "",
            "px": "d",
            "picture tokens of a branch": "d",
            "n": "d",
            "in turn, s": ".4f",
            "one batch, s": ".4f",
            "ratio": ".2f",
            "difference": ".1e",
            "a run takes": "",
        },
    )
    for name, model, size, repeats in models:
        cond = model.condition([example(size)], guided=True)
        x, t = model.noise(cond), torch.full((1,), TIME, device=model.device)
        with branches(together=False):
            apart = model.guided(cond, 4.0)
        with branches(together=True):
            joined = model.guided(cond, 4.0)
        figures = compared(lambda: apart(x, t), lambda: joined(x, t), replace(bench, repeats=repeats))  # noqa: B023
        takes = "one batch" if cond.picture_tokens <= pipelines.sampling.MAX_PAIRED_TOKENS else "in turn"
        table.rows.append([name, size, cond.picture_tokens, repeats, *figures, takes])
    table.notes.append(f"A run takes one batch up to {pipelines.sampling.MAX_PAIRED_TOKENS} picture tokens.")
    return [table]


@torch.inference_mode()
def blind(bench: Bench, size: int) -> list[Table]:
    """Inputs and text that do not see targets (condition_attention="cached") beside joint attention."""
    joint, cached = bench.ours, twin(bench.ours, condition_attention="cached")
    table = Table(
        'Inputs that do not see targets: condition_attention="cached" beside "joint"',
        bench.about(f"{size} px, a branch"),
        {
            "inputs": "d",
            "targets": "d",
            "joint, s": ".4f",
            "cached, first step, s": ".4f",
            "cached, further steps, s": ".4f",
            "ratio, further": ".2f",
            "ratio, 20 steps": ".2f",
        },
        notes=["Another model, for weights trained so: times alone are compared. That it is exact is a test."],
    )
    for n, m in ((1, 1), (2, 1), (1, 2)):
        cond = joint.condition([example(size, n, m)])
        x, t = joint.noise(cond), torch.full((1,), TIME, device=joint.device)
        kept = replace(cond, shared=Shared())
        calls: dict[str, Make] = {
            "joint": lambda: joint.velocity(x, t, cond),  # noqa: B023
            "first": lambda: cached.velocity(x, t, replace(cond, shared=Shared())),  # noqa: B023
            "further": lambda: cached.velocity(x, t, kept),  # noqa: B023
        }
        s = medians(in_turn(calls, bench.repeats, joint.device))
        twenty = 20 * s["joint"] / (s["first"] + 19 * s["further"])
        table.rows.append([n, m, s["joint"], s["first"], s["further"], s["joint"] / s["further"], twenty])
    return [table]
