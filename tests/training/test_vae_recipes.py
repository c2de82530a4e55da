"""The autoencoder's recipes: that each ablation is one, that both published bases train, and at full size."""

import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLQwenImage
from safetensors.torch import load_file

from omnialpha import config
from omnialpha.errors import InputError
from omnialpha.models.vae.alphavae import load_vae
from omnialpha.training.perceptual import PerceptualSettings, pyramid
from omnialpha.training.run import run
from omnialpha.training.vae import VAEObjective
from omnialpha.training.vae_recipe import VAERecipe
from training_runs import logged

RECIPES = Path(__file__).parents[2] / "recipes"
ABLATIONS = {
    "naive": ("pixels", "naive"),
    "no-discriminator": ("adversarial", 0.0),
    "no-perceptual": ("perceptual", 0.0),
    "no-prior": ("prior", 0.0),
    "no-reference": ("reference", 0.0),
}


def effective(path, *overrides):
    return config.build(VAERecipe, config.load(path, overrides))


def test_every_ablation_differs_from_the_whole_in_its_term_alone():
    whole = asdict(effective(RECIPES / "alphavae.toml"))
    assert {p.stem for p in (RECIPES / "ablations").glob("alphavae-*.toml")} == {f"alphavae-{n}" for n in ABLATIONS}
    for name, (key, value) in ABLATIONS.items():
        made = asdict(effective(RECIPES / f"ablations/alphavae-{name}.toml"))
        assert made["loss"].pop(key) == value != whole["loss"][key]
        assert made["loss"] == {k: v for k, v in whole["loss"].items() if k != key}
        assert made["fit"].pop("output") != whole["fit"]["output"]
        assert made["fit"] == {k: v for k, v in whole["fit"].items() if k != "output"}
        same = set(whole) - {"loss", "fit"}
        assert {k: made[k] for k in same} == {k: whole[k] for k in same}


@pytest.mark.parametrize("ablation", [None, *ABLATIONS])
def test_an_ablated_term_is_not_computed(tmp_path, qwen_vae, pictures, ablation):
    path = RECIPES / (f"ablations/alphavae-{ablation}.toml" if ablation else "alphavae.toml")
    figures = run(path, small(tmp_path, qwen_vae, pictures), quiet=True)
    there = {"no-discriminator": "discriminator", "no-perceptual": "perceptual", "no-reference": "reference"}
    assert {name for name in there.values() if name in figures} == set(there.values()) - {there.get(ablation)}


def small(out, vae, pictures, **changes):
    """Overrides for two steps of little pictures, the discriminator in the second."""
    base = {
        "start": vae, "batch": 2, "sizes": [[16, 16], [24, 16]], "fit.steps": 2, "fit.output": out, "fit.warmup": 1,
        "fit.device": "cpu", "fit.trackers": [], "fit.log_every": 1, "fit.precision": "no", "fit.lr": 1e-3,
        "fit.workers": 0, "fit.validate_every": 2,
        "discriminator.width": 8, "discriminator.layers": 1, "loss.adversarial_from": 1,
        "pictures.folders": [str(pictures)], "pictures.held_out": 0.4,
    }  # fmt: skip
    words = {k: f'"{v}"' if isinstance(v, str | Path) else str(v).lower() for k, v in (base | changes).items()}
    words["pictures.folders"] = f'["{pictures}"]'
    return [f"{k}={v}" for k, v in words.items()]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    from PIL import Image

    from omnialpha.data.synthetic import layers as synthetic

    folder = tmp_path_factory.mktemp("pictures")
    for k, layer in enumerate(synthetic.bank(8, 32, seed=3)[0]):
        Image.fromarray(layer).save(folder / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def qwen_vae(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("qwen") / "vae"
    AutoencoderKLQwenImage(base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
                           latents_mean=[0.0] * 4, latents_std=[1.0] * 4).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def flux_vae(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("flux") / "vae"
    AutoencoderKL(
        block_out_channels=(8, 16), latent_channels=4, norm_num_groups=4, layers_per_block=1, scaling_factor=0.36,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, shift_factor=0.1,
        use_quant_conv=False, use_post_quant_conv=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.mark.parametrize("base", ["qwen", "flux"])
def test_both_bases_gain_alpha_and_keep_their_layout(tmp_path, pictures, qwen_vae, flux_vae, base):
    vae = {"qwen": qwen_vae, "flux": flux_vae}[base]
    recipe = RECIPES / ("alphavae.toml" if base == "qwen" else "alphavae-flux.toml")
    figures = run(recipe, small(tmp_path, vae, pictures), quiet=True)
    assert {"reference", "discriminator", "perceptual"} <= figures.keys()
    kind = {"qwen": AutoencoderKLQwenImage, "flux": AutoencoderKL}[base]
    first, made = load_vae(vae, widen=True), load_vae(tmp_path / "model/vae")
    assert made.config.channels == 4 and made.normalisation == first.normalisation
    x = torch.rand(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    assert (made.decode(made.encode(x)) - first.decode(first.encode(x))).abs().max() > 1e-4, "it was trained"
    assert logged(tmp_path, "val_psnr") and (tmp_path / "validation/000002.png").is_file()
    if base == "flux":
        stock = kind.from_pretrained(tmp_path / "model/vae")
        wanted = (stock.decode(stock.encode(2 * x - 1).latent_dist.mode()).sample.clamp(-1, 1) + 1) / 2
        torch.testing.assert_close(made.decode(made.encode(x)), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("base", [pytest.param("qwen", marks=pytest.mark.slow), "flux"])
def test_half_precision_learns_and_is_not_what_is_stored(tmp_path, pictures, qwen_vae, flux_vae, base, monkeypatch):
    """One batch by heart. bf16 is of the forward pass alone: what is kept, averaged and exported stays float32."""
    always = VAEObjective.forward
    monkeypatch.setattr(VAEObjective, "forward", lambda self, index, batch=None: always(self, 0))
    vae = {"qwen": qwen_vae, "flux": flux_vae}[base]
    changes = {"fit.steps": 30, "fit.precision": "bf16", "fit.ema": 0.9, "sizes": [[16, 16]], "fit.lr": 3e-3,
               "loss.adversarial": 0.0}  # fmt: skip
    recipe = RECIPES / ("alphavae.toml" if base == "qwen" else "alphavae-flux.toml")
    run(recipe, small(tmp_path, vae, pictures, **changes), quiet=True)
    losses = logged(tmp_path)
    assert len(losses) == 30 and all(map(math.isfinite, losses))
    assert losses[-1] < 0.7 * losses[0] and losses[-1] < 0.9 * losses[5], losses
    (file,) = (tmp_path / "model/vae").glob("*.safetensors")
    weights, start = load_file(file), load_vae(vae, widen=True).state_dict()
    assert {w.dtype for w in weights.values()} == {torch.float32}
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert {w.dtype for w in (*state["weights"].values(), *state["average"])} == {torch.float32}
    made = load_vae(tmp_path / "model/vae").state_dict()
    moved = [not torch.equal(made[k], made[k].bfloat16().float()) for k in start if start[k].numel() > 64]
    assert moved and all(moved), "not rounded to bf16 on the way"
    plain = small(tmp_path / "plain", vae, pictures, **changes | {"fit.precision": "no", "fit.steps": 1})
    run(recipe, plain, quiet=True)
    (one,) = logged(tmp_path / "plain")
    assert one != losses[0] and one == pytest.approx(losses[0], rel=0.05), "rounded, and the same but for that"


def test_sizes_that_the_vae_does_not_take(tmp_path, qwen_vae, pictures):
    with pytest.raises(InputError, match=r"sizes has \[15, 16\]: this VAE takes multiples of 2"):
        run(RECIPES / "alphavae.toml", small(tmp_path, qwen_vae, pictures, sizes=[[15, 16]]), quiet=True)


def test_neither_a_start_nor_a_model(tmp_path, pictures):
    with pytest.raises(InputError, match="either start, the folder of a VAE, or a table"):
        run(RECIPES / "alphavae.toml", small(tmp_path, "", pictures), quiet=True)


def test_perceptual_distances_by_name(tmp_path):
    assert PerceptualSettings().distance() is pyramid
    same = PerceptualSettings("omnialpha.training.perceptual:pyramid").distance()
    assert same is pyramid
    for kind, words in (
        ("lpips", "perceptual.backbone"),
        ("vgg", "use pyramid, lpips"),
        ("no.such:thing", "No module"),
    ):
        with pytest.raises(InputError, match=words):
            PerceptualSettings(kind).distance()


@pytest.mark.slow
def test_a_step_of_the_full_size_fits(tmp_path, pictures):
    """The released shape with random weights, all terms and the discriminator, 256 px, with checkpointing."""
    torch.manual_seed(0)
    AutoencoderKLQwenImage().save_pretrained(tmp_path / "vae")
    changes = {"sizes": [[256, 256]], "batch": 1, "checkpointing": True, "fit.validate_every": 0,
               "discriminator.width": 64, "discriminator.layers": 3, "fit.lr": 1.5e-5}  # fmt: skip
    figures = run(RECIPES / "alphavae.toml", small(tmp_path / "out", tmp_path / "vae", pictures, **changes), quiet=True)
    assert figures["discriminator"] > 0 and figures["loss"] == figures["loss"]
    assert load_vae(tmp_path / "out/model/vae").config.channels == 4
