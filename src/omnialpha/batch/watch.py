"""Files of a folder that are there whole: those whose size and time have been the same for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
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
    with_events = _Waiter(inputs.folder, stop)
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
            with_events.wait(settled)


def _stamp(path: Path) -> Stamp | None:
    """None: it is gone, or empty, as a file is that somebody is about to write."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return (stat.st_size, stat.st_mtime_ns) if stat.st_size else None


class _Waiter:
    """Waits until something happens below a folder, nested new folders too."""

    def __init__(self, folder: Path, stop: threading.Event) -> None:
        self.stop = stop
        try:
            from watchfiles import watch
        except ImportError:
            self.events = None
            return
        # it starts at the first wait; what happened before that is found by the look after its first time-out
        self.events = watch(
            folder, stop_event=stop, yield_on_timeout=True, rust_timeout=1000, step=20, raise_interrupt=False
        )

    def wait(self, seconds: float) -> None:
        if self.events is None:
            self.stop.wait(seconds)
        else:
            next(self.events, None)
