"""The protocol of rembg's server: `POST /api/remove` and, where URLs are allowed, `GET /api/remove?url=`."""

from __future__ import annotations

import re

import torch
from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from omnialpha.errors import InputError
from omnialpha.run_options import RunOption
from omnialpha.server.calls import check_call
from omnialpha.server.forms import Fields, read_fields
from omnialpha.server.pictures import encode_picture, grey_png, layer_of, put_on, smooth_mask
from omnialpha.server.results import JobResult
from omnialpha.server.state import ServerState, State
from omnialpha.tasks import TASKS, Role

router = APIRouter()
# rembg's thresholds of its alpha matting; edges are always matted here, by a trimap of their own, and so only what
# rembg takes by default is accepted
THRESHOLDS = {"af": "240", "ab": "10", "ae": "10"}
FLAGS = {name: RunOption(name, bool, False, "") for name in ("a", "om", "ppm")}
OPTIONS = ("model", *FLAGS, *THRESHOLDS, "bgc", "extras")
WHAT = "/api/remove"


@router.post(WHAT)
async def remove_file(request: Request, state: State) -> Response:
    """Cut the subject out of an uploaded picture; options come in the form or in the query."""
    fields = await read_fields(request, state.config, query=True)
    fields.check(OPTIONS, ("file",), WHAT)
    return await _remove(request, state, fields, fields.file("file"))


@router.get(WHAT)
async def remove_url(request: Request, state: State) -> Response:
    """Cut the subject out of the picture at `url`."""
    fields = await read_fields(request, state.config, query=True)
    fields.check((*OPTIONS, "url"), (), WHAT)
    if not fields.texts.get("url"):
        raise InputError("no url was given: add url=, or POST the file.")
    _check(fields, state.card.name)
    return await _remove(request, state, fields, await state.fetch(fields.texts["url"]))


def _check(fields: Fields, model: str) -> dict[str, bool]:
    """The flags. InputError for a value that means something else here."""
    fields.choice("model", (model,), model)
    for name, value in THRESHOLDS.items():
        if fields.texts.get(name) not in (None, "", value):
            raise InputError(
                f"{name}={fields.texts[name][:20]!r} is not served: edges are always matted; leave it out."
            )
    if (fields.texts.get("extras") or "{}").strip() != "{}":
        raise InputError("extras are not served, as they belong to models of rembg: leave them out.")
    _background(fields)
    return {name: row.read(fields.texts.get(name) or "false") for name, row in FLAGS.items()}


async def _remove(request: Request, state: ServerState, fields: Fields, data: bytes) -> Response:
    flags = _check(fields, state.card.name)
    async with state.decoding:
        row = TASKS["matting_auto"]
        call = await run_in_threadpool(check_call, row, {Role.COMPOSITE: [data]}, {}, state.card, state.config)
    made = (await state.answers(request, [call]))[0]
    return Response(await run_in_threadpool(_finish, made, flags, _background(fields)), media_type="image/png")


def _background(fields: Fields) -> torch.Tensor | None:
    """The colour `bgc`, `r,g,b,a` from 0 to 255."""
    given = fields.texts.get("bgc")
    if not given:
        return None
    if not re.fullmatch(r"\d{1,3}(\s*,\s*\d{1,3}){3}", given.strip()) or max(map(int, given.split(","))) > 255:
        raise InputError(f"bgc={given[:40]!r} is no colour: write r,g,b,a, each from 0 to 255.")
    return (torch.tensor([int(one) for one in given.split(",")]) / 255).view(4, 1, 1)


def _finish(made: JobResult, flags: dict[str, bool], ground: torch.Tensor | None) -> bytes:
    if not (flags["ppm"] or flags["om"]) and ground is None:
        return made.png()
    picture = layer_of(made)
    if flags["ppm"]:
        picture = torch.cat([picture[:3], smooth_mask(picture[3])[None]])
    if flags["om"]:
        return grey_png(picture[3])
    return encode_picture(picture if ground is None else put_on(picture, ground), "png")
