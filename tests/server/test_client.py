"""The client against a server that listens."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from omnialpha.client import Client
from omnialpha.errors import InputError
from served import SIZE, StubEngine, listening, opened, png, until


@pytest.fixture
def client(engine: StubEngine) -> Iterator[Client]:
    with listening(engine, queue=1) as (url, _):
        yield Client(url, seconds=10)


def test_submit_wait_and_result(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    for picture in (png(), str(tmp_path / "a.png"), tmp_path / "a.png", opened(png())):
        made = client.run("matting_auto", composite=picture, seed=9)
        assert made.mode == "RGBA" and made.size == SIZE[::-1] and made.getpixel((0, 23))[0] == 9
    job = client.submit("decompose_auto", composite=png(), layers=3, steps=4)
    seen: list[tuple[int, int]] = []
    layers = job.wait(lambda step, total: seen.append((step, total))).layers()
    assert len(layers) == 3 and seen[-1] == (4, 4) and all(isinstance(one, Image.Image) for one in layers)
    assert job.picture("background").tobytes() == layers[0].tobytes()
    whole = client.run("foreground_to_full", foreground=[png(), png()], prompt="a beach", steps=1, guidance=None)
    assert whole.size == SIZE[::-1]
    assert {row["name"] for row in client.tasks()} >= {"matting_auto"}


def test_mistakes_are_the_sentences_of_the_server(client: Client, engine: StubEngine, tmp_path: Path) -> None:
    for words, task, given in (
        ("did you mean 'matting_auto'", "matting_aut", {}),
        ("needs a composite", "matting_auto", {}),
        ("no option 'stepz': did you mean 'steps'", "matting_auto", {"composite": png(), "stepz": 1}),
        ("cannot be read", "matting_auto", {"composite": tmp_path / "none.png"}),
        ("is a list", "matting_auto", {"composite": [[1]]}),
    ):
        with pytest.raises(InputError, match=words):
            client.submit(task, **given)
    engine.error = InputError("the job is wrong: change it.")
    with pytest.raises(InputError, match=r"^the job is wrong: change it\.$"):
        client.run("matting_auto", composite=png())
    with pytest.raises(InputError, match="cannot be reached"):
        Client("http://127.0.0.1:9").tasks()
    with pytest.raises(InputError, match="cannot be reached"):
        Client("nonsense").tasks()


def test_patience_and_cancelling(client: Client, engine: StubEngine) -> None:
    engine.gate.clear()
    running = client.submit("removal_auto", composite=png(), steps=9)
    until(lambda: running.state()["state"] == "running")
    with pytest.raises(InputError, match="longer than 0.05 s"):
        running.wait(seconds=0.05)
    with pytest.raises(InputError, match="ask again when it is done"):
        running.result()
    client.submit("removal_auto", composite=png())
    threading.Timer(0.5, engine.gate.set).start()
    again = client.submit("matting_auto", composite=png())  # refused with 429 first
    assert again.wait().picture().mode == "RGBA"
    again.cancel()
    with pytest.raises(InputError, match="there is no job"):
        again.state()
