"""Matting metrics against the original MATLAB code's figures, plain versions in scipy, and their laws."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from matting_oracle import GOLDEN, PREDICTED, TRIMAP, TRUE
from omnialpha.errors import InputError
from omnialpha.evaluation.metrics.matting import ALL, POINTWISE, REGIONS, largest_component, measure, soft_iou

pytest.importorskip("cv2")
CASES = sorted(PREDICTED)


def conn(p: Tensor, g: Tensor) -> float:
    return float(measure(p, g, names=["conn"])["conn"])


def grad(p: Tensor, g: Tensor, name: str = "grad") -> float:
    return float(measure(p, g, names=[name])[name])


def soft(seed: int, shape: tuple[int, ...] = (21, 34), softness: float = 2.0, steps: int = 255) -> np.ndarray:
    """Random clouds in [0, 1] of `steps` steps, float64."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    clouds = ndimage.gaussian_filter(noise, (0,) * (len(shape) - 2) + (softness,) * 2)
    return np.round(np.clip(0.5 + 0.4 * clouds / clouds.std(), 0, 1) * steps) / steps


# ---- the originals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "region"), GOLDEN)
def test_equal_to_the_original_code(case: str, region: str) -> None:
    predicted, true, trimap = (m.double() / 255 for m in (PREDICTED[case], TRUE, TRIMAP))
    figures = measure(predicted, true, trimap, region, names=ALL)
    wanted = GOLDEN[case, region]
    for name, figure in wanted.items():
        assert float(figures[name]) == pytest.approx(figure, rel=1e-4, abs=1e-12), name
    counted = TRUE.numel() if region == "whole" else int((TRIMAP == 128).sum())
    assert float(figures["mad"]) == pytest.approx(wanted["sad"] * 1000 / counted, rel=1e-4)


def test_all_28_rows_are_there() -> None:
    assert set(GOLDEN) == {(case, region) for case in CASES for region in REGIONS}


def test_float32_is_enough() -> None:
    for (case, region), wanted in GOLDEN.items():
        figures = measure(PREDICTED[case] / 255, TRUE / 255, TRIMAP / 255, region, names=wanted)
        for name, figure in wanted.items():
            assert float(figures[name]) == pytest.approx(figure, rel=1e-4, abs=1e-12), (case, region, name)


@pytest.mark.parametrize("region", REGIONS)
def test_a_batch_is_its_pictures_and_numpy_is_torch(region: str) -> None:
    predicted = torch.stack([PREDICTED[case] / 255 for case in CASES])
    true, trimap = ((m / 255).expand_as(predicted) for m in (TRUE, TRIMAP))
    together = measure(predicted, true, trimap, region, ALL)
    arrays = measure(predicted.numpy(), true.numpy(), trimap.numpy(), region, ALL)
    for i in range(len(CASES)):
        alone = measure(predicted[i], true[i], trimap[i], region, ALL)
        assert all(torch.equal(together[name][i], alone[name]) for name in ALL)
    assert all(torch.equal(together[name], arrays[name]) for name in ALL)
    assert all(f.shape == (len(CASES),) and f.dtype == torch.float64 for f in together.values())


def test_any_array_of_the_right_values_will_do() -> None:
    mask = soft(0, steps=1)
    wanted = measure(mask, mask * 0.5, names=ALL)
    frozen = mask.copy()
    frozen.setflags(write=False)
    for same in (mask.astype(np.uint8), mask.astype(bool), frozen, np.asfortranarray(mask), mask[::-1][::-1]):
        assert measure(same, mask * 0.5, names=ALL) == wanted
    half = torch.from_numpy(mask).bfloat16()
    assert measure(half, half * 0.5, names=ALL) == wanted
    assert measure(torch.from_numpy(mask).long(), mask * 0.5, names=ALL) == wanted


def test_a_region_and_the_rest_add_up_to_the_whole() -> None:
    """Gradients and components are of the whole picture; a region only says what is counted."""
    p, g = soft(1), soft(2)
    band = np.where(soft(3, steps=1) > 0, 0.5, 1.0)
    sums = ("sad", "grad", "grad_aim", "conn")
    parts = [measure(p, g, trimap, "unknown", sums) for trimap in (band, 1.5 - band)]
    for name, figure in measure(p, g, None, "whole", sums).items():
        assert float(parts[0][name] + parts[1][name]) == pytest.approx(float(figure), rel=1e-6)
        assert float(parts[0][name]) > 0


def test_nothing_is_lost_on_equal_mattes() -> None:
    for alpha in (soft(4), np.zeros((5, 6)), np.ones((1, 1)), np.full((2, 3), 0.5)):
        figures = measure(alpha, alpha, names=ALL)
        assert {name: float(figure) for name, figure in figures.items()} == dict.fromkeys(ALL, 0.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_mse_never_exceeds_mad(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    predicted, true = torch.rand(2, 3, 7, 5, generator=generator)
    figures = measure(predicted, true)
    assert bool((figures["mse"] <= figures["mad"]).all()) and bool((figures["mad"] <= 1).all())


# ---- gradient -------------------------------------------------------------------------------------------------------


SHAPES = [(21, 34), (3, 2), (1, 7), (129, 6), (300, 9)]  # less than the kernel has, and several bands of rows


def two(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(5).random((2, *shape)) * 0.7


@pytest.mark.parametrize("shape", SHAPES)
def test_grad_is_the_9x9_convolution(shape: tuple[int, int]) -> None:
    x = np.arange(-4, 5)
    kernel = np.outer(np.exp(-(x**2) / (2 * 1.4**2)), -x * np.exp(-(x**2) / (2 * 1.4**2)))
    kernel /= np.sqrt((kernel**2).sum())
    steep = []
    for alpha in two(shape):
        full = (alpha - alpha.min()) / np.ptp(alpha)
        steep.append(np.hypot(*(ndimage.convolve(full, k, mode="nearest") for k in (kernel, kernel.T))))
    assert grad(*two(shape)) == pytest.approx(((steep[0] - steep[1]) ** 2).sum() / 1000, rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_grad_of_aim_is_scipys_gaussian_derivative(shape: tuple[int, int]) -> None:
    orders = ((1, 0), (0, 1))
    steep = [np.hypot(*(ndimage.gaussian_filter(alpha, 1.4, order) for order in orders)) for alpha in two(shape)]
    assert grad(*two(shape), "grad_aim") == pytest.approx(((steep[0] - steep[1]) ** 2).sum() / 10, rel=1e-9)


def test_grad_does_not_see_contrast_but_that_of_aim_does() -> None:
    true = soft(7)
    faint = 0.4 + 0.1 * true
    assert grad(faint, true) == pytest.approx(0, abs=1e-20)
    assert grad(faint, true, "grad_aim") > 0.1
    assert float(measure(faint, true)["mad"]) > 0.1


def test_grad_of_a_flat_prediction_is_that_of_any_other() -> None:
    true = soft(8)
    assert grad(np.zeros_like(true), true) == grad(np.full_like(true, 0.3), true) > 0


# ---- connectivity ---------------------------------------------------------------------------------------------------


def plain_largest(mask: np.ndarray) -> np.ndarray:
    """scipy numbers components in the order of rows, so those of the transposed mask in MATLAB's order."""
    labels, count = ndimage.label(mask.T)
    sizes = np.bincount(labels.ravel())[1:]
    return (labels == 1 + sizes.argmax()).T if count else mask


def plain_conn(p: np.ndarray, g: np.ndarray) -> float:
    """The definition, one pixel and one threshold after the other."""
    p, g = p.astype(np.float32), g.astype(np.float32)
    inside = [plain_largest((p >= np.float32(k / 10)) & (g >= np.float32(k / 10))) for k in range(1, 11)]
    total = 0.0
    for at in np.ndindex(*p.shape):
        failed = next((k for k, component in enumerate(inside) if not component[at]), 10)
        steps = [alpha[at] - np.float32(failed / 10) for alpha in (p, g)]
        phi_p, phi_g = (1 - d * (d >= np.float32(0.15)) for d in steps)
        total += abs(phi_p - phi_g)
    return total / 1000


@pytest.mark.parametrize("density", [0.05, 0.4, 0.5, 0.6, 0.95])
def test_the_largest_component_is_scipys(density: float) -> None:
    for seed in range(20):
        mask = np.random.default_rng(seed).random((9, 13)) < density
        assert np.array_equal(largest_component(mask), plain_largest(mask)), seed


@pytest.mark.parametrize("softness", [0.3, 1.5, 4.0])
@pytest.mark.parametrize("steps", [1, 3, 10, 255])
def test_conn_is_its_definition(softness: float, steps: int) -> None:
    p, g = (np.pad(soft(seed, (14, 18), softness, steps), 3) for seed in (9, 10))  # padded: a box is cut out
    assert conn(p, g) == pytest.approx(plain_conn(p, g), rel=1e-6)


def test_diagonal_neighbours_are_not_connected() -> None:
    mask = np.eye(4, dtype=bool)
    mask[0, 1] = True
    assert largest_component(mask).sum() == 3  # (0, 0), (0, 1) and, below it, (1, 1)


def test_of_equal_components_the_first_by_columns_counts_as_in_matlab() -> None:
    mask = np.zeros((8, 8), dtype=bool)
    mask[0:2, 5:7] = mask[5:7, 1:3] = True  # the upper right one comes first by rows
    mask[7, 7] = True
    assert np.array_equal(np.argwhere(largest_component(mask)), [[5, 1], [5, 2], [6, 1], [6, 2]])
    assert np.array_equal(np.argwhere(largest_component(mask.T.copy())), [[5, 0], [5, 1], [6, 0], [6, 1]])
    true = mask * 1.0
    p = true.copy()
    p[5:7, 1:3] = 0.9  # .1 from its level where it is the component, .9 where it is not
    p[0:2, 5:7] = 0.8
    assert conn(p, true) == pytest.approx(4 * 0.2 / 1000, rel=1e-6)


def test_an_empty_prediction_is_not_perfect() -> None:
    true = soft(11)
    wanted = true[true >= 0.15].sum() / 1000
    assert conn(np.zeros_like(true), true) == pytest.approx(wanted, rel=1e-6)
    assert conn(true, np.zeros_like(true)) == pytest.approx(wanted, rel=1e-6)


def test_levels_are_compared_in_float32() -> None:
    """153/255 reaches .6 (in float64 it falls short of 6 x .1), so the truth is .4 above its level and not .5."""
    true = np.ones((4, 5))
    assert conn(np.full_like(true, 153 / 255), true) == pytest.approx(20 * 0.4 / 1000, rel=1e-6)


def test_threads_change_nothing() -> None:
    p, g = soft(12, (2, 40, 50)), soft(13, (2, 40, 50))
    before = torch.get_num_threads()
    try:
        figures = []
        for threads in (1, 4):
            torch.set_num_threads(threads)
            figures.append(measure(p, g, names=("grad", "conn")))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(figures[0][name], figures[1][name]) for name in ("grad", "conn"))


# ---- the rest -------------------------------------------------------------------------------------------------------


def test_soft_iou_of_binary_masks_is_the_share_of_pixels() -> None:
    a, b = torch.zeros(2, 10, 10)
    a[:, :6], b[:, 4:] = 1, 1
    assert float(soft_iou(a, b)) == pytest.approx(20 / 100)
    assert float(soft_iou(a, a)) == 1
    assert float(soft_iou(a * 0, b * 0)) == 0  # nothing overlaps nothing


def test_mistakes_are_named() -> None:
    alpha = torch.rand(4, 4)
    pair = alpha.expand(2, 4, 4)
    for message, call in {
        "'band'": lambda: measure(alpha, alpha, alpha, "band"),
        "'sda': use some of sad, ": lambda: measure(alpha, alpha, names=["sda"]),
        "pass trimap=": lambda: measure(alpha, alpha, region="unknown"),
        "no unknown": lambda: measure(pair, pair, torch.stack([alpha * 0, alpha * 0 + 0.5]), "unknown"),
        r"trimap has shape \(4, 5\)": lambda: measure(alpha, alpha, torch.rand(4, 5), "unknown"),
        "trimap holds 128, outside": lambda: measure(alpha, alpha, alpha * 0 + 128, "unknown"),
        r"\(4, 4\) and \(4, 5\)": lambda: measure(alpha, torch.rand(4, 5)),
        r"\(2, 1, 4, 4\)": lambda: measure(pair[:, None], pair[:, None]),
        "predicted alpha holds 255, .* divide 8-bit values by 255": lambda: measure(alpha * 0 + 255, alpha),
        "true alpha holds -0.5,": lambda: measure(alpha, alpha * 0 - 0.5),
        "predicted alpha holds nan": lambda: measure(alpha * float("nan"), alpha),
        r"shape \(0, 4\) has no pixel": lambda: measure(alpha[:0], alpha[:0]),
    }.items():
        with pytest.raises(InputError, match=message):
            call()
    measure(alpha * 0 + 1.00001, alpha)  # rounding is no mistake


def test_without_opencv_the_pointwise_metrics_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    alpha = soft(14)
    assert list(measure(alpha, alpha)) == list(POINTWISE)
    for name in ("grad", "grad_aim", "conn"):
        with pytest.raises(InputError, match=r"omnialpha\[eval\]"):
            measure(alpha, alpha, names=[name])
