"""A server on this machine that speaks as much of a hub's protocol as `omnialpha pull` needs.

One repository, whose files and behaviour a test changes as it goes: `with serve(Hub(files)) as url: ...`.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ID = "someone/thing"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What the server holds, and what it saw."""

    def __init__(self, files: Mapping[str, bytes], hub_id: str = ID) -> None:
        self.id, self.files, self.commit = hub_id, dict(files), COMMIT
        self.card: dict[str, Any] = {"license": "apache-2.0"}
        self.token: str | None = None  # that is asked for, if any
        self.refusal = (401, "GatedRepo")
        self.cut: int | None = None  # bytes of a file after which the connection breaks, once and for all
        self.stated: dict[str, str] = {}  # checksums stated instead of the true ones
        self.requests: list[tuple[str, str, dict[str, str]]] = []  # method, path, headers

    def gets(self, path: str) -> list[dict[str, str]]:
        """Headers of the requests for the bytes of a file."""
        return [headers for method, url, headers in self.requests if method == "GET" and url == f"/cdn/{path}"]

    def checksum(self, path: str) -> str:
        """What is stated of a file: SHA-256 of weights, git's blob id of the rest."""
        content = self.files[path]
        blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content)
        return self.stated.get(path, (hashlib.sha256(content) if path.endswith(".safetensors") else blob).hexdigest())

    def info(self) -> dict[str, Any]:
        siblings = []
        for path, content in self.files.items():
            row: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": self.checksum(path)}
            if path.endswith(".safetensors"):
                row["lfs"] = {"sha256": self.checksum(path), "size": len(content), "pointerSize": 130}
            siblings.append(row)
        return {"id": self.id, "sha": self.commit, "siblings": siblings, "cardData": self.card}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        hub.requests.append((self.command, path, dict(self.headers.items())))
        if path.startswith("/cdn/"):
            self.send_bytes(hub.files[path.removeprefix("/cdn/")])
        elif not re.match(rf"/(api/models/)?{hub.id}(/|$)", path):
            self.answer(401, X_Error_Code="RepoNotFound")
        elif hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self.answer(hub.refusal[0], X_Error_Code=hub.refusal[1])
        elif path.startswith("/api/") and not path.endswith("/revision/main"):
            self.answer(404, X_Error_Code="RevisionNotFound")
        elif path.startswith("/api/"):
            self.answer(200, json.dumps(hub.info()).encode(), Content_Type="application/json")
        else:  # another host, as the real one sends large files from
            port = self.server.server_port  # type: ignore[attr-defined]
            name = path.partition(f"/resolve/{hub.commit}/")[2]
            tag = hub.checksum(name)
            self.answer(
                302,
                Location=f"http://localhost:{port}/cdn/{name}",
                X_Repo_Commit=hub.commit,
                X_Linked_Etag=f'"{tag}"',
                X_Linked_Size=str(len(hub.files[name])),
            )

    def send_bytes(self, content: bytes) -> None:
        hub = self.hub
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if hub.cut is None or len(content) <= hub.cut:
            self.wfile.write(content[start:])
            return
        self.wfile.write(content[start : start + hub.cut])
        hub.cut = 0  # from now on nothing more comes
        self.close_connection = True

    do_HEAD = do_GET


@contextmanager
def serve(hub: Hub) -> Iterator[str]:
    """The address of a server of `hub`."""
    listener = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.server_port}"
    finally:
        listener.shutdown()
        listener.server_close()
