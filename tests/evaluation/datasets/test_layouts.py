"""Every published layout, as a tree of a few tiny pictures: what is read of it, and what is said of one like it."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import benchmark_trees as trees
from layered import HEIGHT, WIDTH, back, front, manifest, pair_row, write_manifest
from omnialpha import masks
from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.benchmarks import BENCHMARKS
from omnialpha.evaluation.datasets.designs import layered
from omnialpha.evaluation.datasets.layouts import LAYOUTS
from omnialpha.evaluation.datasets.samples import Sample
from omnialpha.tasks import Role


def samples(name: str, data: Path, task: str | None = None, limit: int | None = None) -> list[Sample]:
    row = BENCHMARKS[name]
    return row.samples(str(data), row.task(task), limit)


def pixels(picture: torch.Tensor) -> np.ndarray:
    return (picture * 255).round().byte().permute(1, 2, 0).numpy()


def of(path: Path) -> torch.Tensor:
    """(C, H, W) of a file."""
    array = np.array(Image.open(path))
    return torch.from_numpy(array).float().div(255).reshape(*array.shape[:2], -1).permute(2, 0, 1)


def test_every_row_has_a_reader() -> None:
    assert BENCHMARKS.keys() - {"suite"} == LAYOUTS.keys()


MATTING: dict[str, Callable[[Path], Path]] = {
    "aim-500": lambda root: trees.matting(root, "ab"),
    "am-2k": lambda root: trees.matting(root / "Validation", "ab"),
    "p3m-500-p": lambda root: trees.matting(root / "P3M-10k" / "validation" / "P3M-500-P", "ab", "blurred_image"),
    "p3m-500-np": lambda root: trees.matting(root / "P3M-500-NP", "ab", "original_image"),
    "composition-1k": lambda root: trees.matting(root, "ab", "merged", "alpha_copy", of=".png"),
    "alphamatting": lambda root: trees.matting(root, "ab", "input", "alpha", of=".png"),
    "matting-folder": lambda root: trees.matting(root, "ab", "Images", "gt", of=".png"),
}


@pytest.mark.parametrize("name", MATTING)
def test_mattes_beside_pictures(name: str, tmp_path: Path) -> None:
    MATTING[name](tmp_path)
    found = samples(name, tmp_path, "matting_trimap")
    assert [sample.key for sample in found] == ["a", "b"]
    for number, sample in enumerate(found):
        loaded = sample.load()
        assert loaded.roles == (Role.COMPOSITE, Role.TRIMAP) and loaded.size == (HEIGHT, WIDTH)
        true, tri = loaded.truth(Role.FOREGROUND), loaded.trimap
        assert true is not None and tri is not None
        assert np.array_equal(pixels(true)[..., 3], trees.alpha(number))
        assert torch.equal(true[:3], loaded.inputs[0][:3])  # a matte has the colours of its picture
        assert torch.equal(tri, torch.from_numpy(trees.trimap(trees.alpha(number)) / 127.5).round() / 2)
        assert torch.equal(loaded.inputs[1][0], tri)


def test_mattes_in_colour_and_trimaps_in_a_palette(tmp_path: Path) -> None:
    """As alphamatting.com has them."""
    trees.matting(tmp_path, "ab", "input", "alpha", of=".png")
    for number, name in enumerate("ab"):
        matte = trees.alpha(number)
        trees.save(np.stack([matte] * 3, axis=-1), tmp_path / "alpha" / f"{name}.png")
        drawn = Image.fromarray(trees.trimap(matte)).convert("P")  # a palette of its own order
        drawn.remap_palette([255, 128, 0, *range(1, 128), *range(129, 255)]).save(tmp_path / "trimap" / f"{name}.png")
        assert np.array(Image.open(tmp_path / "trimap" / f"{name}.png")).max() == 2
    for number, sample in enumerate(samples("alphamatting", tmp_path, "matting_trimap")):
        loaded, matte = sample.load(), trees.alpha(number)
        true, tri = loaded.truth(Role.FOREGROUND), loaded.trimap
        assert true is not None and np.array_equal(pixels(true)[..., 3], matte)
        assert tri is not None and torch.equal(tri, torch.from_numpy(trees.trimap(matte) / 127.5).round() / 2)


def test_the_published_archives_of_alphamatting(tmp_path: Path) -> None:
    trees.matting(tmp_path, "ab", "input_training_lowres", "gt_training_lowres", of=".png")
    (tmp_path / "trimap_training_lowres").mkdir()
    (tmp_path / "trimap").rename(tmp_path / "trimap_training_lowres" / "Trimap1")
    found = samples("alphamatting", tmp_path, "matting_trimap")
    assert [sample.key for sample in found] == ["a", "b"] and all(s.load().trimap is not None for s in found)


def test_trimaps_are_drawn_where_a_folder_has_none(tmp_path: Path) -> None:
    trees.matting(tmp_path, "ab", "input", "alpha", trimaps=False, size=(100, 150))
    for task in ("matting_auto", "matting_trimap"):
        for number, sample in enumerate(samples("matting-folder", tmp_path, task)):
            loaded, matte = sample.load(), torch.from_numpy(trees.alpha(number, 100, 150)) / 255
            assert loaded.trimap is not None and torch.equal(loaded.trimap, masks.trimap(matte, 2))  # 2 % of 100 px
            assert task == "matting_auto" or torch.equal(loaded.inputs[1][0], loaded.trimap)
    before = samples("matting-folder", tmp_path)[0].identity(None)
    trees.save(trees.alpha(1, 100, 150), tmp_path / "alpha" / "a.png")
    assert samples("matting-folder", tmp_path)[0].identity(None) != before
    with pytest.raises(InputError, match="it lacks trimap_training_lowres/"):
        samples("alphamatting", tmp_path, "matting_trimap")
    trees.save(trees.trimap(trees.alpha(0)), tmp_path / "trimap" / "a.png")
    with pytest.raises(InputError, match="trimap lacks 1 of the 2 pictures in input, the first is b"):
        samples("matting-folder", tmp_path)  # given and drawn ones are not mixed


def test_the_automatic_task_gives_no_trimap_but_counts_with_it(tmp_path: Path) -> None:
    (sample,) = samples("aim-500", trees.matting(tmp_path, "ab"), limit=1)
    loaded = sample.load()
    assert sample.task == "matting_auto" and loaded.roles == (Role.COMPOSITE,) and loaded.trimap is not None
    shutil.rmtree(tmp_path / "trimap")
    assert samples("aim-500", tmp_path)[0].load().trimap is None


def test_letter_case_and_formats_do_not_matter(tmp_path: Path) -> None:
    trees.matting(tmp_path / "aim-500", ["O_1"], picture="Original", of=".JPEG", trimaps=False)
    (tmp_path / "aim-500" / "mask").rename(tmp_path / "aim-500" / "MASK")
    (tmp_path / "aim-500" / "MASK" / "O_1.png").rename(tmp_path / "aim-500" / "MASK" / "o_1.PNG")
    (tmp_path / "aim-500" / "Original" / ".hidden.jpg").write_bytes(b"x")
    (sample,) = samples("aim-500", tmp_path)
    assert sample.key == "O_1" and sample.load().truth(Role.FOREGROUND) is not None


def test_a_longer_side_resizes_all_alike(tmp_path: Path) -> None:
    (sample,) = samples("aim-500", trees.matting(tmp_path, "a", size=(60, 90)), "matting_trimap")
    loaded = sample.load(45)
    true = loaded.truth(Role.FOREGROUND)
    assert loaded.size == (30, 45) and true is not None and true.shape == (4, 30, 45)
    assert loaded.trimap is not None and set(loaded.trimap.unique().tolist()) == {0.0, 0.5, 1.0}


def test_pictures_of_other_sizes_are_refused(tmp_path: Path) -> None:
    trees.matting(tmp_path, "a")
    trees.save(trees.alpha(0, 10, 10), tmp_path / "mask" / "a.png")
    (sample,) = samples("aim-500", tmp_path)
    with pytest.raises(InputError, match=r"a.png is 10x10 px, .*a.jpg 56x40 px"):
        sample.load()


def test_expressions_name_subjects(tmp_path: Path) -> None:
    found = samples("refmatte-rw100", trees.rw100(tmp_path / "RefMatte_RW_100").parent)
    assert [s.key for s in found] == ["p_a_0", "p_a_1", "p_b_0"] and found[1].prompt == "disk 1"
    assert "disk 1" in found[1].load().instruction and found[1].load().prompt == "disk 1"
    (tmp_path / "RefMatte_RW_100" / "eval_index_expression.json").unlink()
    assert samples("refmatte-rw100", tmp_path)[2].prompt == "the disk numbered 2"


def test_composition_1k_is_composed_as_its_script_does(tmp_path: Path) -> None:
    trees.composition_1k(tmp_path)
    found = samples("composition-1k", tmp_path)
    assert [s.key for s in found] == [f"{name}_{k}" for name in ("b one", "a") for k in range(20)]
    images = tmp_path / "Combined_Dataset" / "Test_set" / "Adobe-licensed images"
    share, colour = of(images / "alpha" / "b one.png"), of(images / "fg" / "b one.png")
    behind = of(tmp_path / "VOCdevkit" / "VOC2012" / "JPEGImages" / "2008_000003.jpg")[:, :30, :40]
    wanted = ((share * colour + (1 - share) * behind) * 255 + 1e-3).floor()
    made = found[3].load()
    assert torch.equal((made.inputs[0][:3] * 255).round(), wanted)
    large = found[25].load()
    assert large.size == (50, 60)  # larger than its backgrounds of 36x48 px, which grow to 50x67
    assert float(large.truths[0][3, -1, -1]) == 0  # type: ignore[index]
    behind = of(tmp_path / "VOCdevkit" / "VOC2012" / "JPEGImages" / "2008_000025.jpg")[:, 34:, 41:44]
    assert torch.allclose(large.inputs[0][:3, -1, -1], behind.mean(dim=(1, 2)), atol=0.05)
    assert made.roles == (Role.COMPOSITE, Role.TRIMAP)
    assert {role for s in samples("composition-1k", tmp_path, "matting_auto") for role in s.inputs} == {Role.COMPOSITE}
    assert found[3].identity(None) != found[4].identity(None)
    asked = found[3].request()  # what is composed lies in no file
    assert set(asked.inputs) == {"trimap"} and asked.truths == [str(images / "alpha" / "b one.png")]


def test_distinctions_646(tmp_path: Path) -> None:
    found = samples("distinctions-646", trees.distinctions_646(tmp_path))
    assert len(found) == 40 and found[0].key == "x_0" and found[39].key == "y_19"
    assert found[39].load().trimap is None and found[39].load().truth(Role.FOREGROUND) is not None


@pytest.mark.parametrize("task", ["removal_precise", "removal_rough", "removal_auto", "decompose_auto"])
def test_rord(task: str, tmp_path: Path) -> None:
    trees.removal(tmp_path / "RORD" / "val", ["v1/0001", "v2/0001"], mask="{}_M")
    found = samples("rord", tmp_path, task)
    assert [sample.key for sample in found] == ["v1/0001", "v2/0001"]
    loaded = found[1].load()
    true = loaded.truth(Role.BACKGROUND)
    assert true is not None and np.abs(pixels(true)[..., :3].astype(int) - back(1)).mean() < 3  # a JPEG
    assert [t is None for t in loaded.truths] == [role is Role.FOREGROUND for role in loaded.targets]


def test_ober_as_folders(tmp_path: Path) -> None:
    found = samples("ober", trees.removal(tmp_path / "test", "ab", "input", of="object_mask"))
    assert [sample.key for sample in found] == ["a", "b"] and found[0].load().roles[1] is Role.PRECISE


def test_ober_as_the_published_table(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {
            "input": {"bytes": trees.picture_bytes(trees.composite(n)), "path": "x.png"},
            "gt": {"bytes": trees.picture_bytes(back(n)), "path": None},
            "object_mask": {"bytes": trees.picture_bytes(trees.alpha(n)), "path": None},
            "subset": f"s{n}",
        }
        for n in range(2)
    ]
    (tmp_path / "data").mkdir()
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "data" / "test-00000-of-00001.parquet")
    (tmp_path / "data" / "train-00000-of-00001.parquet").write_bytes(b"not read")
    for task in ("removal_precise", "removal_rough", "removal_auto"):
        found = samples("ober", tmp_path, task)
        true = found[1].load().truth(Role.BACKGROUND)
        assert [s.key for s in found] == ["00000", "00001"] and found[1].category == "s1"
        assert true is not None and np.array_equal(pixels(true)[..., :3], back(1))
    parquet.write_table(arrow.Table.from_pylist([{"input": 1}]), tmp_path / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(InputError, match=r"parquet has no column 'gt'"):
        samples("ober", tmp_path)


def test_tables_need_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "test-0.parquet").write_bytes(b"x")
    with pytest.raises(InputError, match=r"needs the package pyarrow: pip install omnialpha\[hf\]"):
        samples("crello", tmp_path)


def test_alphatest_gives_prompts_and_true_pictures(tmp_path: Path) -> None:
    found = samples("alphatest", trees.alphatest(tmp_path, each=3), limit=2)
    assert [s.key for s in found] == ["animal/00000", "animal/00001", "toy/00000", "toy/00001"]
    loaded = found[3].load()
    assert loaded.prompt == "a toy number 1" and loaded.inputs == () and loaded.size == (HEIGHT, WIDTH)
    assert loaded.truths[0] is not None and np.array_equal(pixels(loaded.truths[0]), front(1, 1))


def test_crello_as_folders_of_layers(tmp_path: Path) -> None:
    found = samples("crello", trees.crello_folders(tmp_path))
    assert [len(s.targets) for s in found] == [2, 3] and found[0].key == "design0"
    loaded = [sample.load() for sample in found]
    assert np.array_equal(pixels(loaded[0].inputs[0])[..., :3], trees.composite(0))
    assert loaded[1].targets == (Role.BACKGROUND, Role.FOREGROUND, Role.FOREGROUND)
    made = loaded[1].inputs[0]  # nobody keeps the composite of the second one
    assert bool((made[3] == 1).all()) and not np.array_equal(pixels(made)[..., :3], back(1))


def test_elements_of_a_design_become_layers() -> None:
    found = [np.asarray(Image.open(io.BytesIO(layer.read()))) for layer in layered(trees.design())]
    assert [layer.shape for layer in found] == [(360, 480, 4)] * 3  # the hidden element is none
    scale = 360 / 540
    reds = [sorted(set(layer[layer[..., 3] > 0][:, 0].tolist())) for layer in found]
    assert reds == [[50], [100], [150, 200]]
    middle = [round((at + 60) * scale) for at in (90, 150)]  # of the boxes that overlap
    assert found[1][middle[0], middle[0], 3] == 255 and found[2][middle[1], middle[1], 3] in (127, 128)
    rows, columns = np.nonzero(found[2][..., 0] == 200)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (80, 80) and abs(columns.mean() - 540 * scale) < 1


def test_crello_as_the_published_table(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "data").mkdir()
    parquet.write_table(arrow.Table.from_pylist([trees.design()]), tmp_path / "data" / "test-00000-of-00001.parquet")
    (sample,) = samples("crello", tmp_path)
    loaded = sample.load(120)
    assert sample.key == "d1" and loaded.size == (90, 120) and len(loaded.truths) == 3


def test_records_serve_what_they_can(tmp_path: Path) -> None:
    path = manifest(tmp_path, 3)
    found = samples("folder", path, "matting_text")
    assert [s.key for s in found] == ["r0", "r1", "r2"] and found[2].prompt == "disk 2"
    loaded = found[2].load()
    assert "disk 2" in loaded.instruction and loaded.truth(Role.FOREGROUND) is not None
    assert torch.equal(loaded.inputs[0], found[2].load().inputs[0])
    assert [*found[2].request().targets] == ["foreground"] and found[2].request().truths[0].endswith("2-fg0.png")
    trimapped = samples("alphalayers", tmp_path, "matting_trimap")[0]
    assert torch.equal(trimapped.load().trimap, trimapped.load().inputs[1][0])  # drawn alike each time
    with pytest.raises(InputError, match=r"no record in .* serves foreground_to_full.*they serve text_to_image"):
        samples("folder", manifest(tmp_path / "b", 2, background=None), "foreground_to_full")


def test_pairs_are_of_the_task_that_is_named(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "AlphaLayers_matting.jsonl", [pair_row(tmp_path, 1, "Cut it out!")])
    (sample,) = samples("alphalayers", path, "matting_rough")
    assert sample.instruction == "Cut it out!" == sample.load().instruction
    asked = sample.request()
    assert set(asked.inputs) == {"composite", "rough"} and asked.truths[0].endswith("1-out.png")
    with pytest.raises(InputError, match="input_images has 2, matting_auto takes 1"):
        samples("alphalayers", path, "matting_auto")


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name not in ("folder", "alphalayers", "vae", "suite")])
def test_a_wrong_folder_is_told_in_one_sentence(name: str, tmp_path: Path) -> None:
    trees.save(trees.alpha(0), tmp_path / "something" / "else.png")
    if name == "crello":
        (tmp_path / "something" / "else.png").rename(tmp_path / "else.png")
    with pytest.raises(InputError) as raised:
        samples(name, tmp_path)
    message = str(raised.value)
    assert str(tmp_path) in message and "is not laid out as" in message and "give" in message and "\n" not in message
    assert name == "crello" or "holds something/" in message
    with pytest.raises(InputError, match="nowhere is not a folder"):
        samples(name, Path("nowhere"))


def test_a_partial_folder_says_what_it_lacks(tmp_path: Path) -> None:
    trees.matting(tmp_path, "abc")
    (tmp_path / "mask" / "b.png").unlink()
    with pytest.raises(InputError, match=r"mask lacks 1 of the 3 pictures in original, the first is b: copy it again"):
        samples("aim-500", tmp_path)
    (tmp_path / "original" / "b.jpg").unlink()
    (tmp_path / "original" / "c.jpg").unlink()
    with pytest.raises(InputError, match=r"original lacks 1 of the 2 pictures in mask, the first is c"):
        samples("aim-500", tmp_path)


def test_lists_that_do_not_fit(tmp_path: Path) -> None:
    trees.composition_1k(tmp_path)
    test = tmp_path / "Combined_Dataset" / "Test_set"
    (tmp_path / "VOCdevkit" / "VOC2012" / "JPEGImages" / "2008_000001.jpg").unlink()
    with pytest.raises(InputError, match=r"JPEGImages lacks 1 of the 40 pictures.*2008_000001.jpg"):
        samples("composition-1k", tmp_path)
    (test / "test_bg_names.txt").write_text("2008_000002.jpg\n")
    with pytest.raises(InputError, match="lists 1 backgrounds, 2 foregrounds need 40"):
        samples("composition-1k", tmp_path)
    shutil.rmtree(tmp_path / "VOCdevkit")
    with pytest.raises(InputError, match="lacks the backgrounds of Pascal VOC"):
        samples("composition-1k", tmp_path)
    trees.alphatest(tmp_path / "t")
    (tmp_path / "t" / "Diffusion_test_data" / "prompts" / "toy" / "prompt.txt").write_text("one\n")
    with pytest.raises(InputError, match="1 prompts and 2 pictures of toy"):
        samples("alphatest", tmp_path / "t")


@pytest.mark.parametrize(("said", "words"), [("[1]", "holds a list"), ("{", "is no JSON"), ('{"p_a_0": 3}', "of use")])
def test_labels_that_are_damaged(said: str, words: str, tmp_path: Path) -> None:
    (trees.rw100(tmp_path) / "refmatte_rw100_label.json").write_text(said)
    with pytest.raises(InputError, match=words):
        samples("refmatte-rw100", tmp_path)


def test_a_changed_file_is_another_sample(tmp_path: Path) -> None:
    (sample,) = samples("aim-500", trees.matting(tmp_path, "a"))
    before = sample.identity(None)
    assert before == samples("aim-500", tmp_path)[0].identity(None) != sample.identity(20)
    trees.save(trees.alpha(1), tmp_path / "mask" / "a.png")
    assert sample.identity(None) != before
    (tmp_path / "mask" / "a.png").unlink()
    with pytest.raises(InputError, match=r"a.png cannot be read \(No such file"):
        sample.identity(None)


def test_mistakes_in_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "x", "forground": "a.png"}) + "\n")
    with pytest.raises(InputError, match=r"rows.jsonl:1: the key 'forground' is unknown.*omnialpha data check"):
        samples("folder", tmp_path / "rows.jsonl", "matting_auto")
