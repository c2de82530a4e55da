"""The page on which candidates are accepted or rejected, and the decisions that come back from it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curated import candidate, candidates
from omnialpha.curation.candidate import Candidate
from omnialpha.curation.review import FORMAT, SHOWN, VERSION, mark, read_decisions, write_review
from omnialpha.curation.store import Store
from omnialpha.errors import InputError
from pages import Page

NASTY = "</script><script>alert('x')</script> & <b>\"bold\"</b>"


def page(folder: Path, count: int = 4, **changes: Any) -> tuple[Page, dict[str, Any], Store, list[Candidate]]:
    store, made = candidates(folder, count)
    made[0] = replace(made[0], scene=NASTY)
    scores = {one.id: 1 - one.scores["premultiplied"] for one in made}
    values: dict[str, Any] = {"cut": 0.9975, "near": [made[2].id], **changes}
    written = write_review(folder / "review", store, made, scores, **values)
    read = Page(written.read_text())
    return read, json.loads(read.scripts[0]), store, made


def decisions(path: Path, made: list[Candidate], verdicts: dict[str, str], **changes: Any) -> Path:
    marks = {one.id: mark(one) for one in made}
    stored = {"format": FORMAT, "version": VERSION, "run": "x", "decisions": verdicts, "marks": marks} | changes
    path.write_text(json.dumps(stored))
    return path


def test_candidates_are_sorted_and_say_what_they_are(tmp_path: Path) -> None:
    _, data, _, made = page(tmp_path)
    cards = data["cards"]
    assert [card["id"] for card in cards] == [one.id for one in reversed(made)]
    assert [card["near"] for card in cards] == [False, True, False, False]
    assert [card["score"] <= data["cut"] for card in cards] == [True, False, False, False]
    assert cards[1]["words"] == [
        ["foreground", "a disk 2 0"], ["foreground", "a disk 2 1"], ["scene", "disks on a ramp 2"],
        ["instruction", "Replace the background with a ramp."], ["background", "a ramp 2"],
    ]  # fmt: skip
    assert (cards[0]["source"], cards[0]["licence"], cards[0]["scores"]) == (
        "src-1", "research only", dict(made[3].scores)
    )  # fmt: skip


def test_captions_are_text_and_nothing_else_is_loaded(tmp_path: Path) -> None:
    read, data, _, _ = page(tmp_path)
    assert data["cards"][-1]["words"][1] == ["scene", NASTY]
    assert [tag for tag, _ in read.tags].count("script") == 2
    assert "alert('x')" not in read.scripts[1] and "innerHTML" not in read.scripts[1]
    assert not [attrs for _, attrs in read.tags if attrs.get("src") or attrs.get("href", "data:,") != "data:,"]
    assert not re.search(r"https?://|url\(|@import|fetch\(", read.scripts[1])


def test_pictures_lie_beside_the_page_in_small(tmp_path: Path) -> None:
    _, data, store, made = page(tmp_path)
    folder = tmp_path / "review"
    for card in data["cards"]:
        assert [label for label, _ in card["pictures"]] == list(SHOWN)
        assert {Image.open(folder / file).size for _, file in card["pictures"]} == {tuple(card["size"])} == {(56, 40)}
    files = dict(data["cards"][-1]["pictures"])
    assert Image.open(folder / files["foreground"]).mode == "RGBA"
    assert np.asarray(Image.open(folder / files["difference"]).convert("RGB")).max() <= 8  # the two are the same
    other = store.put(store.get(made[1].composite).flip(0))
    write_review(folder, store, [replace(made[0], composite=other)], {made[0].id: 0.0}, None, ())
    assert len(list((folder / "pictures").iterdir())) == len(SHOWN)
    (difference,) = folder.glob("pictures/*-difference.webp")
    assert np.asarray(Image.open(difference).convert("RGB")).max() > 100


def test_a_page_is_the_same_every_time_and_knows_its_run(tmp_path: Path) -> None:
    _, first, store, made = page(tmp_path)
    text = (tmp_path / "review/index.html").read_text()
    assert page(tmp_path)[1] == first and (tmp_path / "review/index.html").read_text() == text
    assert page(tmp_path, cut=None)[1]["run"] == first["run"]
    assert page(tmp_path, cut=float("inf"))[1]["cut"] is None
    assert page(tmp_path, count=3)[1]["run"] != first["run"]
    assert page(tmp_path, decided={made[0].id: "reject"})[1]["decided"] == {made[0].id: "reject"}
    assert mark(made[0]) == mark(replace(made[0], scene="another", scores={})) != mark(made[1])


def test_decisions_come_back(tmp_path: Path) -> None:
    store, made = candidates(tmp_path, 3)
    verdicts = {made[0].id: "accept", made[2].id: "reject"}
    path = decisions(tmp_path / "decisions.json", made, verdicts)
    assert read_decisions(path, made) == verdicts
    unfinished = replace(made[0], composite="")  # its server did not answer this time
    assert read_decisions(path, [unfinished, *made[1:]]) == verdicts


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"version": 2}, "of version 2, not .* of 1"),
        ({"format": "omnialpha study result"}, "is 'omnialpha study result'"),
        ({"decisions": {"src-0/m_0": "maybe"}}, "has 'maybe' for src-0/m_0"),
        ({"decisions": {"src-0/m_0": ["accept"]}}, r"has \['accept'\] for src-0/m_0"),
        ({"decisions": {f"gone{k}": "accept" for k in range(5)}}, "'gone0', 'gone1', 'gone2' and 2 more, which no"),
        ({"marks": {}}, "'src-0/m_0', whose pictures are others now"),
        ({"decisions": 7}, "is damaged"),
        ({"marks": None}, "is damaged"),
    ],
)
def test_decisions_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    _, made = candidates(tmp_path, 1)
    path = decisions(tmp_path / "decisions.json", made, {made[0].id: "accept"}, **changes)
    with pytest.raises(InputError, match=says) as caught:
        read_decisions(path, made)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"\xff\xfe", b"{}"])
def test_files_that_are_no_decisions_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "decisions.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="there is no file|is damaged"):
        read_decisions(path, [])


def test_pictures_that_changed_since_are_named(tmp_path: Path) -> None:
    store, made = candidates(tmp_path, 2)
    path = decisions(tmp_path / "decisions.json", made, {one.id: "reject" for one in made})
    changed = replace(made[1], background=candidate(store, 9).background)
    with pytest.raises(InputError, match="decides on 'src-1/m_1', whose pictures are others now"):
        read_decisions(path, [made[0], changed])
