"""The recipes of the second stage, run on a tiny checkpoint in exactly the released layout."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from layered import pack_shards
from omnialpha.errors import InputError
from omnialpha.training import run as runs
from released import RANK

RECIPES = Path(__file__).parents[3] / "recipes"
OURS = ("omnialpha-grpo", "omnialpha-grpo-ours", "omnialpha-nft")


@pytest.fixture(scope="module")
def overrides(released_base: Path, released_omnialpha: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What is tiny: the checkpoint, its records in shards, sizes, ranks, groups and steps."""
    path = pack_shards(tmp_path_factory.mktemp("records"), [1] * 6)
    return [
        f"start={released_base}",
        f"vae={released_omnialpha}/rgba_vae",
        f"adapter={released_omnialpha}/lora",
        f"datasets=[{{path={path}, ends=-2}}]",
        f"held_out=[{{path={path}, starts=-2}}]",
        "sizes=[[32, 32]]",
        "validation=1",
        f"lora.rank={RANK}",
        f"lora.alpha={RANK}",
        "groups=1",
        "rollout.group=2",
        "rollout.steps=3",
        "perceptual.kind=pyramid",
        "tasks={decompose_auto=1.0, matting_auto=1.0}",
        "guards={}",
        "fit.steps=2",
        "fit.validate_every=2",
        "fit.save_every=2",
        "fit.log_every=1",
        "fit.device=cpu",
        "fit.precision=no",
        "fit.trackers=[]",
        'card.sampling={"*"={steps=2, guidance=1.0}}',
    ]


@pytest.mark.parametrize("name", OURS)
def test_a_run(name, overrides, released_omnialpha, tmp_path):
    runs.run(RECIPES / f"{name}.toml", [*overrides, f"fit.output={tmp_path}"], quiet=True)
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    if name == "omnialpha-grpo-ours":  # all of a group at the same times, as in the rollout: bf16's own bits
        assert logged[0]["ratio"] == 1 and logged[0]["clip_fraction"] == 0
    elif name == "omnialpha-grpo":
        assert logged[0]["ratio"] == pytest.approx(1, abs=1e-3)
    else:
        assert logged[0]["kl"] < 1e-4
    assert any("val_reward" in row for row in logged)
    made = load_file(next((tmp_path / "model").rglob("*.safetensors")))
    begun = load_file(next((released_omnialpha / "lora").rglob("*.safetensors")))
    moved = [key for key in made if key not in begun or not torch.equal(made[key].float(), begun[key].float())]
    assert moved
    if name == "omnialpha-grpo":  # the released procedure trains the LoRA of fine-tuning on
        near = [float((made[key].float() - begun[key].float()).abs().max()) for key in made.keys() & begun.keys()]
        assert near and max(near) < 1e-3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["nft={updates=1}"], "both or none"),
        (["rollout.transition=ode"], "random steps"),
        (["batch=2"], "batch=1"),
        (["adapter="], "continued=true"),
        (["rewards={beauty=1.0}"], "beauty"),
        (["rewards={alpha=0.0}"], "rewards.alpha=0"),
        (["rollout.group=1"], "group=1"),
        (["rollout.window=9"], "window=9"),
        (["grpo.normalise=true"], "flow_sde"),
        (["grpo.updates=2", "fit.save_every=3"], "fit.save_every=3"),
        (["groups=0"], "groups=0"),
        (["guards={kl=[1.0, 0.0]}"], "kl"),
        (["lora.rank=1", "lora.alpha=1"], "rank"),
    ],
)
def test_bad_input_is_one_sentence(change, named, overrides, tmp_path):
    with pytest.raises(InputError, match=named):
        runs.run(RECIPES / "omnialpha-grpo.toml", [*overrides, f"fit.output={tmp_path}", *change], quiet=True)
    assert not (tmp_path / "model").exists()


def test_a_guard_ends_the_run_and_names_the_figure(overrides, tmp_path):
    band = "guards={grad_norm=[-2.0, -1.0]}"
    with pytest.raises(InputError, match="grad_norm became .* at step 1"):
        runs.run(RECIPES / "omnialpha-grpo.toml", [*overrides, f"fit.output={tmp_path}", band], quiet=True)
