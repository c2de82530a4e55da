"""The command line on checkpoints in the published layouts: put together by folder, converted, few steps, offloaded."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import benchmark_trees as trees
from omnialpha.io import read_settings


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGBA")).astype(int)


@pytest.fixture
def matte(folder: Path, call, released_base: Path, released_omnialpha: Path):
    """A raw matte of photo.png by the release on its base, two steps: `matte("out.png", "--offload", "group")`."""

    def run(output: str, *arguments: str, model: Path = released_omnialpha, base: bool = True) -> np.ndarray:
        said = ["matte", "photo.png", "-o", output, "--raw", "--json", "--model", model, *arguments]
        said += ["--base", released_base] if base else []
        said += [] if "--steps" in arguments else ["--steps", "2"]
        done = call(*said)
        assert done.exit_code == 0, done.output
        run.report = json.loads(done.stdout)
        return pixels(output)

    return run


def test_a_release_stands_on_its_base(matte) -> None:
    made = matte("out.png")
    assert made.shape == (24, 40, 4) and made.std() > 0
    assert matte.report["steps"] == 2 and matte.report["guidance"] == 4.0
    assert read_settings("out.png")["task"] == "matting_auto"


def test_a_release_needs_a_base(folder: Path, call, released_omnialpha: Path) -> None:
    done = call("matte", "photo.png", "-o", "out.png", "--model", released_omnialpha)
    assert done.exit_code == 2 and "--base" in done.stderr and not Path("out.png").exists()


@pytest.mark.parametrize("offload", ["model", "group", "disk"])
def test_offloading_changes_no_pixel(matte, offload: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMNIALPHA_HOME", str(tmp_path / "home"))
    assert (matte("a.png") == matte("b.png", "--offload", offload)).all()


def test_converted_to_one_folder_it_answers_the_same(
    matte, call, released_base: Path, released_omnialpha: Path, tmp_path: Path
) -> None:
    one = tmp_path / "one"
    done = call("convert", released_omnialpha, one, "--base", released_base)
    assert done.exit_code == 0, done.output
    assert (matte("a.png") == matte("b.png", model=one, base=False)).all()
    fused = tmp_path / "fused"
    assert call("convert", one, fused, "--fuse", "--dtype", "float32").exit_code == 0
    exact = matte("c.png", "--dtype", "float32")
    assert abs(exact - matte("d.png", "--dtype", "float32", model=fused, base=False)).max() <= 1


def test_a_few_step_adapter_sets_the_schedule(matte, released_omnialpha: Path) -> None:
    lora = released_omnialpha / "lora" / "pytorch_lora_weights.safetensors"
    matte("out.png", "--lora", f"{lora}:0.5@lightning-4", "--steps", "4")
    assert matte.report["guidance"] == 1.0


def test_the_text_that_it_was_trained_on_changes_what_it_reads(
    matte, call, released_base: Path, released_omnialpha: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning without it; with it, another answer, and the same from a folder that is converted with it."""
    Path("own.toml").write_text('matting_auto = "Remove the red cat."')
    own = matte("a.png")
    assert [record.message.count("--instructions FILE") for record in caplog.records] == [1]
    caplog.clear()
    given = matte("b.png", "--instructions", "own.toml")
    assert not caplog.records and abs(own - given).max() > 0
    parts = ("--base", released_base, "--instructions", "own.toml")
    assert call("convert", released_omnialpha, "one", *parts).exit_code == 0
    assert (matte("c.png", model=Path("one"), base=False) == given).all()
    Path("own.toml").unlink()
    done = call("matte", "photo.png", "-o", "d.png", "--model", released_omnialpha, *parts)
    assert done.exit_code == 2 and "own.toml cannot be read" in done.stderr and not Path("d.png").exists()


COMMANDS = (
    ("matte", "photo.png", "-o", "out.png"),
    ("run", "matting_auto", "--composite", "photo.png", "-o", "out.png"),
    ("convert", "nano", "out"),
    ("pull", "someone/thing", "--yes"),
    ("demo", "-o", "out"),
    ("eval", "suite", "-o", "out", "--peer", "none", "--n", "1", "--categories", "autoencoder"),
    ("eval", "aim-500", "--data", "AIM-500", "-o", "out"),
)


@pytest.mark.parametrize("words", COMMANDS, ids=[" ".join(words[:2]) for words in COMMANDS])
def test_every_command_that_loads_a_model_takes_texts(folder: Path, call, words: tuple[str, ...]) -> None:
    """Their file is read before anything is loaded, downloaded or measured."""
    trees.matting(Path("AIM-500"), ["o_0"], size=(24, 40))
    Path("own.json").write_text('{"matting_auto": 3}')
    done = call(*words, "--instructions", "own.json")
    assert done.exit_code == 2 and "own.json give matting_auto 3: write a text" in done.stderr
    assert not list(Path().glob("out*/**/*.*")) and not Path("out.png").exists()


def test_the_doctor_takes_texts(folder: Path, call) -> None:
    Path("own.json").write_text('{"matting_auto": 3}')
    done = call("doctor", "--json", "--instructions", "own.json")
    assert done.exit_code == 1 and "own.json give matting_auto 3" in json.loads(done.stdout)["problem"]


def test_approximations_are_named(matte, folder: Path, call, released_base: Path) -> None:
    exact = matte("a.png")
    near = matte("b.png", "--approximate", "guidance=0.5-1", "--approximate", "vision=56")
    assert 0 < abs(exact - near).mean() < 60
    done = call("matte", "photo.png", "-o", "c.png", "--model", released_base, "--approximate", "luck")
    assert done.exit_code == 2 and "'luck'" in done.stderr and "first-block" in done.stderr
