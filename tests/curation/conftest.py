"""A server of pictures, as `/images/edits` of OpenAI's protocol has them."""

import base64
import io
import json
import threading
from collections.abc import Iterator
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image


class ImageServer:
    """Gives a picture back with its grey, or what its mask leaves clear, in one colour. fields: of each request."""

    def __init__(self) -> None:
        self.fields: list[dict[str, bytes]] = []
        self.url, self.status, self.answer = "", 200, b""

    def respond(self, fields: dict[str, bytes]) -> bytes:
        self.fields.append(fields)
        if self.answer:
            return self.answer
        pixels = np.array(Image.open(io.BytesIO(fields["image"])).convert("RGB"))
        if "mask" in fields:
            clear = np.asarray(Image.open(io.BytesIO(fields["mask"])))[..., 3] == 0
        else:
            clear = (pixels == 128).all(-1)
        pixels[clear] = (20, 120, 60)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return json.dumps({"data": [{"b64_json": base64.b64encode(file.getvalue()).decode()}]}).encode()


@pytest.fixture
def image_server() -> Iterator[ImageServer]:
    server = ImageServer()

    class Edits(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

        def do_POST(self) -> None:
            assert self.path == "/v1/images/edits"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            message = message_from_bytes(f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode() + body)
            fields = {
                str(part.get_param("name", header="content-disposition")): part.get_payload(decode=True)
                for part in message.get_payload()
            }
            content = server.respond(fields)  # type: ignore[arg-type]
            self.send_response(server.status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Edits)
    threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
    server.url = f"http://127.0.0.1:{listener.server_port}/v1"
    yield server
    listener.shutdown()
    listener.server_close()
