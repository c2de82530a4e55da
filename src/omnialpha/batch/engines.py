"""Pictures done by threads around one model, by processes, or by Ray Data; rows come as pictures are done."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import cached_property
from multiprocessing.connection import wait as wait_for
from typing import Any

from omnialpha import ray_data
from omnialpha.batch.ledger import Entry
from omnialpha.batch.work import Item, Work, Worker

LOOK = 0.2  # seconds between looks at whether it was stopped
AHEAD = 2  # pictures a worker that wait at its door
Run = Callable[[Sequence[Item]], Iterator[Entry]]


def failure(item: Item, error: BaseException) -> Entry:
    """The row of a picture that raised what no picture should."""
    return Entry(item.name, "", error=" ".join(f"{type(error).__name__}: {error}".split()))


def drain(
    pool: Executor, do: Callable[[Item], Entry], items: Iterable[Item], ahead: int, stop: threading.Event
) -> Iterator[Entry]:
    """Rows of items in a pool, at most `ahead` of them handed to it at a time.

    Once `stop` is set no more are begun, and those in work are finished. A BrokenProcessPool holds the items that were
    in the pool when one of its processes died, and those left.
    """
    left, running = iter(items), dict[Future[Entry], Item]()
    while True:
        while len(running) < ahead and not stop.is_set() and (item := next(left, None)):
            try:
                running[pool.submit(do, item)] = item
            except BrokenProcessPool:
                raise BrokenProcessPool([*running.values(), item], left) from None
        if stop.is_set():
            running = {future: item for future, item in running.items() if not future.cancel()}
        if not running:
            return
        done, _ = wait(running, LOOK, FIRST_COMPLETED)
        if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
            kept = [future.result() for future in done if future.exception() is None]
            yield from kept
            names = {row.input for row in kept}
            raise BrokenProcessPool([item for item in running.values() if item.name not in names], left)
        for future in done:
            item, error = running.pop(future), future.exception()
            yield failure(item, error) if error else future.result()


# ---- threads --------------------------------------------------------------------------------------------------------


@contextmanager
def threads(worker: Worker, workers: int, stop: threading.Event) -> Iterator[Run]:
    """Threads around one model of this process: while it runs for one picture, others are read and written."""
    import torch

    before = torch.get_num_threads()
    worker.prepare()
    if worker.finder_alone:  # as in the processes, so that sums are the same
        torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers) as pool:
            yield lambda items: drain(pool, worker, items, AHEAD * workers, stop)
    finally:
        torch.set_num_threads(before)


# ---- processes ------------------------------------------------------------------------------------------------------

_OWN: list[Worker] = []  # of a process of a pool


def _begin(work: Work) -> None:
    """In a new process: one thread, Ctrl-C left to the parent, and an end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (wait_for([parent.sentinel]), os._exit(1)), daemon=True).start()
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)
    _OWN.append(Worker(work))


def _do(item: Item) -> Entry:
    return _OWN[0](item)


@contextmanager
def processes(worker: Worker, workers: int, stop: threading.Event) -> Iterator[Run]:
    """Processes that each have a finder. One that dies takes no picture with it but its own."""
    work = worker.work
    worker.prepare()  # so that what is wrong with it is said once
    with ExitStack() as stack:

        def pool(count: int) -> ProcessPoolExecutor:
            context = multiprocessing.get_context("spawn")
            return stack.enter_context(ProcessPoolExecutor(count, context, _begin, (work,)))

        def run(items: Sequence[Item]) -> Iterator[Entry]:
            left: Iterable[Item] = items
            while True:
                try:
                    yield from drain(pools[-1], _do, left, AHEAD * workers, stop)
                    return
                except BrokenProcessPool as broken:
                    doubtful, left = broken.args
                    yield from alone(doubtful)
                    pools.append(pool(workers))

        def alone(items: Sequence[Item]) -> Iterator[Entry]:
            for item in items:
                try:
                    yield from drain(pool(1), _do, [item], 1, stop)
                except BrokenProcessPool:
                    why = f"the process that worked on {item.name} was killed, most likely for want of memory."
                    yield Entry(item.name, "", error=f"{why[:-1]}: make it smaller, or use fewer --workers.")

        pools = [pool(workers)]
        try:
            yield run
        except BaseException:  # stopped at once: the pools do not wait for their pictures
            for child in multiprocessing.active_children():
                child.kill()
            raise


# ---- Ray Data -------------------------------------------------------------------------------------------------------


class RayWorker:
    """A process of Ray."""

    def __init__(self, work: Work) -> None:
        self.work = work

    @cached_property
    def worker(self) -> Worker:
        import torch

        made = Worker(self.work)
        made.prepare()
        if made.finder_alone:
            torch.set_num_threads(1)
        return made

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """{"item"} -> {"row"} as JSON. What raises is a row too, so that it takes none of its neighbours with it."""
        item: Item = row["item"]
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(lambda: self.worker(item))
            error = future.exception()
        return {"row": json.dumps(asdict(failure(item, error) if error else future.result()))}


@contextmanager
def ray(worker: Worker, workers: int, stop: threading.Event) -> Iterator[Run]:
    """Ray Data, on the cluster of RAY_ADDRESS or on this machine. Every process of it sees the same folders."""
    library = ray_data.start("--engine ray")
    card = 0 if worker.finder_alone or worker.work.options.device == "cpu" else library.cluster_resources().get("GPU")

    def run(items: Sequence[Item]) -> Iterator[Entry]:
        if not items:
            return
        rows = [{"item": item} for item in items]
        made = ray_data.map_rows(rows, RayWorker, (worker.work,), workers, 1 if card else None)
        missing, why = {item.name: item for item in items}, "its Ray block was lost"
        try:
            for row in made:
                values = json.loads(row["row"])
                del missing[values["input"]]
                yield Entry(**values | {"notes": tuple(values["notes"])})
                if stop.is_set():
                    return
        except library.exceptions.RayError as error:  # of all workers
            why = f"no Ray worker is left ({str(error).strip().splitlines()[-1]})"
        for name in missing:
            yield Entry(name, "", error=f"{why}: the log of the Ray worker says more.")

    yield run


ENGINES = {"threads": threads, "processes": processes, "ray": ray}


@contextmanager
def start(name: str, worker: Worker, workers: int, stop: threading.Event) -> Iterator[Run]:
    """An engine that begins with the first picture, so that nothing is loaded where all is done.

    Args:
        name: Of an engine. `auto` is the fastest: processes for several cut-outs at a time, as matting takes one thread
            of a process, and otherwise threads.
        worker, workers: What does pictures, and how many at a time.
        stop: Once it is set, no picture is begun.
    """
    if name == "auto":
        name = "processes" if workers > 1 and worker.finder_alone else "threads"
    with ExitStack() as stack:
        begun: list[Run] = []

        def run(items: Sequence[Item]) -> Iterator[Entry]:
            if items and not begun:
                begun.append(stack.enter_context(ENGINES[name](worker, workers, stop)))
            return begun[0](items) if items else iter(())

        yield run
