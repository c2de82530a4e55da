"""Many small pieces of work on a CPU, a thread to a piece in place of all threads to each.

Threads that compute a piece together wait for each other after every operation, which costs most where operations are
short and other programs hold a core. They also wait awake: after an operation that torch shared out, its threads look
for the next one for some milliseconds, on the cores that the threads here need. So what lies between two calls of
`share` is better shared by it too, however short.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from threading import Barrier
from typing import TypeVar

import torch

J = TypeVar("J")


def share(jobs: Sequence[J], work: Callable[[Iterable[J]], None]) -> None:
    """Have all jobs done by `work`, which is given those of one thread. Without gradients; fewer jobs than threads
    stay in this thread, where torch uses all of them for each.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(jobs) < threads:
        work(jobs)
        return
    waiting, inference = deque(jobs), torch.is_inference_mode_enabled()

    def run() -> None:
        with torch.inference_mode(inference), torch.no_grad():  # modes are a thread's own
            work(_taken(waiting))

    for done in [_pool(threads).submit(run) for _ in range(threads)]:
        done.result()


def _taken(waiting: deque[J]) -> Iterator[J]:
    with suppress(IndexError):
        while True:
            yield waiting.popleft()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """So many threads, in each of which torch uses one."""
    pool, met = ThreadPoolExecutor(threads, "omnialpha-strips"), Barrier(threads)

    def begin() -> None:
        torch.get_num_threads()  # torch sets a thread's number when it is first asked for: not after the next line
        torch.set_num_threads(1)
        met.wait()

    for done in [pool.submit(begin) for _ in range(threads)]:
        done.result()
    torch.set_num_threads(threads)  # what threads that are made later start with is the last number set in any
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child process has none of the threads,
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))  # nor torch's, and would wait for them
