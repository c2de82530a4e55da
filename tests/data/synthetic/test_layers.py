"""Procedural layers: what is drawn, how soft it is, and that captions tell the truth."""

from __future__ import annotations

import numpy as np
import pytest

from omnialpha.data.synthetic import layers as synthetic
from omnialpha.data.synthetic.layers import (
    BACKGROUNDS,
    COLORS,
    KINDS,
    SOLID,
    background,
    color_name,
    dominant_color,
    draw,
)
from omnialpha.errors import InputError

SIZE = 64


def layers(kind: str, count: int = 6) -> list[tuple[np.ndarray, str]]:
    return [draw(kind, np.random.default_rng((7, i)), SIZE) for i in range(count)]


def shares(kind: str) -> tuple[float, float]:
    """Share of fully opaque and of partly covered pixels among the covered ones."""
    alpha = np.stack([rgba[..., 3] for rgba, _ in layers(kind, 12)])
    covered = (alpha > 5).sum()
    return (alpha > 250).sum() / covered, ((alpha > 5) & (alpha <= 250)).sum() / covered


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_depends_on_its_generator_alone(kind: str) -> None:
    pictures = layers(kind)
    for (rgba, caption), (again, same_caption) in zip(pictures, layers(kind), strict=True):
        assert rgba.shape == (SIZE, SIZE, 4) and rgba.dtype == np.uint8
        assert np.array_equal(rgba, again) and caption == same_caption
    assert len({rgba.tobytes() for rgba, _ in pictures}) == len(pictures)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [16, 96])
def test_a_layer_fills_the_square_without_being_cut_off(kind: str, size: int) -> None:
    for i in range(5):
        alpha = draw(kind, np.random.default_rng((3, i)), size)[0][..., 3].astype(float)
        rows, columns = np.nonzero(alpha > 8)
        assert max(np.ptp(rows), np.ptp(columns)) + 1 >= 0.5 * size
        border = np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
        assert (border > 128).mean() < 0.2


@pytest.mark.parametrize("kind", ["circle", "square", "hexagon", "heart", "blob"])
def test_solid_shapes_are_opaque_with_an_antialiased_rim(kind: str) -> None:
    opaque, partial = shares(kind)
    assert opaque > 0.85
    assert 0.01 < partial < 0.15


@pytest.mark.parametrize("kind", ["smoke", "glass", "bubble", "shadow", "glow", "veil"])
def test_see_through_kinds_are_mostly_soft(kind: str) -> None:
    opaque, partial = shares(kind)
    assert opaque < 0.02
    assert partial > 0.98


@pytest.mark.parametrize("kind", ["hair", "fur", "feather", "branches"])
def test_strands_have_soft_edges_everywhere(kind: str) -> None:
    opaque, partial = shares(kind)
    assert opaque > 0.02
    assert partial > 0.25


def test_smoke_stays_between_a_tenth_and_four_fifths() -> None:
    for rgba, _ in layers("smoke", 12):
        assert 0.55 * 255 < rgba[..., 3].max() <= 0.81 * 255


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("flame", "shadow")])
def test_colour_under_low_alpha_is_the_object_s_own(kind: str) -> None:
    """No black halo: where alpha is small or 0, colour is about as light as where it is large."""
    for rgba, caption in layers(kind, 8):
        light, alpha = rgba[..., :3].max(-1).astype(float), rgba[..., 3]
        inside = alpha > 0.5 * alpha.max()
        for faint in (alpha == 0, (alpha > 0) & (alpha < 60)):
            if faint.sum() > 20:
                assert light[faint].mean() > 0.7 * light[inside].mean() - 12, caption


def test_captions_name_the_measured_colour() -> None:
    right = total = 0
    for kind in SOLID:
        for rgba, caption in layers(kind, 20):
            right += f" {dominant_color(rgba)} " in f" {caption.text} "
            total += 1
    assert right / total >= 0.9


@pytest.mark.parametrize("kind", SOLID)
def test_captions_name_the_kind(kind: str) -> None:
    captions = [caption.text for _, caption in layers(kind, 20)]
    assert all(caption.name == kind for _, caption in layers(kind, 20))
    assert all(kind in caption and caption.split()[0] in ("a", "an") for caption in captions)
    assert len({caption.replace(color, "") for caption in captions for color in COLORS}) > 5


def test_words_are_quoted_in_the_caption() -> None:
    assert all(caption.text.count("'") == 2 for _, caption in layers("word"))


@pytest.mark.parametrize("name", COLORS)
def test_each_colour_is_called_by_its_name(name: str) -> None:
    assert color_name(COLORS[name]) == name
    rgba = np.full((8, 8, 4), 255, np.uint8)
    rgba[..., :3] = COLORS[name]
    assert dominant_color(rgba) == name


@pytest.mark.parametrize(
    ("rgb", "name"),
    [((255, 0, 0), "red"), ((0, 0, 255), "blue"), ((0, 255, 0), "green"), ((255, 255, 0), "yellow"),
     ((0, 0, 0), "black"), ((255, 255, 255), "white"), ((90, 50, 25), "brown"), ((20, 60, 25), "dark green"),
     ((190, 190, 194), "grey"), ((100, 100, 100), "grey"), ((45, 45, 45), "black"), ((255, 192, 203), "pink"),
     ((0, 128, 128), "teal"), ((0, 0, 128), "dark blue"),
     ((230, 230, 232), "white"), ((128, 0, 128), "purple"), ((255, 165, 0), "orange"), ((139, 69, 19), "brown"),
     ((135, 206, 235), "light blue"), ((245, 222, 179), "beige"), ((255, 105, 180), "pink"), ((200, 20, 30), "red")],
)  # fmt: skip
def test_common_colours_get_the_name_that_people_use(rgb: tuple[int, int, int], name: str) -> None:
    assert color_name(rgb) == name


def test_dominant_colour_is_weighted_by_alpha() -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:3] = (*COLORS["red"], 20)
    rgba[3:] = (*COLORS["blue"], 255)
    assert dominant_color(rgba) == "blue"


def test_bank_items_depend_on_seed_and_index_alone() -> None:
    count = len(KINDS) + 2
    pictures, captions = synthetic.bank(count, 32, seed=5)
    fewer, fewer_captions = synthetic.bank(3, 32, seed=5)
    other, _ = synthetic.bank(3, 32, seed=6)
    assert pictures.shape == (count, 32, 32, 4) and pictures.dtype == np.uint8 and len(captions) == count
    assert np.array_equal(pictures[:3], fewer) and captions[:3] == fewer_captions
    assert all((other[i] != fewer[i]).any() for i in range(3))
    assert KINDS[0] in captions[len(KINDS)].text


def test_backgrounds_are_deterministic_varied_and_captioned() -> None:
    count = 2 * len(BACKGROUNDS)
    pictures, captions = synthetic.backgrounds(count, 48, seed=1)
    again, _ = synthetic.backgrounds(count, 48, seed=1)
    assert pictures.shape == (count, 48, 48, 3) and pictures.dtype == np.uint8
    assert np.array_equal(pictures, again)
    assert len({p.tobytes() for p in pictures}) == count
    assert all(any(color in caption for color in COLORS) for caption in captions)
    assert synthetic.backgrounds(0, 48, seed=1)[0].shape == (0, 48, 48, 3)


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_a_background_of_each_kind_has_some_light_in_it(kind: str) -> None:
    for i in range(4):
        rgb, _ = background(np.random.default_rng(i), SIZE, kind)
        assert rgb.shape == (SIZE, SIZE, 3)
        assert kind == "plain" or rgb.astype(float).std() > 3


def test_unknown_kinds_and_tiny_sizes_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="'cirle'"):
        draw("cirle", rng, 32)
    with pytest.raises(InputError, match="size 4"):
        draw("circle", rng, 4)
    with pytest.raises(InputError, match="'wall'"):
        background(rng, 32, "wall")
