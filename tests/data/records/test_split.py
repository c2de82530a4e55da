import json

import numpy as np
import pytest
from PIL import Image

from omnialpha.data.records import split as splits
from omnialpha.data.records.split import belongs, held_out, numbers
from omnialpha.data.synthetic import bank as banks
from omnialpha.data.synthetic import layers as synthetic
from omnialpha.evaluation.datasets import heldout
from omnialpha.training.sources import DataSettings, load_banks

NAMES = [f"item {i}".encode() for i in range(4000)]


def pictures(x):
    """The distinct pictures of (N, C, H, W) as bytes."""
    return {p.numpy().tobytes() for p in x}


def test_one_in_sixteen_is_held_out_and_larger_shares_hold_out_more():
    sides = {share: {n for n in NAMES if held_out(n, share)} for share in (1 / 16, 1 / 4)}
    assert len(sides[1 / 16]) / 4000 == pytest.approx(1 / 16, abs=0.012)  # three standard deviations
    assert sides[1 / 16] == {n for n in NAMES if held_out(n)} < sides[1 / 4]
    assert not any(held_out(n, 0) for n in NAMES) and all(held_out(n, 1) for n in NAMES)
    assert all(belongs(n, "test") == held_out(n) != belongs(n, "train") for n in NAMES)


def test_the_rule_is_the_digests_fraction_and_never_moves():
    """Changing this moves what models were trained on into what they are measured on."""
    assert [i for i in range(64) if held_out(str(i).encode())] == [29, 47]
    assert numbers("layer", 21, 3, 6, "test") == [303, 16, 2, 327, 70, 62]


def test_numbers_keep_kinds_even_and_split_them_without_rest():
    train, test = (numbers("layer", 5, 7, 140, side) for side in ("train", "test"))
    for side in (train, test):
        assert [i % 7 for i in side] == [place % 7 for place in range(140)]
        assert side[:10] == numbers("layer", 5, 7, 10, "train" if side is train else "test")
    assert not set(train) & set(test)
    below = min(train[-7:])  # up to here every number of every kind was asked for
    assert {i for i in range(below) if i not in train} == {i for i in test if i < below}
    assert numbers("background", 5, 7, 50, "test") != test[:50], "layers and backgrounds have sides of their own"


@pytest.mark.parametrize("seed", [0, 20, 21, 2021])
def test_no_recipe_trains_on_what_is_measured(seed):
    """Also with the seed that the test items have."""
    train, validated = load_banks(DataSettings(size=16, foregrounds=700, backgrounds=300, seed=seed))
    suite = heldout.open_source(side=16).bank
    assert len(suite.captions) == banks.TEST_FOREGROUNDS and len(suite.background_captions) == banks.TEST_BACKGROUNDS
    assert pictures(validated.foregrounds) == pictures(suite.foregrounds)
    assert not pictures(train.foregrounds) & pictures(suite.foregrounds)
    assert not pictures(train.backgrounds) & pictures(suite.backgrounds)


def test_the_weights_from_before_the_split_have_not_seen_the_suites_layers():
    """They were trained on the first 4,000 items of seed 20, of both sides."""
    seen = {synthetic.draw(synthetic.KINDS[i % len(synthetic.KINDS)], np.random.default_rng((20, i)), 8)[0].tobytes()
            for i in range(700)}  # fmt: skip
    layers = synthetic.bank(40, 8, banks.TEST_SEED, "test")[0]
    assert banks.TEST_SEED != 20 and not seen & {p.tobytes() for p in layers}


@pytest.fixture
def folder(tmp_path):
    """120 foregrounds and 120 backgrounds, each another plain picture; add(kind, i) gives one more."""

    def add(kind, i):
        pixels = np.full((4, 4, 4 if kind == "foregrounds" else 3), 255, np.uint8)
        pixels[..., :2] = i, 90
        Image.fromarray(pixels).save(tmp_path / f"{kind}-{i}.png")
        with (tmp_path / f"{kind}.jsonl").open("a") as rows:
            rows.write(json.dumps({"file": f"{kind}-{i}.png", "caption": f"{kind} {i}"}) + "\n")

    for kind in ("foregrounds", "backgrounds"):
        for i in range(120):
            add(kind, i)
    return tmp_path, add


def test_a_folders_files_stay_on_their_side_whatever_the_seed(folder):
    place, add = folder
    before = [load_banks(DataSettings(16, [str(place)], 0, 0, seed)) for seed in (0, 20, 77)]
    suite = heldout.open_source(place, side=16).bank
    for train, test in before:
        assert (train.captions, test.captions) == (before[0][0].captions, suite.captions)
        assert not pictures(train.foregrounds) & pictures(suite.foregrounds)
        assert not pictures(train.backgrounds) & pictures(suite.backgrounds)
    assert len(before[0][0].captions) + len(suite.captions) == 120
    for i in range(120, 160):
        add("foregrounds", i)
        add("backgrounds", i)
    train, test = (banks.read(place, 16, side) for side in ("train", "test"))
    assert set(before[0][0].captions) < set(train.captions) and set(suite.captions) < set(test.captions)
    assert (
        set(suite.background_captions) < set(test.background_captions)
        and len(train.background_captions) + len(test.background_captions) == 160
    )


def test_equal_files_fall_on_one_side(folder):
    place, _ = folder
    for kind in ("foregrounds", "backgrounds"):
        rows = [json.loads(line) for line in (place / f"{kind}.jsonl").read_text().splitlines()]
        for row in rows:
            (place / f"copy-{row['file']}").write_bytes((place / row["file"]).read_bytes())
        again = [row | {"file": f"copy-{row['file']}"} for row in rows]
        (place / f"{kind}.jsonl").write_text("\n".join(json.dumps(row) for row in rows + again))
    train, test = (banks.read(place, 16, side) for side in ("train", "test"))
    assert not set(train.captions) & set(test.captions)
    assert not set(train.background_captions) & set(test.background_captions)
    assert len(train.captions) + len(test.captions) == 240


def test_there_is_no_third_split():
    with pytest.raises(AssertionError):
        numbers("layer", 0, 1, 1, "validation")
    assert splits.SPLITS == ("train", "test")
