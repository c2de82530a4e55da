"""The card of a data set: what is in it, on what terms, how it was made, and what was left out."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np

from omnialpha.curation.candidate import Outcome
from omnialpha.evaluation.reports.report import Column, Row, Table
from omnialpha.templates import render

BINS, BAR = 16, 40  # of the histogram: lines, and characters of the longest
MOST = 0.98  # of the scores lie in lines of one width; the last holds what is above
REASONS = 30  # that are listed, the most frequent first
OWN = re.compile(r"'[^']*'|\"[^\"]*\"|\S*\d\S*?(?=[.,;:]?(?:\s|$))")  # what a reason says of one item alone
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
PLACES = {"train": "train", "test": "test", "left": "left out"}
ABOUT_SELECTION = ("score", "cut", "near")


def draw(
    title: str, forms: Sequence[str], outcomes: Sequence[Outcome], places: Mapping[str, str], about: Mapping[str, Any]
) -> str:
    """The text of README.md, with the header that the hub reads.

    Args:
        forms: in which the records lie there beside the manifests: "shards", "parquet".
        outcomes, about: as of `output.write`.
        places: of what is kept its split, by id.
    """
    splits = Counter(places.values())
    text = render(
        "dataset_card.md",
        title=title,
        forms=forms,
        splits=dict(splits),
        size=next((name for limit, name in SIZES if len(places) < limit), "n>10M"),
        total=len(outcomes),
        sources=_sources(outcomes, places).markdown(),
        made=_made(about).markdown(),
        rejected=_rejected(outcomes).markdown(),
        histogram=histogram(*_scores(outcomes, places, str(about.get("score", "")))),
        score=about.get("score", ""),
        cut=about.get("cut"),
        near=sorted(about.get("near", ())),
    )
    return text + "\n"


def _sources(outcomes: Sequence[Outcome], places: Mapping[str, str]) -> Table:
    """Sources with their licences, and how many of their items went where."""
    counts = Counter((o.candidate.source, o.candidate.licence, places.get(o.candidate.id, "left")) for o in outcomes)
    rows: list[Row] = []
    for source, licence in sorted({key[:2] for key in counts}):
        went = {place: counts[source, licence, place] for place in PLACES}
        rows.append({"source": source, "licence": licence, "items": sum(went.values())} | went)
    rows.append({"source": "all", "licence": ""} | {k: sum(row[k] for row in rows) for k in ("items", *PLACES)})
    columns = [Column("source", "source"), Column("licence", "licence"), Column("items", "items", 0)]
    return Table("", columns + [Column(place, title, 0) for place, title in PLACES.items()], rows)


def _made(about: Mapping[str, Any]) -> Table:
    texts = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False, default=str) for k, v in about.items()}
    rows: list[Row] = [{"key": key, "value": text} for key, text in texts.items() if key not in ABOUT_SELECTION[1:]]
    return Table("", [Column("key", "setting"), Column("value", "value")], rows)


def _rejected(outcomes: Sequence[Outcome]) -> Table:
    """How many were left out by stage and reason, without what a reason says of one item alone."""
    counts = Counter((o.stage, "failed, may be tried again" if o.failed else _kind(o)) for o in outcomes if o.stage)
    common = counts.most_common()
    rows: list[Row] = [{"stage": stage, "reason": reason, "n": n} for (stage, reason), n in common[:REASONS]]
    if more := sum(n for _, n in common[REASONS:]):
        rows.append({"stage": "", "reason": "others", "n": more})
    rows.append({"stage": "all", "reason": "", "n": counts.total()})
    return Table("", [Column("stage", "stage"), Column("reason", "reason"), Column("n", "items", 0)], rows)


def _kind(outcome: Outcome) -> str:
    return OWN.sub("...", outcome.reason)


def _scores(outcomes: Sequence[Outcome], places: Mapping[str, str], name: str) -> tuple[list[float], list[float]]:
    """Of those that are kept, and of those that are not."""
    kept, left = list[float](), list[float]()
    for outcome in outcomes:
        value = outcome.candidate.scores.get(name)
        if value is not None and isfinite(value):
            (kept if outcome.candidate.id in places else left).append(value)
    return kept, left


def histogram(kept: Sequence[float], left: Sequence[float]) -> str:
    """Lines of `#` for what is kept and `.` for what is not; "" where there are no scores."""
    if not (kept or left):
        return ""
    every = np.array([*kept, *left])
    low, high = float(every.min()), float(np.quantile(every, MOST))
    edges = np.linspace(low, high if high > low else low + 1e-9, BINS)
    counts = [np.histogram(values, [*edges, np.inf])[0] for values in (kept, left)]
    most = max(1, int((counts[0] + counts[1]).max()))
    lines = []
    for k, (ours, rest) in enumerate(zip(*counts, strict=True)):
        ends = f"to {edges[k + 1]:.5f}" if k + 1 < BINS else "or more   "
        bar = "#" * round(BAR * ours / most) + "." * (round(BAR * (ours + rest) / most) - round(BAR * ours / most))
        lines.append(f"{edges[k]:.5f} {ends} |{bar:<{BAR}}| {ours:,} of {ours + rest:,}")
    return "\n".join(lines)
