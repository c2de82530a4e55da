"""Batches by a budget of tokens: within it, with little waste, the same whoever draws them, every sample as heavy."""

import copy
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from layered import layered_row, pair_row, write_manifest
from omnialpha.canvas import Grid
from omnialpha.data.stream.batches import BLOCK, Budget, SampleShape, pack
from omnialpha.data.stream.datasets import DatasetSettings
from omnialpha.data.stream.mixture import Mixture
from omnialpha.data.stream.stream import Stage, StreamSettings, open_stream
from omnialpha.data.synthetic import bank as banks
from omnialpha.errors import InputError
from omnialpha.tasks import TASKS
from omnialpha.training.sft import FlowLoss, SFTObjective, flow_losses

SIZES = [(16, 16), (16, 32), (32, 32)]
WEIGHTS = {"text_to_image": 4.0, "matting_rough": 2.0, "decompose_auto": 1.0, "foreground_to_full": 1.0}
GRID = Grid(multiple=16, picture_pixels=1024, sample_pixels=4096)
BUDGET = Budget(tokens=96, words=6, grid=GRID, side=8, seen=1568)  # an input is two tokens of text


@pytest.fixture(scope="module")
def bank():
    return banks.procedural(20, 6, 32, seed=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Manifests of 9 records of one layer and 3 of two, and of 5 pairs."""
    folder = tmp_path_factory.mktemp("data")
    rows = [layered_row(folder, n, 1 + (n % 4 == 0)) for n in range(12)]
    write_manifest(folder / "layers.jsonl", rows)
    write_manifest(folder / "pairs.jsonl", [pair_row(folder, n) for n in range(5)])
    return folder


def mixture(bank, **changes):
    settings = {"weights": WEIGHTS, "sizes": SIZES, "batch_size": 1, "seed": 5, "budget": BUDGET} | changes
    return Mixture(bank, **settings)


def stream(data, budget=BUDGET, seed=5, dropout=0.0, a_step=1, **settings):
    sets = [
        DatasetSettings(str(data / "layers.jsonl")),
        DatasetSettings(str(data / "pairs.jsonl"), task="matting_rough"),
    ]
    settings = settings if "curriculum" in settings else {"tasks": WEIGHTS} | settings
    return open_stream(StreamSettings(sets, **settings), SIZES, 1, seed, dropout, a_step, budget)


def same(a, b):
    words = [(e.task, e.instruction, e.size) for e in a] == [(e.task, e.instruction, e.size) for e in b]
    pictures = zip((p for e in a for p in e.inputs), (p for e in b for p in e.inputs), strict=True)
    targets = zip((t for e in a for t in e.truths), (t for e in b for t in e.truths), strict=True)
    return words and all(torch.equal(p, q) for p, q in (*pictures, *targets))


def shape_of(example):
    assert len(example.targets) == len(example.truths)
    return SampleShape(example.task, example.size, len(example.inputs), len(example.truths))


# ---- packing ---------------------------------------------------------------------------------------------------------


def test_packing_by_hand():
    assert pack([3, 9, 4, 6, 1, 7], 10) == [[1, 4], [5, 0], [3, 2]], "the largest first, where the least is left"
    assert pack([5, 5, 5], 10) == [[0, 1], [2]] and pack([], 10) == []


@pytest.mark.parametrize("limit", [64, 200, 1000])
def test_everything_is_packed_once_with_little_waste(limit):
    counts = np.random.default_rng(limit).integers(1, 65, 2000).tolist()
    groups = pack(counts, limit)
    assert sorted(k for group in groups for k in group) == list(range(2000))
    assert all(sum(counts[k] for k in group) <= limit for group in groups)
    assert len(groups) <= 1.02 * -(-sum(counts) // limit) + 1


def test_tokens_by_hand():
    # 16 x 32 px are 2 x 4 tokens; three pictures of them, and 6 + 2 * 2 of text
    assert BUDGET.count(SampleShape("matting_rough", (16, 32), 2, 1)) == 3 * 8 + 10
    assert BUDGET.count(SampleShape("text_to_image", (32, 32), 0, 1)) == 16 + 6
    # 5 pictures of 32 x 32 px are more than a sample may have: each shrinks to 16 x 16
    assert BUDGET.count(SampleShape("decompose_auto", (32, 32), 1, 4)) == 5 * 4 + 6 + 2
    assert replace(BUDGET, seen=0).count(SampleShape("matting_auto", (32, 32), 1, 1)) == 2 * 16 + 6 + 2, (
        "1024 px of canvas"
    )


# ---- what is drawn ---------------------------------------------------------------------------------------------------


def test_the_shape_is_known_before_a_sample_is_drawn(bank, data):
    large = replace(BUDGET, tokens=1000)
    every = dict.fromkeys(TASKS, 1.0)
    for drawn in (mixture(bank, weights=every, budget=large), stream(data, large, tasks=every)):
        found = set()
        for number in range(60):
            (example,) = drawn.draw([number])
            assert drawn.shape(number) == shape_of(example)
            found.add((example.task, len(example.truths), len(example.inputs)))
        assert found <= {(s.task, s.targets, s.inputs) for s in drawn.shapes()} | {
            (t, m, n)
            for t, m, n in found
            if isinstance(drawn, Mixture)  # of which the largest alone are named
        }
        assert len({task for task, _, _ in found}) > 15


@pytest.mark.parametrize("kind", ["scenes", "records"])
def test_batches_keep_the_budget_and_waste_little(bank, data, kind, tiny_model):
    drawn = mixture(bank) if kind == "scenes" else stream(data)
    members = [drawn.members(index) for index in range(drawn.begins(1))]
    assert sorted(k for numbers in members for k in numbers) == list(range(BLOCK)), "every draw is in one batch"
    totals = [sum(BUDGET.count(drawn.shape(k)) for k in numbers) for numbers in members]
    assert max(totals) <= BUDGET.tokens and sum(totals) >= 0.9 * BUDGET.tokens * len(members)
    mixed = [index for index in range(20) if len({drawn.shape(k).task for k in members[index]}) > 1]
    assert len(mixed) > 5
    batch = drawn.batch(mixed[0])
    assert [shape_of(example) for example in batch] == [drawn.shape(k) for k in members[mixed[0]]]


def test_the_count_is_that_of_the_transformer(bank, tiny_model):
    card = tiny_model.card
    budget = Budget(80, 24, card.grid, tiny_model.vae.ratio * 2, card.picture_pixels)
    drawn = mixture(bank, budget=budget)
    for index in range(5):
        cond = tiny_model.condition(drawn.batch(index))
        pictures = sum(layout.target_tokens + layout.input_tokens for layout in cond.layouts)
        shapes = [drawn.shape(k) for k in drawn.members(index)]
        text = sum(budget.count(s) - (pictures_of(s, budget)) for s in shapes)
        assert sum(pictures_of(s, budget) for s in shapes) == pictures and pictures + text <= 80


def pictures_of(shape, budget):
    return replace(budget, words=0, seen=1, tokens=10**9).count(shape) - shape.inputs


def test_a_sample_above_the_budget(bank, data):
    small = replace(BUDGET, tokens=40)
    told = (
        r"a sample of \w+ with [34] pictures of 32x32 px has \d+ tokens, more than tokens=40 of a batch: "
        "raise tokens, or take smaller sizes"
    )
    for made in (lambda: mixture(bank, budget=small), lambda: stream(data, small)):
        with pytest.raises(InputError, match=told):
            made()
    mixture(bank, budget=small, weights={"text_to_image": 1.0, "decompose_auto": 0.0})


@pytest.mark.parametrize("kind", ["scenes", "records"])
def test_tasks_come_by_their_weights(bank, data, kind):
    drawn = mixture(bank) if kind == "scenes" else stream(data)
    members = [k for index in range(drawn.begins(1)) for k in drawn.members(index)]
    counts, total = Counter(drawn.shape(k).task for k in members), sum(WEIGHTS.values())
    wanted = {name: BLOCK * weight / total for name, weight in WEIGHTS.items()}
    assert sum((counts[n] - w) ** 2 / w for n, w in wanted.items()) < 16.27  # 99.9 % at three degrees of freedom
    half = Counter(drawn.shape(k).task for k in members[: BLOCK // 2])
    assert sum((half[n] - w / 2) ** 2 / (w / 2) for n, w in wanted.items()) < 30, "and so at any point"


def test_an_epoch_of_draws_sees_every_row(data):
    drawn = stream(data, tasks={"removal_auto": 1.0})
    seen = Counter(drawn.row(place, turn).id for _, place, turn in map(drawn.plan, range(BLOCK)))
    assert len(seen) == 12 and max(seen.values()) - min(seen.values()) < 0.3 * BLOCK / 12


# ---- one index, one batch --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["scenes", "records"])
def test_a_batch_is_the_same_whoever_draws_it(bank, data, kind):
    def made(**changes):
        return mixture(bank, prompt_dropout=0.5) if kind == "scenes" else stream(data, dropout=0.5, **changes)

    walked, fresh = made(), made()
    straight = [walked.batch(index) for index in range(12)]
    torch.rand(7)
    assert all(same(fresh.batch(index), straight[index]) for index in (11, 3, 7)), "resumed in the middle, and back"
    processes = [made(), made()]
    assert all(same(processes[index % 2].batch(index), straight[index]) for index in range(12))
    assert same(pickle.loads(pickle.dumps(walked)).batch(5), straight[5])
    other = mixture(bank, seed=6, prompt_dropout=0.5) if kind == "scenes" else stream(data, seed=6, dropout=0.5)
    assert not any(same(other.batch(index), straight[index]) for index in range(4))
    dropped = [e.instruction == "" for batch in straight for e in batch]
    assert 0.2 < np.mean(dropped) < 0.8
    assert any(len(set(d)) == 2 for d in ([e.instruction == "" for e in b] for b in straight)), "each by itself"


def test_far_ahead_is_the_same_as_on_the_way(data):
    """Blocks have unlike numbers of batches, which are counted from the first one on."""
    near, far = stream(data), stream(data)
    last = near.begins(2)
    on_the_way = [near.members(index) for index in range(last + 2)]
    assert far.members(last + 1) == on_the_way[-1] and far.members(3) == on_the_way[3]
    assert min(on_the_way[last]) >= 2 * BLOCK > max(on_the_way[last - 1]) and near.begins(1) != last - near.begins(1)


def test_a_curriculum_goes_by_step_block_by_block(data):
    first = stream(data, curriculum=[Stage(0, WEIGHTS)]).begins(1)
    stages = [Stage(0, {"matting_rough": 1.0}), Stage(first // 2, {"matting_rough": 1.0, "text_to_image": 1.0})]
    drawn = stream(data, curriculum=stages, a_step=2)

    def share(block):
        return np.mean([drawn.plan(k)[0] == "text_to_image" for k in range(block * BLOCK, (block + 1) * BLOCK)])

    assert share(0) == 0, "the step at which a block begins"
    step = drawn.begins(1) / 2
    assert step > first // 2 and share(1) == pytest.approx(0.5, abs=0.04)


# ---- the loss --------------------------------------------------------------------------------------------------------


def test_every_sample_counts_alike(bank):
    drawn = mixture(bank)
    count = drawn.begins(1)
    weights = [len(drawn.members(index)) * count / BLOCK for index in range(count)]
    assert sum(weights) == pytest.approx(count) and len(set(weights)) > 2
    assert [drawn.weight(index) for index in range(3)] == pytest.approx(weights[:3])
    assert mixture(bank, budget=None, batch_size=3).weight(0) == 1.0


@pytest.mark.parametrize("weight", ["one", "t"])
def test_a_packed_mixed_batch_has_the_loss_and_gradients_of_its_samples_one_by_one(
    bank, tiny_model, weight, monkeypatch
):
    model = copy.deepcopy(tiny_model).train().requires_grad_(True)
    budget = Budget(200, 24, model.card.grid, 16, model.card.picture_pixels)
    drawn = mixture(bank, budget=budget, weights=dict.fromkeys(TASKS, 1.0))
    index = next(i for i in range(99) if is_mixed([drawn.shape(k) for k in drawn.members(i)]))
    objective, seen = SFTObjective(model, drawn, bank, FlowLoss(weight=weight)), {}
    noise, velocity = model.noise, model.velocity
    monkeypatch.setattr(model, "noise", lambda cond, seeds: noise(cond, seen.setdefault("seeds", seeds)))
    monkeypatch.setattr(model, "velocity", lambda x, t, cond: velocity(x, seen.setdefault("t", t), cond))
    model.transformer.packs = True
    losses = objective(index)
    losses["loss"].backward()
    made = gradients(model)
    monkeypatch.undo()
    model.transformer.packs = False
    batch = drawn.batch(index)
    alone = {}
    for example, t, seed in zip(batch, seen["t"], seen["seeds"], strict=True):
        cond = model.condition([example])
        x0, eps, t = model.encode_targets([example.true_layers()], cond), model.noise(cond, [seed]), t[None]
        factor = t.square() / t.clamp_min(0.05) if weight == "t" else torch.ones(1)
        out = model.velocity(torch.lerp(x0, eps, t.view(-1, 1, 1)), t, cond)
        one = flow_losses(out, eps - x0, factor, None).mean()
        (one * drawn.weight(index) / len(batch)).backward()
        alone.setdefault(example.task, []).append(one.item())
    every = [value for values in alone.values() for value in values]
    assert losses["loss"].item() == pytest.approx(drawn.weight(index) * np.mean(every), rel=1e-5)
    assert losses.keys() == {"loss", *(f"loss/{task}" for task in alone)}
    for task, values in alone.items():
        assert losses[f"loss/{task}"].item() == pytest.approx(np.mean(values), rel=1e-5)
        assert not losses[f"loss/{task}"].requires_grad
    wanted = gradients(model)
    assert made.keys() == wanted.keys() and len(made) > 50
    own, other = (torch.cat([slope.flatten() for slope in each.values()]) for each in (made, wanted))
    assert (own - other).norm() <= 1e-4 * other.norm()


def is_mixed(shapes):
    """Whether tasks, sizes and numbers of inputs and targets differ."""
    return all(len({getattr(s, name) for s in shapes}) > 1 for name in ("task", "size", "inputs", "targets"))


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found
