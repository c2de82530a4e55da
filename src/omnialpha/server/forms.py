"""What a request holds: texts and files by name, of a form, a query or a JSON object. Nothing of it is ignored."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile

from omnialpha.errors import InputError
from omnialpha.run_options import check_known
from omnialpha.server.config import ServerConfig
from omnialpha.server.refusals import Refusal

MAX_FIELDS, MAX_FILES = 64, 32
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


@dataclass
class Fields:
    """Texts and files by name. values: what a JSON object holds beside texts: lists and objects."""

    texts: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [*self.texts, *self.files, *self.values]

    def check(self, texts: Collection[str], files: Collection[str], what: str) -> None:
        """InputError for a name that is not known, with the nearest, or a text where a file belongs."""
        check_known(self.names, [*files, *(name for name in texts if name not in files)], what)
        for name in self.texts:
            if name not in texts:
                raise InputError(f"the field {name!r} was sent as a text: send it as a file, with a file name.")
        for name in self.files:
            if name not in files:
                raise InputError(f"the field {name!r} was sent as a file: send it as a text.")

    def add_text(self, name: str, value: str) -> None:
        if name in self.texts:
            raise InputError(f"the field {name[:40]!r} was sent twice: send it once.")
        self.texts[name] = value

    def file(self, *names: str) -> bytes:
        """The one file of these names. InputError where there is none, or are several."""
        found = [data for name in names for data in self.files.get(name, ())]
        if len(found) != 1:
            raise InputError(f"{len(found)} files were sent as {' or '.join(names)}: send one.")
        return found[0]

    def choice(self, name: str, allowed: Iterable[str], default: str) -> str:
        """A text that is one of those allowed; an empty one is the default."""
        allowed = list(allowed)
        value = self.texts.get(name) or default
        if value not in allowed:
            raise InputError(f"{name}={value[:40]!r} is not served: use {', '.join(allowed)}, or leave it out.")
        return value


async def read_fields(request: Request, config: ServerConfig, query: bool = False) -> Fields:
    """Read the body of a request, within its limits.

    Args:
        request: With a form or a JSON object, or nothing.
        config: Of the limits.
        query: Take what is in the query for fields as well.

    Raises:
        InputError: The body is none of these, or too large; the query holds what is not taken.
    """
    fields = Fields()
    if request.query_params and not query:
        raise InputError(
            f"the query holds {next(iter(request.query_params))[:40]!r}: send options as fields of the form."
        )
    for name, value in request.query_params.multi_items():
        fields.add_text(name, value)
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        async with asyncio.timeout(config.upload_seconds):
            if media in FORMS:
                await _read_form(request, config, fields)
            elif media == "application/json":
                _read_json(await request.body(), fields)
            elif await request.body():
                raise InputError(f"a body of type {media[:60]!r} is not read: send multipart/form-data or JSON.")
    except TimeoutError:
        late = f"the request took longer than {config.upload_seconds:g} s to arrive"
        raise Refusal("timeout", f"{late}: send less, or over a faster line.") from None
    return fields


async def _read_form(request: Request, config: ServerConfig, fields: Fields) -> None:
    form = request.form(max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=config.max_bytes)
    async with form as parts:
        for name, value in parts.multi_items():
            if isinstance(value, UploadFile):
                fields.files.setdefault(name, []).append(await value.read())
            else:
                fields.add_text(name, value)


def _read_json(body: bytes, fields: Fields) -> None:
    try:
        given = json.loads(body, parse_constant=int)  # NaN and Infinity are no JSON
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise InputError("the body is not a JSON object: send one, or a form.")
    for name, value in given.items():
        if isinstance(value, list | dict):
            fields.values[name] = value
        elif value is not None:
            fields.add_text(name, value if isinstance(value, str) else json.dumps(value))
