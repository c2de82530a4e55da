"""A client of `omnialpha serve`, with nothing but the standard library; Pillow only where pictures are asked for.

```python
client = Client("http://127.0.0.1:7000")
job = client.submit("decompose_auto", composite="photo.jpg", layers=3)
job.wait(lambda step, total: print(step, total))
for layer in job.layers(): ...
```
"""

from __future__ import annotations

import io
import json
import secrets
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib import error, parse, request

from omnialpha.errors import InputError
from omnialpha.tasks import Role

if TYPE_CHECKING:
    from PIL.Image import Image

    Upload = str | Path | bytes | Image
ENDED = ("done", "failed", "cancelled")
ROLES = frozenset(map(str, Role))  # under which a text is the path of a picture
TRIES = 5  # of a request that the server is too busy for


@dataclass(frozen=True)
class Client:
    """A server. key: where it asks for one; seconds: that an answer may take."""

    url: str
    key: str | None = None
    seconds: float = 60.0

    def tasks(self) -> list[dict[str, Any]]:
        """Tasks with their roles and options."""
        rows: list[dict[str, Any]] = json.loads(self._ask("GET", "/v1/tasks"))["tasks"]
        return rows

    def submit(self, task: str, **given: Upload | list[Upload] | int | float | bool | None) -> RemoteJob:
        """Start a job; waits and tries again where the server is too busy.

        Args:
            task: Its name.
            given: Pictures by role (a path, bytes of a file, a PIL picture; a list where the task takes several) and
                options by name. A prompt is a text; None is left out.

        Raises:
            InputError: The server refuses it, or cannot be reached; with the server's sentence.
        """
        body, kind = _form({name: value for name, value in given.items() if value is not None})
        made = json.loads(self._ask("POST", f"/v1/tasks/{parse.quote(task)}", body, {"Content-Type": kind}, TRIES))
        return RemoteJob(self, made["id"])

    def run(self, task: str, **given: Any) -> Image:
        """The one picture that a task makes, as PIL. Raises InputError as `submit` and `RemoteJob.wait` do."""
        return self.submit(task, **given).wait().picture()

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        tries: int = 1,
    ) -> bytes:
        """The body of an answer. InputError with the server's sentence where it refuses."""
        own = dict(headers or {}) | ({"X-Api-Key": self.key} if self.key else {})
        try:
            asked = request.Request(self.url.rstrip("/") + path, body, own, method=method)
            with request.urlopen(asked, timeout=self.seconds) as answer:
                data: bytes = answer.read()
                return data
        except error.HTTPError as refused:
            if refused.code == 429 and tries > 1:
                time.sleep(min(float(refused.headers.get("Retry-After") or 1), 30))
                return self._ask(method, path, body, headers, tries - 1)
            raise InputError(_sentence(refused.read(), refused.code)) from None
        except (error.URLError, OSError, ValueError) as failed:
            reason = getattr(failed, "reason", failed)
            raise InputError(f"the server {self.url} cannot be reached ({reason}): check the address.") from failed


@dataclass(frozen=True)
class RemoteJob:
    """A job on a server."""

    client: Client
    id: str

    def state(self) -> dict[str, Any]:
        """State, position, progress and error, as the server tells them."""
        found: dict[str, Any] = json.loads(self.client._ask("GET", f"/v1/jobs/{self.id}"))
        return found

    def wait(self, on_step: Callable[[int, int], None] | None = None, seconds: float | None = None) -> RemoteJob:
        """Wait until it is done.

        Args:
            on_step: Called with the number of the sampling step that is done, and of all.
            seconds: To wait at most.

        Returns:
            The job itself.

        Raises:
            InputError: It failed, was cancelled, or takes longer.
        """
        until, seen, pause = None if seconds is None else time.monotonic() + seconds, 0, 0.02
        while True:
            now = self.state()
            step = now["progress"]["step"]
            if on_step and step != seen:
                on_step(step, now["progress"]["total"])
            pause = 0.02 if step != seen else min(pause * 1.5, 1.0)
            seen = step
            if now["state"] in ENDED:
                break
            if until is not None and time.monotonic() > until:
                raise InputError(f"the job takes longer than {seconds:g} s: wait longer, or cancel it.")
            time.sleep(pause)
        if now["state"] != "done":
            raise InputError(now["error"]["message"] if now["error"] else "the job was cancelled.")
        return self

    def result(self, format: str | None = None, layer: int | str | None = None) -> bytes:
        """The bytes of what it made: a PNG, or a zip of layers. Raises InputError where it is not done, or not kept."""
        query = {k: v for k, v in (("format", format), ("layer", layer)) if v is not None}
        return self.client._ask("GET", f"/v1/jobs/{self.id}/result?{parse.urlencode(query)}".rstrip("?"))

    def picture(self, layer: int | str | None = None) -> Image:
        """The one layer that it made, or the one of a number or name, as PIL."""
        from PIL import Image

        image = Image.open(io.BytesIO(self.result("png", layer)))
        image.load()
        return image

    def layers(self) -> list[Image]:
        """All layers, back to front, as PIL."""
        from PIL import Image

        with zipfile.ZipFile(io.BytesIO(self.result("zip"))) as archive:
            rows = json.loads(archive.read("layers.json"))["layers"]
            made: list[Image.Image] = [Image.open(io.BytesIO(archive.read(row["file"]))) for row in rows]
        for image in made:
            image.load()
        return made

    def cancel(self) -> None:
        """Stop it, and have the server forget it."""
        self.client._ask("DELETE", f"/v1/jobs/{self.id}")


def _sentence(body: bytes, status: int) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {status}: check that its address is one of omnialpha serve."


def _form(given: Mapping[str, Any]) -> tuple[bytes, str]:
    """multipart/form-data, and its type."""
    boundary, body = secrets.token_hex(16), io.BytesIO()
    for name, value in given.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            is_file = name in ROLES or not isinstance(one, str | int | float)
            extra, data = ('; filename="picture"', _bytes(name, one)) if is_file else ("", str(one).encode())
            body.write(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode())
            body.write(data + b"\r\n")
    body.write(f"--{boundary}--\r\n".encode())
    return body.getvalue(), f"multipart/form-data; boundary={boundary}"


def _bytes(name: str, picture: Any) -> bytes:
    """The bytes of a picture: as they are, of a file, or a PNG of a PIL picture."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | Path):
        try:
            return Path(picture).read_bytes()
        except OSError as failed:
            raise InputError(f"{name} {picture} cannot be read ({failed.strerror}); check the path.") from failed
    if not hasattr(picture, "save"):
        raise InputError(f"{name} is a {type(picture).__name__}: give a path, the bytes of a file, or a PIL picture.")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
