"""Names of outputs, inputs of folders and lists, the report that runs go on from, and what watching waits for."""

import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

from omnialpha.batch.engines import drain
from omnialpha.batch.inputs import Maps, gather
from omnialpha.batch.ledger import REPORT, Entry, Ledger
from omnialpha.batch.names import Names
from omnialpha.batch.watch import changes
from omnialpha.batch.work import Item
from omnialpha.errors import InputError


def names(*given: str, alpha: bool = True, suffix: str | None = None, stacks: bool = False, **earlier: str):
    made = Names(alpha, suffix, stacks, earlier.get("earlier", {}))  # type: ignore[arg-type]
    said = made.add(given)
    return [made.outputs[name] for name in given], said


# ---- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "options", "wanted"),
    [
        (["a.jpg", "b.webp", "c.tif", "d.gif"], {}, ["a.png", "b.webp", "c.tif", "d.png"]),
        (["a.jpg", "b.png"], {"alpha": False}, ["a.jpg", "b.png"]),
        (["a.jpg", "b.png"], {"suffix": ".webp"}, ["a.webp", "b.webp"]),
        (["a.jpg", "a.png", "a.gif"], {}, ["a-jpg.png", "a.png", "a-gif.png"]),
        (["a.jpg", "A.PNG", "a-jpg.png"], {}, ["a-jpg-2.png", "A.PNG", "a-jpg.png"]),
        (["x/a.jpg", "y/a.jpg"], {}, ["x/a.png", "y/a.png"]),
        (["a.png", "a/b.png"], {"stacks": True}, ["a-png", "a/b"]),
        (["report.jsonl.png"], {"stacks": True}, ["report.jsonl-png"]),
        (["a.png/b.png", "a.jpg"], {}, ["a.png/b.png", "a-jpg.png"]),
    ],
)
def test_outputs_keep_names_and_never_collide(given, options, wanted) -> None:
    made, said = names(*given, **options)
    assert made == wanted
    plain = [n for n, o in zip(given, made, strict=True) if Path(n).stem != Path(o).stem and n != o]
    assert {line.split(" becomes ")[0] for line in said} == set(plain)  # said aloud
    again, _ = names(*reversed(given), **options)
    assert again == made[::-1]  # whatever the order


def test_names_of_earlier_runs_stand_and_new_ones_go_around_them() -> None:
    made = Names(True, None, False, {"a.jpg": "a.png"})
    made.add(["a.jpg"])
    said = made.add(["a.png"])
    assert made.outputs == {"a.jpg": "a.png", "a.png": "a-png.png"} and "as a.png is that of a.jpg" in said[0]


def test_a_folder_that_appears_later_does_not_go_into_a_stack() -> None:
    made = Names(True, None, True, {})
    made.add(["a.png"])
    made.add(["a/b.png"])
    assert made.outputs == {"a.png": "a", "a/b.png": "a-folder/b"}


# ---- inputs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("in/a.jpg", "in/b.PNG", "in/x/c.tif", "in/x/y/d.png", "in/notes.md", "in/.hidden/e.png", "in/.f.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    return tmp_path / "in"


def test_a_folder_is_read_with_all_below_it_but_what_is_hidden_or_the_output(tree: Path) -> None:
    (tree / "out").mkdir()
    (tree / "out" / "z.png").write_bytes(b"1")
    assert [*gather([tree], tree / "out").find()] == ["a.jpg", "b.PNG", "x/c.tif", "x/y/d.png"]
    assert [*gather([tree], tree / "out", maps=tree / "x").find()] == ["a.jpg", "b.PNG"]
    wanted = gather([tree], tree / "out", include=["x/*"], exclude=["*.tif"])
    assert [*wanted.find()] == ["x/y/d.png"]


def test_files_and_lists_mirror_the_folder_that_they_have_in_common(tree: Path, tmp_path: Path) -> None:
    files = [tree / "x" / "c.tif", tree / "a.jpg", tree / "a.jpg"]
    assert [*gather(files, tmp_path / "out").find()] == ["x/c.tif", "a.jpg"]
    (tree / "list.txt").write_text("x/c.tif\n\nnot there.png\n")
    found = gather([tree / "list.txt"], tmp_path / "out").find()
    assert [*found] == ["x/c.tif", "not there.png"] and found["x/c.tif"] == tree / "x" / "c.tif"


@pytest.mark.parametrize(
    ("given", "output", "options", "said"),
    [
        (["in"], "in", {}, "lie in the output folder"),
        (["in"], ".", {}, "lie in the output folder"),
        (["in/a.jpg"], "in", {}, "choose another, so that it is kept"),
        (["in", "in/a.jpg"], "out", {}, "give one folder, or files"),
        (["in/a.jpg"], "out", {"include": ["*"]}, "--include and --exclude are for a folder"),
        (["in/none.txt"], "out", {}, "there is no in/none.txt"),
    ],
)
def test_inputs_that_make_no_sense_are_refused(tree, given, output, options, said, monkeypatch) -> None:
    monkeypatch.chdir(tree.parent)
    with pytest.raises(InputError, match=said):
        gather([Path(one) for one in given], Path(output), **options)


def test_maps_are_found_by_name_whatever_their_suffix(tree: Path) -> None:
    maps = Maps(tree)
    assert maps.find("x/c.jpg") == tree / "x" / "c.tif" and maps.find("a.jpg") == tree / "a.jpg"
    (tree / "a.png").write_bytes(b"1")
    assert Maps(tree).find("a.png") == tree / "a.png"
    with pytest.raises(InputError, match=r"holds a\.jpg and a\.png for a\.gif"):
        Maps(tree).find("a.gif")
    with pytest.raises(InputError, match="holds no map for x/z.png"):
        maps.find("x/z.png")


# ---- the report ------------------------------------------------------------------------------------------------------

ROW = Entry("a.png", "a.png", 0.5, task="matting_auto", folder="/in", digest="1" * 64)


def test_the_report_outlives_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add(replace(ROW, input="b.png"))
    ledger.add(ROW)
    ledger.lock.release()  # as the end of a process does
    with (tmp_path / REPORT).open("a") as file:
        file.write('{"input": "c.png", "outp')
    left = [tmp_path / f".{'0' * 16}.tmp", tmp_path / "x" / f".{'a' * 16}.old"]
    left[1].parent.mkdir()
    for path in left:
        path.write_bytes(b"")
    with Ledger(tmp_path) as again:
        assert again.rows.keys() == {"a.png", "b.png"} and not any(path.exists() for path in left)
        again.add(replace(ROW, input="c.png"))
    rows = [json.loads(line) for line in (tmp_path / REPORT).read_text().splitlines()]
    assert [row["input"] for row in rows] == ["a.png", "b.png", "c.png"]  # in order, whoever came first


def test_done_is_what_is_there_of_the_same_digest(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.add(ROW)
        assert not ledger.is_done("a.png", "a.png", ROW.digest)  # it was deleted
        (tmp_path / "a.png").write_bytes(b"1")
        assert ledger.is_done("a.png", "a.png", ROW.digest) and not ledger.is_done("a.png", "a.png", "2" * 64)
        ledger.add(Entry("a.png", "", error="It failed."))
        assert ledger.is_done("a.png", "a.png", ROW.digest) and ledger.rows["a.png"].error == "It failed."
        assert ledger.may_replace("a.png", "a.png", "matting_auto", "/in")
        assert not ledger.may_replace("a.png", "a.png", "removal_auto", "/in")
        assert not ledger.may_replace("b.png", "a.png", "matting_auto", "/in")
        assert ledger.may_replace("b.png", "b.png", "matting_auto", "/in")


def test_two_batches_do_not_share_a_folder_and_a_foreign_report_is_kept(tmp_path: Path) -> None:
    with Ledger(tmp_path), pytest.raises(InputError, match="another batch is at work"):
        Ledger(tmp_path)
    (tmp_path / REPORT).write_text("my notes\nof today\n")
    with pytest.raises(InputError, match="no report of a batch"):
        Ledger(tmp_path)
    assert (tmp_path / REPORT).read_text().startswith("my notes")


# ---- engines ---------------------------------------------------------------------------------------------------------

ITEMS = [Item(f"{number}.png", Path("none"), "") for number in range(12)]


def test_what_raises_is_a_row_and_stopping_finishes_what_is_in_work() -> None:
    stop = threading.Event()

    def do(item: Item) -> Entry:
        if item.name == "1.png":
            raise ZeroDivisionError("by\nnothing")
        if item.name == "4.png":
            stop.set()
        return Entry(item.name, item.name)

    with ThreadPoolExecutor(1) as pool:
        rows = {row.input: row for row in drain(pool, do, ITEMS, 2, stop)}
    assert rows["1.png"].error == "ZeroDivisionError: by nothing" and "4.png" in rows and len(rows) < 8


def _die(item: Item) -> Entry:
    if item.name == "3.png":
        os._exit(9)
    return Entry(item.name, item.name)


def test_a_process_that_dies_names_what_was_in_work_and_what_is_left() -> None:
    from concurrent.futures.process import BrokenProcessPool

    made, left = [], []
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        rows: Iterator[Entry] = drain(pool, _die, ITEMS, 2, threading.Event())
        try:
            for row in rows:
                made.append(row.input)
        except BrokenProcessPool as broken:
            left = [item.name for part in broken.args for item in part]
    assert sorted([*made, *left]) == sorted(item.name for item in ITEMS) and "3.png" in left


# ---- watching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("events", [True, False], ids=["watchfiles", "polling"])
def test_files_come_once_they_have_settled_in_new_folders_too(events: bool, tmp_path: Path, monkeypatch) -> None:
    if events:
        pytest.importorskip("watchfiles")
    else:
        monkeypatch.setitem(__import__("sys").modules, "watchfiles", None)
    (tmp_path / "first.png").write_bytes(b"1")
    stop, seen = threading.Event(), list[tuple[str, float]]()

    def look() -> None:
        for row in changes(gather([tmp_path], tmp_path.parent / "out"), stop, settled=0.2):
            seen.extend((name, time.monotonic()) for name in row)

    def until(count: int) -> None:
        end = time.monotonic() + 20
        while len(seen) < count and time.monotonic() < end:
            time.sleep(0.02)

    thread = threading.Thread(target=look)
    thread.start()
    until(1)
    (tmp_path / "x" / "y").mkdir(parents=True)
    with (tmp_path / "x" / "y" / "slow.png").open("wb") as file:
        for _ in range(5):
            file.write(b"1" * 100)
            file.flush()
            written = time.monotonic()
            time.sleep(0.1)
    until(2)
    (tmp_path / "first.png").write_bytes(b"22")
    until(3)
    stop.set()
    thread.join(10)
    assert [name for name, _ in seen] == ["first.png", "x/y/slow.png", "first.png"] and not thread.is_alive()
    assert seen[1][1] - written >= 0.2


def test_an_output_that_was_never_written_down_is_ours_where_it_was_claimed(tmp_path: Path) -> None:
    """A run that is killed between an output and its line in the report."""
    ledger = Ledger(tmp_path)
    ledger.claim({"a.png": "a.png", "b.png": "b.png"}, "matting_auto", "in")
    (tmp_path / "a.png").write_bytes(b"made")
    ledger.file.close()
    ledger.lock.release()  # killed here
    with Ledger(tmp_path) as again:
        assert again.may_replace("a.png", "a.png", "matting_auto", "in") and not again.is_done("a.png", "a.png", "x")
        assert not again.may_replace("a.png", "a.png", "removal_auto", "in")
    with Ledger(tmp_path) as last:
        assert set(last.rows) == {"a.png"}  # what was only claimed is forgotten


def test_what_failed_before_is_claimed_again(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.add(Entry("a.png", "", error="it is damaged."))
    killed = Ledger(tmp_path)
    killed.claim({"a.png": "a.png"}, "matting_auto", "in")
    (tmp_path / "a.png").write_bytes(b"made")
    killed.file.close()
    killed.lock.release()
    with Ledger(tmp_path) as again:
        assert again.may_replace("a.png", "a.png", "matting_auto", "in")
