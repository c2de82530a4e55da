"""From sources to layered records: `omnialpha curate RECIPE`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from statistics import fmean, median
from typing import Any

from omnialpha.curation import advance, engine, filters, output, review, scoring, sources, stages
from omnialpha.curation.candidate import Candidate, Outcome, Rejected, SourceItem
from omnialpha.curation.engine import Watch
from omnialpha.curation.recipe import CurationRecipe
from omnialpha.curation.tools import Tools
from omnialpha.errors import InputError
from omnialpha.files import sha256

DECISIONS, REVIEW = "decisions.json", "review"


@dataclass(frozen=True)
class Curated:
    """What came of a run. status: what became of each item, by id: a split, or where it was left out. counts: by split
    and by stage. near: ids close to the cut. failures: what should be tried again.
    """

    status: Mapping[str, str]
    counts: Mapping[str, int]
    near: Sequence[str]
    failures: Sequence[Outcome]


def items(recipe: CurationRecipe) -> list[SourceItem]:
    """What the sources hold; with a limit, so many of them, the same every time.

    Raises:
        InputError: A source is not laid out as it should be, or two items have one id.
    """
    found = [item for source in recipe.sources for item in sources.items(source)]
    names = Counter(item.id for item in found)
    if twice := [name for name, count in names.items() if count > 1]:
        raise InputError(
            f"{len(twice)} items have an id twice, such as {twice[0]!r}: give the sources names of their own."
        )
    if recipe.limit:
        chosen = {item.id for item in sorted(found, key=lambda item: sha256(item.id))[: recipe.limit]}
        found = [item for item in found if item.id in chosen]
    return found


def curate(recipe: CurationRecipe, watch: Watch = lambda stage, event, count: None) -> Curated:
    """Build the data set of a recipe in its folder; goes on where it was stopped.

    Raises:
        InputError: A source, a setting or a server cannot be used, or too many candidates failed.
    """
    recipe.check()
    tools = Tools(recipe)
    taken = list(engine.run(items(recipe), tools, watch))
    outcomes = {outcome.candidate.id: outcome for outcome in taken}
    fit, rejected = filtered([o.candidate for o in taken if not o.stage], recipe)
    outcomes |= rejected
    outcomes |= {outcome.candidate.id: outcome for outcome in engine.run(fit, tools, watch)}
    return _finish(outcomes, tools)


def filtered(candidates: Sequence[Candidate], recipe: CurationRecipe) -> tuple[list[Candidate], dict[str, Outcome]]:
    """Those that pass the filters, of duplicates the best one, and of these the most aesthetic; and the rejected."""
    rejected: dict[str, Outcome] = {}
    left: dict[str, Candidate] = {}
    for candidate in candidates:
        try:
            filters.check(candidate.facts, recipe.filters)
            left[candidate.id] = candidate
        except Rejected as error:
            rejected[candidate.id] = Outcome(candidate, "filter", str(error))

    def reject(name: str, stage: str, reason: str) -> None:
        rejected[name] = Outcome(left.pop(name), stage, reason)

    scores = {name: c.scores["aesthetic"] for name, c in left.items() if "aesthetic" in c.scores}
    twins = filters.duplicates({name: c.facts for name, c in left.items()}, recipe.filters.distance, scores)
    for name, kept in twins.items():
        reject(name, "duplicate", f"it looks like {kept}.")
    scores = {name: score for name, score in scores.items() if name in left}
    if scores and recipe.filters.keep:
        for name in sorted(left.keys() - set(filters.best(scores, recipe.filters.keep))):
            reject(
                name,
                "aesthetic",
                f"its aesthetic score {scores[name]:.3g} is not among the best {recipe.filters.keep}.",
            )
    return list(left.values()), rejected


def _finish(outcomes: Mapping[str, Outcome], tools: Tools) -> Curated:
    """Select, split, and write what comes out."""
    recipe, folder = tools.recipe, tools.recipe.folder
    made = {name: o.candidate for name, o in outcomes.items() if not o.stage}
    figures = {name: c.scores[recipe.select.score] for name, c in made.items()}
    decisions = {}
    if (folder / DECISIONS).is_file():
        decisions = review.read_decisions(folder / DECISIONS, [o.candidate for o in outcomes.values()])
    chosen = scoring.select(
        figures, recipe.select.keep or None, recipe.select.threshold or None, recipe.select.near,
        {name: decision for name, decision in decisions.items() if name in figures},
    )  # fmt: skip
    places = scoring.split({name: stages.digest(made[name].foregrounds) for name in chosen.kept}, recipe.select.test)
    kept = {side: [made[name] for name in chosen.kept if places[name] == side] for side in ("train", "test")}
    final = {
        name: replace(o, stage="select", reason=_left_out(name, figures[name], chosen, decisions))
        if name in figures and name not in places
        else o
        for name, o in outcomes.items()
    }
    status = {name: o.stage or places[name] for name, o in final.items()}
    about = _about(recipe) | {"near": chosen.near, "cut": chosen.cut}
    output.write(folder, tools.store, kept, list(final.values()), about, recipe.out)
    page = folder / REVIEW
    review.write_review(page, tools.store, list(made.values()), figures, chosen.cut, chosen.near, decisions)
    counts = Counter(status.values())
    return Curated(status, dict(counts), chosen.near, [o for o in final.values() if o.failed])


def _left_out(name: str, figure: float, chosen: scoring.Selection, decisions: Mapping[str, str]) -> str:
    if name in decisions:
        return "a reviewer rejected it."
    if chosen.cut is None:
        return "reviewers accepted as many as are kept."
    return f"its score {figure:.4g} is beyond the cut at {chosen.cut:.4g}."


def _about(recipe: CurationRecipe) -> dict[str, Any]:
    """How the data were made, for their card."""

    def named(section: Any) -> str:
        return " ".join(filter(None, (section.kind, section.model or section.server.model)))

    return {
        "omnialpha": version("omnialpha"), "vlm": recipe.vlm.model, "edit": named(recipe.edit),
        "remove": named(recipe.remove),
        "maps": recipe.mask.derivation, "score": recipe.select.score, "side": recipe.side,
    }  # fmt: skip


# ---- what is still to do --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageEstimate:
    """todo: candidates that may come to the stage, not counting rejections to come. seconds, cost: of all of them by
    what was measured so far; None: nothing was.
    """

    stage: str
    known: int
    todo: int
    seconds: float | None
    cost: float | None


def estimate(recipe: CurationRecipe) -> list[StageEstimate]:
    """What a run would do, without doing it: nothing is loaded, asked or written.

    Raises:
        InputError: As `curate`.
    """
    recipe.check()
    tools = Tools(recipe)
    known, todo = Counter[str](), Counter[str]()
    ready: list[Candidate] = []
    for item in items(recipe):
        done = advance.known(item, tools)
        known.update(done.passed)
        todo.update((*done.missing, *(advance.LAYERS if done.missing else ())))  # it may come to all the others
        ready += [done.candidate] if not (done.missing or done.rejected) else []
    fit, _ = filtered(ready, recipe)
    for candidate in fit:
        done = advance.known(candidate, tools)
        known.update(done.passed)
        todo.update(done.missing)
    return [
        _estimated(name, known[name], todo[name], tools)
        for name in ("load", *stages.STAGES)
        if known[name] or todo[name]
    ]


def _estimated(name: str, known: int, todo: int, tools: Tools) -> StageEstimate:
    answers = tools.store.answers(name)
    if not answers:
        return StageEstimate(name, known, todo, None, None)
    recipe = tools.recipe
    service = stages.STAGES[name].service if name in stages.STAGES else ""
    abreast = {"vlm": min(recipe.vlm.parallel, recipe.run.workers), "": recipe.run.workers}.get(service, 1)
    seconds = todo * median(a["seconds"] for a in answers) / abreast
    if service == "vlm" and recipe.vlm.per_minute:
        seconds = max(seconds, todo * 60 / recipe.vlm.per_minute)
    usage = [a.get("usage", {}) for a in answers]
    prices = {"prompt_tokens": recipe.vlm.price_in, "completion_tokens": recipe.vlm.price_out}
    cost = todo * sum(price / 1e6 * fmean(u.get(key, 0) for u in usage) for key, price in prices.items())
    if service in ("edit", "remove"):
        cost = todo * getattr(recipe, service).server.price
    return StageEstimate(name, known, todo, seconds, cost)


def total(parts: Iterable[StageEstimate]) -> tuple[float | None, float]:
    """Seconds (None where a stage with work was never measured) and cost of all."""
    parts = [part for part in parts if part.todo]
    known = all(part.seconds is not None for part in parts)
    return (sum(part.seconds or 0 for part in parts) if known else None), sum(part.cost or 0 for part in parts)
