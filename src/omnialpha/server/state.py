"""What the routes of one server share."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from omnialpha.errors import InputError
from omnialpha.server.calls import TaskCall
from omnialpha.server.config import ServerConfig
from omnialpha.server.engine import Engine
from omnialpha.server.fetching import Resolver, fetch, resolve_host
from omnialpha.server.jobs import ENDED, JobQueue, JobState, ServedJob, wait_for_change
from omnialpha.server.keys import ApiKey, ApiKeys
from omnialpha.server.metrics import ServerMetrics
from omnialpha.server.refusals import Refusal
from omnialpha.server.results import JobResult
from omnialpha.server.worker import DeviceWorker

LOOK = 1.0  # seconds between looks whether a client that waits is still there
FETCHING = 8  # URLs that are fetched at once, so that slow ones leave threads to others
DECODING = 2  # requests whose pictures are decoded at once, which bounds the memory for it


class ServerState:
    """Settings, keys, queue, workers and figures."""

    def __init__(self, config: ServerConfig, engines: Sequence[Engine], resolver: Resolver = resolve_host) -> None:
        self.config, self.card, self.resolver = config, engines[0].card, resolver
        self.keys = ApiKeys.read(config.keys) if config.keys else None
        self.metrics = ServerMetrics()
        self.queue = JobQueue(config, self.metrics.ended)
        self.workers = [DeviceWorker(self.queue, engine, self.metrics.faults.inc) for engine in engines]
        self.decoding, self.fetching = asyncio.Semaphore(DECODING), asyncio.Semaphore(FETCHING)

    @property
    def ready(self) -> bool:
        """Whether jobs are taken and a worker can run them."""
        return not self.queue.closing and any(worker.ready for worker in self.workers)

    @property
    def failures(self) -> list[InputError]:
        """Why workers could not load the model."""
        return [worker.failure for worker in self.workers if worker.failure]

    def key_of(self, request: Request) -> ApiKey | None:
        """The key of a request; None where the server has no keys. Refusal for one that is missing or not known."""
        if self.keys is None:
            return None
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        given = request.headers.get("x-api-key") or (bearer.strip() if scheme.lower() == "bearer" else None)
        return self.keys.find(given)

    def owner_of(self, request: Request) -> str:
        """Whose jobs a request may see: those of its key, or of its address where there are no keys."""
        key = self.key_of(request)
        return f"key {key.name}" if key else f"address {request.client.host if request.client else ''}"

    def submit(self, request: Request, calls: list[TaskCall]) -> list[ServedJob]:
        """Queue the calls of a request; Refusal where there is no room or no credit for them."""
        owner, key = self.owner_of(request), self.key_of(request)
        if key and self.keys:
            self.keys.spend(key, len(calls))
        try:
            return self.queue.submit(owner, calls)
        except Refusal:
            if key and self.keys:
                self.keys.give_back(key, len(calls))
            raise

    async def fetch(self, url: str) -> bytes:
        """The picture at a URL that a request names."""
        if not self.config.allow_urls:
            raise Refusal(
                "forbidden", "pictures are not fetched by URL here: send the file, or start with --allow-urls."
            )
        most, seconds = self.config.max_bytes, self.config.fetch_seconds
        async with self.fetching:
            return await run_in_threadpool(fetch, url, max_bytes=most, seconds=seconds, resolver=self.resolver)

    async def finished(self, request: Request, job: ServedJob, seconds: float | None = None) -> bool:
        """Wait until a job has ended, for `seconds` at most, or as long as the client does.

        Returns:
            Whether it has ended. Where the client is gone, the job is cancelled.
        """
        loop = asyncio.get_running_loop()
        until = math.inf if seconds is None else loop.time() + seconds
        while not await wait_for_change(job, False, lambda: job.state in ENDED, min(LOOK, until - loop.time())):
            if await request.is_disconnected():
                self.queue.cancel(job)
                return False
            if loop.time() >= until:
                return False
        return True

    async def answers(self, request: Request, calls: list[TaskCall]) -> list[JobResult]:
        """The results of calls whose client waits for them; nothing of them is kept. Refusal where one fails."""
        jobs = self.submit(request, calls)
        try:
            results = []
            for job in jobs:
                await self.finished(request, job)
                results.append(result_of(job))
            return results
        finally:
            for job in jobs:
                self.queue.cancel(job)


async def state_of(request: Request) -> ServerState:
    """The state of the server that a request came to. Refusal for a key that is missing or not known."""
    state: ServerState = request.app.state.server
    state.key_of(request)
    return state


State = Annotated[ServerState, Depends(state_of)]


def result_of(job: ServedJob) -> JobResult:
    """The result of a job. Refusal where it has failed, has not ended, or is not kept any more."""
    if job.failure:
        raise job.failure
    if job.state is JobState.CANCELLED or job.cancelled:
        raise Refusal("cancelled", "the job was cancelled.")
    if job.state is not JobState.DONE:
        raise Refusal("conflict", f"the job is {job.state}: ask again when it is done.", 1)
    if job.result is None:
        raise Refusal("gone", "the result is not kept any more: send the request again.")
    return job.result
