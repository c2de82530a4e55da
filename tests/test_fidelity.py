"""What a task leaves unchanged is the input's, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from omnialpha import masks, rgba
from omnialpha.fidelity import (
    SNAP,
    match_composite,
    refine_foregrounds,
    removal_mask,
    restore_unchanged,
    snap_alpha,
    without_holes,
)
from omnialpha.tasks import MAPS, TASKS, Role

SIZE = (40, 60)
AUTO_OR_MAP = ("auto", "alpha", "trimap", "precise", "rough")


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def disk(radius=12, soft=4.0, center=(18, 28)):
    """A soft-edged disk's alpha (H, W): 1 within, 0 without, a ramp `soft` pixels wide."""
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    distance = ((y - center[0]) ** 2 + (x - center[1]) ** 2).float().sqrt()
    return ((radius - distance) / soft + 0.5).clamp(0, 1)


def composite(seed=0):
    return torch.cat([noise(3, *SIZE, seed=seed), torch.ones(1, *SIZE)])


def layer(alpha, seed):
    return torch.cat([noise(3, *SIZE, seed=seed), alpha[None]])


def unclipped(layers):
    """Where no colour of any layer had to be cut to [0, 1], (H, W) bool."""
    colours = torch.stack([one[:3] for one in layers])
    return ((colours > 0) & (colours < 1)).all(0).all(0)


def map_of(role, alpha):
    return {
        Role.ALPHA: alpha,
        Role.TRIMAP: masks.trimap(alpha, 3.0),
        Role.PRECISE: masks.precise(alpha),
        Role.ROUGH: masks.rough(alpha, 3.0),
    }[role]


def example(name, alpha=None, **settings):
    row = TASKS[name]
    given = {
        role: map_of(role, disk() if alpha is None else alpha) if role in MAPS else composite() for role in row.inputs
    }
    if row.text:
        settings["prompt"] = "a mug"
    return row.example(given, size=SIZE, **settings)


# ---- matting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n, row in TASKS.items() if row.category == "matting"])
def test_a_matte_has_the_pictures_colour_where_it_is_solid(name):
    request = example(name)
    made = layer(disk(radius=10), 5)
    (kept,) = restore_unchanged(request, [made])
    solid = kept[3] == 1
    assert 100 < solid.sum() < solid.numel() / 2
    assert torch.equal(kept[:3, solid], request.inputs[0][:3, solid])
    assert torch.equal(kept[:3, ~solid], made[:3, ~solid])
    assert (kept[:3, solid] - made[:3, solid]).abs().max() > 0.1, "the model's colours were others"


def test_a_trimaps_known_regions_are_kept():
    request = example("matting_trimap")
    trimap = request.inputs[1][0]
    made = layer(0.05 + 0.9 * noise(*SIZE, seed=3), 5)
    (kept,) = restore_unchanged(request, [made])
    assert (kept[3][trimap == 1] == 1).all() and (kept[3][trimap == 0] == 0).all()
    unknown = trimap == 0.5
    assert min((trimap == value).sum() for value in (0, 0.5, 1)) > 50
    assert torch.equal(kept[3][unknown], snap_alpha(made)[3][unknown])
    assert torch.equal(kept[:3][:, trimap == 1], request.inputs[0][:3][:, trimap == 1])


def test_a_given_alpha_is_the_answer():
    request = example("matting_alpha")
    (kept,) = restore_unchanged(request, [layer(noise(*SIZE, seed=3), 5)])
    assert torch.equal(kept[3], request.inputs[1][0])


def test_nothing_outside_a_rough_mask_and_all_within_is_the_models():
    request = example("matting_rough")
    rough, made = request.inputs[1][0], layer(0.05 + 0.9 * noise(*SIZE, seed=3), 5)
    (kept,) = restore_unchanged(request, [made])
    assert (kept[3][rough == 0] == 0).all()
    assert torch.equal(kept[3][rough == 1], snap_alpha(made)[3][rough == 1])


def test_snap():
    values = torch.tensor([0.0, SNAP, SNAP + 1e-4, 0.5, 1 - SNAP - 1e-4, 1 - SNAP, 1.0])
    made = snap_alpha(torch.cat([noise(3, 1, 7), values.view(1, 1, 7)]))[3, 0]
    assert made[0] == made[1] == 0 and made[5] == made[6] == 1
    assert 0 < made[2] < 2e-4 and 1 - 2e-4 < made[4] < 1 and made[3] == pytest.approx(0.5)


# ---- removal --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", MAPS)
def test_removal_is_bit_equal_outside_the_hole(role):
    request = example(f"removal_{role}")
    picture, guide = request.inputs[0], request.inputs[1][0]
    made = layer(noise(*SIZE, seed=4), 5)
    (kept,) = restore_unchanged(request, [made])
    reach = guide > masks.PRESENT
    if role is Role.PRECISE:  # it marks the solid part alone: the soft edge around it has to go too
        reach = masks.dilate(reach, 0.025 * 40)
        assert torch.equal(reach, removal_mask(guide, role)) and reach.sum() > (guide > 0).sum()
    assert 200 < reach.sum() < reach.numel() / 2
    assert torch.equal(kept[:, ~reach], picture[:, ~reach])
    assert torch.equal(kept[:3, reach], made[:3, reach]) and (kept[3] == 1).all()


def test_the_hole_holds_all_of_the_subject():
    """Whatever of the four maps of one alpha is given, no visible part of the subject stays in the picture."""
    alpha = disk(soft=0.8)  # a precise mask of so small a picture has a rim of one pixel
    for role in MAPS:
        reach = removal_mask(map_of(role, alpha), role)
        assert not ((alpha > masks.PRESENT) & ~reach).any(), role


def test_an_automatic_removal_is_opaque():
    made = layer(noise(*SIZE, seed=4), 5)
    (kept,) = restore_unchanged(example("removal_auto"), [made])
    assert torch.equal(kept[:3], made[:3]) and (kept[3] == 1).all()


# ---- decomposition --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", AUTO_OR_MAP)
def test_a_decomposition_recomposes_exactly_where_nothing_is_soft(kind):
    request = example(f"decompose_{kind}")
    made = [layer(noise(*SIZE, seed=6), 7), layer(disk(radius=11), 5)]
    background, foreground = restore_unchanged(request, made)
    alpha = foreground[3]
    hard = (alpha == 0) | (alpha == 1)
    assert hard.sum() > 1000 and (~hard).sum() > 50
    again = rgba.recompose([background, foreground])
    assert torch.equal(again[:, hard], request.inputs[0][:, hard])
    free = ~hard & unclipped([background, foreground])
    assert free.sum() > 20 and (again - request.inputs[0])[:, free].abs().max() < 1e-5, "and nearly so elsewhere"
    assert (background[3] == 1).all()
    assert torch.equal(background[:3, alpha == 1], made[0][:3, alpha == 1]), "what is hidden is the model's"


def test_four_layers_recompose_exactly_too():
    request = example("decompose_auto", layers=4)
    centers = [(14, 20), (20, 30), (26, 40)]
    made = [layer(noise(*SIZE, seed=6), 7)]
    made += [layer(disk(radius=9, center=c), 8 + i) for i, c in enumerate(centers)]
    kept = restore_unchanged(request, made)
    alphas = torch.stack([p[3] for p in kept[1:]])
    hard = ((alphas == 0) | (alphas == 1)).all(0)
    assert ((alphas == 1).sum(0) >= 2).any(), "layers overlap"
    assert torch.equal(rgba.recompose(kept)[:, hard], request.inputs[0][:, hard])
    covered = (alphas[0] == 1) & (alphas[1:] == 1).any(0)
    assert covered.sum() > 10
    assert torch.equal(kept[1][:3, covered], made[1][:3, covered]), "a hidden part is not painted with what hides it"


def test_a_decomposition_takes_its_map_seriously():
    request = example("decompose_alpha")
    kept = restore_unchanged(request, [layer(torch.ones(SIZE), 7), layer(noise(*SIZE, seed=2), 5)])
    assert torch.equal(kept[1][3], request.inputs[1][0])
    request = example("decompose_trimap")
    trimap = request.inputs[1][0]
    kept = restore_unchanged(request, [layer(torch.ones(SIZE), 7), layer(noise(*SIZE, seed=2), 5)])
    assert (kept[1][3][trimap == 1] == 1).all() and (kept[1][3][trimap == 0] == 0).all()


# ---- transparent pictures -------------------------------------------------------------------------------------------


MAGENTA = torch.tensor([1.0, 0.0, 1.0])


def see_through():
    """A picture with a soft hole, under which its colour is magenta."""
    made = composite()
    made[3] = disk(radius=17, soft=10.0, center=(20, 30))
    made[:3, made[3] == 0] = MAGENTA[:, None]
    assert min((made[3] == 0).sum(), (made[3] == 1).sum(), ((made[3] > 0) & (made[3] < 1)).sum()) > 150
    return made


def of_see_through(name, **settings):
    row, picture = TASKS[name], see_through()
    given = {role: map_of(role, disk()) if role in MAPS else picture for role in row.inputs}
    return row.example(given, size=SIZE, **settings), picture


@pytest.mark.parametrize("kind", AUTO_OR_MAP)
def test_no_matte_is_more_solid_than_its_picture(kind):
    request, picture = of_see_through(f"matting_{kind}")
    (kept,) = restore_unchanged(request, [layer(disk(radius=15, center=(24, 36)), 5)])
    assert (kept[3] <= picture[3]).all() and (kept[3] == picture[3]).sum() > 300
    assert (kept[3][picture[3] == 0] == 0).all()
    as_solid = kept[3] == picture[3]
    assert torch.equal(kept[:3, as_solid], picture[:3, as_solid]), "as solid as it can be: nothing else is seen there"


@pytest.mark.parametrize("kind", AUTO_OR_MAP)
def test_removal_keeps_the_pictures_alpha_and_what_nobody_sees(kind):
    request, picture = of_see_through(f"removal_{kind}")
    (kept,) = restore_unchanged(request, [layer(noise(*SIZE, seed=4), 5)])
    assert torch.equal(kept[3], picture[3])
    hidden = picture[3] == 0
    assert torch.equal(kept[:, hidden], picture[:, hidden])
    assert not torch.equal(kept[:3, ~hidden], picture[:3, ~hidden]), "something was painted"


@pytest.mark.parametrize(
    ("name", "count"), [(f"decompose_{kind}", 2) for kind in AUTO_OR_MAP] + [("decompose_auto", 3)]
)
def test_layers_recompose_to_the_pictures_alpha_and_colour(name, count):
    request, picture = of_see_through(name, **({"layers": count} if count > 2 else {}))
    centers = [(18, 28), (24, 36)][: count - 1]
    made = [layer(noise(*SIZE, seed=6), 7)] + [layer(disk(center=c), 8 + k) for k, c in enumerate(centers)]
    kept = restore_unchanged(request, made)
    again, wanted = rgba.premultiply(rgba.recompose(kept)), rgba.premultiply(picture)
    assert (again[3] - wanted[3]).abs().max() <= 1 / 255
    free = unclipped(kept) | (picture[3] == 0)
    assert free[picture[3] > 0].float().mean() > 0.3 and (again - wanted)[:, free].abs().max() <= 1 / 255
    assert all(((one[:3] >= 0) & (one[:3] <= 1)).all() and one.isfinite().all() for one in kept)
    shares, above = [], torch.ones(SIZE)
    for one in reversed(kept):
        shares.insert(0, above * one[3])
        above = above * (1 - one[3])
    for one, share in zip(kept, shares, strict=True):
        alone = (share == one[3]) & (one[3] == picture[3]) & (picture[3] > 0)
        assert alone.sum() > 20 and torch.equal(one[:3, alone], picture[:3, alone]), "seen alone: bit for bit"


# ---- colours --------------------------------------------------------------------------------------------------------


def test_colours_settle_by_the_least_change():
    """One pixel, three layers: numpy's least-norm solution of sum share_k (colour_k + change_k) = the input."""
    alphas, colours = np.array([1.0, 0.3, 0.6]), np.array([[0.4, 0.5, 0.6], [0.5, 0.4, 0.5], [0.3, 0.6, 0.45]])
    picture = torch.tensor([0.45, 0.5, 0.55, 1.0]).view(4, 1, 1)
    layers = [torch.tensor([*c, a], dtype=torch.float32).view(4, 1, 1) for c, a in zip(colours, alphas, strict=True)]
    shares = np.array([0.4 * 0.7, 0.4 * 0.3, 0.6])
    missing = picture[:3].numpy().reshape(3) - shares @ colours
    wanted = colours + np.linalg.lstsq(shares[None], missing[None], rcond=None)[0]
    made = torch.stack(match_composite(layers, picture)).numpy().reshape(3, 4)
    assert np.abs(made[:, :3] - wanted).max() < 1e-6 and np.abs(wanted - colours).max() > 0.01
    assert made[:, 3].tolist() == pytest.approx(alphas.tolist())


def test_what_a_colour_cannot_give_stays_missing():
    """A front layer of half a black picture is white: black behind it is as dark as can be."""
    back, front = torch.tensor([0.5, 0.5, 0.5, 1.0]).view(4, 1, 1), torch.tensor([1.0, 1.0, 1.0, 0.5]).view(4, 1, 1)
    made = match_composite([back, front], torch.tensor([0.0, 0.0, 0.0, 1.0]).view(4, 1, 1))
    assert made[0][:3].flatten().tolist() == [0, 0, 0] and made[1][:3].flatten().tolist() == pytest.approx([0.25] * 3)


# ---- the others -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n, row in TASKS.items() if row.category in ("generation", "completion")])
def test_scenes_are_opaque_and_layers_are_snapped(name):
    row = TASKS[name]
    alone = row.targets == (Role.FOREGROUND,)
    made = layer(noise(*SIZE, seed=4) if alone else torch.full(SIZE, 1 - SNAP), 5)
    (kept,) = restore_unchanged(example(name), [made])
    if name == "foreground_to_full":
        front = next(layer for layer in example(name).inputs)
        made = rgba.over(front, rgba.opaque(made))
    assert torch.equal(kept[:3], made[:3])
    assert torch.equal(kept[3], snap_alpha(made)[3] if alone else torch.ones(SIZE))


def test_a_scene_that_is_not_opaque_takes_the_colours_that_it_shows():
    seen = (torch.arange(SIZE[1]) < SIZE[1] // 2).float().expand(SIZE)
    colours = torch.tensor([0.5, 0.1, 0.3])[:, None, None] + 0.2 * noise(3, *SIZE, seed=5)
    made = torch.cat([torch.where(seen.bool(), colours, noise(3, *SIZE, seed=7)), seen[None]])
    kept = without_holes(made)
    assert torch.equal(kept[:3, :, : SIZE[1] // 2], made[:3, :, : SIZE[1] // 2]) and (kept[3] == 1).all()
    hole = kept[:3, :, SIZE[1] // 2 + 8 :]
    assert hole.mean((1, 2)).tolist() == pytest.approx([0.6, 0.2, 0.4], abs=0.02) and hole.std((1, 2)).max() < 0.02
    assert without_holes(layer(torch.zeros(SIZE), 5)).isfinite().all()


def test_a_picture_around_a_foreground_keeps_it_bit_for_bit():
    front = layer(noise(*SIZE, seed=1), 2)
    front[3, :4], front[3, 4:8] = 1, 0
    made = layer(torch.ones(SIZE), 3)
    (kept,) = restore_unchanged(TASKS["foreground_to_full"].example({Role.FOREGROUND: [front]}, prompt="x"), [made])
    assert torch.equal(kept[:3, :4], front[:3, :4]) and torch.equal(kept[:3, 4:8], made[:3, 4:8])


def test_a_picture_around_a_background_keeps_it_bit_for_bit_where_nothing_was_painted():
    given = rgba.opaque(noise(3, 64, 64, seed=1))
    given[3, 60:] = 0  # nothing of it is seen there
    made = torch.cat([given[:3] + 0.01 * noise(3, 64, 64, seed=2), torch.ones(1, 64, 64)]).clamp(0, 1)  # re-encoded
    made[:3, 20:40, 20:40] = 0.95  # and a subject
    (kept,) = restore_unchanged(TASKS["background_to_full"].example({Role.BACKGROUND: given}, prompt="x"), [made])
    assert torch.equal(kept[:, 22:38, 22:38], made[:, 22:38, 22:38]) and torch.equal(kept[:, 60:], made[:, 60:])
    assert torch.equal(kept[:, :12], given[:, :12]) and torch.equal(kept[:, :60, 50:], given[:, :60, 50:])
    assert (kept[3] == 1).all()


def test_nothing_is_changed_in_place():
    request = example("decompose_trimap")
    made = [layer(noise(*SIZE, seed=6), 7), layer(noise(*SIZE, seed=8), 5)]
    before = [p.clone() for p in (*made, *request.inputs)]
    restore_unchanged(request, made)
    assert all(torch.equal(a, b) for a, b in zip(before, (*made, *request.inputs), strict=True))


def test_refined_replaces_foregrounds_that_can_be_seen(monkeypatch):
    calls = []

    def fake(image, alpha, trimap):
        calls.append((image, alpha, trimap))
        return torch.full_like(image, 0.25)

    monkeypatch.setattr("omnialpha.refine.refine", fake)
    made = [layer(torch.ones(SIZE), 7), layer(disk(), 5)]
    coarse = [torch.zeros(5, 5), torch.ones(5, 5)]
    request = example("decompose_rough")
    background, foreground = refine_foregrounds(request, made, coarse)
    assert background is made[0] and (foreground == 0.25).all()
    ((image, alpha, trimap),) = calls
    assert torch.equal(image, request.inputs[0]) and alpha is coarse[1] and trimap is None
    refine_foregrounds(example("decompose_trimap"), made, coarse)
    assert calls.pop()[2].unique().tolist() == [0, 0.5, 1]
    for name in ("decompose_alpha", "background_to_foreground"):  # alpha is known; there is nothing to look at
        row = replace(example(name), targets=(Role.BACKGROUND, Role.FOREGROUND))
        assert refine_foregrounds(row, made, coarse) == made
    assert len(calls) == 1
