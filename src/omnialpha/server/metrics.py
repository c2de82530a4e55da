"""Figures for Prometheus: how many, how long, how full; never what a picture holds or who sent it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from omnialpha.server.jobs import JobQueue, ServedJob

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
MEDIA = CONTENT_TYPE_LATEST


class ServerMetrics:
    """The figures of one server."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        ProcessCollector(registry=own)
        PlatformCollector(registry=own)
        self.requests = Counter("omnialpha_requests", "Requests", ("method", "route", "status"), registry=own)
        self.answer = Histogram(
            "omnialpha_request_seconds", "Until answered", ("route",), registry=own, buckets=SECONDS
        )
        self.jobs = Counter("omnialpha_jobs", "Jobs that ended", ("task", "state"), registry=own)
        self.waited = Histogram("omnialpha_wait_seconds", "From sent to begun", registry=own, buckets=SECONDS)
        self.ran = Histogram("omnialpha_job_seconds", "From begun to ended", ("task",), registry=own, buckets=SECONDS)
        self.faults = Counter("omnialpha_faults", "Jobs that failed by a fault of the server", registry=own)
        self._gauges = {
            name: Gauge(f"omnialpha_{name}", words, registry=own)
            for name, words in (
                ("jobs_waiting", "Jobs that wait"),
                ("jobs_running", "Jobs that run"),
                ("result_bytes", "Memory of kept results"),
            )
        }

    def ended(self, job: ServedJob) -> None:
        """Count a job that has ended."""
        self.jobs.labels(job.task, str(job.state)).inc()
        if job.began:
            self.waited.observe(job.began - job.made)
            self.ran.labels(job.task).observe(job.ended - job.began)

    def text(self, queue: JobQueue) -> bytes:
        """All figures in the format of Prometheus."""
        values = {"jobs_waiting": len(queue.waiting), "jobs_running": len(queue.running)}
        for name, value in (values | {"result_bytes": queue.result_bytes()}).items():
            self._gauges[name].set(value)
        return generate_latest(self.registry)
