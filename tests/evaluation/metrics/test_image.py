"""Image metrics against skimage, closed forms and their own definitions."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.evaluation.metrics import image
from omnialpha.evaluation.metrics.backgrounds import BACKGROUNDS


def pictures(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two batches, the second a noisy copy of the first."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator)
    return (x + 0.1 * torch.randn(shape, generator=generator)).clamp(0, 1), x


# ---- a picture ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(11, 11), (24, 37), (64, 64)])
def test_psnr_and_ssim_are_those_of_skimage(size: tuple[int, int]) -> None:
    p, t = pictures(3, 3, *size)
    for k in range(3):
        a, b = (x[k].double().numpy() for x in (p, t))
        assert float(image.psnr(p, t)[k]) == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1), abs=1e-5)
        expected = structural_similarity(
            a, b, channel_axis=0, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert float(image.ssim(p, t)[k]) == pytest.approx(float(expected), abs=1e-5)


def test_equal_pictures() -> None:
    _, t = pictures(2, 3, 16, 16)
    assert image.psnr(t, t).tolist() == [image.PSNR_CEILING] * 2
    assert image.ssim(t, t).tolist() == pytest.approx([1, 1], abs=1e-6)


def test_psnr_of_a_known_error() -> None:
    t = torch.full((1, 4, 3, 3), 0.5)
    assert float(image.psnr(t + 0.1, t)) == pytest.approx(20, abs=1e-4)


def test_ssim_of_a_constant_shift() -> None:
    """Wang et al.: flat pictures differ in luminance alone, (2 p t + C1) / (p^2 + t^2 + C1) with C1 = .01^2."""
    p, t = torch.full((1, 3, 16, 16), 0.6), torch.full((1, 3, 16, 16), 0.5)
    assert float(image.ssim(p, t)) == pytest.approx((2 * 0.3 + 1e-4) / (0.36 + 0.25 + 1e-4), abs=1e-6)


def test_composites_on_the_nine_backgrounds() -> None:
    _, x = pictures(2, 4, 5, 6)
    made = image.composites(x)
    assert made.shape == (9, 2, 3, 5, 6) and len(set(BACKGROUNDS.values())) == 9
    alpha = x[:, 3:]
    yellow = x[:, :3] * alpha + torch.tensor([1.0, 1.0, 0.0]).view(3, 1, 1) * (1 - alpha)
    assert torch.allclose(made[list(BACKGROUNDS).index("yellow")], yellow)
    nothing = image.composites(torch.zeros(4, 1, 1))[:, :, 0, 0]
    assert torch.allclose(nothing, torch.tensor(list(BACKGROUNDS.values())))


def test_the_colour_error_sees_only_what_is_seen() -> None:
    t = torch.zeros(2, 4, 2, 2)
    t[0, 3, 0, 0] = 0.01  # hardly seen, but seen
    p = t.clone()
    p[:, 0] += 0.3  # red, everywhere
    assert image.color_error(p, t)[0] == pytest.approx(0.1)
    assert math.isnan(image.color_error(p, t)[1])


def test_a_picture_smaller_than_the_window() -> None:
    with pytest.raises(InputError, match="11 px or more, not 40x10"):
        image.ssim(torch.zeros(1, 3, 10, 40), torch.zeros(1, 3, 10, 40))


# ---- sets -----------------------------------------------------------------------------------------------------------


def whitened(n: int, d: int, seed: int = 0) -> Tensor:
    """(n, d) with mean exactly 0 and covariance exactly 1."""
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, d)))
    q = torch.linalg.qr(x - x.mean(dim=0))[0]
    return q * (n - 1) ** 0.5


@pytest.mark.parametrize("n", [6, 40])  # fewer vectors than entries, and more
def test_equal_sets_have_no_distance(n: int) -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((n, 12)))
    assert image.frechet(x, x) == pytest.approx(0, abs=1e-10)
    assert image.frechet(x, x.flip(0)) == pytest.approx(0, abs=1e-10)


def test_shifted_sets_are_apart_by_the_shift() -> None:
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((50, 8)))
    shift = torch.arange(8) / 4
    assert image.frechet(x, x + shift) == pytest.approx(float(shift.square().sum()), rel=1e-9)
    assert image.frechet(x[:5], x[:5] + shift) == pytest.approx(float(shift.square().sum()), rel=1e-9)


def test_diagonal_covariances() -> None:
    a, b = torch.linspace(0.1, 3, 6), torch.linspace(2, 0.5, 6)
    expected = float((a - b).square().sum())
    assert image.frechet(whitened(30, 6) * a, whitened(45, 6, seed=1) * b) == pytest.approx(expected, rel=1e-6)


def test_general_covariances_against_the_matrix_root() -> None:
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(2)
    a, b = (rng.standard_normal((60, 5)) @ rng.standard_normal((5, 5)) + rng.standard_normal(5) for _ in range(2))
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    assert image.frechet(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(float(expected), rel=1e-9)
    assert image.frechet(torch.from_numpy(b), torch.from_numpy(a)) == pytest.approx(float(expected), rel=1e-9)


def test_kid_is_the_mean_over_pairs() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((5, 4)), rng.standard_normal((6, 4)) + 0.5

    def mean(x: np.ndarray, y: np.ndarray, pairs: list[tuple[int, int]]) -> float:
        return float(np.mean([(x[i] @ y[j] / 4 + 1) ** 3 for i, j in pairs]))

    within = [mean(x, x, [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j]) for x in (a, b)]
    across = mean(a, b, [(i, j) for i in range(5) for j in range(6)])
    assert image.kid(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(sum(within) - 2 * across, rel=1e-9)


def test_kid_has_no_bias() -> None:
    generator = torch.Generator().manual_seed(0)
    runs = [image.kid(*torch.randn(2, 20, 4, generator=generator)) for _ in range(300)]
    spread = torch.tensor(runs).std() / len(runs) ** 0.5
    assert abs(sum(runs) / len(runs)) < 4 * float(spread)
    assert image.kid(torch.randn(200, 4, generator=generator), torch.randn(200, 4, generator=generator) + 1) > 1
