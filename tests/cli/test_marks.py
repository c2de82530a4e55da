"""--point and --box in the place of a rough mask, --finder, and words that a model does not follow."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import Result

from finders import Red
from omnialpha import masks
from omnialpha.io import read_image
from omnialpha.io.layers import LayerStack
from omnialpha.models.checkpoints.folders import CARD

Call = Callable[..., Result]
BOX = (slice(6, 18), slice(10, 30))  # rows, columns of what is red in red.png


@pytest.fixture
def finder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Red:
    """In the place of the bundled finder; and red.png, what it sees, of the size of the other pictures."""
    own = Red(hints=True)
    monkeypatch.setattr("omnialpha.models.finder.bundled_finder", lambda: own)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    pixels[..., 0] = 0
    pixels[(*BOX, 0)] = 255
    Image.fromarray(pixels).save("red.png")
    return own


@pytest.mark.parametrize(
    ("arguments", "points", "boxes"),
    [
        (["--point", "20,12"], [(20, 12)], []),
        (["--point", "20.5,12", "--point", "-2,3"], [(20.5, 12), (2, 3, False)], []),
        (["--box", "8,4,24,16"], [], [(8, 4, 24, 16)]),
        (["--box=8,4,24,16", "--box=-12,8,4,4", "--point=28, 8"], [(28, 8)], [(8, 4, 24, 16), (12, 8, 4, 4, False)]),
    ],
)
def test_marks_are_followed(
    arguments: list[str], points: list[masks.Mark], boxes: list[masks.Mark], finder: Red, ask: Call
) -> None:
    done = ask("matte", "red.png", *arguments, "-o", "out.png", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["task"] == "matting_rough", done.stderr
    asked = next((hint for hint in finder.asked if hint is not None), None)
    marked = masks.marks((24, 40), points, boxes)
    if boxes:  # clicks become a hint where nothing is seen without one
        assert asked is not None and torch.equal(asked, marked[None])
    alpha = read_image("out.png").rgba[3]
    assert not alpha[marked < 0].any() and not alpha[:3].any() and not alpha[:, :6].any()


def test_what_is_marked_is_removed_and_all_else_stays(finder: Red, ask: Call) -> None:
    assert ask("remove", "red.png", "--point", "20,12", "-o", "out.png").exit_code == 0
    made, photo = np.asarray(Image.open("out.png").convert("RGB")), np.asarray(Image.open("red.png"))
    outside = np.ones((24, 40), bool)
    outside[4:20, 7:33] = False  # the square, widened by 4 % of the finder's side
    assert np.array_equal(made[outside], photo[outside]) and not np.array_equal(made[BOX], photo[BOX])


def test_what_is_marked_becomes_a_layer(finder: Red, ask: Call) -> None:
    done = ask("decompose", "red.png", "--box", "8,4,24,16", "-o", "layers", "--json")
    assert json.loads(done.stdout)["task"] == "decompose_rough" and len(LayerStack.load("layers")) == 2


def refused(result: Result, *words: str) -> None:
    """Exit code 2 and one sentence that holds these words."""
    assert result.exit_code == 2 and result.stdout == "", (result.stdout, result.stderr)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and line.endswith(".") and not [word for word in words if word not in line], line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--point", "20"], ["--point '20' is not X,Y: give pixels from the top left, such as 120,80."]),
        (["--point", "20,12,3"], ["--point '20,12,3'"]),
        (["--point", "a,b"], ["--point 'a,b'"]),
        (["--point", "nan,1"], ["--point 'nan,1'"]),
        (["--point", "3,-4"], ["--point '3,-4'"]),
        (["--point", ""], ["--point ''"]),
        (["--box", "1,2,3"], ["--box '1,2,3' is not X,Y,W,H", "120,80,40,60"]),
        (["--point", "40,12"], ["the point 40,12 lies outside the 40x24 px picture"]),
        (["--box", "50,2,4,4"], ["the box 50,2,4,4 holds no pixel of the 40x24 px picture"]),
        (["--point", "20,12", "--rough", "mask.png"], ["rough, points or boxes together: give one of them"]),
        (["--box", "1,2,3,4", "--trimap", "trimap.png"], ["trimap, points or boxes together"]),
    ],
)
@pytest.mark.parametrize("verb", ["matte", "remove", "decompose"])
def test_marks_that_cannot_be(verb: str, arguments: list[str], words: list[str], finder: Red, ask: Call) -> None:
    before = sorted(os.listdir())
    refused(ask(verb, "red.png", *arguments, "-o", "layers" if verb == "decompose" else "out.png"), *words)
    assert sorted(os.listdir()) == before


def test_where_nothing_is_found_marks_are_asked_for(finder: Red, ask: Call) -> None:
    refused(ask("matte", "red.png", "--box", "32,1,6,4", "-o", "out.png"), "nothing was found where the marks are")
    assert not Path("out.png").exists()


def test_words_of_a_model_that_does_not_read_are_refused(folder: Path, call: Call, tiny_model_folder: Path) -> None:
    shutil.copytree(tiny_model_folder, "deaf")
    card = json.loads(Path("deaf", CARD).read_text())
    Path("deaf", CARD).write_text(json.dumps(card | {"reads": False}))
    before = sorted(os.listdir())
    refused(
        call("matte", "photo.png", "--text", "the mug", "-o", "out.png", "--model", "deaf"),
        "tiny cannot tell subjects apart by words",
        "--point X,Y",
        "--model Longin-Yu/OmniAlpha",
    )
    assert sorted(os.listdir()) == before
    for verb in (["matte", "photo.png"], ["generate", "a mug"]):  # where words do not choose the subject
        assert call(*verb, "-o", "out.png", "--model", "deaf").exit_code == 0


def test_a_finder_for_a_model_that_has_none(folder: Path, ask: Call) -> None:
    Path("u2net.onnx").write_bytes(b"")
    refused(
        ask("matte", "photo.png", "-o", "out.png", "--finder", "u2net.onnx"),
        "tiny takes no hints of a finder: leave out u2net.onnx",
    )
    assert not Path("out.png").exists()
