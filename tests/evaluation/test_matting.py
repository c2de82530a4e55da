"""SAD, MSE and MAD against the original MATLAB code's values for integer-arithmetic pictures, and their laws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.evaluation.matting import measure, soft_iou

HEIGHT, WIDTH = 48, 64
Y, X = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")


def disk(y: int, x: int, radius: int, softness: int) -> Tensor:
    """A soft disk in 0..255: integer arithmetic, so that every machine draws the same."""
    inside = radius**2 - (Y - y) ** 2 - (X - x) ** 2
    return (inside * 255).div(softness, rounding_mode="floor").clamp(0, 255)


TRUE = torch.maximum(disk(24, 22, 16, 260), (disk(14, 52, 7, 60) * 3).div(4, rounding_mode="floor"))
CONST = torch.full_like(TRUE, 128)
DITHER = ((X * 7 + Y * 13) % 11 - 5) * 6
PREDICTED = {
    "same": TRUE,
    "shift": TRUE.roll(2, dims=1),
    "quant51": (TRUE + 25) // 51 * 51,
    "half": TRUE // 2,
    "scale90": TRUE * 9 // 10,
    "hole": TRUE.masked_fill(((Y - 24).abs() < 4) & ((X - 22).abs() < 5), 0),
    "dither": (TRUE + DITHER).clamp(0, 255),
    "ramp": X * 255 // (WIDTH - 1),
    "empty": TRUE * 0,
    "full": TRUE * 0 + 255,
    "invert": 255 - TRUE,
    "const128": CONST,
    "twocomp": TRUE.masked_fill(X < 32, 0),
    "tiny": (TRUE * 0).index_put((torch.tensor(24), torch.tensor(22)), torch.tensor(255)),
}
# case: SAD unknown, MSE unknown, SAD whole, MSE whole
GOLDEN = {
    "const128": (1.00825131, 0.202189341, 1.29267061, 0.198147789),
    "dither": (0.0959059149, 0.00345663354, 0.127007872, 0.00353493332),
    "empty": (0.198368669, 0.0339348391, 0.441125542, 0.0903418362),
    "full": (2.18063164, 0.867168307, 2.6308744, 0.803150833),
    "half": (0.0997725576, 0.00856346078, 0.221443176, 0.0227226745),
    "hole": (0, 0, 0.059376467, 0.0182311628),
    "invert": (2.00812125, 0.802206516, 2.57663512, 0.786985099),
    "quant51": (0.0317764767, 0.000933330273, 0.0476352833, 0.00106792373),
    "ramp": (1.04223144, 0.282864839, 1.43613756, 0.31005469),
    "same": (0, 0, 0, 0),
    "scale90": (0.0209882408, 0.000370433409, 0.0458274521, 0.000957324228),
    "shift": (0.0858431682, 0.00563641312, 0.105835341, 0.00495917117),
    "tiny": (0.198368669, 0.0339348391, 0.440156907, 0.0900265276),
    "twocomp": (0.120294139, 0.0209866744, 0.363050997, 0.0803145841),
}


def trimap() -> Tensor:
    grey = torch.where(disk(24, 22, 10, 1) > 0, 255, CONST)
    return grey.masked_fill((X >= 61) | (Y >= 44), 0)


@pytest.mark.parametrize("case", GOLDEN)
def test_equal_to_the_original_code(case: str) -> None:
    predicted, true, grey = (m / 255 for m in (PREDICTED[case], TRUE, trimap()))
    sad_unknown, mse_unknown, sad_whole, mse_whole = GOLDEN[case]
    unknown, whole = measure(predicted, true, grey, "unknown"), measure(predicted, true)
    assert float(unknown["sad"]) == pytest.approx(sad_unknown, rel=1e-4)
    assert float(unknown["mse"]) == pytest.approx(mse_unknown, rel=1e-4)
    assert float(whole["sad"]) == pytest.approx(sad_whole, rel=1e-4)
    assert float(whole["mse"]) == pytest.approx(mse_whole, rel=1e-4)
    assert float(whole["mad"]) == pytest.approx(sad_whole * 1000 / TRUE.numel(), rel=1e-4)
    assert float(unknown["mad"]) == pytest.approx(sad_unknown * 1000 / int((trimap() == 128).sum()), rel=1e-4)


def test_a_batch_is_its_pictures() -> None:
    predicted = torch.stack([PREDICTED[c] / 255 for c in GOLDEN])
    true, grey = (TRUE / 255).expand_as(predicted), (trimap() / 255).expand_as(predicted)
    for region in ("whole", "unknown"):
        together = measure(predicted, true, grey, region)
        for i in range(len(predicted)):
            alone = measure(predicted[i], true[i], grey[i], region)
            assert all(torch.equal(together[name][i], alone[name]) for name in together)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_mse_never_exceeds_mad(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    predicted, true = torch.rand(2, 3, 7, 5, generator=generator)
    figures = measure(predicted, true)
    assert bool((figures["mse"] <= figures["mad"]).all()) and bool((figures["mad"] <= 1).all())


def test_soft_iou_of_binary_masks_is_the_share_of_pixels() -> None:
    a, b = torch.zeros(2, 10, 10)
    a[:, :6], b[:, 4:] = 1, 1
    assert float(soft_iou(a, b)) == pytest.approx(20 / 100)
    assert float(soft_iou(a, a)) == 1
    assert float(soft_iou(a * 0, b * 0)) == 0  # nothing overlaps nothing


def test_mistakes_are_named() -> None:
    alpha = torch.rand(4, 4)
    with pytest.raises(InputError, match="'band'"):
        measure(alpha, alpha, alpha, "band")
    with pytest.raises(InputError, match="pass trimap="):
        measure(alpha, alpha, region="unknown")
    with pytest.raises(InputError, match="no unknown"):
        measure(
            alpha[None].repeat(2, 1, 1),
            alpha[None].repeat(2, 1, 1),
            torch.stack([alpha * 0, alpha * 0 + 0.5]),
            "unknown",
        )
    with pytest.raises(InputError, match=r"\(4, 4\) and \(4, 5\)"):
        measure(alpha, torch.rand(4, 5))
