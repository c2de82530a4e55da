"""The report of a comparison, by a judge or by people."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from omnialpha.errors import InputError
from omnialpha.evaluation.judge.judge_report import Comparison, report
from omnialpha.evaluation.judge.verdicts import Answer
from omnialpha.evaluation.reports.report import Report, Row

NAMES = {"A": "heron", "B": "otter"}


def compared(
    samples: Sequence[str], several: bool = False, missing: Mapping[str, Sequence[str]] | None = None
) -> Comparison:
    return Comparison(
        names=NAMES,
        samples=samples,
        aspects=("overall", "quality"),
        missing=missing or {"A": [], "B": []},
        raters="vlm",
        several=several,
        ground="grey",
        pictures=lambda key: {"A": torch.rand(4, 8, 8), "B": torch.rand(4, 8, 8)},
    )


def both(sample: str, *verdicts: str, aspect: str = "overall") -> list[Answer]:
    """Answers with A and with B first."""
    return [
        Answer(
            sample, aspect, first, verdict if verdict != "500" else "", error="status 500" if verdict == "500" else ""
        )
        for first, verdict in zip("AB", verdicts, strict=True)
    ]


def summary(made: Report, aspect: str = "overall") -> Row:
    return next(dict(row) for row in made.summary if row["aspect"] == aspect)


def test_figures_of_a_judge() -> None:
    given = {"w": ("A", "A"), "x": ("A", "A"), "y": ("A", "B"), "z": ("B", "B"), "e": ("A", "500")}
    answers = [answer for sample, verdicts in given.items() for answer in both(sample, *verdicts)]
    made = report(compared(list(given), missing={"A": [], "B": ["q", "r"]}), answers)
    row = summary(made)
    assert [row[k] for k in ("n", "a_wins", "ties", "b_wins", "score")] == [4, 0.5, 0.25, 0.25, 0.625]
    assert (row["answers"], row["errors"], row["consistency"], row["order_bias"]) == (10, 1, 0.75, 5 / 8 - 0.5)
    assert row["a_wins_low"] < 0.5 < row["a_wins_high"] and len(made.summary) == 1
    assert [(r["sample"], r["verdict"]) for r in made.rows] == [
        *zip("wxyz", ["A", "A", "tie", "B"], strict=True),
        ("e", None),
    ]
    assert made.rows[-1]["error"] == "status 500" and made.header["n"] == "4 of 5 samples"
    told = " ".join(made.notes)
    assert "B lacks 2 samples, left out: q, r" in told and "A lacks" not in told
    assert "1 of 10 answers are errors, and their samples count nowhere; first e, overall: status 500" in told
    assert "without a verdict: quality" in told
    assert [case.title for case in made.cases] == ["y (contested)", "w (for A)", "x (for A)", "z (for B)"]


def test_figures_of_people() -> None:
    said = {"w": "AAB", "x": "ABT", "y": "BB"}
    people = ("Ann", "Bob", "Cid")
    answers = [
        Answer(sample, "overall", "A", {"T": "tie"}.get(letter, letter), rater=rater)
        for sample, letters in said.items()
        for rater, letter in zip(people, letters, strict=False)
    ]
    made = report(compared(list(said), several=True), answers)
    row = summary(made)
    assert [row[k] for k in ("n", "a_wins", "ties", "b_wins")] == [3, 1 / 3, 1 / 3, 1 / 3]
    # Ann and Bob: A A, A B, B B; Ann and Cid: A B, A tie; Bob and Cid: A B, B tie
    assert row["kappa"] == pytest.approx(((2 / 3 - 4 / 9) / (1 - 4 / 9) + 0 + (0 - 1 / 4) / (1 - 1 / 4)) / 3)
    assert "answers by: Ann 3, Bob 3, Cid 2" in made.notes
    assert made.rows[0]["answers"] == "Ann: A first, A; Bob: A first, A; Cid: A first, B"


def test_what_is_written(tmp_path: Path) -> None:
    answers = both("w", "A", "A") + both("w", "A", "B", aspect="quality")
    files = report(compared(["w"]), answers).write(tmp_path)
    told = json.loads(files["json"].read_text())
    assert told["header"]["A"] == "heron" and told["header"]["wording"] and told["header"]["model"] == "vlm"
    assert files["markdown"].read_text().count("100.0 (100.0 to 100.0)") == 4  # A twice, both orders, ties of quality
    assert "Clear and contested cases" in files["page"].read_text()
    before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.suffix != ".html"}  # the pictures are random here
    report(compared(["w"]), answers).write(tmp_path)
    assert before == {p: p.read_bytes() for p in tmp_path.iterdir() if p.suffix != ".html"}


def test_nothing_but_errors() -> None:
    with pytest.raises(InputError, match="there are no verdicts: status 500"):
        report(compared(["w"]), both("w", "500", "500"))
    with pytest.raises(InputError, match="no question was answered"):
        report(compared(["w"]), [])


def test_agreement_with_another_report(tmp_path: Path) -> None:
    """Of four common samples three verdicts are the same: 3/4 against 6/16 by chance."""
    theirs = dict(zip("uvwxz", ["A", "A", "tie", "B", "B"], strict=True))
    report(compared(list(theirs)), [a for s, v in theirs.items() for a in both(s, v, v)]).write(tmp_path)
    ours = dict(zip("uvwxy", ["A", "A", "tie", "A", "B"], strict=True))
    answers = [a for s, v in ours.items() for a in both(s, v, v)]
    table = report(compared(list(ours)), answers, [tmp_path]).tables[-1]
    overall = table.rows[0]
    assert (overall["with"], overall["n"], overall["same"]) == ("vlm", 4, 75)
    chance = (3 * 2 + 1 * 1 + 0 * 1) / 16
    assert overall["kappa"] == pytest.approx((0.75 - chance) / (1 - chance))
    assert table.rows[1]["n"] == 0 and table.rows[1]["kappa"] is None


def test_reports_that_do_not_belong(tmp_path: Path) -> None:
    answers = both("w", "A", "A")
    with pytest.raises(InputError, match=r"holds no report\.json"):
        report(compared(["w"]), answers, [tmp_path])
    (tmp_path / "report.json").write_text('{"header": {}}')
    with pytest.raises(InputError, match="is no report of a comparison"):
        report(compared(["w"]), answers, [tmp_path])
    made = report(compared(["w"]), answers)
    told = made.data() | {"rows": list(made.rows)}
    told["header"]["B"] = "badger"
    (tmp_path / "report.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match="compares heron with badger, not heron with otter"):
        report(compared(["w"]), answers, [tmp_path])
