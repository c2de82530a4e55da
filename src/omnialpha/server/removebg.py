"""The protocol of remove.bg: `POST /v1.0/removebg` and `GET /v1.0/account`."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.io import Picture
from omnialpha.io.layers import Layer
from omnialpha.run_options import RunOption
from omnialpha.server import pictures
from omnialpha.server.calls import TaskCall, check_call, check_pictures, read_picture
from omnialpha.server.config import ServerConfig
from omnialpha.server.forms import Fields, read_fields
from omnialpha.server.results import JobResult
from omnialpha.server.state import ServerState, State
from omnialpha.tasks import TASKS, Role

router = APIRouter()
WHAT = "removebg"
# megapixels of each size; None: as it came
SIZES: dict[str, float | None] = {"preview": 0.25, "small": 0.25, "regular": 0.25, "medium": 1.5, "hd": 4.0, "4k": 10.0}
SIZES |= {"auto": None, "full": None, "50MP": 50.0}
# what a request may ask for by name, and the only values that are served; the first is the default
CHOICES: dict[str, tuple[str, ...]] = {
    "size": ("auto", *(name for name in SIZES if name != "auto")),
    "type": ("auto",),
    "type_level": ("1", "none", "2", "latest"),
    "format": ("auto", "png", "jpg", "zip", "webp"),
    "channels": ("rgba", "alpha"),
    "semitransparency": ("true",),
    "add_shadow": ("false",),
    "shadow_type": ("none",),
}
SOURCES = ("image_file", "image_file_b64", "image_url")
GROUNDS = ("bg_color", "bg_image_file", "bg_image_url")
CROP = RunOption("crop", bool, False, "")
TEXTS = ("image_file_b64", "image_url", "bg_color", "bg_image_url", "crop", "crop_margin", "scale", "position", "roi")


@router.get("/v1.0/account")
async def account(request: Request, state: State) -> dict[str, Any]:
    """The credits of a key: what is left, -1 where nothing is counted."""
    key = state.key_of(request)
    left = -1.0
    if key and state.keys and key.credits is not None:
        left = float(key.credits - state.keys.used[key.name])
    credits = {"total": left, "subscription": 0.0, "payg": left, "enterprise": 0.0}
    return {"data": {"attributes": {"credits": credits, "api": {"free_calls": 0, "sizes": "all"}}}}


@router.post("/v1.0/removebg")
async def removebg(request: Request, state: State) -> Response:
    """Cut the subject out of one picture."""
    key = state.key_of(request)
    fields = await read_fields(request, state.config)
    fields.check((*CHOICES, *TEXTS), ("image_file", "bg_image_file"), WHAT)
    chosen = {name: fields.choice(name, values, values[0]) for name, values in CHOICES.items()}
    crop = CROP.read(fields.texts.get("crop") or "false")
    if fields.texts.get("crop_margin") and not crop:
        raise InputError("crop_margin is given without crop: add crop=true, or leave it out.")
    data = await _picture(state, fields, SOURCES)
    if data is None:
        raise InputError(f"no picture was given: send one of {', '.join(SOURCES)}.")
    ground_data = await _picture(state, fields, GROUNDS[1:])
    if ground_data and fields.texts.get("bg_color"):
        raise InputError("bg_color and a background picture were both given: send one of them.")
    async with state.decoding:
        prepared = await run_in_threadpool(_prepare, state, data, ground_data, fields)
    call, size, offset, ground = prepared
    made = (await state.answers(request, [call]))[0]
    picture = await run_in_threadpool(_compose, made, size, offset, fields.texts, crop, chosen, state.config)
    box = pictures.bounds(picture[3])
    body, media = await run_in_threadpool(_encode, picture, ground, chosen)
    place = dict(zip(("Top", "Left", "Height", "Width"), box, strict=True))
    if "application/json" in request.headers.get("accept", ""):
        own = {f"foreground_{name.lower()}": value for name, value in place.items()}
        return JSONResponse({"data": {"result_b64": base64.b64encode(body).decode(), **own}})
    headers = {f"X-Foreground-{name}": str(value) for name, value in place.items()}
    headers |= {"X-Width": str(picture.shape[2]), "X-Height": str(picture.shape[1]), "X-Type": "other"}
    headers["X-Credits-Charged"] = "1" if key and key.credits is not None else "0"
    return Response(body, media_type=media, headers=headers)


async def _picture(state: ServerState, fields: Fields, names: tuple[str, ...]) -> bytes | None:
    """The one picture that is given as a file, as base64 or by URL; None where there is none."""
    given = [name for name in names if name in fields.files or fields.texts.get(name)]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} were both given: send one of them.")
    if not given:
        return None
    name = given[0]
    if name in fields.files:
        return fields.file(name)
    text = fields.texts[name]
    return await state.fetch(text) if name.endswith("_url") else pictures.decode_base64(text, name)


def _prepare(
    state: ServerState, data: bytes, ground: bytes | None, fields: Fields
) -> tuple[TaskCall, tuple[int, int], tuple[int, int], Tensor | None]:
    """The call for the region of interest, the size of the whole, where the region lies, and the background."""
    check_pictures([data, *([ground] if ground else [])], state.config)
    whole = read_picture(data, "picture")
    size = (int(whole.rgba.shape[1]), int(whole.rgba.shape[2]))
    top, left, height, width = _region(fields.texts.get("roi"), size)
    rows, columns = slice(top, top + height), slice(left, left + width)
    stored = None if whole.stored is None else whole.stored[:, rows, columns]
    part: Picture = replace(whole, rgba=whole.rgba[:, rows, columns].contiguous(), stored=stored)
    call = check_call(TASKS["matting_auto"], {Role.COMPOSITE: [part]}, {}, state.card, state.config)
    behind = read_picture(ground, "background").rgba if ground else None
    if fields.texts.get("bg_color"):
        behind = pictures.parse_colour(fields.texts["bg_color"], "bg_color")
    return call, size, (top, left), behind


def _region(given: str | None, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, height and width of `x1 y1 x2 y2`, in pixels or shares; the whole where nothing is given."""
    if not given:
        return 0, 0, *size
    words = given.replace(",", " ").split()
    if len(words) != 4:
        raise InputError(f"roi={given[:40]!r} is no region: write x1 y1 x2 y2, as 0px 0px 100px 50%.")
    x1, y1, x2, y2 = (pictures.length(w, size[(k + 1) % 2], "roi") for k, w in enumerate(words))
    left, right, top, bottom = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
    if left == right or top == bottom:
        raise InputError(f"roi={given[:40]!r} is empty: give two different corners.")
    return top, left, bottom - top, right - left


def _compose(
    made: JobResult,
    size: tuple[int, int],
    offset: tuple[int, int],
    texts: dict[str, str],
    crop: bool,
    chosen: dict[str, str],
    config: ServerConfig,
) -> Tensor:
    """The cut-out on its canvas: cropped, scaled and placed, in the size that is asked for."""
    picture = Layer("subject", pictures.layer_of(made), offset).placed(size)
    if crop:
        picture = pictures.crop_subject(picture, texts.get("crop_margin") or "0px", config.max_pixels)
    scale, position = (texts.get(name) or "original" for name in ("scale", "position"))
    placed = pictures.place_subject(picture, scale, position)
    budget = SIZES[chosen["size"]]
    return placed if budget is None else pictures.shrink(placed, budget)


def _encode(picture: Tensor, ground: Tensor | None, chosen: dict[str, str]) -> tuple[bytes, str]:
    """The bytes in the format that is asked for, and their type."""
    if chosen["channels"] == "alpha":
        if chosen["format"] not in ("auto", "png"):
            raise InputError(f"channels=alpha is a png, not {chosen['format']}: leave the format out.")
        return pictures.grey_png(picture[3]), pictures.MEDIA["png"]
    picture = picture if ground is None else pictures.put_on(picture, ground)
    form = ("jpg" if pictures.is_opaque(picture) else "png") if chosen["format"] == "auto" else chosen["format"]
    return pictures.encode_picture(picture, form), pictures.MEDIA[form]
