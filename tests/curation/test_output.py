"""What comes out of curation is what training reads, says what it is, and is the same every time."""

import io
import json
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from curated import candidates
from omnialpha import rgba
from omnialpha.curation import card, output, parquet_files
from omnialpha.curation.candidate import Candidate, Outcome
from omnialpha.curation.output import OutputSettings
from omnialpha.curation.store import Store
from omnialpha.data.records.check import examine
from omnialpha.data.stream.datasets import DatasetSettings, rows
from omnialpha.errors import InputError
from omnialpha.io import read_image

SERVED = {"text_to_image", "matting_auto", "matting_rough", "removal_auto", "decompose_auto", "decompose_trimap",
          "background_to_foreground", "foreground_to_background", "foreground_to_full"}  # fmt: skip
ABOUT = {
    "vlm": "a model | of words",
    "edit": "an editor",
    "score": "premultiplied",
    "cut": 0.006,
    "near": ["src-1/m_7"],
}


def dataset(folder: Path, **settings: Any) -> tuple[Path, Store, list[Candidate]]:
    """Ten items: six in train, one in test, two beyond the cut, one without pictures."""
    store, made = candidates(folder, 9)
    empty = Candidate("src-1/m_9", "src-1", "research only", ("9.png",))
    outcomes = [Outcome(c) for c in made[:7]]
    outcomes += [Outcome(c, "select", f"its score {c.scores['premultiplied']:.4g} is beyond the cut at 0.006.")
                 for c in made[7:]]  # fmt: skip
    outcomes += [Outcome(empty, "caption", "no answer had the form that was asked for.")]
    kept = {"train": made[:6], "test": made[6:7]}
    out = folder / "out"
    counts = output.write(out, store, kept, outcomes[::-1], ABOUT, OutputSettings(**settings))
    assert counts == {"train": 6, "test": 1}
    return out, store, made


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Store, list[Candidate]]:
    return dataset(tmp_path_factory.mktemp("curated"), rows=2)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("source", ["train.jsonl", "shards/train/*.tar"])
def test_training_takes_the_records_as_they_are(written: Any, source: str) -> None:
    report = examine(DatasetSettings(str(written[0] / source)), deep=True)
    assert (len(report.good), report.bad) == (6, [])
    assert {name for name, count in report.tasks.items() if count == 6} >= SERVED


def test_a_record_has_the_pictures_of_its_candidate_and_their_words(written: Any) -> None:
    out, store, made = written
    for row, one in zip(lines(out / "train.jsonl"), made, strict=False):
        assert row["id"] == one.id
        assert row["captions"] == {
            "foreground": list(one.captions), "background": one.background_caption, "full": one.scene
        }  # fmt: skip
        named = {"composite": one.composite, "background": one.background}
        for digest, path in zip((*one.foregrounds, *named.values()), (*row["foreground"], *map(row.get, named))):  # noqa: B905
            assert (out / path).read_bytes() == store.path(digest).read_bytes()
            assert os.path.samefile(out / path, store.path(digest))
        layers = [read_image(out / path).rgba for path in (row["background"], *row["foreground"])]
        whole = read_image(out / row["composite"]).rgba
        assert float((rgba.recompose(layers) - whole).abs().max()) <= 0.5 / 255 + 1e-6


def test_an_example_is_the_pictures(written: Any) -> None:
    out, store, made = written
    for row in rows(DatasetSettings(str(out / "shards/train/*.tar"))):
        assert row.record
        example = row.record.example("decompose_auto", torch.Generator().manual_seed(0), (40, 56))
        one = next(c for c in made if c.id == row.record.id)
        wanted = [store.get(digest) for digest in (one.background, *one.foregrounds)]
        for truth, picture in zip(example.truths, wanted, strict=True):
            assert torch.equal(rgba.premultiply(truth), rgba.premultiply(picture))


def test_maps_are_in_a_record_where_they_are_asked_for(tmp_path: Path, written: Any) -> None:
    out, store, made = dataset(tmp_path, maps=True, parquet=False, shards=False)
    report = examine(DatasetSettings(str(out / "train.jsonl")), deep=True)
    assert len(report.good) == 6
    assert {"alpha", "trimap", "precise", "rough"} < lines(out / "train.jsonl")[0].keys()
    assert not {"trimap", "alpha"} & lines(written[0] / "train.jsonl")[0].keys()
    assert not list(out.rglob("*.tar")) and not list(out.rglob("*.parquet"))


def test_everything_is_the_same_the_second_time_and_elsewhere(tmp_path: Path) -> None:
    first = files(dataset(tmp_path / "a")[0])
    assert files(dataset(tmp_path / "a")[0]) == first
    index = re.compile(r"index\.json$")  # knows where its shard's pictures lay
    other = files(dataset(tmp_path / "b")[0])
    assert {k: v for k, v in other.items() if not index.search(k)} == {
        k: v for k, v in first.items() if not index.search(k)
    }


def test_another_selection_leaves_nothing_of_the_last_one(tmp_path: Path) -> None:
    out, store, made = dataset(tmp_path)
    outcomes = [Outcome(c) for c in made]
    output.write(out, store, {"train": made[:1]}, outcomes, {}, OutputSettings())
    assert {path.name for path in (out / "pictures").iterdir()} == {output.safe_name(made[0].id)}
    assert [p.name for p in out.rglob("*.parquet")] == ["train-00000-of-00001.parquet"]
    assert not (out / "test.jsonl").exists() and not list((out / "shards/test").iterdir())
    assert len(rows(DatasetSettings(str(out / "shards/train/*.tar")))) == 1


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_parquet_has_the_very_pictures_in_small_groups(written: Any) -> None:
    out, store, made = written
    file = pq.ParquetFile(out / "parquet/train-00000-of-00001.parquet")
    assert file.num_row_groups == 3
    for row, one in zip(file.read().to_pylist(), made, strict=False):
        assert row["id"] == one.id
        assert row["captions"]["full"] == one.scene
        cells = [*row["foreground"], row["background"], row["composite"]]
        for cell, digest in zip(cells, (*one.foregrounds, one.background, one.composite), strict=True):
            assert cell["bytes"] == store.path(digest).read_bytes()
            assert Image.open(io.BytesIO(cell["bytes"])).size == (56, 40)
    features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert (
        features.keys() == set(file.schema_arrow.names) == {"id", "foreground", "background", "composite", "captions"}
    )
    assert features["composite"] == {"_type": "Image"} == features["foreground"]["feature"]


def test_parquet_files_are_no_larger_than_asked_for(written: Any, tmp_path: Path) -> None:
    found = rows(DatasetSettings(str(written[0] / "train.jsonl")))
    paths = parquet_files.write([r.record for r in found], tmp_path, "train", 5_000, 8)  # type: ignore[misc]
    assert [path.name for path in paths] == [f"train-{k:05d}-of-{len(paths):05d}.parquet" for k in range(len(paths))]
    assert 1 < len(paths) < 6
    assert [row["id"] for path in paths for row in pq.read_table(path).to_pylist()] == [row.ident for row in found]


def test_datasets_loads_the_folder_and_our_reader_takes_it(written: Any, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(written[0]), cache_dir=str(tmp_path))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 6, "test": 1}
    assert loaded["train"][0]["composite"].size == (56, 40)
    (written[0] / "decisions.json").write_text("{}")  # lies there once a reviewer has saved some
    report = examine(DatasetSettings(f"hf:{written[0]}#train"), deep=True)
    assert (len(report.good), report.bad) == (6, [])


# ---- what is said of it ---------------------------------------------------------------------------------------------


def test_the_manifest_says_of_every_item_what_became_of_it(written: Any) -> None:
    out, store, made = written
    items = lines(out / "manifest.jsonl")
    assert [item["id"] for item in items] == [f"src-{n % 2}/m_{n}" for n in (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)]
    assert Counter(item["split"] or item["stage"] for item in items) == {
        "train": 6,
        "test": 1,
        "select": 2,
        "caption": 1,
    }
    first = items[0]
    assert (first["licence"], first["origin"], first["composite"]) == ("CC0", ["0.png"], made[0].composite)
    assert first["scores"] == dict(made[0].scores)
    rejected = lines(out / "rejected.jsonl")
    assert rejected[-1] == {"id": "src-1/m_9", "stage": "caption", "reason": items[-1]["reason"]}
    assert len(rejected) == 3 and all(row["reason"] for row in rejected)


def test_the_card_counts_what_is_there(written: Any) -> None:
    out = written[0]
    _, header, text = (out / "README.md").read_text().split("---\n", 2)
    values = yaml.safe_load(header)
    assert (values["license"], values["size_categories"], values["pretty_name"]) == (
        "other", ["n<1K"], "Layered pictures"
    )  # fmt: skip
    assert [part["split"] for part in values["configs"][0]["data_files"]] == ["train", "test"]
    for part in values["configs"][0]["data_files"]:
        assert list(out.glob(part["path"]))
    assert "| src-0 | CC0 | 5 | 3 | 1 | 1 |" in text
    assert "| all |  | 10 | 6 | 1 | 3 |" in text
    assert "| select | its score ... is beyond the cut at .... | 2 |" in text
    assert "| all |  | 3 |" in text
    assert "a model \\| of words" in text
    assert "The cut is at 0.006." in text and "`src-1/m_7`" in text
    drawn = [line for line in text.splitlines() if " of " in line and "|" in line and line[0].isdigit()]
    assert sum(int(line.rsplit("|", 1)[1].split(" of ")[0]) for line in drawn) == 7
    assert Image.open(out / "samples.png").height > 7 * 192


def test_a_card_of_nothing_is_a_card(tmp_path: Path) -> None:
    output.write(tmp_path / "out", Store(tmp_path), {}, [], {}, OutputSettings())
    header = yaml.safe_load((tmp_path / "out/README.md").read_text().split("---\n")[1])
    assert "configs" not in header
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "manifest.jsonl", "parquet", "pictures", "rejected.jsonl"
    ]  # fmt: skip


def test_a_histogram_holds_every_score_once() -> None:
    text = card.histogram([0.001 * k for k in range(50)], [0.05 + 0.001 * k for k in range(40)] + [7.0])
    ours, every = zip(*(line.rsplit("| ", 1)[1].split(" of ") for line in text.splitlines()), strict=True)
    assert (sum(map(int, ours)), sum(map(int, every))) == (50, 91)
    assert card.histogram([], []) == ""
    assert "1 of 1" in card.histogram([0.0], [])


@pytest.mark.parametrize(
    "ident, other", [("a/b", "a-b"), ("a/b", "a_b"), ("A", "a"), ("x" * 300 + "1", "x" * 300 + "2"), ("../..", "....")]
)
def test_names_of_folders_are_safe_and_of_one_candidate_alone(ident: str, other: str) -> None:
    names = [output.safe_name(name) for name in (ident, other)]
    assert names[0].casefold() != names[1].casefold()
    assert all(re.fullmatch(r"[\w-]{1,100}", name) for name in names)


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_pictures_of_others_are_never_taken_away(tmp_path: Path) -> None:
    store, made = candidates(tmp_path, 1)
    for folder in (store.folder, tmp_path):
        (tmp_path / "parquet").mkdir(exist_ok=True)
        with pytest.raises(InputError, match="is not of a data set built here: choose another folder"):
            output.write(folder, store, {"train": made}, [Outcome(made[0])], {}, OutputSettings())
    assert store.path(made[0].composite).is_file()


def test_a_picture_that_is_not_in_the_store_is_named(tmp_path: Path) -> None:
    store, made = candidates(tmp_path, 1)
    lost = replace(made[0], background="0" * 64)
    with pytest.raises(InputError, match=r"0000\.png, a picture of src-0/m_0, is not in the store"):
        output.write(tmp_path / "out", store, {"train": [lost]}, [Outcome(lost)], {}, OutputSettings())
    assert not (tmp_path / "out/pictures").exists()


@pytest.mark.parametrize("changes", [{"size_mb": 0}, {"rows": 0}, {"samples": -1}])
def test_settings_that_cannot_be_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(InputError, match="out has .*: use 1 or more"):
        OutputSettings(**changes)  # type: ignore[arg-type]
