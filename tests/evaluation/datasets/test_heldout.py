"""Held-out scenes are fixed, usable, and speak rightly of what is in them."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from omnialpha import rgba
from omnialpha.data.synthetic import bank
from omnialpha.data.synthetic import layers as synthetic
from omnialpha.errors import InputError
from omnialpha.evaluation.datasets import heldout
from omnialpha.evaluation.datasets.heldout import HeldOutSource

SIZE = (32, 48)


@pytest.fixture(scope="module")
def source() -> HeldOutSource:
    return heldout.open_source(side=32)


def test_equal_arguments_give_equal_scenes(source: HeldOutSource) -> None:
    a, b, other = (heldout.draw(source, 6, SIZE, seed, objects=2) for seed in (3, 3, 4))
    assert torch.equal(a.layers, b.layers) and torch.equal(a.rough, b.rough)
    assert [scene.captions for scene in a.scenes] == [scene.captions for scene in b.scenes]
    assert not torch.equal(a.composite, other.composite)


def test_scenes_are_whole_records(source: HeldOutSource) -> None:
    held = heldout.draw(source, 6, SIZE, 0)
    assert len(held) == 6 and held.layers.shape == (6, 1, 4, *SIZE) and held.rough.shape == (6, *SIZE)
    again = rgba.recompose([held.background, held.target])
    assert torch.allclose(again, held.composite, atol=1e-5)
    assert bool(((held.trimap == 0).flatten(1).any(1) & (held.rough == 0).flatten(1).any(1)).all())
    assert bool((held.rough[held.target[:, 3] > 0.01] == 1).all())


def test_two_objects_are_asked_for_in_turn_and_named_as_drawn(source: HeldOutSource) -> None:
    held = heldout.draw(source, 12, SIZE, 0, objects=2)
    assert [scene.subject for scene in held.scenes] == [(0,), (1,)] * 6
    assert torch.equal(held.target[1], held.layers[1, 1]) and torch.equal(held.other[1], held.layers[1, 0])
    for scene in held.scenes:
        for caption, item in zip(scene.captions, scene.items, strict=True):
            assert caption.name == source.bank.captions[item].name and caption.color == source.colors[item]
            assert re.search(rf"\b{caption.name}\b", caption.text) and caption.place
            assert " at the " not in caption.text or caption.text.endswith(f" at the {caption.place}")
    (asked, other), *_ = held.phrases("{name} at the {place}")
    first, second = (scene.captions for scene in held.scenes[:2])
    assert first[0].name in asked and other.endswith(f"at the {first[1].place}")
    assert held.phrases("")[1] == (second[1].text, second[0].text)


def test_every_procedural_caption_has_a_plain_noun() -> None:
    _, captions = synthetic.bank(700, 8, seed=5)
    nouns = {caption.name for caption in captions}
    assert len(nouns) < 70  # words for things, not whole captions
    assert all(re.search(rf"\b{c.name}\b", c.text) and re.search(rf"\b{c.color}\b", c.text) for c in captions)
    assert not [n for n in nouns if any(color in n.split() for color in synthetic.COLORS)]


@pytest.mark.parametrize(
    ("words", "said"),
    [("red hair", "red hair"), ("cross", "a cross"), ("arrow at the top", "an arrow at the top"), ("twigs", "twigs")],
)
def test_articles(source: HeldOutSource, words: str, said: str) -> None:
    held = heldout.draw(source, 1, SIZE, 0, objects=2)
    assert held.phrases(words)[0][0] == said


def test_a_folder_gives_its_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: set[bytes] = set()
    monkeypatch.setattr(bank, "belongs", lambda content, split: (content in held) == (split == "test"))
    layers, captions = synthetic.bank(8, 32, seed=1)
    scenes, places = synthetic.backgrounds(5, 32, seed=1)
    for kind, pictures, words in (("foregrounds", layers, captions), ("backgrounds", scenes, places)):
        rows = []
        for i, (pixels, caption) in enumerate(zip(pictures, words, strict=True)):
            Image.fromarray(pixels).save(tmp_path / f"{kind}-{i}.png")
            held |= {(tmp_path / f"{kind}-{i}.png").read_bytes()} if i % 3 == 1 else set()
            text = getattr(caption, "text", caption)
            rows.append(json.dumps({"file": f"{kind}-{i}.png", "caption": text}))
        (tmp_path / f"{kind}.jsonl").write_text("\n".join(rows))
    source = heldout.open_source(tmp_path, side=32)
    test, train = (bank.read(tmp_path, 32, split) for split in ("test", "train"))
    assert torch.equal(source.bank.foregrounds, test.foregrounds) and len(source.bank.captions) == 3
    assert not set(source.bank.captions) & set(train.captions)
    assert tmp_path.name in source.about and str(tmp_path) not in source.about
    assert len(heldout.draw(source, 2, (32, 32), 0)) == 2


def test_zero_scenes_are_refused(source: HeldOutSource) -> None:
    with pytest.raises(InputError, match="n=0"):
        heldout.draw(source, 0, SIZE, 0)
