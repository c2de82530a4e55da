"""What the routes of one server share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from omnialpha.errors import InputError
from omnialpha.server.config import ServerConfig
from omnialpha.server.engine import Engine
from omnialpha.server.fetching import Resolver, fetch, resolve_host
from omnialpha.server.jobs import ENDED, JobQueue, JobState, ServedJob, wait_for_change
from omnialpha.server.keys import ApiKey, ApiKeys
from omnialpha.server.metrics import ServerMetrics
from omnialpha.server.orders import Order
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

    def submit(self, request: Request, orders: list[Order]) -> list[ServedJob]:
        """Queue the orders of a request; Refusal where there is no room or no credit for them."""
        owner, key = self.owner_of(request), self.key_of(request)
        if key and self.keys:
            self.keys.spend(key, len(orders))
        try:
            return self.queue.submit(owner, orders)
        except Refusal:
            if key and self.keys:
                self.keys.give_back(key, len(orders))
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
        until = None if seconds is None else loop.time() + seconds
        while not await wait_for_change(job, False, lambda: job.state in ENDED, _next_look(until, loop.time())):
            if await request.is_disconnected():
                self.queue.cancel(job)
                return False
            if until is not None and loop.time() >= until:
                return False
        return True

    async def answers(self, request: Request, orders: list[Order]) -> list[JobResult]:
        """The results of orders whose client waits for them; nothing of them is kept. Refusal where one fails."""
        jobs = self.submit(request, orders)
        try:
            results = []
            for job in jobs:
                await self.finished(request, job)
                results.append(result_of(job))
            return results
        finally:
            for job in jobs:
                self.queue.cancel(job)


def _next_look(until: float | None, now: float) -> float:
    return LOOK if until is None else min(LOOK, until - now)


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
