"""What tests of the server share: a stub of a model, and small pictures."""

import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

    from omnialpha.server.calls import TaskCall

SIZE = (24, 32)  # height, width


class StubEngine:
    """Makes layers of the colour of the seed, in the steps that are asked for.

    gate: while it is not set, no step ends. seen: what was run together.
    """

    device = "stub"

    def __init__(self, card: Any) -> None:
        self.card, self.gate, self.seen = card, threading.Event(), list[list[str]]()
        self.gate.set()
        self.error: BaseException | None = None

    def prepare(self) -> None:
        pass

    def run(self, calls: "Sequence[TaskCall]", watch: Callable[[int, int], None]) -> list[Any]:
        import torch

        from omnialpha.io.layers import Layer, LayerStack

        self.seen.append([call.task for call in calls])
        for step in range(1, calls[0].steps + 1):
            while not self.gate.wait(0.02):
                watch(step - 1, calls[0].steps)
            watch(step, calls[0].steps)
        if self.error:
            raise self.error
        made = []
        for call in calls:
            one = call.example
            layers = []
            for name, role in zip(one.names, one.targets, strict=True):
                picture = torch.full((4, *one.size), (call.seed % 256) / 255)
                picture[3] = 1.0
                if role == "foreground":
                    picture[3, : one.size[0] // 4] = 0  # transparent above
                layers.append(Layer(name, picture, role=role))
            made.append(LayerStack(one.size, layers))
        return made


Serve = Callable[..., "TestClient"]


@contextlib.contextmanager
def listening(engine: Any, **settings: Any) -> Iterator[tuple[str, Any]]:
    """A server in a thread: its address, and itself."""
    from omnialpha.server.app import create_app
    from omnialpha.server.config import ServerConfig
    from omnialpha.server.running import open_socket, server_of

    made = open_socket("127.0.0.1", 0)
    server = server_of(create_app(ServerConfig(**settings), [engine]))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [made]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{made.getsockname()[1]}", server
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def until(done: Callable[[], Any], seconds: float = 20) -> Any:
    """Wait for something to be true."""
    end = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
    return found


def png(size: tuple[int, int] = SIZE, mode: str = "RGB", colour: Any = (200, 120, 40)) -> bytes:
    """A picture with a disk on it."""
    buffer, image = io.BytesIO(), Image.new(mode, size[::-1], colour)
    if mode == "RGB":
        rows, columns = np.mgrid[: size[0], : size[1]]
        array = np.asarray(image).copy()
        array[(rows - size[0] / 2) ** 2 + (columns - size[1] / 2) ** 2 < (min(size) / 3) ** 2] = (20, 60, 200)
        image = Image.fromarray(array)
    image.save(buffer, "PNG")
    return buffer.getvalue()


def multipart(name: str, data: bytes) -> tuple[bytes, str]:
    """A form of one file, and its type."""
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="x"\r\n\r\n'.encode()
    return head + data + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"


def disk(size: tuple[int, int] = SIZE) -> bytes:
    """A map with a disk."""
    buffer = io.BytesIO()
    rows, columns = np.mgrid[: size[0], : size[1]]
    inside = (rows - size[0] / 2) ** 2 + (columns - size[1] / 2) ** 2 < (min(size) / 3) ** 2
    Image.fromarray((inside * 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image
