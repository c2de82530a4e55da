"""Batches by number from worker processes: the same in the same order, mistakes in one sentence, runs bit-equal."""

import os
import signal

import pytest
import torch

from layered import manifest
from omnialpha.data.stream.datasets import DatasetSettings
from omnialpha.data.stream.stream import StreamSettings, open_stream
from omnialpha.data.synthetic import bank as banks
from omnialpha.errors import InputError
from omnialpha.training.loader import batches, pack, unpack
from omnialpha.training.loop import Objective, fit
from omnialpha.training.sources import FlattenedPictures, ScenePictures
from training_runs import assert_resumes, logged, settings

SIZE = (16, 24)


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    path = manifest(tmp_path_factory.mktemp("rows"), 5)
    return open_stream(StreamSettings([DatasetSettings(str(path))]), [SIZE], 2, 3)


def pictures():
    return FlattenedPictures(ScenePictures(banks.procedural(8, 3, 16, 1), 4, [SIZE], 2), 0.3, 7)


def drawn(dataset, indices, workers, **changes):
    return list(batches(dataset, indices, workers, **({"prefetch": 2, "pinned": False} | changes)))


@pytest.mark.parametrize("workers", [1, 2])
def test_examples_are_the_same_whoever_makes_them(stream, workers):
    wanted, got = (drawn(stream, range(4, 24, 3), n) for n in (0, workers))
    assert len(wanted) == len(got) == 7
    for (examples, weight), (others, same) in zip(wanted, got, strict=True):
        assert weight == same == 1.0 and len(examples) == len(others) == 2
        for a, b in zip(examples, others, strict=True):
            assert (a.task, a.roles, a.instruction, a.size, a.prompt) == (
                b.task,
                b.roles,
                b.instruction,
                b.size,
                b.prompt,
            )
            assert all(torch.equal(p, q) for p, q in zip(a.inputs + a.truths, b.inputs + b.truths, strict=True))


def test_pictures_are_the_same_whoever_makes_them():
    for a, b in zip(drawn(pictures(), range(5), 0), drawn(pictures(), range(5), 2), strict=True):
        assert torch.equal(a, b)


def test_what_is_packed_comes_back():
    given = {
        "a": [torch.arange(5), torch.zeros(0, 3), None],
        "b": (torch.tensor(True), torch.ones(2, 3, dtype=torch.bfloat16)),
    }
    data, buffer = pack(given)
    made = unpack(data, buffer)
    assert made["a"][2] is None and buffer.dtype == torch.uint8
    for a, b in zip(given["a"][:2] + list(given["b"]), made["a"][:2] + list(made["b"]), strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype and a.shape == b.shape
    assert unpack(*pack("words")) == "words"


class Failing:
    def __getitem__(self, index):
        if index == 2:
            raise InputError("picture 2 is damaged.")
        return torch.tensor(float(index))


def test_a_mistake_in_a_worker_is_told_in_one_sentence():
    made = batches(Failing(), range(9), 2, 2, False)
    assert [float(next(made)) for _ in range(2)] == [0.0, 1.0]
    with pytest.raises(InputError, match=r"^picture 2 is damaged\.$"):
        next(made)
    made.close()


class Mean(Objective):
    """The mean of pictures, which it is to learn."""

    def __init__(self, act=lambda index: None):
        super().__init__()
        self.weight, self.data, self.act = torch.nn.Parameter(torch.zeros(4)), pictures(), act

    def forward(self, index, batch=None):
        self.act(index)
        batch = self.data[index] if batch is None else batch
        return {"loss": (batch.mean((0, 2, 3)) - self.weight).square().sum()}

    def export(self, folder):
        folder.mkdir(parents=True, exist_ok=True)


def test_a_run_with_workers_is_the_run_without_and_resumes(tmp_path):
    assert_resumes(Mean, tmp_path / "with", workers=2, accumulate=2)
    fit(Mean(), settings(tmp_path / "without", warmup=2, ema=0.9, weight_decay=0.01, accumulate=2), quiet=True)
    assert logged(tmp_path / "without") == logged(tmp_path / "with/straight")


def test_figures_are_put_together_at_log_every_alone(tmp_path):
    fit(Mean(), settings(tmp_path / "each"), quiet=True)
    last = fit(Mean(), settings(tmp_path / "few", log_every=4), quiet=True)
    each, few = logged(tmp_path / "each"), logged(tmp_path / "few")
    assert few == [pytest.approx(sum(each[:4]) / 4)] and last["loss"] == pytest.approx(sum(each[4:]) / 2)


def test_an_interrupted_run_with_workers_saves(tmp_path):
    objective = Mean(lambda index: os.kill(os.getpid(), signal.SIGINT) if index == 3 else None)
    fit(objective, settings(tmp_path, workers=1), quiet=True)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 4


def test_settings_that_cannot_be(tmp_path):
    with pytest.raises(InputError, match="fit.workers=-1, fit.prefetch=2: use 0 and 1 or more"):
        settings(tmp_path, workers=-1)
