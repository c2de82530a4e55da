"""Files of layers on the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from omnialpha.cli.main import app
from omnialpha.io import read_image
from omnialpha.io.stack_reading import read_stack


def run(*arguments: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["layers", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """An opaque back and a front that is clear but for a square of half alpha."""
    back = np.full((20, 30, 4), (40, 80, 120, 255), np.uint8)
    front = np.zeros((20, 30, 4), np.uint8)
    front[5:15, 10:20] = (200, 100, 0, 128)
    for name, pixels in (("back", back), ("front", front)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return [tmp_path / "back.png", tmp_path / "front.png"]


def test_from_pictures_through_all_formats_and_back(tmp_path: Path, pictures: list[Path]) -> None:
    run("merge", *pictures, "-o", tmp_path / "a.psd")
    run("convert", tmp_path / "a.psd", "-o", tmp_path / "b.ora", "--bits", "16")
    run("convert", tmp_path / "b.ora", "-o", tmp_path / "c.tif")
    run("explode", tmp_path / "c.tif", "-o", tmp_path / "folder")
    run("recompose", tmp_path / "folder", "-o", tmp_path / "flat.png")
    stack = read_stack(tmp_path / "folder")
    assert [layer.name for layer in stack] == ["back", "front"] and stack.size == (20, 30)
    flat = (read_image(tmp_path / "flat.png").rgba * 255).round()
    assert flat[:, 10, 15].tolist() == [120, 90, 60, 255] and flat[:, 0, 0].tolist() == [40, 80, 120, 255]


def test_info_says_names_places_and_coverage(tmp_path: Path, pictures: list[Path]) -> None:
    run("merge", *pictures, "-o", tmp_path / "a.psd")
    report = json.loads(run("info", tmp_path / "a.psd", "--json"))
    assert report["size"] == "30x20"
    assert report["layers"][1] == {
        "name": "front", "offset": [5, 10], "size": "10x10", "role": None, "coverage": pytest.approx(0.0837, abs=1e-4),
    }  # fmt: skip
    assert "10x10 at 10,5" in run("info", tmp_path / "a.psd")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["merge", "back.png", "-o", "x.gif"], "cannot hold layers"),
        (["convert", "back.png", "-o", "x.psd", "--bits", "12"], "--bits 12 is no depth"),
        (["convert", "none.psd", "-o", "x.ora"], "none.psd"),
        (["merge", "back.png", "small.png", "-o", "x.psd"], "different sizes"),
        (["explode", "back.png", "-o", "back.png"], "cannot hold layers|is a file"),
    ],
)
def test_what_cannot_be(
    tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    Image.new("RGBA", (3, 3)).save("small.png")
    before = sorted(tmp_path.iterdir())
    assert re.search(said, run(*arguments, code=2))
    assert sorted(tmp_path.iterdir()) == before
