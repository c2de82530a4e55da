"""Refinement on a hair-like matte over photographs: better than upsampling, exact where it must be."""

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data, draw
from torch import Tensor

from omnialpha import masks
from omnialpha import refine as module
from omnialpha.errors import InputError
from omnialpha.refine import coarse_trimap, enlarge, guided_upsample, refine

SIDE = 192


@cache
def scene(photo: str, glass: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """A disk with strands over a photograph: image (4, H, W), true alpha (H, W), true colour (3, H, W)."""
    rng, big = np.random.default_rng(0), SIDE * 2
    alpha = np.zeros((big, big), np.float32)
    middle, radius = big / 2, big * 0.22
    alpha[draw.disk((middle, middle), radius)] = 1
    for _ in range(120):
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(1.1, 1.6) * radius
        ends = [(middle + r * np.sin(a), middle + r * np.cos(a)) for r, a in ((radius, angle), (length, angle + 0.15))]
        rows, columns, value = draw.line_aa(*(int(v) for end in ends for v in end))
        alpha[rows, columns] = np.maximum(alpha[rows, columns], value)
    if glass:
        alpha[draw.disk((middle, middle), radius * 0.5)] = 0.4
    true = torch.from_numpy(alpha).reshape(SIDE, 2, SIDE, 2).mean((1, 3))
    picture = {"astronaut": data.astronaut, "cat": data.cat}[photo]()[:SIDE, :SIDE] / 255
    back = torch.from_numpy(picture).permute(2, 0, 1).float()
    shade = torch.linspace(0, 0.1, SIDE).expand(SIDE, SIDE)
    front = torch.stack([0.35 + shade, 0.2 + shade.T, torch.full_like(shade, 0.1)])
    return torch.cat([front * true + back * (1 - true), torch.ones(1, SIDE, SIDE)]), true, front


def coarse_and_upsampled(true: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    coarse = F.interpolate(true[None, None], scale_factor=1 / factor, mode="area")[0, 0]
    return coarse, F.interpolate(coarse[None, None], size=true.shape, mode="bilinear")[0, 0]


# the strands have nearly the colour of the cat's fur, which is the hardest case for matting by colour; here the colours
# that are sampled nearby cost a little, where on photographs they gain much
@pytest.mark.parametrize(("photo", "bound"), [("astronaut", 0.4), ("cat", 1.0)])
@pytest.mark.parametrize("factor", [2, 4])
def test_the_unknown_band_is_better_than_bilinear(photo: str, bound: float, factor: int) -> None:
    image, true, _ = scene(photo)
    coarse, upsampled = coarse_and_upsampled(true, factor)
    band = enlarge(coarse_trimap(coarse), true.shape) == 0.5
    refined = refine(image, coarse)
    before, after = ((a - true).abs()[band].mean() for a in (upsampled, refined[3]))
    assert after < bound * before, (float(before), float(after))


def test_certain_pixels_are_certain_and_opaque_colour_is_the_image_s_own() -> None:
    image, true, _ = scene("astronaut")
    coarse, _ = coarse_and_upsampled(true, 4)
    refined = refine(image, coarse)
    assert refined.shape == image.shape and refined.min() >= 0 and refined.max() <= 1
    middle = slice(SIDE // 2 - 20, SIDE // 2 + 20)
    assert bool((refined[3, middle, middle] == 1).all()) and bool((refined[3, :10] == 0).all())
    solid = refined[3] == 1
    assert torch.equal(refined[:3, solid], image[:3, solid])


def test_the_background_s_colour_is_taken_out_of_the_edge() -> None:
    image, true, front = scene("astronaut")
    refined = refine(image, coarse_and_upsampled(true, 2)[0])
    edge = (true > 0.2) & (true < 0.8)
    spill, left = ((c[:, edge] - front[:, edge]).abs().mean() for c in (image[:3], refined[:3]))
    assert left < 0.7 * spill, (float(spill), float(left))


def test_glass_stays_see_through() -> None:
    image, true, _ = scene("cat", glass=True)
    refined = refine(image, coarse_and_upsampled(true, 2)[0])
    middle = slice(SIDE // 2 - 12, SIDE // 2 + 12)
    assert (refined[3, middle, middle] - 0.4).abs().mean() < 0.1


def test_full_empty_and_uncertain_mattes_stay_what_they_are() -> None:
    image, _, _ = scene("cat")
    assert bool((refine(image, torch.ones(48, 48))[3] == 1).all())
    assert torch.equal(refine(image, torch.ones(48, 48)), image)
    assert bool((refine(image, torch.zeros(48, 48))[3] == 0).all())
    assert (refine(image, torch.full((48, 48), 0.5))[3] - 0.5).abs().max() < 1e-3


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (2, 3), (5, 200)])
def test_tiny_pictures(size: tuple[int, int]) -> None:
    refined = refine(torch.rand(4, *size), torch.rand(1, 2))
    assert refined.shape == (4, *size) and bool(refined.isfinite().all())


def test_above_the_working_size_the_guide_keeps_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    image, true, _ = scene("astronaut")
    coarse, upsampled = coarse_and_upsampled(true, 4)
    monkeypatch.setattr(module, "WORKING_PIXELS", SIDE * SIDE // 4)
    assert module.working_size(torch.zeros(SIDE, SIDE)) == (SIDE // 2, SIDE // 2)
    refined = refine(image, coarse)
    assert refined.shape == image.shape
    band = enlarge(coarse_trimap(coarse), true.shape) == 0.5
    assert (refined[3] - true).abs()[band].mean() < 0.8 * (upsampled - true).abs()[band].mean()


def test_guided_upsampling_follows_a_step_edge_that_bilinear_blurs() -> None:
    full = torch.zeros(3, 64, 64)
    full[:, :, 29:] = 1
    small = F.interpolate(full[None], size=(16, 16), mode="area")[0]
    guided = guided_upsample(small[0], small, full)
    bilinear = F.interpolate(small[:1][None], size=(64, 64), mode="bilinear")[0, 0]
    assert (guided - full[0]).abs().mean() < 0.2 * (bilinear - full[0]).abs().mean()


def edge(softness: float) -> Tensor:
    """Coarse alpha (64, 64) that rises from left to right over so many pixels."""
    return ((torch.arange(64) - 31.5) / softness + 0.5).clamp(0, 1).expand(64, 64)


def test_the_band_is_narrow_at_a_sharp_edge_and_wide_at_a_soft_one() -> None:
    widths = [int((coarse_trimap(edge(softness))[32] == 0.5).sum()) for softness in (0.01, 4, 12)]
    assert widths[0] == 2 and widths[1] == 8 and widths[2] == 14, widths


def test_faint_specks_are_no_subjects_and_faint_glass_is_one() -> None:
    coarse = torch.zeros(64, 64)
    coarse[20:44, 20:44] = 1
    speck, bright, large = coarse.clone(), coarse.clone(), coarse.clone()
    speck[4:6, 4:6], bright[4:6, 4:6], large[2:12, 2:62] = 0.4, 0.9, 0.4
    assert torch.equal(module.without_specks(speck), coarse)
    assert torch.equal(module.without_specks(bright), bright) and torch.equal(module.without_specks(large), large)
    image = torch.cat([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.ones(1, 64, 64)])
    assert bool((refine(image, speck)[3, :12] == 0).all())


def test_small_gaps_amid_the_subject_are_filled_and_glass_is_not() -> None:
    solid = torch.zeros(64, 64)
    solid[8:56, 8:56] = 1
    eye, glass, faint, rim = (solid.clone() for _ in range(4))
    eye[20:28, 20:28] = 0.7
    glass[16:48, 16:48] = 0.7  # too large a part of the subject
    faint[20:28, 20:28] = 0.45
    rim[8:12, 20:28] = 0.3  # a soft edge
    assert torch.equal(module.without_gaps(eye), solid)
    for kept in (glass, faint, rim, torch.full((8, 8), 0.7), torch.zeros(8, 8)):
        assert torch.equal(module.without_gaps(kept), kept)


def test_a_user_s_trimap_holds_and_beats_the_automatic_one() -> None:
    image, true, _ = scene("astronaut")
    trimap = masks.trimap(true, 3)
    wrong = torch.full((48, 48), 0.5)  # a finder that knows nothing
    refined = refine(image, wrong, trimap)
    known = trimap != 0.5
    assert torch.equal(refined[3, known], trimap[known])
    assert (refined[3] - true).abs()[~known].mean() < 0.3 * (0.5 - true).abs()[~known].mean()


def test_a_trimap_of_one_colour_needs_no_solving() -> None:
    image, _, _ = scene("cat")
    assert torch.equal(refine(image, torch.rand(8, 8), torch.ones(SIDE, SIDE)), image)
    assert bool((refine(image, torch.rand(8, 8), torch.zeros(SIDE, SIDE))[3] == 0).all())


def test_a_translucent_picture_stays_at_most_as_opaque_and_keeps_its_colour_inside() -> None:
    image, true, _ = scene("astronaut")
    image[3] = 0.6
    image[3, 90:102, 90:102] = 0
    refined = refine(image, coarse_and_upsampled(true, 2)[0])
    assert bool((refined[3] <= image[3]).all())
    middle = slice(SIDE // 2 - 20, SIDE // 2 + 20)
    assert torch.equal(refined[:, middle, middle], image[:, middle, middle])


def test_strips_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    image, true, _ = scene("cat")
    trimap = masks.trimap(true, 3)[:70, 20:90].clone()
    alpha, known, pixels = trimap.double().numpy(), (trimap != 0.5).numpy(), module._pixels(image[:3, :70, 20:90])
    made = []
    for rows in (7, 70):
        monkeypatch.setattr(module, "STRIP", rows)
        made.append(module._system(pixels.astype(np.float64), alpha, known))
    assert abs(made[0][0] - made[1][0]).max() < 1e-9 and np.abs(made[0][1] - made[1][1]).max() < 1e-9
    assert made[0][0].shape == (int((~known).sum()),) * 2


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="trimap"):
        refine(torch.rand(4, 5, 5), torch.rand(2, 2), torch.full((5, 5), 0.3))
    with pytest.raises(InputError, match=r"\(4, 4\)"):
        refine(torch.rand(4, 5, 5), torch.rand(2, 2), torch.ones(4, 4))
    with pytest.raises(InputError, match=r"\(3, 5, 5\)"):
        refine(torch.rand(3, 5, 5), torch.rand(2, 2))
    with pytest.raises(InputError, match="finite"):
        refine(torch.rand(4, 5, 5), torch.full((2, 2), float("nan")))
