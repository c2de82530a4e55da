"""A loaded model can be copied, pickled, and handed to another process."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import omnialpha
from omnialpha.errors import InputError

PICTURE = torch.rand(4, 18, 27, generator=torch.Generator().manual_seed(0))

WORKER = """
import multiprocessing, os
import torch
import omnialpha

def matte(model, picture):
    return model.matte(picture, steps=1).numpy()

if __name__ == "__main__":
    model, picture = omnialpha.load(os.environ["MODEL"], device="cpu"), torch.rand(4, 18, 27)
    wanted = matte(model, picture)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print((pool.apply(matte, (model, picture)) == wanted).all())
"""


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_is_the_same_model(tiny_model_folder: Path, way) -> None:
    model = omnialpha.load(tiny_model_folder, device="cpu", attention="native")
    wanted = model.matte(PICTURE, seed=2, guidance=2.0)  # what a run leaves behind is copied too
    made = way(model)
    # a copy's weights lie at multiples of 64 bytes, a file's do not: kernels of some processors round differently
    assert (made.matte(PICTURE, seed=2, guidance=2.0) - wanted).abs().max() < 1e-5
    assert made.placed.placement.attention == "native" and made.parts == model.parts and made.card == model.card
    made.placed.undo.close()  # its own hooks, not those of the model
    made.transformer.proj_out.weight.zero_()
    assert torch.equal(model.matte(PICTURE, seed=2, guidance=2.0), wanted)
    assert (made.matte(PICTURE, seed=2, guidance=2.0) - wanted).abs().max() > 1e-3


def test_hooks_of_offloading_cannot_be_copied(tiny_model_folder: Path) -> None:
    model = omnialpha.load(tiny_model_folder, device="cpu", offload="group")
    with pytest.raises(InputError, match="offload=group, compile=False cannot be pickled or copied: load it where"):
        pickle.dumps(model)


@pytest.mark.slow
def test_a_spawned_worker_runs_a_model_that_it_is_handed(tiny_model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "worker.py")],
        env=os.environ | {"MODEL": str(tiny_model_folder)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout == "True\n", done.stderr[-2000:]
