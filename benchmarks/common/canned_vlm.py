"""A server in the place of a vision-language model: the real protocol, answers made up of the question alone.

Some answers are faulty the first time, some always, as those of real models are: which, the question decides.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from omnialpha.curation.prompts import Prompts

LOOKS = ("copper", "striped", "mossy", "glazed", "rusty", "woven", "speckled", "silver")
THINGS = ("lantern", "kettle", "owl", "boot", "drum", "crate", "fern", "clock")
PLACES = ("harbour quay", "attic workshop", "forest path", "stone courtyard", "night market", "mountain hut")
QUESTIONS = {name: getattr(Prompts.read(), name).text.strip()[:32] for name in Prompts.__annotations__}
FAULTS: tuple[tuple[str, float], ...] = (  # what comes the first time, and how often
    ("no form", 0.08), ("foreign", 0.04), ("plain", 0.04), ("500", 0.03), ("429", 0.02), ("broken", 0.02),
)  # fmt: skip
HOPELESS = 0.03  # of the questions are never answered well


class CannedVLM:
    """faulty: whether there are faults. pause: seconds that an answer takes.

    asked: questions by kind; accepted: whole conversations that ended in a good answer, by digest.
    """

    def __init__(self, faulty: bool = True, pause: float = 0.0) -> None:
        self.faulty, self.pause = faulty, pause
        self.asked: Counter[str] = Counter()
        self.accepted: Counter[str] = Counter()
        self.seen: set[str] = set()
        self.lock = threading.Lock()

    def answer(self, messages: list[dict[str, Any]]) -> tuple[int, str]:
        """A status, and what is said."""
        parts = messages[0]["content"]
        text = next(part["text"] for part in parts if part["type"] == "text")
        picture = next(part["image_url"]["url"] for part in parts if part["type"] == "image_url")
        kind = next(name for name, begins in QUESTIONS.items() if text.startswith(begins))
        digest = hashlib.sha256((text + picture).encode()).hexdigest()
        number = int(digest[:8], 16) / 16**8
        time.sleep(self.pause)
        with self.lock:
            self.asked[kind] += 1
            first, again = digest not in self.seen, len(messages) > 1
            self.seen.add(digest)
        fault = self._fault(number) if self.faulty else ""
        if fault == "hopeless" or (fault in ("no form", "foreign", "plain") and not again):
            return 200, self._bad(kind, fault)
        if fault.isdigit() and first:
            return int(fault), ""
        if fault == "broken" and first:
            return 0, ""
        with self.lock:
            self.accepted[digest] += 1
        return 200, self._good(kind, hashlib.sha256(picture.encode()).digest(), text)

    def _fault(self, number: float) -> str:
        if number < HOPELESS:
            return "hopeless"
        number -= HOPELESS
        for name, share in FAULTS:
            if number < share:
                return name
            number -= share
        return ""

    @staticmethod
    def _bad(kind: str, fault: str) -> str:
        if fault == "foreign":
            return "Eine schöne Szene."
        if fault == "plain" and kind == "instruction":
            return json.dumps({"Rewritten": "Replace the background with a clean white background."})
        return "I am sorry, I cannot help. It is late. Good night."

    @staticmethod
    def _good(kind: str, picture: bytes, text: str) -> str:
        look, thing = LOOKS[picture[0] % len(LOOKS)], THINGS[picture[1] % len(THINGS)]
        place = PLACES[picture[2] % len(PLACES)]
        if kind == "caption":
            said = f"A {look} {thing} with worn edges and a fine grain of dark and pale tones."
            return json.dumps({"subject": f"{look} {thing}", "caption": said})
        if kind in ("scene", "whole"):
            named = re.search(rf"\b({'|'.join(THINGS)})\b", text)
            subject = named[1] if named else thing
            return f"On the wet ground of a {place} rests the {subject}, with crates beside it in low evening light."
        if kind == "instruction":
            words = f"Replace the background with a {place}, barrels beside the subject, ropes along the far wall and"
            return json.dumps({"Rewritten": f"{words} lantern light from the left."})
        return f"A {place} with wet ground and barrels along the wall in low evening light."


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    vlm: CannedVLM

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, said = self.vlm.answer(body["messages"])
        if not status:
            self.close_connection = True
            return
        used = {"prompt_tokens": len(str(body["messages"][0]["content"][-1])) // 4, "completion_tokens": len(said) // 4}
        made = {"choices": [{"message": {"role": "assistant", "content": said}}], "usage": used}
        content = json.dumps(made if status == 200 else {"error": {"message": "busy"}}).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            if status == 429:
                self.send_header("Retry-After", "0.1")
            self.end_headers()
            self.wfile.write(content)
        except ConnectionError:
            self.close_connection = True  # the other side did not wait


class Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that was killed


@contextmanager
def serve(vlm: CannedVLM) -> Iterator[str]:
    """The address of a server, as a recipe has it."""
    listener = Listener(("127.0.0.1", 0), type("Bound", (Handler,), {"vlm": vlm}))
    threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.server_port}/v1"
    finally:
        listener.shutdown()
        listener.server_close()
