"""diffusers' autoencoders on our benchmark: exactly what diffusers makes, and beside ours on the same weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLQwenImage
from PIL import Image

from omnialpha.data.synthetic import layers as synthetic
from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.rgba_pictures import rgba_pictures
from omnialpha.evaluation.methods.vae_baselines import of_diffusers_vae
from omnialpha.evaluation.metrics.backgrounds import BACKGROUNDS
from omnialpha.evaluation.reconstruction import kind as scoring
from omnialpha.evaluation.reconstruction import of_autoencoder
from omnialpha.evaluation.runner import EvaluationSettings, Runner, SampleSet
from omnialpha.models.vae.alphavae import load_vae
from omnialpha.tasks import Role

QWEN = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [False]}
FLUX = {
    "block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 4, "latent_channels": 4,
}  # fmt: skip


def save(kind: str, channels: int, folder: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "qwen":
        vae = AutoencoderKLQwenImage(**QWEN, latents_mean=[0.0] * 4, latents_std=[1.0] * 4, input_channels=channels)
    else:
        vae = AutoencoderKL(**FLUX, in_channels=channels, out_channels=channels, shift_factor=0.1, scaling_factor=0.3)
    vae.save_pretrained(folder)
    return vae.eval()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for k, pixels in enumerate(synthetic.bank(2, 24, seed=1)[0]):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{k}.png")
    return tmp_path / "in"


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("kind", ["qwen", "flux"])
def test_it_is_diffusers_own_and_near_ours(kind: str, channels: int, tmp_path: Path) -> None:
    theirs = save(kind, channels, tmp_path / "vae")
    autoencoder = of_diffusers_vae(tmp_path / "vae").requires_grad_(False)
    assert (autoencoder.config.channels, autoencoder.ratio) == (channels, 2)
    x = torch.rand(2, channels, 8, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        given = (2 * x - 1)[:, :, None] if kind == "qwen" else 2 * x - 1
        wanted = theirs.decode(theirs.encode(given).latent_dist.mean).sample
        wanted = ((wanted[:, :, 0] if kind == "qwen" else wanted).clamp(-1, 1) + 1) / 2
        made = autoencoder.decode(autoencoder.encode(x))
        ours = load_vae(tmp_path / "vae")
        again = ours.decode(ours.encode(x))
    assert torch.allclose(made, wanted, atol=1e-6) and torch.allclose(made, again, atol=1e-4)


@pytest.mark.parametrize("channels", [3, 4])
def test_it_runs_the_benchmark_beside_ours(channels: int, tmp_path: Path, pictures: Path) -> None:
    save("qwen", channels, tmp_path / "vae")
    targets = (Role.FULL,) * (1 if channels == 4 else len(BACKGROUNDS))
    samples = SampleSet([replace(sample, targets=targets) for sample in rgba_pictures(pictures)], scoring())
    runner = Runner(tmp_path / "out", EvaluationSettings(), keep=False)
    methods = [
        of_autoencoder(autoencoder.requires_grad_(False), name)
        for name, autoencoder in (("theirs", of_diffusers_vae(tmp_path / "vae")), ("ours", load_vae(tmp_path / "vae")))
    ]
    theirs, ours = (list(runner.rows(method, samples)) for method in methods)
    assert [row["psnr"] for row in theirs] == pytest.approx([row["psnr"] for row in ours], abs=1e-3)
    assert ("alpha_mad" in theirs[0]) is (channels == 4)
    assert {row["key"] for row in theirs}.isdisjoint(row["key"] for row in ours)


def test_the_published_class_for_rgba_is_read(tmp_path: Path) -> None:
    save("qwen", 4, tmp_path / "vae")
    path = tmp_path / "vae" / "config.json"
    text = path.read_text().replace('"AutoencoderKLQwenImage"', '"AutoencoderKLQwenImageAlpha"')
    path.write_text(text.replace('"input_channels": 4', '"in_channels": 4,\n  "out_channels": 4'))
    assert of_diffusers_vae(tmp_path / "vae").config.channels == 4


def test_what_diffusers_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no config.json"):
        of_diffusers_vae(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "AlphaVAE"}')
    with pytest.raises(InputError, match="holds a AlphaVAE"):
        of_diffusers_vae(tmp_path)
