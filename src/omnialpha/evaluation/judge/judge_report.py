"""What a judge or people said of two runs, as one report: preferences, what the order did to them, agreement."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pvariance

from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.evaluation.judge import verdicts
from omnialpha.evaluation.judge.judge import Judge
from omnialpha.evaluation.judge.pairs import ASPECTS, SIDE, SIDES, WORDING, Pairs
from omnialpha.evaluation.judge.study import Study
from omnialpha.evaluation.judge.verdicts import TIE, Answer
from omnialpha.evaluation.reports.report import FILES, Case, Column, Report, Row, Table

CASES = 3  # of each kind
VALUES = {"A": 1, TIE: 0, "B": -1}
ASPECT, N = Column("aspect", "aspect"), Column("n", "n", 0)

Groups = Mapping[str, verdicts.Groups]  # aspect -> sample -> answers without errors


@dataclass(frozen=True)
class Comparison:
    """What was compared, and by whom. names: of the sides; samples: all that were asked about, in order.

    raters: who answered, in words; several: whether they are people, who each saw one order; missing: keys of samples
    by the side that lacks them; pictures: of a sample, by what they are.
    """

    names: Mapping[str, str]
    samples: Sequence[str]
    aspects: Sequence[str]
    missing: Mapping[str, Sequence[str]]
    raters: str
    several: bool
    ground: str
    pictures: Callable[[str], Mapping[str, Tensor]]
    wording: str = WORDING


def of_judge(judge: Judge, pairs: Pairs) -> Comparison:
    by_key = {pair.request.key: pair for pair in pairs.pairs}

    def pictures(key: str) -> dict[str, Tensor]:
        pair = by_key[key]
        made = {f"{side}: {label}": pixels for side in SIDES for label, pixels in pair.made(side).items()}
        return pair.given() | made

    who = judge.endpoint.model
    return Comparison(pairs.names, list(by_key), judge.aspects, pairs.missing, who, False, judge.ground, pictures)


def of_study(study: Study, folder: Path, people: int) -> Comparison:
    return Comparison(
        study.names,
        [sample.key for sample in study.samples],
        study.aspects,
        study.missing,
        f"{people} people" if people > 1 else "1 person",
        True,
        study.ground,
        lambda key: study.pictures(folder, key),
        study.wording,
    )


def report(compared: Comparison, answers: Sequence[Answer], against: Sequence[Path] = ()) -> Report:
    """against: folders of other reports on the same two runs. InputError where nothing was answered."""
    groups = {a: verdicts.by_sample(answer for answer in answers if answer.aspect == a) for a in compared.aspects}
    groups = {aspect: samples for aspect, samples in groups.items() if samples}
    failed = [answer for answer in answers if answer.error]
    if not groups:
        raise InputError("there are no verdicts: " + (failed[0].error if failed else "no question was answered") + ".")
    summary = [_summary(compared, aspect, groups[aspect], answers) for aspect in groups]
    rows = _rows(compared, groups, failed)
    n = len({sample for samples in groups.values() for sample in samples})
    return Report(
        title=f"Comparison by {'people' if compared.several else 'a judge'}",
        header={
            "A": compared.names["A"],
            "B": compared.names["B"],
            "n": f"{n} of {len(compared.samples)} samples",
            "model": compared.raters,
            "resolution": f"as made, shown with a longer side of at most {SIDE} px",
            "region": f"whole picture, transparency on {compared.ground}",
            "seed": "0 (intervals)",
            "device": "people" if compared.several else "an endpoint, temperature 0",
            "wording": compared.wording,
        },
        tables=[*_tables(compared, summary), *_agreement(compared, rows, against)],
        summary=summary,
        rows=rows,
        notes=_notes(compared, answers, failed, groups),
        cases=_cases(compared, groups),
        cases_title="Clear and contested cases",
    )


def _summary(compared: Comparison, aspect: str, samples: verdicts.Groups, answers: Sequence[Answer]) -> Row:
    """Every figure of an aspect, shares in [0, 1]; NAME, NAME_low and NAME_high."""
    shares = verdicts.rates([verdicts.combine([a.verdict for a in group]) for group in samples.values()])
    figures = {"a_wins": shares["A"], "ties": shares[TIE], "b_wins": shares["B"], "score": shares["score"]}
    uncertain = {"consistency": verdicts.consistency(samples), "order_bias": verdicts.order_bias(samples)}
    row: Row = {"aspect": aspect, "n": len(samples)}
    for name, figure in (figures | uncertain).items():
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), figure or [None] * 3, strict=True))
    errors = [bool(answer.error) for answer in answers if answer.aspect == aspect]
    row |= {"answers": len(errors), "errors": sum(errors)}
    return row | ({"kappa": verdicts.mean_kappa(samples)} if compared.several else {})


def _tables(compared: Comparison, summary: Sequence[Row]) -> list[Table]:
    people = compared.several
    wins = (
        Column("a_wins", f"A better, % ({compared.names['A']})"),
        Column("ties", "tie, %"),
        Column("b_wins", f"B better, % ({compared.names['B']})"),
        Column("score", "A with half of the ties, %"),
    )
    order = (
        Column("consistency", "all answers equal, %" if people else "same verdict in both orders, %"),
        Column("order_bias", f"{'left' if people else 'first'} chosen, % above half"),
    )
    shown = [row | {"aspect": ASPECTS[row["aspect"]].title} for row in summary]
    for row in shown:
        for name in (column.key for column in (*wins, *order) if row[column.key] is not None):
            sign = "+" if name == "order_bias" else ""
            value, low, high = (f"{100 * row[key]:{sign}.1f}" for key in (name, f"{name}_low", f"{name}_high"))
            row[name] = f"{value} ({low} to {high})"
    kappa = [Column("kappa", "mean kappa over pairs of people", 2)] if people else []
    counts = (Column("answers", "answers", 0), Column("errors", "errors", 0))
    return [
        Table("Preference", (ASPECT, N, *wins), shown),
        Table("Order and agreement", (ASPECT, N, *order, *kappa, *counts), shown),
    ]


def _rows(compared: Comparison, groups: Groups, failed: Sequence[Answer]) -> list[Row]:
    """A row a sample and aspect; no verdict where an answer is an error."""
    errors = {(answer.sample, answer.aspect): answer.error for answer in reversed(failed)}
    made = []
    for key, aspect in ((key, aspect) for key in compared.samples for aspect in compared.aspects):
        group, error = groups.get(aspect, {}).get(key, []), errors.get((key, aspect), "")
        if group or error:
            verdict = verdicts.combine([answer.verdict for answer in group]) if group else None
            content = "; ".join(map(str, group))
            made.append({"sample": key, "aspect": aspect, "verdict": verdict, "answers": content, "error": error})
    return made


def _notes(compared: Comparison, answers: Sequence[Answer], failed: Sequence[Answer], groups: Groups) -> list[str]:
    people = "a verdict is what more than half of the people say"
    notes = [
        f"{people if compared.several else 'a verdict counts where both orders agree'}, otherwise it is a tie",
        f"in brackets: {verdicts.LEVEL:.0%} bootstrap intervals over samples, {verdicts.RESAMPLES:,} resamples",
        "above half: of the answers that chose a side; 0: the order does not matter, 50: always the first, -50: never",
    ]
    if compared.several:
        raters = [answer.rater for answer in answers]
        notes.append(f"answers by: {', '.join(f'{one} {raters.count(one)}' for one in dict.fromkeys(raters))}")
    for side, lacks in ((side, lacks) for side in SIDES if (lacks := compared.missing.get(side))):
        more = f" and {len(lacks) - 5} more" if len(lacks) > 5 else ""
        notes.append(f"{side} lacks {len(lacks)} samples, left out: {', '.join(lacks[:5])}{more}")
    if failed:
        errors = f"{len(failed)} of {len(answers)} answers are errors, and their samples count nowhere"
        notes.append(f"{errors}; first {failed[0].sample}, {failed[0].aspect}: {failed[0].error}")
    unasked = [ASPECTS[aspect].title for aspect in compared.aspects if aspect not in groups]
    return notes + ([f"without a verdict: {', '.join(unasked)}"] if unasked else [])


# ---- agreement with other reports -----------------------------------------------------------------------------------


def _agreement(compared: Comparison, rows: Sequence[Row], against: Sequence[Path]) -> list[Table]:
    """Cohen's kappa with the verdicts of each other report."""
    ours = {(row["sample"], row["aspect"]): row["verdict"] for row in rows if row["verdict"]}
    made: list[Row] = []
    for folder in against:
        raters, theirs = _read_report(folder, compared.names)
        for aspect in compared.aspects:
            common = [key for key in ours if key in theirs and key[1] == aspect]
            pair = [ours[key] for key in common], [theirs[key] for key in common]
            same = 100 * sum(a == b for a, b in zip(*pair, strict=True)) / len(common) if common else None
            row = {"aspect": ASPECTS[aspect].title, "with": raters, "n": len(common), "same": same}
            made.append(row | {"kappa": verdicts.kappa(*pair)})
    figures = (Column("same", "same verdict, %", 1), Column("kappa", "Cohen's kappa", 2))
    return [Table("Agreement with other reports", (ASPECT, Column("with", "with"), N, *figures), made)] if made else []


def _read_report(folder: Path, names: Mapping[str, str]) -> tuple[str, dict[tuple[str, str], str]]:
    """Who answered, and the verdicts by sample and aspect."""
    path = folder / FILES["json"]
    if not path.is_file():
        wanted = "give a folder that `eval judge` or `study-report` has written."
        raise InputError(f"{folder} holds no {path.name}: {wanted}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        sides, raters = {side: content["header"][side] for side in SIDES}, str(content["header"]["model"])
        made = {(row["sample"], row["aspect"]): row["verdict"] for row in content["rows"] if row["verdict"] in VALUES}
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{path} is no report of a comparison: give one of `eval judge` or `study-report`.") from None
    if sides != dict(names):
        raise InputError(f"{path} compares {sides['A']} with {sides['B']}, not {names['A']} with {names['B']}.")
    return raters, made


# ---- cases ----------------------------------------------------------------------------------------------------------


def _cases(compared: Comparison, groups: Groups) -> list[Case]:
    """The clearest for either side, and those on which answers differ most; each sample once."""
    spread, value = {}, {}
    for key in compared.samples:
        given = [[VALUES[answer.verdict] for answer in samples[key]] for samples in groups.values() if key in samples]
        if given:
            value[key] = sum(map(fmean, given)) / len(given)
            spread[key] = sum(pvariance(values) for values in given) / len(given)
    kinds = (
        ("contested", sorted((k for k in spread if spread[k] > 0), key=lambda k: -spread[k])),
        ("for A", sorted((k for k in value if value[k] > 0), key=lambda k: -value[k])),
        ("for B", sorted((k for k in value if value[k] < 0), key=lambda k: value[k])),
    )
    made: dict[str, Case] = {}
    for kind, keys in kinds:
        for key in [key for key in keys if key not in made][:CASES]:
            said = [f"{ASPECTS[a].title}: {'; '.join(map(str, of[key]))}" for a, of in groups.items() if key in of]
            made[key] = Case(f"{key} ({kind})", ". ".join(said), compared.pictures(key))
    return list(made.values())
