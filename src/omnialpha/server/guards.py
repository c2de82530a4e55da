"""What stands before the routes: the size of a body, a line in the log, and errors in the form of each protocol."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omnialpha.errors import InputError
from omnialpha.server.metrics import ServerMetrics
from omnialpha.server.refusals import STATUS, Refusal, as_refusal

log = logging.getLogger("omnialpha.server")


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
    """ASGI middleware: limits bodies, counts and logs requests by route; never their query, pictures or texts."""

    def __init__(self, app: ASGIApp, max_bytes: int, metrics: ServerMetrics) -> None:
        self.app, self.max_bytes, self.metrics = app, max_bytes, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, seen = perf_counter(), 499, 0
        too_large = Refusal("too_large", f"the request has more than {self.max_bytes:,} bytes: send smaller pictures.")

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_bytes:
                raise too_large
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        length = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            if length.isdigit() and int(length[:20]) > self.max_bytes:
                await answer_error(scope["path"], too_large)(scope, receive, noted)
            else:
                await self.app(scope, counted, noted)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            seconds = perf_counter() - began
            method = scope["method"] if scope["method"] in ("GET", "POST", "DELETE", "HEAD", "OPTIONS") else "other"
            self.metrics.requests.labels(method, route, status).inc()
            self.metrics.answer.labels(route).observe(seconds)
            log.info("%s %s %s %.0f ms", method, route, status, seconds * 1000)
