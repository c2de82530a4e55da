"""Thousands of requests drawn from a description of all routes, and damaged ones by hand: never a fault, none lost."""

import base64
import http.client
import socket
import struct
import zlib
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from served import StubEngine, disk, listening, multipart, png, until

EXPECTED = {200, 202, 204, 400, 401, 402, 403, 404, 405, 408, 409, 410, 413, 429, 503}
LIMITS = {"jobs_per_key": 10_000, "queue": 10_000, "max_megapixels": 1, "max_megabytes": 1}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, data: bytes) -> bytes:
    """A PNG whose header says one size, whatever its data hold."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")


def with_chunk(kind: bytes) -> bytes:
    """A PNG with 50 MB of zeros, packed, after its header."""
    return png()[:33] + chunk(kind, b"x\0\0" + zlib.compress(bytes(50_000_000), 9)) + png()[33:]


LARGE = 2**31 - 1
BOMBS = {
    "larger than all memory": png_of(LARGE, LARGE, b""),
    "a header of 0 px": png_of(0, 7, b""),
    "larger than the limit": png_of(30_000, 30_000, bytes(100)),
    "text that unpacks to 50 MB": with_chunk(b"zTXt"),
    "a profile that unpacks to 50 MB": with_chunk(b"iCCP"),
    "a GIF of 65535 px": b"GIF89a\xff\xff\xff\xff\xf0\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;",
    "a TIFF of 2**32 px": struct.pack(
        "<2sHIHHHIIHHIII", b"II", 42, 8, 2, 256, 4, 1, 2**32 - 1, 257, 4, 1, 2**32 - 1, 0
    ),
    "a BMP of 2**31 px": struct.pack("<2sIIIIiiHHIIiiII", b"BM", 60, 0, 54, 40, LARGE, -LARGE, 1, 24, 0, 0, 1, 1, 0, 0),
    "a PSD of 300000 px": struct.pack(">4sH6xHIIHH14x", b"8BPS", 1, 4, 300_000, 300_000, 8, 3),
    "cut off": png()[: len(png()) // 2],
    "nothing": b"",
}
WHOLE = [
    png(),
    png(),
    disk(),
    png((5, 3), "RGBA", (9, 9, 9, 0)),
    png((8, 8), "L", 7),
    png((1, 1)),
    png_of(4, 4, bytes(500_000)),
]
PICTURES = [*WHOLE, *BOMBS.values()]
VALUES: dict[str, list[Any]] = {  # that are taken more often than what is drawn by its type alone
    "prompt": ["a red mug"],
    "seed": [0, 255],
    "steps": [1, 2],
    "guidance": [1, 2.5],
    "layers": [2, 3],
    "frame": [0],
    "refine": ["auto", "off"],
    "shadow": ["drop", "keep"],
    "crop": ["0", "5%"],
    "background": ["white", "#336699"],
    "choke": [0, -1.5],
    "feather": [0, 2],
    "size": ["32x32"],
    "model": [""],
    "extras": ["{}"],
    "af": ["240"],
    "ab": ["10"],
    "ae": ["10"],
    "n": [1, 2],
}
FILE = {"type": "string", "format": "binary"}
TEXT = {"type": "string"}


def described(app: Any) -> dict[str, Any]:
    """The OpenAPI of an application, with the bodies that its routes read themselves, and a path for each task."""
    from omnialpha.run_options import options_of
    from omnialpha.server import openai_images, rembg, removebg
    from omnialpha.tasks import TASKS

    kinds = {int: "integer", float: "number", bool: "boolean", str: "string"}

    def body(files: Any, texts: dict[str, Any], required: Any = (), json: Any = None) -> dict[str, Any]:
        whole: dict[str, Any] = {"type": "object", "additionalProperties": False}
        form = whole | {"properties": texts | dict.fromkeys(files, FILE), "required": list(required)}
        content = {"multipart/form-data": {"schema": form}}
        if json is not None:
            content["application/json"] = {"schema": whole | {"properties": texts | json}}
        return {"requestBody": {"required": True, "content": content}}

    def choices(rows: dict[str, tuple[str, ...]]) -> dict[str, Any]:
        return {name: {"type": "string", "enum": list(values)} for name, values in rows.items()}

    values = {name: {"enum": row} for name, row in VALUES.items()}
    made = app.openapi()
    paths = made["paths"]
    answers = {"responses": {"default": {"description": "any"}}}
    for row in TASKS.values():
        texts = {name: {"type": kinds[one.kind]} for name, one in options_of(row).items()} | values
        texts = {name: texts[name] for name in options_of(row)}
        paths[f"/v1/tasks/{row.name}"] = {"post": body(row.inputs, texts, row.inputs) | answers}
    flags = {name: {"type": "boolean"} for name in rembg.FLAGS}
    texts = (
        {name: values.get(name, TEXT) for name in rembg.OPTIONS}
        | flags
        | {"bgc": {"enum": ["1,2,3,4", "0,0,0,0", "x"]}}
    )
    query = [{"name": name, "in": "query", "schema": row} for name, row in texts.items()]
    paths["/api/remove"]["post"] |= body(["file"], texts, ["file"]) | {"parameters": query}
    paths["/api/remove"]["get"] |= {"parameters": [*query, {"name": "url", "in": "query", "schema": TEXT}]}
    lengths = ["10%", "30px", "original", "center", "1px 2px 3px 4px", "0px 0px 50% 100%", "1e9%"]
    texts = dict.fromkeys(removebg.TEXTS, TEXT) | choices(removebg.CHOICES) | {"crop": {"type": "boolean"}}
    texts |= {name: {"enum": lengths} for name in ("crop_margin", "scale", "position", "roi")}
    del texts["image_file_b64"], texts["image_url"], texts["bg_image_url"]
    encoded = {"image_file_b64": {"enum": [base64.b64encode(one).decode() for one in PICTURES]}}
    both = ["image_file", "bg_image_file"]
    paths["/v1.0/removebg"]["post"] |= body(both, texts, ["image_file"], encoded)
    texts = (
        dict.fromkeys(openai_images.TEXTS, TEXT)
        | choices(openai_images.CHOICES)
        | {"n": values["n"], "model": values["model"]}
    )
    texts |= {"size": {"enum": ["auto", "96x96", "1x1", "99999x99999"]}, "seed": values["seed"]}
    paths["/v1/images/generations"]["post"] |= body([], texts, ["prompt"], {"extra": {"type": "array"}})
    url = {"enum": ["data:image/png;base64," + base64.b64encode(one).decode() for one in PICTURES] + ["http://[::1]/"]}
    one = {"type": "object", "properties": {"image_url": url}, "required": ["image_url"]}
    texts |= {"task": {"enum": [*TASKS, "none"]}, "layers": values["layers"], "raw": {"type": "boolean"}}
    given = {"images": {"type": "array", "items": one}, "mask": one}
    paths["/v1/images/edits"]["post"] |= body(["image", "mask"], texts, ["image"], given)
    return made


def nothing_is_left(server: Any) -> None:
    """Every job that was taken has ended, and the queue is empty; no fault was counted."""
    state = server.config.app.state.server
    until(lambda: not state.queue.waiting and not state.queue.running)
    assert all(job.call is None for job in state.queue.jobs.values())
    assert state.metrics.faults._value.get() == 0


def fuzz(engine: StubEngine, count: int) -> Counter[int]:
    """Statuses of so many requests, half of them as described and half not."""
    import schemathesis
    from schemathesis.transport.serialization import Binary

    seen: Counter[int] = Counter()
    files = st.sampled_from(WHOLE * 6 + PICTURES) | st.sampled_from(WHOLE) | st.binary(max_size=200)
    schemathesis.openapi.format("binary", files.map(Binary))
    with listening(engine, **LIMITS) as (url, server):
        schema = schemathesis.openapi.from_dict(described(server.config.app))
        modes = [schema.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode]

        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.one_of(*modes))
        def ask(case: Any) -> None:
            answer = case.call(base_url=url)
            seen[answer.status_code] += 1
            assert answer.status_code in EXPECTED, (case.as_curl_command(), answer.content[:300])
            if answer.status_code >= 400 and case.method != "HEAD":
                assert answer.json(), case.as_curl_command()

        ask()
        nothing_is_left(server)
    return seen


def test_requests_of_the_described_routes(engine: StubEngine) -> None:
    assert sum(fuzz(engine, 100).values()) >= 100


@pytest.mark.slow
def test_thousands_of_requests(engine: StubEngine) -> None:
    seen = fuzz(engine, 5000)
    assert seen[200] + seen[202] > 250, seen  # not all stop at the first check


UPLOADS = {"/v1/tasks/matting_auto": "composite", "/api/remove": "file", "/v1.0/removebg": "image_file"}
UPLOADS |= {"/v1/images/edits": "image"}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str, engine: StubEngine) -> None:
    """What unpacks to more than it says, or says more than there is, is refused before it takes memory."""
    import requests

    with listening(engine, **LIMITS) as (url, server):
        for path, field in UPLOADS.items():
            answer = requests.post(url + path, files={field: ("x", BOMBS[name])}, timeout=60)
            assert answer.status_code in (400, 413), (path, answer.status_code, answer.content[:200])
            assert answer.json()
        text = base64.b64encode(BOMBS[name]).decode()
        bodies: dict[str, Any] = {"/v1.0/removebg": {"image_file_b64": text}}
        bodies["/v1/images/edits"] = {"images": [{"image_url": f"data:image/png;base64,{text}"}]}
        for path, body in bodies.items():
            assert requests.post(url + path, json=body, timeout=60).status_code in (400, 413), path
        nothing_is_left(server)


JSON = [b"", b"{", b"[]", b"null", b'"x"', b"{}", b'{"prompt":', b'{"prompt": NaN}', b'{"prompt": {}}', b'{"a": 1e999}']
JSON += [b'{"images": 1}', b'{"images": [[]]}', b'{"images": [{"image_url": 1}]}', b'{"images": []}', b"\xff\xfe{}"]
JSON += [b'{"images": [{"image_url": "data:"}]}', b'{"images": [{"image_url": "data:,%"}]}', b"[" * 100_000]
JSON += [b'{"prompt": "\\ud800"}', b'{"prompt": "a", "n": 1e400}', b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}"]
JSON += [b'{"image_file_b64": "===="}', b'{"image_file_b64": ""}', b'{"image_file_b64": []}', b'{"roi": "1 1"}']


@pytest.mark.parametrize("path", [*UPLOADS, "/v1/images/generations"])
def test_broken_json(path: str, engine: StubEngine) -> None:
    import requests

    with listening(engine, **LIMITS) as (url, server):
        for body in JSON:
            answer = requests.post(url + path, data=body, headers={"Content-Type": "application/json"}, timeout=30)
            assert 400 <= answer.status_code < 500, (body[:80], answer.status_code, answer.content[:200])
            assert answer.json()
        nothing_is_left(server)


def test_uploads_that_end_early(engine: StubEngine) -> None:
    """Bodies that are shorter than they say, or cut off within a chunk: nothing is queued, and others are answered."""
    body, kind = multipart("composite", png())
    with listening(engine, upload_seconds=1.0, **LIMITS) as (url, server):
        parts = urlsplit(url)
        for path in UPLOADS:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
            for sent in (
                f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[: len(body) // 2],
                f"{head}Content-Length: 999999999999999999999\r\n\r\n".encode() + body,
                f"{head}Content-Length: -1\r\n\r\n".encode() + body,
                f"{head}Transfer-Encoding: chunked\r\n\r\n40\r\n".encode() + body[:30],
                f"{head}Transfer-Encoding: chunked\r\n\r\nzz\r\n".encode() + body[:30],
                head.encode(),
            ):
                with socket.create_connection((parts.hostname, parts.port)) as client:
                    client.sendall(sent)
        slow = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
        slow.putrequest("POST", "/api/remove")
        slow.putheader("Content-Type", kind)
        slow.putheader("Content-Length", str(len(body)))
        slow.endheaders()
        slow.send(body[:100])
        assert slow.getresponse().status == 408
        slow.close()
        state = server.config.app.state.server
        assert not state.queue.jobs
        whole = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
        whole.request("POST", "/v1/tasks/matting_auto", body, {"Content-Type": kind, "Prefer": "wait=20"})
        assert whole.getresponse().status == 200
        whole.close()
        nothing_is_left(server)
