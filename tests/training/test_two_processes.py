"""Two processes on gloo equal one process that accumulates over the same global batch."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from processes import checkpoint, in_this_process, one_thread, run_two  # noqa: F401 - a fixture

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is not built for it")

# Run by both processes, and imported here as text: a spawned process could not find this module by name.
OBJECTIVES = '''
import os, signal, sys
import torch
from torch import nn
from omnialpha.data.synthetic import bank as banks
from omnialpha.data.stream.mixture import Mixture
from omnialpha.errors import InputError
from omnialpha.pipeline import OmniAlpha
from omnialpha.training.loop import FitSettings, Objective, fit
from omnialpha.models.vae.alphavae import AlphaVAE
from omnialpha.training.sft import FlowLoss, SFTObjective
from omnialpha.training.sources import ScenePictures
from omnialpha.training.vae import DiscriminatorSettings, VAELoss, VAEObjective

class Branches(Objective):
    """Even and odd indices use other parameters, one is never used. stop: (rank, index) of a SIGTERM; bad: of a NaN."""
    def __init__(self, stop=None, bad=None):
        super().__init__()
        torch.manual_seed(0)
        self.even, self.odd, self.both = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        self.never, self.stop, self.bad = nn.Linear(2, 2), stop, bad
    def forward(self, index):
        if self.stop == (int(os.environ.get("RANK", 0)), index):
            os.kill(os.getpid(), signal.SIGTERM)
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(index))
        hidden = (self.odd if index % 2 and index != 3 else self.even)(x).tanh()
        loss = (self.both(hidden) - x.sum(1, keepdim=True)).square().mean()
        return {"loss": loss * float("nan") if index == self.bad else loss, f"loss/{index % 3}": loss.detach()}
    def export(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{os.environ.get('RANK', 0)}.txt").write_text("exported")

def sft(folder):
    """Text alone, one picture, several: in a step the two processes use other parts of the model."""
    model = OmniAlpha.from_folder(folder).requires_grad_(True).train()
    weights = dict.fromkeys(("text_to_image", "matting_rough", "decompose_auto"), 1.0)
    bank = banks.procedural(12, 4, 16, 3)
    mixture = Mixture(bank, weights, [(16, 16), (16, 32)], 2, seed=4, prompt_dropout=0.2)
    return SFTObjective(model, mixture, bank, FlowLoss(weight="t"), 2)

def vae(folder):
    """All terms, the discriminator from the second step on."""
    torch.manual_seed(0)
    autoencoder = AlphaVAE(base_dim=8, z_dim=8, dim_mult=[1, 2], num_res_blocks=1, patch_size=2)
    pictures = ScenePictures(banks.procedural(12, 4, 16, 3), 2, [(16, 16)], 5)
    small = DiscriminatorSettings(width=8, layers=2)
    weights = VAELoss(perceptual=0.2, reference=1e-4, adversarial=0.5, adversarial_from=1)
    return VAEObjective(autoencoder, pictures, pictures, weights, discriminator=small)

def settings(folder, **changes):
    base = dict(steps=4, lr=1e-3, device="cpu", trackers=[], ema=0.9, log_every=1, weight_decay=0.01)
    return FitSettings(output=str(folder), **base | changes)
'''
WORKER = (
    OBJECTIVES
    + """
model, out = sys.argv[1:]
fit(Branches(), settings(out + "/branches"), quiet=True)
fit(sft(model), settings(out + "/sft"), quiet=True)
fit(vae(model), settings(out + "/vae"), quiet=True)
fit(Branches(stop=(1, 5)), settings(out + "/stopped", steps=100), quiet=True)
fit(Branches(), settings(out + "/accumulated", accumulate=2), quiet=True)
try:
    fit(Branches(bad=3), settings(out + "/nan", save_every=1), quiet=True)
except InputError as error:
    print("stopped:", error)
os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
objective = sft(model)
kept = dict(validate_every=2, save_every=2, keep=1, keep_best="val_loss")
fit(objective, settings(out + "/sharded", weight_decay=0.0, **kept), quiet=True)
print("units", sum(type(m).__name__.startswith("FSDP") for m in objective.modules()))
if torch.distributed.get_world_size() == 2:
    print("two", torch.distributed.get_backend())
torch.distributed.destroy_process_group()
"""
)


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def ours():
    return in_this_process(OBJECTIVES)


@pytest.fixture(scope="module")
def two(tmp_path_factory, tiny_model_folder):
    """The folder that two processes wrote, what they said in said.txt; both ended well."""
    folder = tmp_path_factory.mktemp("two")
    said = run_two(WORKER, tiny_model_folder, folder)
    assert all("two gloo" in words for words in said)
    (folder / "said.txt").write_text("".join(said))
    return folder


CASES = {  # the folder of two processes: objective and settings of one
    "branches": ("Branches", {"accumulate": 2}),
    "accumulated": ("Branches", {"accumulate": 4}),  # nothing is exchanged after the first of two micro-batches
    "sft": ("sft", {"accumulate": 2}),
    "vae": ("vae", {"accumulate": 2}),
    "sharded": (
        "sft",
        {"accumulate": 2, "weight_decay": 0.0, "validate_every": 2},
    ),  # and what it keeps changes nothing
}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(two, ours, tiny_model_folder, tmp_path, name):
    kind, changes = CASES[name]
    objective = ours[kind]() if kind == "Branches" else ours[kind](tiny_model_folder)
    start = {n: p.detach().clone() for n, p in objective.named_parameters()}
    ours["fit"](objective, ours["settings"](tmp_path, **changes), quiet=True)
    one, both = checkpoint(tmp_path), checkpoint(two / name)
    assert one["step"] == both["step"] == 4 and one["weights"].keys() == both["weights"].keys()
    # Relative to how far a tensor moved: Adam divides a gradient by its own size, so that the rounding of one that is
    # nearly zero shows in a single weight, differently with another number of threads.
    moved = {key: float((wanted - start[key]).norm()) for key, wanted in one["weights"].items()}
    moved |= {key: 1.0 for key in moved if key.endswith("to_qkv.bias")}  # keys' biases have no gradient but rounding
    for key, wanted in one["weights"].items():
        assert float((both["weights"][key] - wanted).norm()) <= 1e-3 * moved[key] + 1e-6, key
    for key, a, b in zip(
        moved, one["average"], both["average"], strict=False
    ):  # a discriminator, the last, has no average
        assert float((a - b).norm()) <= 1e-3 * moved[key] + 1e-6, key
    steps = [float((one["weights"][n] - start[n]).abs().max()) for n in one["weights"]]
    assert sum(m > 5e-4 for m in steps) > 0.5 * len(steps), "far more than the tolerance"
    for a, b in zip(log(tmp_path), log(two / name), strict=True):  # of all processes' micro-batches
        assert a.keys() == b.keys() and all(a[k] == pytest.approx(b[k], rel=2e-3) for k in a if k != "time")
    sheets = [sorted(f.name for f in (at / "validation").glob("*")) for at in (tmp_path, two / name)]
    assert sheets[0] == sheets[1] == (["000002.png", "000004.png"] if name == "sharded" else [])
    files = [{f.relative_to(at) for f in (at / "model").rglob("*.*")} for at in (tmp_path, two / name)]
    assert files[0] == files[1]
    for file in files[0]:
        if file.suffix == ".safetensors":
            a, b = load_file(tmp_path / file), load_file(two / name / file)
            assert all((a[k].float() - b[k].float()).abs().max() < 2e-2 * a[k].abs().max() + 1e-4 for k in a)
        elif name != "vae":  # whose settings hold statistics of its latents
            assert (tmp_path / file).read_bytes() == (two / name / file).read_bytes()


def test_one_micro_batch_less_is_another_result(two, ours, tmp_path):
    """What the tolerance is worth: a process that went unheard would show."""
    ours["fit"](ours["Branches"](), ours["settings"](tmp_path), quiet=True)
    one, both = checkpoint(tmp_path), checkpoint(two / "branches")
    assert (one["weights"]["both.weight"] - both["weights"]["both.weight"]).abs().max() > 1e-4


def test_one_process_writes(two):
    for name in CASES:
        assert len(log(two / name)) == (6 if name == "sharded" else 4)
    assert len(list((two / "branches/model").iterdir())) == 1
    assert not list(Path(two).rglob("*.tmp"))


def test_blocks_were_sharded_one_by_one(two):
    assert (two / "said.txt").read_text().count("units 3") == 2, "two blocks and the rest"


def test_what_two_processes_keep_is_whole(two):
    folder = two / "sharded"
    assert [p.name for p in (folder / "exports").iterdir()] == ["000004"]
    last, model = (
        load_file(at / "transformer/diffusion_pytorch_model.safetensors")
        for at in (folder / "exports/000004", folder / "model")
    )
    assert all(torch.equal(last[key], model[key]) for key in model) and len(last) == len(model)
    best = json.loads((folder / "best/best.json").read_text())
    losses = {row["step"]: row["val_loss"] for row in log(folder) if "val_loss" in row}
    assert best["value"] == min(losses.values()) == losses[best["step"]]
    assert (folder / "best/transformer").is_dir() and not list(folder.rglob("*.tmp"))


def test_one_process_that_is_not_finite_stops_both(two):
    """Index 3 is the second process's second step."""
    assert (two / "said.txt").read_text().count("stopped: the loss became nan at step 1") == 2
    assert checkpoint(two / "nan")["step"] == 1 and not (two / "nan/model").exists()


def test_a_signal_to_one_process_stops_both_at_the_same_step(two):
    """Index 5 is the second process's third step."""
    assert checkpoint(two / "stopped")["step"] == 3
    assert len(list((two / "stopped/model").iterdir())) == 1
