"""Short training runs that the tests share, imported as `training_runs`."""

import json

import torch

from omnialpha.training.loop import FitSettings, fit

# A recipe of reinforcement without an algorithm, as small as it can be
REINFORCEMENT = """
kind = "reinforcement"
start = "unset"
batch = 1
sizes = [[16, 16], [16, 32]]
prompt_dropout = 0.0
groups = 2
validation = 1
[fit]
output = "unset"
steps = 4
lr = 1e-2
device = "cpu"
save_every = 2
log_every = 1
trackers = []
[lora]
rank = 2
targets = "attention+mlp"
[rollout]
group = 3
steps = 4
window = 1
[rewards]
layer_psnr = 1.0
alpha = 1.0
[data]
size = 32
foregrounds = 12
backgrounds = 4
[tasks]
matting_rough = 1.0
decompose_auto = 1.0
"""


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def settings(folder, **changes):
    base = {"steps": 6, "lr": 1e-3, "device": "cpu", "log_every": 1, "trackers": []}
    return FitSettings(output=str(folder), **(base | changes))


def logged(folder, name="loss"):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def assert_resumes(make, folder, **changes):
    """Six steps at once, and three and three, end in the same bits; returns how far the weights went."""
    objectives = [make() for _ in range(3)]
    start = {n: p.detach().clone() for n, p in objectives[0].named_parameters()}
    common = {"warmup": 2, "ema": 0.9, "weight_decay": 0.01} | changes
    fit(objectives[0], settings(folder / "straight", **common), quiet=True)
    fit(objectives[1], settings(folder / "parts", **common | {"steps": 3}), quiet=True)
    fit(objectives[2], settings(folder / "parts", **common), quiet=True)
    straight, resumed = objectives[0].state_dict(), objectives[2].state_dict()
    assert all(torch.equal(straight[n], resumed[n]) for n in straight)
    states = [torch.load(folder / name / "checkpoint.pt", weights_only=True) for name in ("straight", "parts")]
    assert states[0]["step"] == states[1]["step"] == 6
    assert all(torch.equal(a, b) for a, b in zip(states[0]["average"], states[1]["average"], strict=True))
    assert logged(folder / "straight") == logged(folder / "parts")
    moved = {n: float((p.detach() - start[n]).abs().max()) for n, p in objectives[0].named_parameters()}
    assert all(p.isfinite().all() for p in objectives[0].parameters())
    return moved
