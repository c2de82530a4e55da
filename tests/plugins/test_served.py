"""The client of the plug-ins and `omnialpha serve` itself."""

import importlib.util
import io
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from plugin_server import png

CLIENT = Path(__file__).parents[2] / "plugins" / "krita" / "omnialpha_krita" / "client.py"
NEEDED = ("omnialpha.server", "fastapi", "uvicorn")
NAMES = {"cut_out": ["Subject"], "remove": ["Without the subject"], "split": ["Without the subject", "Subject"]}
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_the_server_speaks_as_the_client_expects(tiny_model_folder: Path) -> None:
    spec = importlib.util.spec_from_file_location("plugin_client", CLIENT)
    client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "omnialpha", "serve", "--port", str(port), "--model", str(tiny_model_folder)]
    with subprocess.Popen([*command, "--device", "cpu"], stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            wait_for(port, process)
            own, picture = client.Client(f"http://127.0.0.1:{port}"), png((200, 30, 40, 255))
            for action in client.ACTIONS:
                for mask in (None, png((255,))):
                    made = own.run(action, picture, mask, steps=1)
                    assert [layer.name for layer in made] == NAMES[action]
                    assert {Image.open(io.BytesIO(layer.png)).size for layer in made} == {(12, 8)}
            with pytest.raises(client.ServerError, match="steps=5000 is out of range"):
                own.run("remove", picture, steps=5000)
            with pytest.raises(client.ServerError, match="rough is empty"):
                own.run("remove", picture, png((0,)))
        finally:
            process.terminate()


def wait_for(port: int, process: subprocess.Popen) -> None:
    """Until something listens; an error where the process ends before."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        with socket.socket() as own:
            if own.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError(f"nothing listens on port {port}")
