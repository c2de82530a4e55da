"""Every bad row is found before training, with all of its reasons, and no good one is."""

import json

import numpy as np
import pytest
from PIL import Image, ImageFile

from layered import back, front, layered_row, manifest, pair_row, save, write_manifest
from omnialpha.data.records import shards
from omnialpha.data.records.check import examine, header, load
from omnialpha.data.records.check import write_manifest as write_rows
from omnialpha.data.stream.datasets import DatasetSettings, rows
from omnialpha.errors import InputError
from omnialpha.io import read_image
from omnialpha.tasks import TASKS


@pytest.fixture
def bad(tmp_path):
    """A manifest of good and bad rows, and by line what is told of it: at once, and only when pictures are decoded."""
    save(back(1), tmp_path / "flat.png")
    save(back(1)[:20], tmp_path / "small.png")
    save(front(1)[:20], tmp_path / "small-fg.png")
    full, empty = front(1), np.zeros_like(front(1))
    full[..., 3] = 255
    save(full, tmp_path / "full.png")
    save(empty, tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "flat.png").read_bytes()[:100])
    lines = [
        (layered_row(tmp_path, 0), [], []),
        ('{"id": 1,', ["""the row is '{"id": 1,', not a JSON object."""], []),
        (layered_row(tmp_path, 2, background="gone.png"), ["There is no file"], []),
        (layered_row(tmp_path, 3, background="text.png"), ["is not a picture in a known format"], []),
        (layered_row(tmp_path, 4, background="small.png"), ["small.png is 56x20 px"], []),
        (layered_row(tmp_path, 5, foreground="flat.png"), ["flat.png has no alpha channel"], []),
        (layered_row(tmp_path, 6, foreground="full.png"), [], ["full.png is opaque everywhere"]),
        (layered_row(tmp_path, 7, foreground="empty.png"), [], ["empty.png is empty"]),
        (layered_row(tmp_path, 8, background="full.png", rough="empty.png"), [], ["the rough is empty"]),
        (layered_row(tmp_path, 9, background="cut.png"), [], ["cut.png is damaged or cut off"]),
        (layered_row(tmp_path, 10, id="r0"), ["its id is that of rows.jsonl:1"], []),
        (layered_row(tmp_path, 11, forground="x"), ["'forground' is unknown: did you mean 'foreground'?"], []),
        ({"id": "r12", "background": "flat.png"}, ["serves no task, having only background"], []),
        (layered_row(tmp_path, 13, captions={"foreground": "x" * 2001}), ["the limit is 2000"], []),
        (layered_row(tmp_path, 14, background="gone.png", foreground="flat.png"), ["no alpha", "There is no file"], []),
        (layered_row(tmp_path, 15, background=f"pictures/{0}-fg0.png"), [], ["has transparent pixels: a background"]),
        (layered_row(tmp_path, 16, layers=3), [], []),
    ]
    return write_manifest(tmp_path / "rows.jsonl", [row for row, _, _ in lines]), [line[1:] for line in lines]


@pytest.mark.parametrize("deep", [False, True])
def test_every_bad_row_is_told_with_all_its_reasons(bad, deep):
    path, wanted = bad
    report = examine(DatasetSettings(str(path)), deep=deep)
    assert [c.number for c in report.rows] == list(range(1, len(wanted) + 1))
    for c, (early, late) in zip(report.rows, wanted, strict=True):
        expected = early + late * deep
        assert len(c.reasons) == len(expected), (c.place, c.reasons)
        assert all(any(words in reason for reason in c.reasons) for words in expected), c.reasons
        assert all(reason.endswith((".", "?")) for reason in c.reasons)
    good = sum(not early + late * deep for early, late in wanted)
    assert len(report.good) == good and len(report.bad) == len(wanted) - good
    assert report.tasks == dict.fromkeys(TASKS, good)
    told = json.loads(json.dumps(report.data()))
    assert told["rows"] == len(wanted) and told["bad"][0]["place"] == "rows.jsonl:2" and told["bad"][1]["id"] == "r2"


def test_headers_only_unless_deep(tmp_path, monkeypatch):
    path = manifest(tmp_path, 3)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("a picture was decoded"))
    assert len(examine(DatasetSettings(str(path))).good) == 3
    with pytest.raises(pytest.fail.Exception):
        examine(DatasetSettings(str(path)), deep=True)


def test_the_same_in_shards(bad, tmp_path):
    found = [row.record for row in rows(DatasetSettings(str(bad[0]))) if row.record]
    kept = [r for r in found if all(p.handle.is_file() for p in r.parts())]
    shards.pack(kept, tmp_path / "shards")
    report = examine(DatasetSettings(str(tmp_path / "shards")), deep=True)
    names = {c.ident: c.reasons for c in report.bad}
    assert set(names) == {"r0", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r12", "r13", "r15"}
    assert "shard-00000.tar:" in names["r3"][0] and "is not a picture" in names["r3"][0]
    assert [c.ident for c in report.good] == ["r0", "r16"]


def test_pairs_need_a_task(tmp_path):
    path = write_manifest(tmp_path / "rows.jsonl", [pair_row(tmp_path, n) for n in range(2)])
    report = examine(DatasetSettings(str(path)))
    assert [c.reasons for c in report.rows] == [("it is a pair, and of which task is not said: give task = NAME, or --task.",)] * 2  # noqa: E501  # fmt: skip
    assert examine(DatasetSettings(str(path), task="matting_rough"), deep=True).tasks == {"matting_rough": 2}
    report = examine(DatasetSettings(str(path), task="decompose_rough"))
    assert len(report.bad) == 2 and "makes 2 layer(s), not 1" in report.bad[0].reasons[0]


def test_only_the_tasks_that_are_wanted_count(tmp_path):
    path = manifest(tmp_path, 2, captions=None)
    wanted = ["matting_auto", "matting_text"]
    assert examine(DatasetSettings(str(path), tasks=wanted)).tasks == {"matting_auto": 2}
    report = examine(DatasetSettings(str(path), tasks=["matting_text"]))
    assert "it serves none of matting_text" in report.bad[0].reasons[0]


def test_what_is_trained_on(bad):
    path, wanted = bad
    with pytest.raises(InputError, match=r"rows.jsonl has 10 bad row\(s\) of 17, such as rows.jsonl:2: the row is"):
        load(DatasetSettings(str(path)))
    assert [c.number for c in load(DatasetSettings(str(path), bad="skip"))] == [1, 7, 8, 9, 10, 16, 17]
    assert len(load(DatasetSettings(str(path), bad="ignore"))) == 15
    with pytest.raises(InputError, match="has no good row"):
        load(DatasetSettings(str(path), starts=1, ends=4, bad="skip"))


def test_the_good_rows_as_a_manifest(bad, tmp_path):
    path, _ = bad
    good = load(DatasetSettings(str(path), bad="skip"))
    (tmp_path / "other/deep").mkdir(parents=True)
    out = tmp_path / "other/deep/good.jsonl"
    write_rows((c.record for c in good), out)
    again = examine(DatasetSettings(str(out)))
    assert not again.bad and [c.ident for c in again.rows] == [c.ident for c in good]
    assert json.loads(out.read_text().splitlines()[0])["background"] == "../../pictures/0-bg.png"
    for a, b in zip(good, again.rows, strict=True):
        assert a.record.captions == b.record.captions
        assert [p.handle.resolve() for p in a.record.parts()] == [p.handle.resolve() for p in b.record.parts()]
    shards.pack([good[0].record], tmp_path / "shards")
    with pytest.raises(InputError, match="lies in a shard, which no manifest can name"):
        write_rows([load(DatasetSettings(str(tmp_path / "shards")))[0].record], out)


@pytest.mark.parametrize("form", ["png", "jpg", "tiff", "webp"])
@pytest.mark.parametrize("turn", [1, 3, 6])
def test_headers_tell_the_upright_size(form, turn, tmp_path):
    path = tmp_path / f"a.{form}"
    exif = Image.Exif()
    exif[274] = turn
    Image.fromarray(back(1)).save(path, exif=exif)
    assert header(path) == (tuple(read_image(path).rgba.shape[1:]), False)
    assert header(path)[0] == ((56, 40) if turn == 6 else (40, 56))


def test_headers_tell_alpha(tmp_path):
    save(front(1), tmp_path / "a.png")
    Image.fromarray(front(1)[..., [0, 3]], "LA").save(tmp_path / "la.png")
    Image.fromarray(back(1)).quantize(8).save(tmp_path / "p.png")
    Image.fromarray(back(1)).quantize(8).save(tmp_path / "key.png", transparency=1)
    alphas = {name: header(tmp_path / f"{name}.png")[1] for name in ("a", "la", "p", "key")}
    assert alphas == {"a": True, "la": True, "p": False, "key": True}


def test_progress_is_told(tmp_path):
    seen = []
    examine(DatasetSettings(str(manifest(tmp_path, 3))), watch=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 3)]
