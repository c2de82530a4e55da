"""The protocol of OpenAI's images: `POST /v1/images/edits` and `/v1/images/generations`.

| given to edits | task |
|---|---|
| `task` | that one; `image` is its first picture, `mask` its map |
| a mask | removal_rough: what the mask leaves transparent is removed |
| a prompt, and the model reads | matting_text |
| otherwise | matting_auto |
"""

from __future__ import annotations

import base64
import time
from dataclasses import replace
from io import BytesIO
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from PIL import Image
from starlette.concurrency import run_in_threadpool

from omnialpha.errors import InputError
from omnialpha.limits import by, check_seed
from omnialpha.run_options import check_known, options_of
from omnialpha.server import pictures
from omnialpha.server.calls import TaskCall, check_call, check_pictures, read_picture
from omnialpha.server.forms import Fields, read_fields
from omnialpha.server.refusals import Refusal
from omnialpha.server.results import JobResult
from omnialpha.server.state import ServerState, State
from omnialpha.tasks import MAPS, TASKS, Role, Task, task

router = APIRouter()
MAX_N = 10
ALIASES = {"num_inference_steps": "steps", "guidance_scale": "guidance"}  # as other servers of this protocol say
FORMATS = {"png": "png", "webp": "webp", "jpeg": "jpg"}
# what a request may ask for by name, and the only values that are served; the first is the default
CHOICES: dict[str, tuple[str, ...]] = {
    "background": ("auto", "transparent", "opaque"),
    "output_format": tuple(FORMATS),
    "response_format": ("b64_json",),
    "quality": ("auto",),
    "moderation": ("auto",),
    "stream": ("false",),
    "partial_images": ("0",),
    "output_compression": ("100",),
    "input_fidelity": ("high",),  # what a task leaves unchanged is copied
}
TEXTS = ("model", "prompt", "n", "size", "user", "seed", *ALIASES, *ALIASES.values(), *CHOICES)
EDITS, GENERATIONS = "/v1/images/edits", "/v1/images/generations"


@router.post(GENERATIONS)
async def generate(request: Request, state: State) -> JSONResponse:
    """Pictures from a text."""
    fields = await read_fields(request, state.config)
    fields.check(TEXTS, (), "generations")
    return await _answer(request, state, fields, TASKS["text_to_image"], {})


@router.post(EDITS)
async def edit(request: Request, state: State) -> JSONResponse:
    """A cut-out, a removal, or any task by its name."""
    fields = await read_fields(request, state.config)
    await _take_urls(state, fields)
    fields.check((*TEXTS, "task", "layers", "raw", "frame"), ("image", "image[]", "mask"), "edits")
    images = [data for name in ("image", "image[]") for data in fields.files.get(name, ())]
    row = _task_of(fields, "mask" in fields.files, state)
    roles = [role for role in row.inputs if role not in MAPS]
    if not images or not roles:
        raise InputError(f"{row.name} got {len(images)} images: send its picture as image, or use generations.")
    files = {roles[0]: images}
    if "mask" in fields.files:
        if row.map is None:
            raise InputError(f"{row.name} takes no mask: leave it out, or choose another task.")
        files[row.map] = [await run_in_threadpool(_mask, fields.file("mask"), state)]
    return await _answer(request, state, fields, row, files)


def _task_of(fields: Fields, masked: bool, state: ServerState) -> Task:
    """The table at the top."""
    if fields.texts.get("task"):
        return task(fields.texts["task"])
    if masked:
        return TASKS["removal_rough"]
    return TASKS["matting_text" if fields.texts.get("prompt", "").strip() and state.card.reads else "matting_auto"]


async def _take_urls(state: ServerState, fields: Fields) -> None:
    """Pictures of a JSON body, `images: [{image_url}]` and `mask: {image_url}`, as files."""
    for name, target in (("images", "image"), ("mask", "mask")):
        if name not in fields.values:
            continue
        rows = fields.values.pop(name)
        for row in rows if isinstance(rows, list) else [rows]:
            url = row.get("image_url") if isinstance(row, dict) else None
            if not isinstance(url, str) or len(row) != 1:
                raise InputError(f"{name} holds something else than image_url: give a URL or a data URL.")
            data = pictures.decode_base64(url, name) if url.startswith("data:") else await state.fetch(url)
            fields.files.setdefault(target, []).append(data)


def _mask(data: bytes, state: ServerState) -> bytes:
    """The map of a mask, white where its alpha is below a half."""
    check_pictures([data], state.config)
    alpha = read_picture(data, "mask", is_map=True).rgba[3].numpy()
    if alpha.min() >= 0.5:
        raise InputError("the mask is opaque everywhere: make what is to be edited transparent in it.")
    buffer = BytesIO()
    Image.fromarray(((alpha < 0.5) * 255).astype("uint8")).save(buffer, "PNG")
    return buffer.getvalue()


def _options(fields: Fields, row: Task) -> dict[str, str]:
    """The options of the task, with the names of other servers understood, and without those that say "auto"."""
    given: dict[str, str] = {}
    for name, text in fields.texts.items():
        own = ALIASES.get(name, name)
        if own in given:
            raise InputError(f"{own} and {name} mean the same: send one of them.")
        if own in ("seed", "steps", "guidance", "size", "layers", "raw", "frame", "prompt") and text:
            given[own] = text
    if given.get("size") == "auto" or row.inputs:  # of a picture it is checked when that is read
        given.pop("size", None)
    if row.text is None:  # the protocol asks for a prompt; the answer says that it was not used
        given.pop("prompt", None)
    check_known(given, options_of(row), row.name)
    return given


def _count(fields: Fields) -> int:
    text = fields.texts.get("n") or "1"
    if text not in map(str, range(1, MAX_N + 1)):
        raise InputError(f"n={text[:20]!r} is out of range: use 1 to {MAX_N}.")
    return int(text)


async def _answer(
    request: Request, state: ServerState, fields: Fields, row: Task, files: dict[Role, list[bytes]]
) -> JSONResponse:
    """Run a task n times, with seeds that follow each other, or once where it makes several layers."""
    if fields.texts.get("model") not in (None, "", state.card.name):
        asked = fields.texts["model"][:40]
        raise Refusal("not_found", f"the model {asked!r} is not served: use {state.card.name!r}, or leave it out.")
    chosen = {name: fields.choice(name, values, values[0]) for name, values in CHOICES.items()}
    count, options = _count(fields), _options(fields, row)
    async with state.decoding:
        call = await run_in_threadpool(check_call, row, files, options, state.card, state.config)
    if count > 1 and len(call.example.targets) > 1:
        raise InputError(f"n={count} is not for {row.name}, whose layers are the data: set layers, and leave n out.")
    size = fields.texts.get("size") or "auto"
    if row.inputs and size not in ("auto", by(call.example.size)):
        raise InputError(f"size={size[:20]!r} is not served: the answer has the size of the image; leave it out.")
    calls: list[TaskCall] = [replace(call, seed=check_seed(call.seed + k)) for k in range(count)]
    results = await state.answers(request, calls)
    data = await run_in_threadpool(_encode, results, chosen)
    prompt_used = row.text is not None
    body: dict[str, Any] = {"created": int(time.time()), "data": [{"b64_json": one} for one in data]}
    body |= {"background": "opaque" if chosen["background"] == "opaque" else "transparent"}
    body |= {"output_format": chosen["output_format"], "size": by(call.example.size)}
    return JSONResponse(body | {"task": row.name, "prompt_used": prompt_used})


def _encode(results: list[JobResult], chosen: dict[str, str]) -> list[str]:
    """Every layer of every result, back to front, as base64."""
    form, opaque = FORMATS[chosen["output_format"]], chosen["background"] == "opaque"
    if form == "png" and not opaque:
        made = [one.png(k) for one in results for k in range(len(one.layers))]
    else:
        white = pictures.parse_colour("white", "background")
        layers = [layer.rgba for one in results for layer in one.stack()]
        made = [pictures.encode_picture(pictures.put_on(one, white) if opaque else one, form) for one in layers]
    return [base64.b64encode(data).decode() for data in made]
