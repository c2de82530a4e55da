"""A folder through one task: what comes out, what is skipped, what fails, and that nothing stops the rest."""

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

from omnialpha.batch.ledger import REPORT
from omnialpha.cli import main
from omnialpha.cli.batch import batch
from omnialpha.io import read_image, read_settings
from omnialpha.io.layers import LayerStack

Call = Callable[..., Result]
HERE = {"OMP_NUM_THREADS": "1"}


def scene(seed: int, size: tuple[int, int] = (40, 24)) -> Image.Image:
    """A bright disk on a dark, grainy ground, (width, height) px."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[1], : size[0]]
    inside = (rows - size[1] / 2) ** 2 + (columns - size[0] / 2) ** 2 < (size[1] / 3) ** 2
    ground = rng.integers(20, 60, (size[1], size[0], 3), dtype=np.uint8)
    ground[inside] = (230, 180, 40)
    return Image.fromarray(ground)


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with in/a.png, in/a.jpg (of other dpi), in/x/b.webp, in/x/y/c.tif (16 bits)."""
    import tifffile

    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "x" / "y").mkdir(parents=True)
    scene(0).save("in/a.png")
    scene(1).save("in/a.jpg", dpi=(300, 300), exif=_exif())
    scene(2).save("in/x/b.webp", lossless=True)
    tifffile.imwrite("in/x/y/c.tif", np.asarray(scene(3)).astype(np.uint16) * 257, photometric="rgb")
    return tmp_path


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[315] = "A. Maker"
    return exif


OUTPUTS = {"a.jpg": "a-jpg.png", "a.png": "a.png", "x/b.webp": "x/b.webp", "x/y/c.tif": "x/y/c.tif"}


def rows(folder: str | Path = "out") -> dict[str, dict[str, Any]]:
    lines = (Path(folder) / REPORT).read_text(encoding="utf-8").splitlines()
    return {row["input"]: row for row in map(json.loads, lines)}


def files(folder: str | Path) -> dict[str, bytes]:
    """Of all files but the report and the lock."""
    found = [path for path in sorted(Path(folder).rglob("*")) if path.is_file() and path.name != REPORT]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found if path.name != ".batch.lock"}


def report(result: Result, code: int = 0) -> dict[str, Any]:
    assert result.exit_code == code, result.output
    made = json.loads(result.stdout)
    assert isinstance(made, dict)
    return made


def start(*arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "omnialpha.cli.main", *map(str, arguments)]
    return subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=os.environ | HERE)


# ---- what comes out --------------------------------------------------------------------------------------------------


def test_outputs_mirror_the_tree_in_formats_that_hold_them(pictures: Path, ask: Call) -> None:
    made = report(ask("batch", "matte", "in", "out", "--json"))
    assert (made["done"], made["skipped"], made["failed"]) == (4, 0, 0)
    assert {name: row["output"] for name, row in rows().items()} == OUTPUTS
    assert set(files("out")) == set(OUTPUTS.values())
    assert any("a.jpg becomes a-jpg.png, as a.png is that of a.png" in note for note in made["notes"])
    assert read_image("out/x/y/c.tif").bits == 16
    jpeg = Image.open("out/a-jpg.png")
    assert jpeg.getexif()[315] == "A. Maker" and round(jpeg.info["dpi"][0]) == 300


@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        ("matting_auto", []),
        ("matting_trimap", ["--maps", "maps"]),
        ("removal_rough", ["--maps", "maps"]),
        ("background_to_full", ["--prompt", "a red mug", "--steps", 1]),
        ("decompose_auto", ["--layers", 3, "--seed", 7]),
    ],
)
def test_a_batch_makes_what_single_runs_make(task, arguments, pictures: Path, ask: Call) -> None:
    (pictures / "maps").mkdir()
    given = main.TASKS[task].inputs
    guide = Image.fromarray(np.uint8(255) * (np.asarray(scene(0))[..., 0] > 100))
    guide.save("maps/a.png")
    made = report(ask("batch", task, "in", "out", "--include", "a.png", *arguments, "--json"))
    assert made["done"] == 1
    single = [word for word in arguments if word not in ("--maps", "maps")]
    guides = [f"--{given[1]}", "maps/a.png"] if "maps" in arguments else []
    output = "single" if "decompose" in task else "single.png"
    assert ask("run", task, f"--{given[0]}", "in/a.png", *guides, *single, "-o", output).exit_code == 0
    if "decompose" in task:
        assert files("out/a") == files("single") and len(LayerStack.load("out/a")) == 3
    else:
        assert Path("out/a.png").read_bytes() == Path("single.png").read_bytes()
        assert read_settings("out/a.png") == read_settings("single.png")


def test_a_removal_keeps_jpeg_and_a_background_makes_it_possible(pictures: Path, ask: Call) -> None:
    assert ask("batch", "remove", "in", "out", "--include", "*.jpg").exit_code == 0
    assert ask("batch", "matte", "in", "white", "--include", "*.jpg", "--background", "white").exit_code == 0
    assert [*files("out")] == [*files("white")] == ["a.jpg"]
    assert ask("batch", "matte", "in", "webp", "--format", "webp").exit_code == 0
    assert [*files("webp")] == ["a-png.webp", "a.webp", "x/b.webp", "x/y/c.webp"]


def test_every_option_of_a_run_is_one_of_a_batch() -> None:
    def options(name: str) -> set[str]:
        command = next(row for row in main.app.registered_commands if row.callback.__name__ == name)
        return set(inspect.signature(command.callback).parameters)

    files_of_one = {"output", *(str(role) for role in main.input_roles())}
    assert options("run") - files_of_one <= options("batch") - {"output"}
    assert "background" in options("matte") & options("batch") and batch.__doc__


# ---- going on --------------------------------------------------------------------------------------------------------


def test_what_is_done_is_skipped_unless_input_setting_or_output_changed(pictures: Path, ask: Call) -> None:
    report(ask("batch", "matte", "in", "out", "--json"))
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.*") if path.suffix in (".png", ".webp")}
    again = ask("batch", "matte", "in", "out")
    assert again.exit_code == 0 and "skipped 4 that are done" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    scene(9).save("in/a.png")
    Path("out/x/b.webp").unlink()
    changed = report(ask("batch", "matte", "in", "out", "--json"))
    assert (changed["done"], changed["skipped"]) == (2, 2)
    other = report(ask("batch", "matte", "in", "out", "--seed", 5, "--json"))
    assert (other["done"], other["skipped"]) == (4, 0)
    assert report(ask("batch", "matte", "in", "out", "--seed", 5, "--json", "--overwrite"))["done"] == 4


def test_maps_count_as_input(pictures: Path, ask: Call) -> None:
    Path("maps").mkdir()
    Image.fromarray(np.uint8(255) * (np.asarray(scene(0))[..., 0] > 100)).save("maps/a.png")
    call = ("batch", "matting_rough", "in", "out", "--maps", "maps", "--include", "a.png", "--json")
    assert report(ask(*call))["done"] == 1 and report(ask(*call))["skipped"] == 1
    Image.fromarray(np.uint8(255) * (np.asarray(scene(0))[..., 2] < 60)).save("maps/a.png")
    assert report(ask(*call))["done"] == 1


def test_what_another_made_is_not_replaced(pictures: Path, ask: Call) -> None:
    Path("out").mkdir()
    Path("out/a.png").write_bytes(b"mine")
    made = report(ask("batch", "matte", "in", "out", "--json"), 1)
    assert "use --overwrite" in made["errors"]["a.png"] and Path("out/a.png").read_bytes() == b"mine"
    report(ask("batch", "matte", "in", "out", "--json"), 1)  # and not by the next run either
    assert report(ask("batch", "remove", "in", "out", "--json", "--include", "*.webp"), 1)["failed"] == 1
    assert report(ask("batch", "matte", "in", "out", "--json", "--overwrite"))["done"] == 4


# ---- what fails ------------------------------------------------------------------------------------------------------


def test_a_bad_file_is_reported_and_does_not_stop_the_others(pictures: Path, ask: Call) -> None:
    Path("in/0.png").write_bytes(b"no picture")
    Path("in/cut.jpg").write_bytes(Path("in/a.jpg").read_bytes()[:500])
    result = ask("batch", "matte", "in", "out", "--workers", 2)
    assert result.exit_code == 1 and "wrote 4" in result.stdout and "2 failed" in result.stdout
    assert "failed: 0.png: in/0.png" in result.stderr.replace(str(pictures) + "/", "")
    assert rows()["0.png"]["error"].endswith(".") and rows()["0.png"]["output"] == ""
    assert "cut off" in rows()["cut.jpg"]["error"] and rows()["a.png"]["seconds"] > 0
    scene(4).save("in/0.png")
    made = report(ask("batch", "matte", "in", "out", "--json"), 1)
    assert (made["done"], made["skipped"], made["failed"]) == (1, 4, 1)


def test_named_files_that_are_missing_fail_alone(pictures: Path, ask: Call) -> None:
    made = report(ask("batch", "matte", "in/a.png", "in/x/none.png", "out", "--json"), 1)
    assert made["done"] == 1 and "cannot be used (No such file" in made["errors"]["x/none.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["matte", "nowhere", "out"], "there is no nowhere"),
        (["matte", "empty", "out"], "holds no picture"),
        (["matting_autp", "in", "out"], "did you mean 'matting_auto'"),
        (["matte", "in", "out", "--maps", "in"], "name matting_alpha, matting_trimap"),
        (["matting_trimap", "in", "out"], "give their folder with --maps"),
        (["text_to_image", "in", "out", "--prompt", "x"], "takes no picture"),
        (["matting_text", "in", "out"], "give a prompt"),
        (["matte", "in", "out", "--format", "jpg"], "cannot hold transparency"),
        (["decompose", "in", "out", "--format", "png"], "folders of PNG"),
        (["remove", "in", "out", "--background", "white"], "for cut-outs"),
        (["matte", "in", "out", "--workers", "0"], "out of range"),
        (["matte", "in", "out", "--size", "4x4"], "leave it out"),
        (["matte", "in/a.png", "out", "--watch"], "give the folder"),
        (["matte", "in", "out", "--model", "none"], "neither bundled"),
        (["remove", "in", "out", "--engine", "processes"], "use threads"),
        (["matte", "in", "in"], "lie in the output folder"),
    ],
)
def test_what_cannot_start_is_refused_with_the_fix(arguments, said, pictures: Path, call: Call) -> None:
    Path("empty").mkdir()
    result = call("batch", *arguments)
    assert result.exit_code == 2 and re.search(said, result.stderr), result.output
    assert not Path("out").exists()


# ---- engines ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_processes_and_threads_make_the_same_cut_outs(pictures: Path, call: Call) -> None:
    arguments = ("batch", "matte", "in", "--quiet", "--include", "a.*")
    assert call(*arguments, "one", "--workers", 1).exit_code == 0
    assert call(*arguments, "two", "--workers", 2, "--engine", "processes").exit_code == 0
    assert files("one") == files("two") and len(files("one")) == 2


def test_ray_data_makes_the_same(pictures: Path, ask: Call) -> None:
    ray = pytest.importorskip("ray")
    Path("in/0.png").write_bytes(b"no picture")
    try:
        report(ask("batch", "matte", "in", "ray", "--engine", "ray", "--workers", 1, "--json"), 1)
    finally:
        ray.shutdown()
    report(ask("batch", "matte", "in", "out", "--json"), 1)
    assert files("ray") == files("out") and rows("ray").keys() == rows().keys()


def test_killed_it_leaves_nothing_in_part_and_goes_on(pictures: Path, tiny_model_folder: Path, ask: Call) -> None:
    for number in range(30):
        scene(number).save(f"in/x/{number:02d}.png")
    running = start("batch", "matte", "in", "out", "--model", tiny_model_folder, "--steps", 20, "--workers", 2)
    wait_until(lambda: len(files("out")) >= 2 if Path("out").is_dir() else False, running)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    for path in Path("out").rglob("*.png"):
        if not path.name.startswith("."):
            Image.open(path).load()
    made = report(ask("batch", "matte", "in", "out", "--steps", 20, "--json"))
    assert made["skipped"] >= 1 and made["done"] + made["skipped"] == 34
    assert not [name for name in files("out") if Path(name).name.startswith(".")]


def test_ctrl_c_finishes_what_is_in_work_and_says_how_far_it_came(pictures: Path, tiny_model_folder: Path) -> None:
    for number in range(30):
        scene(number).save(f"in/x/{number:02d}.png")
    running = start("batch", "matte", "in", "out", "--model", tiny_model_folder, "--steps", 40, "--workers", 2)
    wait_until(lambda: len(files("out")) >= 2 if Path("out").is_dir() else False, running)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130 and "of 34 are done: run it again to go on" in said, said
    assert len([row for row in rows().values() if not row["error"]]) == len(files("out"))


def test_watching_does_what_comes_and_ends_on_ctrl_c(pictures: Path, tiny_model_folder: Path) -> None:
    running = start("batch", "matte", "in", "out", "--model", tiny_model_folder, "--watch", "--workers", 2)
    wait_until(lambda: len(files("out")) == 4 if Path("out").is_dir() else False, running)
    Path("in/new/deep").mkdir(parents=True)
    scene(5).save("in/new/deep/e.png")
    wait_until(lambda: Path("out/new/deep/e.png").is_file(), running)
    running.send_signal(signal.SIGINT)
    out, said = running.communicate(timeout=60)
    assert running.returncode == 0 and "wrote 5" in out, said
    assert rows()["new/deep/e.png"]["output"] == "new/deep/e.png"


def wait_until(met: Callable[[], bool], running: "subprocess.Popen[str]", seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
