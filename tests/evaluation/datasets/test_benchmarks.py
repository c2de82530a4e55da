"""The table of benchmarks: what its rows promise, and how a task is chosen from them."""

from pathlib import Path

import pytest

from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.benchmarks import BENCHMARKS, Benchmark
from omnialpha.evaluation.scoring import SCORINGS
from omnialpha.tasks import CATEGORIES, TASKS

NAMED = {
    "aim-500", "refmatte-rw100", "p3m-500-p", "p3m-500-np", "am-2k", "composition-1k", "distinctions-646",
    "alphamatting", "matting-folder", "rord",
    "ober", "alphalayers", "alphatest", "crello", "folder", "vae", "suite",
}  # fmt: skip


def test_the_benchmarks_of_the_paper_and_any_folder() -> None:
    assert set(BENCHMARKS) == NAMED
    assert SCORINGS.keys() == set(CATEGORIES)


@pytest.mark.parametrize("row", BENCHMARKS.values(), ids=BENCHMARKS)
def test_rows_are_whole(row: Benchmark) -> None:
    if not row.own_command:
        assert set(row.tasks) <= TASKS.keys() and row.kind in ("", *SCORINGS)
    assert all((row.title, row.about, row.size, row.scale, row.source, row.license))
    assert bool(row.tasks) == bool(row.kind)
    for task in row.tasks:
        assert row.task(task) == task and row.scored_as(task) == row.kind


def test_the_task() -> None:
    assert BENCHMARKS["rord"].task(None) == "removal_precise"
    assert BENCHMARKS["folder"].scored_as("removal_auto") == "removal"
    with pytest.raises(InputError, match="cannot ask for 'removal_auto': use --task matting_auto or matting_trimap"):
        BENCHMARKS["aim-500"].task("removal_auto")
    with pytest.raises(InputError, match="folder does not say what to ask for: give --task"):
        BENCHMARKS["folder"].task(None)


def test_a_method_may_be_asked_for_another_task_on_the_same_pictures() -> None:
    row = BENCHMARKS["aim-500"]
    assert row.instead(lambda task: task == "matting_trimap", "matting_auto") == "matting_trimap"
    assert row.instead(lambda task: True, "matting_auto") == "matting_auto"
    assert row.instead(lambda task: False, "matting_auto") == "matting_auto"


def test_the_page_has_every_row() -> None:
    page = (Path(__file__).parents[3] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for row in BENCHMARKS.values():
        (line,) = (line for line in page.splitlines() if line.startswith(f"| `{row.name}` |"))
        assert "--task" in line if not row.tasks else f"`{row.tasks[0].split('_')[0]}" in line
