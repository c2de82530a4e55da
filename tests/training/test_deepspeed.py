"""ZeRO by DeepSpeed itself, two processes on a CPU: as one process, and what it would get wrong is refused."""

import json
from importlib.util import find_spec

import pytest
import torch

from processes import run_two

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("deepspeed"), reason="DeepSpeed is not installed"),
    pytest.mark.skipif(torch.accelerator.is_available(), reason="DeepSpeed would take the GPU"),
]

OBJECTIVE = '''
import os, sys
import torch
from torch import nn
from omnialpha.errors import InputError
from omnialpha.training.loop import FitSettings, Objective, fit

class Pair(Objective):
    """Two groups. Processes may go through the weights in different orders (`crossed`), or say that they would."""
    def __init__(self, crossed=False):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.both = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 1)
        self.last, self.crossed = nn.Linear(5, 1), crossed
    def groups(self):
        first = [*self.one.parameters(), *self.two.parameters(), *self.both.parameters()]
        return [{"params": first}, {"params": list(self.last.parameters()), "pace": 0.5, "betas": (0.5, 0.9)}]
    def forward(self, index):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(index))
        first, second = (self.two, self.one) if self.crossed and index % 2 else (self.one, self.two)
        hidden = first(x).tanh() * second(x).sigmoid()
        loss = (self.both(hidden) + self.last(hidden) - x.sum(1, keepdim=True)).square().mean()
        return {"loss": loss, "half": torch.tensor(float(torch.is_autocast_enabled("cpu")))}
    def export(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), folder / "weights.pt")

def settings(folder, **changes):
    base = dict(steps=6, lr=1e-2, warmup=3, device="cpu", trackers=[], ema=0.9, log_every=1, weight_decay=0.01)
    return FitSettings(output=str(folder), **base | {"grad_clip": 0.0} | changes)
'''
WORKER = (
    OBJECTIVE
    + """
out, stage = sys.argv[1:]
os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage, "DS_ACCELERATOR": "cpu"}
fit(Pair(), settings(out + "/straight"), quiet=True)
for steps in (3, 6):
    fit(Pair(), settings(out + "/parts", steps=steps), quiet=True)
fit(Pair(), settings(out + "/accumulated", steps=3, accumulate=2), quiet=True)
fit(Pair(), settings(out + "/plain last"), quiet=True)
fit(Pair(), settings(out + "/half", steps=1, precision="bf16"), quiet=True)
from accelerate.state import AcceleratorState
print(AcceleratorState().distributed_type, torch.distributed.get_world_size())
Pair.varied = True
for crossed in (False, True):
    try:
        fit(Pair(crossed), settings(out + "/refused"), quiet=True)
    except InputError as error:
        print("refused:", error)
    Pair.varied = False
torch.distributed.destroy_process_group()
"""
)


@pytest.fixture(scope="module")
def ours():
    names = {}
    exec(OBJECTIVE, names)
    return names


@pytest.fixture(scope="module", params=["1", "2"])
def two(request, ours, tmp_path_factory):
    """The folder that two processes wrote with a stage of ZeRO, and what each of them said."""
    folder = tmp_path_factory.mktemp("two")
    ours["fit"](ours["Pair"](), ours["settings"](folder / "plain last", steps=3, accumulate=2), quiet=True)
    return folder, run_two(WORKER, folder, request.param, LOCAL_WORLD_SIZE="2")


@pytest.fixture(scope="module")
def one(ours, tmp_path_factory):
    """The same steps in one process."""
    folder = tmp_path_factory.mktemp("one")
    ours["fit"](ours["Pair"](), ours["settings"](folder / "straight", accumulate=2), quiet=True)
    ours["fit"](ours["Pair"](), ours["settings"](folder / "accumulated", steps=3, accumulate=4), quiet=True)
    return folder


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def leaves(folder):
    return torch.utils._pytree.tree_leaves(checkpoint(folder))


def near(a, b):
    """Weights, averages, moments and steps; the stored rate of a group is of no step but the last."""
    states = [checkpoint(folder) for folder in (a, b)]
    kept = [[s["weights"], s["average"], dict(sorted(s["optimizer"]["state"].items()))] for s in states]
    pairs = list(zip(*map(torch.utils._pytree.tree_leaves, kept), strict=True))
    return len(pairs) > 20 and all(torch.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in pairs)


def test_it_was_deepspeed(two):
    assert all("DistributedType.DEEPSPEED 2" in words for words in two[1])


@pytest.mark.parametrize("name", ["straight", "accumulated"])
def test_two_processes_equal_one(two, one, ours, name):
    assert near(one / name, two[0] / name)
    start = ours["Pair"]().state_dict()
    moved = {key: (w - start[key]).abs().max() for key, w in checkpoint(two[0] / name)["weights"].items()}
    assert min(moved.values()) > 1e-3


def test_a_plain_run_goes_on_with_it(two, one):
    assert near(one / "straight", two[0] / "plain last")


def test_a_resumed_run_equals_a_straight_one_bit_for_bit(two):
    straight, parts = (leaves(two[0] / name) for name in ("straight", "parts"))
    assert len(straight) > 20
    assert all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(straight, parts, strict=True)
    )


def test_precision_is_the_recipes(two):
    rows = [json.loads((two[0] / f / "log.jsonl").read_text().splitlines()[0]) for f in ("straight", "half")]
    assert [row["half"] for row in rows] == [0.0, 1.0] and rows[0]["loss"] != rows[1]["loss"]


def test_what_it_would_mix_up_is_refused(two):
    for words in two[1]:
        refused = [line for line in words.splitlines() if line.startswith("refused:")]
        assert "use other weights by task" in refused[0] and "different weights in step 0" in refused[1]
