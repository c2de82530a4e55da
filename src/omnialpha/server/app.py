"""The application: state, guards, protocols, and what operation needs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from omnialpha import __version__
from omnialpha.errors import InputError
from omnialpha.server import native, openai_images, rembg, removebg
from omnialpha.server.config import ServerConfig
from omnialpha.server.engine import Engine
from omnialpha.server.fetching import Resolver, resolve_host
from omnialpha.server.guards import Guard, on_http_error, on_input_error
from omnialpha.server.metrics import MEDIA
from omnialpha.server.state import ServerState

UNTRACED = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


def create_app(config: ServerConfig, engines: Sequence[Engine], resolver: Resolver = resolve_host) -> FastAPI:
    """The application of a server; its workers start and end with it.

    Args:
        config: Limits and permissions.
        engines: The same model, once for each device.
        resolver: Of host names, for pictures by URL.

    Raises:
        InputError: The file of keys cannot be read.
    """
    state = ServerState(config, engines, resolver)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for worker in state.workers:
            worker.start()
        yield
        state.queue.close()
        for worker in state.workers:
            await run_in_threadpool(worker.join)

    # no pages of the framework, which load scripts from elsewhere, and no traces, which would hold queries
    nothing: dict[str, Any] = {"docs_url": None, "redoc_url": None, "openapi_url": None, "telemetry": UNTRACED}
    app = FastAPI(title="OmniAlpha", version=__version__, lifespan=lifespan, **nothing)
    app.state.server = state
    app.add_middleware(Guard, config=config, metrics=state.metrics)  # type: ignore[arg-type]
    app.add_exception_handler(InputError, on_input_error)
    app.add_exception_handler(HTTPException, on_http_error)
    for module in (native, rembg, removebg, openai_images):
        app.include_router(module.router)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    @app.get("/readyz")
    async def readyz() -> Response:
        words = "failed" if state.failures else "closing" if state.queue.closing else "loading"
        return JSONResponse({"status": "ready" if state.ready else words}, 200 if state.ready else 503)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        return Response(state.metrics.text(state.queue), media_type=MEDIA)

    return app
