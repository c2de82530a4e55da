"""What stands before the routes: the size of a body, a line in the log, and errors in the form of each protocol."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from time import perf_counter
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omnialpha.errors import InputError
from omnialpha.server.config import MEGA, ServerConfig
from omnialpha.server.jobs import AGAIN
from omnialpha.server.metrics import ServerMetrics
from omnialpha.server.refusals import STATUS, Refusal, as_refusal

log = logging.getLogger("omnialpha.server")
METHODS = ("GET", "POST", "DELETE", "HEAD", "OPTIONS")


def _native(error: Refusal) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": str(error)}}


def _rembg(error: Refusal) -> dict[str, Any]:
    return {"detail": str(error)}


def _removebg(error: Refusal) -> dict[str, Any]:
    code = {"bad_request": "invalid_parameters", "unauthorized": "auth_failed"}.get(error.code, error.code)
    return {"errors": [{"title": str(error), "code": code}]}


def _openai(error: Refusal) -> dict[str, Any]:
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return {"error": {"message": str(error), "type": kind, "param": None, "code": error.code}}


# path -> the body of an error, and statuses that differ
Body = Callable[[Refusal], dict[str, Any]]
PROTOCOLS: dict[str, tuple[Body, dict[int, int]]] = {
    "/api/": (_rembg, {}),
    "/v1.0/": (_removebg, {401: 403, 413: 400}),
    "/v1/images/": (_openai, {}),
    "/": (_native, {}),
}


def answer_error(path: str, error: InputError) -> JSONResponse:
    """A refusal as the protocol of a path has it."""
    refusal = as_refusal(error)
    body, differing = next(row for prefix, row in PROTOCOLS.items() if path.startswith(prefix))
    return JSONResponse(body(refusal), differing.get(refusal.status, refusal.status), refusal.headers)


async def on_input_error(request: Request, error: Exception) -> JSONResponse:
    """An exception handler for mistakes of users."""
    assert isinstance(error, InputError)
    return answer_error(request.url.path, error)


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """An exception handler for what the framework refuses: unknown paths and methods, damaged forms."""
    assert isinstance(error, HTTPException)
    code = next((name for name, status in STATUS.items() if status == error.status_code), "bad_request")
    words = {"not_found": "there is nothing at this path: see the documentation of the server."}
    words["method_not_allowed"] = f"{request.method} is not served at this path: see the documentation of the server."
    answer = answer_error(request.url.path, Refusal(code, words.get(code, f"the request is damaged: {error.detail}")))
    answer.headers.update(error.headers or {})
    return answer


class Guard:
    """ASGI middleware: checks where requests come from and what they weigh; counts and logs them by route.

    Neither their query nor their pictures and texts are logged.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig, metrics: ServerMetrics) -> None:
        self.app, self.config, self.metrics = app, config, metrics
        self.held = 0  # bytes of all requests that are not answered yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, seen = perf_counter(), 499, 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            size = len(message.get("body", b""))
            seen, self.held = seen + size, self.held + size
            self._check_size(seen)
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            try:
                self._check_headers(scope)
            except Refusal as refusal:
                await answer_error(scope["path"], refusal)(scope, receive, noted)
            else:
                await self.app(scope, counted, noted)
        finally:
            self.held -= seen
            self._note(scope, status, perf_counter() - began)

    def _check_size(self, size: int) -> None:
        """Refusal for a request that is too large, alone or with the others."""
        most = self.config.max_bytes
        if size > most:
            raise Refusal("too_large", f"the request has more than {most:,} bytes: send smaller pictures.")
        if self.held > self.config.total_megabytes * MEGA and self.held > size:
            raise Refusal("rate_limit_exceeded", "the server holds too many requests: send it again later.", AGAIN)

    def _check_headers(self, scope: Scope) -> None:
        """Refusal for a name that is not the server's, as a page may point its own at it, or for pages elsewhere."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        names, host = self.config.host_names, headers.get(b"host", "").lower()
        if names is not None and re.sub(r":\d*$", "", host) not in names:
            raise Refusal(
                "forbidden", f"the server is not called {host[:80]!r}: use its own name, or start it with --hosts."
            )
        if headers.get(b"sec-fetch-site") == "cross-site" and scope["method"] not in ("GET", "HEAD"):
            raise Refusal("forbidden", "a page of another site may not use the server: put it behind the same name.")
        length = headers.get(b"content-length", "")
        self._check_size(int(length) if length.isdecimal() and len(length) < 20 else 0)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self.metrics.requests.labels(method, route, status).inc()
        self.metrics.answer.labels(route).observe(seconds)
        log.info("%s %s %s %.0f ms", method, route, status, seconds * 1000)
