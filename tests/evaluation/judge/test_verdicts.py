"""Verdicts against closed forms and simulated judges."""

from collections.abc import Sequence
from itertools import product
from math import sqrt

import numpy as np
import pytest

from omnialpha.evaluation.judge.verdicts import (
    VERDICTS,
    Answer,
    by_sample,
    combine,
    consistency,
    kappa,
    mean_kappa,
    order_bias,
    rates,
    ratio,
)

OTHER = {"A": "B", "B": "A", "tie": "tie"}


def simulated(n: int, seed: int, win: float = 0.0, tie: float = 0.0, first: float = 0.0) -> list[Answer]:
    """A judge of n pairs in both orders who sees A ahead in a share `win` of them, answers a tie with chance `tie` and
    what is shown first with chance `first`."""
    generator = np.random.default_rng(seed)
    answers = []
    for number in range(n):
        better = "A" if generator.random() < win else "B"
        for shown in ("A", "B"):
            drawn = generator.random()
            verdict = "tie" if drawn < tie else shown if drawn < tie + first else better
            answers.append(Answer(str(number), "overall", shown, verdict))
    return answers


@pytest.mark.parametrize(("one", "other"), list(product(VERDICTS, repeat=2)))
def test_two_orders(one: str, other: str) -> None:
    table = {("A", "A"): "A", ("B", "B"): "B"}
    assert combine([one, other]) == table.get((one, other), "tie")


@pytest.mark.parametrize(
    ("given", "verdict"),
    [("AAB", "A"), ("AABB", "tie"), ("ABT", "tie"), ("BBBAA", "B"), ("AATT", "tie"), ("ATTT", "tie"), ("A", "A")],
)
def test_majority(given: str, verdict: str) -> None:
    """More than half, not merely more than any other: AAB is A, but two of five are not enough."""
    names = [{"T": "tie"}.get(letter, letter) for letter in given]
    assert combine(names) == verdict
    assert combine([OTHER[name] for name in names]) == OTHER[verdict]
    assert combine(["A", "A", "B", "tie", "tie"]) == "tie"


def test_rates_and_their_intervals() -> None:
    """The interval of a share is that of a binomial: p ± 1.96 sqrt(p (1 - p) / n)."""
    made = rates(["A"] * 300 + ["tie"] * 40 + ["B"] * 60)
    for name, share in {"A": 0.75, "tie": 0.1, "B": 0.15}.items():
        half = 1.96 * sqrt(share * (1 - share) / 400)
        assert made[name].value == share
        assert made[name].low == pytest.approx(share - half, abs=0.006)
        assert made[name].high == pytest.approx(share + half, abs=0.006)
    assert made["score"].value == 0.75 + 0.05
    spread = sqrt((0.75 + 0.1 / 4 - 0.8**2) / 400)
    assert made["score"].high - made["score"].low == pytest.approx(2 * 1.96 * spread, rel=0.06)
    assert rates(["A"] * 300 + ["tie"] * 40 + ["B"] * 60) == made
    assert rates(["A"] * 300 + ["tie"] * 40 + ["B"] * 60, seed=1)["A"].value == made["A"].value
    one = rates(["B"])
    assert (one["A"].low, one["A"].high, one["B"].low, one["score"].value) == (0, 0, 1, 0)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(3)
    held = 0
    for seed in range(60):
        given = generator.choice(VERDICTS, size=80, p=[0.5, 0.2, 0.3]).tolist()
        made = rates(given, seed)["A"]
        held += made.low <= 0.5 <= made.high
    assert 51 <= held <= 60  # 57 expected


def test_a_ratio_of_sums_draws_whole_samples() -> None:
    """Ten answers a sample that always agree are worth one: the interval is that of the samples."""
    made = ratio(np.repeat([10.0, 0.0], 50), np.full(100, 10.0), 0)
    assert made.value == 0.5
    assert made.high - made.low == pytest.approx(2 * 1.96 * sqrt(0.25 / 100), rel=0.1)


@pytest.mark.parametrize(("first", "figure"), [(0.0, 0.0), (0.4, 0.2), (1.0, 0.5)])
def test_order_bias_of_simulated_judges(first: float, figure: float) -> None:
    """A judge who follows the order with chance q, and the pictures otherwise, is q / 2 above half."""
    groups = by_sample(simulated(600, 0, win=0.8, first=first))
    made = order_bias(groups)
    assert made is not None and made.value == pytest.approx(figure, abs=0.03)
    assert made.low <= figure <= made.high
    agree = consistency(groups)
    assert agree is not None and agree.value == pytest.approx(1 - first, abs=0.06)


def test_only_the_second() -> None:
    groups = by_sample([Answer(str(n), "overall", side, OTHER[side]) for n in range(5) for side in "AB"])
    made = order_bias(groups)
    assert made is not None and (made.value, made.low, made.high) == (-0.5, -0.5, -0.5)
    assert {combine([a.verdict for a in group]) for group in groups.values()} == {"tie"}


def test_ties_say_nothing_about_the_order() -> None:
    half = by_sample(simulated(400, 1, tie=0.5, first=0.5))
    made = order_bias(half)
    assert made is not None and made.value == 0.5
    assert order_bias(by_sample(simulated(5, 1, tie=1.0))) is None
    assert consistency({}) is None
    assert consistency(by_sample([Answer("x", "overall", "A", "B")])) is None


def test_errors_take_their_sample_out() -> None:
    answers = [Answer("x", "overall", "A", "A"), Answer("x", "overall", "B", "", error="status 500"),
               Answer("y", "overall", "A", "A"), Answer("y", "overall", "B", "A")]  # fmt: skip
    assert list(by_sample(answers)) == ["y"]


def test_kappa() -> None:
    """The textbook table 20, 5 / 10, 15: agreement .7, by chance .5, kappa .4."""
    pairs = [("A", "A")] * 20 + [("A", "B")] * 5 + [("B", "A")] * 10 + [("B", "B")] * 15
    first, second = zip(*pairs, strict=True)
    assert kappa(first, second) == pytest.approx(0.4)
    assert kappa(first, first) == pytest.approx(1)
    assert kappa(["A", "B"], ["B", "A"]) == pytest.approx(-1)
    assert kappa(["A", "tie"], ["tie", "tie"]) == pytest.approx(0)
    assert kappa(["tie"] * 3, ["tie"] * 3) is None
    assert kappa([], []) is None


def test_mean_kappa_takes_what_two_people_both_answered() -> None:
    def said(rater: str, verdicts: Sequence[str]) -> list[Answer]:
        return [Answer(str(n), "overall", "A", v, rater=rater) for n, v in enumerate(verdicts) if v]

    answers = said("x", ["A", "B", "A", "B"]) + said("y", ["A", "B", "", ""]) + said("z", ["", "", "B", "A"])
    assert mean_kappa(by_sample(answers)) == pytest.approx(0)  # x and y 1, x and z -1, y and z nothing in common
    assert mean_kappa(by_sample(said("x", ["A"]))) is None
