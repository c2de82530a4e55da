"""RGBA arithmetic against values worked out by hand, and its identities."""

import math

import pytest
import torch

from omnialpha import rgba
from omnialpha.errors import InputError


def pixel(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None, None]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_premultiply_then_unpremultiply_is_the_identity_where_something_is_seen() -> None:
    picture = noise(2, 4, 9, 7).clamp(min=0.05)
    assert torch.allclose(rgba.unpremultiply(rgba.premultiply(picture)), picture, atol=1e-6)


def test_unpremultiply_makes_unseen_colour_black_and_finite() -> None:
    assert rgba.unpremultiply(pixel(0.3, 0.2, 0.1, 0.0)).flatten().tolist() == [0, 0, 0, 0]


def test_over_by_hand() -> None:
    out = rgba.over(pixel(1, 0, 0, 0.5), pixel(0, 0, 1, 0.5)).flatten()
    assert torch.allclose(out, torch.tensor([2 / 3, 0, 1 / 3, 0.75]))


def test_opaque_front_and_empty_front_are_exact() -> None:
    back, front = noise(4, 8, 8), noise(4, 8, 8, seed=1)
    back[3] = 1
    assert torch.equal(rgba.over(torch.cat([front[:3], torch.ones(1, 8, 8)]), back)[:3], front[:3])
    assert torch.equal(rgba.over(torch.cat([front[:3], torch.zeros(1, 8, 8)]), back), back)


def test_over_is_associative_and_recompose_is_its_fold() -> None:
    a, b, c = (noise(4, 6, 6, seed=s) for s in range(3))
    assert torch.allclose(rgba.over(a, rgba.over(b, c)), rgba.over(rgba.over(a, b), c), atol=1e-6)
    assert torch.allclose(rgba.recompose([c, b, a]), rgba.over(a, rgba.over(b, c)), atol=1e-6)


def test_recompose_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="0 layers"):
        rgba.recompose([])


def test_flatten_on_a_colour_a_picture_and_white() -> None:
    picture = pixel(1, 0, 0, 0.25)
    assert rgba.flatten(picture).flatten().tolist() == [1, 0.75, 0.75]
    assert rgba.flatten(picture, (0, 0, 1)).flatten().tolist() == [0.25, 0, 0.75]
    assert rgba.flatten(picture, torch.zeros(3, 1, 1)).flatten().tolist() == [0.25, 0, 0]


def test_checkerboard() -> None:
    board = rgba.checkerboard(5, 6, 2)
    assert board.shape == (3, 5, 6)
    assert board[0, 0, 0] == 1 and board[0, 0, 2] == board[0, 2, 0] and board[0, 0, 2] < 1 and board[0, 2, 2] == 1


def test_resize_does_not_bleed_hidden_colour() -> None:
    """Green under alpha 0 beside opaque red: no green may appear at the edge."""
    picture = torch.zeros(4, 32, 32)
    picture[0, :, :16], picture[1, :, 16:], picture[3, :, :16] = 1, 1, 1
    for size in ((8, 8), (50, 70), (31, 33)):
        out = rgba.resize(picture, size)
        assert out.shape == (4, *size) and out.min() >= 0 and out.max() <= 1
        assert (out[1] * out[3]).max() < 1e-6


def test_resize_keeps_an_opaque_picture_opaque_and_a_flat_one_flat() -> None:
    picture = torch.cat([noise(3, 40, 30), torch.ones(1, 40, 30)])
    assert bool((rgba.resize(picture, (17, 53))[3] == 1).all())
    flat = torch.full((2, 4, 20, 20), 0.4)
    assert torch.allclose(rgba.resize(flat, (7, 33)), torch.full((2, 4, 7, 33), 0.4), atol=1e-5)


def test_resize_to_the_same_size_is_the_same_tensor() -> None:
    picture = noise(4, 5, 5)
    assert rgba.resize(picture, (5, 5)) is picture


def test_psnr() -> None:
    a, b = torch.zeros(4, 2, 2), torch.full((4, 2, 2), 0.1)
    assert rgba.psnr(a, b) == pytest.approx(20, abs=1e-4)
    assert rgba.psnr(a, a) == math.inf
    b[:, 0] = 0
    mask = torch.tensor([[False, False], [True, True]])
    assert rgba.psnr(a, b, mask) == pytest.approx(20, abs=1e-4)
    with pytest.raises(InputError, match="0 pixels"):
        rgba.psnr(a, b, torch.zeros(2, 2))


def test_cover_takes_the_middle_in_the_shape_that_is_wanted() -> None:
    picture = torch.ones(4, 40, 40)
    picture[0] = torch.arange(40) / 40
    made = rgba.crop_to_fill(picture, (40, 20))
    assert torch.equal(made, picture[:, :, 10:30])
    assert torch.equal(rgba.crop_to_fill(picture, (40, 40)), picture)
    assert rgba.crop_to_fill(picture, (7, 300)).shape == (4, 7, 300)
    halved = rgba.crop_to_fill(picture, (10, 20))  # rows 10 to 30, at half the scale
    assert halved[0, 5].tolist() == pytest.approx([(k * 2 + 0.5) / 40 for k in range(20)], abs=0.01)


def test_opaque_adds_alpha_one() -> None:
    made = rgba.opaque(torch.full((2, 3, 4, 5), 0.25))
    assert made.shape == (2, 4, 4, 5) and made[:, 3].min() == 1 and made[:, :3].max() == 0.25
