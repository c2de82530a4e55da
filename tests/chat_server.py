"""A server on this machine that speaks as much of the chat protocol as a judge needs, and misbehaves as it is told.

`with serve(Chat(choose)) as url: ...`, where `choose` says which answer a question gets.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Messages = list[dict[str, Any]]
Choose = Callable[[Messages], str]


def good(verdict: str, reason: str = "because") -> str:
    """An answer in the asked form."""
    return json.dumps({"reason": reason, "verdict": verdict})


def texts(messages: Messages) -> list[str]:
    """All that is said in the first message, but for pictures."""
    return [part["text"] for part in messages[0]["content"] if part["type"] == "text"]


def pictures(messages: Messages) -> dict[str, str]:
    """Data URIs by the label before each."""
    parts = messages[0]["content"]
    return {
        before["text"]: part["image_url"]["url"]
        for before, part in zip(parts, parts[1:], strict=False)
        if part["type"] == "image_url"
    }


class Chat:
    """choose: messages -> what the model says. trouble: what is answered first, each once: (status, body, headers),
    status 0 being a broken connection, or seconds to stay silent for.
    """

    def __init__(self, choose: Choose, trouble: Sequence[tuple[int, bytes, dict[str, str]] | float] = ()) -> None:
        self.choose, self.trouble = choose, list(trouble)
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []  # path, headers by lower-case name, body
        self.times: list[float] = []  # seconds
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()

    def answer(self, body: dict[str, Any]) -> bytes:
        said = {"role": "assistant", "content": self.choose(body["messages"])}
        return json.dumps({"choices": [{"message": said}]}).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    chat: Chat

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        chat = self.chat
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with chat.lock:
            chat.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            chat.times.append(time.monotonic())
            trouble = chat.trouble.pop(0) if chat.trouble else None
            chat.under_way += 1
            chat.most_under_way = max(chat.most_under_way, chat.under_way)
        if isinstance(trouble, float):
            time.sleep(trouble)
        if isinstance(trouble, tuple):
            status, content, headers = trouble
        else:
            status, content, headers = 200, chat.answer(body), {}
        with chat.lock:
            chat.under_way -= 1
        if not status:
            self.close_connection = True
            return
        try:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
        except ConnectionError:
            self.close_connection = True  # the other side did not wait


@contextmanager
def serve(chat: Chat) -> Iterator[str]:
    """The address of a server of `chat`, as a judge is given it."""
    listener = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"chat": chat}))
    threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.server_port}/v1"
    finally:
        listener.shutdown()
        listener.server_close()
