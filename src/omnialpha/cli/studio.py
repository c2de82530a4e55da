"""`omnialpha studio`: the tasks on a page of this machine."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from omnialpha.cli.options import Options, whole
from omnialpha.errors import InputError

LOCAL = ("127.0.0.1", "::1", "localhost")


def studio(
    options: Options,
    host: Annotated[str, typer.Option("--host", help="address to listen on; 0.0.0.0 is every one")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", parser=whole, metavar="NUMBER", help="0 takes a free one")] = 7860,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder", metavar="FOLDER", help="where runs are kept; a passing one, emptied at the end, if left out"
        ),
    ] = None,
    browser: Annotated[bool, typer.Option("--browser", help="open the page in the browser")] = False,
) -> None:
    """Open the studio: all tasks on a page of this machine, with brush, clicks, layers and history."""
    if find_spec("gradio") is None:
        raise InputError("omnialpha studio needs gradio, which is not installed: `pip install 'omnialpha[studio]'`.")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before it is imported; nothing leaves this machine
    from omnialpha.cli.run_task import build_setup, load
    from omnialpha.studio.page import StudioPage, launch
    from omnialpha.studio.runs import Studio

    setup = build_setup(options)
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="omnialpha-studio-")))
        folder = folder.resolve()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            made = Studio(folder, setup.parts.card, lambda: load(options, setup))
        except OSError as error:
            raise InputError(
                f"--folder {folder} cannot be used ({error.strerror or error}): choose another."
            ) from error
        page = StudioPage(made, f"{setup.parts.card.name} on {setup.placement.torch_device}")
        try:
            address = launch(page, host, port or None, browser)
        except OSError as error:
            raise InputError(f"--port {port} cannot be used ({error}): choose another, or 0 for a free one.") from error
        if not options.quiet:
            print(f"{setup.parts.card.name} on {setup.placement.torch_device}: {address}", file=sys.stderr, flush=True)
            if host not in LOCAL:
                print("note: anybody who reaches this address sees every picture and run", file=sys.stderr, flush=True)
        try:
            page.blocks.block_thread()
        finally:
            page.blocks.close()
