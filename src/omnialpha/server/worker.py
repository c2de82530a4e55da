"""The thread of a device: it runs jobs one after the other, or several equal ones together."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Sequence
from time import monotonic

from torch import OutOfMemoryError

from omnialpha.errors import InputError
from omnialpha.server.engine import Engine
from omnialpha.server.jobs import JobQueue, ServedJob
from omnialpha.server.refusals import Refusal, as_refusal
from omnialpha.server.results import keep_result

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
        orders = [job.order for job in jobs if job.order]
        try:
            stacks = self.engine.run(orders, self._watch(jobs))
            for job, order, stack in zip(jobs, orders, stacks, strict=True):
                made = keep_result(order.finish(stack), order.settings(self.engine.card), order.source)
                self.queue.finish(job, made)
        except Stopped:
            self._fail(jobs, Refusal("cancelled", "the job was cancelled."))
        except (InputError, OutOfMemoryError, MemoryError) as error:
            if len(jobs) > 1:  # whose mistake it is, or how many fit, shows when each runs alone
                for job in jobs:
                    self._run([job])
                return
            memory = f"{self.engine.device} has too little memory for {jobs[0].task}: make the picture smaller."
            self._fail(jobs, as_refusal(error) if isinstance(error, InputError) else Refusal("too_large", memory))
        except Exception as error:  # noqa: BLE001 - a fault of ours ends this job, not the server, and is logged
            frames = "".join(traceback.format_tb(error.__traceback__))  # without its message, which may hold a prompt
            log.error("fault in %s: %s\n%s", jobs[0].task, type(error).__name__, frames)
            self.on_fault()
            self._fail(jobs, Refusal("fault", "the job failed by a fault of the server, which has logged it."))

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
