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
from omnialpha.evaluation.judge.verdicts import TIE, Answer, Interval
from omnialpha.evaluation.reports.report import FILES, Case, Column, Report, Row, Table

CASES = 3  # of each kind
VALUES = {"A": 1, TIE: 0, "B": -1}


@dataclass(frozen=True)
class Comparison:
    """What was compared, and by whom. names: of the sides; samples: all that were asked about, in order.

    raters: who answered, in words; several: whether they are people, who each saw one order; missing: keys of samples
    by the side that lacks them; pictures: of a sample, by what they are.
    """

    title: str
    names: Mapping[str, str]
    samples: Sequence[str]
    aspects: Sequence[str]
    missing: Mapping[str, Sequence[str]]
    raters: str
    several: bool
    ground: str
    resolution: str
    pictures: Callable[[str], Mapping[str, Tensor]]
    seed: int = 0
    wording: str = WORDING


def of_judge(judge: Judge, pairs: Pairs, seed: int = 0) -> Comparison:
    def pictures(key: str) -> dict[str, Tensor]:
        pair = next(pair for pair in pairs.pairs if pair.asked.key == key)
        made = {f"{side}: {label}": pixels for side in SIDES for label, pixels in pair.made(side).items()}
        return pair.given() | made

    return Comparison(
        title="Comparison by a judge",
        names=pairs.names,
        samples=[pair.asked.key for pair in pairs.pairs],
        aspects=judge.aspects,
        missing=pairs.missing,
        raters=judge.endpoint.model,
        several=False,
        ground=judge.ground,
        resolution=f"as made, shown with a longer side of at most {SIDE} px",
        pictures=pictures,
        seed=seed,
    )


def of_study(study: Study, folder: Path, people: int, seed: int = 0) -> Comparison:
    return Comparison(
        title="Comparison by people",
        names=study.names,
        samples=[sample.key for sample in study.samples],
        aspects=study.aspects,
        missing=study.missing,
        raters=f"{people} people" if people > 1 else "1 person",
        several=True,
        ground=study.ground,
        resolution=f"as made, shown with a longer side of at most {SIDE} px",
        pictures=lambda key: study.pictures(folder, key),
        seed=seed,
        wording=study.wording,
    )


Groups = dict[str, dict[str, list[Answer]]]  # aspect -> sample -> answers without errors


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
        title=compared.title,
        header={
            "A": compared.names["A"],
            "B": compared.names["B"],
            "n": f"{n} of {len(compared.samples)} samples",
            "model": compared.raters,
            "resolution": compared.resolution,
            "region": f"whole picture, transparency on {compared.ground}",
            "seed": f"{compared.seed} (intervals)",
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


def _summary(
    compared: Comparison, aspect: str, samples: Mapping[str, Sequence[Answer]], answers: Sequence[Answer]
) -> Row:
    """Every figure of an aspect, shares in [0, 1]; NAME, NAME_low and NAME_high."""
    combined = [verdicts.combine([a.verdict for a in group]) for group in samples.values()]
    shares = verdicts.rates(combined, compared.seed)
    figures: dict[str, Interval | None] = {
        "a_wins": shares["A"],
        "ties": shares[TIE],
        "b_wins": shares["B"],
        "score": shares["score"],
        "consistency": verdicts.consistency(samples, compared.seed),
        "order_bias": verdicts.order_bias(samples, compared.seed),
    }
    row: Row = {"aspect": aspect, "n": len(samples)}
    for name, figure in figures.items():
        row |= {
            name: figure and figure.value,
            f"{name}_low": figure and figure.low,
            f"{name}_high": figure and figure.high,
        }
    asked = [answer for answer in answers if answer.aspect == aspect]
    row |= {"answers": len(asked), "errors": sum(bool(answer.error) for answer in asked)}
    return row | ({"kappa": verdicts.mean_kappa(samples)} if compared.several else {})


def _tables(compared: Comparison, summary: Sequence[Row]) -> list[Table]:
    def figure(row: Row, name: str, sign: str = "") -> str | None:
        if row[name] is None:
            return None
        value, low, high = (100 * row[key] for key in (name, f"{name}_low", f"{name}_high"))
        return f"{value:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"

    shown = [
        {**row, "aspect": ASPECTS[row["aspect"]].title}
        | {name: figure(row, name) for name in ("a_wins", "ties", "b_wins", "score", "consistency")}
        | {"order_bias": figure(row, "order_bias", "+")}
        for row in summary
    ]
    aspect, n = Column("aspect", "aspect"), Column("n", "n", 0)
    wins = (
        Column("a_wins", f"A better, % ({compared.names['A']})"),
        Column("ties", "tie, %"),
        Column("b_wins", f"B better, % ({compared.names['B']})"),
        Column("score", "A with half of the ties, %"),
    )
    side = "left" if compared.several else "first"
    order = (
        Column("consistency", "all answers equal, %" if compared.several else "same verdict in both orders, %"),
        Column("order_bias", f"{side} chosen, % above half"),
        *([Column("kappa", "mean kappa over pairs of people", 2)] if compared.several else []),
        Column("answers", "answers", 0),
        Column("errors", "errors", 0),
    )
    return [Table("Preference", (aspect, n, *wins), shown), Table("Order and agreement", (aspect, n, *order), shown)]


def _rows(compared: Comparison, groups: Groups, failed: Sequence[Answer]) -> list[Row]:
    """A row a sample and aspect; no verdict where an answer is an error."""
    errors = {(answer.sample, answer.aspect): answer.error for answer in reversed(failed)}
    made = []
    for key in compared.samples:
        for aspect in compared.aspects:
            group, error = groups.get(aspect, {}).get(key, []), errors.get((key, aspect), "")
            if group or error:
                verdict = verdicts.combine([answer.verdict for answer in group]) if group else None
                content = "; ".join(_in_words(answer) for answer in group)
                made.append({"sample": key, "aspect": aspect, "verdict": verdict, "answers": content, "error": error})
    return made


def _in_words(answer: Answer) -> str:
    """In words: what was first, what was chosen, and why."""
    who = f"{answer.rater}: " if answer.rater else ""
    why = f" ({answer.reason})" if answer.reason else ""
    return f"{who}{answer.first} first, {answer.verdict}{why}"


def _notes(compared: Comparison, answers: Sequence[Answer], failed: Sequence[Answer], groups: Groups) -> list[str]:
    rule = "a verdict is what more than half of the people say" if compared.several else "a verdict counts where both "
    rule += "" if compared.several else "orders agree"
    notes = [
        f"{rule}, otherwise it is a tie",
        f"in brackets: {verdicts.LEVEL:.0%} bootstrap intervals over samples, {verdicts.RESAMPLES:,} resamples",
        "above half: of the answers that chose a side; 0: the order does not matter, 50: always the first, -50: never",
    ]
    if compared.several:
        raters = list(dict.fromkeys(answer.rater for answer in answers))
        counts = [f"{rater} {sum(answer.rater == rater for answer in answers)}" for rater in raters]
        notes.append(f"answers by: {', '.join(counts)}")
    for side in SIDES:
        lacks = compared.missing.get(side, ())
        if lacks:
            more = f" and {len(lacks) - 5} more" if len(lacks) > 5 else ""
            notes.append(f"{side} lacks {len(lacks)} samples, left out: {', '.join(lacks[:5])}{more}")
    if failed:
        first = f"{failed[0].sample}, {failed[0].aspect}: {failed[0].error}"
        notes.append(
            f"{len(failed)} of {len(answers)} answers are errors, and their samples count nowhere; first {first}"
        )
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
            same = sum(a == b for a, b in zip(*pair, strict=True))
            row = {"aspect": ASPECTS[aspect].title, "with": raters, "n": len(common), "kappa": verdicts.kappa(*pair)}
            made.append(row | {"same": 100 * same / len(common) if common else None})
    columns = (
        Column("aspect", "aspect"),
        Column("with", "with"),
        Column("n", "n", 0),
        Column("same", "same verdict, %", 1),
        Column("kappa", "Cohen's kappa", 2),
    )
    return [Table("Agreement with other reports", columns, made)] if made else []


def _read_report(folder: Path, names: Mapping[str, str]) -> tuple[str, dict[tuple[str, str], str]]:
    """Who answered, and the verdicts by sample and aspect."""
    path = folder / FILES["json"]
    if not path.is_file():
        raise InputError(
            f"{folder} holds no {path.name}: give a folder that `eval judge` or `study-report` has written."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        header = content["header"]
        sides = {side: header[side] for side in SIDES}
        made = {(row["sample"], row["aspect"]): row["verdict"] for row in content["rows"] if row["verdict"] in VALUES}
        raters = str(header["model"])
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
        given = [[VALUES[answer.verdict] for answer in groups[aspect].get(key, [])] for aspect in groups]
        given = [values for values in given if values]
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
            said = [
                f"{ASPECTS[a].title}: {'; '.join(map(_in_words, groups[a][key]))}" for a in groups if key in groups[a]
            ]
            made[key] = Case(f"{key} ({kind})", ". ".join(said), compared.pictures(key))
    return list(made.values())
