"""One layered record serves every task: targets match their roles, maps their alpha, and a stream is its seed."""

import collections

import pytest
import torch

from omnialpha import masks, rgba
from omnialpha.data.scene import map_of
from omnialpha.data.stream import mixture as mixtures
from omnialpha.data.stream.mixture import Mixture, examples
from omnialpha.data.synthetic import bank as banks
from omnialpha.tasks import MAPS, TASKS, Role

SIZE = (24, 32)
WEIGHTS = {"matting_auto": 4.0, "removal_rough": 2.0, "decompose_auto": 1.0, "text_to_image": 1.0}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def bank():
    return banks.procedural(20, 6, 32, seed=3)


def mixture(bank, **changes):
    settings = {"weights": WEIGHTS, "sizes": [(16, 16), (16, 24)], "batch_size": 1, "seed": 5} | changes
    return Mixture(bank, **settings)


# ---- the stream ----------------------------------------------------------------------------------------------------


def test_tasks_are_drawn_in_proportion(bank):
    """Chi-square over 500 batches: below its 99.9 % quantile, and far above it for other proportions."""
    stream = mixture(bank)
    drawn = collections.Counter(stream.batch(i)[0].task for i in range(500))

    def statistic(weights):
        total = sum(weights.values())
        return sum((drawn[n] - 500 * w / total) ** 2 / (500 * w / total) for n, w in weights.items())

    assert drawn.keys() == WEIGHTS.keys()
    assert statistic(WEIGHTS) < 16.27  # three degrees of freedom
    assert statistic(dict.fromkeys(WEIGHTS, 1.0)) > 100


def test_a_task_of_weight_zero_never_comes(bank):
    stream = mixture(bank, weights={"matting_auto": 1.0, "text_to_image": 0.0})
    assert {stream.batch(i)[0].task for i in range(60)} == {"matting_auto"}


def test_sizes_are_drawn_evenly_and_are_one_in_a_batch(bank):
    sizes = [(16, 16), (16, 24), (24, 16)]
    stream = mixture(bank, sizes=sizes, batch_size=2)
    drawn = collections.Counter()
    for i in range(150):
        batch = stream.batch(i)
        assert len({e.size for e in batch}) == 1
        assert {t.shape[-2:] for e in batch for t in e.truths} == {batch[0].size}
        drawn[batch[0].size] += 1
    assert all(30 < drawn[size] < 70 for size in sizes)


def same(a, b):
    if [(e.task, e.instruction, e.size) for e in a] != [(e.task, e.instruction, e.size) for e in b]:
        return False
    pairs = zip((p for e in a for p in e.inputs + e.truths), (p for e in b for p in e.inputs + e.truths))  # noqa: B905
    return all(p.shape == q.shape and torch.equal(p, q) for p, q in pairs)


def test_a_batch_depends_on_seed_and_index_alone(bank):
    forward, backward = mixture(bank, batch_size=3), mixture(bank, batch_size=3)
    made = [forward.batch(i) for i in range(8)]
    torch.rand(7)
    assert all(same(made[i], backward.batch(i)) for i in reversed(range(8)))
    other = mixture(bank, batch_size=3, seed=6)
    assert not any(same(made[i], other.batch(i)) for i in range(8))
    assert not any(same(made[i], made[i + 1]) for i in range(7))


def test_prompts_are_dropped_at_their_rate(bank):
    def share(rate):
        stream = mixture(bank, batch_size=8, prompt_dropout=rate)
        return [e.instruction == "" for i in range(60) for e in stream.batch(i)]

    assert sum(share(0.0)) == 0 and sum(share(1.0)) == 480
    assert 0.25 < sum(share(0.3)) / 480 < 0.35


def test_dropping_prompts_changes_nothing_else(bank):
    kept, dropped = mixture(bank, batch_size=4).batch(3), mixture(bank, batch_size=4, prompt_dropout=1.0).batch(3)
    assert all(torch.equal(a.true_layers(), b.true_layers()) for a, b in zip(kept, dropped, strict=True))
    assert [e.task for e in kept] == [e.task for e in dropped]


def test_wordings_vary(bank):
    made = examples(TASKS["matting_auto"], bank, 60, (16, 16), seeded(1))
    assert {e.instruction for e in made} == set(TASKS["matting_auto"].instructions)


# ---- records to examples -------------------------------------------------------------------------------------------


@pytest.fixture
def composed(monkeypatch):
    """The scenes that `examples` composes, as it goes."""
    made, compose = [], mixtures.compose

    def spy(*args, **kwargs):
        made.append(compose(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(mixtures, "compose", spy)
    return made


@pytest.mark.parametrize("name", TASKS)
def test_targets_and_inputs_match_their_roles(bank, composed, name):
    row = TASKS[name]
    for seed in range(4):
        batch = examples(row, bank, 3, SIZE, seeded(seed))
        assert len(batch) == len(composed[-1]) == 3
        for scene, example in zip(composed[-1], batch, strict=True):
            whole = {Role.BACKGROUND: scene.background, Role.FULL: scene.composite, Role.COMPOSITE: scene.composite}
            assert example.task == name and example.size == SIZE and len(example.truths) == len(example.targets)
            layers = iter(scene.layers)
            for role, target in zip(example.targets, example.truths, strict=True):
                assert torch.equal(target, whole[role] if role in whole else next(layers))
                assert target.shape == (4, *SIZE) and (role is Role.FOREGROUND or (target[3] == 1).all())
            layers = iter(scene.layers)
            for role, given in zip(example.roles, example.inputs, strict=True):
                if role not in MAPS:
                    assert torch.equal(given, whole[role] if role in whole else next(layers))
            if row.text is Role.FOREGROUND:
                assert scene.captions[0].text in example.instruction
            elif row.text is Role.BACKGROUND:
                assert scene.background_caption in example.instruction
            elif row.text is Role.FULL:
                every = " and ".join(caption.text for caption in scene.captions)
                assert f"{every} in front of {scene.background_caption}" in example.instruction
            if row.category == "decomposition":
                assert len(example.truths) == len(scene.layers) + 1
                assert (rgba.recompose(list(example.truths)) - example.inputs[0]).abs().max() <= 1 / 255


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("matting_text", 2),
        ("decompose_auto", 2),
        ("foreground_to_full", 2),
        ("foreground_to_background", 2),
        ("matting_auto", 1),
    ],
)
def test_how_many_objects_a_scene_has(bank, composed, name, most):
    for seed in range(60):
        examples(TASKS[name], bank, 1, (16, 16), seeded(seed))
    share = sum(len(scenes[0].layers) == 2 for scenes in composed) / 60
    wanted = {"matting_text": 0.8, "matting_auto": 0.0}.get(name, 0.25)
    assert max(len(scenes[0].layers) for scenes in composed) == most and abs(share - wanted) < 0.16


def test_a_text_chooses_between_objects_that_do_not_hide_each_other(bank, composed):
    for seed in range(20):
        examples(TASKS["matting_text"], bank, 4, (32, 32), seeded(seed))
    two = torch.stack([s.layers[:, 3] for scenes in composed for s in scenes if len(s.layers) == 2])
    hidden = torch.minimum(two[:, 0], two[:, 1]).sum((1, 2)) / two.sum((2, 3)).amin(1)
    assert len(two) > 40 and hidden.mean() < 0.05


# ---- maps ----------------------------------------------------------------------------------------------------------


def disk(radius=9.0, side=40):
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    distance = ((y - side / 2) ** 2 + (x - side / 2) ** 2).float().sqrt()
    return ((radius - distance) / 3 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("seed", range(6))
def test_maps_derive_from_the_alpha(seed):
    alpha = disk()
    assert torch.equal(map_of(Role.ALPHA, alpha, seeded(seed)), alpha)
    assert torch.equal(map_of(Role.PRECISE, alpha, seeded(seed)), (alpha > 0.95).float())
    trimap, rough = map_of(Role.TRIMAP, alpha, seeded(seed)), map_of(Role.ROUGH, alpha, seeded(seed))
    assert set(trimap.unique().tolist()) == {0.0, 0.5, 1.0} and set(rough.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(rough == 1, trimap > 0), "one radius, one rim"
    assert (alpha[trimap == 1] > 0.95).all() and (alpha[trimap == 0] == 0).all()
    assert (rough[alpha > masks.PRESENT] == 1).all()
    # the rim's width is the drawn radius: 5 to 10 % of the shorter side, 2 to 4 pixels
    radius = masks.draw_radius(40, 40, seeded(seed))
    assert 2 <= radius <= 4
    reach = masks.dilate(alpha > masks.PRESENT, radius)
    assert torch.equal(rough == 1, reach)


def test_radii_vary():
    sums = {float(map_of(Role.ROUGH, disk(), seeded(s)).sum()) for s in range(12)}
    assert len(sums) > 4


def test_a_see_through_layer_has_a_precise_mask_too():
    faint = map_of(Role.PRECISE, disk() * 0.4, seeded(0))
    assert torch.equal(faint, map_of(Role.PRECISE, disk(), seeded(0))) and faint.sum() > 50


@pytest.mark.parametrize("name", [f"matting_{m}" for m in MAPS])
def test_the_map_of_an_example_is_that_of_its_target(bank, name):
    batch = examples(TASKS[name], bank, 6, SIZE, seeded(2))
    for example in batch:
        given, alpha = example.inputs[1], example.truths[0][3]
        assert torch.equal(given[0], given[1]) and torch.equal(given[0], given[2]) and (given[3] == 1).all()
        if example.roles[1] is Role.ALPHA:
            assert (given[0] - alpha).abs().max() < 1e-6
        elif example.roles[1] is Role.PRECISE:
            assert (alpha[given[0] == 1] > 0.95 * alpha.max()).all()
        else:
            assert (alpha[given[0] == 0] <= masks.PRESENT).all()
            assert example.roles[1] is Role.ROUGH or (alpha[given[0] == 1] > 0.95).all()
