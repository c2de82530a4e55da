"""Errors of commands: one sentence on standard error, and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from omnialpha.errors import InputError

UsageError: Any = typer.BadParameter.__bases__[0]  # click's, wherever a version of typer keeps it
FULL = (errno.ENOSPC, errno.EDQUOT)


class Commands(TyperGroup):
    """A group of commands with exit codes: 2 and one sentence for an `InputError` or a usage error, 130 for Ctrl-C, 1
    where standard output is closed early.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            _error(str(error))
            raise typer.Exit(2) from error
        except OSError as error:
            if error.filename is None:
                raise
            _error(f"{error.filename} cannot be used ({error.strerror}); choose another path.")
            raise typer.Exit(2) from error
        except KeyboardInterrupt as stop:
            print(f"\n{stop}" if stop.args else "\nstopped, nothing was written", file=sys.stderr)
            raise typer.Exit(130) from stop

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            code = super().main(*args, **(extra | {"standalone_mode": False}))
        except UsageError as error:
            message, context = error.format_message(), error.ctx
            if message:  # none: the help was asked for by giving nothing, and has been printed
                see = f"; see `{context.command_path if context else 'omnialpha'} --help`."
                _error(message if message.endswith("?") else message.rstrip(".") + see)
            code = 2
        except OSError as error:  # without a name: of a file that was open, or of the output
            if error.errno not in FULL:
                raise
            _error(f"a disk is full ({error.strerror}); free space and run it again.")
            code = 2
        sys.exit(_flush() or code or 0)


def _error(sentence: str) -> None:
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)


def _flush() -> int:
    """Flush standard output. Returns the exit code where it cannot be written, else 0."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed once more
        if isinstance(error, BrokenPipeError):
            return 1
        _error(f"standard output cannot be written ({error.strerror}); send it elsewhere.")
        return 2
    return 0
