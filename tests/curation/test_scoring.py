"""Maps as the paper derives them, the score by hand, and who is kept by it."""

import math

import cv2
import numpy as np
import pytest
import torch

from omnialpha import masks, rgba
from omnialpha.curation.candidate import Rejected
from omnialpha.curation.scoring import maps, scores, select, split
from omnialpha.data.records.split import held_out


def disk(radius: float) -> np.ndarray:
    reach = np.arange(-math.floor(radius), math.floor(radius) + 1)
    return (reach[:, None] ** 2 + reach[None] ** 2 <= radius**2).astype(np.uint8)


def soft(seed: int, height: int = 48, width: int = 61) -> torch.Tensor:
    """An alpha with all levels, in 8 bits, that touches the border."""
    noise = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    wide = (smooth - smooth.mean()) / smooth.std() * 0.5 + 0.6
    return torch.from_numpy((wide.clip(0, 1) * 255).round().astype(np.uint8) / np.float32(255))


@pytest.mark.parametrize("radius", [0.0, 1.0, 2.5, 4.3, 9.0])
def test_published_maps_are_grey_erosion_and_dilation_by_a_disk(radius: float) -> None:
    """OpenCV's grey morphology, outside the picture neither eroding nor dilating."""
    for seed in range(3):
        alpha = soft(seed)
        levels = (alpha * 255).round().byte().numpy()
        eroded, dilated = cv2.erode(levels, disk(radius)), cv2.dilate(levels, disk(radius))
        made = maps(alpha, radius, "published")
        expected = np.where(eroded == 255, 1.0, np.where(dilated == 0, 0.0, 0.5))
        assert np.array_equal(made["trimap"].numpy(), expected)
        assert np.array_equal(made["rough"].numpy(), (expected > 0).astype(np.float32))
        assert torch.equal(made["precise"], (alpha > 0.95).float()) and torch.equal(made["alpha"], alpha)


def test_training_draws_its_definite_foreground_from_precise() -> None:
    alpha = soft(7)
    ours, published = maps(alpha, 3.0, "training"), maps(alpha, 3.0, "published")
    assert torch.equal(ours["trimap"], masks.trimap(alpha, 3.0)) and torch.equal(ours["rough"], published["rough"])
    wider = (ours["trimap"] == 1).sum() - (published["trimap"] == 1).sum()
    assert int(wider) > 0 and bool((ours["trimap"] >= published["trimap"]).all())


def test_the_score_by_hand() -> None:
    """Two pixels: one solid, one of half alpha; a third that is empty."""
    front = torch.tensor([[1.0, 0.8, 0.3], [0.0, 0.4, 0.3], [0.0, 0.0, 0.3], [1.0, 0.5, 0.0]])[:, None]
    back = rgba.opaque(torch.tensor([[0.2, 0.6, 0.1], [0.2, 0.6, 0.1], [0.2, 0.6, 0.1]])[:, None])
    whole = rgba.opaque(torch.tensor([[0.9, 0.7, 0.3], [0.1, 0.5, 0.1], [0.0, 0.2, 0.1]])[:, None])
    # recomposed: (1, 0, 0), (.7, .5, .3), (.1, .1, .1)
    recomposition = ((0.01 + 0.01) + 0.01 + 0.04) / 3
    literal = (0.02 + (0.45**2 + 0.15**2 + 0.1**2)) / 2
    premultiplied = (0.02 + 0.1**2) / 2  # of the second pixel (.4, .2, 0) against (.4, .2, -.1)
    made = scores(front, back, whole)
    assert made["recomposition"] == pytest.approx(recomposition)
    assert made["literal_foreground"] == pytest.approx(literal)
    assert made["premultiplied_foreground"] == pytest.approx(premultiplied)
    assert made["literal"] == pytest.approx(0.6 * literal + 0.4 * recomposition)
    assert made["premultiplied"] == pytest.approx(0.6 * premultiplied + 0.4 * recomposition)


def test_only_the_literal_score_charges_a_perfect_soft_composite() -> None:
    alpha = torch.linspace(0.1, 1, 40).expand(1, 30, 40)
    front = torch.cat([torch.full((3, 30, 40), 0.8), alpha])
    back = rgba.opaque(torch.rand(3, 30, 40, generator=torch.Generator().manual_seed(0)))
    hard = torch.cat([front[:3], torch.ones_like(alpha)])
    soft_made, hard_made = (scores(one, back, rgba.opaque(rgba.recompose([back, one]))) for one in (front, hard))
    assert hard_made["literal"] == hard_made["premultiplied"] == pytest.approx(0, abs=1e-12)
    assert soft_made["literal"] > 0.1
    assert soft_made["premultiplied"] == soft_made["recomposition"] == pytest.approx(0, abs=1e-12)


def test_an_empty_foreground_has_no_score() -> None:
    clear, back = torch.zeros(4, 3, 3), rgba.opaque(torch.rand(3, 3, 3))
    with pytest.raises(Rejected, match="nowhere above 0.05"):
        scores(clear, back, back)


FIGURES = {"a": 0.1, "b": 0.2, "c": 0.2, "d": 0.201, "e": 0.5}


def test_the_best_are_kept_and_ties_go_by_name() -> None:
    made = select(FIGURES, 2, None, 0.01, {})
    assert made.kept == ("a", "b") and made.cut == 0.2 and set(made.near) == {"b", "c", "d"}
    made = select(FIGURES, None, 0.3, 0.5, {})
    assert made.kept == ("a", "b", "c", "d") and made.cut == 0.3 and set(made.near) == {"b", "c", "d"}
    assert select(FIGURES, None, None, 0.1, {}).kept == tuple("abcde")
    assert select(FIGURES, 9, None, 0.1, {}).cut is None
    assert select({"a": 0.201}, None, 0.2, 0.01, {}).near == ("a",) == select({"a": 0.2}, None, 0.2, 0.01, {}).kept
    assert select({"a": math.nan, "b": 0.5}, 1, None, 0.1, {}).kept == ("b",)


def test_decisions_come_first() -> None:
    made = select(FIGURES, 2, None, 0.01, {"a": "reject", "e": "accept"})
    assert made.kept == ("b", "e")
    assert select(FIGURES, None, 0.15, 0.01, {"e": "accept", "a": "reject"}).kept == ("e",)
    assert select(FIGURES, 1, None, 0.01, {"d": "accept", "e": "accept"}).kept == ("d", "e")


def test_a_split_is_a_property_of_the_foreground_alone() -> None:
    digests = {f"i{k}": f"{k:064x}" for k in range(500)}
    made = split(digests, 0.1)
    assert made == {name: "test" if held_out(d.encode(), 0.1) else "train" for name, d in digests.items()}
    assert 25 < list(made.values()).count("test") < 80
    few = dict(list(digests.items())[:50])
    assert split(few, 0.1).items() <= made.items()
    counted = split(digests, 100)
    assert [name for name, side in counted.items() if side == "test"] == [f"i{k}" for k in range(100)]
