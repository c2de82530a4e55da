"""FSDP2 on two processes equals one process, checkpoints pass between them, and what is exported is whole."""

import json

import pytest
import torch

from omnialpha.errors import InputError
from processes import checkpoint, in_this_process, one_thread, run_two  # noqa: F401 - a fixture

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is not built for it")

# Run by both processes, and imported here as text: a spawned process could not find this module by name.
OBJECTIVES = '''
import math, os, sys
import torch
from torch import nn
from omnialpha.errors import InputError
from omnialpha.training.loop import FitSettings, Objective, fit

class Branches(Objective):
    """Even and odd indices use other parameters, two groups; some have less rows than there are processes."""
    def __init__(self, bad=None):
        super().__init__()
        torch.manual_seed(0)
        self.even, self.odd, self.both = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 1)
        self.last, self.bad = nn.Linear(5, 1), bad
        self.register_buffer("scale", torch.tensor(2.0))
    def groups(self):
        first = [*self.even.parameters(), *self.odd.parameters(), *self.both.parameters()]
        return [{"params": first}, {"params": list(self.last.parameters()), "pace": 0.5, "betas": (0.5, 0.9)}]
    def forward(self, index):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(index))
        hidden = (self.odd if index % 2 else self.even)(x).tanh()
        loss = (self.both(hidden) + self.last(hidden) - self.scale * x.sum(1, keepdim=True)).square().mean()
        return {"loss": loss * math.nan if index == self.bad else loss}
    def validate(self, folder, step):
        torch.rand(3)
        return {"val": float(self.both.weight.sum())}
    def export(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), folder / "weights.pt")

def settings(folder, **changes):
    base = dict(steps=6, lr=1e-2, device="cpu", trackers=[], ema=0.9, log_every=1, weight_decay=0.01, grad_clip=0.5)
    return FitSettings(output=str(folder), **base | changes)
'''
WORKER = (
    OBJECTIVES
    + """
out = sys.argv[1]
os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
fit(Branches(), settings(out + "/straight", validate_every=6), quiet=True)
for name in ("plain first", "parts", "plain last"):
    fit(Branches(), settings(out + "/" + name, steps=3 if name != "plain first" else 6), quiet=True)
fit(Branches(), settings(out + "/parts"), quiet=True)
fit(Branches(), settings(out + "/accumulated", accumulate=2, steps=3), quiet=True)
try:
    fit(Branches(bad=5), settings(out + "/nan", save_every=1), quiet=True)
except InputError as error:
    print("stopped:", error)
torch.distributed.destroy_process_group()
"""
)


@pytest.fixture(scope="module")
def ours():
    return in_this_process(OBJECTIVES)


@pytest.fixture(scope="module")
def two(tmp_path_factory, ours):
    """The folder that two processes wrote, and what they said."""
    folder = tmp_path_factory.mktemp("two")
    ours["fit"](ours["Branches"](), ours["settings"](folder / "plain first", steps=3, accumulate=2), quiet=True)
    return folder, run_two(WORKER, folder)


@pytest.fixture(scope="module")
def one(tmp_path_factory, ours):
    """The same six steps in one process."""
    folder = tmp_path_factory.mktemp("one")
    ours["fit"](ours["Branches"](), ours["settings"](folder, accumulate=2, validate_every=6), quiet=True)
    return folder


def assert_near(a, b, start):
    """Two checkpoints agree within 1e-5 of how far each weight went."""
    assert a["step"] == b["step"] and a["weights"].keys() == b["weights"].keys()
    for key, wanted in a["weights"].items():
        moved = float((wanted - start[key]).norm())
        assert moved > 1e-3 and float((b["weights"][key] - wanted).norm()) < 1e-5 * moved, key
    for x, y in zip(a["average"], b["average"], strict=True):
        assert x.shape == y.shape and float((x - y).abs().max()) < 1e-6
    first, second = a["optimizer"], b["optimizer"]
    assert first["state"].keys() == second["state"].keys() and first["param_groups"] == second["param_groups"]
    for index, own in first["state"].items():
        assert own["step"] == second["state"][index]["step"]
        assert float((own["exp_avg_sq"] - second["state"][index]["exp_avg_sq"]).abs().max()) < 1e-6


def start(ours):
    return {n: p.detach().clone() for n, p in ours["Branches"]().named_parameters()}


def test_two_shards_equal_one_process(two, one, ours):
    assert_near(checkpoint(one), checkpoint(two[0] / "straight"), start(ours))


def test_checkpoints_pass_from_shards_to_one_process_and_back(two, one, ours):
    folder = two[0]
    ours["fit"](ours["Branches"](), ours["settings"](folder / "plain last", accumulate=2), quiet=True)
    for name in ("plain first", "plain last"):
        assert_near(checkpoint(one), checkpoint(folder / name), start(ours))


def test_a_resumed_run_equals_a_straight_one_bit_for_bit(two):
    straight, parts = (torch.load(two[0] / n / "checkpoint.pt", weights_only=True) for n in ("straight", "parts"))
    for kind in ("weights", "optimizer", "average"):
        flat = [torch.utils._pytree.tree_leaves(state[kind]) for state in (straight, parts)]
        assert len(flat[0]) == len(flat[1]) > 5
        assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(*flat, strict=True))


def test_gradients_of_micro_batches_are_summed_before_they_are_exchanged(two, ours, tmp_path):
    """Three steps of four micro-batches."""
    ours["fit"](ours["Branches"](), ours["settings"](tmp_path, accumulate=4, steps=3), quiet=True)
    assert_near(checkpoint(tmp_path), checkpoint(two[0] / "accumulated"), start(ours))


def test_figures_are_those_of_all_processes(two, one):
    rows = [
        [json.loads(line) for line in (f / "log.jsonl").read_text().splitlines()] for f in (one, two[0] / "straight")
    ]
    assert [len(r) for r in rows] == [7, 7]
    for a, b in zip(*rows, strict=True):
        assert a.keys() == b.keys()
        assert all(a[k] == pytest.approx(b[k], rel=1e-4) for k in a if k != "time")
    assert rows[0][-1].keys() >= {"val"}


def test_one_process_that_is_not_finite_stops_both(two):
    folder, said = two
    assert all("stopped: the loss became nan at step 2" in words for words in said)
    assert checkpoint(folder / "nan")["step"] == 2 and not (folder / "nan/model").exists()


def test_what_is_exported_is_whole_and_averaged(two):
    exported = torch.load(two[0] / "straight/model/weights.pt", weights_only=True)
    state = checkpoint(two[0] / "straight")
    assert [k for k in exported if k != "scale"] == list(state["weights"]) and exported["scale"] == 2.0
    for key, average in zip(state["weights"], state["average"], strict=False):  # the last group has none
        assert torch.equal(exported[key], average) and not torch.equal(average, state["weights"][key])
    assert torch.equal(exported["last.weight"], state["weights"]["last.weight"])


@pytest.mark.parametrize(
    ("environment", "changes", "words"),
    [
        ({"FSDP_VERSION": "1"}, {}, "add --fsdp_version 2"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "--fsdp_activation_checkpointing renames weights"),
        ({"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, {}, "use TRANSFORMER_BASED_WRAP"),
        ({}, {"optimizer": "adamw8bit"}, "'adamw8bit', which knows no sharded weights"),
    ],
)
def test_what_cannot_be_sharded_is_refused(ours, tmp_path, monkeypatch, environment, changes, words):
    for key, value in ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} | environment).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(InputError, match=words):
        ours["fit"](ours["Branches"](), ours["settings"](tmp_path, **changes), quiet=True)
