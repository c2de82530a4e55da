"""A batch from its inputs to its report: what is done already is left out, the rest goes through an engine."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from omnialpha.batch.engines import Run
from omnialpha.batch.inputs import Maps
from omnialpha.batch.ledger import Entry, Ledger
from omnialpha.batch.names import Names
from omnialpha.batch.work import Item, Work
from omnialpha.errors import InputError
from omnialpha.tasks import MAPS

HASHERS = 4  # threads that read files to see whether they are done


class Batch:
    """The pictures of a folder and their outputs.

    Attributes:
        done, skipped: How many were done, and how many had been before.
        failures: The rows of those that could not be done.
    """

    def __init__(
        self,
        work: Work,
        ledger: Ledger,
        maps: Maps | None,
        suffix: str | None,
        overwrite: bool,
        say: Callable[[str], None],
    ) -> None:
        self.work, self.ledger, self.maps, self.overwrite, self.say = work, ledger, maps, overwrite, say
        earlier = {name: row.output for name, row in ledger.rows.items() if row.output}
        self.names = Names(work.see_through, suffix, work.stacks, earlier)
        self.done, self.skipped, self.failures = 0, 0, list[Entry]()

    def plan(self, found: Mapping[str, Path]) -> tuple[list[Item], list[Entry]]:
        """Name the outputs of pictures, name -> path, and leave out what is done.

        Returns:
            What is to be done, and the rows of what cannot be tried.
        """
        for line in self.names.add(found):
            self.say(line)
        if changed := self.names.changed(found):
            self.say(f"{changed} of {len(found)} become PNG, as their own format cannot hold the result")
        items, refused = list[Item](), list[Entry]()
        for name, path in found.items():
            item = Item(name, path, self.names.outputs[name])
            try:
                items.append(replace(item, guide=self.maps.find(name)) if self.maps else item)
            except InputError as error:
                refused.append(Entry(name, "", error=str(error)))
        if self.overwrite:
            return items, refused
        with ThreadPoolExecutor(HASHERS) as pool:
            done = list(pool.map(self._is_done, items))
        self.skipped += sum(done)
        allowed = list[Item]()
        for item in (item for item, skip in zip(items, done, strict=True) if not skip):
            if self.ledger.may_replace(item.name, item.output, self.work.task, str(self.work.folder)):
                allowed.append(item)
            else:
                sentence = f"{self.work.output / item.output} was not made of this picture by this task: "
                refused.append(Entry(item.name, "", error=sentence + "use --overwrite, or choose another folder."))
        self.ledger.claim({item.name: item.output for item in allowed}, self.work.task, str(self.work.folder))
        return allowed, refused

    def _is_done(self, item: Item) -> bool:
        if not (self.work.output / item.output).exists():
            return False
        try:
            return self.ledger.is_done(item.name, item.output, self.work.digest(item))
        except OSError:
            return False  # its worker says why

    def run(self, items: Sequence[Item], refused: Sequence[Entry], engine: Run, watch: Callable[[Entry], Any]) -> None:
        """Do what is planned. `watch` is called with each row as it comes."""
        for row in chain(refused, engine(items)):
            self.ledger.add(row)
            self.done += not row.error
            self.failures += [row] if row.error else []
            watch(row)


def check_maps(work: Work, maps: Path | None, asked: str) -> Maps | None:
    """The maps of a task that takes them; InputError where a task needs what is not given, or takes none."""
    row = work.row
    guides = [role for role in row.inputs if role in MAPS]
    if not row.inputs:
        raise InputError(f"{row.name} takes no picture, so there is no batch of it: use `omnialpha generate`.")
    if maps is None and guides:
        raise InputError(f"{row.name} needs a {guides[0]} for every picture: give their folder with --maps.")
    if maps is not None and not guides:
        kinds = ", ".join(f"{row.name.removesuffix('auto')}{role}" for role in MAPS) if row.automatic else "another"
        raise InputError(f"{asked} does not say what --maps {maps} holds: name {kinds}.")
    return Maps(maps) if maps is not None else None


@contextmanager
def stoppable(warn: Callable[[], Any]) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C (or SIGTERM) sets, after `warn`; the second is a KeyboardInterrupt."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt("stopped at once; run it again to go on")
        stop.set()
        warn()

    signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handle) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
