"""Rollouts by two Ray actors on this machine equal those of the process itself, and their failures are told."""

import signal
from importlib.util import find_spec

import pytest
import torch

from omnialpha.errors import InputError
from omnialpha.training import run as runs
from omnialpha.training.loop import fit
from processes import checkpoint, one_thread  # noqa: F401 - a fixture
from training_runs import REINFORCEMENT, logged

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install 'omnialpha[ray]'")

CHANGES = ["groups=3", "engine=ray", "actors=2", "lora.targets=attention", "rollout.group=2", "rollout.steps=3"]


@pytest.fixture
def read(tmp_path, tiny_model_folder):
    path = tmp_path / "recipe.toml"
    path.write_text(REINFORCEMENT)
    return lambda *changes: runs.read(
        path, [f"start={tiny_model_folder}", f"fit.output={tmp_path}/run", *CHANGES, *changes]
    )


@pytest.mark.parametrize("algorithm", ["grpo.updates=2", pytest.param("nft.updates=2", marks=pytest.mark.slow)])
def test_two_actors_equal_the_process_itself(read, tmp_path, algorithm):
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    for engine in ("local", "ray"):
        recipe = read(algorithm, f"engine={engine}", f"fit.output={tmp_path}/{engine}")
        fit(recipe.objective(), recipe.fit, quiet=True)
    states = [torch.utils._pytree.tree_leaves(checkpoint(tmp_path / engine)) for engine in ("local", "ray")]
    assert len(states[0]) == len(states[1]) > 20
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(*states, strict=True))
    for figure in ("loss", "reward", "grad_norm"):
        assert logged(tmp_path / "local", figure) == logged(tmp_path / "ray", figure)
    assert not ray.is_initialized() and signal.getsignal(signal.SIGTERM) is handler


def test_what_an_actor_cannot_do_is_told_in_one_sentence(read, tiny_model_folder, tmp_path):
    objective = read("grpo.updates=1").objective()
    recipe = read("grpo.updates=1", f"start={tmp_path}/gone", "engine=local")
    objective.engine.make = recipe.objective
    with pytest.raises(InputError, match="gone' is neither bundled") as error:
        fit(objective, read("grpo.updates=1").fit, quiet=True)
    assert "\n" not in str(error.value) and not (tmp_path / "run/checkpoint.pt").exists()


def test_an_actor_that_dies_ends_the_run(read):
    import ray

    objective = read("grpo.updates=1").objective()
    try:
        objective.begin(0)
        ray.kill(objective.engine.actors[1])
        with pytest.raises(InputError, match="the Ray actor of rollout 1 failed with ActorDiedError") as error:
            objective(0), objective(1)
        assert "\n" not in str(error.value)
    finally:
        objective.close()
