"""Reports say what they stand on, in every format, and no text in them becomes markup."""

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from omnialpha.evaluation.reports.report import HEADER, Case, Column, Report, Table, mean

EVIL = '<script>alert("x")</script> | a\nb'


def made() -> Report:
    columns = (Column("name", "name"), Column("score", "score", 2, "higher"), Column("lost", "lost", 2))
    rows = [{"name": EVIL, "score": 1.234, "lost": float("nan")}, {"name": "b", "score": None, "lost": 2.0}]
    pictures = {"truth": torch.rand(4, 40, 300), "made": torch.rand(4, 8, 8)}
    header = dict.fromkeys(HEADER, "1") | {"model": EVIL}
    return Report(
        title=EVIL,
        header=header,
        tables=[Table("All", columns, rows)],
        summary=rows,
        rows=rows,
        skipped={"fid": EVIL},
        notes=[EVIL],
        cases=[Case(EVIL, EVIL, pictures)],
    )


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_file_and_text_stays_text(tmp_path: Path) -> None:
    page = Page(made().write(tmp_path)["page"].read_text())
    assert not any(tag == "script" for tag, _ in page.tags)
    pictures = [values for tag, values in page.tags if tag == "img"]
    assert len(pictures) == 4 and all(str(p["src"]).startswith("data:image/png;base64,") for p in pictures)
    assert [(p["width"], p["height"]) for p in pictures] == [("192", "26")] * 2 + [("8", "8")] * 2
    assert [p.get("class") for p in pictures] == ["on-checkerboard", None] * 2
    assert not any(str(v).startswith("http") for _, values in page.tags for v in values.values())


def test_every_output_says_what_is_left_out_and_why(tmp_path: Path) -> None:
    files = made().write(tmp_path)
    assert all("alert" in path.read_text() and "fid" in path.read_text() for path in files.values())
    with files["summary"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["name"] == EVIL and rows[0]["lost"] == "" and rows[0]["skipped"] == f"fid: {EVIL}"
    data = json.loads(files["json"].read_text())
    assert data["skipped"] == {"fid": EVIL} and data["rows"][0]["lost"] is None and data["header"]["model"] == EVIL


def test_markdown_keeps_its_table(tmp_path: Path) -> None:
    lines = made().write(tmp_path)["markdown"].read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table[0] == "| name | score ↑ | lost |" and len(table) == 4
    assert all(line.replace("\\|", "").count("|") == 4 for line in table)
    assert table[3] == "| b | - | 2.00 |" and not any("<script" in line for line in lines)


@pytest.mark.parametrize("name", HEADER)
def test_no_table_without_what_it_stands_on(name: str) -> None:
    report = made()
    with pytest.raises(AssertionError, match=f"must state {name}"):
        Report("t", {k: v for k, v in report.header.items() if k != name}, [], [], [])


def test_means_are_of_what_is_there() -> None:
    rows = [{"a": 1.0}, {"a": None}, {"a": 3.0}, {}]
    assert mean(rows, "a") == 2 and mean(rows, "b") is None
