"""The own protocol: a job for each of the 21 tasks, its progress, its result."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from omnialpha import __version__
from omnialpha.errors import InputError
from omnialpha.run_options import check_known, options_of
from omnialpha.server.calls import check_call
from omnialpha.server.forms import read_fields
from omnialpha.server.jobs import ENDED, ServedJob, wait_for_change
from omnialpha.server.results import FORMATS, encode_result
from omnialpha.server.state import ServerState, State, result_of
from omnialpha.tasks import MAX_LAYERS, MEANING, TASKS, Task, task

router = APIRouter()
PING = 15.0  # seconds after which an event stream says that it is alive


def describe_task(row: Task, able: bool) -> dict[str, Any]:
    """A task as `GET /v1/tasks` lists it. able: whether the model does it."""
    options = {
        name: {"type": option.kind.__name__, "default": option.default, "help": option.help}
        for name, option in options_of(row).items()
    }
    inputs = [
        {"role": str(role), "help": MEANING[role], "most": MAX_LAYERS if role is row.many else 1} for role in row.inputs
    ]
    about = {"name": row.name, "category": row.category, "summary": row.summary, "available": able}
    return about | {"inputs": inputs, "targets": [str(role) for role in row.targets], "options": options}


@router.get("/v1/tasks")
async def tasks(state: State) -> dict[str, Any]:
    """Tasks with their roles and options."""
    known = state.card.tasks or TASKS
    return {"tasks": [describe_task(row, row.name in known) for row in TASKS.values()], "formats": FORMATS}


@router.get("/v1/models")
async def models(state: State) -> dict[str, Any]:
    """The model that is served, in the form of OpenAI's list."""
    card = state.card
    own = {"license": card.license, "native_size": list(card.native_size), "version": __version__}
    row = {"id": card.name, "object": "model", "created": 0, "owned_by": "omnialpha", **own}
    return {"object": "list", "data": [row | {"tasks": card.tasks or list(TASKS)}]}


@router.post("/v1/tasks/{name}")
async def submit(name: str, request: Request, state: State) -> Response:
    """Start a job: 202 with its links, or its result where `Prefer: wait=N` is given and it is done by then."""
    row = task(name)
    wait = _wait_of(request, state.config.max_wait)
    fields = await read_fields(request, state.config)
    fields.check(options_of(row), row.inputs, row.name)
    files = {role: fields.files[role] for role in row.inputs if role in fields.files}
    async with state.decoding:
        call = await run_in_threadpool(check_call, row, files, fields.texts, state.card, state.config)
    job = state.submit(request, [call])[0]
    if wait and await state.finished(request, job, wait):
        answer = await _result(job, None, None)
        answer.headers.update({"Preference-Applied": f"wait={wait:g}", "Location": f"/v1/jobs/{job.id}"})
        return answer
    return JSONResponse(describe_job(state, job), 202, {"Location": f"/v1/jobs/{job.id}"})


def _wait_of(request: Request, most: float) -> float:
    """Seconds of `Prefer: wait=N`, 0 without it, no more than the server waits."""
    given = request.headers.get("prefer", "")
    match = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})", given)
    if "wait" in given and not match:
        raise InputError(f"Prefer: {given[:40]!r} is not understood: write wait=SECONDS.")
    return min(float(match[1]), most) if match else 0.0


def describe_job(state: ServerState, job: ServedJob) -> dict[str, Any]:
    """A job as JSON."""
    where = f"/v1/jobs/{job.id}"
    links = {"self": where, "events": f"{where}/events", "result": f"{where}/result"}
    made: dict[str, Any] = {"id": job.id, "task": job.task, "state": str(job.state)}
    made |= {"position": state.queue.position(job), "progress": {"step": job.step, "total": job.total}}
    failure = {"code": job.failure.code, "message": str(job.failure)} if job.failure else None
    layers = list(job.result.names) if job.result else None
    return made | {"error": failure, "layers": layers, "links": links}


async def find_job(id: str, request: Request, state: State) -> ServedJob:
    """The job of a path, where it is of who asks."""
    return state.queue.find(id, state.owner_of(request))


Job = Annotated[ServedJob, Depends(find_job)]


@router.get("/v1/jobs/{id}")
async def status(job: Job, state: State) -> dict[str, Any]:
    """State, position in the queue, progress, and why it failed."""
    return describe_job(state, job)


@router.get("/v1/jobs/{id}/result")
async def result(job: Job, request: Request, format: str | None = None, layer: str | None = None) -> Response:
    """What a job has made, as `format`; `layer` is the number or name of one."""
    check_known(request.query_params, ("format", "layer"), "a result")
    return await _result(job, format, layer)


async def _result(job: ServedJob, form: str | None, layer: str | None) -> Response:
    made = result_of(job)
    data, media = await run_in_threadpool(encode_result, made, form, layer)
    size = {"X-Width": str(made.size[1]), "X-Height": str(made.size[0])}
    return Response(data, media_type=media, headers={"Cache-Control": "private, no-store", **size})


@router.delete("/v1/jobs/{id}", status_code=204)
async def cancel(job: Job, state: State) -> None:
    """Cancel a job, and forget it and what it made."""
    state.queue.cancel(job)


@router.get("/v1/jobs/{id}/events")
async def events(job: Job, request: Request, state: State) -> Response:
    """Server-sent events: queued, step, then done, failed or cancelled, each with the job as JSON."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(state, job, request), media_type="text/event-stream", headers=headers)


async def _events(state: ServerState, job: ServedJob, request: Request) -> AsyncIterator[str]:
    def look() -> tuple[Any, ...]:
        return job.state, job.step, state.queue.position(job)

    seen: tuple[Any, ...] = ()
    while True:
        now = await wait_for_change(job, seen, look, PING)
        if now == seen:
            if await request.is_disconnected():
                return
            yield ": alive\n\n"
            continue
        seen = now
        name = {"running": "step"}.get(str(job.state), str(job.state))
        yield f"event: {name}\ndata: {json.dumps(describe_job(state, job))}\n\n"
        if now[0] in ENDED:
            return
