"""Shards hold what was packed, byte for byte and the same every time; and rows of every kind of dataset."""

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from layered import back, front, layered_row, manifest, pair_row, save, write_manifest
from omnialpha.data.records import shards
from omnialpha.data.records.pictures import read
from omnialpha.data.stream.datasets import DatasetSettings, rows, sources
from omnialpha.errors import InputError
from omnialpha.io import read_image


def records(path, **settings):
    found = rows(DatasetSettings(str(path), **settings))
    assert not [row.reasons for row in found if row.reasons]
    return [row.record for row in found]


def refused(path, **settings):
    with pytest.raises(InputError) as caught:
        rows(DatasetSettings(str(path), **settings))
    return str(caught.value)


@pytest.fixture
def packed(tmp_path):
    """Seven records of one or two layers, and the shards they were packed into, two records each."""
    folder = tmp_path / "data"
    kinds = [layered_row(folder, n, 1 + n % 2) for n in range(7)]
    found = records(write_manifest(folder / "rows.jsonl", kinds))
    size = 2 * max(sum(2048 + p.handle.stat().st_size for p in r.parts()) for r in found) + tarfile.RECORDSIZE
    return found, shards.pack(found, tmp_path / "shards", size), size


# ---- pack and read ---------------------------------------------------------------------------------------------------


def test_what_is_packed_is_read(packed, tmp_path):
    before, paths, size = packed
    assert len(paths) > 1 and all(path.stat().st_size <= size for path in paths)
    after = records(tmp_path / "shards")
    assert [r.id for r in after] == [r.id for r in before] and [r.captions for r in after] == [
        r.captions for r in before
    ]
    for old, new in zip(before, after, strict=True):
        assert [p.name for p in old.parts()] == [p.name for p in new.parts()] and old.tasks() == new.tasks()
        for a, b in zip(old.parts(), new.parts(), strict=True):
            assert b.handle.read() == a.handle.read_bytes() and torch.equal(read(a.handle), read(b.handle))
        made = [r.example("decompose_auto", torch.Generator().manual_seed(2), (16, 24)) for r in (old, new)]
        assert torch.equal(made[0].true_layers(), made[1].true_layers())
        assert made[0].instruction == made[1].instruction


def test_pictures_of_16_bits_and_tiff_keep_all_of_them(tmp_path):
    deep = np.random.default_rng(0).integers(0, 2**16, (8, 9, 4), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb", extrasamples=["unassalpha"])
    (record,) = records(write_manifest(tmp_path / "rows.jsonl", [{"id": 1, "foreground": "deep.tif"}]))
    shards.pack([record], tmp_path / "shards")
    (again,) = records(tmp_path / "shards")
    assert torch.equal(read(again.parts()[0].handle), read_image(tmp_path / "deep.tif").rgba)
    assert float((read(again.parts()[0].handle).permute(1, 2, 0) - torch.from_numpy(deep / 65535)).abs().max()) < 1e-6


def test_pairs_are_packed_too(tmp_path):
    path = write_manifest(tmp_path / "rows.jsonl", [pair_row(tmp_path, n, f"do {n}") for n in range(3)])
    shards.pack(records(path), tmp_path / "shards")
    again = records(tmp_path / "shards", task="matting_rough")
    assert [(r.id, r.prompt, r.tasks()) for r in again] == [(f"p{n}", f"do {n}", ("matting_rough",)) for n in range(3)]
    assert [p.handle.read() for p in again[2].parts()] == [p.handle.read_bytes() for p in records(path)[2].parts()]


def test_names_in_a_shard(packed):
    with tarfile.open(packed[1][0]) as tar:
        names = [info.name for info in tar]
    assert names[:3] == ["00000000.json", "00000000.fg0.png", "00000000.bg.png"]
    assert names[3:7] == ["00000001.json", "00000001.fg0.png", "00000001.fg1.png", "00000001.bg.png"]


def test_the_same_bytes_every_time(packed, tmp_path):
    found, paths, size = packed
    for record in found:
        for part in record.parts():
            os.utime(part.handle, (1, 1))
    again = shards.pack(found, tmp_path / "other", size)
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in paths]


def test_packing_goes_on_where_it_was_stopped(packed, tmp_path):
    found, paths, size = packed
    wanted = [path.read_bytes() for path in paths]
    stamp = paths[0].stat().st_mtime_ns
    paths[1].unlink()
    (tmp_path / "shards/.shard-00001.tar.tmp").write_bytes(b"half")
    kept = []
    shards.pack(found, tmp_path / "shards", size, watch=lambda shard, was: kept.append(was))
    assert kept == [True, False, *[True] * (len(paths) - 2)] and paths[0].stat().st_mtime_ns == stamp
    assert [path.read_bytes() for path in paths] == wanted
    assert {p.suffix for p in (tmp_path / "shards").iterdir()} == {".tar", ".json"}, "nothing half is left"


def test_shards_of_another_packing_are_not_mixed_in(packed, tmp_path):
    found, paths, size = packed
    for other in (found[:3], [*reversed(found)]):
        with pytest.raises(InputError, match="is of another packing: choose another folder, or replace it with --forc"):
            shards.pack(other, tmp_path / "shards", size)
    assert len(records(tmp_path / "shards")) == 7
    save(front(9), found[0].parts()[0].handle)  # a picture that was changed since
    with pytest.raises(InputError, match="shard-00000.tar is of another packing"):
        shards.pack(found, tmp_path / "shards", size)
    shards.pack(found[:3], tmp_path / "shards", size, force=True)
    assert [r.id for r in records(tmp_path / "shards")] == ["r0", "r1", "r2"]


def test_an_index_is_kept_and_made_anew_when_the_shard_changes(packed, tmp_path, monkeypatch):
    found, paths, _ = packed
    index = shards.index_path(paths[0])
    kept = index.read_bytes()
    monkeypatch.setattr(shards, "_walk", lambda shard: pytest.fail("the index is there"))
    assert len(shards.read_index(paths[0])["records"]) == len(json.loads(kept)["records"])
    monkeypatch.undo()
    paths[0].write_bytes(paths[0].read_bytes().replace(b'"r0"', b'"q0"'))
    os.utime(index, ns=(0, 0))  # older than its shard, of the same size
    assert records(paths[0])[0].id == "q0"
    paths[0].write_bytes(paths[-1].read_bytes())
    os.utime(paths[0], ns=(0, 0))  # of another size, however old
    assert records(paths[0])[0].id == records(paths[-1])[0].id
    index.write_text("{")
    assert records(paths[0])[0].id == records(paths[-1])[0].id
    monkeypatch.setenv("OMNIALPHA_HOME", str(tmp_path / "home"))
    index.unlink()
    index.mkdir()  # as if nothing could be written beside the shard
    assert records(paths[0])[0].id == records(paths[-1])[0].id
    assert len(list((tmp_path / "home/shards").iterdir())) == 1


def test_shards_of_others(tmp_path):
    """Keys with folders, no id, one foreground without a number, an order of files that is not ours."""
    for name in ("bg.png", "fg1.png", "fg0.png"):
        save(front(1) if "fg" in name else back(1), tmp_path / name)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("bg.png", "fg1.png", "fg0.png"):
            tar.add(tmp_path / name, f"part/x1.{name}")
        tar.add(tmp_path / "fg0.png", "part/x2.fg.png")
        (tmp_path / "x.json").write_text('{"captions": {"foreground": "a disk"}}')
        tar.add(tmp_path / "x.json", "part/x2.json")
        (tmp_path / "x.json").write_text("{")
        tar.add(tmp_path / "x.json", "part/x3.json")
        tar.add(tmp_path / "x.json", "part/x4.label.txt")
    found = rows(DatasetSettings(str(tmp_path / "a.tar")))
    assert [row.place for row in found] == [f"a.tar:part/x{n}" for n in (1, 2, 3, 4)]
    names = [str(part.handle).rpartition(".tar:")[2] for part in found[0].record.parts()]
    assert found[0].record.id == "part/x1" and names == [f"part/x1.{n}.png" for n in ("fg0", "fg1", "bg")]
    assert "text_to_image" in found[1].record.tasks()
    assert found[2].reasons[0] == "the row is '{', not a JSON object."
    assert "the key 'label' is unknown" in found[3].reasons[0]


def test_what_is_no_shard(packed, tmp_path):
    (tmp_path / "text.tar").write_text("no tar")
    assert "text.tar is no plain tar file or is cut off" in refused(tmp_path / "text.tar")
    shard = packed[1][0]
    shards.index_path(shard).unlink()
    shard.write_bytes(shard.read_bytes()[:3000])
    assert "shard-00000.tar is no plain tar file or is cut off" in refused(shard)
    member = shards.Member(shard, "x.png", 2900, 500)
    with pytest.raises(InputError, match=r"shard-00000.tar:x.png is cut off"):
        member.read()
    save(back(0), tmp_path / "a.png")
    bad = shards.Member(tmp_path / "a.png", "x.png", 1, 60)
    with pytest.raises(InputError, match=r"^[^ ]*a.png:x.png is not a picture in a known format"):
        read(bad)


# ---- rows of datasets ------------------------------------------------------------------------------------------------


def test_a_part_of_the_rows(tmp_path):
    path = manifest(tmp_path, 10)

    def numbers(seed=0, **settings):
        return [row.number for row in rows(DatasetSettings(str(path), **settings), seed)]

    assert numbers() == list(range(1, 11))
    assert numbers(starts=2, ends=5) == [3, 4, 5] and numbers(starts=-2) == [9, 10]
    assert len(numbers(sample=0.3)) == 3 and len(numbers(sample=4)) == 4 and numbers(sample=50) == numbers()
    assert numbers(sample=4) == numbers(sample=4) == sorted(numbers(sample=4)) != numbers(1, sample=4)
    assert set(numbers(starts=5, sample=0.5)) <= {6, 7, 8, 9, 10}


def test_manifests_shards_folders_and_patterns(packed, tmp_path):
    data = tmp_path / "data"
    manifest(data, 2, name="more.jsonl")
    assert [p.name for p in sources(str(data))] == ["more.jsonl", "rows.jsonl"]
    assert [p.name for p in sources(str(data / "r*.jsonl"))] == ["rows.jsonl"]
    assert len(records(data)) == 9 and len(records(tmp_path / "shards/shard-*.tar")) == 7
    assert "there is no dataset" in refused(tmp_path / "nowhere") and "there is no dataset" in refused(tmp_path / "x*")
    (tmp_path / "a.txt").write_text("")
    assert "a.txt is no dataset: give a manifest" in refused(tmp_path / "a.txt")
    (tmp_path / "a.jsonl").write_text("\n")
    assert "a.jsonl has no rows" in refused(tmp_path / "a.jsonl")


def test_a_root_and_columns(tmp_path):
    row = layered_row(tmp_path / "deep", 1)
    path = write_manifest(tmp_path / "rows.jsonl", [{"name": 1, "rgba": row["foreground"], "text": "x", "other": 2}])
    columns = {"id": "name", "foreground": "rgba", "captions.foreground": "text"}
    (record,) = records(path, root=str(tmp_path / "deep"), columns=columns)
    assert record.tasks() == ("text_to_image",) and record.parts()[0].handle.is_file()


def test_faults_stay_with_their_rows(tmp_path):
    path = write_manifest(tmp_path / "a.jsonl", ['{"id": 1', "", {"id": 2, "foreground": 3}, {"id": 4, "alpha": "a"}])
    found = rows(DatasetSettings(str(path)))
    assert [(r.number, r.place) for r in found] == [(1, "a.jsonl:1"), (2, "a.jsonl:3"), (3, "a.jsonl:4")]
    assert [bool(r.reasons) for r in found] == [True, True, False] and found[1].reasons == (
        "3 is no picture: write its path.",
    )


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"task": "matting"}, "unknown task 'matting'"),
        ({"sample": 1.5}, "sample=1.5 of x: give a number of rows, or a share"),
        ({"sample": 0.0}, "sample=0.0"),
        ({"repeat": 0.0}, "repeat=0.0"),
        ({"weight": 1.0, "repeat": 2.0}, "both weight and repeat"),
    ],
)
def test_settings_that_make_no_sense(wrong, told):
    with pytest.raises(InputError, match=told):
        DatasetSettings("x", **wrong)


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


def test_without_the_package_it_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert "hf:some/where needs the package `datasets`: pip install datasets" in refused("hf:some/where")


def test_columns_of_a_hugging_face_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    files = [[str(save_as(tmp_path, f"{n}{k}.png", front(n, k))) for k in range(1 + n % 2)] for n in range(3)]
    backs = [str(save_as(tmp_path, f"b{n}.png", back(n))) for n in range(3)]
    image = datasets.Image()
    table = datasets.Dataset.from_dict(
        {"layers": files, "scene": [backs[0], None, backs[2]], "words": ["a", "b", "c"], "rest": [1, 2, 3]},
        features=datasets.Features(
            {"layers": datasets.List(image), "scene": image, "words": datasets.Value("string"),
             "rest": datasets.Value("int64")}
        ),
    )  # fmt: skip
    table.save_to_disk(str(tmp_path / "table"))
    columns = {"foreground": "layers", "background": "scene", "captions.background": "words"}
    found = records(f"hf:{tmp_path / 'table'}", columns=columns)
    assert [r.id for r in found] == ["0", "1", "2"] and [r.layers for r in found] == [1, 2, 1]
    assert ["removal_auto" in r.tasks() for r in found] == [True, False, True]
    for n, record in enumerate(found):
        for part in record.parts():
            wanted = back(n) if part.name == "bg" else front(n, int(part.name[2:]))
            assert np.array_equal(np.asarray(to_bytes(read(part.handle)))[..., : wanted.shape[-1]], wanted)
    assert "has no column 'nothing' for alpha" in refused(f"hf:{tmp_path / 'table'}", columns={"alpha": "nothing"})
    shards.pack(found, tmp_path / "shards")
    assert torch.equal(read(records(tmp_path / "shards")[1].parts()[1].handle), read(found[1].parts()[1].handle))


def save_as(folder: Path, name: str, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(folder / name)
    return folder / name


def to_bytes(x):
    return (x * 255).round().byte().permute(1, 2, 0)
