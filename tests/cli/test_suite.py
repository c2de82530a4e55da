"""`omnialpha eval suite` from the command line, on a tiny model."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from finders import Red, fake_finder
from omnialpha.cli import suite
from omnialpha.cli.main import app
from omnialpha.evaluation.runner import Runner

pytest.importorskip("cv2")
Call = Callable[..., Result]


@pytest.fixture
def call(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """`call("--n", 2)`: the command on a tiny model and two scenes, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        given = ["eval", "suite", "--model", tiny_model_folder, "--device", "cpu", "--n", 2, *arguments]
        return CliRunner().invoke(app, [str(a) for a in given], prog_name="omnialpha", catch_exceptions=False)

    return run


def test_a_table_for_the_readme_and_a_report(call: Call) -> None:
    result = call("--categories", "removal", "--peer", "telea", "--seed", 3)
    assert result.exit_code == 0, result.stderr
    out = Path("runs/eval-suite/tiny-procedural-2-3")
    lines = result.stdout.splitlines()
    assert lines[0] == "| figure | required | tiny |"
    assert any(line.startswith("| removal, rough mask, PSNR in the hole, pooled | above Telea's |") for line in lines)
    assert lines[-1].startswith(f"wrote {out / 'index.html'} in ")
    assert "removal_trimap" in result.stderr
    assert sorted(p.name for p in out.iterdir()) == [
        "index.html", "report.json", "report.md", "rows.csv", "rows.jsonl", "summary.csv",
    ]  # fmt: skip
    rows = len((out / "rows.jsonl").read_text().splitlines())
    again = call("--categories", "removal", "--peer", "telea", "--seed", 3, "--json")
    told = json.loads(again.stdout)
    assert told["header"]["n"] == "2" and told["header"]["seed"] == "3" and told["output"] == str(out)
    assert {row["category"] for row in told["summary"]} == {"removal"}
    assert len((out / "rows.jsonl").read_text().splitlines()) == rows  # nothing was done again


def test_programs_stand_beside_the_bundled_peers(call: Call) -> None:
    code = "import sys; from PIL import Image; Image.open(sys.argv[1]).convert('L').save(sys.argv[2])"
    program = f"matting_auto={shlex.quote(sys.executable)} -c {shlex.quote(code)} {{input}} {{output}}"
    result = call("--categories", "matting", "--peer", program, "--peer", "blank", "-o", "out", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    summary = json.loads(Path("out/report.json").read_text())["summary"]
    name = Path(sys.executable).name
    assert {row["part"] for row in summary if row["method"] == name} == {"matting_auto", "matting_auto: two objects"}
    assert {row["method"] for row in summary} == {"tiny, default", "tiny, raw", "blank", name, "best constant"}


def test_words_for_categories() -> None:
    known = ["autoencoder", "matting", "removal"]
    assert suite.chosen([], known) == known
    assert suite.chosen(["removal", " matting", ""], known) == ["matting", "removal"]


def test_words_for_peers() -> None:
    from omnialpha.evaluation.methods.baselines import BASELINES

    program = f"{shlex.quote(sys.executable)} {{input}} {{output}}"
    assert [m.name for m in suite.choose_baselines([], 1.0)] == [m.name for m in BASELINES.values()]
    assert suite.choose_baselines(["none"], 1.0) == []
    assert [m.name for m in suite.choose_baselines(["telea", "knn", "telea"], 1.0)] == ["Telea", "KNN matting"]
    (*bundled, mine) = suite.choose_baselines([program], 1.0)
    assert len(bundled) == len(BASELINES) and mine.does("matting_auto") and not mine.does("removal_auto")
    assert suite.choose_baselines(["none", f"removal={program}"], 1.0)[0].does("removal_auto")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--n", "0"], "n=0 scenes cannot be measured"),
        (["--batch", "0"], "batch=0 is out of range"),
        (["--categories", "mattin"], "'mattin' is no category: use some of autoencoder, matting"),
        (["--peer", "grabkut"], "'grabkut' is no baseline: use grabcut"),
        (["--peer", "no-such-program {input} {output}"], "there is no program no-such-program"),
        (["--peer", "none", "--data", "nowhere"], "nowhere"),
        (["--timeout", "0", "--peer", "sh {input} {output}"], "timeout=0 is out of range"),
    ],
)
def test_what_is_refused(call: Call, arguments: list[str], words: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2 and words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and not Path("runs").exists()


def test_a_stop_says_what_is_kept(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    make, made = Runner._make, []

    def stopped(self: Runner, *asked: object) -> Iterator[dict[str, object]]:
        if made:
            raise KeyboardInterrupt
        for row in make(self, *asked):  # type: ignore[arg-type]
            made.append(row)
            yield row

    monkeypatch.setattr(Runner, "_make", stopped)
    result = call("--categories", "generation", "--peer", "blank", "-o", "out")
    assert result.exit_code == 130
    assert "stopped, 4 of 6 predictions are kept in out: run it again to go on" in result.stderr
    assert len(Path("out/rows.jsonl").read_text().splitlines()) == 4  # both outputs of the model


def test_its_help_loads_nothing_heavy() -> None:
    code = "import json, sys, omnialpha.cli.suite; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "numpy", "PIL", "diffusers"}.isdisjoint(json.loads(run.stdout))


def test_the_finder_of_a_model_has_a_row(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = fake_finder(monkeypatch)
    Path("u2.onnx").write_bytes(b"x")
    arguments = ("--categories", "matting", "--peer", "blank", "--peer", "onnx:u2.onnx", "--json")
    told = json.loads(call(*arguments, "-o", "without").stdout)
    assert opened == ["u2.onnx"]
    automatic = {row["method"] for row in told["summary"] if row["part"] == "matting_auto"}
    assert automatic == {"tiny, default", "tiny, raw", "blank", "u2", "best constant"}
    monkeypatch.setattr(
        "omnialpha.models.checkpoints.folders._finder", lambda sources, card, other: sources[0] / "finder"
    )
    monkeypatch.setattr("omnialpha.pretrained.open_finder", lambda path: Red())
    told = json.loads(call(*arguments, "-o", "with").stdout)
    rows = {(row["part"], row["method"]): row for row in told["summary"]}
    assert Path(opened[-1]).name == "finder" and len(opened) == 3
    assert rows["matting_auto", "its finder alone"]["mad"] == rows["matting_auto", "u2"]["mad"]
    assert not any(part == "matting_trimap" and "finder" in method for part, method in rows)
    call("--categories", "matting", "--peer", "none", "-o", "none", "--quiet")
    assert len(opened) == 3
