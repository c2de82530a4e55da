"""Verdicts of a comparison, and what follows from many of them: win rates, order bias, agreement.

Every interval is a percentile bootstrap over samples. It is no wider than the samples show: where all verdicts are
equal it is a point.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

A, TIE, B = VERDICTS = ("A", "tie", "B")
RESAMPLES, LEVEL = 10_000, 0.95
CHUNK = 4_000_000  # draws held at once


@dataclass(frozen=True)
class Answer:
    """What was answered when a pair was shown once. first: the side that came first, or on the left.

    verdict: one of VERDICTS, or "" for an error, which says why. rater: a person's name; a judge has none.
    """

    sample: str
    aspect: str
    first: str
    verdict: str
    rater: str = ""
    reason: str = ""
    error: str = ""

    def __str__(self) -> str:
        """What was first, what was chosen, and why."""
        who, why = f"{self.rater}: " if self.rater else "", f" ({self.reason})" if self.reason else ""
        return f"{who}{self.first} first, {self.verdict}{why}"


class Interval(NamedTuple):
    """A figure and its interval."""

    value: float
    low: float
    high: float


Groups = Mapping[str, Sequence[Answer]]  # answers by sample


def combine(verdicts: Sequence[str]) -> str:
    """The one rule for several answers about a sample: what more than half of them say, otherwise a tie.

    Of a judge's two orders: both A -> A, both B -> B, all else a tie. Of people: the majority.
    """
    verdict, count = Counter(verdicts).most_common(1)[0]
    return verdict if 2 * count > len(verdicts) else TIE


def by_sample(answers: Iterable[Answer]) -> dict[str, list[Answer]]:
    """Answers about one aspect by sample; a sample with an error has no verdict and is left out."""
    groups: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        groups[answer.sample].append(answer)
    return {sample: group for sample, group in groups.items() if not any(answer.error for answer in group)}


def rates(verdicts: Sequence[str], seed: int = 0) -> dict[str, Interval]:
    """The share of each of VERDICTS, and as "score" that of A where a tie counts as half."""
    assert verdicts, "no verdicts"
    columns = {name: np.array([verdict == name for verdict in verdicts], dtype=float) for name in VERDICTS}
    columns["score"] = columns[A] + columns[TIE] / 2
    return {name: ratio(column, np.ones(len(verdicts)), seed) for name, column in columns.items()}


def order_bias(groups: Groups) -> Interval | None:
    """The share of answers for what was shown first, of those that chose a side, minus half; None if none did.

    0: the order does not matter, .5: always the first, -.5: always the second.
    """
    chosen = [[a for a in group if a.verdict != TIE] for group in groups.values()]
    if not any(chosen):
        return None
    share = ratio(
        np.array([sum(a.verdict == a.first for a in group) for group in chosen]), np.array([*map(len, chosen)])
    )
    return Interval(*(figure - 0.5 for figure in share))


def consistency(groups: Groups) -> Interval | None:
    """The share of samples, of those answered more than once, about which all answers are the same."""
    same = [len({a.verdict for a in group}) == 1 for group in groups.values() if len(group) > 1]
    return ratio(np.array(same, dtype=float), np.ones(len(same))) if same else None


def ratio(parts: np.ndarray, wholes: np.ndarray, seed: int = 0) -> Interval:
    """sum(parts) / sum(wholes) over samples (n,), with its interval; resamples without any whole say nothing."""
    generator, n, drawn = np.random.default_rng(seed), len(parts), []
    step = max(1, CHUNK // n)
    for start in range(0, RESAMPLES, step):
        picks = generator.integers(n, size=(min(step, RESAMPLES - start), n))
        sums = wholes[picks].sum(1)
        drawn.append(parts[picks].sum(1)[sums > 0] / sums[sums > 0])
    low, high = np.quantile(np.concatenate(drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(parts.sum() / wholes.sum()), float(low), float(high))


def kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Cohen's kappa of two raters of the same samples: (p_o - p_e) / (1 - p_e) [Cohen 1960].

    1: always the same, 0: as by chance. None without samples, or where both always say one and the same.
    """
    if not first:
        return None
    n, (ours, theirs) = len(first), (Counter(first), Counter(second))
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    expected = sum(ours[name] * theirs[name] for name in VERDICTS) / n**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def mean_kappa(groups: Groups) -> float | None:
    """The mean of kappa over the pairs of raters that have one; each pair is compared where both answered."""
    said: dict[str, dict[str, str]] = defaultdict(dict)
    for sample, group in groups.items():
        for answer in group:
            said[answer.rater][sample] = answer.verdict
    figures = []
    for ours, theirs in combinations(said.values(), 2):
        common = [sample for sample in ours if sample in theirs]
        figures.append(kappa([ours[s] for s in common], [theirs[s] for s in common]))
    known = [figure for figure in figures if figure is not None]
    return sum(known) / len(known) if known else None
