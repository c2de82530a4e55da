"""Writing whole or not at all, and hashes."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnialpha import files
from omnialpha.errors import InputError


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    "content", [b"new", "new", lambda path: path.write_text("new")], ids=["bytes", "text", "function"]
)
def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path, content: Any) -> None:
    (tmp_path / "a").write_text("old")
    files.atomic_write(tmp_path / "a", content)
    assert (tmp_path / "a").read_text() == "new" and names(tmp_path) == {"a"}


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    files.atomic_write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


@pytest.mark.parametrize("fails", ["content", "check", "rename"])
def test_what_fails_leaves_the_old_file(tmp_path: Path, fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "a").write_text("old")
    if fails == "rename":
        monkeypatch.setattr("omnialpha.files.os.replace", fail)
    with pytest.raises(InputError, match=r"a could not be written \(No space left on device\)"):
        files.atomic_write(tmp_path / "a", fail if fails == "content" else b"new", fail if fails == "check" else None)
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == {"a"}


def test_an_error_of_another_file_is_not_told_of_this_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        files.atomic_write(tmp_path / "a", lambda path: path.write_bytes((tmp_path / "absent").read_bytes()))
    assert names(tmp_path) == set()


@pytest.mark.parametrize("old", ["nothing", "file", "folder"])
def test_a_folder_takes_the_place_of_what_was_there(tmp_path: Path, old: str) -> None:
    place = tmp_path / "sub" / "folder"
    if old == "folder":
        (place / "old").mkdir(parents=True)
    elif old == "file":
        place.parent.mkdir()
        place.write_text("old")
    (tmp_path / "sub" / ".folder.tmp" / "half").mkdir(parents=True)  # of a process that was killed
    with files.atomic_folder(place) as new:
        assert names(new) == set()
        (new / "new").write_text("1")
    assert names(place) == {"new"} and names(place.parent) == {"folder"}


@pytest.mark.parametrize("fails", ["block", "rename"])
def test_a_folder_that_fails_leaves_the_old_one(tmp_path: Path, fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "folder"
    (place / "old").mkdir(parents=True)
    rename = os.rename
    if fails == "rename":
        monkeypatch.setattr(
            "omnialpha.files.os.rename", lambda a, b: rename(a, b) if "tmp" not in str(Path(a).name) else rename("", "")
        )
    with pytest.raises(OSError), files.atomic_folder(place):
        if fails == "block":
            raise OSError("no")
    assert names(place) == {"old"} and names(tmp_path) == {"folder"}


def test_sha256_is_of_all_parts_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    whole = b"x" * 3_000_000 + "é".encode() + b"b" + array.tobytes()
    assert files.sha256(tmp_path / "a", "é", b"b", array) == hashlib.sha256(whole).hexdigest()
