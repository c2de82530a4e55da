"""Several jobs at once, figures, logs, and the beginning and the end of a server."""

import io
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from served import Serve, StubEngine, listening, multipart, opened, png, until

PICTURE = {"composite": ("secret-name.png", png(), "image/png")}
CUT = "/v1/tasks/matting_auto"


def server_of(client: Any) -> Any:
    return client.app.state.server


# ---- several at once -------------------------------------------------------------------------------------------------


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


def test_a_result_that_cannot_be_written_fails_alone(serve: Serve, engine: StubEngine, monkeypatch: Any) -> None:
    from omnialpha.errors import InputError
    from omnialpha.server import worker

    whole = worker.keep_result

    def keep(stack: Any, settings: Any, source: Any) -> Any:
        if settings["seed"] == 1:
            raise InputError("it cannot be written.")
        return whole(stack, settings, source)

    monkeypatch.setattr(worker, "keep_result", keep)
    client = serve(batch=4)
    engine.gate.clear()
    client.post(CUT, files=PICTURE)
    until(lambda: server_of(client).queue.running)
    jobs = [client.post(CUT, files=PICTURE, data={"seed": k, "steps": 2}).json()["links"]["self"] for k in range(3)]
    engine.gate.set()
    states = until(lambda: {*(s := [client.get(j).json()["state"] for j in jobs])} <= {"done", "failed"} and s)
    assert states == ["done", "failed", "done"] and [len(run) for run in engine.seen] == [1, 3]


def test_a_mistake_in_a_batch_is_that_of_one_job(serve: Serve, engine: StubEngine, monkeypatch: Any) -> None:
    from omnialpha.errors import InputError

    whole = engine.run

    def run(calls: Any, watch: Any) -> Any:
        if any(call.seed == 1 for call in calls):
            raise InputError("seed 1 is wrong: use another.")
        return whole(calls, watch)

    monkeypatch.setattr(engine, "run", run)
    client = serve(batch=4)
    engine.gate.clear()
    client.post(CUT, files=PICTURE)
    until(lambda: server_of(client).queue.running)
    jobs = [client.post(CUT, files=PICTURE, data={"seed": k, "steps": 2}).json()["links"]["self"] for k in range(3)]
    engine.gate.set()
    states = until(lambda: {*(s := [client.get(j).json()["state"] for j in jobs])} <= {"done", "failed"} and s)
    assert states == ["done", "failed", "done"]


# ---- figures and logs ------------------------------------------------------------------------------------------------


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


# ---- beginning and end -----------------------------------------------------------------------------------------------


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
