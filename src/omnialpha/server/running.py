"""Serving an application until it is told to end."""

from __future__ import annotations

import signal
import socket
import threading
from types import FrameType

import uvicorn
from fastapi import FastAPI

from omnialpha.errors import InputError
from omnialpha.server.state import ServerState

BACKLOG = 128


class GracefulServer(uvicorn.Server):
    """On SIGTERM or Ctrl-C: waiting jobs are given up, what runs is finished and answered; a second one ends it."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # in a thread of its own: what a signal interrupts may hold a lock that closing needs
        threading.Thread(target=state_of(self).queue.close).start()
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or bool(state_of(self).failures)


def state_of(server: uvicorn.Server) -> ServerState:
    """The state of the application that a server runs."""
    state: ServerState = server.config.app.state.server  # type: ignore[union-attr]
    return state


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket. InputError where the address cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        made.close()
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{host}:{port} cannot be listened on ({reason}): choose another --host or --port.") from error
    return made


def server_of(app: FastAPI) -> GracefulServer:
    """A server of an application. Its own log of requests is off, as it would hold their queries."""
    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        server_header=False,
        lifespan="on",
        ws="none",
        timeout_keep_alive=15,
        timeout_graceful_shutdown=round(app.state.server.config.job_seconds) + 30,
        h11_max_incomplete_event_size=65536,
    )
    return GracefulServer(config)


def serve(app: FastAPI, sockets: list[socket.socket]) -> None:
    """Answer requests until SIGTERM or Ctrl-C, which are taken for the end that they ask for, not for a failure.

    Raises:
        InputError: The model cannot be loaded.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn has its own while it runs, and raises them again after
    server = server_of(app)
    server.run(sockets=sockets)
    for failure in state_of(server).failures:
        raise failure
