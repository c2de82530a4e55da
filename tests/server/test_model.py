"""The engine of a real, tiny model: what the server answers is what the library makes."""

import io
import json
import threading
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from omnialpha.tasks import MAPS, TASKS
from served import SIZE, Serve, disk, opened, png, until

if TYPE_CHECKING:
    from omnialpha.pipeline import OmniAlpha
    from omnialpha.server.engine import ModelEngine

WAIT = {"Prefer": "wait=60"}


@pytest.fixture
def tiny_engine(tiny_model: "OmniAlpha", tiny_model_folder: Path) -> "ModelEngine":
    from omnialpha.models.checkpoints.folders import resolve
    from omnialpha.server.engine import ModelEngine

    return ModelEngine(resolve(tiny_model_folder), lambda: tiny_model)


def request_of(task: str, **more: Any) -> dict[str, Any]:
    roles = TASKS[task].inputs
    files = [(str(role), ("x.png", disk() if role in MAPS else png())) for role in roles]
    data = ({"prompt": "a red mug"} if TASKS[task].text else {}) | ({} if roles else {"size": "32x24"})
    return {"files": files or None, "data": data | {"steps": 1} | more}


@pytest.mark.parametrize("task", TASKS)
def test_the_server_answers_what_the_library_makes(
    task: str, serve: Serve, tiny_engine: "ModelEngine", tiny_model: "OmniAlpha"
) -> None:
    from omnialpha.io.conversion import integers

    client = serve(engines=[tiny_engine])
    answer = client.post(f"/v1/tasks/{task}", **request_of(task, seed=3, guidance=1), headers=WAIT)
    assert answer.status_code == 200, answer.text
    row = TASKS[task]
    pictures: Any = {role: disk() if role in MAPS else png() for role in row.inputs}
    prompt, size = "a red mug" if row.text else None, None if row.inputs else SIZE
    example = row.example(pictures, prompt=prompt, size=size)
    expected = tiny_model.run([example], seed=3, steps=1, guidance=1.0)[0]
    if len(row.targets) == 1:
        made = [answer.content]
    else:
        archive = zipfile.ZipFile(io.BytesIO(answer.content))
        made = [archive.read(layer["file"]) for layer in json.loads(archive.read("layers.json"))["layers"]]
    for data, layer in zip(made, expected, strict=True):
        assert (np.asarray(opened(data)) == integers(layer.rgba, 8)).all()


@pytest.mark.parametrize("task", ["decompose_auto", "text_to_image", "foreground_to_background"])
def test_a_batch_makes_what_single_runs_make(task: str, serve: Serve, tiny_engine: "ModelEngine") -> None:
    """Within one level of 255: sums over a batch are ordered differently, which may turn a rounding."""
    alone, runs = run_five(task, serve(engines=[tiny_engine], jobs_per_key=20), tiny_engine)
    assert runs == [1, 1, 1, 1, 1]
    together, runs = run_five(task, serve(engines=[tiny_engine], jobs_per_key=20, batch=4), tiny_engine)
    assert runs == [1, 4]
    for one, many in zip(alone, together, strict=True):
        assert abs(one - many).max() <= 1
    assert len({picture.tobytes() for picture in alone}) > 1


def run_five(task: str, client: Any, engine: "ModelEngine") -> tuple[list[np.ndarray], list[int]]:
    """The pictures of five seeds, the first of which does not run before all are sent, and the sizes of the batches."""
    runs, sent, whole = list[int](), threading.Event(), type(engine).run

    def counted(calls: Any, watch: Any) -> Any:
        sent.wait(20)
        runs.append(len(calls))
        return whole(engine, calls, watch)

    engine.run = counted  # type: ignore[method-assign]
    queue = client.app.state.server.queue
    jobs = []
    for n in range(5):
        jobs.append(client.post(f"/v1/tasks/{task}", **request_of(task, seed=10 * n)).json()["links"])
        until(lambda: queue.running)
    sent.set()
    until(lambda: client.get(jobs[-1]["self"]).json()["state"] == "done", 60)
    answers = [client.get(job["result"], params={"layer": 0}).content for job in jobs]
    return [np.asarray(opened(data)).astype(int) for data in answers], runs


def test_cancelling_between_steps(serve: Serve, tiny_engine: "ModelEngine") -> None:
    client = serve(engines=[tiny_engine])
    job = client.post("/v1/tasks/decompose_auto", **request_of("decompose_auto", steps=1000)).json()["links"]["self"]
    until(lambda: client.get(job).json()["progress"]["step"] > 1, 60)
    assert client.delete(job).status_code == 204
    server = client.app.state.server  # type: ignore[attr-defined]
    until(lambda: not server.queue.running, 10)


def test_a_cut_out_loads_nothing_but_the_finder(serve: Serve) -> None:
    from omnialpha.models.checkpoints.folders import resolve
    from omnialpha.server.engine import ModelEngine

    def load() -> Any:
        raise AssertionError("the networks are not needed")

    client = serve(engines=[ModelEngine(resolve(None), load, lazy=True)])
    made = client.post("/v1/tasks/matting_auto", files={"composite": ("x", png())}, headers=WAIT)
    assert made.status_code == 200 and opened(made.content).getchannel("A").getextrema() != (0, 0)
    deep = client.post("/v1/tasks/matting_auto", files={"composite": ("x", deep_png())}, headers=WAIT)
    from omnialpha.io import read_image

    assert read_image(deep.content).bits == 16


def deep_png() -> bytes:
    import torch

    from omnialpha.io import read_image, write_image

    buffer = io.BytesIO()
    write_image(buffer, torch.as_tensor(read_image(png()).rgba), bits=16)
    return buffer.getvalue()
