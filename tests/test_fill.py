"""Filling a hole from the texture around it: what stays, what continues, and what is left where nothing matches."""

import pytest
import torch

from omnialpha import fill as module
from omnialpha import masks, rgba
from omnialpha.errors import InputError
from omnialpha.fidelity import finish_layers, removal_mask
from omnialpha.fill import blend, fill
from omnialpha.tasks import TASKS, Role


def checkerboard(height=96, width=96, cell=4):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    squares = ((y // cell + x // cell) % 2).float() * 0.6 + 0.2
    return rgba.opaque(squares.expand(3, -1, -1))


def box(height, width, top, bottom, left, right):
    hole = torch.zeros(height, width, dtype=torch.bool)
    hole[top:bottom, left:right] = True
    return hole


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_constant_colour_is_continued():
    image = torch.tensor([0.2, 0.5, 0.7, 1.0])[:, None, None].expand(4, 64, 64)
    hole = box(64, 64, 20, 40, 16, 50)
    assert (fill(image, hole) - image).abs().max() < 1e-5


@pytest.mark.parametrize("edges", [(40, 60, 30, 66), (80, 96, 60, 96), (0, 20, 30, 50)])
def test_a_periodic_texture_is_continued_also_at_the_border(edges):
    image, hole = checkerboard(), box(96, 96, *edges)
    spoilt = torch.where(hole, noise(4, 96, 96), image)
    spoilt[3] = 1
    assert (fill(spoilt, hole) - image)[:3, hole].abs().mean() < 0.02  # smooth interpolation has 0.3


def test_detail_that_a_smaller_copy_lacks_is_continued(monkeypatch):
    monkeypatch.setattr(module, "WORKING_HOLE", 400)
    image, hole = checkerboard(192, 192, 8), box(192, 192, 80, 120, 60, 110)
    made = fill(image, hole)
    assert (made - image)[:3, hole].abs().mean() < 0.1
    assert made[:, hole].std(dim=1)[0] > 0.8 * image[:, hole].std(dim=1)[0]


def test_pixels_outside_and_alpha_stay_bit_for_bit():
    image, hole = noise(4, 70, 81), box(70, 81, 30, 50, 20, 60)
    image[3, :10] = 0
    made = fill(image, hole, guide=noise(3, 9, 11, seed=1))
    assert torch.equal(made[:, ~hole], image[:, ~hole])
    assert torch.equal(made[3], image[3])
    assert not torch.equal(made[:3, hole], image[:3, hole])


def test_one_seed_gives_one_fill_and_what_is_in_the_hole_does_not_matter():
    image, hole = rgba.opaque(noise(3, 64, 64)), box(64, 64, 20, 40, 20, 40)
    other = torch.where(hole, 1 - image, image)
    other[3] = 1
    assert torch.equal(fill(image, hole, seed=3), fill(other, hole, seed=3))
    assert not torch.equal(fill(image, hole, seed=3), fill(image, hole, seed=4))


def test_the_guide_decides_between_textures():
    image = rgba.opaque(torch.cat([noise(1, 80, 160), torch.zeros(2, 80, 160)]))
    image[:3, :, 90:] = image[:3, :, 90:].roll(1, dims=0)  # red noise, then green noise
    hole, middle = box(80, 160, 24, 56, 24, 56), box(80, 160, 34, 46, 34, 46)
    guide = torch.tensor([0.5, 0.0, 0.0])[:, None, None].repeat(1, 80, 160)
    assert (fill(image, hole, guide)[0] > 0.05)[middle].float().mean() > 0.9
    guide[:, box(80, 160, 30, 50, 30, 50)] = torch.tensor([0.0, 0.5, 0.0])[:, None]
    assert (fill(image, hole, guide)[1] > 0.05)[middle].float().mean() > 0.5


def test_transparent_pixels_are_no_sources():
    image = rgba.opaque(torch.full((3, 80, 80), 0.25) + 0.1 * noise(3, 80, 80))
    image[:3, :30], image[3, :30] = 1.0, 0.0
    hole = box(80, 80, 30, 50, 30, 50)  # beside them
    made = fill(image, hole)
    assert made[:3, hole].max() <= 0.36


def test_sixteen_bits_are_kept():
    steps = torch.linspace(0, 1, 65536)[:9216].reshape(96, 96)  # a ramp in steps of one of 65,535
    image, hole = rgba.opaque(steps.expand(3, -1, -1)), box(96, 96, 40, 50, 40, 50)
    assert (fill(image, hole) - image)[:3, hole].abs().max() < 1 / 255


def test_with_too_little_around_the_guide_or_the_smoothest_fill_is_left():
    image, hole = rgba.opaque(torch.full((3, 40, 40), 0.3)), torch.ones(40, 40, dtype=torch.bool)
    guide = torch.full((3, 5, 5), 0.8)
    assert torch.allclose(fill(image, hole, guide)[:3], torch.tensor(0.8), atol=1e-4)
    with pytest.raises(InputError, match="covers all"):
        fill(image, hole)
    hole[:3, :3] = False
    assert torch.allclose(fill(image, hole)[:3], torch.tensor(0.3), atol=1e-4)


def test_an_empty_hole_changes_nothing_and_other_shapes_are_refused():
    image, hole = noise(4, 20, 20), torch.zeros(20, 20, dtype=torch.bool)
    assert torch.equal(fill(image, hole), image)
    with pytest.raises(InputError, match="does not fit"):
        fill(image, hole[:10])
    with pytest.raises(InputError, match="no picture"):
        fill(image, hole, torch.zeros(20, 20))


def test_a_removal_is_filled_where_the_model_saw_less_and_nothing_else_changes():
    image, hole = checkerboard(), box(96, 96, 40, 60, 30, 66)
    spoilt = rgba.opaque(torch.where(hole, 0.9, image[:3]))
    example = TASKS["removal_rough"].example(composite=spoilt, rough=masks.as_picture(hole.float()))
    made = rgba.opaque(torch.full((3, 96, 96), 0.5))
    small, same = torch.ones(24, 24), torch.ones(96, 96)
    filled = finish_layers(example, [made], [small], None, "auto")[0]
    assert (filled - image)[:3, hole].abs().mean() < 0.02
    assert torch.equal(filled[:, ~hole], image[:, ~hole])
    assert torch.equal(finish_layers(example, [made], [small], None, "off")[0][:, hole], made[:, hole])
    met = finish_layers(example, [made], [same], None, "auto")[0]
    assert torch.equal(met, torch.where(hole, blend(spoilt, hole, made[:3]), spoilt))


def test_blending_takes_off_what_the_model_is_wrong_by_around_the_hole():
    image, hole = checkerboard(), box(96, 96, 40, 60, 30, 66)
    spoilt = rgba.opaque(torch.where(hole, 0.9, image[:3]))
    assert torch.allclose(blend(spoilt, hole, image[:3])[:3], image[:3], atol=1e-4)
    brighter = blend(spoilt, hole, image[:3] + 0.15)  # a constant difference goes
    assert torch.allclose(brighter[:3], image[:3], atol=1e-4)
    assert torch.equal(brighter[:, ~hole], spoilt[:, ~hole])


def test_blending_on_a_flat_background_leaves_the_model_s_invention_out():
    image, hole = rgba.opaque(torch.full((3, 48, 48), 0.3)), box(48, 48, 16, 32, 16, 32)
    invented = torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(blend(image, hole, invented)[:3], image[:3], atol=1e-5)
    assert torch.equal(blend(image, hole & False, invented), image)


def test_a_model_s_share_has_a_limit_and_a_precise_mask_sets_it():
    image, hole = checkerboard(), box(96, 96, 40, 60, 30, 66)
    invented = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0)) * 0.2  # faint: no colour is clipped
    none, half, all_of_it = (blend(image, hole, invented, most) for most in (0.0, 0.5, 1.0))
    assert torch.equal(none, blend(image, hole, 1 - invented, 0.0)) and (all_of_it - none).abs().max() > 0.1
    assert all_of_it[:3, hole].min() > 0 and all_of_it[:3, hole].max() < 1
    assert torch.allclose(half, (none + all_of_it) / 2, atol=1e-5)

    example = TASKS["removal_precise"].example(composite=image, precise=masks.as_picture(hole.float()))
    filled = finish_layers(example, [rgba.opaque(invented)], [torch.ones(96, 96)], None, "auto")[0]
    where = removal_mask(hole.float(), Role.PRECISE)
    assert torch.equal(filled, torch.where(where, blend(image, where, invented, 0.5), image))


def test_blending_looks_at_no_transparent_pixel():
    image, hole = checkerboard(), box(96, 96, 40, 60, 30, 66)
    image[3, :, :20] = 0
    other = image.clone()
    other[:3, :, :20] = 1.0
    first, second = (blend(x, hole, torch.full((3, 96, 96), 0.5)) for x in (image, other))
    assert torch.equal(first[:, :, 20:], second[:, :, 20:]) and torch.equal(second[:, :, :20], other[:, :, :20])


def test_a_removal_of_all_that_is_seen_stays_the_model_s():
    image, made = checkerboard(), rgba.opaque(torch.full((3, 96, 96), 0.5))
    example = TASKS["removal_rough"].example(composite=image, rough=masks.as_picture(torch.ones(96, 96)))
    assert torch.equal(finish_layers(example, [made], [torch.ones(24, 24)], None, "auto")[0], made)


def test_what_a_layer_hides_is_filled_where_the_model_saw_less():
    image, hole = checkerboard(), box(96, 96, 40, 60, 30, 66)
    composite = rgba.opaque(torch.where(hole, 0.9, image[:3]))
    example = TASKS["decompose_alpha"].example(composite=composite, alpha=masks.as_picture(hole.float()))
    made = [rgba.opaque(torch.full((3, 96, 96), 0.5)), rgba.opaque(torch.full((3, 96, 96), 0.4))]
    coarse = [torch.ones(24, 24)] * 2
    back, front = finish_layers(example, made, coarse, None, "auto")
    assert (back - image)[:3, hole].abs().mean() < 0.02 and torch.equal(back[:, ~hole], image[:, ~hole])
    assert torch.equal(rgba.recompose([back, front]), composite)
    assert (finish_layers(example, made, coarse, None, "off")[0][:3, hole] == 0.5).all()
