"""The page: its controls are the table of tasks and the table of options, and what it does comes back as it was."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from omnialpha.cli.options import COMMON, CUTOUT
from omnialpha.run_options import TEXTS, cutout_options, options_of, run_options
from omnialpha.server.calls import read_cutout, read_options
from omnialpha.studio.controls import FIRST, ROLES, choices
from omnialpha.studio.page import StudioPage
from omnialpha.tasks import CATEGORIES, TASKS

SESSION: Any = SimpleNamespace(session_hash="one")


def values_of(page: StudioPage, task: str, **given: Any) -> dict[Any, Any]:
    """The values of all controls, as a page sends them."""
    controls = page.controls
    values = {part: part.value for part in controls.options.values()} | dict.fromkeys(controls.files.values())
    category = TASKS[task].category
    values |= {part: part.value for part in controls.tasks.values()}
    values |= {controls.category: category, controls.tasks[category]: task, page.stage: given.pop("stage", {})}
    return values | {{**controls.options, **controls.files}[name]: value for name, value in given.items()}


def test_every_task_has_an_entry_and_every_entry_is_a_task() -> None:
    assert [name for category in CATEGORIES for _, name in choices(category)] == list(TASKS)
    for category in CATEGORIES:
        words = [label for label, _ in choices(category)]
        assert len(set(words)) == len(words)


def test_the_controls_are_the_options_of_every_interface(page: StudioPage) -> None:
    assert set(page.controls.options) == {*TEXTS, *run_options(), *cutout_options()}
    assert set(run_options()) <= set(COMMON) and set(cutout_options()) == set(CUTOUT)  # the command line
    assert set(page.controls.options) == {name for row in TASKS.values() for name in options_of(row)}  # the server
    assert set(page.controls.files) == set(ROLES) == {role for row in TASKS.values() for role in row.inputs}


def test_a_task_shows_what_it_takes_and_nothing_else(page: StudioPage) -> None:
    controls = page.controls
    for row in TASKS.values():
        shown = controls.show(row)
        assert {one for one, part in controls.options.items() if shown[part]["visible"]} == set(options_of(row))
        assert {role for role in ROLES if shown[controls.files[role]]["visible"]} == set(row.inputs)
        assert controls.chosen({part: update.get("value") for part, update in shown.items()}) is row
        assert [one for one, part in controls.tasks.items() if shown[part]["visible"]] == [row.category]


def test_untouched_controls_are_the_defaults_of_every_interface(page: StudioPage) -> None:
    for name, row in TASKS.items():
        given = {"prompt": "a red mug"} if row.text else {}
        texts = page.controls.texts(row, values_of(page, name, **given))
        options, own = read_options(row, texts)
        assert options == type(options)() and own == {"layers": None, "prompt": given.get("prompt")}
        assert not read_cutout(row, texts).changed
        for option, value in page.controls.values(row, texts).items():
            assert option.value in (value, None) or value == given.get("prompt")


def test_a_run_on_the_page_and_its_way_back(page: StudioPage, photo: Path) -> None:
    rows = [{"kind": "stroke", "level": 1, "radius": 6, "path": [[10, 10], [25, 20]]}]
    given = {"composite": str(photo), "seed": 41, "steps": 1, "raw": True, "stage": {"drawn": rows}}
    *_, last = page.run(values_of(page, "removal_precise", **given), SESSION)
    scene = last[page.stage]
    assert scene["layers"][0]["name"] == "background" and scene["size"] == [30, 40] and scene["progress"] is None
    assert last[page.start]["visible"] and not last[page.stop]["visible"]
    card = last[page.history][0]
    assert card["id"] == scene["run"] and "seed: 41" in card["about"]

    back, controls = page.restore(card["id"]), page.controls
    assert (
        back[controls.tasks["removal"]]["value"] == "removal_precise" and back[controls.options["seed"]]["value"] == 41
    )
    assert back[controls.options["raw"]]["value"] is True and back[page.stage]["load"] == rows
    values = values_of(page, "removal_precise", stage={"drawn": back[page.stage]["load"]})
    values |= {part: update["value"] for part, update in back.items() if "value" in update and part in values}
    *_, second = page.run(values, SESSION)
    first_run, second_run = page.studio.find(scene["run"]), page.studio.find(second[page.stage]["run"])
    assert second_run.request == first_run.request
    file = first_run.rows[0]["file"]
    assert (second_run.folder / file).read_bytes() == (first_run.folder / file).read_bytes()


def test_a_mistake_is_a_sentence_and_the_page_goes_on(page: StudioPage, photo: Path) -> None:
    seen = []
    with pytest.raises(gr.Error, match="The composite is missing") as caught:
        seen += page.run(values_of(page, FIRST.name), SESSION)
    assert not caught.value.print_exception
    *_, last = page.run(values_of(page, "removal_auto", composite=str(photo), steps=1), SESSION)
    assert last[page.stage]["layers"]


def test_a_fault_is_logged_and_the_page_goes_on(
    page: StudioPage, photo: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("wires crossed")

    monkeypatch.setattr(page.studio, "_make", fail)
    seen: list[dict[Any, Any]] = []
    with pytest.raises(gr.Error, match="fault of the studio"):
        for one in page.run(values_of(page, FIRST.name, composite=str(photo)), SESSION):
            seen.append(one)
    assert seen[-1][page.start]["visible"] and "wires crossed" in caplog.text


def test_a_cancelled_run_leaves_the_page_ready(page: StudioPage, photo: Path) -> None:
    last: dict[Any, Any] = {}
    for last in page.run(values_of(page, "removal_auto", composite=str(photo), steps=800), SESSION):
        if last[page.stage].get("progress") and last[page.stage]["progress"]["step"] == 1:
            page.cancel(SESSION)
    assert last[page.stage]["hint"] == "Cancelled." and last[page.start]["visible"]
    assert not page.studio.history()
    page.cancel(SESSION)  # nothing runs


def test_the_stage_gets_a_file_of_what_is_shown(page: StudioPage, photo: Path) -> None:
    *_, last = page.run(values_of(page, "decompose_auto", composite=str(photo), steps=1), SESSION)
    rows = [{"layer": 0, "visible": True, "opacity": 0.5}]
    download = page._served("download", page._download)
    made = download({"run": last[page.stage]["run"], "panel": rows, "form": "ora"})
    assert made["name"] == "photo-decompose-auto-0.ora" and made["url"].endswith(made["name"])
    assert "every layer is hidden" in download({"run": last[page.stage]["run"], "panel": [], "form": "ora"})["error"]
    assert "not there any more" in download({"run": "../..", "panel": rows, "form": "ora"})["error"]


def test_the_page_sends_no_word_away(page: StudioPage) -> None:
    assert page.blocks.analytics_enabled is False
