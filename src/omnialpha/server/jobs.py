"""Jobs and their queue: what waits, what runs, what is done, and what is kept of it."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic
from typing import TYPE_CHECKING, Any

from omnialpha.server.config import ServerConfig
from omnialpha.server.refusals import Refusal
from omnialpha.server.results import JobResult

if TYPE_CHECKING:
    from omnialpha.server.calls import TaskCall

MAX_ENDED = 10_000  # jobs without a result that are still known
SWEEP = 30.0  # seconds between looks for results that are too old, while nothing else happens
AGAIN = 5  # seconds after which a refused request may be sent again


class JobState(StrEnum):
    """The life of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


@dataclass(eq=False)
class ServedJob:
    """A request that was taken. Only `JobQueue` and its worker change it.

    Attributes:
        owner: The key or the address that it belongs to; nobody else sees it.
        call: What is asked for; None once it has ended, so that its pictures are freed.
        failure: Why it failed.
        result: What it made, as long as that is kept.
        listeners: Called, from any thread, after every change.
    """

    id: str
    owner: str
    task: str
    pixels: int
    call: TaskCall | None
    state: JobState = JobState.QUEUED
    step: int = 0
    total: int = 0
    failure: Refusal | None = None
    result: JobResult | None = None
    made: float = field(default_factory=monotonic)
    began: float = 0.0
    ended: float = 0.0
    cancelled: bool = False
    listeners: list[Callable[[], None]] = field(default_factory=list)

    @property
    def kind(self) -> Hashable:
        """See `TaskCall.kind`."""
        return self.call.kind if self.call else None

    def changed(self) -> None:
        for listener in tuple(self.listeners):
            listener()


class JobQueue:
    """The jobs of a server. All methods may be called from any thread."""

    def __init__(self, config: ServerConfig, on_end: Callable[[ServedJob], None] = lambda job: None) -> None:
        self.config, self.on_end = config, on_end
        self.waiting: deque[ServedJob] = deque()
        self.running: set[ServedJob] = set()
        self.jobs: OrderedDict[str, ServedJob] = OrderedDict()
        self.closing = False
        self._swept = 0.0
        self._changed = threading.Condition(threading.RLock())

    # ---- from requests -----------------------------------------------------------------------------------------

    def submit(self, owner: str, calls: list[TaskCall]) -> list[ServedJob]:
        """Take the jobs of one request, all or none. Refusal where there is no room for them."""
        pixels = sum(call.pixels for call in calls)
        with self._changed:
            if self.closing:
                raise Refusal("unavailable", "the server is shutting down: send the request again later.", AGAIN)
            own = sum(job.owner == owner for job in (*self.waiting, *self.running))
            if own + len(calls) > self.config.jobs_per_key:
                most = f"{self.config.jobs_per_key} unfinished jobs"
                raise Refusal("rate_limit_exceeded", f"you have {own} of {most}: wait for one of them.", AGAIN)
            waiting = sum(job.pixels for job in self.waiting)
            full = waiting and waiting + pixels > self.config.queue_megapixels * 1e6
            if full or len(self.waiting) + len(calls) > self.config.queue:
                reason = f"the queue is full, with {len(self.waiting)} jobs"
                raise Refusal("rate_limit_exceeded", f"{reason}: send the request again later.", AGAIN)
            jobs = [ServedJob(secrets.token_urlsafe(16), owner, o.task, o.pixels, o) for o in calls]
            self.jobs |= {job.id: job for job in jobs}
            self.waiting.extend(jobs)
            self._changed.notify_all()
        return jobs

    def find(self, id: str, owner: str) -> ServedJob:
        """A job of an owner. Refusal where there is none."""
        with self._changed:
            if monotonic() - self._swept > 1:
                self._forget()
            job = self.jobs.get(id)
        if job is None or job.owner != owner:
            raise Refusal("not_found", f"there is no job {id[:40]!r}: it never was, was removed, or is long over.")
        return job

    def position(self, job: ServedJob) -> int | None:
        """How many jobs are before it; None where it does not wait."""
        with self._changed:
            return self.waiting.index(job) if job in self.waiting else None

    def cancel(self, job: ServedJob, remove: bool = True) -> None:
        """Cancel a job, between sampling steps where it runs, and forget it where `remove`."""
        with self._changed:
            job.cancelled = True
            if job in self.waiting:
                self.waiting.remove(job)
                self._end(job, JobState.CANCELLED)
            if remove:
                self.jobs.pop(job.id, None)
                job.result = None

    def close(self) -> None:
        """Refuse new jobs and give up those that wait; what runs goes on."""
        with self._changed:
            self.closing = True
            while self.waiting:
                job = self.waiting.popleft()
                job.failure = Refusal(
                    "unavailable", "the server was shut down before the job began: send it again.", AGAIN
                )
                self._end(job, JobState.FAILED)
            self._changed.notify_all()

    # ---- from the worker ---------------------------------------------------------------------------------------

    def take(self) -> list[ServedJob]:
        """Wait for the next job, and take with it those of the same kind, up to the size of a batch.

        Returns:
            The jobs, which now run; none where the queue is closed.
        """
        with self._changed:
            while not self.waiting:
                if self.closing:
                    return []
                self._changed.wait(SWEEP)
                self._forget()
            first = self.waiting[0]
            same = [job for job in self.waiting if job.kind == first.kind][: self.config.batch]
            for job in same:
                self.waiting.remove(job)
                job.state, job.began = JobState.RUNNING, monotonic()
                self.running.add(job)
            others = tuple(self.waiting)
        for job in (*same, *others):  # the positions of the others have changed as well
            job.changed()
        return same

    def progress(self, job: ServedJob, step: int, total: int) -> None:
        """A sampling step of a job is done."""
        job.step, job.total = step, total
        job.changed()

    def finish(self, job: ServedJob, result: JobResult | None = None, failure: Refusal | None = None) -> None:
        """A running job has ended: with a result, a failure, or by being cancelled."""
        with self._changed:
            self.running.discard(job)
            if job.cancelled:
                self._end(job, JobState.CANCELLED)
                return
            job.result, job.failure = result, failure
            self._end(job, JobState.FAILED if failure else JobState.DONE)
            self._forget()

    def _end(self, job: ServedJob, state: JobState) -> None:
        job.state, job.ended, job.call = state, monotonic(), None
        if job.id in self.jobs:
            self.jobs.move_to_end(job.id)  # the oldest result is the first
        self.on_end(job)
        job.changed()

    def _forget(self) -> None:
        """Let go of results that are too old, or too many, and of jobs that ended long ago."""
        now = self._swept = monotonic()
        ended = [job for job in self.jobs.values() if job.state in ENDED]
        over = self.result_bytes() - self.config.result_megabytes * 1e6
        for job in ended:
            if job.result and not job.listeners and (over > 0 or now - job.ended > self.config.result_seconds):
                over -= job.result.weight
                job.result = None
            if job.result is None and now - job.ended > 2 * self.config.result_seconds:
                del self.jobs[job.id]
        without = [job for job in ended if job.result is None and job.id in self.jobs]
        for job in without[: max(len(without) - MAX_ENDED, 0)]:
            del self.jobs[job.id]

    def result_bytes(self) -> int:
        """Memory that kept results take."""
        with self._changed:
            return sum(job.result.weight for job in self.jobs.values() if job.result)


async def wait_for_change(job: ServedJob, seen: Any, look: Callable[[], Any], timeout: float) -> Any:
    """Wait until `look()` is something else than `seen`, or the time is over. Returns what it is then."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(event.set)

    job.listeners.append(wake)
    try:
        async with asyncio.timeout(max(timeout, 0)):
            while (now := look()) == seen:
                event.clear()
                if look() == seen:
                    await event.wait()
            return now
    except TimeoutError:
        return look()
    finally:
        job.listeners.remove(wake)
