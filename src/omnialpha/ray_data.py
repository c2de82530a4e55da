"""Rows through workers of Ray Data, on the cluster of RAY_ADDRESS or on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from omnialpha.errors import InputError

MOST_BLOCKS = 4096


def map_rows(
    rows: Sequence[dict[str, Any]], worker: type, arguments: tuple[Any, ...], workers: int, gpus: float | None
) -> Iterator[dict[str, Any]]:
    """What workers make of rows, as it comes; a block that is lost is left out, and the others go on.

    Args:
        rows: What `worker(*arguments)` is called with, a block each.
        worker, arguments: A class whose instances take a row and return one, and what it is made with in each process.
        workers, gpus: How many processes, and the GPUs of each.

    Raises:
        RayError: No worker is left.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.max_errored_blocks, context.enable_progress_bars = len(rows), False
    given = ray.data.from_items(list(rows), override_num_blocks=min(len(rows), MOST_BLOCKS))
    made = given.map(worker, fn_constructor_args=arguments, concurrency=workers, num_gpus=gpus or None)
    yield from made.iter_rows()


def start(option: str) -> Any:
    """The package ray, running. option: what asked for it, for the message. InputError where it is not installed."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(f"{option} needs Ray Data ({error}): pip install 'omnialpha[ray]', or use threads.") from None
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    return ray
