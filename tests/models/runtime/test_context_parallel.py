"""Several processes that share the rows of a picture make what one process makes."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from omnialpha.errors import InputError
from omnialpha.models.runtime import context_parallel

# What each process runs; it ends with an error where the results differ.
WORK = """
import sys, torch, torch.distributed as dist
from omnialpha.models.transformer.positions import Layout, batch_positions
from omnialpha.models.transformer.model import MultiImageTransformer

AXES = (4, 6, 6)
MASKED = [(Layout(((4, 6), (2, 2)), ((3, 5),)), 7), (Layout(((4, 6),), ((3, 4),)), 4)]
CASES = {  # targets and inputs of a sample, text length
    "even": [(Layout(((4, 6),), ((4, 4),)), 8)],
    "odd": [(Layout(((3, 5), (3, 5)), ((3, 5),)), 7)],
    "no inputs": [(Layout(((4, 6),)), 3)],
    "batch": [(Layout(((3, 3),), ((5, 1),)), 5)] * 2,
    "masked": MASKED,
}

def build(**settings):
    torch.manual_seed(0)
    model = MultiImageTransformer(num_layers=2, num_attention_heads=4, attention_head_dim=16, axes_dims_rope=AXES,
                     joint_attention_dim=32, in_channels=16, out_channels=4, **settings).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model

def sample(case):
    g = torch.Generator().manual_seed(1)
    layouts, lengths = zip(*CASES[case])
    rows = [max(getattr(l, f"{k}_tokens") for l in layouts) for k in ("target", "input")]
    tensors = [torch.randn(len(layouts), n, 16, generator=g) for n in rows]
    tensors += [torch.randn(len(layouts), max(lengths), 32, generator=g), torch.rand(len(layouts), generator=g)]
    return *tensors, batch_positions(layouts, lengths, "released", AXES)

dist.init_process_group("gloo")
for settings in ({}, {"zero_cond_t": True}, {"condition_attention": "cached"}):
    for case in CASES:
        model, arguments = build(**settings), sample(case)
        with torch.no_grad():
            alone = model(*arguments)
            model.parallelize()
            together = model(*arguments)
        # rows of padding hold arbitrary values
        mask = arguments[4].target_mask
        real = slice(None) if mask is None else mask
        error = float((together - alone)[real].abs().max() / alone[real].abs().max())
        assert together.shape == alone.shape and error < 1e-5, (settings, case, error)
        if dist.get_rank() == 0:
            print(settings, case, f"{error:.1e}", model.shares.config.context_parallel_config.ulysses_anything)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_make_what_one_makes(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(WORK)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29561"]
    done = subprocess.run(
        [*command, str(tmp_path / "work.py")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("e-") == 15, done.stdout


def test_what_cannot_be_shared(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="one process only: start several"):
        context_parallel.share(tiny_model.transformer)
    monkeypatch.setattr(context_parallel.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(context_parallel.dist, "get_world_size", lambda: 3)
    with pytest.raises(InputError, match="2 attention heads cannot be shared by 3 processes: start one of 2"):
        context_parallel.share(tiny_model.transformer)
    # padding between the rows of three processes, which diffusers would put at the wrong places
    shares = context_parallel.Shares(SimpleNamespace(context_parallel_config=SimpleNamespace()), 0, 3)
    shares.agree((6, 3, 9), masked=True)
    assert not shares.config.context_parallel_config.ulysses_anything
    shares.agree((6, 3, 7), masked=False)
    assert shares.config.context_parallel_config.ulysses_anything
    with pytest.raises(InputError, match="3 processes take samples of one size only"):
        shares.agree((6, 3, 7), masked=True)
