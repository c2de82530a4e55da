"""FLUX through our one path and through diffusers' FluxPipeline: the same numbers from the same noise."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import omnialpha
from flux import WORDS, write_alphavae, write_flux, write_flux_lora, write_flux_vae
from omnialpha.cli.main import app
from omnialpha.errors import InputError
from omnialpha.loading import Setup, swap
from omnialpha.models.checkpoints.folders import resolve
from omnialpha.models.flux.vae import FluxVAE
from omnialpha.models.lora import adapters
from omnialpha.models.runtime.estimate import Estimate
from omnialpha.models.runtime.offload import size_of
from omnialpha.models.runtime.placement import Placement
from omnialpha.models.transformer.model import unpack
from omnialpha.models.vae.alphavae import load_vae
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import TASKS, Example

SIZES = {"square": (64, 64), "wide": (48, 160)}
STEPS, SEED = 3, 7


def example(prompt: str = WORDS[0], size: tuple[int, int] = (64, 64)) -> Example:
    return TASKS["text_to_image"].example(prompt=prompt, size=size, wording=2)


@pytest.fixture(scope="module")
def ours(flux_folder: Path) -> OmniAlpha:
    return OmniAlpha.from_folder(flux_folder)


@pytest.fixture(scope="module")
def theirs(flux_folder: Path) -> Any:
    pipeline = FluxPipeline.from_pretrained(flux_folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def published(pipeline: Any, noise: Tensor, sample: Example, prompt: str = WORDS[0], **options: Any) -> list[Tensor]:
    """Latents after each step, and last the picture (3, H, W) in [0, 1]."""
    steps: list[Tensor] = []

    def keep(_: Any, index: int, time: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(tensors["latents"])
        return {}

    height, width = sample.size
    options = {"num_inference_steps": STEPS, "output_type": "pt", "callback_on_step_end": keep} | options
    made = pipeline(prompt, height=height, width=width, latents=noise, **options)
    return [*steps, made.images[0]]


def run(model: OmniAlpha, sample: Example, **options: Any) -> list[Tensor]:
    """The same of ours, the picture with its alpha."""
    steps: list[Tensor] = []
    stacks = model.run([sample], seed=SEED, steps=STEPS, on_step=lambda step, _: steps.append(step.x), **options)
    return [*steps, stacks[0][0].rgba]


@pytest.mark.parametrize("size", SIZES.values(), ids=list(SIZES))
@pytest.mark.parametrize("guidance", [None, 1.0])
def test_equals_diffusers(ours: OmniAlpha, theirs: Any, size: tuple[int, int], guidance: float | None) -> None:
    sample = example(size=size)
    noise = ours.noise(ours.condition([sample]), SEED)
    scale = 3.5 if guidance is None else guidance
    wanted = published(theirs, noise, sample, guidance_scale=scale)
    made = run(ours, sample, guidance=guidance)
    assert len(made) == len(wanted) == STEPS + 1
    for mine, other in zip(made[:-1], wanted[:-1], strict=True):
        assert (mine - other).abs().max() <= 1e-4
    picture = made[-1]
    assert (picture[:3] - wanted[-1]).abs().max() <= 1e-4
    assert (picture[3] == 1).all()  # an RGB autoencoder, opaque


def test_guidance_is_one_pass_and_is_heard(ours: OmniAlpha, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    forward = ours.transformer.forward

    def counted(targets: Tensor, *rest: Any, **extra: Any) -> Tensor:
        passes.append(len(targets))
        return forward(targets, *rest, **extra)

    monkeypatch.setattr(ours.transformer, "forward", counted)
    told = run(ours, example(), guidance=3.5)
    assert passes == [1] * STEPS
    assert torch.equal(told[-1], run(ours, example())[-1])  # the card's own
    assert (told[-2] - run(ours, example(), guidance=1.0)[-2]).abs().max() > 1e-3


def test_prompt_is_read_bare(ours: OmniAlpha) -> None:
    """Whatever wording the task puts around it, and where it reads like one of them itself."""
    wordings = range(len(TASKS["text_to_image"].instructions))
    samples = [TASKS["text_to_image"].example(prompt=WORDS[1], size=(64, 64), wording=k) for k in wordings]
    assert {ours.card.text(sample) for sample in samples} == {WORDS[1]}
    assert ours.card.text(replace(samples[0], instruction="")) == ""
    frame = TASKS["text_to_image"].instruct("a mug")
    assert ours.card.text(example(frame)) == frame
    released = replace(ours.card, instructions={})
    assert len({released.text(sample) for sample in samples}) == len(samples)


def test_batch_of_sizes_equals_each_alone(ours: OmniAlpha) -> None:
    samples = [example(WORDS[0], (64, 64)), example(WORDS[1], (40, 96))]
    together = ours.run(samples, seed=[3, 4], steps=STEPS)
    for stack, sample, seed in zip(together, samples, (3, 4), strict=True):
        assert stack[0].rgba.shape == (4, *sample.size)
        assert (stack[0].rgba - ours.run([sample], seed=seed, steps=STEPS)[0][0].rgba).abs().max() <= 1e-4


def test_without_distillation_guidance_takes_two_passes(tmp_path: Path, ours: OmniAlpha) -> None:
    model = OmniAlpha.from_folder(write_flux(tmp_path / "plain", guidance_embeds=False))
    theirs = FluxPipeline.from_pretrained(tmp_path / "plain", torch_dtype=torch.float32)
    noise = ours.noise(ours.condition([example()]), SEED)
    plain = run(model, example())
    assert (plain[-2] - published(theirs, noise, example())[-2]).abs().max() <= 1e-4
    cond = model.condition([example()], guided=True)
    t = torch.tensor([0.6])
    wanted, other = (model.velocity(noise, t, c) for c in (cond, model.condition([replace(example(), instruction="")])))
    mixed = other + 2 * (wanted - other)
    mixed = mixed * wanted.norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True)
    assert (model.guided(cond, 2.0)(noise, t) - mixed).abs().max() <= 1e-4
    assert (run(model, example(), guidance=2.0)[-2] - plain[-2]).abs().max() > 1e-3


@pytest.mark.parametrize("name", [name for name in TASKS if name != "text_to_image"])
def test_every_other_task_is_refused(ours: OmniAlpha, name: str) -> None:
    task = TASKS[name]
    grey = torch.ones(4, 32, 32)
    sample = task.example(dict.fromkeys(task.inputs, grey), prompt="a cat" if task.text else None, size=(32, 32))
    with pytest.raises(InputError, match=f"cannot do {name}, only text_to_image: use --model nano"):
        ours.run([sample], steps=1)


# ---- loading ---------------------------------------------------------------------------------------------------------


def load(folder: Path, **options: Any) -> OmniAlpha:
    return omnialpha.load(folder, device="cpu", **{"dtype": "float32"} | options)


@pytest.mark.parametrize("way", ["model", "group", "disk"])
def test_offload_changes_nothing(
    flux_folder: Path, ours: OmniAlpha, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNIALPHA_HOME", str(tmp_path))
    model, wanted = load(flux_folder, offload=way), run(ours, example())[-1]
    for _ in range(2):
        # rounding: a matrix product of weights in a file may begin at another address
        torch.testing.assert_close(run(model, example())[-1], wanted, rtol=0, atol=1e-5 if way == "disk" else 0)
    if way != "model":
        blocks = (*model.transformer.blocks, *model.text_encoder.t5.encoder.block)
        assert all(hasattr(block, "_diffusers_hook") for block in blocks)
    assert model.placed is not None
    files = list(tmp_path.rglob("*.safetensors"))
    assert bool(files) == (way == "disk")
    model.placed.undo.close()
    torch.testing.assert_close(run(model, example())[-1], wanted, rtol=0, atol=1e-5)


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
def test_quantised_weights_are_close_and_small(flux_folder: Path, ours: OmniAlpha) -> None:
    model, wanted = load(flux_folder, quantize="int8"), run(ours, example())[-1]
    made = run(model, example())[-1]
    assert 0 < (made - wanted).norm() < 0.05 * wanted.norm()
    for part, whole in ((model.transformer, ours.transformer), (model.text_encoder, ours.text_encoder)):
        assert size_of(part) < 0.8 * size_of(whole)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quantize": "some.gguf"}, "setting gguf does not work with .*: leave it out"),
        ({"approximate": {"vision": "64"}}, "setting vision does not work with .*: leave it out"),
        ({"approximate": {"guidance": "0.2-0.9"}}, "setting guidance does not work with .*: leave it out"),
    ],
)
def test_settings_that_do_not_know_it_are_refused(flux_folder: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load(flux_folder, **options)


def test_step_cache_skips_blocks(flux_folder: Path, ours: OmniAlpha) -> None:
    model = load(flux_folder, approximate={"first-block": "100"})
    made = run(model, example())
    assert (made[0] - run(ours, example())[0]).abs().max() == 0
    assert (made[-2] - run(ours, example())[-2]).abs().max() > 0


def forecast(folder: Path, size: tuple[int, int] = (64, 64), **options: Any) -> Estimate:
    placement = Placement("cpu", "float32", **options)
    return Setup(resolve(folder), placement).forecast(example(size=size), STEPS, guided=True)


def test_forecast(flux_folder: Path, ours: OmniAlpha) -> None:
    made = forecast(flux_folder)
    weights = sum(p.numel() for part in (ours.vae, ours.transformer, ours.text_encoder) for p in part.parameters())
    assert made.weights_bytes == 4 * weights
    assert not made.job.guided and made.job.text_tokens == 512
    assert made.peak_bytes < forecast(flux_folder, size=(512, 512)).peak_bytes
    with pytest.raises(InputError, match="cannot do matting_auto"):
        setup = Setup(resolve(flux_folder), Placement("cpu"))
        setup.forecast(TASKS["matting_auto"].example(composite=torch.ones(4, 32, 32)), 1, guided=False)


def test_saved_model_is_the_same(flux_folder: Path, ours: OmniAlpha, tmp_path: Path) -> None:
    ours.save(tmp_path / "mine")
    again = load(tmp_path / "mine")
    assert again.card == ours.card
    assert torch.equal(run(again, example())[-1], run(ours, example())[-1])


def test_what_lacks_parts_stands_on_a_base(flux_folder: Path, tmp_path: Path) -> None:
    write_flux_vae(tmp_path / "release" / "rgba_vae", channels=4)
    parts = resolve(tmp_path / "release", base=flux_folder)
    assert parts.card.family == "flux" and parts.text == flux_folder
    assert parts.vae == tmp_path / "release" / "rgba_vae"
    with pytest.raises(InputError, match="whole model: leave out the base"):
        resolve(flux_folder, base=flux_folder)


# ---- as AlphaVAE runs it ---------------------------------------------------------------------------------------------


def test_command_with_its_autoencoder_and_lora(flux_folder: Path, theirs: Any, tmp_path: Path) -> None:
    """`omnialpha generate --model --vae --lora` writes what diffusers makes of the same latents and LoRA."""
    vae, lora = write_flux_vae(tmp_path / "rgba_vae", channels=4), write_flux_lora(tmp_path / "lora")
    arguments = ["generate", WORDS[2], "-o", tmp_path / "out.png", "--raw", "--dtype", "float32", "--device", "cpu"]
    arguments += ["--size", "80x48", "--seed", SEED, "--steps", STEPS]
    arguments += ["--model", flux_folder, "--vae", vae, "--lora", lora]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    written = torch.from_numpy(np.array(Image.open(tmp_path / "out.png"))).permute(2, 0, 1) / 255

    autoencoder, sample = load_vae(vae), example(WORDS[2], (48, 80))
    assert isinstance(autoencoder, FluxVAE)
    model = load(flux_folder)
    noise = model.noise(model.condition([sample]), SEED)

    def picture() -> Tensor:
        return autoencoder.decode(unpack(published(theirs, noise, sample, WORDS[2])[-2], 6, 10))[0].detach()

    without = picture()
    theirs.load_lora_weights(lora)
    try:
        wanted = picture()
    finally:
        theirs.unload_lora_weights()
    assert (written - wanted).abs().max() <= 0.6 / 255
    assert (without - wanted).abs().max() > 10 / 255
    assert wanted[3].std() > 0.01  # alpha that says something


def test_swapping_the_lora_away_gives_the_base(flux_folder: Path, ours: OmniAlpha, tmp_path: Path) -> None:
    model = load(flux_folder, lora=write_flux_lora(tmp_path / "lora"))
    assert adapters.applied(model.transformer)
    assert not torch.equal(run(model, example())[-1], run(ours, example())[-1])
    swap(model)
    assert torch.equal(run(model, example())[-1], run(ours, example())[-1])


def test_its_release_beside_its_base(flux_folder: Path, tmp_path: Path) -> None:
    """Told by its folders, without --vae and --lora: the same picture as with them."""
    release = write_alphavae(tmp_path / "AlphaVAE")
    inside = release / "finetune_VAE"
    parts = resolve(release, base=flux_folder)
    assert (parts.transformer.parent, parts.text, parts.vae) == (flux_folder, flux_folder, inside)
    assert [file.path.parent for file in parts.adapters] == [inside / "finetune_diffusion"]
    assert (parts.card.family, parts.card.tasks, parts.warning) == ("flux", ["text_to_image"], "")
    assert parts.card.text(example()) == WORDS[0]
    with pytest.raises(InputError, match="stands on black-forest-labs/FLUX.1-dev; .*omnialpha pull black-forest-labs"):
        resolve(release)

    made = run(load(release, base=flux_folder), example())[-1]
    together = load(flux_folder, vae=inside, lora=inside / "finetune_diffusion")
    assert torch.equal(made, run(together, example())[-1])
    assert (made - run(load(flux_folder), example())[-1]).abs().max() > 0.05
    assert made[3].std() > 0.01
