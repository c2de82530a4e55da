"""What surrounds the loop: the 8-bit optimiser, trackers, and what is asked for but missing."""

import builtins
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from omnialpha.errors import InputError
from omnialpha.training import parallel
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


def test_deepspeed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(InputError, match="asks for DeepSpeed: use --use_fsdp --fsdp_version 2"):
        fit(Wide(), settings(tmp_path), quiet=True)


def test_a_folder_that_not_all_processes_see_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.Accelerator.gather", lambda self, tensor: torch.cat([tensor, tensor + 3]))
    with pytest.raises(InputError, match="not all processes see .*checkpoint.pt: give an output folder"):
        fit(Wide(), settings(tmp_path, optimizer="adamw"), quiet=True)


def test_commands_of_the_documentation_parse():
    from accelerate.commands.launch import launch_command_parser

    page = (Path(__file__).parents[2] / "docs/training.md").read_text().replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in page.splitlines() if line.startswith("accelerate launch")]
    assert len(lines) >= 4
    for line in lines:
        made = launch_command_parser().parse_args(line[2:])
        assert made.module and made.training_script == "omnialpha.cli.main" and made.training_script_args[0] == "train"
        assert not [flag for flag in made.training_script_args if flag.startswith("-")], "all flags are the launcher's"


def test_figures_are_means_over_those_that_have_them():
    seen = [{"loss": [1.0, 2.0], "a": [5.0]}, {"loss": [6.0, 7.0], "b": [1.0, 2.0]}]
    assert parallel.means(seen) == {"loss": 4.0, "a": 5.0, "b": 1.5}
