"""What surrounds the loop: the 8-bit optimiser, trackers, and what is asked for but missing. ZeRO by a stand-in."""

import builtins
import shlex
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from omnialpha.errors import InputError
from omnialpha.training import parallel, zero
from omnialpha.training.loop import FitSettings, Objective, fit


class Wide(Objective):
    """A weight large enough for 8 bits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(64, 64)

    def forward(self, index):
        x = torch.randn(32, 64, generator=torch.Generator().manual_seed(index))
        return {"loss": (self.layer(x) - x.flip(1)).square().mean()}

    def export(self, folder):
        folder.mkdir(parents=True, exist_ok=True)


def settings(folder, **changes):
    base = {"steps": 6, "lr": 1e-2, "device": "cpu", "log_every": 1, "trackers": [], "optimizer": "adamw8bit"}
    return FitSettings(output=str(folder), **(base | changes))


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def leaves(tree):
    return torch.utils._pytree.tree_leaves(tree)


def test_eight_bits_train_and_resume_bit_for_bit(tmp_path):
    pytest.importorskip("bitsandbytes")
    fit(Wide(), settings(tmp_path / "straight"), quiet=True)
    for steps in (3, 6):
        figures = fit(Wide(), settings(tmp_path / "parts", steps=steps), quiet=True)
    straight, parts = checkpoint(tmp_path / "straight"), checkpoint(tmp_path / "parts")
    pairs = list(zip(leaves(straight), leaves(parts), strict=True))
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)
    assert torch.uint8 in {a.dtype for a, _ in pairs if isinstance(a, torch.Tensor)}
    full = fit(Wide(), settings(tmp_path / "full", optimizer="adamw"), quiet=True)
    assert figures["loss"] == pytest.approx(full["loss"], rel=0.02) and figures["loss"] < 0.9 * 2
    sizes = [
        sum(t.nbytes for t in leaves(s["optimizer"]) if isinstance(t, torch.Tensor))
        for s in (parts, checkpoint(tmp_path / "full"))
    ]
    assert sizes[0] < 0.4 * sizes[1]


def test_an_optimizer_does_not_go_on_from_the_other(tmp_path):
    pytest.importorskip("bitsandbytes")
    fit(Wide(), settings(tmp_path, steps=1), quiet=True)
    with pytest.raises(InputError, match="written with optimizer='adamw8bit', not 'adamw'"):
        fit(Wide(), settings(tmp_path, optimizer="adamw"), quiet=True)


def test_eight_bits_need_their_package_and_a_device_that_can(tmp_path, monkeypatch):
    bitsandbytes = pytest.importorskip("bitsandbytes")

    def cannot(self):
        raise NotImplementedError("no kernel")

    with monkeypatch.context() as patch, pytest.raises(InputError, match="bitsandbytes cannot do on cpu: use 'adamw'"):
        patch.setattr(bitsandbytes.optim.AdamW8bit, "step", cannot)
        fit(Wide(), settings(tmp_path), quiet=True)
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("bitsandbytes"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="needs bitsandbytes: pip install bitsandbytes"):
        fit(Wide(), settings(tmp_path), quiet=True)


def test_trackers_that_are_unknown_or_missing_are_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="has 'tensorbord': use some of .*tensorboard"):
        fit(Wide(), settings(tmp_path, trackers=["tensorbord"]), quiet=True)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(InputError, match="has 'wandb', which is not installed: pip install wandb"):
        fit(Wide(), settings(tmp_path, trackers=["wandb"]), quiet=True)


def test_deepspeed_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(parallel, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="asks for DeepSpeed, which is not installed: pip install deepspeed"):
        fit(Wide(), settings(tmp_path), quiet=True)
    monkeypatch.setattr(parallel, "find_spec", lambda name: name)
    with pytest.raises(InputError, match="asks for DeepSpeed, which is for GPUs"):
        fit(Wide(), settings(tmp_path), quiet=True)


def test_a_folder_that_not_all_processes_see_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.Accelerator.gather", lambda self, tensor: torch.cat([tensor, tensor + 3]))
    with pytest.raises(InputError, match="not all processes see .*checkpoint.pt: give an output folder"):
        fit(Wide(), settings(tmp_path, optimizer="adamw"), quiet=True)


def test_commands_of_the_documentation_parse():
    from accelerate.commands.launch import launch_command_parser

    page = (Path(__file__).parents[2] / "docs/training.md").read_text().replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in page.splitlines() if line.startswith("accelerate launch")]
    assert len(lines) >= 5
    for line in lines:
        made = launch_command_parser().parse_args(line[2:])
        assert made.module and made.training_script == "omnialpha.cli.main" and made.training_script_args[0] == "train"
        assert not [flag for flag in made.training_script_args if flag.startswith("-")], "all flags are the launcher's"


def test_figures_are_means_over_those_that_have_them():
    seen = [{"loss": [1.0, 2.0], "a": [5.0]}, {"loss": [6.0, 7.0], "b": [1.0, 2.0]}]
    assert parallel.means(seen) == {"loss": 4.0, "a": 5.0, "b": 1.5}


@pytest.fixture
def deepspeed(monkeypatch):
    """deepspeed.utils over AdamW itself, whose state stands for DeepSpeed's pieces; `base` is to be set."""
    utils = types.SimpleNamespace(base=None)
    utils.safe_get_full_fp32_param = lambda p: p.detach().clone()
    utils.safe_set_full_fp32_param = lambda p, value: p.data.copy_(value)
    utils.safe_get_full_optimizer_state = lambda p, key: utils.base.state[p][key].clone()
    utils.safe_set_full_optimizer_state = lambda p, value, key: utils.base.state[p][key].copy_(value)
    monkeypatch.setitem(sys.modules, "deepspeed", types.ModuleType("deepspeed"))
    monkeypatch.setitem(sys.modules, "deepspeed.utils", utils)
    return utils


def stepped(steps):
    objective = Wide()
    groups = [
        {"params": [objective.layer.weight], "pace": 0.5},
        {"params": [objective.layer.bias], "betas": (0.5, 0.9)},
    ]
    base = torch.optim.AdamW([dict(group) for group in groups], lr=1e-2)
    for index in range(steps):
        objective(index)["loss"].backward()
        base.step()
        base.zero_grad()
    return objective, groups, base


def test_zero_checkpoints_are_those_of_everybody(deepspeed):
    objective, groups, deepspeed.base = stepped(4)
    state = {"step": 4, "weights": zero.weights(dict(objective.named_parameters()))}
    state["optimizer"] = zero.moments(groups, deepspeed.base, 4)
    plain = deepspeed.base.state_dict()
    assert state["optimizer"]["state"].keys() == plain["state"].keys()
    for mine, theirs in zip(state["optimizer"]["param_groups"], plain["param_groups"], strict=True):
        assert {k: mine[k] for k in theirs} == theirs
    for number, own in plain["state"].items():
        assert all(torch.equal(own[key], state["optimizer"]["state"][number][key]) for key in own)

    wanted, other = stepped(5), stepped(1)
    deepspeed.base = other[2]
    with torch.no_grad():
        zero.restore(dict(other[0].named_parameters()), other[1], other[2], state)
    other[0](4)["loss"].backward()
    other[2].step()
    assert torch.equal(other[0].layer.weight, wanted[0].layer.weight)
    assert torch.equal(other[0].layer.bias, wanted[0].layer.bias)
