"""The report of the suite: all tables and rows, and the best and the worst picture of each part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from omnialpha.evaluation.datasets.benchmarks import BENCHMARKS
from omnialpha.evaluation.metrics.image import PSNR_8_BIT
from omnialpha.evaluation.reports.benchmark_report import named
from omnialpha.evaluation.reports.report import Case, Report, Row
from omnialpha.evaluation.suite.suite import Section, Suite
from omnialpha.evaluation.suite.tables import TABLES, SuiteResults, readme, verdict
from omnialpha.limits import by

FEW = 100  # scenes; below it no figure should be quoted

NOTES = {
    "": (
        '"default" is what a user gets; "raw" is the model\'s own picture, without what is taken over from the input',
        "a figure of each picture, then the mean; pooled: over all counted pixels of all pictures, one PSNR",
        f"PSNR of a picture is at most {PSNR_8_BIT:.0f} dB",
        "noise of picture i is drawn from seed + i; the wordings of an instruction take turns",
    ),
    "autoencoder": ("autoencoder: `mean` is the plain mean over the nine backgrounds",),
    "matting": (
        "matting: SAD, GRAD and CONN in thousands of pixels; unknown: only in the trimap's grey band",
        "matting with an alpha map: the default output takes the map over, so that only its colours are its own",
        "composites: the answered layer against the true one on nine backgrounds, colour and alpha in one",
        "best constant: the median (SAD, MAD) or the mean (MSE) of all counted pixels of all pictures",
        "two objects: the back one and the front one are asked for in turn; right: the soft IoU with the asked one is "
        "above that with the other; scenes whose objects a wording does not tell apart are left out of its row",
    ),
    "removal": (
        "removal: hole: all that the map touches; without a map nothing says where, and the rough map's is measured",
    ),
    "decomposition": (
        "decomposition: RGB L1 of the background over all pixels, of the foreground weighted by its true alpha",
        "recomposition: the layers together against the input; layers that do nothing recompose perfectly",
    ),
    "completion": (
        "completion: no answer is the right one; the row `the true layer` says what one right answer gets",
        "given layer kept: a foreground where it is solid; a background in its better half, as something covers it",
        "changed: share of the picture where it differs from the given background after a blur",
        "away, background: L1 to the given foreground where that would cover it; foreground: L1 that it changes in the "
        "given scene. Low: the answer repeats what was given. A layer is there: some of it is seen and some is not",
    ),
    "generation": (
        "generation: colour: the name that covers most, weighted by alpha; shape: nearest reference outline, boxes "
        "aligned; the true drawings show the reader's own errors; chance: always the commonest answer",
    ),
}


def report(suite: Suite, rows: Sequence[Row]) -> Report:
    """Of all rows. The model's pictures of the cases are made once more."""
    scenes, device = suite.scenes, suite.scenes.model.device
    results = SuiteResults(rows, scenes.model.card.name)
    categories = list(dict.fromkeys(row["category"] for row in rows))
    tables = [readme(results), *(table for name in categories for table in TABLES[name](results)), verdict(results)]
    threads = f"{device.type} ({torch.get_num_threads()} threads)"
    return Report(
        title=BENCHMARKS["suite"].title,
        header={
            "n": str(scenes.n),
            "resolution": by(scenes.size),
            "region": "whole picture unless said",
            "seed": str(scenes.seed),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else threads,
            "model": scenes.model.card.name,
            "layers": scenes.source.about,
        },
        tables=[table for table in tables if table.rows],
        summary=results.of(*results.rows),
        rows=rows,
        notes=_notes(suite, results, categories),
        cases=[case for part in suite.sections for case in _cases(suite, results, part)],
        cases_title="The best and the worst picture of each part",
    )


def _notes(suite: Suite, results: SuiteResults, categories: Sequence[str]) -> list[str]:
    few = [f"n={suite.scenes.n} is too few to quote: use {FEW} or more"] if suite.scenes.n < FEW else []
    notes = [*few, *(note for name in ("", *categories) for note in NOTES[name])]
    trimaps = results.rows.get("matting_trimap", {}).get(results.default, [])
    if bare := sum(not row["anchored"] for row in trimaps):
        notes.append(
            f"{bare} of {len(trimaps)} trimaps have no sure subject (it is thin or see-through): methods of pymatting "
            "have nothing to start from there and answer the trimap, .5 where it is unknown"
        )
    return notes + [f"{method.name}: {method.given}" for method in suite.methods if method.given not in ("", "nothing")]


def _cases(suite: Suite, results: SuiteResults, part: Section) -> Iterator[Case]:
    """The best and the worst picture of a part by the model's default output, with what other methods get for them."""
    figure, rows = part.best.removeprefix("+"), results.rows.get(part.name, {})
    ranked = [row for row in rows.get(results.default, []) if row.get(figure) is not None]
    ranked.sort(key=lambda row: row[figure], reverse=part.best.startswith("+"))
    for word, row in zip(("best", "worst"), ranked[:1] + ranked[1:][-1:], strict=False):
        others = {name: {r["sample"]: r.get(figure) for r in of}.get(row["sample"]) for name, of in rows.items()}
        said = [f"{n} {value:.4g}" for n, value in others.items() if n != results.default and value is not None]
        note = f"{figure.replace('_', ' ')} {row[figure]:.4g}" + (f"; {', '.join(said)}" if said else "")
        example, model = part.examples[int(row["sample"])], next(m for m in suite.methods if m.outputs)
        pictures = {str(role): p for role, p in zip(example.roles, example.inputs, strict=True)}
        if example.truths:
            pictures |= named("true", example.targets, example.truths)
        for name, layers in zip(model.names, suite.predicted(part, model, int(row["sample"])), strict=True):
            pictures |= named(name, example.targets, tuple(layers))
        yield Case(f"{part.name}, {word}: picture {row['sample']}, {example.instruction}", note, pictures)
