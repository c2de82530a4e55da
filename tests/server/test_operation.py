"""Back-pressure, limits, keys, what is kept, figures, logs, and the end of a server."""

import io
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from served import Serve, StubEngine, listening, multipart, opened, png, until

PICTURE = {"composite": ("secret-name.png", png(), "image/png")}
CUT = "/v1/tasks/matting_auto"
ALL = ("/v1/tasks/matting_auto", "/api/remove", "/v1.0/removebg", "/v1/images/edits", "/v1/images/generations")


def server_of(client: Any) -> Any:
    return client.app.state.server


# ---- back-pressure -------------------------------------------------------------------------------------------------


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


# ---- keys ----------------------------------------------------------------------------------------------------------


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


# ---- limits --------------------------------------------------------------------------------------------------------


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


# ---- damaged requests ----------------------------------------------------------------------------------------------

HEAD = b'--b\r\nContent-Disposition: form-data; name="composite"; filename="x"\r\n\r\n'
BODIES = [
    b"",
    b"--b",
    b"--b--",
    b"--b\r\n\r\n\r\n--b--",
    HEAD,
    HEAD + b"abc",
    HEAD + b"abc\r\n--b",
    HEAD + png()[:60] + b"\r\n--b--\r\n",
    b"--c\r\n\r\nabc\r\n--c--",
    b"--b\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--b--\r\n",
    b'--b\r\nContent-Disposition: form-data; name="\xff\xfe"\r\n\r\nabc\r\n--b--\r\n',
    b'--b\r\nContent-Disposition: form-data; name="steps"\r\n\r\n\xff\xfe\r\n--b--\r\n',
    b"--b\r\n" + b"A" * 70_000 + b": x\r\n\r\nabc\r\n--b--\r\n",
    b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c--\r\n--b--\r\n",
    b"\x00" * 1000,
    b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n\r\n' * 200 + b"--b--\r\n",
]
TYPES = [
    "multipart/form-data; boundary=b",
    "multipart/form-data",
    "multipart/form-data; boundary=",
    "multipart/form-data; boundary=b; charset=nonsense",
    "application/x-www-form-urlencoded",
    "application/json",
    "text/plain",
    "",
]


@pytest.mark.parametrize("kind", TYPES)
def test_damaged_bodies(kind: str, serve: Serve) -> None:
    client = serve()
    for where in ALL:
        for body in BODIES:
            answer = client.post(where, content=body, headers={"Content-Type": kind} if kind else {})
            assert 400 <= answer.status_code < 500, (where, body[:60], answer.text)
            assert answer.json(), answer.text


def test_pictures_made_by_chance(serve: Serve) -> None:
    client, whole = serve(jobs_per_key=10_000, queue=10_000), png()
    heads = st.sampled_from(
        [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"RIFF\0\0\0\0WEBP", b"\xff\xd8\xff\xe0", b"BM"]
    )
    changed = st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)).map(
        lambda at: whole[: at[0]] + bytes([at[1]]) + whole[at[0] + 1 :]
    )

    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.tuples(heads, st.binary(max_size=300)).map(b"".join) | changed)
    def ask(data: bytes) -> None:
        answer = client.post("/api/remove", files={"file": ("x", data)})
        assert answer.status_code in (200, 400, 413), answer.text
        assert answer.status_code == 200 or "traceback" not in answer.text.lower()

    ask()


def test_odd_values_of_fields(serve: Serve) -> None:
    client = serve()
    odd = [
        "",
        " ",
        "\0",
        "é" * 3000,
        "-1",
        "1e999",
        "NaN",
        "9" * 400,
        "[]",
        "١",
        "../../etc",
        "%s%n",
        "\ud7ff",
        "1" * 5000,
    ]
    for name in ("seed", "steps", "guidance", "frame", "raw", "layers", "prompt"):
        for value in odd:
            answer = client.post(CUT, files=PICTURE, data={name: value})
            assert answer.status_code in (202, 400, 429), (name, value, answer.text)
    for name in ("bg_color", "roi", "scale", "position", "crop_margin", "size", "image_url", "image_file_b64"):
        for value in odd:
            files = {} if name.startswith("image") else {"image_file": ("x", png())}
            crop = {"crop": "true"} if name == "crop_margin" else {}
            answer = client.post("/v1.0/removebg", files=files, data={name: value} | crop)
            assert answer.status_code in (200, 400, 403, 429), (name, value, answer.text)
    for value in odd:
        for name in ("n", "size", "seed", "prompt", "background", "task"):
            answer = client.post("/v1/images/generations", data={"prompt": "a"} | {name: value})
            assert answer.status_code in (200, 400, 413, 429), (name, value, answer.text)
    for name in ("%00", "a" * 3000, "..%2f..", "%F0%9F%98%80"):
        assert client.get(f"/v1/jobs/{name}").status_code == 404
        assert client.post(f"/v1/tasks/{name}").status_code in (400, 404)


# ---- several at once -----------------------------------------------------------------------------------------------


def test_concurrent_requests_get_their_own_answers(serve: Serve) -> None:
    client = serve(jobs_per_key=100)

    def ask(seed: int) -> int:
        files = {"composite": ("x", png())}
        answer = client.post(CUT, files=files, data={"seed": seed}, headers={"Prefer": "wait=30"})
        return int(opened(answer.content).getpixel((0, 23))[0])

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(48))) == list(range(48))


def test_equal_requests_are_run_together(serve: Serve, engine: StubEngine) -> None:
    client = serve(batch=3)
    engine.gate.clear()
    client.post(CUT, files=PICTURE, data={"seed": 9})
    until(lambda: server_of(client).queue.running)
    kinds = [{"steps": 2}, {"steps": 3}, {"steps": 2}, {"steps": 2}, {"steps": 2}]
    jobs = [
        client.post("/v1/tasks/removal_auto", files=PICTURE, data=k | {"seed": n}).json() for n, k in enumerate(kinds)
    ]
    client.delete(jobs[2]["links"]["self"])
    engine.gate.set()
    rest = [jobs[k] for k in (0, 1, 3, 4)]
    until(lambda: all(client.get(j["links"]["self"]).json()["state"] == "done" for j in rest))
    assert [len(run) for run in engine.seen] == [1, 3, 1]
    colours = [opened(client.get(j["links"]["result"]).content).getpixel((0, 23))[0] for j in rest]
    assert colours == [0, 1, 3, 4]


def test_a_worker_for_each_device(serve: Serve, engine: StubEngine) -> None:
    other = StubEngine(engine.card)
    client = serve(engines=[engine, other])
    for one in (engine, other):
        one.gate.clear()
    jobs = [client.post(CUT, files=PICTURE, data={"seed": n}).json()["links"] for n in (5, 6, 7)]
    until(lambda: len(server_of(client).queue.running) == 2)
    assert [client.get(job["self"]).json()["state"] for job in jobs] == ["running", "running", "queued"]
    for one in (engine, other):
        one.gate.set()
    until(lambda: client.get(jobs[2]["self"]).json()["state"] == "done")
    assert [opened(client.get(job["result"]).content).getpixel((0, 23))[0] for job in jobs] == [5, 6, 7]
    assert engine.seen and other.seen


def test_a_mistake_in_a_batch_is_that_of_one_job(serve: Serve, engine: StubEngine, monkeypatch: Any) -> None:
    from omnialpha.errors import InputError

    whole = engine.run

    def run(orders: Any, watch: Any) -> Any:
        if any(order.seed == 1 for order in orders):
            raise InputError("seed 1 is wrong: use another.")
        return whole(orders, watch)

    monkeypatch.setattr(engine, "run", run)
    client = serve(batch=4)
    engine.gate.clear()
    client.post(CUT, files=PICTURE)
    until(lambda: server_of(client).queue.running)
    jobs = [client.post(CUT, files=PICTURE, data={"seed": k, "steps": 2}).json()["links"]["self"] for k in range(3)]
    engine.gate.set()
    states = until(lambda: (s := [client.get(j).json()["state"] for j in jobs])[2] in ("done", "failed") and s)
    assert states == ["done", "failed", "done"]


# ---- figures and logs ----------------------------------------------------------------------------------------------


def test_figures_and_logs_hold_no_names_pictures_or_prompts(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="omnialpha")
    client = serve()
    client.post(CUT, files=PICTURE, headers={"Prefer": "wait=9"})
    client.post("/v1/tasks/text_to_image", data={"prompt": "secret-prompt", "steps": 1}, headers={"Prefer": "wait=9"})
    client.get("/api/remove?url=http://secret-host/")
    client.get("/secret-path")
    text = client.get("/metrics").text
    for line in (
        'omnialpha_jobs_total{state="done",task="matting_auto"} 1.0',
        'omnialpha_requests_total{method="POST",route="/v1/tasks/{name}",status="200"} 2.0',
        'omnialpha_requests_total{method="GET",route="none",status="404"} 1.0',
        "omnialpha_jobs_waiting 0.0",
        "process_resident_memory_bytes",
        "omnialpha_job_seconds_bucket",
    ):
        assert line in text, text
    logged = "\n".join(record.getMessage() for record in caplog.records)
    assert "POST /v1/tasks/{name} 200" in logged
    assert "secret" not in text + logged


def test_no_cross_origin_access_and_no_foreign_pages(serve: Serve) -> None:
    client = serve()
    answer = client.get("/v1/tasks", headers={"Origin": "https://elsewhere.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    asked = client.options(CUT, headers={"Origin": "https://a.example", "Access-Control-Request-Method": "POST"})
    assert asked.status_code == 405
    assert all(client.get(path).status_code == 404 for path in ("/docs", "/redoc", "/openapi.json", "/"))


def test_a_fault_ends_its_job_alone(serve: Serve, engine: StubEngine, caplog: pytest.LogCaptureFixture) -> None:
    client = serve()
    engine.error = RuntimeError("secret")
    answer = client.post(CUT, files=PICTURE, headers={"Prefer": "wait=9"})
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "fault"
    assert "RuntimeError" in caplog.text and "secret" not in caplog.text
    engine.error = None
    assert client.post(CUT, files=PICTURE, headers={"Prefer": "wait=9"}).status_code == 200
    assert "omnialpha_faults_total 1.0" in client.get("/metrics").text


# ---- beginning and end ---------------------------------------------------------------------------------------------


def test_a_model_that_cannot_be_loaded(engine: StubEngine) -> None:
    from fastapi.testclient import TestClient

    from omnialpha.errors import InputError
    from omnialpha.server.app import create_app
    from omnialpha.server.config import ServerConfig

    def prepare() -> None:
        raise InputError("the file is damaged: download it again.")

    engine.prepare = prepare  # type: ignore[method-assign]
    with TestClient(create_app(ServerConfig(), [engine])) as client:
        until(lambda: client.get("/readyz").json()["status"] == "failed")
        assert client.get("/healthz").status_code == 200
        assert client.post(CUT, files=PICTURE).status_code == 503
    from omnialpha.server.running import open_socket
    from omnialpha.server.running import serve as run

    kept = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        with pytest.raises(InputError, match="download it again"):
            run(create_app(ServerConfig(), [engine]), [open_socket("127.0.0.1", 0)])
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), kept, strict=True):
            signal.signal(number, handler)


def test_closing_finishes_what_runs(engine: StubEngine) -> None:
    from fastapi.testclient import TestClient

    from omnialpha.server.app import create_app
    from omnialpha.server.config import ServerConfig

    app = create_app(ServerConfig(), [engine])
    queue = app.state.server.queue
    with TestClient(app) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        engine.gate.clear()
        running = client.post(CUT, files=PICTURE).json()["links"]
        until(lambda: queue.running)
        waiting = client.post(CUT, files=PICTURE).json()["links"]
        queue.close()
        assert client.get("/readyz").json() == {"status": "closing"}
        refused = client.post(CUT, files=PICTURE)
        assert refused.status_code == 503 and "shutting down" in refused.text and refused.headers["retry-after"]
        assert client.get(waiting["result"]).status_code == 503
        engine.gate.set()
        until(lambda: client.get(running["result"]).status_code == 200)
    assert not any(worker.is_alive() for worker in app.state.server.workers)


def test_the_command(tmp_path: Path) -> None:
    """From the first line to SIGTERM, with the bundled model, and a cut-out that loads nothing but the finder."""
    command = [sys.executable, "-m", "omnialpha", "serve", "--port", "0", "--lazy", "--keys", str(tmp_path / "keys")]
    added = subprocess.run([*command, "--add-key", "me"], capture_output=True, text=True, check=True)
    key = added.stdout.strip()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert url, line + process.stderr.read()
        from omnialpha.client import Client

        client = Client(url[0], key)
        job = client.submit("matting_auto", composite=Image.open(io.BytesIO(png((40, 48)))))
        made = job.wait(seconds=60).picture()
        assert made.mode == "RGBA" and made.size == (48, 40) and made.getchannel("A").getextrema() != (0, 0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "70000"], "cannot be listened on"),
        (["--queue", "0"], "queue=0 is out of range"),
        (["--queue", "many"], "is not a whole number"),
        (["--add-key", "me"], "add --keys FILE"),
        (["--credits", "3"], "add --add-key NAME"),
        (["--keys", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_what_the_command_refuses(arguments: list[str], words: str) -> None:
    from typer.testing import CliRunner

    from omnialpha.cli.main import app

    done = CliRunner().invoke(app, ["serve", *arguments])
    assert done.exit_code == 2 and words in done.stderr, done.stderr


def reached(url: str) -> bool:
    from omnialpha.client import Client
    from omnialpha.errors import InputError

    try:
        return bool(Client(url).tasks())
    except InputError as error:
        assert "cannot be reached" in str(error)
        return False


def test_the_end_of_a_server_that_listens(engine: StubEngine) -> None:
    """On SIGTERM the running job is finished and sent, a waiting one is answered with 503, and nothing new is taken."""
    import http.client

    with listening(engine, jobs_per_key=5) as (url, server):
        queue, address = server.config.app.state.server.queue, url.removeprefix("http://")
        engine.gate.clear()
        body, kind = multipart("file", png())

        def ask() -> int:
            connection = http.client.HTTPConnection(address, timeout=20)
            connection.request("POST", "/api/remove", body, {"Content-Type": kind})
            return connection.getresponse().status

        with ThreadPoolExecutor(2) as pool:
            running = pool.submit(ask)
            until(lambda: queue.running)
            waiting = pool.submit(ask)
            until(lambda: queue.waiting)
            server.handle_exit(signal.SIGTERM, None)
            assert waiting.result(10) == 503
            engine.gate.set()
            assert running.result(10) == 200
        assert queue.closing
        until(lambda: not reached(url))


def test_a_client_that_goes_away_cancels_its_job(engine: StubEngine) -> None:
    with listening(engine) as (url, server):
        queue = server.config.app.state.server.queue
        engine.gate.clear()
        host, port = url.removeprefix("http://").split(":")
        body, kind = multipart("composite", png())
        for path, extra in (("/api/remove", ""), (CUT, "Prefer: wait=60\r\n")):
            data = body.replace(b"composite", b"file") if path == "/api/remove" else body
            with socket.create_connection((host, int(port))) as line:
                about = f"{extra}Content-Type: {kind}\r\nContent-Length: {len(data)}\r\n\r\n"
                line.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\n{about}".encode() + data)
                until(lambda: queue.running)
            until(lambda: not queue.running)  # the gate is closed: it was stopped
            assert not queue.jobs


def test_events_arrive_as_they_happen(engine: StubEngine) -> None:
    import json
    import urllib.request

    from omnialpha.client import Client

    with listening(engine) as (url, _):
        engine.gate.clear()
        job = Client(url).submit("removal_auto", composite=png(), steps=3)
        with urllib.request.urlopen(f"{url}/v1/jobs/{job.id}/events", timeout=10) as stream:
            first = stream.readline().decode().strip()
            assert first in ("event: queued", "event: step")
            engine.gate.set()
            rest = stream.read().decode()
        assert json.loads(rest.strip().split("data: ")[-1])["state"] == "done"


def test_the_options_of_the_command() -> None:
    import dataclasses

    import typer

    from omnialpha.cli.main import app
    from omnialpha.server.config import ServerConfig

    command: Any = typer.main.get_command(app)
    names = {name for parameter in command.commands["serve"].params for name in parameter.opts}
    fields = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(ServerConfig)}
    assert fields | {"--host", "--port", "--model", "--device", "--offload"} <= names
    assert not {"--seed", "--steps", "--size", "--raw"} & names
    page = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
    assert not [name for name in fields if f"`{name}" not in page]


def test_threads_end(serve: Serve) -> None:
    serve()
    assert any(thread.name == "omnialpha-stub" for thread in threading.enumerate())
