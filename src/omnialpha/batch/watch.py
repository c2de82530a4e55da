"""Files of a folder that are there whole: those whose size and time have been the same for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from omnialpha.batch.inputs import Inputs

SETTLED = 1.0  # seconds that a file has to stay as it is
Stamp = tuple[int, int]  # size and time


def changes(inputs: Inputs, stop: threading.Event, settled: float = SETTLED) -> Iterator[list[str]]:
    """Names of pictures that are new or changed, once they are whole, until `stop` is set.

    The folder is looked at when `watchfiles` says that something happened, or `settled` seconds after the last look
    where it is not installed, or while something is not settled yet.

    Yields:
        The names, those that are there from the start among the first. Never an empty list.
    """
    known, seen = dict[str, Stamp](), dict[str, tuple[Stamp, float]]()
    wait = _waiter(inputs.folder, stop)
    while not stop.is_set():
        now, ready = time.monotonic(), []
        found = {name: stamp for name, path in inputs.find().items() if (stamp := _stamp(path))}
        for name, stamp in found.items():
            if known.get(name) == stamp:
                continue
            if name not in seen or seen[name][0] != stamp:
                seen[name] = (stamp, now)
            elif now - seen[name][1] >= settled:
                ready.append(name)
                known[name] = stamp
                del seen[name]
        seen = {name: value for name, value in seen.items() if name in found}
        if ready:
            yield ready
        elif seen:
            stop.wait(min(settled / 2, 0.5))
        else:
            wait(settled)


def _stamp(path: Path) -> Stamp | None:
    """None: it is gone, or empty, as a file is that somebody is about to write."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return (stat.st_size, stat.st_mtime_ns) if stat.st_size else None


def _waiter(folder: Path, stop: threading.Event) -> Callable[[float], object]:
    """What waits until something happens below a folder, nested new folders too, or for so many seconds."""
    try:
        from watchfiles import watch
    except ImportError:
        return stop.wait
    # it starts at the first wait; what happened before that is found by the look after its first time-out
    events = watch(folder, stop_event=stop, yield_on_timeout=True, rust_timeout=1000, step=20, raise_interrupt=False)
    return lambda seconds: next(events, None)
