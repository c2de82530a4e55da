"""The limits of a server and how it treats requests."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from omnialpha.errors import InputError
from omnialpha.limits import MAX_PIXELS

MEGA = 1_000_000


@dataclass(frozen=True)
class ServerConfig:
    """Limits and permissions; each is an option of `omnialpha serve`, its note the help."""

    keys: Annotated[Path | None, "file of API keys, hashed; without it anybody who reaches the server may use it"] = (
        None
    )
    allow_urls: Annotated[bool, "fetch pictures that a request names by URL, from public addresses only"] = False
    queue: Annotated[int, "jobs that may wait; more are refused with 429"] = 32
    jobs_per_key: Annotated[int, "unfinished jobs of one key, or of one address where there are no keys"] = 8
    max_megabytes: Annotated[float, "of one request"] = 64.0
    total_megabytes: Annotated[float, "of all requests that are being read or answered; more are refused with 429"] = (
        1000.0
    )
    max_megapixels: Annotated[float, "of all pictures of one request together"] = 40.0
    queue_megapixels: Annotated[float, "of all pictures that wait; each takes 16 MB a megapixel"] = 200.0
    job_seconds: Annotated[float, "that a job may run"] = 600.0
    upload_seconds: Annotated[float, "that sending a request may take"] = 120.0
    fetch_seconds: Annotated[float, "that fetching a picture by URL may take"] = 15.0
    max_wait: Annotated[float, "seconds that `Prefer: wait` may ask for"] = 120.0
    result_megabytes: Annotated[float, "of results that are kept; the oldest go first"] = 1000.0
    result_seconds: Annotated[float, "that a result is kept"] = 3600.0
    hosts: Annotated[
        str | None, "names that requests may come to, with commas; any if left out, but on a loopback address"
    ] = None
    batch: Annotated[int, "equal requests that are run together; the last digit of a value may then differ"] = 1
    lazy: Annotated[bool, "load the networks when a job first needs them; cut-outs by the finder do not"] = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and not 0 < value < 1e12:
                raise InputError(f"{field.name}={value} is out of range: use a number above 0.")
        if self.max_pixels > MAX_PIXELS:
            most = f"{MAX_PIXELS / MEGA:.0f}"
            raise InputError(
                f"max_megapixels={self.max_megapixels:g} is more than a picture may have: use {most} at most."
            )

    @property
    def host_names(self) -> frozenset[str] | None:
        """Names that requests may come to, without ports; None: any."""
        return None if self.hosts is None else frozenset(name.strip().lower() for name in self.hosts.split(","))

    @property
    def max_bytes(self) -> int:
        """Of one request."""
        return round(self.max_megabytes * MEGA)

    @property
    def max_pixels(self) -> int:
        """Of the pictures of one request."""
        return round(self.max_megapixels * MEGA)
