"""What the tests of the command line share: a folder with pictures to stand in, and a caller."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from omnialpha.cli.main import app

HEIGHT, WIDTH = 24, 40


def disk() -> np.ndarray:
    """(HEIGHT, WIDTH) uint8: a white disk on black."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.uint8(255) * ((rows - HEIGHT / 2) ** 2 + (columns - WIDTH / 2) ** 2 < 64).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with photo.png, cutout.png (with alpha), mask.png and trimap.png, all of one size."""
    monkeypatch.chdir(tmp_path)
    rgb = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(rgb).save("photo.png")
    Image.fromarray(np.dstack([rgb, disk()])).save("cutout.png")
    Image.fromarray(disk()).save("mask.png")
    trimap = disk()
    trimap[:, : WIDTH // 2] //= 2
    Image.fromarray(trimap).save("trimap.png")
    return tmp_path


@pytest.fixture
def call() -> Callable[..., Result]:
    """Run a command in this process: `call("tasks", "--json")`."""

    def run(*arguments: object, stdin: bytes | None = None) -> Result:
        words = [str(a) for a in arguments]
        return CliRunner().invoke(app, words, input=stdin, prog_name="omnialpha", catch_exceptions=False)

    return run


@pytest.fixture
def ask(call: Callable[..., Result], tiny_model_folder: Path) -> Callable[..., Result]:
    """Run a verb on the tiny model: `ask("matte", "photo.png", "-o", "out.png")`."""
    return lambda *arguments, **stdin: call(*arguments, "--model", tiny_model_folder, **stdin)
