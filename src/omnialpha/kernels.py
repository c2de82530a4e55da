"""Compiled kernels, pymatting's and ours: made ready before the first import, and run by one thread at a time.

What numba compiled is kept where it can be written, compiling is announced, and the kernels live through a fork.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import gettempdir, mkdtemp
from types import ModuleType
from typing import Any

from omnialpha.errors import InputError

COMPILING = "compiling kernels, once on this machine, about a minute"
LOCK = threading.RLock()


@contextmanager
def one_thread(name: str = "pymatting") -> Iterator[ModuleType]:
    """Hold the lock around calls of a module, which is loaded: numba aborts where two threads run its kernels.

    BLAS gets one thread as well: its vectors are short, and threads that wait for each other took most of the time.
    """
    from threadpoolctl import threadpool_limits

    with LOCK:
        module = load(name)
        with threadpool_limits(1, "blas"):
            yield module


@cache
def load(name: str = "pymatting") -> ModuleType:
    """Import a module that compiles all its kernels where no earlier run has. InputError if no folder can be used.

    Set before that: numba's threads are those that a forked process can use again, unless the user chose others.
    """
    from numba import config
    from numba.core import event

    settings: Any = config  # made from the environment, so that no reader of types sees them

    class _AnnounceCompiling(event.Listener):
        announced = False

        def on_start(self, event: Any) -> None:
            if not self.announced:
                logging.getLogger("omnialpha").warning(COMPILING)
            self.announced = True

        def on_end(self, event: Any) -> None:
            pass

    with LOCK:
        if settings.THREADING_LAYER == "default":
            settings.THREADING_LAYER = "forksafe"
        with event.install_listener("numba:compile", _AnnounceCompiling()):
            try:
                return import_module(name)
            except RuntimeError as error:
                if "no locator available" not in str(error):
                    raise
                settings.CACHE_DIR = str(cache_folder())  # neither the module's own nor the user's can be written
                return import_module(name)


def cache_folder() -> Path:
    """A temporary folder for compiled code that only this user can write to, and the same one next time if possible.

    Raises:
        InputError: There is none.
    """
    own = getattr(os, "getuid", int)()
    try:
        path = Path(gettempdir(), f"omnialpha-kernels-{own}")
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == own and not found.st_mode & 0o077:
            return path
        return Path(mkdtemp(prefix="omnialpha-kernels-"))
    except OSError as error:
        raise InputError(
            f"no folder can be written ({error}): set NUMBA_CACHE_DIR to one for compiled code."
        ) from error


if hasattr(os, "register_at_fork"):  # a child process must not find it taken by a thread that it does not have
    os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)
