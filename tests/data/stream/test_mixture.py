"""One layered record serves every task: targets match their roles, maps their alpha, and a stream is its seed."""

import collections

import pytest
import torch

from omnialpha import masks, rgba
from omnialpha.data.stream import mixture as mixtures
from omnialpha.data.stream.mixture import Mixture, examples, map_of
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
    drawn = collections.Counter(stream.batch(i).examples[0].task for i in range(500))

    def statistic(weights):
        total = sum(weights.values())
        return sum((drawn[n] - 500 * w / total) ** 2 / (500 * w / total) for n, w in weights.items())

    assert drawn.keys() == WEIGHTS.keys()
    assert statistic(WEIGHTS) < 16.27  # three degrees of freedom
    assert statistic(dict.fromkeys(WEIGHTS, 1.0)) > 100


def test_a_task_of_weight_zero_never_comes(bank):
    stream = mixture(bank, weights={"matting_auto": 1.0, "text_to_image": 0.0})
    assert {stream.batch(i).examples[0].task for i in range(60)} == {"matting_auto"}


def test_sizes_are_drawn_evenly_and_are_one_in_a_batch(bank):
    sizes = [(16, 16), (16, 24), (24, 16)]
    stream = mixture(bank, sizes=sizes, batch_size=2)
    drawn = collections.Counter()
    for i in range(150):
        batch = stream.batch(i)
        assert len({e.size for e in batch.examples}) == 1 and {t.shape[-2:] for t in batch.targets} == {
            batch.examples[0].size
        }
        drawn[batch.examples[0].size] += 1
    assert all(30 < drawn[size] < 70 for size in sizes)


def same(a, b):
    equal = [(x.task, x.instruction, x.size) == (y.task, y.instruction, y.size) for x, y in zip(a.examples, b.examples)]  # noqa: B905
    inputs = zip((p for e in a.examples for p in e.inputs), (p for e in b.examples for p in e.inputs))  # noqa: B905
    return (
        all(equal)
        and len(a.targets) == len(b.targets)
        and all(map(torch.equal, a.targets, b.targets))
        and all(p.shape == q.shape and torch.equal(p, q) for p, q in inputs)
    )


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
        return [e.instruction == "" for i in range(60) for e in stream.batch(i).examples]

    assert sum(share(0.0)) == 0 and sum(share(1.0)) == 480
    assert 0.25 < sum(share(0.3)) / 480 < 0.35


def test_dropping_prompts_changes_nothing_else(bank):
    kept, dropped = mixture(bank, batch_size=4).batch(3), mixture(bank, batch_size=4, prompt_dropout=1.0).batch(3)
    assert all(map(torch.equal, kept.targets, dropped.targets))
    assert [e.task for e in kept.examples] == [e.task for e in dropped.examples]


def test_wordings_vary(bank):
    made = examples(TASKS["matting_auto"], bank, 60, (16, 16), seeded(1)).examples
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
        scenes = composed[-1]
        objects = scenes.layers.shape[1]
        for b, example in enumerate(batch.examples):
            assert example.task == name and example.size == SIZE
            assert batch.targets[b].shape == (len(example.targets), 4, *SIZE)
            layers = iter(scenes.layers[b])
            for role, target in zip(example.targets, batch.targets[b], strict=True):
                whole = {Role.BACKGROUND: scenes.background[b], Role.FULL: scenes.composite[b]}
                assert torch.equal(target, whole[role] if role in whole else next(layers))
                assert role is Role.FOREGROUND or (target[3] == 1).all()
            layers = iter(scenes.layers[b])
            for role, given in zip(example.roles, example.inputs, strict=True):
                whole = {Role.BACKGROUND: scenes.background[b], Role.COMPOSITE: scenes.composite[b]}
                if role not in MAPS:
                    assert torch.equal(given, whole[role] if role in whole else next(layers))
            if row.text is Role.FOREGROUND:
                assert scenes.captions[b][0] in example.instruction
            elif row.text is Role.BACKGROUND:
                assert scenes.scene_captions[b] in example.instruction
            elif row.text is Role.FULL:
                assert scenes.full_caption(b) in example.instruction
        if row.category == "decomposition":
            assert {len(targets) for targets in batch.targets} == {objects + 1}
            again = rgba.recompose(list(torch.stack(batch.targets).unbind(1)))
            assert (again - torch.stack([e.inputs[0] for e in batch.examples])).abs().max() <= 1 / 255


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
    share = sum(s.layers.shape[1] == 2 for s in composed) / 60
    wanted = {"matting_text": 0.8, "matting_auto": 0.0}.get(name, 0.25)
    assert max(s.layers.shape[1] for s in composed) == most and abs(share - wanted) < 0.16


def test_a_text_chooses_between_objects_that_do_not_hide_each_other(bank, composed):
    for seed in range(20):
        examples(TASKS["matting_text"], bank, 4, (32, 32), seeded(seed))
    two = torch.cat([s.layers[:, :, 3] for s in composed if s.layers.shape[1] == 2])
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
    for example, (target,) in zip(batch.examples, batch.targets, strict=True):
        given, alpha = example.inputs[1], target[3]
        assert torch.equal(given[0], given[1]) and torch.equal(given[0], given[2]) and (given[3] == 1).all()
        if example.roles[1] is Role.ALPHA:
            assert (given[0] - alpha).abs().max() < 1e-6
        elif example.roles[1] is Role.PRECISE:
            assert (alpha[given[0] == 1] > 0.95 * alpha.max()).all()
        else:
            assert (alpha[given[0] == 0] <= masks.PRESENT).all()
            assert example.roles[1] is Role.ROUGH or (alpha[given[0] == 1] > 0.95).all()
