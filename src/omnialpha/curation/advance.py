"""One item or candidate through the stages: answers that are known from the store, the others made and kept there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from omnialpha.curation.candidate import Candidate, Outcome, Rejected, SourceItem
from omnialpha.curation.stages import STAGES, Event, Fields, Usage, load, load_key, start
from omnialpha.curation.tools import Tools
from omnialpha.errors import InputError
from omnialpha.evaluation.judge.endpoint import Unanswered

Watch = Callable[[str, Event], None]  # told of a stage what became of it


def take(item: SourceItem, tools: Tools, watch: Watch) -> Outcome:
    """An item of a source as a candidate, with its aesthetic score where one is asked for."""
    made = _step("load", load_key(item, tools), start(item), tools, partial(load, item), watch)
    return made if made.stage or not tools.aesthetic else advance(made.candidate, tools, watch, ("aesthetic",))


LAYERS = tuple(name for name in STAGES if name != "aesthetic")


def advance(candidate: Candidate, tools: Tools, watch: Watch, stages: Sequence[str] = LAYERS) -> Outcome:
    """A candidate through the stages, as far as it goes."""
    made = Outcome(candidate)
    for name in stages:
        stage = STAGES[name]
        if not any(getattr(made.candidate, field) for field in stage.unless):
            now, key = made.candidate, stage.key(made.candidate, tools)
            made = _step(name, key, now, tools, lambda tools, usage: stage.run(now, tools, usage), watch)  # noqa: B023
        if made.stage:
            break
    return made


@dataclass(frozen=True)
class Progress:
    """How far a candidate comes by what the store has. passed: stages. missing: those that were never asked."""

    candidate: Candidate
    passed: tuple[str, ...]
    missing: tuple[str, ...]
    rejected: bool


def known(job: SourceItem | Candidate, tools: Tools) -> Progress:
    """Follow the answers in the store as far as they go; nothing is made."""
    if isinstance(job, SourceItem):
        candidate, left = start(job), ["load", *(["aesthetic"] if tools.recipe.filters.aesthetic else [])]
    else:
        candidate, left = job, list(LAYERS)
    passed: list[str] = []
    while left:
        name = left[0]
        if name != "load" and any(getattr(candidate, field) for field in STAGES[name].unless):
            left.pop(0)
            continue
        key = (
            load_key(job, tools)
            if isinstance(job, SourceItem) and name == "load"
            else STAGES[name].key(candidate, tools)
        )
        answer = tools.store.answer(name, key)
        if answer is None:
            return Progress(candidate, tuple(passed), tuple(left), False)
        passed.append(left.pop(0))
        if "rejected" in answer:
            return Progress(candidate, tuple(passed), (), True)
        candidate = candidate.extended(answer["fields"])
    return Progress(candidate, tuple(passed), (), False)


def _step(
    name: str, key: str, candidate: Candidate, tools: Tools, run: Callable[[Tools, Usage], Fields], watch: Watch
) -> Outcome:
    """One stage: its answer from the store, or made and kept there."""
    answer, event = tools.store.answer(name, key), "known"
    if answer is None:
        usage = Usage()
        try:
            with tools.turn(STAGES[name].service if name in STAGES else ""):
                began = time.monotonic()
                answer = {"fields": run(tools, usage)}
                seconds = time.monotonic() - began
        except Rejected as error:
            answer, seconds = {"rejected": str(error)}, time.monotonic() - began
        except (Unanswered, InputError) as error:
            watch(name, "failed")
            return Outcome(candidate, name, str(error), failed=True)
        tools.store.keep(name, key, answer | {"seconds": round(seconds, 4), "usage": usage})
        event = "made"
    if "rejected" in answer:
        watch(name, "rejected")
        return Outcome(candidate, name, answer["rejected"])
    watch(name, event)  # type: ignore[arg-type]
    return Outcome(candidate.extended(answer["fields"]))
