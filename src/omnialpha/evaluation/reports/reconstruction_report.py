"""From the rows of the reconstruction benchmark to its report: means by category and in total, FID, the worst cases."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import torch

from omnialpha import rgba
from omnialpha.errors import InputError
from omnialpha.evaluation.metrics import image
from omnialpha.evaluation.metrics.backgrounds import BACKGROUNDS
from omnialpha.evaluation.reconstruction import Benchmark, Item
from omnialpha.evaluation.reports.report import Case, Column, Report, Row, Table, mean
from omnialpha.limits import by

# The published benchmark's categories of text to image: one weighs half, the others share the other half.
PUBLISHED = ("animal", "fruit", "furniture", "mixed", "plant", "portrait", "toy", "transparent")
HALF = "mixed"
WORST = 8

OF_PICTURES = ("psnr", "ssim", "lpips")  # a figure a picture and background
OF_SETS = {"fid": image.frechet, "kid": image.kid}  # a figure a set and background
METRICS = (
    Column("psnr", "PSNR (dB)", 2, "higher"),
    Column("ssim", "SSIM", 4, "higher"),
    Column("lpips", "LPIPS", 4, "lower"),
    Column("fid", "rFID", 3, "lower"),
    Column("kid", "rKID", 5, "lower"),
)
WHOLE = (
    Column("rgba_psnr", "RGBA PSNR (dB)", 2, "higher"),
    Column("color_error", "colour error (alpha > 0)", 4, "lower"),
    Column("alpha_mad", "alpha MAD", 4, "lower"),
)
NO_FEATURES = "no features: give a TorchScript file or package.module:function (--fid FEATURES)"
WITHOUT = {
    "lpips": "no backbone: give the weights of VGG16 or AlexNet (--lpips PATH)",
    "fid": NO_FEATURES,
    "kid": NO_FEATURES,
}
NO_ALPHA = "an autoencoder for RGB gets composites, so alpha and the colours under it cannot be measured"
TOTAL, WEIGHTED = "total", "published weighting"
QUIRKS = (
    "compat=alphavae: composites are cut down to 8 bits, not rounded, and stored as JPEG (quality 75, halved colour "
    "resolution) before they are compared; RGBA PSNR, colour error and alpha MAD are not affected"
)


def summarise(benchmark: Benchmark, rows: Sequence[Row]) -> list[Row]:
    """A row of means a category, one in total and, where the categories are the published ones, one so weighted."""
    names = sorted({row["category"] for row in rows})
    made = [_row(benchmark, name, [row for row in rows if row["category"] == name]) for name in names]
    return [*made, _row(benchmark, TOTAL, rows), *([_weighted(made)] if names == sorted(PUBLISHED) else [])]


def _row(benchmark: Benchmark, name: str, rows: Sequence[Row]) -> Row:
    made: Row = {"category": name, "n": len(rows)}
    asked = OF_PICTURES if benchmark.settings.lpips else OF_PICTURES[:-1]
    for key in (*asked, *(c.key for c in WHOLE), *(f"{m}_{b}" for m in asked for b in BACKGROUNDS)):
        made[key] = mean(rows, key)
    if benchmark.settings.features:
        made |= _of_sets(benchmark, rows)
    return made


def _of_sets(benchmark: Benchmark, rows: Sequence[Row]) -> Row:
    """FID and KID on each background, and their means; None for a single picture, which is no distribution."""
    made: Row = {f"{name}_{b}": None for name in OF_SETS for b in BACKGROUNDS}
    for background in BACKGROUNDS if len(rows) > 1 else ():
        predicted, true = benchmark.features(rows, background)
        made |= {f"{name}_{background}": distance(predicted, true) for name, distance in OF_SETS.items()}
    return made | {name: mean([{name: made[f"{name}_{b}"]} for b in BACKGROUNDS], name) for name in OF_SETS}


def _weighted(categories: Sequence[Row]) -> Row:
    """The published total: `mixed` weighs .5, the others share .5."""
    made: Row = {"category": WEIGHTED, "n": sum(row["n"] for row in categories)}
    for key in [k for k in categories[0] if k not in made]:
        halves = [mean([r for r in categories if (r["category"] == HALF) is half], key) for half in (True, False)]
        missing = any(row[key] is None for row in categories)
        made[key] = None if missing else sum(half for half in halves if half is not None) / 2
    return made


def worst(rows: Sequence[Row], count: int = WORST) -> list[Row]:
    return sorted(rows, key=itemgetter("psnr"))[:count]


def report(benchmark: Benchmark, rows: Sequence[Row], model: str) -> Report:
    """The whole report of these rows; the worst cases are reconstructed once more."""
    settings = benchmark.settings
    if not rows:
        reason = next(iter(benchmark.bad.values()))
        raise InputError(f"none of the {len(benchmark)} pictures in {benchmark.folder} can be measured: {reason}")
    items = {item.name: item for item in benchmark.items}
    places = {name: place for place, name in enumerate(items)}
    rows = sorted(rows, key=lambda row: places[row["name"]])
    summary = summarise(benchmark, rows)
    lacking = {"lpips": settings.lpips is None, "fid": settings.features is None, "kid": settings.features is None}
    return Report(
        title="RGBA reconstruction",
        header={
            "n": str(len(rows)),
            "resolution": _resolution(rows, settings.size),
            "region": "whole picture, composited on nine backgrounds",
            "seed": "none: the mean of the posterior is decoded",
            "device": str(benchmark.autoencoder.device),
            "model": model,
            "pictures": benchmark.folder.resolve().name,
        },
        tables=_tables(summary),
        summary=summary,
        rows=rows,
        skipped={name: WITHOUT[name] for name, yes in lacking.items() if yes}
        | ({} if benchmark.sees_alpha else {", ".join(column.key for column in WHOLE): NO_ALPHA}),
        notes=_notes(benchmark, summary),
        cases=[_case(benchmark, items[row["name"]], row) for row in worst(rows)],
    )


def _resolution(rows: Sequence[Row], size: int | None) -> str:
    sizes = sorted({(row["height"], row["width"]) for row in rows}, key=lambda s: (s[0] * s[1], s))
    ends = dict.fromkeys(map(by, (sizes[0], sizes[-1])))
    return " to ".join(ends) + (f" (longer side {size} px)" if size else " (as stored)")


def _tables(summary: Sequence[Row]) -> list[Table]:
    by_category = (Column("category", "category"), Column("n", "n", 0), *METRICS, *WHOLE)
    total = next(row for row in reversed(summary) if row["category"] == TOTAL)
    by_background = [
        {"background": b, **{column.key: total.get(f"{column.key}_{b}") for column in METRICS}} for b in BACKGROUNDS
    ]
    return [
        Table("By category, mean over nine backgrounds", by_category, summary),
        Table("By background, all pictures", (Column("background", "background"), *METRICS), by_background),
    ]


def _notes(benchmark: Benchmark, summary: Sequence[Row]) -> list[str]:
    settings, ratio = benchmark.settings, benchmark.autoencoder.ratio
    notes = [
        f"a category is the first folder below the pictures' own; {TOTAL}: plain mean over pictures",
        f"sides grow to multiples of {ratio} px by repeating the last row and column, and are cut back",
        f"PSNR ends at {image.PSNR_CEILING:g} dB, also for equal pictures",
        "RGBA PSNR compares all four channels as they are, colour under alpha 0 too",
    ]
    if summary[-1]["category"] == WEIGHTED:
        notes.append(f"{WEIGHTED}: {HALF} weighs .5, the other {len(PUBLISHED) - 1} categories share .5")
    if settings.size:
        notes.append("pictures were resized with premultiplied colour: where alpha is 0 their colour is black")
    if settings.limit:
        notes.append(f"at most {settings.limit} pictures of a category, the first by name")
    if settings.lpips:
        notes.append(f"LPIPS: {settings.lpips.name}")
    if settings.features:
        notes.append(f"rFID, rKID: {settings.features.name}; FID is biased upwards where n is small")
        alone = [row["category"] for row in summary if row["n"] == 1]
        notes += [f"rFID, rKID: none for {', '.join(alone)}, as one picture is no distribution"] if alone else []
    notes += [] if benchmark.sees_alpha else ["for RGB: every background is encoded by itself, nine times a picture"]
    notes += [QUIRKS] if settings.compat else []
    return notes + [f"skipped: {why}" for why in benchmark.bad.values()]


def _case(benchmark: Benchmark, item: Item, row: Row) -> Case:
    true = benchmark.read(item)
    seen = true if benchmark.sees_alpha else rgba.flatten(true, BACKGROUNDS["grey"])
    made = benchmark.reconstruct(seen[None])[0]
    pictures = {"truth": true, "reconstruction": made}
    if not benchmark.sees_alpha:
        pictures = {"truth": true, "reconstruction on grey": torch.cat([made, torch.ones_like(made[:1])])}
    return Case(item.name, in_words(row), pictures)


def in_words(row: Row) -> str:
    """The figures that there are, in one line."""
    return ", ".join(f"{c.title} {c.cell(row)}" for c in (*METRICS, *WHOLE) if row.get(c.key) is not None)
