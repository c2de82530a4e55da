"""`omnialpha serve`: the 21 tasks over HTTP."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import sys
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from omnialpha.cli.options import Options, number, whole
from omnialpha.errors import InputError
from omnialpha.server.config import ServerConfig

if TYPE_CHECKING:
    from omnialpha.server.engine import ModelEngine

NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
LOCAL = ("127.0.0.1", "::1", "localhost")
# those that speak of the model, not of a run, which is what a request is for
MODEL_OPTIONS = (
    *("model", "device", "quiet", "base", "finder", "vae", "lora", "instructions", "dtype", "offload", "quantize"),
    *("attention", "compile", "approximate"),
)


def with_limits(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command, in the place of its parameter `config`, an option for each field of `ServerConfig`."""
    hints, fields = get_type_hints(ServerConfig, include_extras=True), dataclasses.fields(ServerConfig)
    readers: dict[Any, Any] = {int: ("NUMBER", whole), float: ("NUMBER", number)}
    made = []
    for field in fields:
        kind, note = get_args(hints[field.name])
        metavar, parser = readers.get(kind, (None if kind is bool else "FILE", None))
        names = (f"--{field.name.replace('_', '-')}",)
        option = typer.Option(
            *names, help=note, metavar=metavar, parser=parser, rich_help_panel="Limits and permissions"
        )
        hint: Any = Annotated[kind, option]  # type: ignore[valid-type]
        keyword = inspect.Parameter.KEYWORD_ONLY
        made.append(inspect.Parameter(field.name, keyword, default=field.default, annotation=hint))
    own = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for p in inspect.signature(function, eval_str=True).parameters.values()
    ]

    @wraps(function)
    def run(**values: Any) -> None:
        values["config"] = ServerConfig(**{field.name: values.pop(field.name) for field in fields})
        function(**values)

    vars(run)["__signature__"] = inspect.Signature([*(p for p in own if p.name != "config"), *made])
    return run


@with_limits
def serve(
    options: Options,
    config: ServerConfig,
    host: Annotated[str, typer.Option("--host", help="address to listen on; 0.0.0.0 is every one")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", parser=whole, metavar="NUMBER", help="0 takes a free one")] = 7000,
    add_key: Annotated[
        str | None, typer.Option("--add-key", metavar="NAME", help="add a key to the file of --keys, print it, and end")
    ] = None,
    credits: Annotated[
        int | None,
        typer.Option("--credits", parser=whole, metavar="NUMBER", help="jobs of the new key; any number if left out"),
    ] = None,
) -> None:
    """Serve the 21 tasks over HTTP, also by the protocols of rembg, remove.bg and OpenAI's images."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(
            f"omnialpha serve needs {missing[0]}, which is not installed: `pip install 'omnialpha[serve]'`."
        )
    if credits is not None and not add_key:
        raise InputError(f"--credits {credits} is for a new key: add --add-key NAME, or leave it out.")
    if add_key:
        _add_key(config, add_key, credits)
        return
    from omnialpha.server.app import create_app
    from omnialpha.server.running import open_socket
    from omnialpha.server.running import serve as run

    if config.hosts is None and host in LOCAL:  # where a page could point a name of its own at this machine
        config = dataclasses.replace(config, hosts=",".join((*LOCAL, "[::1]")))
    engines = [_engine(dataclasses.replace(options, device=name), config) for name in options.device.split(",")]
    app = create_app(config, engines)
    listening = open_socket(host, port)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s")
    logging.getLogger("omnialpha.server").setLevel(logging.WARNING if options.quiet else logging.INFO)
    shown, port = f"[{host}]" if ":" in host else host, listening.getsockname()[1]
    if not options.quiet:
        devices = ", ".join(engine.device for engine in engines)
        print(f"{engines[0].card.name} on {devices}: http://{shown}:{port}", file=sys.stderr, flush=True)
        if host not in LOCAL and config.keys is None:
            print(
                "note: anybody who reaches this address may use the server: add --keys FILE",
                file=sys.stderr,
                flush=True,
            )
    run(app, [listening])


def _add_key(config: ServerConfig, name: str, credits: int | None) -> None:
    from omnialpha.server.keys import add_key

    if config.keys is None:
        raise InputError(f"--add-key {name} needs a file to write to: add --keys FILE.")
    key = add_key(config.keys, name, credits)
    print(key)
    print(f"this key is shown once; {config.keys} holds its hash", file=sys.stderr)


def _engine(options: Options, config: ServerConfig) -> ModelEngine:
    """The model on one device; its files are found, but not read."""
    from omnialpha.cli.run_task import build_setup, load
    from omnialpha.server.engine import ModelEngine

    setup = build_setup(options)
    device = str(setup.placement.torch_device)
    return ModelEngine(setup.parts, lambda: load(options, setup), device, config.lazy)
