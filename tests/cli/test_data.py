"""`omnialpha data`: what it says of good and bad rows, the sheet that it draws, the shards that it writes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from layered import layered_row, manifest, pair_row, write_manifest
from omnialpha.cli import data as commands
from omnialpha.cli.main import Commands
from omnialpha.tasks import TASKS

Call = Callable[..., Result]


@pytest.fixture
def call() -> Call:
    root = typer.Typer(cls=Commands, pretty_exceptions_enable=False)
    root.add_typer(commands.app, name="data")

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(root, ["data", *map(str, arguments)], prog_name="omnialpha", catch_exceptions=False)

    return run


def refused(result: Result) -> str:
    """The one sentence of a command that ended with a mistake."""
    assert result.exit_code == 2 and result.stdout == "", result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """Four rows: the second has no background file, the third has no alpha and that too."""
    rows = [layered_row(tmp_path, n) for n in range(4)]
    rows[1]["background"] = rows[2]["background"] = "gone.png"
    rows[2]["foreground"] = "pictures/0-bg.png"
    return write_manifest(tmp_path / "rows.jsonl", rows)


# ---- check ----------------------------------------------------------------------------------------------------------


def test_good_rows_and_what_they_serve(call: Call, tmp_path: Path) -> None:
    made = call("check", manifest(tmp_path, 3))
    assert made.exit_code == 0 and made.stderr == ""
    lines = made.stdout.splitlines()
    assert lines[0] == f"{tmp_path / 'rows.jsonl'}: 3 rows, 3 good, 0 bad"
    assert [line.split() for line in lines[1:]] == [["3", name] for name in TASKS]
    assert call("check", tmp_path / "rows.jsonl", "--quiet").output == ""


def test_every_bad_row_with_every_reason(call: Call, bad: Path) -> None:
    made = call("check", bad)
    assert made.exit_code == 1
    lines = made.stdout.splitlines()
    assert [line.partition("):")[0] for line in lines[:3]] == [
        "rows.jsonl:2 (row 2, id r1", "rows.jsonl:3 (row 3, id r2", "rows.jsonl:3 (row 3, id r2"]  # fmt: skip
    assert "There is no file" in lines[0] and "has no alpha channel" in lines[1] and "There is no file" in lines[2]
    assert lines[3] == f"{bad}: 4 rows, 2 good, 2 bad"
    told = json.loads(call("check", bad, bad, "--json").stdout)
    assert len(told) == 2 and told[0] == told[1] and told[0]["rows"] == 4
    assert [(b["row"], b["id"], len(b["reasons"])) for b in told[0]["bad"]] == [(2, "r1", 1), (3, "r2", 2)]
    assert told[0]["tasks"]["matting_auto"] == 2


def test_the_rest_as_a_manifest(call: Call, bad: Path) -> None:
    good = bad.parent / "good.jsonl"
    assert call("check", bad, "--skip-bad", good).exit_code == 0
    assert [json.loads(line)["id"] for line in good.read_text().splitlines()] == ["r0", "r3"]
    assert call("check", good).exit_code == 0
    before = bad.read_bytes()
    assert "is what is checked: choose another name" in refused(call("check", bad, "--skip-bad", bad))
    assert "end its name with .jsonl" in refused(call("check", bad, "--skip-bad", bad.parent / "good.txt"))
    assert "not of 2: check them one by one" in refused(call("check", bad, good, "--skip-bad", good))
    assert "does not exist: create it first" in refused(call("check", bad, "--skip-bad", bad.parent / "x/good.jsonl"))
    assert bad.read_bytes() == before


def test_deep_pairs_and_columns(call: Call, tmp_path: Path) -> None:
    pairs = write_manifest(tmp_path / "pairs.jsonl", [pair_row(tmp_path, n) for n in range(2)])
    assert "give task = NAME, or --task." in call("check", pairs).stdout
    made = call("check", pairs, "--task", "matting_rough", "--deep")
    assert made.exit_code == 0 and made.stdout.splitlines()[1].split() == ["2", "matting_rough"]
    row = layered_row(tmp_path / "deep", 1)
    path = write_manifest(tmp_path / "a.jsonl", [{"id": 1, "rgba": row["foreground"]}])
    assert "'rgba' is unknown" in call("check", path).stdout
    columns = ("--column", "id=id", "--column", "foreground=rgba", "--column", "background=rgba")
    made = call("check", path, *columns, "--root", tmp_path / "deep")
    assert made.exit_code == 0 and "matting_auto" in made.stdout
    assert "has transparent pixels" in call("check", path, *columns, "--root", tmp_path / "deep", "--deep").stdout
    assert "'foreground' names no column: write KEY=NAME" in refused(call("check", path, "--column", "foreground"))


def test_what_is_no_dataset(call: Call, tmp_path: Path) -> None:
    assert "there is no dataset" in refused(call("check", tmp_path / "nowhere.jsonl"))
    assert "unknown task 'mating'" in refused(call("check", manifest(tmp_path, 1), "--task", "mating"))


# ---- show -----------------------------------------------------------------------------------------------------------


def test_a_sheet_of_examples(call: Call, tmp_path: Path) -> None:
    path, out = manifest(tmp_path, 3, layers=2), tmp_path / "sheet.png"
    made = call("show", path, 5, "-o", out, "--side", 48, "--json")
    assert made.exit_code == 0, made.output
    told = json.loads(made.stdout)
    assert len(told["examples"]) == 5 and {e["id"] for e in told["examples"]} == {"r0", "r1", "r2"}
    assert all(e["task"] in TASKS and e["instruction"] for e in told["examples"])
    first = out.read_bytes()
    with Image.open(out) as sheet:
        assert sheet.format == "PNG" and sheet.width >= 640 and sheet.height > 5 * 192
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 24)}
    assert {(204, 204, 204), (255, 255, 255)} <= colours, "the checkerboard shows through"
    assert call("show", path, 5, "-o", out, "--side", 48).exit_code == 0 and out.read_bytes() == first
    assert call("show", path, 5, "-o", out, "--side", 48, "--seed", 1).exit_code == 0 and out.read_bytes() != first


def test_the_sheet_shows_the_pictures(call: Call, tmp_path: Path) -> None:
    """Of text to image: the one target, where its pixels must be."""
    path, out = manifest(tmp_path, 1), tmp_path / "sheet.png"
    assert call("show", path, 1, "-o", out, "--side", 192, "--only", "text_to_image").exit_code == 0
    with Image.open(out) as sheet:
        blue = [
            (x, y) for y in range(sheet.height) for x in range(sheet.width) if sheet.getpixel((x, y)) == (0, 0, 200)
        ]
    assert len(blue) > 2000
    assert min(y for _, y in blue) > 48 and max(y for _, y in blue) < 48 + 192


def test_what_cannot_be_shown(call: Call, tmp_path: Path) -> None:
    path = manifest(tmp_path, 1, captions=None)
    assert "end its name with .png" in refused(call("show", path, "-o", tmp_path / "a.jpg"))
    assert "0 examples of 256 px cannot be shown" in refused(call("show", path, 0, "-o", tmp_path / "a.png"))
    told = refused(call("show", path, "-o", tmp_path / "a.png", "--only", "matting_text"))
    assert "rows.jsonl has no good row" in told


# ---- pack -----------------------------------------------------------------------------------------------------------


def test_pack_then_check_then_show(call: Call, tmp_path: Path) -> None:
    path, out = manifest(tmp_path / "data", 3), tmp_path / "shards"
    made = call("pack", path, out, "--json")
    assert made.exit_code == 0 and "shard-00000.tar, 3 records\n" in made.stderr
    told = json.loads(made.stdout)
    assert told["output"] == [str(out / "shard-00000.tar")] and told["records"] == 3
    again = call("pack", path, out)
    assert "3 records, was there already" in again.stderr
    assert f"wrote 3 records as 1 shard(s) in {out} in " in again.stdout
    assert call("check", out, "--deep").stdout.splitlines()[0] == f"{out}: 3 rows, 3 good, 0 bad"
    sheets = [tmp_path / "a.png", tmp_path / "b.png"]
    for source, sheet in zip((path, out), sheets, strict=True):
        assert call("show", source, 4, "-o", sheet, "--side", 32).exit_code == 0
    assert sheets[0].read_bytes() == sheets[1].read_bytes(), "what is packed is what is trained on"


def test_bad_rows_are_not_packed(call: Call, bad: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    assert "has 2 bad row(s) of 4, such as rows.jsonl:2" in refused(call("pack", bad, out))
    assert not out.exists()
    assert call("pack", bad, out, "--skip-bad").exit_code == 0
    assert json.loads(call("check", out, "--json").stdout)[0]["rows"] == 2
    good = manifest(tmp_path / "other", 3)
    assert "is of another packing: choose another folder, or" in call("pack", good, out).stderr
    assert call("pack", good, out, "--force").exit_code == 0
    assert json.loads(call("check", out, "--json").stdout)[0]["rows"] == 3
    assert "--size-mb 0 is out of range" in refused(call("pack", good, out, "--size-mb", 0))
