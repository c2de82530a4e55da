"""Two processes on gloo equal one process that accumulates over the same global batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is not built for it")

# Run by both processes, and imported here as text: a spawned process could not find this module by name.
OBJECTIVES = '''
import os, signal, sys
import torch
from torch import nn
from omnialpha.data import bank as banks
from omnialpha.data.mixture import Mixture
from omnialpha.pipeline import OmniAlpha
from omnialpha.training.loop import FitSettings, Objective, fit
from omnialpha.training.sft import FlowLoss, SFTObjective

class Branches(Objective):
    """Even and odd indices use other parameters, one parameter is never used; `stop`: (rank, index) of a SIGTERM."""
    def __init__(self, stop=None):
        super().__init__()
        torch.manual_seed(0)
        self.even, self.odd, self.both = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        self.never, self.stop = nn.Linear(2, 2), stop
    def forward(self, index):
        if self.stop == (int(os.environ.get("RANK", 0)), index):
            os.kill(os.getpid(), signal.SIGTERM)
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(index))
        hidden = (self.odd if index % 2 and index != 3 else self.even)(x).tanh()
        return {"loss": (self.both(hidden) - x.sum(1, keepdim=True)).square().mean()}
    def export(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(os.getpid())).write_text("exported")

def sft(folder):
    """Text alone, one picture, several: in a step the two processes use other parts of the model."""
    model = OmniAlpha.from_folder(folder).requires_grad_(True).train()
    weights = dict.fromkeys(("text_to_image", "matting_rough", "decompose_auto"), 1.0)
    bank = banks.procedural(12, 4, 16, 3)
    mixture = Mixture(bank, weights, [(16, 16), (16, 32)], 2, seed=4, prompt_dropout=0.2)
    return SFTObjective(model, mixture, bank, FlowLoss(weight="t"))

def settings(folder, **changes):
    base = dict(steps=4, lr=1e-3, device="cpu", tensorboard=False, ema=0.9, log_every=1, weight_decay=0.01)
    return FitSettings(output=str(folder), **base | changes)
'''
WORKER = (
    OBJECTIVES
    + """
model, out = sys.argv[1:]
fit(Branches(), settings(out + "/branches"), quiet=True)
fit(sft(model), settings(out + "/sft"), quiet=True)
fit(Branches(stop=(1, 5)), settings(out + "/stopped", steps=100), quiet=True)
if torch.distributed.get_world_size() == 2:
    print("two", torch.distributed.get_backend())
torch.distributed.destroy_process_group()
"""
)


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


@pytest.fixture(scope="module")
def ours():
    """The objectives of the worker, in this process."""
    names = {}
    exec(OBJECTIVES, names)
    return names


@pytest.fixture(scope="module")
def two(tmp_path_factory, tiny_model_folder):
    """The folder that two processes wrote; both ended well."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tiny_model_folder), str(folder)],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        for worker in workers:
            out, _ = worker.communicate(timeout=900)
            assert worker.returncode == 0 and "two gloo" in out, out
    finally:
        for worker in workers:
            worker.kill()
    return folder


@pytest.mark.parametrize("name", ["branches", "sft"])
def test_two_processes_equal_one(two, ours, tiny_model_folder, tmp_path, name):
    objective = ours["sft"](tiny_model_folder) if name == "sft" else ours["Branches"]()
    start = {n: p.detach().clone() for n, p in objective.named_parameters()}
    ours["fit"](objective, ours["settings"](tmp_path, accumulate=2), quiet=True)
    one, both = checkpoint(tmp_path), checkpoint(two / name)
    assert one["step"] == both["step"] == 4 and one["weights"].keys() == both["weights"].keys()
    # Relative to how far a tensor moved: Adam divides a gradient by its own size, so that the rounding of one that is
    # nearly zero shows in a single weight, differently with another number of threads.
    for (key, wanted), a, b in zip(one["weights"].items(), one["average"], both["average"], strict=True):
        moved = float((wanted - start[key]).norm())
        assert float((both["weights"][key] - wanted).norm()) <= 1e-3 * moved + 1e-6, key
        assert float((a - b).norm()) <= 1e-3 * moved + 1e-6, key
    steps = [float((one["weights"][n] - start[n]).abs().max()) for n in one["weights"]]
    assert sum(m > 5e-4 for m in steps) > 0.5 * len(steps), "far more than the tolerance"


def test_one_micro_batch_less_is_another_result(two, ours, tmp_path):
    """What the tolerance is worth: a process that went unheard would show."""
    ours["fit"](ours["Branches"](), ours["settings"](tmp_path), quiet=True)
    one, both = checkpoint(tmp_path), checkpoint(two / "branches")
    assert (one["weights"]["both.weight"] - both["weights"]["both.weight"]).abs().max() > 1e-4


def test_one_process_writes(two):
    for name in ("branches", "sft"):
        assert len((two / name / "log.jsonl").read_text().splitlines()) == 4
    assert len(list((two / "branches/model").iterdir())) == 1
    assert not list(Path(two).rglob("*.part"))


def test_a_signal_to_one_process_stops_both_at_the_same_step(two):
    """Index 5 is the second process's third step."""
    assert checkpoint(two / "stopped")["step"] == 3
    assert len(list((two / "stopped/model").iterdir())) == 1
