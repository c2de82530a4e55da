"""The studio without its page: pictures stay as they are, runs stop and repeat, files hold what is shown."""

import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omnialpha.errors import InputError
from omnialpha.io import read_image, read_settings
from omnialpha.io.layers import LayerStack
from omnialpha.io.stack_reading import read_stack
from omnialpha.studio.drawn import Drawing
from omnialpha.studio.exports import FORMS, arrange, export
from omnialpha.studio.runs import RunCancelled, Studio, StudioProgress, StudioRequest, StudioRun
from omnialpha.tasks import TASKS, Role


def run(studio: Studio, request: StudioRequest) -> StudioRun:
    """The run of a request, after its progress."""
    *_, made = studio.run(request)
    assert isinstance(made, StudioRun)
    return made


def decomposed(studio: Studio, photo: Path, **texts: str) -> StudioRun:
    files = {"composite": [studio.pictures.keep(photo)]}
    return run(studio, StudioRequest("decompose_auto", files, {"seed": "7", **texts}))


def panel(count: int) -> list[dict[str, object]]:
    """All layers as they were made."""
    return [{"layer": number, "visible": True, "opacity": 1} for number in range(count)]


def test_a_picture_is_kept_bit_for_bit_with_16_bits_and_colours_under_clear_pixels(studio: Studio, photo: Path) -> None:
    id = studio.pictures.keep(photo)
    assert studio.pictures.path(id).read_bytes() == photo.read_bytes()
    kept, given = studio.pictures.read(id), read_image(photo)
    assert kept.bits == 16 and torch.equal(kept.rgba, given.rgba)
    assert float(kept.rgba[:3, :10].max()) > 0.9  # where alpha is 0
    assert torch.equal(studio.call(StudioRequest("matting_auto", {"composite": [id]})).example.inputs[0], given.rgba)


@pytest.mark.parametrize("id", ["", "../runs", "0123456789abcdef/..", "0123456789abcdef/x.png", "/etc/passwd"])
def test_no_other_file_is_a_picture(studio: Studio, id: str) -> None:
    with pytest.raises(InputError, match="not there any more"):
        studio.pictures.read(id)


def test_a_run_says_what_it_does_and_shows_previews(
    studio: Studio, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnialpha.studio.runs.PREVIEW_EVERY", 0)
    monkeypatch.setattr("omnialpha.studio.runs.PREVIEW_SHARE", 0)
    request = StudioRequest("decompose_auto", {"composite": [studio.pictures.keep(photo)]}, {"steps": "4"})
    *told, made = studio.run(request)
    steps = [one for one in told if isinstance(one, StudioProgress) and one.step]
    assert [one.step for one in steps] == [1, 2, 3, 4]
    assert [len(one.layers) for one in steps] == [2, 2, 2, 0]
    assert steps[0].layers[0][0] == "background" and read_image(steps[0].layers[0][1]).rgba.shape[0] == 4
    assert isinstance(made, StudioRun) and made.settings["steps"] == 4
    quiet = run(Studio(studio.folder / "other", studio.card, studio._load), replace(request, files={
        "composite": [Studio(studio.folder / "other", studio.card, studio._load).pictures.keep(photo)]}))  # fmt: skip
    for one, other in zip(made.stack(), quiet.stack(), strict=True):
        assert torch.equal(one.rgba, other.rgba)


def test_an_earlier_run_gives_the_same_picture_again_after_a_restart(studio: Studio, photo: Path) -> None:
    first = decomposed(studio, photo, steps="1")
    again = Studio(studio.folder, studio.card, studio._load)
    assert [one.id for one in again.history()] == [first.id]
    kept = again.find(first.id)
    assert kept.request == first.request and kept.settings["seed"] == 7
    second = run(again, kept.request)
    assert second.id != first.id and [one.id for one in again.history()] == [second.id, first.id]
    assert second.settings == first.settings
    for row in first.rows:
        assert (second.folder / row["file"]).read_bytes() == (first.folder / row["file"]).read_bytes()


def test_a_run_is_cancelled_between_steps_and_the_next_one_runs(studio: Studio, photo: Path) -> None:
    request = StudioRequest("decompose_auto", {"composite": [studio.pictures.keep(photo)]}, {"steps": "500"})
    stop, seen = threading.Event(), []
    with pytest.raises(RunCancelled):
        for event in studio.run(request, stop):
            seen.append(event)
            if isinstance(event, StudioProgress) and event.step == 2:
                stop.set()
    assert max(event.step for event in seen if isinstance(event, StudioProgress)) < 500 and not studio.history()
    assert run(studio, replace(request, texts={"steps": "1"})).settings["steps"] == 1


def test_leaving_a_run_stops_it(studio: Studio, photo: Path) -> None:
    request = StudioRequest("decompose_auto", {"composite": [studio.pictures.keep(photo)]}, {"steps": "900"})
    events = studio.run(request)
    for event in events:
        if isinstance(event, StudioProgress) and event.step:
            break
    events.close()
    assert studio._turn.acquire(timeout=20)
    studio._turn.release()
    assert not studio.history()


@pytest.mark.parametrize(
    ("task", "texts", "sentence"),
    [
        ("matting_auto", {}, "the composite is missing"),
        ("removal_trimap", {}, "the composite is missing"),
        ("decompose_auto", {"steps": "0"}, "steps=0 is out of range"),
        ("text_to_image", {}, "needs a text"),
    ],
)
def test_what_a_user_can_mend_is_a_sentence(
    studio: Studio, photo: Path, task: str, texts: dict[str, str], sentence: str
) -> None:
    files = {"composite": [studio.pictures.keep(photo)]} if "steps" in texts else {}
    with pytest.raises(InputError, match=sentence):
        run(studio, StudioRequest(task, files, texts))


def test_a_map_may_be_painted_where_it_is_missing(studio: Studio, photo: Path) -> None:
    files = {"composite": [studio.pictures.keep(photo)]}
    with pytest.raises(InputError, match="the trimap is missing.*or paint it"):
        run(studio, StudioRequest("matting_trimap", files))


def test_a_model_that_does_not_read_says_what_to_do(studio: Studio, photo: Path) -> None:
    studio.card = replace(studio.card, reads=False)
    files = {"composite": [studio.pictures.keep(photo)]}
    with pytest.raises(InputError, match="cannot tell subjects apart by words: choose a task with a mask"):
        run(studio, StudioRequest("matting_text", files, {"prompt": "the cat"}))


def test_a_damaged_picture_is_named_as_its_user_knows_it(studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(InputError, match="^broken.png "):
        studio.pictures.read(studio.pictures.keep(tmp_path / "broken.png"))


@pytest.mark.parametrize("form", FORMS)
def test_files_hold_the_layers_as_they_were_made(studio: Studio, photo: Path, tmp_path: Path, form: str) -> None:
    made = decomposed(studio, photo, steps="1")
    file = export(made, panel(2), form, studio.pictures, tmp_path / "out")
    stack = made.stack()
    assert file.name == f"photo-decompose-auto-7.{form}"
    if form == "png":
        picture = read_image(file)
        assert picture.bits == 16 and float((picture.rgba - stack.recompose()).abs().max()) <= 1.01 / 65535
        assert read_settings(file) == made.settings
        return
    if form == "zip":
        with zipfile.ZipFile(file) as archive:
            archive.extractall(tmp_path / "unpacked")
        read = LayerStack.load(tmp_path / "unpacked")
    else:
        read = read_stack(file)
    assert [layer.name for layer in read] == ["background", "foreground"]
    for one, other in zip(read, stack, strict=True):
        shown = one.placed(stack.size) * (one.placed(stack.size)[3:] > 0)
        assert float((shown - other.rgba * (other.rgba[3:] > 0)).abs().max()) <= 1.01 / 65535


@pytest.mark.parametrize("form", ["psd", "ora", "png"])
def test_files_hold_what_the_panel_shows(studio: Studio, photo: Path, tmp_path: Path, form: str) -> None:
    made = decomposed(studio, photo, steps="1")
    wanted = [{"layer": 1, "visible": True, "opacity": 0.5}, {"layer": 0, "visible": True, "opacity": 0.25}]
    arranged = arrange(made.stack(), wanted)
    assert [layer.name for layer in arranged] == ["foreground", "background"]
    assert torch.equal(arranged[0].rgba[3], made.stack()[1].rgba[3] * 0.5)
    file = export(made, wanted, form, studio.pictures, tmp_path / "out")
    read = read_image(file).rgba if form == "png" else read_stack(file).recompose()
    expected = arranged.recompose()
    assert float((read[3] - expected[3]).abs().max()) < 2e-4
    assert float((read[:3] * read[3:] - expected[:3] * expected[3:]).abs().max()) < 2e-4
    hidden = export(made, [panel(2)[0], {**panel(2)[1], "visible": False}], form, studio.pictures, tmp_path / "out")
    if form != "png":
        assert [layer.name for layer in read_stack(hidden)] == ["background"]


@pytest.mark.parametrize(
    "rows", [[], [{"layer": 9, "visible": True, "opacity": 1}], [{"layer": 0, "opacity": 2}], [{}]]
)
def test_a_panel_that_shows_nothing_or_is_none_is_refused(studio: Studio, photo: Path, rows: list[dict]) -> None:
    stack = decomposed(studio, photo, steps="1").stack()
    with pytest.raises(InputError):
        arrange(stack, rows)


# ---- what is drawn --------------------------------------------------------------------------------------------------

PICTURE = torch.rand(4, 30, 40, generator=torch.Generator().manual_seed(1))


def no_outline(*_: object) -> torch.Tensor:
    raise AssertionError("the finder was asked")


def test_strokes_paint_levels_one_over_the_other() -> None:
    rows = [
        {"kind": "stroke", "level": 1, "radius": 5, "path": [[5, 15], [35, 15]]},
        {"kind": "stroke", "level": 0.5, "radius": 2, "path": [[20, 15]]},
    ]
    values = Drawing.read(rows).map(Role.TRIMAP, PICTURE, None, no_outline)
    assert values is not None and values.shape == (30, 40)
    assert values[15, 10] == 1 and values[15, 20] == 0.5 and values[2, 2] == 0
    assert set(values.unique().tolist()) == {0, 0.5, 1}
    retouched = Drawing.read(rows[1:]).map(Role.TRIMAP, PICTURE, torch.ones(30, 40), no_outline)
    assert retouched is not None and retouched[15, 20] == 0.5 and retouched[2, 2] == 1


def test_clicks_and_boxes_make_a_rough_map_of_what_the_finder_sees() -> None:
    asked = []

    def outline(picture: torch.Tensor, points: object, boxes: object) -> torch.Tensor:
        asked.append((points, boxes))
        return torch.ones(30, 40)

    rows = [{"kind": "point", "at": [3, 4], "subject": False}, {"kind": "box", "at": [1, 2, 9, 9], "subject": True}]
    values = Drawing.read(rows).map(Role.ROUGH, PICTURE, None, outline)
    assert values is not None and bool((values == 1).all())
    assert asked == [(((3.0, 4.0, False),), ((1.0, 2.0, 9.0, 9.0, True),))]
    with pytest.raises(InputError, match="use the brush"):
        Drawing.read(rows).map(Role.TRIMAP, PICTURE, None, outline)
    with pytest.raises(InputError, match="clear one of them"):
        Drawing.read(rows).map(Role.ROUGH, PICTURE, torch.ones(30, 40), outline)


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"kind": "stroke"},
        {"kind": "point", "at": ["x", 1], "subject": True},
        {"kind": "?"},
        {"kind": "point", "at": [float("nan"), 1], "subject": True},
    ],
)
def test_what_is_no_drawing_is_refused(row: dict) -> None:
    with pytest.raises(InputError, match="draw again"):
        Drawing.read([row])


def test_a_painted_map_reaches_the_task(studio: Studio, photo: Path) -> None:
    rows = [{"kind": "stroke", "level": 1, "radius": 6, "path": [[10, 10], [25, 20]]}]
    given = {"composite": [studio.pictures.keep(photo)]}
    for name, row in TASKS.items():
        if row.inputs[:1] == (Role.COMPOSITE,) and len(row.inputs) == 2:
            example = studio.call(StudioRequest(name, given, {}, rows)).example
            assert example.roles == row.inputs and set(example.inputs[1][0].unique().tolist()) == {0, 1}
