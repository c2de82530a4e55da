"""A server with the native interface of `omnialpha serve`, whose jobs make fixed layers."""

import io
import json
import re
import threading
import zipfile
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

SIZE = (12, 8)  # width, height
COLOURS = {"background": (10, 200, 30, 255), "foreground": (250, 20, 40, 128)}
TARGETS = {"matting": ["foreground"], "removal": ["background"], "decompose": ["background", "foreground"]}


def png(colour: tuple[int, ...], size: tuple[int, int] = SIZE) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA" if len(colour) == 4 else "L", size, colour if len(colour) == 4 else colour[0]).save(buffer, "PNG")
    return buffer.getvalue()


def archive(roles: list[str]) -> bytes:
    """As `LayerStack.save` writes it. Foregrounds are of half the size and lie at (left, top) = (3, 2)."""
    buffer, rows = io.BytesIO(), []
    with zipfile.ZipFile(buffer, "w") as made:
        for number, role in enumerate(roles):
            front = role == "foreground"
            file = f"{number:02}-{role}.png"
            made.writestr(file, png(COLOURS[role], (6, 4) if front else SIZE))
            rows.append({"name": f"{role}-{number}", "file": file, "offset": [2, 3] if front else [0, 0], "role": role})
        index = {"format": "omnialpha-layers", "version": 1, "size": [SIZE[1], SIZE[0]], "layers": rows}
        made.writestr("layers.json", json.dumps(index))
    return buffer.getvalue()


@dataclass
class PluginServer:
    """What came in, and how it is answered. answers: (status, body) before anything else."""

    steps: int = 2
    error: Any = None
    answers: list[tuple[int, bytes]] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    cancelled: bool = False
    asked: int = 0
    url: str = ""

    def __enter__(self) -> "PluginServer":
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.answer(*owner.reply(self.command, self.path, dict(self.headers), body))

            do_GET = do_POST = do_DELETE = do_any

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    def reply(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        """Status and body of an answer."""
        if self.answers:
            return self.answers.pop(0)
        if method == "POST" and (task := re.fullmatch(r"/v1/tasks/(\w+)", path)):
            self.tasks.append(task[1])
            self.asked = 0
            self._read_form(headers, body)
            return 202, json.dumps({"id": "a1", "state": "queued", "links": {"self": "/v1/jobs/a1"}}).encode()
        if (method, path) == ("GET", "/v1/jobs/a1"):
            self.asked += 1
            done = self.asked > self.steps
            state = ("failed" if self.error else "done") if done else "running"
            progress = {"step": min(self.asked, self.steps), "total": self.steps}
            return 200, json.dumps({"id": "a1", "state": state, "progress": progress, "error": self.error}).encode()
        if (method, path) == ("GET", "/v1/jobs/a1/result?format=zip"):
            return 200, archive(TARGETS[self.tasks[-1].partition("_")[0]])
        if (method, path) == ("DELETE", "/v1/jobs/a1"):
            self.cancelled = True
            return 204, b""
        return 404, b"nothing here"

    def _read_form(self, headers: dict[str, str], body: bytes) -> None:
        self.headers, self.files, self.fields = headers, {}, {}
        message = message_from_bytes(f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body)
        for part in message.get_payload():
            name, data = part.get_param("name", header="content-disposition"), part.get_payload(decode=True)
            if part.get_filename():
                self.files[name] = data
            else:
                self.fields[name] = data.decode()
