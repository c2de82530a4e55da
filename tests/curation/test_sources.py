"""Sources by tiny trees in the layouts of the collections, and what their items decode to."""

import io
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark_trees import alpha, composite, composition_1k, distinctions_646, matting, picture_bytes, save, subject
from layered import HEIGHT, WIDTH, back, front
from omnialpha import rgba
from omnialpha.curation import sources
from omnialpha.curation.candidate import Rejected
from omnialpha.curation.collections import COLLECTIONS
from omnialpha.curation.sources import KINDS, SourceSettings, items
from omnialpha.data.records.pictures import read
from omnialpha.errors import InputError

Rows = list[tuple[str, int]]  # ids without the collection, and the number of the subject


def pairs(root: Path, folder: str, names: list[str], first: int = 0, color: str = "fg", matte: str = "alpha") -> None:
    """Files fg/NAME.jpg-like (kept as PNG, so that colours can be told) and alpha/NAME.png of subjects first, ..."""
    for number, name in enumerate(names, first):
        save(subject(number)[..., :3], root / folder / color / f"{name}.png")
        save(alpha(number), root / folder / matte / f"{name}.png")


def adobe(root: Path) -> Rows:
    composition_1k(root)  # the test split: two foregrounds of other sizes
    train = "Combined_Dataset/Training_set"
    pairs(root, f"{train}/Adobe-licensed images", ["x"], 0)
    pairs(root, f"{train}/Other", ["y"], 1)
    return [("Combined_Dataset/Training_set/Adobe-licensed images/fg/x", 0), (f"{train}/Other/fg/y", 1)]


def distinctions(root: Path) -> Rows:
    distinctions_646(root / "Distinctions-646")
    pairs(root, "Distinctions-646/Train", ["z"], 3, "FG", "GT")
    base = "Distinctions-646/{}/FG/{}"
    return [(base.format("Test", "x"), 0), (base.format("Test", "y"), 1), (base.format("Train", "z"), 3)]


def natural(root: Path, folder: str, picture: str, matte: str) -> Rows:
    matting(root / folder, ["a", "b"], picture, matte, trimaps=False, of=".png")
    return [(f"{folder}/{picture}/a", 0), (f"{folder}/{picture}/b", 1)]


def am_2k(root: Path) -> Rows:
    return natural(root, "AM-2k/train", "original", "mask") + natural(root, "AM-2k/validation", "original", "mask")


def human(root: Path) -> Rows:
    pairs(root, "Human-2K/train", ["h"], 2)
    return [("Human-2K/train/fg/h", 2)]


def photomatte(root: Path) -> Rows:
    save(subject(4), root / "PhotoMatte85" / "0051115Q.png")
    return [("PhotoMatte85/0051115Q", 4)]


def simd(root: Path) -> Rows:
    pairs(root, "SIMD/fire", ["f"], 0)
    pairs(root, "SIMD/hair_easy", ["f"], 1)
    return [("SIMD/fire/fg/f", 0), ("SIMD/hair_easy/fg/f", 1)]


def transparent(root: Path) -> Rows:
    pairs(root, "Transparent-460/Test", ["t"], 5)
    pairs(root, "Transparent-460/Train", ["u"], 6)
    return [("Transparent-460/Test/fg/t", 5), ("Transparent-460/Train/fg/u", 6)]


TREES: dict[str, Callable[[Path], Rows]] = {
    "adobe-image-matting": adobe,
    "am-2k": am_2k,
    "distinctions-646": distinctions,
    "hhm-2k": lambda root: natural(root, "HHM2K", "images", "alphas"),
    "human-1k": human,
    "p3m-500-np": lambda root: natural(root, "P3M-10k/validation/P3M-500-NP", "original_image", "mask"),
    "photomatte85": photomatte,
    "realworldportrait-636": lambda root: natural(root, "RealWorldPortrait-636", "image", "alpha"),
    "simd": simd,
    "transparent-460": transparent,
}
MIXED = {"am-2k", "hhm-2k", "p3m-500-np", "realworldportrait-636"}


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1)


@pytest.mark.parametrize("kind", TREES)
def test_each_collection_is_read_as_it_is_published(kind: str, tmp_path: Path) -> None:
    rows = TREES[kind](tmp_path)
    found = {item.id: item for item in items(SourceSettings(kind, str(tmp_path)))}
    assert list(found) == sorted(found) and {f"{kind}/{name}" for name, _ in rows} <= found.keys()
    assert len(found) == len(rows) + 2 * (kind == "adobe-image-matting")  # the test split, checked below
    for name, number in rows:
        item = pickle.loads(pickle.dumps(found[f"{kind}/{name}"]))
        assert item.source == kind and item.licence == COLLECTIONS[kind].licence and item.mixed == (kind in MIXED)
        assert item.composite is None and item.background is None and not item.captions
        (layer,) = item.foregrounds()
        assert torch.equal(layer[3], torch.from_numpy(alpha(number) / np.float32(255)))
        truth = as_tensor(subject(number))
        solid = layer[3] == 1
        assert (layer[:3] - truth[:3])[:, solid].abs().max() < 2 / 255
        soft = (layer[3] > 0.2) & ~solid
        error = (layer[:3] - truth[:3])[:, soft].abs().mean()
        # Of a photograph they are estimated, which must be nearer to the truth than what the photograph shows.
        mixture = (as_tensor(composite(number)) - truth[:3])[:, soft].abs().mean()
        assert error < 0.7 * mixture if kind in MIXED else error == 0


def test_every_collection_has_a_tree_and_says_how_sure_it_is() -> None:
    assert COLLECTIONS.keys() - TREES.keys() == {"prismlayers"} and len(COLLECTIONS) == 11
    assert all(row.title and row.licence and row.certainty for row in COLLECTIONS.values())
    assert "not confirmed" in COLLECTIONS["human-1k"].certainty


def test_a_path_may_name_one_split(tmp_path: Path) -> None:
    adobe(tmp_path)
    test = tmp_path / "Combined_Dataset" / "Test_set"
    found = items(SourceSettings("adobe-image-matting", str(test), name="adobe"))
    assert [item.id for item in found] == ["adobe/Adobe-licensed images/fg/a", "adobe/Adobe-licensed images/fg/b one"]
    assert [tuple(item.foregrounds()[0].shape) for item in found] == [(4, 50, 60), (4, 30, 40)]
    assert [item.id for item in items(SourceSettings("adobe-image-matting", str(tmp_path), limit=1))] == [
        "adobe-image-matting/Combined_Dataset/Test_set/Adobe-licensed images/fg/a"
    ]


def test_a_folder_laid_out_otherwise_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "train" / "pictures").mkdir(parents=True)
    expected = "is not laid out as AM-2K: it lacks original/ and mask/ and holds train/; give its folder."
    with pytest.raises(InputError, match=re.escape(expected)):
        items(SourceSettings("am-2k", str(tmp_path)))
    with pytest.raises(InputError, match=r"is not a folder: give the one that SIMD was unpacked to\."):
        items(SourceSettings("simd", str(tmp_path / "none")))
    with pytest.raises(InputError, match="'am2k' is not known, the nearest is 'am-2k'"):
        items(SourceSettings("am2k", str(tmp_path)))
    with pytest.raises(InputError, match="limit=-1 is below 0"):
        items(SourceSettings("am-2k", str(tmp_path), limit=-1))
    am_2k(tmp_path)
    (tmp_path / "AM-2k" / "validation" / "mask" / "b.png").unlink()
    with pytest.raises(InputError, match="mask lacks 1 of the 2 pictures in original, the first is b"):
        items(SourceSettings("am-2k", str(tmp_path)))
    (tmp_path / "AM-2k" / "validation" / "original" / "b.png").unlink()
    save(alpha(1), tmp_path / "AM-2k" / "validation" / "mask" / "c.png")
    with pytest.raises(InputError, match="original lacks 1 of the 2 pictures in mask, the first is c"):
        items(SourceSettings("am-2k", str(tmp_path)))


def test_any_pair_of_folders(tmp_path: Path) -> None:
    pairs(tmp_path, ".", ["a"], 0, "colour", "matte")
    settings = SourceSettings("pairs", str(tmp_path), "mine", foreground="Colour", alpha="matte")
    (item,) = items(settings)
    assert item.id == "mine/colour/a" and item.licence == "not stated" and item.composite is None
    assert torch.equal(item.foregrounds()[0], as_tensor(subject(0)))
    mixed = SourceSettings("pairs", str(tmp_path), "mine", "CC0-1.0", 0, "colour", "matte", mixed=True, whole=True)
    (item,) = items(mixed)
    assert item.mixed and item.licence == "CC0-1.0" and item.composite == tmp_path / "colour" / "a.png"
    save(alpha(0)[:-1], tmp_path / "matte" / "a.png")
    with pytest.raises(InputError, match=f"{WIDTH}x{HEIGHT - 1} px"):
        items(settings)[0].foregrounds()


def test_any_folder_of_rgba_pictures_with_captions(tmp_path: Path) -> None:
    for number, name in enumerate(["b/one.png", "b/one.webp", "a.png"]):
        save(front(number), tmp_path / "set" / name)
    rows = [{"file": "set/a.png", "caption": "a disk", "source": "x"}, {"file": "set/b/one.png", "caption": ""}]
    lists = tmp_path / "captions.jsonl"
    lists.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = items(SourceSettings("rgba", str(tmp_path / "set")))
    assert [item.id for item in found] == ["set/a", "set/b/one.png", "set/b/one.webp"]
    assert torch.equal(found[1].foregrounds()[0], as_tensor(front(0))) and found[0].captions == ()
    found = items(SourceSettings("rgba", str(tmp_path)))
    assert [item.captions for item in found] == [("a disk",), (), ()]
    found = items(SourceSettings("rgba", str(lists)))
    assert [(item.id, item.captions) for item in found] == [
        ("captions/set/a", ("a disk",)),
        ("captions/set/b/one", ()),
    ]
    lists.write_text('{"file": "set/none.png", "caption": "x"}\n')
    with pytest.raises(InputError, match=r"none\.png is listed with a caption, but is not there"):
        items(SourceSettings("rgba", str(lists)))
    lists.write_text('{"file": "set/a.png", "caption": "x"}\n["a"]\n')
    with pytest.raises(InputError, match=r"captions\.jsonl, row 2, is no"):
        items(SourceSettings("rgba", str(lists)))


def test_pictures_without_alpha_are_no_foregrounds(tmp_path: Path) -> None:
    save(back(1), tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg has no alpha channel: give RGBA pictures, or another kind"):
        items(SourceSettings("rgba", str(tmp_path)))


# ---- layered sources ------------------------------------------------------------------------------------------------


def prism(root: Path, box: tuple[int, ...] = (10, 5, 30, 15)) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    def picture(pixels: np.ndarray) -> dict[str, Any]:
        return {"bytes": picture_bytes(pixels), "path": None}

    small = np.full((10, 20, 4), (200, 100, 0, 128), np.uint8)
    rows = [
        {
            "id": f"p{k}", "style_category": "toy", "whole_image": picture(composite(k)), "whole_caption": "all",
            "base_image": picture(back(k)), "base_caption": "ramps", "layer_count": 2,
            "layer_00": picture(front(k)), "layer_00_box": [0, 0, WIDTH, HEIGHT], "layer_00_caption": "a disk",
            "layer_01": picture(small), "layer_01_box": list(box), "layer_01_caption": "a bar",
        }
        for k in range(3)
    ]  # fmt: skip
    (root / "data").mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(rows), root / "data" / "toy-00000-of-00001.parquet", row_group_size=2)
    return root


def test_prism_layers_are_placed_by_their_boxes(tmp_path: Path) -> None:
    found = items(SourceSettings("prismlayers", str(prism(tmp_path))))
    assert [item.id for item in found] == [f"prismlayers/data/toy-00000-of-00001/0000{k}" for k in range(3)]
    item = pickle.loads(pickle.dumps(found[2]))  # of the second group of rows
    assert item.captions == ("a disk", "a bar") and item.licence.startswith("Apache-2.0")
    disk, bar = item.foregrounds()
    assert torch.equal(disk, as_tensor(front(2)))
    assert bar.shape == disk.shape and torch.allclose(bar[3, 5:15, 10:30], torch.tensor(128 / 255))
    assert bar[3].count_nonzero() == 200 and torch.allclose(bar[0, 5:15, 10:30], torch.tensor(200 / 255))
    assert torch.equal(read(item.background)[:3], as_tensor(back(2)))
    assert torch.equal(read(item.composite)[:3], as_tensor(composite(2)))


def test_a_row_without_boxes_says_so_when_it_is_read(tmp_path: Path) -> None:
    found = items(SourceSettings("prismlayers", str(prism(tmp_path, (10, 5, 10, 15)))))
    with pytest.raises(Rejected, match=r"parquet:1 has 2 layers, in the boxes .*\[10, 5, 10, 15\]"):
        found[1].foregrounds()
    (tmp_path / "data" / "toy-00000-of-00001.parquet").unlink()
    with pytest.raises(InputError, match=re.escape("not laid out as PrismLayers: it lacks *.parquet")):
        items(SourceSettings("prismlayers", str(tmp_path)))


def psd(path: Path, backdrop: bool = True, screen: bool = False) -> Path:
    from psd_tools import PSDImage
    from psd_tools.constants import BlendMode

    image = PSDImage.new("RGBA", (WIDTH, HEIGHT))
    if backdrop:
        image.create_pixel_layer(Image.fromarray(np.dstack([back(1), np.full((HEIGHT, WIDTH), 255, np.uint8)])), "back")
    mode = BlendMode.SCREEN if screen else BlendMode.NORMAL
    image.create_pixel_layer(Image.fromarray(front(1)), "one", blend_mode=mode)
    image.create_pixel_layer(Image.fromarray(front(2, 2)[:, 20:]), "two", left=20, opacity=128)
    image.save(path)
    return path


def test_files_of_layers_are_records(tmp_path: Path) -> None:
    psd(tmp_path / "a.psd")
    psd(tmp_path / "b.psd", backdrop=False)
    found = items(SourceSettings("layers", str(tmp_path), "art", "own work"))
    assert [(item.id, len(item.layers), item.background is None) for item in found] == [
        ("art/a", 2, False),
        ("art/b", 2, True),
    ]
    item = pickle.loads(pickle.dumps(found[0]))
    assert [str(handle) for handle in item.layers] == [f"{tmp_path}/a.psd:one", f"{tmp_path}/a.psd:two"]
    one, two = item.foregrounds()
    assert torch.equal(one[3], as_tensor(front(1))[3]) and one.shape == two.shape == (4, HEIGHT, WIDTH)
    assert torch.allclose(two[3], as_tensor(front(2, 2))[3] * 128 / 255, atol=1.01 / 255)
    assert torch.equal(read(item.background)[:3], as_tensor(back(1)))
    together = rgba.recompose([read(item.background), one, two])
    assert (read(item.composite) - together).abs().max() < 2.5 / 255
    (alone,) = items(SourceSettings("layers", str(tmp_path / "b.psd")))
    assert alone.id == "b/b" and alone.composite is None


def test_a_file_of_layers_that_blends_is_rejected_with_its_reason(tmp_path: Path) -> None:
    psd(tmp_path / "a.psd", screen=True)
    psd(tmp_path / "b.psd")
    (tmp_path / "c.ora").write_bytes(b"PK damaged")
    bad, good, damaged = items(SourceSettings("layers", str(tmp_path)))
    with pytest.raises(Rejected, match="'one' that is blended by screen"):
        bad.foregrounds()
    with pytest.raises(Rejected, match=r"c\.ora cannot be read"):
        damaged.foregrounds()
    assert len(good.foregrounds()) == 2


def test_a_merged_picture_that_is_another_one_is_rejected(tmp_path: Path) -> None:
    import zipfile

    stack = '<layer name="f" src="f.png"/><layer name="b" src="b.png"/>'
    with zipfile.ZipFile(tmp_path / "a.ora", "w") as archive:
        archive.writestr("stack.xml", f'<image w="{WIDTH}" h="{HEIGHT}"><stack>{stack}</stack></image>')
        for name, pixels in {"f": front(1), "b": back(1), "mergedimage": 255 - back(1)}.items():
            archive.writestr(f"{name}.png", picture_bytes(pixels))
    (item,) = items(SourceSettings("layers", str(tmp_path)))
    assert len(item.foregrounds()) == 1 and item.composite is not None
    with pytest.raises(Rejected, match="differs from its layers by 0.[0-9]+ on the mean, more than 0.02"):
        read(item.composite)


def test_photographs_are_cut_out_when_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(composite(1, 60, 80), tmp_path / "p" / "a.png")
    (item,) = items(SourceSettings("photographs", str(tmp_path), "photos", whole=True))
    assert item.id == "photos/p/a" and item.composite == tmp_path / "p" / "a.png"
    (layer,) = pickle.loads(pickle.dumps(item)).foregrounds()
    assert layer.shape == (4, 60, 80)
    from omnialpha import load

    expected = load().matte(Image.open(io.BytesIO((tmp_path / "p" / "a.png").read_bytes())))
    assert (layer - as_tensor(np.asarray(expected))).abs().max() < 1.01 / 255
    sources._model.cache_clear()
    (item,) = items(SourceSettings("photographs", str(tmp_path), model=str(tmp_path / "none")))
    with pytest.raises(InputError, match="none"):
        item.foregrounds()


def test_kinds_and_collections_have_names_of_their_own() -> None:
    assert not KINDS.keys() & COLLECTIONS.keys()
