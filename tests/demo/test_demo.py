"""The demo on a tiny model: every file it promises, on disk, with alpha, linked and labelled."""

import json
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

from omnialpha.cli.options import Options
from omnialpha.demo import command, demo_runs, overview
from omnialpha.errors import InputError
from omnialpha.io import read_settings
from omnialpha.io.layers import LayerStack
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import CATEGORIES, TASKS

LONG_SIDE = 120  # of the photographs here, to save time
MULTI = [name for name, task in TASKS.items() if len(task.targets) > 1]


class Page(HTMLParser):
    """Tags with their attributes, and the text of the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attrs for name, attrs in self.tags if name == tag)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def made(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "new" / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_runs, "LONG_SIDE", LONG_SIDE)
        command.run(Options(model=str(tiny_model_folder), device="cpu", quiet=True), folder)
    return folder


@pytest.fixture(scope="module")
def page(made: Path) -> Page:
    return Page((made / "index.html").read_text(encoding="utf-8"))


def outputs(folder: Path, name: str) -> list[Path]:
    """The output pictures of a run: NAME.png, or the layers in the folder NAME."""
    return sorted((folder / name).glob("*.png")) if (folder / name).is_dir() else [folder / f"{name}.png"]


@pytest.mark.parametrize("name", TASKS)
def test_every_task_leaves_its_layers_and_the_truth(made: Path, name: str) -> None:
    files = outputs(made, f"tasks/{name}")
    assert len(files) >= len(TASKS[name].targets)
    assert len(list((made / "tasks").glob(f"{name}-true-*.png"))) == len(files)
    assert len(list((made / "tasks").glob(f"{name}-in-*.png"))) >= len(TASKS[name].inputs)
    for file in files:
        with Image.open(file) as image:
            assert (image.mode, image.size) == ("RGBA", (32, 32))


@pytest.mark.parametrize("name", MULTI)
def test_layers_load_as_a_stack(made: Path, name: str) -> None:
    stack = LayerStack.load(made / "tasks" / name)
    assert [layer.role for layer in stack][:2] == ["background", "foreground"]


@pytest.mark.parametrize("photo", demo_runs.PHOTOS, ids=lambda photo: photo.name)
def test_every_photograph_goes_through_all_categories(made: Path, photo: demo_runs.Photo) -> None:
    with Image.open(made / f"photos/{photo.name}.png") as image:
        size = image.size
    assert max(size) == LONG_SIDE
    seen = set()
    for name, task in TASKS.items():
        for file in outputs(made, f"photos/{photo.name}-{name}"):
            if file.is_file():
                seen.add(task.category)
                with Image.open(file) as image:
                    assert image.mode == "RGBA"
                    assert image.size == ((32, 32) if task.category == "generation" else size)
    assert seen == set(CATEGORIES)


def test_removal_on_a_photograph_keeps_what_the_mask_leaves_out(made: Path) -> None:
    for photo in demo_runs.PHOTOS:
        before, mask, after = (
            np.asarray(Image.open(made / f"photos/{photo.name}{end}.png"))
            for end in ("", "-in-rough", "-removal_rough")
        )
        hole = mask[..., 0] > 0
        assert 0.02 < hole.mean() < 0.9
        assert np.array_equal(before[~hole], after[~hole])
        assert not np.array_equal(before[hole], after[hole])


def test_outputs_say_how_they_were_made(made: Path) -> None:
    settings = read_settings(made / "photos/cat-matting_auto.png")
    assert settings is not None
    assert settings["task"] == "matting_auto" and settings["instruction"] in TASKS["matting_auto"].instructions
    assert (settings["model"], settings["seed"], settings["steps"]) == ("tiny", 0, 2)


def test_every_link_leads_to_a_file_inside_the_folder(made: Path, page: Page) -> None:
    ids = {attrs["id"] for _, attrs in page.tags if attrs.get("id")}
    links = [attrs["href"] or "" for attrs in page.all("a")] + [attrs["src"] or "" for attrs in page.all("img")]
    assert len(links) > 41 * 4
    for link in links:
        parts = urlsplit(link)
        assert not parts.scheme and not parts.netloc, f"{link} is not relative"
        target = (made / unquote(parts.path)).resolve()
        assert target.is_relative_to(made.resolve()) and target.exists(), link
        assert not parts.fragment or parts.fragment in ids, link
    linked = {(made / unquote(link)).resolve() for link in links if not link.startswith("#")}
    written = {file.resolve() for file in made.rglob("*") if file.is_file()} - {(made / "index.html").resolve()}
    assert written == linked


def test_the_page_needs_nothing_from_outside(made: Path, page: Page) -> None:
    html = (made / "index.html").read_text(encoding="utf-8")
    assert "http" not in html and "@import" not in html and "url(" not in html
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object", "embed"})
    assert [attrs["href"] for attrs in page.all("link")] == ["data:,"]


def test_the_page_names_tasks_instructions_times_and_settings(page: Page) -> None:
    text = page.text.replace("_ ", "_")  # headings may break after an underscore
    headings = [name for name in TASKS if f" {name} {TASKS[name].summary}" in text]
    assert headings == list(TASKS)
    assert {f"#{category}" for category in CATEGORIES} <= {attrs["href"] for attrs in page.all("a")}
    chapters = [attrs["id"] for attrs in page.all("section")]
    assert chapters == ["matting", "removal", "decomposition", "completion", "generation", "all-tasks"]
    assert len(list(page.all("blockquote"))) == len(list(page.all("article"))) == 42
    for fact in (
        "tiny (Apache-2.0)",
        "32 x 32 px",
        "Device cpu",
        "Seed 0",
        "3 with guidance 2 (generation), 2 (others)",
    ):
        assert fact in text
    assert "To go: the model of a space shuttle." in text


def test_the_page_can_be_read_without_eyes_and_in_the_dark(made: Path, page: Page) -> None:
    html = (made / "index.html").read_text(encoding="utf-8")
    assert next(page.all("html")) == {"lang": "en"}
    assert "prefers-color-scheme: dark" in html
    assert all((attrs["alt"] or "").strip() and attrs["width"] and attrs["height"] for attrs in page.all("img"))
    grounds = [attrs["class"] for attrs in page.all("img")]
    assert grounds.count("on-black") == grounds.count("on-white") >= 41
    assert grounds.count("on-checkerboard") > grounds.count("on-black")


def test_the_contact_sheet_is_wide_and_full(made: Path) -> None:
    with Image.open(made / "contact-sheet.png") as image:
        assert image.size[0] == 2400 and image.size[1] > 3000
        pixels = np.asarray(image.convert("L"))
    assert (pixels.min(axis=0) < 200).mean() > 0.9  # something in nearly every column


def test_again_into_the_same_folder_keeps_foreign_files(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_runs, "LONG_SIDE", LONG_SIDE)
    monkeypatch.setattr(demo_runs, "PHOTOS", demo_runs.PHOTOS[:1])
    monkeypatch.setattr(demo_runs, "of_held_out", lambda runner: iter(()))
    command.run(Options(model=str(tiny_model_folder), device="cpu", quiet=True), tmp_path)
    made = {file: file.read_bytes() for file in tmp_path.rglob("*.png") if file.parent.name != tmp_path.name}
    mine = [tmp_path / "notes.txt", tmp_path / "tasks" / "mine.png", tmp_path / "photos" / "mine.txt"]
    for file in mine:
        file.write_text("keep", encoding="utf-8")
    before = {file for file in tmp_path.rglob("*") if file.is_file()}
    command.run(Options(model=str(tiny_model_folder), device="cpu", quiet=True), tmp_path)
    assert {file for file in tmp_path.rglob("*") if file.is_file()} == before
    assert all(file.read_text(encoding="utf-8") == "keep" for file in mine)
    assert all(file.read_bytes() == data for file, data in made.items())  # one seed, one picture


@pytest.mark.parametrize("photo", demo_runs.PHOTOS, ids=lambda photo: photo.name)
def test_photographs_come_with_the_package_at_a_sensible_size(photo: demo_runs.Photo) -> None:
    assert 400 < max(demo_runs.photograph(photo).shape[-2:]) < 700 < demo_runs.LONG_SIDE  # shown as they come


def test_what_a_model_does_not_do_is_left_out_and_named(
    tiny_model: OmniAlpha, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = replace(tiny_model.card, reads=False, tasks=[name for name in TASKS if name != "removal_auto"])
    monkeypatch.setattr(tiny_model, "card", card)
    assert demo_runs.refused(tiny_model) == ["matting_text", "removal_auto"]
    runner = demo_runs.DemoRunner(tiny_model, command.prepare(tmp_path), 0)
    assert [entry.task for entry in demo_runs.of_held_out(runner)] == [
        name for name in TASKS if name not in ("matting_text", "removal_auto")
    ]


def test_the_strip_shows_photographs_above_their_cut_outs(made: Path) -> None:
    with Image.open(made / "photographs.png") as image:
        assert image.size[1] == 2 * overview.STRIP and image.size[0] > 3 * overview.STRIP
        assert np.asarray(image.convert("RGBA"))[..., 3].min() == 255


def test_the_seed_changes_scenes_and_outputs(tiny_model: OmniAlpha, tmp_path: Path) -> None:
    first, second = (
        next(demo_runs.of_held_out(demo_runs.DemoRunner(tiny_model, command.prepare(tmp_path / s), int(s))))
        for s in "01"
    )
    assert first.instruction != second.instruction
    assert (tmp_path / "0" / first.outputs[0].file).read_bytes() != (
        tmp_path / "1" / second.outputs[0].file
    ).read_bytes()


def test_a_file_in_the_way_is_named_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "photos").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="is a file, or holds one"):
        command.run(Options(model="no model is loaded before this"), tmp_path)
    with pytest.raises(InputError, match="is a file, or holds one"):
        command.run(Options(model="no model is loaded before this"), tmp_path / "photos")


def test_quiet_says_nothing_and_otherwise_the_end_says_where(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_runs, "PHOTOS", ())
    monkeypatch.setattr(demo_runs, "of_held_out", lambda runner: iter(()))
    command.run(Options(model=str(tiny_model_folder), quiet=True), tmp_path)
    assert capsys.readouterr() == ("", "")
    command.run(Options(model=str(tiny_model_folder)), tmp_path)
    out, err = capsys.readouterr()
    assert out == "" and err.strip().endswith(f"Open {tmp_path / 'index.html'}")


def test_a_layer_is_laid_where_it_is_told() -> None:
    picture = torch.cat([torch.zeros(3, 40, 80), torch.ones(1, 40, 80)])
    laid = demo_runs.laid_over(picture, torch.ones(4, 16, 16), (0.25, 0.5, 0.5))
    assert laid[0].nonzero().min(dim=0).values.tolist() == [10, 10]
    assert laid[0].nonzero().max(dim=0).values.tolist() == [29, 29]


def test_stack_index_is_linked(made: Path, page: Page) -> None:
    linked = {attrs["href"] for attrs in page.all("a")}
    for name in MULTI:
        assert f"tasks/{name}/layers.json" in linked
        index = json.loads((made / "tasks" / name / "layers.json").read_text(encoding="utf-8"))
        assert {f"tasks/{name}/{layer['file']}" for layer in index["layers"]} <= linked
