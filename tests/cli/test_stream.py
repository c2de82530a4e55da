"""Raw frames through the finder: what goes in comes out with alpha, frame by frame."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

from omnialpha.cli.stream import frames
from omnialpha.errors import InputError
from omnialpha.io import read_image

Call = Callable[..., Result]
WIDTH, HEIGHT = 48, 32


def frame(shift: int) -> np.ndarray:
    """(HEIGHT, WIDTH, 3): a bright disk that wanders over a dark ground."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    made = np.full((HEIGHT, WIDTH, 3), 30, np.uint8)
    made[(rows - 16) ** 2 + (columns - 16 - shift) ** 2 < 100] = (230, 180, 40)
    return made


FILM = np.stack([frame(0), frame(8)])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_frames_come_out_with_alpha_as_single_pictures_do(call: Call) -> None:
    result = call("stream", WIDTH, HEIGHT, stdin=FILM.tobytes())
    assert result.exit_code == 0 and "wrote 2 frames of 48x32" in result.stderr
    made = np.frombuffer(result.stdout_bytes, np.uint8).reshape(2, HEIGHT, WIDTH, 4)
    Image.fromarray(FILM[1]).save("one.png")
    assert call("matte", "one.png", "-o", "cut.png").exit_code == 0
    assert (np.asarray(Image.open("cut.png")) == made[1]).all()
    solid = made[..., 3] == 255
    assert solid.any() and (made[..., :3][solid] == FILM[solid]).all()


def test_files_are_numbered_and_a_background_makes_them_opaque(call: Call) -> None:
    result = call("stream", WIDTH, HEIGHT, "-o", "f-%03u.jpg", "--background", "#00ff00", stdin=FILM.tobytes())
    assert result.exit_code == 0 and "wrote 2 frames" in result.stdout
    assert sorted(path.name for path in Path().iterdir()) == ["f-001.jpg", "f-002.jpg"]
    assert read_image("f-001.jpg").rgba[1, 0, 0] > 0.9


def test_a_last_frame_that_is_cut_off_is_named_after_the_others(call: Call) -> None:
    result = call("stream", WIDTH, HEIGHT, "-o", "%u.png", stdin=FILM[:1].tobytes() + b"abc")
    assert result.exit_code == 2 and "frame 2 is cut off after 3 of 4608 bytes" in result.stderr
    assert [path.name for path in Path().iterdir()] == ["1.png"]


def test_one_frame_is_in_memory_at_a_time() -> None:
    source = io.BytesIO(FILM.tobytes())
    reading = frames(source, (HEIGHT, WIDTH))
    assert tuple(next(reading).shape) == (4, HEIGHT, WIDTH) and source.tell() == WIDTH * HEIGHT * 3
    with pytest.raises(InputError, match="holds no frame"):
        next(frames(io.BytesIO(b""), (4, 4)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["0", "4"], "out of range"),
        ([WIDTH, HEIGHT, "-o", "out.png"], "does not number its frames"),
        ([WIDTH, HEIGHT, "-o", "%u.jpg"], "cannot hold transparency"),
        ([WIDTH, HEIGHT, "-o", "none/%u.png"], "does not exist"),
        ([WIDTH, HEIGHT, "--json"], "both write to standard output"),
        ([WIDTH, HEIGHT, "--background", "reddish"], "is no colour"),
    ],
)
def test_what_cannot_be_done_is_refused(arguments, said, call: Call) -> None:
    result = call("stream", *arguments, stdin=b"")
    assert result.exit_code == 2 and said in result.stderr


def test_a_model_without_a_finder_is_refused(call: Call, tiny_model_folder: Path) -> None:
    result = call("stream", 4, 4, "--model", tiny_model_folder, stdin=b"")
    assert result.exit_code == 2 and "has no finder" in result.stderr


def test_a_reader_that_goes_away_ends_it_without_a_traceback() -> None:
    command = [sys.executable, "-m", "omnialpha.cli.main", "stream", str(WIDTH), str(HEIGHT)]
    running = subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert running.stdout is not None
    running.stdout.close()
    said = _end(running)
    assert running.returncode == 1 and b"Traceback" not in said and b"was closed after 0 frames" in said


def _end(running: "subprocess.Popen[bytes]") -> bytes:
    assert running.stdin and running.stderr
    running.stdin.write(FILM.tobytes())
    running.stdin.close()
    said = running.stderr.read()
    running.wait(60)
    return said
