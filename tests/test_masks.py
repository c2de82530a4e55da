"""Masks against brute-force disk morphology."""

import numpy as np
import pytest
import torch
from skimage.morphology import dilation, disk, erosion

from omnialpha import masks
from omnialpha.errors import InputError


def blobs(seed: int, height: int = 41, width: int = 53) -> torch.Tensor:
    """A soft random matte with definite, soft and empty regions, touching the border."""
    coarse = torch.rand(1, 1, 6, 7, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0, 0]
    return ((smooth - 0.4) * 4).clamp(0, 1)


def brute_force(mask: np.ndarray, radius: float) -> np.ndarray:
    """Dilation by definition: some true pixel within Euclidean distance <= radius."""
    rows, columns = np.indices(mask.shape)
    true_rows, true_columns = np.nonzero(mask)
    squared = (rows[..., None] - true_rows) ** 2 + (columns[..., None] - true_columns) ** 2
    return (squared <= radius**2).any(-1)


@pytest.mark.parametrize("radius", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seed", [0, 1])
def test_erosion_and_dilation_equal_disk_morphology_exactly(radius: int, seed: int) -> None:
    mask = blobs(seed) > 0.5
    # The border is not a boundary: pad with what is neutral for each.
    wide = np.pad(mask.numpy(), radius, constant_values=True)
    inner = (slice(radius, -radius),) * 2
    assert np.array_equal(masks.erode(mask, radius).numpy(), erosion(wide, disk(radius))[inner])
    wide = np.pad(mask.numpy(), radius, constant_values=False)
    assert np.array_equal(masks.dilate(mask, radius).numpy(), dilation(wide, disk(radius))[inner])


@pytest.mark.parametrize("radius", [0, 0.5, 1.5, 2.24, 6.7])
def test_fractional_radii_equal_the_definition(radius: float) -> None:
    mask = blobs(2) > 0.5
    assert np.array_equal(masks.dilate(mask, radius).numpy(), brute_force(mask.numpy(), radius))
    assert np.array_equal(masks.erode(mask, radius).numpy(), ~brute_force(~mask.numpy(), radius))


def test_full_and_empty_masks_stay_as_they_are() -> None:
    full, empty = torch.ones(7, 9, dtype=torch.bool), torch.zeros(7, 9, dtype=torch.bool)
    assert masks.erode(full, 3).all() and masks.dilate(full, 3).all()
    assert not masks.erode(empty, 3).any() and not masks.dilate(empty, 3).any()


def test_trimap_precise_and_rough_by_their_definitions() -> None:
    alpha, radius = blobs(3), 4
    trimap = masks.trimap(alpha, radius)
    inside = ~brute_force((alpha <= 0.95).numpy(), radius)
    reach = brute_force((alpha > 0.5 / 255).numpy(), radius)
    assert np.array_equal(trimap.numpy(), np.where(inside, 1, np.where(reach, 0.5, 0)))
    assert set(trimap.unique().tolist()) == {0, 0.5, 1}
    assert torch.equal(masks.rough(alpha, radius), (trimap > 0).float())
    assert torch.equal(masks.precise(alpha), (alpha > 0.95).float())


def test_certain_parts_of_a_trimap_are_right() -> None:
    alpha = blobs(4)
    trimap = masks.trimap(alpha, 3)
    assert bool((alpha[trimap == 1] > 0.95).all()) and bool((alpha[trimap == 0] <= 0.5 / 255).all())


def test_an_8_bit_one_counts_as_present_and_noise_below_does_not() -> None:
    alpha = torch.zeros(9, 9)
    alpha[4, 4] = 1 / 255
    assert masks.rough(alpha, 0).sum() == 1
    alpha[4, 4] = 0.4 / 255
    assert masks.rough(alpha, 3).sum() == 0


def test_bad_shapes_and_radii_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(4, 1, 3, 3\)"):
        masks.erode(torch.zeros(4, 1, 3, 3), 1)
    with pytest.raises(InputError, match="-1"):
        masks.erode(torch.zeros(3, 3), -1)


def test_radius_is_uniform_in_5_to_10_percent_and_seeded() -> None:
    generator = torch.Generator().manual_seed(0)
    radii = torch.tensor([masks.draw_radius(200, 300, generator) for _ in range(2000)])
    assert radii.min() >= 10 and radii.max() <= 20 and abs(radii.mean() - 15) < 0.3 and abs(radii.std() - 2.89) < 0.2
    assert masks.draw_radius(200, 300, torch.Generator().manual_seed(7)) == masks.draw_radius(
        300, 200, torch.Generator().manual_seed(7)
    )


def test_as_picture_is_opaque_grey() -> None:
    picture = masks.as_picture(blobs(5))
    assert picture.shape == (4, 41, 53) and bool((picture[3] == 1).all())
    assert torch.equal(picture[0], picture[2]) and torch.equal(picture[1], blobs(5))
    assert masks.as_picture(torch.zeros(2, 5, 6)).shape == (2, 4, 5, 6)


# ---- clicks and boxes -----------------------------------------------------------------------------------------------


def test_a_click_is_a_disk_and_nothing_else_is_known() -> None:
    marked = masks.marks((200, 300), points=[(30.5, 50.5)])  # 2 % of 200 px: radius 4
    rows, columns = np.indices((200, 300))
    assert np.array_equal(marked.numpy(), ((rows - 50) ** 2 + (columns - 30) ** 2 <= 16).astype(np.float32))
    small = masks.marks((1, 1), points=[(0, 0)])
    assert small.tolist() == [[1]], "in the smallest picture too"
    corners = masks.marks((8, 6), points=[(0, 0), (5.9, 7.9, False)])
    assert (corners[0, 0], corners[7, 5]) == (1, -1) and int((corners != 0).sum()) == 2


def test_all_outside_a_box_is_background_and_within_nothing_is_known() -> None:
    marked = masks.marks((10, 20), boxes=[(4, 2, 6, 5)])
    wanted = torch.full((10, 20), -1.0)
    wanted[2:7, 4:10] = 0
    assert torch.equal(marked, wanted)
    assert torch.equal(masks.marks((10, 20), boxes=[(4.4, 2.4, 6, 5, True)]), wanted), "pixels count by their centres"
    assert not masks.marks((10, 20), boxes=[(-5, -5, 100, 100)]).any(), "a box may reach beyond the picture"


def test_several_boxes_and_marks_of_what_is_not_meant() -> None:
    two = masks.marks((10, 20), boxes=[(0, 0, 4, 4), (10, 5, 4, 4)])
    assert int((two == 0).sum()) == 32 and two[2, 2] == two[6, 12] == 0 and two[2, 12] == -1
    denied = masks.marks((10, 20), boxes=[(10, 5, 4, 4, False)])
    assert int((denied == -1).sum()) == 16 and int((denied == 0).sum()) == 200 - 16, "alone it says nothing of the rest"
    for order in (1, -1):  # a hole in a box, whichever is given first
        boxes = [(2, 2, 8, 6), (4, 4, 2, 2, False)][::order]
        marked = masks.marks((10, 20), boxes=boxes)
        assert marked[5, 5] == -1 and marked[3, 3] == 0 and int((marked == 0).sum()) == 48 - 4
    clicked = masks.marks((10, 20), points=[(15.5, 5.5), (3.5, 3.5, False)], boxes=[(2, 2, 8, 6)])
    assert clicked[5, 15] == 1 and clicked[3, 3] == -1, "clicks count more than boxes"


@pytest.mark.parametrize("point", [(20, 5), (5, 10), (-1, 5), (5, -0.5)])
def test_a_click_outside_the_picture_is_refused(point: tuple[float, float]) -> None:
    with pytest.raises(InputError, match=rf"the point {point[0]:g},{point[1]:g} lies outside the 20x10 px picture"):
        masks.marks((10, 20), points=[point])


@pytest.mark.parametrize("box", [(20, 2, 5, 5), (2, 10, 5, 5), (2, 2, 0, 5), (2, 2, 5, 0.2)])
@pytest.mark.parametrize("wanted", [True, False])
def test_a_box_that_holds_no_pixel_is_refused(box: tuple[float, ...], wanted: bool) -> None:
    with pytest.raises(InputError, match=rf"the box {box[0]},{box[1]},.* holds no pixel of the 20x10 px picture"):
        masks.marks((10, 20), boxes=[(*box, wanted)])
