"""Banks and scenes: a record's picture is its layers, a seed is a record, and words tell where things are."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from omnialpha import rgba
from omnialpha.data.scene import Caption
from omnialpha.data.synthetic import bank as banks
from omnialpha.data.synthetic.bank import Bank
from omnialpha.data.synthetic.scenes import PLACES, _article, compose, place
from omnialpha.errors import InputError
from omnialpha.tasks import TASKS

SIZES = [(32, 32), (24, 40), (40, 24)]
SIDE = 48


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def stacked(scenes):
    """Pictures of scenes of as many layers: layers (B, K, 4, H, W), background and composite (B, 4, H, W)."""
    names = ("layers", "background", "composite")
    return SimpleNamespace(**{name: torch.stack([getattr(scene, name) for scene in scenes]) for name in names})


@pytest.fixture(scope="module")
def bank():
    return banks.procedural(20, 6, SIDE, seed=3)


@pytest.fixture(scope="module")
def disks():
    """Opaque disks that fill their square, in eight flat colours on black scenes: easy to measure."""
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    alpha = np.where(x**2 + y**2 < (SIDE / 2) ** 2, 255, 0)
    layers = np.zeros((8, 4, SIDE, SIDE), np.uint8)
    for i in range(8):
        layers[i, :3] = (np.array([i & 1, i >> 1 & 1, i >> 2]) * 200 + 30)[:, None, None]
        layers[i, 3] = alpha
    scenes = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)
    captions = tuple(Caption(f"disk {i}", f"disk {i}") for i in range(8))
    return Bank(torch.from_numpy(layers), captions, scenes, ("a dark room", "the night"))


# ---- scenes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("objects", [1, 2, 3])
@pytest.mark.parametrize("apart", [False, True])
def test_a_composite_is_its_layers_over_its_background(bank, size, objects, apart):
    scenes = stacked(compose(bank, 6, objects, size, seeded(1), apart))
    assert scenes.layers.shape == (6, objects, 4, *size)
    assert scenes.background.shape == scenes.composite.shape == (6, 4, *size)
    again = rgba.recompose([scenes.background, *scenes.layers.unbind(1)])
    assert (again - scenes.composite).abs().max() <= 1 / 255
    assert (scenes.composite[:, 3] == 1).all() and (scenes.background[:, 3] == 1).all()
    for tensor in (scenes.layers, scenes.background, scenes.composite):
        assert tensor.min() >= 0 and tensor.max() <= 1 and tensor.isfinite().all()
    assert (scenes.layers[:, :, 3].amax((2, 3)) > 0.1).all(), "every layer can be seen"
    assert (scenes.composite - scenes.background).abs().amax((1, 2, 3)).min() > 0.05


def test_every_layer_has_transparent_and_soft_pixels(bank):
    alpha = stacked(compose(bank, 24, 1, (40, 40), seeded(2))).layers[:, 0, 3]
    assert ((alpha == 0).float().mean((1, 2)) > 0.1).all()
    soft = ((alpha > 0.02) & (alpha < 0.98)).float().mean()
    assert 0.05 < soft < 0.6


def test_layers_keep_no_colour_where_nothing_is_seen(bank):
    layers = stacked(compose(bank, 8, 1, (32, 32), seeded(4))).layers[:, 0]
    hidden = layers[:, 3] == 0
    assert layers[:, :3].movedim(1, -1)[hidden].abs().max() == 0


def test_a_seed_is_a_scene(bank):
    made = [compose(bank, 3, 2, (32, 40), seeded(s), apart=True) for s in (7, 7, 8)]
    a, b, c = map(stacked, made)
    assert torch.equal(a.layers, b.layers) and torch.equal(a.composite, b.composite)
    for one, again in zip(made[0], made[1], strict=True):
        assert one.captions == again.captions and one.background_caption == again.background_caption
        assert one.items == again.items
    assert (a.composite - c.composite).abs().mean() > 0.01
    state = torch.get_rng_state()
    compose(bank, 3, 2, (32, 40), seeded(7))
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"


def overlap(layers):
    """Share of the smaller of two disks (B, 2, 4, H, W) that the other covers, (B,)."""
    alpha = layers[:, :, 3]
    return torch.minimum(alpha[:, 0], alpha[:, 1]).sum((1, 2)) / alpha.sum((2, 3)).amin(1)


@pytest.mark.parametrize("size", SIZES)
def test_objects_apart_overlap_little(disks, size):
    away = overlap(stacked(compose(disks, 128, 2, size, seeded(5), apart=True)).layers)
    free = overlap(stacked(compose(disks, 128, 2, size, seeded(5))).layers)
    assert away.max() < 0.12 and away.mean() < 0.01
    assert free.mean() > 0.15, "without it they do"


def test_objects_lie_within_the_picture(disks):
    """A disk's area tells its scale: none is cut off by more than a sliver."""
    layers = stacked(compose(disks, 128, 1, (40, 40), seeded(6))).layers[:, 0]
    rows, columns = (layers[:, 3].amax(axis) > 0.5 for axis in (2, 1))
    for seen in (rows, columns):
        first, last = seen.float().argmax(1), 39 - seen.flip(1).float().argmax(1)
        extent = (last - first + 1).float() / 40
        assert (extent > 0.3).all() and (extent < 1).any()


@pytest.mark.parametrize("size", SIZES)
def test_framed_layers_are_those_of_the_bank(bank, size):
    generator, short = seeded(8), min(size)
    (top, left) = ((side - short) // 2 for side in size)
    for scene in compose(bank, 6, 1, size, generator, framed=True):
        kept = rgba.premultiply(bank.foregrounds[scene.items[0]][None].float() / 255)
        wanted = F.interpolate(kept, size=(short, short), mode="bilinear", align_corners=False)
        made = rgba.premultiply(scene.layers)
        assert (made[..., top : top + short, left : left + short] - wanted).abs().max() < 0.01
        assert made[0, 3].sum() == pytest.approx(float(wanted[0, 3].sum()), rel=0.01), "nothing lies outside"


def centroid(alpha):
    """(x, y) in [-1, 1] of a mask (H, W)."""
    h, w = alpha.shape
    y = ((torch.arange(h) * 2 + 1) / h - 1)[:, None]
    x = ((torch.arange(w) * 2 + 1) / w - 1)[None]
    return torch.stack([(alpha * x).sum(), (alpha * y).sum()]) / alpha.sum()


@pytest.mark.parametrize("size", SIZES)
def test_place_words_match_what_is_seen(disks, size):
    scenes = compose(disks, 96, 2, size, seeded(9), apart=True)
    told = {}
    for scene in scenes:
        for k, caption in enumerate(scene.captions):
            found = re.fullmatch(r"a disk (\d) at the (.+)", caption.text)
            if not found:
                assert re.fullmatch(r"a disk \d", caption.text) and not caption.place
                continue
            assert (caption.name, caption.place, scene.items[k]) == (f"disk {found[1]}", found[2], int(found[1]))
            alpha = scene.layers[k, 3]
            where = centroid(alpha)
            # a centre within .04 of a border between two words may be called either
            near = {place(where + torch.tensor([dx, dy])) for dx in (-0.04, 0, 0.04) for dy in (-0.04, 0, 0.04)}
            assert found[2] in near, (found[2], where)
            told[found[2]] = told.get(found[2], 0) + 1
            color = (scene.layers[k, :3] * alpha).sum((1, 2)) / alpha.sum()
            index = int(found[1])
            wanted = torch.tensor([index & 1, index >> 1 & 1, index >> 2]) * 200 / 255 + 30 / 255
            assert (color - wanted).abs().max() < 0.02, "the caption is that of this layer"
    assert 0.5 < sum(told.values()) / 192 < 0.7
    assert {"left", "right", "top", "bottom"} <= told.keys()


def test_place():
    grid = [[place(torch.tensor([x, y])) for x in (-0.5, 0.0, 0.5)] for y in (-0.5, 0.0, 0.5)]
    assert grid == [list(row) for row in PLACES]
    assert place(torch.tensor([-0.26, -0.26])) == "top left" and place(torch.tensor([0.24, -0.24])) == "middle"


def test_single_objects_have_no_place(disks):
    scenes = compose(disks, 40, 1, (24, 24), seeded(1))
    assert all(re.fullmatch(r"a disk \d", scene.captions[0].text) for scene in scenes)


def test_articles():
    wanted = {
        "red mug": "a red mug",
        "old shoe": "an old shoe",
        "a cat": "a cat",
        "two birds": "two birds",
        "Apple": "an Apple",
    }
    assert {words: _article(words) for words in wanted} == wanted
    assert _article("green leaves") == "green leaves" and _article("the sea") == "the sea"


def test_full_captions(disks):
    scenes = compose(disks, 4, 2, (24, 24), seeded(1))
    for scene in scenes:
        a, c = (caption.text for caption in scene.captions)
        told = scene.prompt(TASKS["background_to_full"])
        assert told == f"{a} and {c} in front of {scene.background_caption}"
        assert scene.background_caption in ("a dark room", "the night")
        whole = replace(scene, full_caption="a still life")
        assert whole.prompt(TASKS["background_to_full"]) == "a still life"
        assert scene.prompt(TASKS["matting_auto"]) is None
        assert replace(scene, subject=(1,)).prompt(TASKS["matting_text"]) == c


def test_known_colours_are_named_in_some_wordings(disks):
    colored = replace(disks, captions=tuple(caption._replace(color="teal") for caption in disks.captions))
    words = [scene.captions[0].text for scene in compose(colored, 200, 1, (16, 16), seeded(1))]
    assert 0.5 < sum(w.startswith("a teal disk") for w in words) / 200 < 0.7


# ---- banks -----------------------------------------------------------------------------------------------------------


def test_procedural_items_depend_on_seed_and_index_alone(bank):
    assert bank.foregrounds.shape == (20, 4, SIDE, SIDE) and bank.foregrounds.dtype == torch.uint8
    assert bank.backgrounds.shape == (6, 3, SIDE, SIDE) and bank.size == SIDE
    assert len(bank.captions) == 20 and len(bank.background_captions) == 6
    smaller, other = banks.procedural(5, 2, SIDE, seed=3), banks.procedural(5, 2, SIDE, seed=4)
    assert torch.equal(smaller.foregrounds, bank.foregrounds[:5]) and smaller.captions == bank.captions[:5]
    assert torch.equal(smaller.backgrounds, bank.backgrounds[:2])
    assert not torch.equal(other.foregrounds, smaller.foregrounds)


def test_join(bank, disks):
    both = banks.join([bank, disks])
    assert len(both.captions) == len(both.foregrounds) == 28 and both.captions[20].text == "disk 0"
    assert torch.equal(both.foregrounds[20:], disks.foregrounds)
    assert both.background_captions[6:] == disks.background_captions


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Eight layers and six scenes in files of 20 px; three and two of them are held out."""
    held = set()
    monkeypatch.setattr(banks, "belongs", lambda content, split: (content in held) == (split == "test"))
    for kind, count in (("foregrounds", 8), ("backgrounds", 6)):
        rows = []
        for i in range(count):
            pixels = np.full((20, 20, 4 if kind == "foregrounds" else 3), 20 * i + 40, np.uint8)
            if kind == "foregrounds":
                pixels[..., 3] = 0
                pixels[5:15, 5:15, 3] = 255
                pixels[:5, :, :3] = 255  # hidden colour
            file = f"particle_{i}.png" if kind == "foregrounds" and i == 0 else f"{kind}_{i}.png"
            Image.fromarray(pixels).save(tmp_path / file)
            held |= {(tmp_path / file).read_bytes()} if i % 3 == 2 or i == 7 else set()
            rows.append(json.dumps({"file": file, "caption": f"{kind} {i}" if i != 1 else ""}))
        (tmp_path / f"{kind}.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_a_folder_is_split_once_and_for_all(folder):
    train, test = (banks.read(folder, 10, split) for split in ("train", "test"))
    assert (len(train.captions), len(test.captions)) == (5, 3)
    assert (len(train.background_captions), len(test.background_captions)) == (4, 2)
    every = sorted(caption.text for caption in (*train.captions, *test.captions))
    assert every == sorted(["object", *(f"foregrounds {i}" for i in range(8) if i != 1)])
    assert sorted((*train.background_captions, *test.background_captions)) == sorted(
        ["a place", *(f"backgrounds {i}" for i in range(6) if i != 1)]
    )
    again = banks.read(folder, 10, "test")
    assert again.captions == test.captions and torch.equal(again.foregrounds, test.foregrounds)


def test_layers_are_resized_without_their_hidden_colour(folder):
    both = banks.join([banks.read(folder, 10, split) for split in ("train", "test")])
    for layer, caption in zip(both.foregrounds, both.captions, strict=True):
        number = re.fullmatch(r"foregrounds (\d)", caption.text)
        if not number or number[1] == "0":
            continue
        seen = layer[3] > 60
        wanted = 20 * int(number[1]) + 40
        assert (layer[:3, seen].int() - wanted).abs().max() <= 0.2 * wanted, "the filter's ringing, but no white"
        assert seen.sum() >= 25


def test_white_particles_get_a_colour(folder):
    both = banks.join([banks.read(folder, 20, split) for split in ("train", "test")])
    particle = both.foregrounds[[caption.text for caption in both.captions].index("foregrounds 0")][:3, 10, 10].int()
    assert particle.max() <= 40 and particle.float().std() > 0, "tinted: it was grey 40"


def test_folders_that_are_no_bank(folder, monkeypatch):
    with monkeypatch.context() as changed:
        changed.setattr(banks, "belongs", lambda content, split: split == "train")
        with pytest.raises(InputError, match="has 8 rows, none held out .* give more"):
            banks.read(folder, 10, "test")
    (folder / "foregrounds.jsonl").unlink()
    with pytest.raises(InputError, match="foregrounds.jsonl is missing"):
        banks.read(folder, 10, "train")
