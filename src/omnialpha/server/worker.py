"""The thread of a device: it runs jobs one after the other, or several equal ones together."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from torch import OutOfMemoryError

from omnialpha.errors import InputError
from omnialpha.server.engine import Engine
from omnialpha.server.jobs import JobQueue, ServedJob
from omnialpha.server.refusals import Refusal, as_refusal
from omnialpha.server.results import JobResult, keep_result

if TYPE_CHECKING:
    from omnialpha.io.layers import LayerStack
    from omnialpha.server.calls import TaskCall

T = TypeVar("T")
log = logging.getLogger("omnialpha.server")


class Stopped(Exception):
    """Every job of a run was cancelled."""


class DeviceWorker(threading.Thread):
    """Takes jobs from the queue until it is closed. What has begun is finished."""

    def __init__(self, queue: JobQueue, engine: Engine, on_fault: Callable[[], None] = lambda: None) -> None:
        super().__init__(name=f"omnialpha-{engine.device}", daemon=True)
        self.queue, self.engine, self.on_fault = queue, engine, on_fault
        self.ready = False
        self.failure: InputError | None = None  # why the model could not be loaded

    def run(self) -> None:
        try:
            self.engine.prepare()
        except InputError as error:
            self.failure = error
            log.error("the model cannot be loaded: %s", error)
            self.queue.close()
            return
        self.ready = True
        while jobs := self.queue.take():
            self._run(jobs)
        self.ready = False

    def _run(self, jobs: Sequence[ServedJob]) -> None:
        calls = [job.call for job in jobs if job.call]
        stacks = self._attempt(jobs, partial(self.engine.run, calls, self._watch(jobs)))
        for job, call, stack in zip(jobs, calls, stacks or (), strict=stacks is not None):
            result = self._attempt([job], partial(self._keep, call, stack))
            if result:
                self.queue.finish(job, result)

    def _keep(self, call: TaskCall, stack: LayerStack) -> JobResult:
        return keep_result(call.finish(stack)[0], call.settings(self.engine.card), call.source)

    def _attempt(self, jobs: Sequence[ServedJob], work: Callable[[], T]) -> T | None:
        """What work for jobs returns. Where it raises, None: the jobs have then failed, or each has run alone."""
        try:
            return work()
        except Stopped:
            self._fail(jobs, Refusal("cancelled", "the job was cancelled."))
        except Refusal as refusal:
            self._fail(jobs, refusal)
        except (InputError, OutOfMemoryError, MemoryError) as error:
            memory = f"{self.engine.device} has too little memory for {jobs[0].task}: make the picture smaller."
            if len(jobs) == 1:
                known = isinstance(error, InputError)
                self._fail(jobs, as_refusal(error) if known else Refusal("too_large", memory))  # type: ignore[arg-type]
                return None
            for job in jobs:  # whose mistake it is, or how many fit, shows when each runs alone
                self._run([job])
        except Exception as error:  # noqa: BLE001 - a fault of ours ends this job, not the server, and is logged
            frames = "".join(traceback.format_tb(error.__traceback__))  # without its message, which may hold a prompt
            log.error("fault in %s: %s\n%s", jobs[0].task, type(error).__name__, frames)
            self.on_fault()
            self._fail(jobs, Refusal("fault", "the job failed by a fault of the server, which has logged it."))
        return None

    def _watch(self, jobs: Sequence[ServedJob]) -> Callable[[int, int], None]:
        seconds = self.queue.config.job_seconds
        deadline = monotonic() + seconds

        def watch(step: int, total: int) -> None:
            for job in jobs:
                self.queue.progress(job, step, total)
            if all(job.cancelled for job in jobs):
                raise Stopped
            if step < total and monotonic() > deadline:
                late = f"the job was stopped after {seconds:g} s, at step {step} of {total}"
                raise Refusal("too_slow", f"{late}: use fewer steps, or a smaller picture.")

        return watch

    def _fail(self, jobs: Sequence[ServedJob], failure: Refusal) -> None:
        for job in jobs:
            self.queue.finish(job, failure=failure)
