"""The canvas: best scale by exhaustive search, exact inverse, extremes."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omnialpha.canvas import Canvas, Grid, plan
from omnialpha.errors import InputError

NANO = Grid(multiple=16, picture_pixels=256 * 256, sample_pixels=3 * 256 * 256, upscale=True)
LARGE = Grid(multiple=32, picture_pixels=1024 * 1024, sample_pixels=1024 * 1024)


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def exhaustive(source: tuple[int, int], pictures: int, grid: Grid) -> tuple[Fraction, tuple[int, int]]:
    """Largest scale, then smallest area, over every size of the grid."""
    budget = min(grid.picture_pixels, grid.sample_pixels // pictures)
    sides = range(grid.multiple, min(budget // grid.multiple, grid.max_side) + 1, grid.multiple)
    best: tuple[Fraction, int, tuple[int, int]] | None = None
    for h in sides:
        for w in sides:
            if h * w <= budget:
                scale = min(Fraction(h, source[0]), Fraction(w, source[1]))
                scale = scale if grid.upscale else min(scale, Fraction(1))
                if best is None or (scale, -h * w) > best[:2]:
                    best = (scale, -h * w, (h, w))
    assert best is not None
    return best[0], best[2]


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 900), st.integers(1, 900)),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([8, 16, 32]),
    st.integers(32 * 32 * 4, 200 * 200),
)
def test_the_choice_equals_an_exhaustive_search(
    source: tuple[int, int], pictures: int, upscale: bool, multiple: int, sample: int
) -> None:
    grid = Grid(multiple, 128 * 128, sample, upscale, max_side=512)
    canvas = plan(source, pictures, grid)
    scale, size = exhaustive(source, pictures, grid)
    assert canvas.size == size
    assert canvas.content == (max(1, round(scale * source[0])), max(1, round(scale * source[1])))
    assert canvas.size[0] * canvas.size[1] * pictures <= sample
    assert all(c <= s for c, s in zip(canvas.content, canvas.size, strict=True))


@pytest.mark.parametrize("source", [(256, 256), (1, 1), (100, 37), (224, 255)])
def test_at_scale_one_fit_then_restore_is_bit_exact(source: tuple[int, int]) -> None:
    canvas = plan(source, 1, Grid(16, 256 * 256, 256 * 256, upscale=False))
    picture = noise(4, *source)
    assert canvas.content == source
    assert torch.equal(canvas.restore(canvas.fit(picture)), picture)


def test_the_padding_repeats_the_edge() -> None:
    fitted = Canvas((3, 5), (3, 5), (16, 16)).fit(noise(2, 4, 3, 5))
    assert torch.equal(fitted[..., :3, 10], fitted[..., :3, 4]) and torch.equal(fitted[..., 9, :], fitted[..., 2, :])


def test_a_photograph_comes_back_at_its_size_and_close() -> None:
    from skimage import data

    photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1).float() / 255
    picture = torch.cat([photo, torch.ones(1, 512, 512)])[:, :400, :301]
    canvas = plan((400, 301), 2, NANO)
    assert canvas.size[0] % 16 == 0 and canvas.size[0] * canvas.size[1] <= 256 * 256
    back = canvas.restore(canvas.fit(picture))
    assert back.shape == picture.shape and bool((back[3] == 1).all())
    assert (back - picture).abs().mean() < 0.03


@pytest.mark.parametrize("source", [(1, 1), (1, 20000), (20000, 1), (3, 9000), (7000, 5000)])
@pytest.mark.parametrize("grid", [NANO, LARGE])
def test_extreme_pictures_fit_and_come_back(source: tuple[int, int], grid: Grid) -> None:
    canvas = plan(source, 2, grid)
    assert min(canvas.content) >= 1 and max(canvas.size) <= grid.max_side
    if max(source) * min(source) < 10**6:
        picture = noise(4, *source)
        assert canvas.restore(canvas.fit(picture)).shape == picture.shape


def test_without_upscale_small_pictures_are_padded_only() -> None:
    assert plan((40, 50), 2, LARGE) == Canvas((40, 50), (40, 50), (64, 64))


def test_a_map_goes_the_same_way() -> None:
    canvas = plan((300, 200), 2, NANO)
    assert (canvas.fit(torch.ones(4, 300, 200)) - 1).abs().max() < 1e-5


def test_what_cannot_be_planned_is_refused_with_the_limit() -> None:
    with pytest.raises(InputError, match="5x0"):
        plan((0, 5), 1, NANO)
    with pytest.raises(InputError, match="at most 1024 pictures"):
        plan((10, 10), 2000, LARGE)
    with pytest.raises(InputError, match="0 pictures"):
        plan((10, 10), 0, LARGE)
    with pytest.raises(InputError, match="pass one of 6x5"):
        Canvas((5, 6), (5, 6), (16, 16)).fit(noise(4, 6, 5))
