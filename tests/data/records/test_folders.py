"""Training pictures from folders: a stream that depends on its index alone, true to its files, and clear mistakes."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from omnialpha import rgba
from omnialpha.data.records.folders import FolderPictures, find, find_transparent, scaled, split
from omnialpha.data.synthetic import bank as banks
from omnialpha.errors import InputError
from omnialpha.training.sources import FlattenedPictures, FolderSettings, folder_pictures

HEIGHT, WIDTH = 24, 40  # of the files


def ramp(number, height=HEIGHT, width=WIDTH):
    """(H, W, 4) uint8: red is the file's number, green the row, blue the column; alpha varies and is never 0."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([np.full_like(rows, number), rows, columns, 255 - rows - columns], axis=-1).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Ten pictures in two folders of a tree, of three formats."""
    for number in range(10):
        path = tmp_path / "tree" / ("a", "b/c")[number % 2] / f"{number}{('.png', '.webp', '.TIFF')[number % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ramp(number)).save(path, **({"lossless": True, "exact": True} if number % 3 == 1 else {}))
    return tmp_path / "tree"


def drawn(folder, index, batch, size, crop=1.0, flip=0.0, seed=0):
    """Batch `index` of the pictures of a folder."""
    return FolderPictures(tuple(find(folder)), batch, [size], seed, crop, flip)[index]


def numbers(x):
    """Which file each picture (B, 4, H, W) is of."""
    return (x[:, 0].mean((1, 2)) * 255).round().int().tolist()


# ---- the stream -----------------------------------------------------------------------------------------------------


def test_a_batch_depends_on_seed_and_index_alone(folder):
    first, again = (FolderPictures(tuple(find(folder)), 4, [(16, 16), (16, 24)]) for _ in range(2))
    wanted = [first[i] for i in (0, 1, 2)]
    assert [x.shape for x in wanted] == [(4, 4, 16, 16), (4, 4, 16, 24), (4, 4, 16, 16)]
    assert wanted[0].dtype == torch.float32 and all(torch.equal(again[i], wanted[i]) for i in (2, 0, 1))
    one = FolderPictures(first.files[:1], 4, [(16, 16)], crop=1.0)
    assert not torch.equal(one[0], one[1]), "the next epoch is cut anew"
    assert numbers(drawn(folder, 0, 10, (16, 16), seed=1)) != numbers(drawn(folder, 0, 10, (16, 16)))


@pytest.mark.parametrize("start", [0, -5])
def test_an_epoch_sees_every_file_once(folder, start):
    seen = [n for i in range(start, start + 5) for n in numbers(drawn(folder, i, 4, (16, 16)))]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:], "every epoch has an order of its own"


def test_a_crop_is_a_piece_of_its_file(folder):
    x = (drawn(folder, 0, 40, (10, 12)) * 255).round().int()
    corners = set()
    for picture in x:
        number, i, j = picture[:3, 0, 0].tolist()
        corners.add((i, j))
        assert picture.permute(1, 2, 0).tolist() == ramp(number)[i : i + 10, j : j + 12].tolist()
    assert {i for i, _ in corners} <= set(range(15)) and {j for _, j in corners} <= set(range(29))
    assert min(i for i, _ in corners) <= 2 and max(i for i, _ in corners) >= 12, "all places are met"
    assert min(j for _, j in corners) <= 3 and max(j for _, j in corners) >= 25


def test_a_whole_picture_is_scaled_to_cover_and_cut_at_the_centre(folder):
    for size, scale in (((12, 12), 0.5), ((12, 20), 0.5), ((48, 80), 2.0), ((48, 48), 2.0), ((24, 40), 1.0)):
        x = drawn(folder, 0, 2, size, crop=0.0) * 255
        middle = x[:, 1:3, size[0] // 2 - 1 : size[0] // 2 + 1, size[1] // 2 - 1 : size[1] // 2 + 1].mean((2, 3))
        assert middle[0].tolist() == pytest.approx([(HEIGHT - 1) / 2, (WIDTH - 1) / 2], abs=0.3)
        slopes = [float((x[0, c].movedim(c - 1, 0)[-2] - x[0, c].movedim(c - 1, 0)[1]).mean()) for c in (1, 2)]
        wanted = [(side - 3) / scale for side in size]
        assert slopes == pytest.approx(wanted, rel=0.06), "as many rows of the file to a pixel as columns"


def test_a_picture_that_is_too_small_is_scaled_just_enough(folder):
    x = drawn(folder, 0, 20, (48, 24)) * 255  # twice as high, narrower
    assert x[:, 1, 0].mean() < 1 and x[:, 1, -1].mean() > HEIGHT - 2
    width = x[:, 2, 0, -1] - x[:, 2, 0, 0]
    assert width.tolist() == pytest.approx([23 / 2] * 20, abs=0.6)
    assert len({round(float(v)) for v in x[:, 2, 0, 0]}) > 8, "the place along the long side is still drawn"


def test_shares_are_what_they_say(folder):
    flips = drawn(folder, 0, 400, (8, 8), flip=0.25)
    assert float((flips[:, 2, 0, 0] > flips[:, 2, 0, -1]).float().mean()) == pytest.approx(0.25, abs=0.08)
    wholes = drawn(folder, 0, 400, (8, 8), crop=0.75)
    assert float((wholes[:, 1, -1, 0] - wholes[:, 1, 0, 0] > 10 / 255).float().mean()) == pytest.approx(0.25, abs=0.08)


def test_for_validation_pictures_are_left_as_they_are(folder):
    (folder.parent / "other").mkdir()
    for number in range(40):
        Image.fromarray(ramp(number)).save(folder.parent / "other" / f"{number}.png")
    _, made = folder_pictures(FolderSettings([str(folder.parent / "other")], 0.5), 10, [(12, 20)])
    assert torch.equal(made[0], FolderPictures(made.files, 10, [(12, 20)], crop=0.0, flip=0.0)[0])


# ---- arithmetic -----------------------------------------------------------------------------------------------------


def test_flattening_is_a_composite_on_one_of_27_colours():
    x = torch.rand(600, 4, 2, 3, generator=torch.Generator().manual_seed(0)) * 0.9
    made = FlattenedPictures([x], 0.5, 1)[0]
    flat = (made[:, 3] == 1).flatten(1).all(1)
    assert torch.equal(made[~flat], x[~flat]) and 240 < int(flat.sum()) < 360
    seen, source = made[flat], x[flat]
    back = (seen[:, :3] - source[:, :3] * source[:, 3:]) / (1 - source[:, 3:])
    assert (back - back[:, :, :1, :1]).abs().max() < 1e-4 and ((back * 2).round() / 2 - back).abs().max() < 1e-4
    assert len({tuple((b * 2).round().int().tolist()) for b in back[:, :, 0, 0]}) == 27
    for share, wanted in ((0.0, x), (1.0, None)):
        made = FlattenedPictures([x], share, 1)[0]
        assert (made[:, 3] == 1).all() if wanted is None else torch.equal(made, wanted)


@pytest.mark.parametrize("size", [(29, 29), (7, 50), (150, 131), (64, 63)])
def test_no_edge_overshoots(size):
    """The corner of an opaque square is where a filter with negative taps is brightest."""
    x = torch.zeros(4, 64, 64)
    x[:3] = 1.0  # hidden colour
    x[:3, 20:44, 20:44] = torch.tensor([0.6, 0.3, 0.0])[:, None, None]
    x[3, 20:44, 20:44] = 1
    x[3, 0] = 1e-3
    made = scaled(x, size)
    premultiplied = rgba.premultiply(made)
    assert made.shape == (4, *size) and made.min() >= 0 and made.max() <= 1
    assert (premultiplied[:3] <= premultiplied[3:]).all()
    inside = torch.zeros(size, dtype=torch.bool)
    inside[round(size[0] * 0.2) : round(size[0] * 0.8)] = True  # away from the faint white row
    colours = made[:3, inside & (made[3] > 1e-4)]
    assert (colours - torch.tensor([0.6, 0.3, 0.0])[:, None]).abs().max() < 1e-5
    opaque = torch.cat([torch.rand(3, 64, 64), torch.ones(1, 64, 64)])
    assert (scaled(opaque, size)[3] == 1).all()


def test_layers_of_a_bank_do_not_overshoot(tmp_path, monkeypatch):
    monkeypatch.setattr(banks, "belongs", lambda content, split: split == "train")
    layer = np.full((64, 64, 4), 255, np.uint8)
    layer[..., 3] = 0
    layer[20:44, 20:44] = (150, 75, 0, 255)
    for kind in ("foregrounds", "backgrounds"):
        rows = [json.dumps({"file": "layer.png", "caption": "a square"})] * 2
        (tmp_path / f"{kind}.jsonl").write_text("\n".join(rows))
    Image.fromarray(layer).save(tmp_path / "layer.png")
    made = banks.read(tmp_path, 29, "train").foregrounds[0].int()
    solid = made[3] > 127
    assert (made[:3, solid] - torch.tensor([150, 75, 0])[:, None]).abs().max() <= 1 and (made[3] == 255).any()


# ---- files ----------------------------------------------------------------------------------------------------------


def test_the_split_is_disjoint_complete_and_never_moves(folder):
    train, test = split([folder], 0.5)
    assert 0 < len(test) < 10 and sorted(train + test) == sorted(find(folder)) and train == sorted(train)
    shutil.copytree(folder, folder.parent / "elsewhere")
    for file in find(folder.parent / "elsewhere"):
        file.rename(file.parent / f"renamed-{file.name}")
    moved = split([folder.parent / "elsewhere"], 0.5)[1]
    assert {p.name for p in moved} == {f"renamed-{p.name}" for p in test}, "what is in the file counts, not its name"
    for number in range(20, 40):
        Image.fromarray(ramp(number)).save(folder / f"new{number}.png")
        more = split([folder], 0.5)
        assert set(train) <= set(more[0]) and set(test) <= set(more[1])
    both = split([folder, folder.parent / "elsewhere"], 0.5)
    assert [len(part) for part in both] == [len(more[0]) + len(train), len(more[1]) + len(test)]


def test_folders_that_cannot_be_used(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    (tmp_path / "empty" / "._1.png").write_bytes(b"x")
    for name, words in (("missing", "missing is not a folder"), ("empty", r"empty holds no pictures \(.png, .webp")):
        with pytest.raises(InputError, match=words):
            find(tmp_path / name)
    with pytest.raises(InputError, match="tree has 10 pictures, 0 of which are held out: give more"):
        split([folder], 1e-9)
    with pytest.raises(InputError, match="held_out=64 is not a share of the pictures: use a number between 0 and 1"):
        split([folder], 64)
    with pytest.raises(InputError, match=r"flip=1.5 is not a share .* use 0 to 1"):
        drawn(folder, 0, 1, (8, 8), flip=1.5)


@pytest.mark.parametrize("kind", ["png", "jpg", "float tiff"])
def test_a_file_without_alpha(folder, kind):
    pixels = ramp(3)[..., :3]
    path = folder / f"z.{kind.split()[-1]}"
    if kind == "float tiff":
        import tifffile

        tifffile.imwrite(path, (pixels / 255).astype(np.float32), photometric="rgb")
    else:
        Image.fromarray(pixels).save(path)
    with pytest.raises(InputError, match=f"{path.name} has no alpha channel: give RGBA pictures, or opaque=true"):
        find_transparent(folder)
    assert find_transparent(folder, opaque=True)[-1] == path
    made = FolderPictures((path,), 1, [(24, 40)], crop=1.0, flip=0.0)[0]
    assert (made[:, 3] == 1).all() and made[0, 2, 0, -1] == pytest.approx(39 / 255, abs=0.02)


def test_a_palette_with_a_transparent_colour_has_alpha(folder):
    Image.fromarray(ramp(3)[..., 0]).convert("P").save(folder / "p.png", transparency=0)
    assert folder / "p.png" in find_transparent(folder)


def test_a_damaged_file_is_named(folder):
    whole = (folder / "a" / "0.png").read_bytes()
    (folder / "z.png").write_bytes(whole[: len(whole) - 40])
    with pytest.raises(InputError, match=r"z.png is damaged or cut off"):
        FolderPictures((folder / "z.png",), 1, [(8, 8)])[0]
    (folder / "z.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"z.png is not a picture in a known format"):
        split([folder])
