"""From the rows of a benchmark to its report: a row a method, on the samples that all of them have predictions for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.benchmarks import HALF, PUBLISHED, TOTAL, WEIGHTED, Benchmark
from omnialpha.evaluation.methods.constants import BEST_CONSTANT, best_constants
from omnialpha.evaluation.methods.method import Method
from omnialpha.evaluation.reports.report import Case, Column, Report, Row, Table, mean, numbered
from omnialpha.evaluation.runner import Runner, SampleSet
from omnialpha.evaluation.scoring import UNKNOWN, Scoring, of_sets
from omnialpha.limits import by
from omnialpha.tasks import Role

WORST, BEST = 6, 2
ABOUT = ("key", "sample", "category", "method", "height", "width", "features", "seconds")  # of a row: no figures
METHOD, TASK, N = Column("method", "method"), Column("task", "asked for"), Column("n", "n", 0)
SECONDS = Column("seconds", "s a picture (median)", 3, "lower")

Parts = Mapping[str, SampleSet]  # by task, with the same samples in the same order
Rows = Mapping[str, Sequence[Row]]  # by method


def report(
    benchmark: Benchmark, runner: Runner, parts: Parts, methods: Sequence[Method], rows: Rows, device: str, data: str
) -> Report:
    """The whole report of a run.

    Args:
        benchmark: whose samples were measured.
        runner: that measured them.
        parts: what the methods were asked for, all scored alike.
        methods: each with its task.
        rows: all that `runner` gave.
        device, data: in words.

    Raises:
        InputError: no sample has a prediction of every method.
    """
    shared = common(runner, parts, methods, rows)
    summary = summarise(benchmark, runner, parts, methods, shared)
    main, first = methods[0].task, next(iter(shared.values()))
    kind = parts[main].kind
    if kind.mattes:
        summary.append(_constant(benchmark, runner, parts[main], main, first))
    totals = [row for row in summary if row["category"] == TOTAL]
    times = [f"{row['method']} {row['seconds']:.3f} s" for row in totals if row["seconds"] is not None]
    unknown = any(name.startswith(UNKNOWN) for row in summary for name in row)
    tasks = list(dict.fromkeys(method.task for method in methods))
    return Report(
        title=benchmark.title + (f": {' and '.join(tasks)}" if benchmark.own_command == "" else ""),
        header={
            "n": str(len(first)),
            "resolution": _resolution(first, runner.settings.size),
            "region": kind.region or "whole picture" + ", and the unknown region of the trimap" * unknown,
            "scale": benchmark.scale,
            "seed": kind.seed or str(runner.settings.seed),
            "device": device,
            "model": ", ".join(shared),
            "time a picture": ", ".join(times) + " (median)" if times else "not measured",
            "data": data,
        },
        tables=_tables(kind, totals, [row for row in summary if row["category"] != TOTAL]),
        summary=summary,
        rows=[{k: v for k, v in row.items() if k not in ("key", "features")} for of in shared.values() for row in of],
        skipped=_skipped(runner, kind, summary),
        notes=_notes(benchmark, runner, kind, methods, rows, summary),
        cases=_cases(runner, parts, methods, shared),
        cases_title="Worst and best cases",
    )


def common(runner: Runner, parts: Parts, methods: Sequence[Method], rows: Rows) -> dict[str, list[Row]]:
    """The rows of those samples that every method has predictions for, in the order of the data set."""
    by_sample = {method.name: {row["sample"]: row for row in rows[method.name]} for method in methods}
    samples = next(iter(parts.values())).samples
    keys = [s.key for s in samples if all(s.key in of for of in by_sample.values())]
    if not keys:
        why = next((reason for of in runner.bad.values() for reason in of.values()), "nothing was made")
        raise InputError(f"none of the {len(samples)} samples can be measured for every method: {why}")
    return {name: [of[key] for key in keys] for name, of in by_sample.items()}


# ---- figures --------------------------------------------------------------------------------------------------------


def summarise(benchmark: Benchmark, runner: Runner, parts: Parts, methods: Sequence[Method], shared: Rows) -> list[Row]:
    """Of each method a row in total, one a category, and the published weighting of AlphaTest's categories."""
    made: list[Row] = []
    for method in methods:
        rows, kind = shared[method.name], parts[method.task].kind
        found = sorted({row["category"] for row in rows})
        names = found if benchmark.categories and found != [""] else []
        about = {"benchmark": benchmark.name, "task": method.task, "method": method.name}
        groups = {TOTAL: rows} | {name: [row for row in rows if row["category"] == name] for name in names}
        means = {name: about | {"category": name} | _means(runner, method, kind, of) for name, of in groups.items()}
        made += means.values()
        if names == sorted(PUBLISHED):
            made.append(_weighted([means[name] for name in names]))
    return made


def _means(runner: Runner, method: Method, kind: Scoring, rows: Sequence[Row]) -> Row:
    figures = dict.fromkeys(name for row in rows for name in row if name not in ABOUT)
    sets = of_sets(runner.features(method, rows), kind) if kind.sets else {}
    times = [row["seconds"] for row in rows if row["seconds"] is not None]
    made: Row = {"n": len(rows)} | {name: mean(rows, name) for name in figures} | sets
    return made | {"seconds": median(times) if times else None}


def _constant(benchmark: Benchmark, runner: Runner, part: SampleSet, task: str, rows: Sequence[Row]) -> Row:
    """The row of the best constant, which knows the truth, on the samples that have these rows."""
    keys = {row["sample"] for row in rows}
    examples = (sample.load(runner.settings.size) for sample in part.samples if sample.key in keys)
    mattes = ((true[3], one.trimap) for one in examples if (true := one.truth(Role.FOREGROUND)) is not None)
    about = {"benchmark": benchmark.name, "task": task, "method": BEST_CONSTANT, "category": TOTAL, "n": len(rows)}
    return about | best_constants(mattes) | {"seconds": None}


def _weighted(parts: Sequence[Row]) -> Row:
    """One category weighs .5, the others share .5; a figure that one of them lacks has none."""
    about = {"category": WEIGHTED, "n": sum(row["n"] for row in parts), "seconds": None}
    made: Row = dict(parts[0]) | about
    for name in made.keys() - about.keys() - {"benchmark", "task", "method"}:
        half, others = ([row[name] for row in parts if (row["category"] == HALF) is yes] for yes in (True, False))
        known = None not in half + others
        made[name] = (sum(half) / len(half) + sum(others) / len(others)) / 2 if known else None
    return made


# ---- words ----------------------------------------------------------------------------------------------------------


def _tables(kind: Scoring, totals: Sequence[Row], categories: Sequence[Row]) -> list[Table]:
    def there(*columns: Column) -> list[Column]:
        return [c for c in columns if any(row.get(c.key) is not None for row in (*totals, *categories))]

    columns = there(*kind.columns)
    constant = {"task": "nothing, it knows the truth"}
    totals = [row | (constant if row["method"] == BEST_CONSTANT else {}) for row in totals]
    made = [Table("All pictures", [METHOD, TASK, N, *columns, *there(SECONDS)], totals)]
    unknown = [Column(UNKNOWN + c.key, c.title, c.digits, c.better) for c in kind.figures]
    if there(*unknown):
        made.append(Table("Unknown region of the trimap", [METHOD, TASK, N, *unknown], totals))
    if categories:
        made.append(Table("By category", [METHOD, Column("category", "category"), N, *columns], categories))
    if kind.ways:
        shown = [c for c in columns if there(Column(f"{c.key}_{kind.ways[0]}", c.title))]
        rows = [
            {"method": row["method"], "way": way} | {c.key: row.get(f"{c.key}_{way}") for c in shown}
            for row in totals
            for way in kind.ways
        ]
        made.append(Table("By background, all pictures", [METHOD, Column("way", "background"), *shown], rows))
    return made


def _resolution(rows: Sequence[Row], size: int | None) -> str:
    sizes = sorted({(row["height"], row["width"]) for row in rows}, key=lambda s: (s[0] * s[1], s))
    ends = dict.fromkeys(map(by, (sizes[0], sizes[-1])))
    return " to ".join(ends) + (f" (longer side {size} px)" if size else " (as stored)")


def _skipped(runner: Runner, kind: Scoring, summary: Sequence[Row]) -> dict[str, str]:
    wanted = {column.key for column in kind.columns}
    lacking = {name: why for name, why in runner.settings.networks.lacking().items() if name in wanted}
    absent = [n for n in sorted(wanted - lacking.keys()) if all(row.get(n) is None for row in summary)]
    return lacking | dict.fromkeys(absent, kind.absent)


def _notes(
    benchmark: Benchmark, runner: Runner, kind: Scoring, methods: Sequence[Method], rows: Rows, summary: Sequence[Row]
) -> list[str]:
    n = summary[0]["n"]
    notes = [f"source: {benchmark.source}; licence: {benchmark.license}", f"published size: {benchmark.size}"]
    notes += ["plain means over pictures; methods are compared on the same samples", *kind.notes]
    if any(row["category"] == WEIGHTED for row in summary):
        notes.append(f"{WEIGHTED}: {HALF} weighs .5, the other {len(PUBLISHED) - 1} categories share .5")
    if benchmark.count is not None and n != benchmark.count:
        notes.append(f"n={n}, the whole {benchmark.title} has {benchmark.count}")
    notes += [f"not confirmed: {benchmark.unsure}"] if benchmark.unsure else []
    notes += [f"{method.name}: {method.given}" for method in methods if method.given]
    notes += [f"{method.name}: predictions of {method.folder.resolve().name}" for method in methods if method.folder]
    networks, titles = runner.settings.networks, " ".join(column.title for column in kind.columns)
    named = {"LPIPS": networks.lpips, "FID and KID": networks.features, "CLIP": networks.clip}
    notes += [f"{what}: {network.name}" for what, network in named.items() if network and what.split()[0] in titles]
    for method in methods:
        if (more := len(rows[method.name]) - n) > 0:
            notes.append(f"{method.name} has {more} samples more, which others lack: they are left out")
    return notes + [f"passed over, {name}: {why}" for name, of in runner.bad.items() for why in of.values()]


def in_words(row: Row, columns: Sequence[Column]) -> str:
    """The figures that there are, in one line."""
    return ", ".join(f"{c.title} {c.cell(row)}" for c in columns if row.get(c.key) is not None)


# ---- cases ----------------------------------------------------------------------------------------------------------


def _cases(runner: Runner, parts: Parts, methods: Sequence[Method], shared: Rows) -> list[Case]:
    """By the first figure of the first method, the worst ones and then the best."""
    figures = parts[methods[0].task].kind.figures
    key, sign = figures[0].key, -1 if figures[0].better == "higher" else 1
    ranked = [row for row in shared[methods[0].name] if row.get(key) is not None]
    ranked.sort(key=lambda row: sign * row[key])
    best = ranked[: min(BEST, len(ranked) // 2)]
    worst = ranked[len(best) :][-WORST:][::-1]
    by_sample = {name: {row["sample"]: row for row in rows} for name, rows in shared.items()}
    made = []
    for what, row in [*(("worst", row) for row in worst), *(("best", row) for row in best)]:
        sample = row["sample"]
        said = [f"{m.name}: {in_words(by_sample[m.name][sample], figures)}" for m in methods]
        made.append(Case(f"{what}: {sample}", "; ".join(said), _pictures(runner, parts, methods, sample)))
    return made


def _pictures(runner: Runner, parts: Parts, methods: Sequence[Method], key: str) -> dict[str, Tensor]:
    """What was given and is true, once, and what each method made of it."""
    samples = {task: next(sample for sample in part.samples if sample.key == key) for task, part in parts.items()}
    examples = {task: sample.load(runner.settings.size) for task, sample in samples.items()}
    made: dict[str, Tensor] = {}
    for one in examples.values():
        made |= named("given", one.roles, one.inputs)
    for one in examples.values():
        made |= named("true", one.targets, one.truths)
    for method in methods:
        one = examples[method.task]
        layers = runner.predicted(method, parts[method.task], samples[method.task], one)
        made |= named(method.name, one.targets, tuple(layers))
    return made


def named(what: str, roles: Sequence[Role], pictures: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """By their role, which is numbered where it repeats."""
    pairs = zip(numbered(roles), pictures, strict=True)
    return {f"{what}: {role}": picture for role, picture in pairs if picture is not None}
