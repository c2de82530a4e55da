"""A client of `omnialpha serve` for painting programs: what is asked for, and how, with Python's own library alone.

The plug-ins of Krita and GIMP hold equal copies of this file.
"""

import io
import json
import os
import secrets
import time
import zipfile
from collections import namedtuple
from http.client import HTTPException
from urllib import error, request

URL = "http://127.0.0.1:7000"
# All that is known of the server's paths.
PATHS = {
    "submit": ("POST", "/v1/tasks/{task}"),
    "state": ("GET", "/v1/jobs/{id}"),
    "result": ("GET", "/v1/jobs/{id}/result?format=zip"),
    "cancel": ("DELETE", "/v1/jobs/{id}"),
}
ENDED = ("done", "failed", "cancelled")
SECONDS = 60  # that one answer may take; a job may take longer
TRIES = 5  # of a request that the server is too busy for

# title: in the menu. auto, marked: the task without a selection and with one, which is sent as `mask`. group: what the
# new layers are put into, None where there is one. names: of layers by role.
Action = namedtuple("Action", "title auto marked mask group names")
SUBJECT, BACKGROUND = "Subject", "Without the subject"
NAMES = {"foreground": SUBJECT, "background": BACKGROUND}
ACTIONS = {
    "cut_out": Action("Cut Out Subject", "matting_auto", "matting_rough", "rough", None, NAMES),
    "remove": Action("Remove Subject", "removal_auto", "removal_rough", "rough", None, NAMES),
    "split": Action("Split into Layers", "decompose_auto", "decompose_rough", "rough", "Layers", NAMES),
}

# A layer that the server made. png: bytes; left, top: where it lies in the picture.
NewLayer = namedtuple("NewLayer", "name png left top")


class ServerError(Exception):
    """What went wrong, in one sentence for the user."""


class Cancelled(Exception):
    """The user does not want the result any more."""


class Client:
    """A server.

    Args:
        url: Its address; without one that in OMNIALPHA_URL, or this computer.
        key: Where it asks for one; without one that in OMNIALPHA_KEY.
    """

    def __init__(self, url=None, key=None):
        self.url = (url or os.environ.get("OMNIALPHA_URL") or URL).rstrip("/")
        self.key = key or os.environ.get("OMNIALPHA_KEY")
        self._open = request.build_opener(request.ProxyHandler({})).open  # the server is near

    def run(self, action, picture, mask=None, on_step=None, cancelled=None, **options):
        """Do what an action of the menu says.

        Args:
            action: Of `ACTIONS`, by name.
            picture: The bytes of a PNG.
            mask: Those of a grey PNG of the same size, white where the selection is; None where there is none.
            on_step: Called with the number of the step that is done, and of all.
            cancelled: Called now and then; where it returns true, the job is cancelled.
            options: Form fields: layers, seed, steps, guidance. None is left out.

        Returns:
            A `NewLayer` each, back to front.

        Raises:
            ServerError: The server cannot be reached, refuses the task, or fails.
            Cancelled: As `cancelled` said.
        """
        row = ACTIONS[action]
        files = [("composite", picture)] + ([(row.mask, mask)] if mask else [])
        fields = [(name, str(value)) for name, value in options.items() if value is not None]
        body, kind = form(fields, files)
        task = row.marked if mask else row.auto
        job = self._json("submit", {"task": task}, body, {"Content-Type": kind}, TRIES)
        self._wait(self._field(job, "id"), on_step, cancelled)
        return read_layers(self._ask("result", {"id": job["id"]}), row.names)

    def _wait(self, id, on_step, cancelled):
        pause = 0.05
        while True:
            job = self._json("state", {"id": id})
            progress = job.get("progress") or {}
            if on_step:
                on_step(progress.get("step") or 0, progress.get("total") or 0)
            state = self._field(job, "state")
            if state == "done":
                return
            if state in ENDED:
                raise ServerError(_message(job.get("error")) or "The server cancelled the job: try again.")
            if cancelled and cancelled():
                self._ask("cancel", {"id": id})
                raise Cancelled
            time.sleep(pause)
            pause = min(pause * 1.5, 1)

    def _field(self, job, name):
        if not isinstance(job, dict) or not isinstance(job.get(name), str):
            raise ServerError(f"{self.url} is no server of OmniAlpha: check the address.")
        return job[name]

    def _json(self, *what):
        try:
            return json.loads(self._ask(*what))
        except ValueError:
            raise ServerError(f"{self.url} is no server of OmniAlpha: check the address.") from None

    def _ask(self, name, values, body=None, headers=None, tries=1):
        method, path = PATHS[name]
        own = dict(headers or {}, **({"X-Api-Key": self.key} if self.key else {}))
        try:
            asked = request.Request(self.url + path.format(**values), body, own, method=method)
            with self._open(asked, timeout=SECONDS) as answer:
                return answer.read()
        except error.HTTPError as refused:
            if refused.code == 429 and tries > 1:
                seconds = refused.headers.get("Retry-After") or ""
                time.sleep(min(int(seconds), 30) if seconds.isdecimal() else 1)
                return self._ask(name, values, body, headers, tries - 1)
            raise ServerError(_refusal(refused.read(), refused.code, self.url)) from None
        except (OSError, ValueError, HTTPException) as failed:
            reason = getattr(failed, "reason", failed)
            words = "start `omnialpha serve`, or change the address."
            raise ServerError(f"No server answers at {self.url} ({reason}): {words}") from None


def form(fields, files):
    """multipart/form-data of (name, text) and (name, bytes of a file) pairs, and its type."""
    boundary, body = secrets.token_hex(16), io.BytesIO()
    parts = [(name, text.encode(), "") for name, text in fields]
    parts += [(name, data, f'; filename="{name}.png"\r\nContent-Type: image/png') for name, data in files]
    for name, data, more in parts:
        body.write(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode())
        body.write(data + b"\r\n")
    body.write(f"--{boundary}--\r\n".encode())
    return body.getvalue(), "multipart/form-data; boundary=" + boundary


def read_layers(data, names):
    """The layers in a zip: one PNG a layer and layers.json. ServerError where it is none.

    names: role -> what the user reads.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            rows = json.loads(archive.read("layers.json"))["layers"]
            roles, layers = [row.get("role") for row in rows], []
            for number, row in enumerate(rows):
                role, (top, left) = roles[number], row["offset"]
                name = names.get(role, row["name"])
                if role in names and roles.count(role) > 1:
                    name += f" {roles[: number + 1].count(role)}"
                layers.append(NewLayer(name, archive.read(row["file"]), int(left), int(top)))
            return layers
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError) as failed:
        raise ServerError(f"The server's answer holds no layers ({failed}): update the plug-in.") from None


def _message(found):
    """The sentence of an error: a text, or an object with `message`."""
    return str(found.get("message", "")) if isinstance(found, dict) else found


def _refusal(body, status, url):
    try:
        found = _message(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError, AttributeError):
        found = None
    return found or f"{url} answered {status}: check that the address is one of `omnialpha serve`."
