"""`omnialpha eval BENCHMARK` from the command line: one command a row of the table, several methods in one report."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import benchmark_trees as trees
from finders import fake_finder
from layered import manifest
from omnialpha.cli.main import app
from omnialpha.evaluation.datasets.benchmarks import BENCHMARKS
from omnialpha.evaluation.methods.constants import BEST_CONSTANT

Call = Callable[..., Result]
SIZE = (48, 64)


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """`call("aim-500", "--data", ...)` in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        words = ["eval", *(str(a) for a in arguments)]
        return CliRunner().invoke(app, words, prog_name="omnialpha", catch_exceptions=False)

    return run


def aim(count: int = 2) -> Path:
    return trees.matting(Path("AIM-500"), [f"o_{n}" for n in range(count)], size=SIZE)


def test_the_bundled_model(call: Call) -> None:
    result = call("aim-500", "--data", aim(), "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    out = Path("runs/eval-aim-500/AIM-500")
    for line in (
        "n: 2", "resolution: 64x48 (as stored)", "region: whole picture, and the unknown region of the trimap",
        "seed: 0", "device: cpu", "model: nano", "time a picture: nano ",
    ):  # fmt: skip
        assert line in result.stdout
    assert "| nano | matting_auto | 2 |" in result.stdout and f"wrote {out / 'index.html'} in " in result.stdout
    assert {path.name for path in out.iterdir()} == {
        "index.html", "report.json", "report.md", "rows.csv", "summary.csv", "nano",
    }  # fmt: skip
    assert sorted(p.name for p in (out / "nano" / "predictions").iterdir()) == ["o_0.png", "o_1.png"]
    with (out / "summary.csv").open(newline="") as file:
        row, constant = csv.DictReader(file)
    assert row["benchmark"] == "aim-500" and float(row["mad"]) < 0.2 and float(row["unknown_sad"]) > 0
    assert constant["method"] == BEST_CONSTANT and 0 < float(constant["mad"]) <= 0.5 and not constant["sad"]
    assert f"| {BEST_CONSTANT} | nothing, it knows the truth | 2 |" in result.stdout
    assert "<h2>Worst and best cases</h2>" in (out / "index.html").read_text()

    before = (out / "nano" / "made.jsonl").read_bytes()
    again = call("aim-500", "--data", "AIM-500", "--device", "cpu", "--json")
    assert (out / "nano" / "made.jsonl").read_bytes() == before
    told = json.loads(again.stdout)
    assert told["summary"][0]["sad"] == pytest.approx(float(row["sad"])) and told["bad"] == {}

    scored = call("aim-500", "--data", "AIM-500", "--predictions", f"kept={out / 'nano'}", "-o", "scored", "--json")
    other = json.loads(scored.stdout)["summary"][0]
    figures = {k: v for k, v in other.items() if k not in ("method", "seconds")}
    assert figures == {k: v for k, v in told["summary"][0].items() if k not in ("method", "seconds")}
    assert other["method"] == "kept" and other["seconds"] is None


def test_methods_stand_in_one_table(call: Call, tmp_path: Path) -> None:
    program = tmp_path / "dark.py"
    program.write_text(
        "import sys\nfrom PIL import Image\n"
        "Image.open(sys.argv[1]).convert('L').point(lambda v: 255 - v).save(sys.argv[2])\n"
    )
    command = f"{sys.executable} {program} {{input}} {{output}}"
    result = call("aim-500", "--data", aim(), "--peer", "closed-form", "--peer", command, "--peer", "opaque", "-o", "o")
    assert result.exit_code == 0, result.stderr
    told = json.loads(Path("o/report.json").read_text())
    rows = told["summary"]
    assert rows.pop()["method"] == BEST_CONSTANT
    assert [row["task"] for row in rows] == ["matting_trimap", "matting_auto", "matting_auto"]
    assert rows[0]["sad"] < rows[2]["sad"] and {row["n"] for row in rows} == {2}
    assert "nano" not in told["header"]["model"]
    page = Path("o/index.html").read_text()
    assert all(f"{row['method']}: foreground" in page for row in rows)
    strict = call("aim-500", "--data", "AIM-500", "--peer", "closed-form", "--task", "matting_auto")
    assert strict.exit_code == 2 and "closed form cannot do matting_auto" in strict.stderr


def test_two_programs_of_one_name(call: Call, tmp_path: Path) -> None:
    program = tmp_path / "grey.py"
    program.write_text(
        "import sys\nfrom PIL import Image\nImage.new('L', (64, 48), int(sys.argv[1])).save(sys.argv[2])\n"
    )
    commands = [f"{sys.executable} {program} {value} {{output}} {{input}}" for value in (0, 255)]
    result = call("aim-500", "--data", aim(), "--peer", commands[0], "--peer", commands[1], "-o", "o", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    names = {row["method"] for row in json.loads(Path("o/report.json").read_text())["summary"]}
    assert len(names - {BEST_CONSTANT}) == 2


@pytest.mark.parametrize("name", ["alphamatting", "matting-folder"])
def test_photographs_with_mattes_are_scored_in_both_regions(call: Call, name: str) -> None:
    data = trees.matting(Path("Photos"), ["GT01", "GT02"], "input", "alpha", name == "alphamatting", ".png", SIZE)
    result = call(name, "--data", data, "--peer", "closed-form", "--peer", "grabcut", "-o", "o")
    assert result.exit_code == 0, result.stderr
    for line in (
        "n: 2",
        "resolution: 64x48 (as stored)",
        "region: whole picture, and the unknown region of the trimap",
    ):
        assert line in result.stdout
    rows = {row["method"]: row for row in json.loads(Path("o/report.json").read_text())["summary"]}
    assert {m: row["task"] for m, row in rows.items()} == {
        "closed form": "matting_trimap", "GrabCut": "matting_auto", BEST_CONSTANT: "matting_trimap",
    }  # fmt: skip
    for method in ("closed form", "GrabCut"):
        assert all(
            rows[method][f"{of}{m}"] >= 0 for of in ("", "unknown_") for m in ("sad", "mse", "mad", "grad", "conn")
        )
    alphas = torch.stack([torch.from_numpy(trees.alpha(n, *SIZE)) / 255 for n in (0, 1)])
    least = min(float((alphas - c).abs().mean()) for c in (0, *alphas.unique().tolist()))
    assert rows[BEST_CONSTANT]["mad"] == pytest.approx(least, abs=1e-4) and rows["closed form"]["mad"] < least


def test_a_finder_stands_beside(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = fake_finder(monkeypatch)
    Path("u2.onnx").write_bytes(b"x")
    result = call("aim-500", "--data", aim(), "--peer", "onnx:u2.onnx", "--peer", "grabcut", "-o", "o")
    assert result.exit_code == 0, result.stderr
    assert opened == ["u2.onnx"] and "| u2 | matting_auto | 2 |" in result.stdout
    wrong = call("aim-500", "--data", "AIM-500", "--peer", "onxx:u2.onnx")
    assert wrong.exit_code == 2 and "'onxx:u2.onnx' is no baseline" in wrong.stderr and "onnx:PATH" in wrong.stderr


def test_removal_and_its_options(call: Call, tiny_model_folder: Path) -> None:
    trees.removal(Path("RORD/val"), ["v/1", "v/2", "v/3"], mask="{}_M")
    told = ["--limit", 2, "--size", 40, "--batch", 2, "--seed", 3, "--raw", "--steps", 1, "--device", "cpu", "--json"]
    result = call("rord", "--data", "RORD", "--model", tiny_model_folder, "--peer", "telea", *told)
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["header"]["n"] == "2" and data["header"]["seed"] == "3"
    assert data["header"]["resolution"] == "40x29 (longer side 40 px)"
    assert data["output"] == "runs/eval-rord/RORD-40" and "tiny: raw=True, steps=1" in data["notes"]
    assert {"psnr", "ssim", "hole_psnr"} <= data["summary"][0].keys() and {"lpips", "fid"} <= data["skipped"].keys()
    assert data["summary"][1]["psnr"] > data["summary"][0]["psnr"]


def test_generation_with_networks(call: Call, tiny_model_folder: Path, tmp_path: Path) -> None:
    from clip_folder import write_clip_folder

    trees.alphatest(Path("AlphaTest"), each=2)
    (tmp_path / "shades.py").write_text("def of(pictures):\n    return pictures.float().mean(dim=(2, 3))\n")
    told = ["--fid", "shades:of", "--clip", write_clip_folder(tmp_path / "clip"), "--device", "cpu", "--json"]
    sys.path.insert(0, str(tmp_path))
    try:
        result = call("alphatest", "--data", "AlphaTest", "--model", tiny_model_folder, *told)
    finally:
        sys.path.remove(str(tmp_path))
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["skipped"] == {}
    assert [row["category"] for row in data["summary"]] == ["total", "animal", "toy"]
    assert all(row[name] is not None for row in data["summary"] for name in ("fid", "kid", "clip_fid", "clip_score"))
    assert any(note.startswith("CLIP: clip") for note in data["notes"])


def test_any_data_by_its_manifest(call: Call) -> None:
    path = manifest(Path("mine"), 2)
    assert "give --task" in call("folder", "--data", path).stderr
    for task, column in (("matting_rough", "sad"), ("removal_auto", "psnr"), ("decompose_auto", "rgb_l1_0")):
        result = call("folder", "--data", path, "--task", task, "--peer", "blank", "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["summary"][0][column] > 0
    assert Path(f"runs/eval-folder/rows.jsonl-{task}").is_dir()


def test_what_cannot_be_measured_is_listed(call: Call) -> None:
    data = aim(3)
    (data / "mask" / "o_1.png").write_bytes(b"")
    result = call("aim-500", "--data", data, "--peer", "opaque")
    assert result.exit_code == 2 and "o_1.png is empty (0 bytes)" in result.stderr
    result = call("aim-500", "--data", data, "--peer", "opaque", "--skip-bad")
    assert result.exit_code == 0 and "note: passed over, opaque: AIM-500/mask/o_1.png is empty" in result.stderr
    assert "n: 2\n" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["aim-500"], "Missing option '--data'"),
        (["aim-500", "--data", "nowhere"], "nowhere is not a folder: give the one that AIM-500 was unpacked to"),
        (["am-2k", "--data", "."], "is not laid out as AM-2K: it lacks original/"),
        (["aim-500", "--data", "AIM-500", "--task", "removal_auto"], "use --task matting_auto or matting_trimap"),
        (["aim-500", "--data", "AIM-500", "--peer", "gimp"], "'gimp' is no baseline: use grabcut"),
        (["aim-500", "--data", "AIM-500", "--peer", "telea"], "Telea cannot do matting_auto"),
        (["aim-500", "--data", "AIM-500", "--predictions", "x=nothing"], "nothing is no folder of predictions"),
        (["aim-500", "--data", "AIM-500", "--predictions", "AIM-500", "--predictions", "AIM-500/"], "measured twice"),
        (["aim-500", "--data", "AIM-500", "--limit", "0"], "limit=0 is out of range"),
        (["aim-500", "--data", "AIM-500", "--batch", "0"], "batch=0 is out of range"),
        (["aim-500", "--data", "AIM-500", "--size", "big"], "'big' is not a whole number"),
        (["aim-500", "--data", "AIM-500", "--model", "nobody"], "model 'nobody' is neither bundled"),
        (["aim-500", "--data", "AIM-500", "--lpips", "x.pth"], "there is no file x.pth"),
        (["aim-500", "--data", "AIM-500", "--clip", "x"], "x is no folder of a CLIP model"),
    ],
)
def test_what_is_refused(call: Call, arguments: list[str], words: str) -> None:
    aim()
    result = call(*arguments)
    assert result.exit_code == 2 and words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and not Path("runs").exists()


def test_a_stop_says_what_is_kept(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from omnialpha.evaluation.runner import Runner

    whole = Runner._score

    def stopped(self: Runner, method: object, part: object, sample: object, *rest: object) -> object:
        if getattr(sample, "key", "") == "o_1":
            raise KeyboardInterrupt
        return whole(self, method, part, sample, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Runner, "_score", stopped)
    result = call("aim-500", "--data", aim(), "--peer", "opaque", "-o", "out")
    assert result.exit_code == 130
    assert "stopped, 1 of 2 samples of opaque are kept in out: run it again to go on" in result.stderr
    monkeypatch.setattr(Runner, "_score", whole)
    assert call("aim-500", "--data", "AIM-500", "--peer", "opaque", "-o", "out").exit_code == 0
    assert len(Path("out/opaque/made.jsonl").read_text().splitlines()) == 2


def test_every_row_has_a_command_that_says_what_it_is(call: Call) -> None:
    listed = call("--help").stdout
    for row in BENCHMARKS.values():
        assert row.name in listed or row.own_command
    told = " ".join(call("crello", "--help").stdout.split())
    assert "Crello, test: decomposition of designs into layers." in told and "--predictions" in told


def test_its_help_loads_nothing_heavy() -> None:
    code = "import json, sys, omnialpha.cli.benchmark; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "numpy", "PIL", "diffusers"}.isdisjoint(json.loads(run.stdout))


def test_grey_photographs_are_not_taken_for_mattes(call: Call) -> None:
    """An opaque answer on a grey photograph is an alpha of 1, and not the photograph."""
    data = aim(1)
    grey = np.linspace(0, 255, 48 * 64).reshape(SIZE).astype(np.uint8)
    trees.save(np.dstack([grey] * 3), data / "original" / "o_0.jpg")
    result = call("aim-500", "--data", data, "--peer", "opaque", "--json")
    share = trees.alpha(0, *SIZE) / 255
    assert json.loads(result.stdout)["summary"][0]["mad"] == pytest.approx(float(1 - share.mean()), abs=1e-6)
