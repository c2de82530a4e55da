"""Back-pressure, keys, limits, and what is kept."""

import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from served import Serve, StubEngine, png, until

PICTURE = {"composite": ("secret-name.png", png(), "image/png")}
CUT = "/v1/tasks/matting_auto"
ALL = ("/v1/tasks/matting_auto", "/api/remove", "/v1.0/removebg", "/v1/images/edits", "/v1/images/generations")


def server_of(client: Any) -> Any:
    return client.app.state.server


# ---- back-pressure ---------------------------------------------------------------------------------------------------


def test_a_full_queue(serve: Serve, engine: StubEngine) -> None:
    client = serve(queue=2)
    engine.gate.clear()
    client.post(CUT, files=PICTURE)
    until(lambda: server_of(client).queue.running)
    assert [client.post(CUT, files=PICTURE).status_code for _ in range(3)] == [202, 202, 429]
    refused = client.post("/api/remove", files={"file": ("x", png())})
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
    assert "queue is full, with 2 jobs" in refused.json()["detail"]
    as_openai = client.post("/v1/images/generations", data={"prompt": "a", "n": 3})
    assert as_openai.status_code == 429 and as_openai.json()["error"]["code"] == "rate_limit_exceeded"
    as_removebg = client.post("/v1.0/removebg", files={"image_file": ("x", png())})
    assert as_removebg.status_code == 429 and as_removebg.json()["errors"][0]["code"] == "rate_limit_exceeded"
    engine.gate.set()
    until(lambda: client.post(CUT, files=PICTURE).status_code == 202)


def test_memory_of_the_queue(serve: Serve, engine: StubEngine) -> None:
    client = serve(queue_megapixels=0.001)  # one picture has 768 pixels
    engine.gate.clear()
    client.post(CUT, files=PICTURE)
    until(lambda: server_of(client).queue.running)
    assert [client.post(CUT, files=PICTURE).status_code for _ in range(2)] == [202, 429]


def test_jobs_of_one_key(serve: Serve, engine: StubEngine, tmp_path: Path) -> None:
    from omnialpha.server.keys import add_key

    path = tmp_path / "keys.txt"
    one, other = add_key(path, "one"), add_key(path, "other", credits=2)
    client = serve(keys=path, jobs_per_key=1)
    engine.gate.clear()
    mine = client.post(CUT, files=PICTURE, headers={"X-Api-Key": one})
    assert mine.status_code == 202
    busy = client.post(CUT, files=PICTURE, headers={"Authorization": f"Bearer {one}"})
    assert busy.status_code == 429 and "you have 1 of 1" in busy.text
    assert client.post(CUT, files=PICTURE, headers={"X-Api-Key": other}).status_code == 202
    assert client.post(CUT, files=PICTURE, headers={"X-Api-Key": other}).status_code == 429  # costs nothing
    assert client.get(mine.headers["location"], headers={"X-Api-Key": other}).status_code == 404
    assert client.delete(mine.headers["location"], headers={"X-Api-Key": other}).status_code == 404
    assert client.get(mine.headers["location"], headers={"X-Api-Key": one}).status_code == 200


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_keys_and_credits(serve: Serve, tmp_path: Path) -> None:
    from omnialpha.server.keys import add_key

    path = tmp_path / "keys.txt"
    key = add_key(path, "shop", credits=2)
    assert key not in path.read_text() and sha256(key.encode()).hexdigest() in path.read_text()
    client = serve(keys=path)
    for where in ALL:
        for headers, status in (({}, 401), ({"X-Api-Key": "wrong"}, 403), ({"Authorization": "Basic x"}, 401)):
            answer = client.post(where, headers=headers)
            assert answer.status_code == (403 if where.startswith("/v1.0") else status), where
            assert "key" in answer.text
    for where in ("/v1/tasks", "/v1/models", "/v1.0/account", "/v1/jobs/x", "/v1/jobs/x/events", "/v1/jobs/x/result"):
        assert client.get(where).status_code in (401, 403)
    assert all(client.get(where).status_code == 200 for where in ("/healthz", "/readyz", "/metrics"))

    own = {"X-Api-Key": key}
    image = {"image_file": ("x", png())}
    for left in (1, 0):
        charged = client.post("/v1.0/removebg", files=image, headers=own)
        assert charged.status_code == 200 and charged.headers["x-credits-charged"] == "1"
        credits = client.get("/v1.0/account", headers=own).json()["data"]["attributes"]["credits"]
        assert credits["total"] == credits["payg"] == left
    empty = client.post("/v1.0/removebg", files=image, headers=own)
    assert empty.status_code == 402 and empty.json()["errors"][0]["code"] == "insufficient_credits"
    assert client.post(CUT, files=PICTURE, headers=own).status_code == 402


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "name short", "a b c d", f"na/me {'0' * 64}", f"name {'0' * 64} -1"]
)
def test_files_of_keys_that_are_none(text: str, tmp_path: Path) -> None:
    from omnialpha.errors import InputError
    from omnialpha.server.keys import ApiKeys, add_key

    path = tmp_path / "keys.txt"
    path.write_text(text)
    with pytest.raises(InputError, match="--add-key NAME"):
        ApiKeys.read(path)
    with pytest.raises(InputError, match="cannot be read"):
        ApiKeys.read(tmp_path / "none.txt")
    with pytest.raises(InputError, match="no name of a key"):
        add_key(path, "na me")


def test_a_key_is_added_once(tmp_path: Path) -> None:
    from omnialpha.errors import InputError
    from omnialpha.server.keys import ApiKeys, add_key

    path = tmp_path / "keys.txt"
    keys = {name: add_key(path, name) for name in ("a", "b")}
    assert {name: ApiKeys.read(path).find(key).name for name, key in keys.items()} == {"a": "a", "b": "b"}
    assert path.stat().st_mode & 0o077 == 0
    with pytest.raises(InputError, match="has a key 'a' already"):
        add_key(path, "a")


# ---- limits ----------------------------------------------------------------------------------------------------------


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG of few bytes that says that it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(10_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_pictures_that_are_too_large(serve: Serve) -> None:
    client = serve(max_megapixels=0.01, max_megabytes=0.2)
    for data in (bomb(), bomb(15_000, 15_000), bomb(200, 200), png((101, 100))):
        began = time.monotonic()
        answer = client.post(CUT, files={"composite": ("x", data)})
        assert answer.status_code == 413 and "0.01 megapixels" in answer.text and time.monotonic() - began < 2
        assert client.post("/v1.0/removebg", files={"image_file": ("x", data)}).status_code == 400
        assert client.post("/v1/images/edits", files={"image": ("x", data)}).json()["error"]["code"] == "too_large"
    assert client.post(CUT, files={"composite": ("x", png((100, 100)))}).status_code == 202
    large = client.post(CUT, files={"composite": ("x", bytes(300_000))})
    assert large.status_code == 413 and "200,000 bytes" in large.json()["error"]["message"]
    chunks = client.post(CUT, content=(bytes(50_000) for _ in range(9)), headers={"Content-Type": "application/json"})
    assert chunks.status_code == 413
    assert client.post("/v1/tasks/text_to_image", data={"prompt": "a", "size": "200x200"}).status_code == 413


def test_a_job_that_takes_too_long(serve: Serve, engine: StubEngine) -> None:
    client = serve(job_seconds=0.1)
    engine.gate.clear()
    answer = client.post("/v1/tasks/removal_auto", files=PICTURE, data={"steps": 9}, headers={"Prefer": "wait=9"})
    assert answer.status_code == 504 and "stopped after 0.1 s" in answer.json()["error"]["message"]


def test_results_are_kept_for_a_while(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    from omnialpha.server import jobs

    client = serve(result_seconds=100)
    made = client.post(CUT, files=PICTURE).json()["links"]
    until(lambda: client.get(made["self"]).json()["state"] == "done")
    assert client.get(made["result"]).status_code == 200
    monkeypatch.setattr(jobs, "monotonic", lambda: time.monotonic() + 101)
    gone = client.get(made["result"])
    assert gone.status_code == 410 and gone.json()["error"]["code"] == "gone"
    monkeypatch.setattr(jobs, "monotonic", lambda: time.monotonic() + 301)
    assert client.get(made["result"]).status_code == 404


def test_results_are_kept_up_to_a_size(serve: Serve) -> None:
    client = serve(result_megabytes=0.0012)  # a result has about 0.7 KB
    links = []
    for _ in range(4):
        links.append(client.post(CUT, files=PICTURE).json()["links"])
        until(lambda: client.get(links[-1]["self"]).json()["state"] == "done")
    states = [client.get(link["result"]).status_code for link in links]
    assert states[0] == 410 and states[-1] == 200
    assert server_of(client).queue.result_bytes() <= 1200


@pytest.mark.parametrize(
    "wrong", [{"queue": 0}, {"job_seconds": -1.0}, {"max_megapixels": 100.0}, {"batch": float("nan")}]
)
def test_limits_that_are_none(wrong: Any) -> None:
    from omnialpha.errors import InputError
    from omnialpha.server.config import ServerConfig

    with pytest.raises(InputError, match=next(iter(wrong))):
        ServerConfig(**wrong)


def test_all_requests_together_have_a_limit(serve: Serve, engine: StubEngine) -> None:
    client = serve(total_megabytes=0.001)
    assert client.post(CUT, files=PICTURE).status_code == 202  # the only one may be larger
    until(lambda: engine.seen and not server_of(client).queue.running)
    engine.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/api/remove", files={"file": ("x", bytes(900) + png())})
        held = pool.submit(client.post, "/api/remove", files={"file": ("x", png((64, 200)))})
        assert first.result().status_code == 400
        until(lambda: server_of(client).queue.running)
        refused = [client.post(CUT, files={"composite": ("x", png() + bytes(900))}) for _ in range(2)]
        assert [answer.status_code for answer in refused] == [429, 429] and refused[0].headers["retry-after"]
        engine.gate.set()
        assert held.result().status_code == 200
    assert client.post(CUT, files=PICTURE).status_code == 202


def test_names_and_pages_that_are_not_its_own(serve: Serve) -> None:
    client = serve(hosts="testserver,localhost,[::1], Pictures.example")
    for host, status in (
        ("localhost", 200),
        ("localhost:7000", 200),
        ("[::1]:7000", 200),
        ("pictures.example", 200),
        ("rebound.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1", 403),
        ("", 403),
    ):
        assert client.get("/v1/tasks", headers={"Host": host}).status_code == status, host
    across = {"Host": "localhost", "Sec-Fetch-Site": "cross-site"}
    assert client.post(CUT, files=PICTURE, headers=across).status_code == 403
    assert client.get("/v1/tasks", headers=across).status_code == 200
    assert client.post(CUT, files=PICTURE, headers=across | {"Sec-Fetch-Site": "same-origin"}).status_code == 202
