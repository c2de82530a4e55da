"""Candidates in shards, each done or not done as a whole: by threads of this machine, or by Ray Data on many.

A shard's outcomes are kept under the digest of what went in. What a killed run had finished of a shard is in the store,
and is found there when the shard is done again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omnialpha import ray_data
from omnialpha.curation import advance, stages
from omnialpha.curation.candidate import Candidate, Outcome, SourceItem
from omnialpha.curation.recipe import CurationRecipe
from omnialpha.curation.stages import Event
from omnialpha.curation.tools import Tools
from omnialpha.errors import InputError
from omnialpha.files import atomic_write

Job = SourceItem | Candidate
Watch = Callable[[str, Event, int], None]  # a stage, what became of candidates there, and of how many


def work(job: Job, tools: Tools, watch: advance.Watch) -> Outcome:
    """All stages of a phase: of an item those that need no model, of a candidate the others."""
    return advance.take(job, tools, watch) if isinstance(job, SourceItem) else advance.advance(job, tools, watch)


@dataclass(frozen=True)
class Shard:
    """Some of the jobs of a phase, in their order, and the file that says that they are done."""

    jobs: tuple[Job, ...]
    marker: Path

    def outcomes(self) -> list[Outcome] | None:
        """None: it is not done."""
        if not self.marker.is_file():
            return None
        return [Outcome.parse(values) for values in json.loads(self.marker.read_text(encoding="utf-8"))]

    def keep(self, outcomes: Sequence[Outcome]) -> None:
        """Mark it as done, unless some of it failed."""
        if not any(outcome.failed for outcome in outcomes):
            self.marker.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self.marker, json.dumps([outcome.data() for outcome in outcomes], ensure_ascii=False))


def shards(jobs: Sequence[Job], tools: Tools) -> list[Shard]:
    """Jobs in the shards of a recipe."""
    size, made = tools.recipe.run.shard, []
    for first in range(0, len(jobs), size):
        part = tuple(jobs[first : first + size])
        named = stages.digest([_identity(job) for job in part] + [stages.settings(tools)])
        made.append(Shard(part, tools.store.folder / "shards" / f"{named}.json"))
    return made


def _identity(job: Job) -> Any:
    if isinstance(job, Candidate):
        return job.data()
    return [job.id, job.source, job.licence, [stages.stamp(handle) for handle in stages.handles(job)], job.captions]


def run(jobs: Sequence[Job], tools: Tools, watch: Watch) -> Iterator[Outcome]:
    """The outcomes of jobs in their order; of what failed the reason.

    Raises:
        InputError: More failed than the recipe puts up with.
    """
    plan = shards(jobs, tools)
    engine = ENGINES[tools.recipe.run.engine]
    failures = 0
    for outcomes in engine(plan, tools, watch):
        failures += sum(outcome.failed for outcome in outcomes)
        if failures > tools.recipe.run.failures:
            worst = next(outcome for outcome in outcomes if outcome.failed)
            raise InputError(
                f"{failures} candidates failed, the last at {worst.stage}: {worst.reason} What is done is kept: mend "
                "that and run it again, or raise run.failures."
            )
        yield from outcomes


def _threads(plan: Sequence[Shard], tools: Tools, watch: Watch) -> Iterator[list[Outcome]]:
    with ThreadPoolExecutor(tools.recipe.run.workers) as pool:
        for shard in plan:
            outcomes = shard.outcomes()
            if outcomes is None:
                outcomes = _done(shard, tools, pool, lambda name, event: watch(name, event, 1))
            else:
                watch("shard", "known", len(outcomes))
            yield outcomes


def _done(shard: Shard, tools: Tools, pool: ThreadPoolExecutor, watch: advance.Watch) -> list[Outcome]:
    futures = [pool.submit(work, job, tools, watch) for job in shard.jobs]
    try:
        outcomes = [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()
    shard.keep(outcomes)
    return outcomes


# ---- Ray Data -------------------------------------------------------------------------------------------------------


class ShardWorker:
    """A process of Ray: shards one after the other, with threads of its own."""

    def __init__(self, recipe: CurationRecipe) -> None:
        self.recipe = recipe

    @cached_property
    def tools(self) -> Tools:
        return Tools(self.recipe)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """{"shard"} -> its number of candidates at each stage, by event; failures are whole outcomes."""
        shard: Shard = row["shard"]
        counts: dict[str, int] = {}

        def watch(name: str, event: Event) -> None:
            counts[f"{name} {event}"] = counts.get(f"{name} {event}", 0) + 1

        with ThreadPoolExecutor(self.recipe.run.workers) as pool:
            outcomes = _done(shard, self.tools, pool, watch)
        return {
            "number": row["number"],
            "counts": json.dumps(counts),
            "outcomes": json.dumps([o.data() for o in outcomes]),
        }


def _ray(plan: Sequence[Shard], tools: Tools, watch: Watch) -> Iterator[list[Outcome]]:
    """Shards that are not done by Ray Data, on the cluster of RAY_ADDRESS or on this machine. A shard whose block is
    lost or raises counts as failed, and the others go on.
    """
    todo = [k for k, shard in enumerate(plan) if not shard.marker.is_file()]
    made = dict(_blocks([(k, plan[k]) for k in todo], tools, watch)) if todo else {}
    for k, shard in enumerate(plan):
        outcomes = made.get(k) or shard.outcomes()
        if outcomes is None:
            lost = "its Ray block was lost; the log of the Ray worker says why."
            outcomes = [Outcome(_candidate(job), "ray", lost, failed=True) for job in shard.jobs]
            watch("ray", "failed", len(outcomes))
        elif k not in made:
            watch("shard", "known", len(outcomes))
        yield outcomes


def _candidate(job: Job) -> Candidate:
    return job if isinstance(job, Candidate) else stages.start(job)


def _blocks(todo: Sequence[tuple[int, Shard]], tools: Tools, watch: Watch) -> Iterator[tuple[int, list[Outcome]]]:
    settings = tools.recipe.run
    ray_data.start("run.engine='ray'")
    rows = [{"number": k, "shard": shard} for k, shard in todo]
    for row in ray_data.map_rows(rows, ShardWorker, (tools.recipe,), settings.actors, settings.gpus):
        for named, count in json.loads(row["counts"]).items():
            name, event = named.rsplit(" ", 1)
            watch(name, event, count)
        yield int(row["number"]), [Outcome.parse(values) for values in json.loads(row["outcomes"])]


Engine = Callable[[Sequence[Shard], Tools, Watch], Iterator[list[Outcome]]]
ENGINES: dict[str, Engine] = {"threads": _threads, "ray": _ray}
