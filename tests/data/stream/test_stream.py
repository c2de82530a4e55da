"""The stream of recorded datasets: wanted proportions, whole epochs, and batches that their index decides."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch

from layered import front, layered_row, manifest, pair_row, save, write_manifest
from omnialpha import config
from omnialpha.data.records.check import load
from omnialpha.data.stream.datasets import DatasetSettings
from omnialpha.data.stream.stream import BLOCK, RecordGroup, Stage, StreamSettings, open_stream
from omnialpha.errors import InputError
from omnialpha.tasks import TASKS

SIZES = [(16, 16)]
WEIGHTS = {"matting_auto": 4.0, "removal_rough": 2.0, "decompose_auto": 1.0, "text_to_image": 1.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Manifests "one" of 12 records, "many" of 48 without captions, and "pairs" of 5."""
    folder = tmp_path_factory.mktemp("data")
    manifest(folder / "one", 12)
    rows = [layered_row(folder / "many", n % 3, captions=None, id=f"m{n}") for n in range(48)]
    write_manifest(folder / "many/rows.jsonl", rows)
    write_manifest(folder / "pairs.jsonl", [pair_row(folder, n) for n in range(5)])
    return folder


def opened(*datasets, sizes=SIZES, batch=1, seed=5, dropout=0.0, a_step=1, **settings):
    return open_stream(StreamSettings(list(datasets), **settings), sizes, batch, seed, dropout, a_step)


def one(data, **settings):
    return DatasetSettings(str(data / "one/rows.jsonl"), **settings)


def many(data, **settings):
    return DatasetSettings(str(data / "many/rows.jsonl"), **settings)


def ids(stream, indexes, batch=1):
    """Which rows a stream takes."""
    found = []
    for index in indexes:
        _, place, turn = stream.plan(index)
        found += [stream.row(place, turn * batch + k).id for k in range(batch)]
    return found


def same(a, b):
    words = [(e.task, e.instruction, e.size) for e in a] == [(e.task, e.instruction, e.size) for e in b]
    pictures = zip((p for e in a for p in e.inputs), (p for e in b for p in e.inputs), strict=True)
    targets = zip((t for e in a for t in e.truths), (t for e in b for t in e.truths), strict=True)
    return words and all(torch.equal(p, q) for p, q in (*targets, *pictures))


def statistic(counts, shares):
    """Chi-square of counts against shares by name."""
    total, scale = sum(counts.values()), sum(shares.values())
    wanted = {name: total * share / scale for name, share in shares.items()}
    return sum((counts[name] - w) ** 2 / w for name, w in wanted.items())


# ---- proportions -----------------------------------------------------------------------------------------------------


def test_the_first_thousand_draws_match_the_weights(data):
    stream = opened(one(data, weight=3.0), many(data, weight=1.0), tasks=WEIGHTS)
    plans = [stream.plan(i) for i in range(1000)]
    tasks = Counter(task for task, _, _ in plans)
    assert tasks.keys() == WEIGHTS.keys()
    assert statistic(tasks, WEIGHTS) < 16.27  # 99.9 % quantile at three degrees of freedom
    assert statistic(tasks, dict.fromkeys(WEIGHTS, 1.0)) > 100
    both = Counter(place for task, place, _ in plans if task != "text_to_image")
    assert statistic(both, {0: 3, 1: 1}) < 10.83 and statistic(both, {0: 1, 1: 1}) > 100
    assert {place for task, place, _ in plans if task == "text_to_image"} == {0}, "the other has no captions"
    assert stream.batch(7)[0].task == plans[7][0]


@pytest.mark.parametrize(
    ("settings", "share"), [({}, 12 / 60), ({"temperature": 2.0}, 1 / 3), ({"temperature": 1e9}, 0.5)]
)
def test_datasets_without_weights_go_by_size_and_temperature(data, settings, share):
    stream = opened(one(data), many(data), tasks={"matting_auto": 1.0}, **settings)
    found = Counter(stream.plan(i)[1] for i in range(2000))
    assert statistic(found, {0: share, 1: 1 - share}) < 10.83


def test_repeat_multiplies_the_size(data):
    stream = opened(one(data, repeat=4.0), many(data), tasks={"matting_auto": 1.0})
    assert statistic(Counter(stream.plan(i)[1] for i in range(2000)), {0: 1, 1: 1}) < 10.83


def test_rows_of_different_kinds_come_in_proportion(data, tmp_path):
    """One dataset of 9 records of one layer and 3 of two is two sources, and every row is as likely as any other."""
    rows = [layered_row(tmp_path, n % 3, 1 + (n % 4 == 0), id=f"k{n}") for n in range(12)]
    path = write_manifest(tmp_path / "rows.jsonl", rows)
    stream = opened(DatasetSettings(str(path)), tasks={"decompose_auto": 1.0}, batch=2)
    assert [len(s.records) for s in stream.sources] == [3, 9]
    assert statistic(Counter(ids(stream, range(3000), 2)), {f"k{n}": 1 for n in range(12)}) < 31.3
    assert {len(e.truths) for i in range(10) for e in stream.batch(i)} == {2, 3}


def test_tasks_are_even_where_no_weights_are_given(data):
    stream = opened(one(data))
    found = Counter(stream.plan(i)[0] for i in range(2100))
    assert found.keys() == TASKS.keys() and statistic(found, dict.fromkeys(TASKS, 1.0)) < 45.3
    limited = opened(one(data, tasks=["matting_auto", "removal_auto"]))
    assert {limited.plan(i)[0] for i in range(50)} == {"matting_auto", "removal_auto"}


def test_a_curriculum_changes_the_proportions(data):
    stages = [Stage(0, {"matting_auto": 1.0}), Stage(1000, {"matting_auto": 1.0, "removal_auto": 3.0})]
    stream = opened(one(data), curriculum=stages, a_step=2)
    assert stream.names == ("matting_auto", "removal_auto")
    shares = stream.proportions(np.array([0, 500, 1000, 5000]))
    assert np.allclose(shares[:, 1], [0, 0.375, 0.75, 0.75])

    def share(start, count=1000):
        return sum(stream.plan(i)[0] == "removal_auto" for i in range(start, start + count)) / count

    assert share(0, 100) < 0.06 and abs(share(500) - 0.375) < 0.07, "two batches a step"
    assert abs(share(2000) - 0.75) < 0.06 and abs(share(9000) - 0.75) < 0.06
    switched = opened(one(data), curriculum=[Stage(0, {"matting_auto": 1}), Stage(9, {"matting_auto": 1}), Stage(10, {"removal_auto": 1})])  # noqa: E501  # fmt: skip
    assert [switched.plan(i)[0] for i in (0, 9, 10, 99)] == ["matting_auto"] * 2 + ["removal_auto"] * 2


# ---- epochs ----------------------------------------------------------------------------------------------------------


def test_an_epoch_sees_every_row_once(data):
    stream = opened(one(data), tasks=WEIGHTS, batch=3)
    epochs = [ids(stream, range(4 * k, 4 * k + 4), 3) for k in range(3)]
    assert all(sorted(epoch) == sorted(f"r{n}" for n in range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != sorted(epochs[0])
    assert ids(opened(one(data), tasks=WEIGHTS, batch=3, seed=6), range(4), 3) != epochs[0]


def test_each_dataset_has_epochs_of_its_own(data):
    stream = opened(one(data), many(data), tasks={"matting_auto": 1.0})
    found = ids(stream, range(400))
    for mine in ([i for i in found if i.startswith("r")], [i for i in found if i.startswith("m")]):
        count = len(set(mine))
        epochs = [mine[k : k + count] for k in range(0, len(mine) - count + 1, count)]
        assert len(epochs) > 1 and all(len(set(epoch)) == count for epoch in epochs)


# ---- one index, one batch --------------------------------------------------------------------------------------------


def test_index_500_alone_is_index_500_in_sequence(data):
    settings = {"tasks": WEIGHTS, "batch": 2, "dropout": 0.5}
    walked = opened(one(data), many(data), **settings)
    plans = [walked.plan(i) for i in range(501)]
    in_turn = walked.batch(500)
    torch.rand(7)
    fresh = opened(one(data), many(data), **settings)
    assert same(fresh.batch(500), in_turn) and fresh.plan(500) == plans[500]
    assert [fresh.plan(i) for i in reversed(range(501))] == plans[::-1]
    assert same(pickle.loads(pickle.dumps(fresh)).batch(500), in_turn)
    assert not same(opened(one(data), many(data), **settings, seed=6).batch(500), in_turn)


def test_far_ahead_is_the_same_as_on_the_way(data):
    """Counts go on from one block of draws to the next."""
    near, far = (opened(one(data), many(data), tasks=WEIGHTS) for _ in range(2))
    index = 2 * BLOCK + 3
    seen = Counter(near.plan(i)[1] for i in range(index))
    assert far.plan(index) == near.plan(index)
    assert far.plan(index)[2] == seen[far.plan(index)[1]]


def test_two_processes_interleaved_are_one(data):
    alone, workers = opened(one(data), tasks=WEIGHTS, batch=2), [opened(one(data), tasks=WEIGHTS, batch=2)] * 2
    assert all(same(workers[i % 2].batch(i), alone.batch(i)) for i in range(8))
    shared = [ids(worker, range(rank, 6, 2), 2) for rank, worker in enumerate(workers)]
    assert sorted(shared[0] + shared[1]) == sorted(f"r{n}" for n in range(12)), "and no row comes twice in an epoch"


def test_prompts_are_dropped_at_their_rate(data):
    batches = map(opened(one(data), tasks=WEIGHTS, batch=8, dropout=0.25).batch, range(25))
    dropped = [e.instruction == "" for batch in batches for e in batch]
    assert abs(np.mean(dropped) - 0.25) < 0.1


# ---- sizes -----------------------------------------------------------------------------------------------------------


def test_rows_go_to_the_nearest_shape(tmp_path):
    shapes = {"wide": (20, 40), "tall": (40, 20), "even": (30, 32)}
    rows = []
    for name, (height, width) in shapes.items():
        save(front(1, height=height, width=width), tmp_path / f"{name}.png")
        rows.append({"id": name, "foreground": f"{name}.png", "captions": {"foreground": name}})
    path = str(write_manifest(tmp_path / "rows.jsonl", rows))
    sizes = [(16, 16), (16, 32), (32, 16), (32, 32)]
    wanted = {"wide": ((16, 32),), "tall": ((32, 16),), "even": ((16, 16), (32, 32))}
    for how in ("stop", "ignore"):
        stream = opened(DatasetSettings(path, bad=how), sizes=sizes)
        assert {source.records[0].id: source.sizes for source in stream.sources} == wanted
    seen = {(stream.plan(i)[1], stream.batch(i)[0].truths[0].shape[-2:]) for i in range(60)}
    assert len(seen) == 4, "of two sizes of one shape both are drawn"
    (alone,) = opened(DatasetSettings(path), sizes=sizes, buckets="any").sources
    assert alone.sizes == tuple(sizes) and len(alone.records) == 3


# ---- pairs, bad rows, mistakes ---------------------------------------------------------------------------------------


def test_pairs_and_layers_in_one_stream(data):
    pairs = DatasetSettings(str(data / "pairs.jsonl"), task="matting_rough")
    stream = opened(one(data), pairs, tasks={"matting_rough": 1.0}, batch=2)
    assert {name[0] for name in ids(stream, range(40), 2)} == {"r", "p"}
    shapes = [[e.true_layers().shape for e in stream.batch(i)] for i in range(6)]
    assert shapes == [[(1, 4, 16, 16)] * 2] * 6


def test_a_row_that_fails_as_it_is_drawn(data, tmp_path):
    """Skipped for the next one, with a warning, where bad rows are to be skipped; told otherwise."""
    rows = [layered_row(tmp_path, n) for n in range(4)]
    path = write_manifest(tmp_path / "rows.jsonl", rows)
    cut = tmp_path / "pictures/2-bg.png"
    cut.write_bytes(cut.read_bytes()[:100])
    settings = {"tasks": {"removal_auto": 1.0}}
    with pytest.raises(InputError, match=r"record 'r2': .*2-bg.png is damaged or cut off"):
        [opened(DatasetSettings(str(path)), **settings).batch(i) for i in range(4)]
    stream = opened(DatasetSettings(str(path), bad="skip"), **settings)
    with pytest.warns(UserWarning, match="skipped: record 'r2'"):
        made = [stream.batch(i) for i in range(4)]
    reds = {round(float(batch[0].truths[0][0].mean()) * 25.5) for batch in made}
    assert reds == {0, 1, 3}


def test_settings_of_a_recipe():
    tree = {"datasets": [{"path": "a.jsonl", "sample": 3, "bad": "skip"}], "tasks": {"matting_auto": 1},
            "curriculum": [{"step": 0, "tasks": {"matting_auto": 1}}]}  # fmt: skip
    made = config.build(StreamSettings, tree)
    assert made.datasets == [DatasetSettings("a.jsonl", sample=3.0, bad="skip")]
    assert made.curriculum == [Stage(0, {"matting_auto": 1.0})]
    with pytest.raises(InputError, match="did you mean 'datasets.weight'"):
        config.build(StreamSettings, {"datasets": [{"path": "a", "wight": 1.0}]})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"tasks": {"matting_text": 1.0}}, "no record serves matting_text: give it weight 0, or a dataset"),
        ({"tasks": {"mating_auto": 1.0}}, "unknown task 'mating_auto': did you mean 'matting_auto'"),
        ({"tasks": {"matting_auto": -1.0}}, "matting_auto has the weight -1.0"),
        ({"tasks": {"matting_auto": 0.0}}, "no task has a weight above 0"),
        ({"tasks": WEIGHTS, "curriculum": [Stage(0, WEIGHTS)]}, "both tasks and a curriculum"),
        ({"curriculum": [Stage(5, {"matting_auto": 1}), Stage(5, {"matting_auto": 1})]}, r"stages at steps \[5, 5\]"),
        ({"temperature": 0.0}, "temperature=0.0 is out of range"),
    ],
)
def test_mixtures_that_make_no_sense(data, settings, told):
    with pytest.raises(InputError, match=told):
        opened(many(data), **settings)


def test_weights_are_given_to_all_datasets_or_to_none(data):
    with pytest.raises(InputError, match="1 of 2 datasets have a weight: give all one, or none"):
        opened(one(data, weight=1.0), many(data))
    with pytest.raises(InputError, match="no dataset has a weight above 0"):
        opened(one(data, weight=0.0))
    with pytest.raises(InputError, match="so a temperature says nothing"):
        opened(one(data, weight=1.0), temperature=2.0)
    with pytest.raises(InputError, match="has no"):
        opened()
    unused = opened(one(data, weight=0.0), many(data, weight=1.0))
    assert "matting_text" not in unused.names and {unused.plan(i)[1] for i in range(50)} == {1}


def test_a_source_weighs_its_rows(data):
    records = tuple(c.record for c in load(one(data)))
    assert RecordGroup(records, ("matting_auto",), ((16, 16),), 0.5).total == 6.0
