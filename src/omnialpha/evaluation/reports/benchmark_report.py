"""From the rows of a benchmark to its report: a row a method, on the samples that all of them have answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.benchmarks import Benchmark
from omnialpha.evaluation.datasets.samples import Sample
from omnialpha.evaluation.methods.constants import BEST_CONSTANT, best_constants
from omnialpha.evaluation.reports.reconstruction_report import HALF, PUBLISHED, WEIGHTED
from omnialpha.evaluation.reports.report import Case, Column, Report, Row, Table, mean
from omnialpha.evaluation.runner import Entrant, Runner
from omnialpha.evaluation.scoring import KINDS, UNKNOWN, of_sets
from omnialpha.limits import by
from omnialpha.tasks import Role

WORST, BEST = 6, 2
TOTAL = "total"
META = ("key", "content", "category", "height", "width", "features", "seconds")  # of a row, beside its figures
SECONDS = Column("seconds", "s a picture (median)", 3, "lower")

Answers = Mapping[str, Sequence[Row]]


def report(
    benchmark: Benchmark, runner: Runner, entrants: Sequence[Entrant], answers: Answers, device: str, data: str
) -> Report:
    """answers: by the entrant's name. InputError where no sample was answered by all."""
    shared = common(runner, entrants, answers)
    summary = summarise(benchmark, runner, entrants, shared)
    if runner.kind == "matting":
        summary.append(_constant(benchmark, runner, entrants[0].task, next(iter(shared.values()))))
    rows = [{"method": name, **_told(row)} for name, of in shared.items() for row in of]
    first = next(iter(shared.values()))
    return Report(
        title=f"{benchmark.title}: {' and '.join(dict.fromkeys(e.task for e in entrants))}",
        header={
            "n": str(len(first)),
            "resolution": _resolution(first, runner.settings.size),
            "region": _region(summary),
            "scale": benchmark.scale,
            "seed": str(runner.settings.seed),
            "device": device,
            "model": ", ".join(shared),
            "time a picture": _times(summary),
            "data": data,
        },
        tables=_tables(runner, summary),
        summary=summary,
        rows=rows,
        skipped=_skipped(runner, summary),
        notes=_notes(benchmark, runner, entrants, answers, len(first)),
        cases=_cases(runner, entrants, shared),
        cases_title="Worst and best cases",
    )


def common(runner: Runner, entrants: Sequence[Entrant], answers: Answers) -> dict[str, list[Row]]:
    """The rows of those samples that every entrant has answered, in the order of the data set."""
    found = {entrant.name: {row["key"]: row for row in answers[entrant.name]} for entrant in entrants}
    keys = [s.key for s in next(iter(runner.samples.values())) if all(s.key in of for of in found.values())]
    if not keys:
        why = next((reason for of in runner.bad.values() for reason in of.values()), "nothing was made")
        raise InputError(f"no sample of {len(runner)} was answered by all: {why}")
    return {name: [of[key] for key in keys] for name, of in found.items()}


# ---- figures --------------------------------------------------------------------------------------------------------


def summarise(
    benchmark: Benchmark, runner: Runner, entrants: Sequence[Entrant], shared: Mapping[str, list[Row]]
) -> list[Row]:
    """Of each method a row in total, one a category, and the published weighting of AlphaTest's categories."""
    made: list[Row] = []
    for entrant in entrants:
        rows = shared[entrant.name]
        found = sorted({row["category"] for row in rows})
        names = found if benchmark.categories and found != [""] else []
        told = {"benchmark": benchmark.name, "task": entrant.task, "method": entrant.name}
        total = told | _row(runner, entrant, TOTAL, rows)
        parts = [told | _row(runner, entrant, n, [r for r in rows if r["category"] == n]) for n in names]
        made += [total, *parts, *([told | _weighted(parts)] if names == sorted(PUBLISHED) else [])]
    return made


def _row(runner: Runner, entrant: Entrant, category: str, rows: Sequence[Row]) -> Row:
    names = dict.fromkeys(name for row in rows for name in row if name not in META)
    times = [row["seconds"] for row in rows if row["seconds"] is not None]
    made: Row = {"category": category, "n": len(rows)} | {name: mean(rows, name) for name in names}
    kind = KINDS[runner.kind]
    made |= of_sets(runner.features(entrant, rows), kind) if kind.sets else {}
    return made | {"seconds": median(times) if times else None}


def _constant(benchmark: Benchmark, runner: Runner, task: str, rows: Sequence[Row]) -> Row:
    """The row of the best constant, which is told the truth, on the samples that have these rows."""
    keys = {row["key"] for row in rows}
    loaded = (sample.load(runner.settings.size) for sample in runner.samples[task] if sample.key in keys)
    mattes = ((true[3], one.trimap) for one in loaded if (true := one.truth(Role.FOREGROUND)) is not None)
    about = {"benchmark": benchmark.name, "task": task, "method": BEST_CONSTANT, "category": TOTAL, "n": len(rows)}
    return about | best_constants(mattes) | {"seconds": None}


def _weighted(parts: Sequence[Row]) -> Row:
    made: Row = {"category": WEIGHTED, "n": sum(row["n"] for row in parts)}
    shares = {row["category"]: 0.5 if row["category"] == HALF else 0.5 / (len(parts) - 1) for row in parts}
    for name in (n for n in parts[0] if n not in ("benchmark", "task", "method", "category", "n", "seconds")):
        values = [row.get(name) for row in parts]
        known = all(value is not None for value in values)
        made[name] = sum(shares[row["category"]] * row[name] for row in parts) if known else None
    return made


def _told(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("content", "features")}


# ---- words ----------------------------------------------------------------------------------------------------------


def _tables(runner: Runner, summary: Sequence[Row]) -> list[Table]:
    kind = KINDS[runner.kind]
    columns = tuple(c for c in kind.columns if any(row.get(c.key) is not None for row in summary))
    method, n, task = Column("method", "method"), Column("n", "n", 0), Column("task", "asked for")
    totals = [
        row | ({"task": "nothing, it knows the truth"} if row["method"] == BEST_CONSTANT else {})
        for row in summary
        if row["category"] == TOTAL
    ]
    made = [Table("All pictures", (method, task, n, *columns, SECONDS), totals)]
    if any(UNKNOWN + c.key in row for c in kind.figures for row in summary):
        unknown = tuple(Column(UNKNOWN + c.key, c.title, c.digits, c.better) for c in kind.figures)
        made.append(Table("Unknown region of the trimap", (method, task, n, *unknown), totals))
    if len(parts := [row for row in summary if row["category"] != TOTAL]) > 0:
        made.append(Table("By category", (method, Column("category", "category"), n, *columns), parts))
    return made


def _resolution(rows: Sequence[Row], size: int | None) -> str:
    sizes = sorted({(row["height"], row["width"]) for row in rows}, key=lambda s: (s[0] * s[1], s))
    ends = dict.fromkeys(map(by, (sizes[0], sizes[-1])))
    return " to ".join(ends) + (f" (longer side {size} px)" if size else " (as stored)")


def _region(summary: Sequence[Row]) -> str:
    both = any(name.startswith(UNKNOWN) for row in summary for name in row)
    return "whole picture, and the unknown region of the trimap" if both else "whole picture"


def _times(summary: Sequence[Row]) -> str:
    made = [
        f"{r['method']} {r['seconds']:.3f} s" for r in summary if r["category"] == TOTAL and r["seconds"] is not None
    ]
    return ", ".join(made) + " (median)" if made else "not measured: predictions of a folder"


def _skipped(runner: Runner, summary: Sequence[Row]) -> dict[str, str]:
    wanted = {column.key for column in KINDS[runner.kind].columns}
    lacking = {name: why for name, why in runner.settings.networks.lacking().items() if name in wanted}
    for name in sorted(wanted - lacking.keys()):
        if all(row.get(name) is None for row in summary):
            lacking[name] = "no sample has what it is measured against"
    return lacking


def _notes(benchmark: Benchmark, runner: Runner, entrants: Sequence[Entrant], answers: Answers, n: int) -> list[str]:
    notes = [f"source: {benchmark.source}; licence: {benchmark.license}", f"published size: {benchmark.size}"]
    notes += ["plain means over pictures; methods are compared on the same samples"]
    if benchmark.count is not None and n != benchmark.count:
        notes.append(f"n={n}, the whole {benchmark.title} has {benchmark.count}")
    notes += [f"not confirmed: {benchmark.unsure}"] if benchmark.unsure else []
    notes += [f"{e.name}: {e.method.told}" for e in entrants if e.method and e.method.told]
    notes += [f"{e.name}: predictions of {e.folder.resolve().name}" for e in entrants if e.folder]
    networks = runner.settings.networks
    named = {"LPIPS": networks.lpips, "FID and KID": networks.features, "CLIP": networks.clip}
    notes += [f"{what}: {network.name}" for what, network in named.items() if network and _uses(runner, what)]
    for entrant in entrants:
        if (more := len(answers[entrant.name]) - n) > 0:
            notes.append(f"{entrant.name} answered {more} samples more, which others did not: they are left out")
    return notes + [f"passed over, {name}: {why}" for name, of in runner.bad.items() for why in of.values()]


def _uses(runner: Runner, what: str) -> bool:
    titles = " ".join(column.title for column in KINDS[runner.kind].columns)
    return what.split()[0] in titles


def in_words(row: Row, columns: Sequence[Column]) -> str:
    """The figures that there are, in one line."""
    return ", ".join(f"{c.title} {c.cell(row)}" for c in columns if row.get(c.key) is not None)


# ---- cases ----------------------------------------------------------------------------------------------------------


def _cases(runner: Runner, entrants: Sequence[Entrant], shared: Mapping[str, list[Row]]) -> list[Case]:
    """By the first figure of the first method, the worst ones and then the best."""
    kind, first = KINDS[runner.kind], entrants[0].name
    ranking = kind.figures[0]
    ranked = sorted(
        (row for row in shared[first] if row.get(ranking.key) is not None),
        key=lambda row: row[ranking.key] * (-1 if ranking.better == "higher" else 1),
    )
    best = ranked[: min(BEST, len(ranked) // 2)]
    worst = ranked[len(best) :][-WORST:][::-1]
    samples = {task: {sample.key: sample for sample in of} for task, of in runner.samples.items()}
    found = {name: {row["key"]: row for row in rows} for name, rows in shared.items()}
    told = [("worst", row) for row in worst] + [("best", row) for row in best]
    return [
        Case(
            f"{what}: {row['key']}",
            "; ".join(f"{e.name}: {in_words(found[e.name][row['key']], kind.figures)}" for e in entrants),
            _pictures(runner, {entrant: samples[entrant.task][row["key"]] for entrant in entrants}),
        )
        for what, row in told
    ]


def _pictures(runner: Runner, samples: Mapping[Entrant, Sample]) -> dict[str, Tensor]:
    """What was given and is true, once, and what each entrant made of it."""
    made: dict[str, Tensor] = {}
    loaded = {sample.task: sample.load(runner.settings.size) for sample in samples.values()}
    for one in loaded.values():
        made |= _named("given", one.roles, one.inputs)
    for one in loaded.values():
        made |= _named("true", one.targets, one.truths)
    for entrant, sample in samples.items():
        one = loaded[sample.task]
        made |= _named(entrant.name, one.targets, tuple(runner.load(entrant, sample, one)))
    return made


def _named(what: str, roles: Sequence[Role], pictures: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """By their role, which is numbered where it repeats."""
    made = {}
    for place, (role, picture) in enumerate(zip(roles, pictures, strict=True)):
        number = f" {roles[: place + 1].count(role)}" if roles.count(role) > 1 else ""
        if picture is not None:
            made[f"{what}: {role}{number}"] = picture
    return made
