"""What a task leaves unchanged is the input's, bit for bit."""

from dataclasses import replace

import pytest
import torch

from omnialpha import masks, rgba
from omnialpha.fidelity import SNAP, hole, keep, refined, snap
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
    (kept,) = keep(request, [made])
    solid = kept[3] == 1
    assert 100 < solid.sum() < solid.numel() / 2
    assert torch.equal(kept[:3, solid], request.inputs[0][:3, solid])
    assert torch.equal(kept[:3, ~solid], made[:3, ~solid])
    assert (kept[:3, solid] - made[:3, solid]).abs().max() > 0.1, "the model's colours were others"


def test_a_trimaps_known_regions_are_kept():
    request = example("matting_trimap")
    trimap = request.inputs[1][0]
    made = layer(0.05 + 0.9 * noise(*SIZE, seed=3), 5)
    (kept,) = keep(request, [made])
    assert (kept[3][trimap == 1] == 1).all() and (kept[3][trimap == 0] == 0).all()
    unknown = trimap == 0.5
    assert min((trimap == value).sum() for value in (0, 0.5, 1)) > 50
    assert torch.equal(kept[3][unknown], snap(made)[3][unknown])
    assert torch.equal(kept[:3][:, trimap == 1], request.inputs[0][:3][:, trimap == 1])


def test_a_given_alpha_is_the_answer():
    request = example("matting_alpha")
    (kept,) = keep(request, [layer(noise(*SIZE, seed=3), 5)])
    assert torch.equal(kept[3], request.inputs[1][0])


def test_nothing_outside_a_rough_mask_and_all_within_is_the_models():
    request = example("matting_rough")
    rough, made = request.inputs[1][0], layer(0.05 + 0.9 * noise(*SIZE, seed=3), 5)
    (kept,) = keep(request, [made])
    assert (kept[3][rough == 0] == 0).all()
    assert torch.equal(kept[3][rough == 1], snap(made)[3][rough == 1])


def test_snap():
    values = torch.tensor([0.0, SNAP, SNAP + 1e-4, 0.5, 1 - SNAP - 1e-4, 1 - SNAP, 1.0])
    made = snap(torch.cat([noise(3, 1, 7), values.view(1, 1, 7)]))[3, 0]
    assert made[0] == made[1] == 0 and made[5] == made[6] == 1
    assert 0 < made[2] < 2e-4 and 1 - 2e-4 < made[4] < 1 and made[3] == pytest.approx(0.5)


# ---- removal --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", MAPS)
def test_removal_is_bit_equal_outside_the_hole(role):
    request = example(f"removal_{role}")
    picture, guide = request.inputs[0], request.inputs[1][0]
    made = layer(noise(*SIZE, seed=4), 5)
    (kept,) = keep(request, [made])
    reach = guide > masks.PRESENT
    if role is Role.PRECISE:  # it marks the solid part alone: the soft edge around it has to go too
        reach = masks.dilate(reach, 0.025 * 40)
        assert torch.equal(reach, hole(guide, role)) and reach.sum() > (guide > 0).sum()
    assert 200 < reach.sum() < reach.numel() / 2
    assert torch.equal(kept[:, ~reach], picture[:, ~reach])
    assert torch.equal(kept[:3, reach], made[:3, reach]) and (kept[3] == 1).all()


def test_the_hole_holds_all_of_the_subject():
    """Whatever of the four maps of one alpha is given, no visible part of the subject stays in the picture."""
    alpha = disk(soft=0.8)  # a precise mask of so small a picture has a rim of one pixel
    for role in MAPS:
        reach = hole(map_of(role, alpha), role)
        assert not ((alpha > masks.PRESENT) & ~reach).any(), role


def test_an_automatic_removal_is_opaque():
    made = layer(noise(*SIZE, seed=4), 5)
    (kept,) = keep(example("removal_auto"), [made])
    assert torch.equal(kept[:3], made[:3]) and (kept[3] == 1).all()


# ---- decomposition --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", AUTO_OR_MAP)
def test_a_decomposition_recomposes_exactly_where_nothing_is_soft(kind):
    request = example(f"decompose_{kind}")
    made = [layer(noise(*SIZE, seed=6), 7), layer(disk(radius=11), 5)]
    background, foreground = keep(request, made)
    alpha = foreground[3]
    hard = (alpha == 0) | (alpha == 1)
    assert hard.sum() > 1000 and (~hard).sum() > 50
    again = rgba.recompose([background, foreground])
    assert torch.equal(again[:, hard], request.inputs[0][:, hard])
    assert not torch.equal(again[:, ~hard], request.inputs[0][:, ~hard])
    assert (background[3] == 1).all()
    assert torch.equal(background[:3, alpha > 0], made[0][:3, alpha > 0]), "what is hidden is the model's"


def test_four_layers_recompose_exactly_too():
    request = example("decompose_auto", layers=4)
    centers = [(14, 20), (20, 30), (26, 40)]
    made = [layer(noise(*SIZE, seed=6), 7)]
    made += [layer(disk(radius=9, center=c), 8 + i) for i, c in enumerate(centers)]
    kept = keep(request, made)
    alphas = torch.stack([p[3] for p in kept[1:]])
    hard = ((alphas == 0) | (alphas == 1)).all(0)
    assert ((alphas == 1).sum(0) >= 2).any(), "layers overlap"
    assert torch.equal(rgba.recompose(kept)[:, hard], request.inputs[0][:, hard])
    covered = (alphas[0] == 1) & (alphas[1:] == 1).any(0)
    assert covered.sum() > 10
    assert torch.equal(kept[1][:3, covered], made[1][:3, covered]), "a hidden part is not painted with what hides it"


def test_a_decomposition_takes_its_map_seriously():
    request = example("decompose_alpha")
    kept = keep(request, [layer(torch.ones(SIZE), 7), layer(noise(*SIZE, seed=2), 5)])
    assert torch.equal(kept[1][3], request.inputs[1][0])
    request = example("decompose_trimap")
    trimap = request.inputs[1][0]
    kept = keep(request, [layer(torch.ones(SIZE), 7), layer(noise(*SIZE, seed=2), 5)])
    assert (kept[1][3][trimap == 1] == 1).all() and (kept[1][3][trimap == 0] == 0).all()


# ---- the others -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n, row in TASKS.items() if row.category in ("generation", "completion")])
def test_scenes_are_opaque_and_layers_are_snapped(name):
    row, made = TASKS[name], layer(noise(*SIZE, seed=4), 5)
    (kept,) = keep(example(name), [made])
    assert torch.equal(kept[:3], made[:3])
    wanted = snap(made)[3] if row.targets == (Role.FOREGROUND,) else torch.ones(SIZE)
    assert torch.equal(kept[3], wanted)


def test_nothing_is_changed_in_place():
    request = example("decompose_trimap")
    made = [layer(noise(*SIZE, seed=6), 7), layer(noise(*SIZE, seed=8), 5)]
    before = [p.clone() for p in (*made, *request.inputs)]
    keep(request, made)
    assert all(torch.equal(a, b) for a, b in zip(before, (*made, *request.inputs), strict=True))


def test_refined_replaces_foregrounds_that_can_be_seen(monkeypatch):
    calls = []

    def fake(image, alpha):
        calls.append((image, alpha))
        return torch.full_like(image, 0.25)

    monkeypatch.setattr("omnialpha.refine.refine", fake)
    made = [layer(torch.ones(SIZE), 7), layer(disk(), 5)]
    coarse = [torch.zeros(5, 5), torch.ones(5, 5)]
    request = example("decompose_rough")
    background, foreground = refined(request, made, coarse)
    assert background is made[0] and (foreground == 0.25).all()
    ((image, alpha),) = calls
    assert torch.equal(image, request.inputs[0]) and alpha is coarse[1]
    for name in ("decompose_alpha", "background_to_foreground"):  # alpha is known; there is nothing to look at
        row = replace(example(name), targets=(Role.BACKGROUND, Role.FOREGROUND))
        assert refined(row, made, coarse) == made
    assert len(calls) == 1
