"""A LoRA of FLUX trained on RGBA latents: what moves, what comes out, and that the exported file says the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import omnialpha
from flux import write_flux_vae
from omnialpha import config
from omnialpha.errors import InputError
from omnialpha.tasks import TASKS
from omnialpha.training import run as runs
from omnialpha.training.loop import FitSettings, fit
from omnialpha.training.sft import SFTObjective

SIZE = 32


@pytest.fixture(scope="module")
def rgba_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flux_vae(tmp_path_factory.mktemp("vae") / "rgba", channels=4)


def recipe(folder: Path, base: Path, vae: Path, **lora: Any) -> dict[str, Any]:
    return {
        "kind": "sft",
        "start": str(base),
        "vae": str(vae),
        "batch": 2,
        "sizes": [[SIZE, SIZE]],
        "prompt_dropout": 0.0,
        "validation": 4,
        "fit": {"steps": 6, "lr": 1e-2, "output": str(folder), "device": "cpu", "log_every": 1, "trackers": []},
        "data": {"size": SIZE, "foregrounds": 8, "backgrounds": 3},
        "tasks": {"text_to_image": 1.0},
        "loss": {"time": "uniform"},
        "card": {"dtype": "float32", "sampling": {"*": {"steps": 2, "guidance": 3.5}}},
        "lora": {"rank": 4, "targets": "flux"} | lora,
    }


def objective(tree: dict[str, Any]) -> SFTObjective:
    made = config.build(runs.SFTRecipe, tree).objective()
    assert isinstance(made, SFTObjective)
    return made


def fitted(made: SFTObjective, tree: dict[str, Any], **changes: Any) -> dict[str, float]:
    return fit(made, config.build(FitSettings, tree["fit"] | changes), quiet=True)


def test_learns_a_fixed_batch(
    flux_folder: Path, rgba_vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = recipe(tmp_path, flux_folder, rgba_vae)
    made = objective(tree)
    always = made.forward
    monkeypatch.setattr(made, "forward", lambda index, batch=None: always(0))
    before = {name: value.clone() for name, value in made.state_dict().items()}
    first = float(made(0)["loss"].detach())
    fitted(made, tree, steps=12)
    last = float(made(0)["loss"].detach())
    assert last < 0.9 * first, (first, last)
    moved = {name for name, value in made.state_dict().items() if not torch.equal(value, before[name])}
    wanted = {name for name, value in made.named_parameters() if value.requires_grad}
    assert moved == wanted and all(".lora_" in name for name in moved)


def test_exported_file_gives_the_trained_model(flux_folder: Path, rgba_vae: Path, tmp_path: Path) -> None:
    tree = recipe(tmp_path, flux_folder, rgba_vae)
    made = objective(tree)
    fitted(made, tree, lr=0.1)
    file = tmp_path / "model" / "pytorch_lora_weights.safetensors"
    keys = set(load_file(file))
    assert "transformer.transformer_blocks.0.attn.to_q.lora_A.weight" in keys
    assert "transformer.transformer_blocks.1.ff_context.net.2.lora_B.weight" in keys
    assert "transformer.single_transformer_blocks.2.attn.to_v.lora_A.weight" in keys
    sample = TASKS["text_to_image"].example(prompt="a blue ribbon", size=(SIZE, SIZE))
    options = {"vae": rgba_vae, "dtype": "float32", "device": "cpu"}
    plain = omnialpha.load(flux_folder, **options)
    trained = omnialpha.load(flux_folder, lora=file, **options)
    wanted, got, base = (model.eval().run([sample], steps=2)[0][0].rgba for model in (made.model, trained, plain))
    assert (got - wanted).abs().max() <= 1e-5
    assert (got - base).abs().max() > 1e-2


def test_resumes_bit_equal(flux_folder: Path, rgba_vae: Path, tmp_path: Path) -> None:
    states, files = [], []
    for name, parts in (("straight", [4]), ("parts", [2, 4])):
        tree = recipe(tmp_path / name, flux_folder, rgba_vae, dropout=0.3)
        for steps in parts:
            torch.manual_seed(steps)  # whatever the process did before
            made = objective(tree)
            fitted(made, tree, steps=steps, ema=0.9)
        states.append(made.state_dict())
        files.append(load_file(tmp_path / name / "model" / "pytorch_lora_weights.safetensors"))
    for one, other in (states, files):
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_frozen_parts_do_not_drop_out_and_validation_repeats(flux_folder: Path, rgba_vae: Path, tmp_path: Path) -> None:
    made = objective(recipe(tmp_path, flux_folder, rgba_vae, dropout=0.5, checkpointing=True))
    assert made.model.transformer.training and made.model.transformer.gradient_checkpointing
    assert not any(module.training for module in made.model.text_encoder.modules())
    figures = [made.validate(tmp_path, step) for step in (1, 2)]
    assert figures[0] == figures[1] and set(figures[0]) == {"val_loss"}
    assert made.model.transformer.training and not made.model.text_encoder.t5.training


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": {"matting_auto": 1.0}}, ("cannot do matting_auto", "text_to_image")),
        ({"start": ""}, ("give its folder as start",)),
        ({"lora": {"rank": 0}}, ("rank 0", "from 1")),
        ({"lora": {"rank": 2, "targets": "attention+mlp"}}, ("img_mlp.net.0.proj", "matches no module")),
        ({"lora": {"rank": 2, "target": "flux"}}, ("lora.target", "did you mean 'lora.targets'")),
    ],
)
def test_refuses(
    flux_folder: Path, rgba_vae: Path, tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(InputError) as caught:
        objective(recipe(tmp_path, flux_folder, rgba_vae) | changes)
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_recipe_says_what_the_code_knows() -> None:
    tree = config.load(Path(__file__).parents[2] / "recipes" / "flux-lora.toml")
    made = config.build(runs.SFTRecipe, tree)
    assert made.lora and made.lora.rank == 64 and made.lora.targets == "flux"
    assert made.tasks == {"text_to_image": 1.0} and made.loss.time == "uniform" and made.prompt_dropout == 0
