"""The page in a real browser: every category and tool, and nobody else is asked for anything."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from omnialpha.io import write_image
from omnialpha.io.stack_reading import read_stack
from omnialpha.studio.controls import choices, words_of
from omnialpha.studio.page import StudioPage, launch
from omnialpha.studio.runs import Studio
from omnialpha.tasks import CATEGORIES, TASKS, Role, Task
from studio_browser import StudioBrowser, open_browser


@contextlib.contextmanager
def opened(studio: Studio, about: str, size: tuple[int, int], downloads: Path) -> Iterator[StudioBrowser]:
    driver = open_browser(size, downloads)
    page = StudioPage(studio, about)
    try:
        yield StudioBrowser(driver, launch(page, "127.0.0.1", None))
    finally:
        driver.quit()
        page.blocks.close(verbose=False)


@pytest.fixture
def browser(studio: Studio, tmp_path: Path) -> Iterator[StudioBrowser]:
    with opened(studio, "tiny on cpu", (1400, 900), tmp_path) as person:
        yield person


@pytest.fixture
def nano(tmp_path: Path) -> Studio:
    """A studio of the bundled model."""
    import omnialpha
    from omnialpha.models.checkpoints.folders import resolve

    return Studio(tmp_path / "studio", resolve(None).card, omnialpha.load)


def give_all(person: StudioBrowser, row: Task, photo: Path) -> None:
    """What a task takes: the picture for every role, a stroke for a map."""
    for role in row.inputs:
        if role in (Role.COMPOSITE, Role.FOREGROUND, Role.BACKGROUND):
            person.give(role, photo)
    if row.text:
        person.option("prompt", "a red mug")
    if len(row.inputs) == 2:
        person.click(".stage .levels button", "Subject")
        person.drag((0.4, 0.5), (0.6, 0.5))


def test_every_category_runs_and_no_foreign_host_is_asked(browser: StudioBrowser, photo: Path, studio: Studio) -> None:
    for category in CATEGORIES:
        browser.category(category)
        rows = [TASKS[name] for _, name in choices(category)]
        browser.wait(lambda rows=rows: len(browser.all(".studio-task label")) == len(rows))
        for row in rows:  # every entry shows the pictures that the task takes
            browser.task(words_of(row))
            wanted = {f"picture-{role}" for role in row.inputs}
            browser.wait(
                lambda w=wanted: {e.get_attribute("id") for e in browser.all("[id^=picture-]") if e.is_displayed()} == w
            )
        row = next((one for one in rows if len(one.inputs) == 2), rows[0])
        browser.task(words_of(row))
        give_all(browser, row, photo)
        layers = browser.run()
        assert len(layers) == len(row.targets) and studio.history()[0].request.task == row.name
    assert next((studio.folder / "pictures").rglob("photo.png")).read_bytes() == photo.read_bytes()
    assert not browser.toast() and not browser.foreign() and len(browser.hosts) == 1
    assert not browser.errors()


def test_panel_history_download_and_cancel(browser: StudioBrowser, tmp_path: Path, studio: Studio) -> None:
    pixels = torch.zeros(4, 60, 80)
    pixels[0], pixels[3] = 1, 1
    write_image(tmp_path / "red.png", pixels)
    browser.category("decomposition")
    browser.task(words_of(TASKS["decompose_auto"]))
    browser.give(Role.COMPOSITE, tmp_path / "red.png")
    browser.wait(lambda: browser.pixel(0.5, 0.5)[:3] == [255, 0, 0])
    assert browser.run() == ["foreground", "background"]
    browser.option("seed", 9)
    assert browser.run() == ["foreground", "background"]  # the front one on top

    browser.click(".stage .ground.black")
    for eye in (0, 1):
        browser.click(f".stage li:nth-child({eye + 1}) .eye")
    assert browser.pixel(0.5, 0.5)[:3] == [0, 0, 0]  # both are hidden
    browser.click(".stage .download")
    browser.wait(lambda: "every layer is hidden" in browser.one(".stage .trouble").text)
    browser.click(".stage li:nth-child(2) .eye")
    browser.driver.execute_script(
        "document.querySelector('.stage .save select').value = 'psd';"
        "const range = document.querySelector('.stage li:nth-child(2) input');"
        "range.value = 50; range.dispatchEvent(new Event('input'))"
    )
    browser.click(".stage .download")
    file = tmp_path / "red-decompose-auto-9.psd"
    browser.wait(file.exists)
    saved, made = read_stack(file), studio.history()[0].stack()
    assert [layer.name for layer in saved] == ["background"]
    assert float((saved.recompose()[3] - made[0].rgba[3] * 0.5).abs().max()) < 0.01

    browser.option("seed", 4)
    browser.click(".history button:last-child")
    field = browser.one("#option-seed input")
    browser.wait(lambda: field.get_attribute("value") == "0")

    browser.click("#fold-model .label-wrap")
    browser.option("steps", 900)
    browser.click("#studio-start")
    browser.wait(lambda: browser.all(".stage .progress:not([hidden])"))
    browser.click("#studio-stop")
    browser.wait(lambda: "Cancelled" in browser.hint())
    browser.option("steps", 1)
    assert browser.run() and len(studio.history()) == 3
    assert not browser.foreign() and not browser.errors()


def test_a_mistake_is_told_on_the_page_and_a_dropped_file_mends_it(browser: StudioBrowser, tmp_path: Path) -> None:
    browser.click("#studio-start")
    browser.wait(lambda: "The composite is missing" in browser.toast())
    assert "Traceback" not in browser.toast()
    write_image(tmp_path / "green.png", torch.tensor([0.0, 1, 0, 1])[:, None, None].expand(4, 30, 40))
    browser.drop(tmp_path / "green.png")
    browser.wait(lambda: browser.pixel(0.5, 0.5)[:3] == [0, 255, 0])
    assert "green" in browser.one("#picture-composite .file-preview").text


@pytest.mark.slow
def test_pictures_of_the_docs(nano: Studio, tmp_path: Path) -> None:
    """Takes the pictures of docs/studio.md, where OMNIALPHA_DOCS_IMAGES names their folder."""
    from PIL import Image
    from skimage import data

    out = Path(os.environ.get("OMNIALPHA_DOCS_IMAGES", tmp_path))
    for name, pixels in {"astronaut": data.astronaut(), "cat": data.chelsea(), "coffee": data.coffee()}.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    with opened(nano, "nano on cpu", (1360, 900), tmp_path) as person:
        person.give(Role.COMPOSITE, tmp_path / "cat.png")
        person.run()
        person.click(".stage .compare")
        person.picture(out / "studio-before-after.png")
        person.task(words_of(TASKS["matting_rough"]))
        person.give(Role.COMPOSITE, tmp_path / "astronaut.png")
        person.wait(lambda: person.pixel(0.5, 0.5)[3])
        person.click(".stage [data-tool=point][data-subject='1']")
        person.drag((0.62, 0.35))
        person.wait(lambda: any((nano.folder / "shown").glob("map-*")))
        person.picture(out / "studio-clicks.png")
        person.category("decomposition")
        person.give(Role.COMPOSITE, tmp_path / "coffee.png")
        person.option("seed", 3)
        person.click("#studio-start")
        person.wait(lambda: "Step" in person.one(".stage .progress").text and not person.toast())
        person.picture(out / "studio-preview.png")
        person.wait(lambda: person.all(".stage aside:not([hidden]) li"))
        person.click(".stage li:nth-child(2) .eye")
        person.picture(out / "studio-layers.png")
        assert not person.foreign() and not person.errors()
    assert all(file.stat().st_size < 200_000 for file in out.glob("studio-*.png"))
