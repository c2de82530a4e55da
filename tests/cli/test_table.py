"""`omnialpha eval table`: published figures alone, and those of runs beside them."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import benchmark_trees as trees
from omnialpha.cli.main import app
from omnialpha.evaluation.methods.constants import BEST_CONSTANT
from omnialpha.evaluation.reports.report import Report

HEADER = {"n": "500", "resolution": "1080x1600 (as stored)", "region": "whole picture, and another", "seed": "7"}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Commands of `eval` in an empty folder, behind what turns errors into messages."""
    monkeypatch.chdir(tmp_path)
    return lambda *told: CliRunner().invoke(app, ["eval", *map(str, told)], catch_exceptions=False)


@pytest.fixture
def table(call: Callable[..., Result]) -> Callable[..., Result]:
    return lambda *told: call("table", *told)


def run(folder: str, summary: list[dict[str, Any]], **header: str) -> Path:
    """A run with a report, as the commands write it."""
    told = HEADER | {"device": "cpu", "model": "nano", "scale": "SAD in thousands"} | header
    Report("Any", told, (), summary, summary).write(Path(folder))
    return Path(folder)


def benchmark(folder: str, name: str, task: str, **figures: float) -> Path:
    told = {"benchmark": name, "task": task, "n": 500}
    rows = [told | {"method": m, "category": "total"} | figures for m in ("nano", "closed-form")]
    return run(folder, [*rows, rows[0] | {"category": "animal", "sad": 99.0}])


def test_all_that_is_published(table: Callable[..., Result]) -> None:
    result = table()
    assert result.exit_code == 0 and "LayerDecomp" in result.stdout and "AlphaVAE (FLUX)" in result.stdout
    assert "7.8820" in result.stdout and "MSE is above MAD" in result.stdout
    told = json.loads(table("--json").stdout)
    assert "output" not in told and told["title"] == "Published figures"
    row = next(r for r in told["summary"] if r["method"].startswith("MatAny") and r["n"] == "not stated")
    assert row["mse"] == 0.7207 and row["from"] == "OmniAlpha, arXiv 2511.20211v1, table 4"
    number = row["method"].split("[")[1].split("]")[0]
    assert next(n for n in told["notes"] if n.startswith(f"[{number}] ")).count(".0721 may be meant") == 1


def test_a_run_stands_beside_its_table_only(table: Callable[..., Result]) -> None:
    folder = benchmark("one", "aim-500", "matting_auto", sad=12.345678, mse=0.01, mad=0.02)
    told = json.loads(table(folder, "--json").stdout)
    assert {row["table"] for row in told["summary"]} == {"Automatic matting, AIM-500"}
    assert [row["whose"] for row in told["summary"]] == ["published"] * 3 + ["ours"] * 2
    own = told["summary"][3]
    assert own["method"].startswith("nano [") and own["sad"] == 12.345678 and own["conn"] is None
    assert (own["n"], own["resolution"], own["region"]) == ("500", HEADER["resolution"], "whole picture")
    assert any("run one: SAD in thousands; seed 7" in note for note in told["notes"])
    shown = table(folder / "report.json").stdout
    assert "12.346" in shown and "34.30" in shown and "99.000" not in shown and "LayerDecomp" not in shown


def test_a_real_run(call: Callable[..., Result]) -> None:
    trees.matting(Path("AIM-500"), ["o_0", "o_1"], size=(48, 64))
    made = call("aim-500", "--data", "AIM-500", "--peer", "closed-form", "--peer", "opaque", "-o", "made", "--json")
    assert made.exit_code == 0, made.stderr
    *rows, constant = json.loads(made.stdout)["summary"]
    figures = {row["task"]: row for row in rows}
    assert constant["method"] == BEST_CONSTANT, "which is nobody's, and stands beside no published figure"
    told = json.loads(call("table", "made", "--json").stdout)
    free, guided = (row for row in told["summary"] if row["whose"] == "ours")
    assert free["table"] == "Automatic matting, AIM-500" and free["n"] == "2" and free["resolution"].startswith("64x48")
    assert (
        free["method"].startswith(figures["matting_auto"]["method"]) and free["sad"] == figures["matting_auto"]["sad"]
    )
    assert guided["table"] == "aim-500, matting_trimap: no published figures are known here"
    assert guided["unknown_sad"] == figures["matting_trimap"]["unknown_sad"]


def test_several_runs(table: Callable[..., Result]) -> None:
    folders = [
        benchmark("a", "aim-500", "matting_auto", sad=1.0),
        benchmark("b", "aim-500", "matting_auto", sad=2.0),
        benchmark("c", "am-2k", "matting_auto", sad=3.0, strange=0.25),
    ]
    told = json.loads(table(*folders, "--json").stdout)
    assert [row["sad"] for row in told["summary"] if row["whose"] == "ours"] == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    assert told["summary"][-1]["table"] == "am-2k, matting_auto: no published figures are known here"
    assert told["summary"][-1]["strange"] == 0.25


def test_reconstructions_and_comparisons(table: Callable[..., Result]) -> None:
    about = {"benchmark": "vae", "task": "reconstruction", "method": "nano", "n": 2, "rgba_psnr": 9.0}
    rows = [about | {"category": c, "psnr": p} for c, p in (("total", 31.5), ("toy", 1.0))]
    reconstructed = run("vae", rows, data="AIM-500", scale="means over nine backgrounds")
    shares = {"a_wins": 0.55, "ties": 0.25, "b_wins": 0.2, "n": 4}
    judged = run("judged", [{"aspect": a} | shares for a in ("quality", "overall")], A="nano", B="other", model="Judge")
    told = json.loads(table(reconstructed, judged, "--json").stdout)
    own = [row for row in told["summary"] if row["whose"] == "ours"]
    assert [row["method"].split(" [")[0] for row in own] == ["nano against other, by Judge"] + ["nano, AIM-500"] * 2
    assert own[0]["wins"] == pytest.approx(55) and own[1]["psnr"] == 31.5


def test_files(table: Callable[..., Result]) -> None:
    folder = benchmark("one", "aim-500", "matting_auto", sad=12.345678)
    for name, words in (("t.md", "| SmartMatting [1] |"), ("out/t.html", "<td>34.30</td>"), ("t.csv", "34.3")):
        result = table(folder, "-o", name)
        assert (result.exit_code, result.stdout) == (0, f"wrote {name}\n")
        assert words in Path(name).read_text()
    rows = list(csv.DictReader(Path("t.csv").read_text().splitlines()))
    assert len(rows) == 5 and rows[3]["sad"] == "12.345678" and rows[3]["whose"] == "ours"
    assert table(folder, "-o", "t.md", "--quiet").stdout == ""
    result = table(folder, "-o", "t.pdf")
    assert result.exit_code == 2 and "t.pdf is none of .md, .html, .csv" in result.stderr


def test_what_is_no_run(table: Callable[..., Result]) -> None:
    Path("empty").mkdir()
    result = table("empty")
    assert result.exit_code == 2 and "empty holds no report.json" in result.stderr
    for content in ("{", "[]", "{}", '{"header": {}, "summary": []}', '{"header": {"A": "x"}, "summary": [{}]}'):
        Path("empty/report.json").write_text(content)
        result = table("empty")
        assert result.exit_code == 2 and "report.json is no report of `omnialpha eval BENCHMARK`" in result.stderr
