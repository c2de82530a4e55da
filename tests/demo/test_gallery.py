"""The gallery of the docs is that of the table of tasks, with a small picture for each that the bundled model does."""

from pathlib import Path

from PIL import Image

from omnialpha.demo import gallery
from omnialpha.demo.demo_runs import PHOTOS, refused
from omnialpha.tasks import TASKS

DOCS = Path(__file__).parents[2] / "docs"


def test_page_and_table_are_equal() -> None:
    assert (DOCS / gallery.PAGE).read_text(encoding="utf-8") == gallery.page(), "run `make gallery`"


def test_every_task_has_its_picture_and_no_other_is_there() -> None:
    files = {path.stem: path for path in (DOCS / gallery.PICTURES).iterdir()}
    assert set(files) == set(TASKS)
    assert max(path.stat().st_size for path in files.values()) <= 40_000
    assert sum(path.stat().st_size for path in files.values()) <= 1_000_000
    for path in files.values():
        with Image.open(path) as picture:
            picture.load()
            assert picture.width > gallery.CELL


def test_all_photographs_are_shown_and_nano_refuses_nothing() -> None:
    from omnialpha.models.checkpoints.folders import resolve

    class Nano:
        card = resolve(None).card

    assert refused(Nano) == []  # type: ignore[arg-type]
    assert {gallery.photo_of(task) for task in TASKS.values()} == set(PHOTOS)
