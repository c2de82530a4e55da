"""FLUX's autoencoder behind the autoencoder's interface: equal to diffusers', and saved as diffusers saves it."""

import json

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from omnialpha.errors import InputError
from omnialpha.models.flux.vae import FluxVAE
from omnialpha.models.vae.alphavae import AlphaVAE, load_vae, opaque_initialization, write
from omnialpha.models.vae.autoencoder import WEIGHTS

SCALE, SHIFT = 0.3611, 0.1159
TINY = {  # FLUX.1-dev's settings, narrower
    "block_out_channels": [8, 16, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 16,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": SCALE,
    "shift_factor": SHIFT,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
SIZE = (24, 40)


def stock_vae(channels, seed=0, **changes):
    """diffusers' network with every parameter random."""
    torch.manual_seed(seed)
    settings = TINY | {"in_channels": channels, "out_channels": channels} | changes
    vae = AutoencoderKL(**settings).eval().requires_grad_(False)
    for parameter in vae.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    vae.decoder.conv_out.weight *= 4  # some of the output beyond the clamp
    return vae


@pytest.fixture(scope="module", params=[3, 4], ids=["rgb", "rgba"])
def stock(request, tmp_path_factory):
    """(diffusers' VAE, the folder it was saved to)"""
    vae = stock_vae(request.param)
    folder = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(folder)
    return vae, folder


def pictures(channels, batch=2, size=SIZE, seed=1, dtype=torch.float32):
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def latents(batch=2, size=SIZE, seed=2, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 16, size[0] // 8, size[1] // 8, generator=g).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_both_directions_equal_stock(stock, dtype, tolerance):
    vae, folder = stock
    channels = vae.config.in_channels
    ours = load_vae(folder, dtype)
    assert type(ours) is FluxVAE and ours.dtype == dtype and not ours.training
    assert (ours.ratio, ours.config.z_dim, ours.config.channels) == (8, 16, channels)
    x, z = pictures(channels, dtype=dtype), latents(dtype=dtype)
    with torch.no_grad():
        posterior = vae.to(dtype).encode(2 * x - 1).latent_dist
        mean, logvar = ours.moments(x)
        assert (mean - posterior.mode()).abs().max() <= tolerance
        assert (logvar - posterior.logvar).abs().max() <= tolerance
        assert posterior.mode().std() > 0.01
        encoded = ours.encode(x)
        assert (encoded - (posterior.mode() - SHIFT) * SCALE).abs().max() <= tolerance
        assert encoded.shape == (2, 16, 3, 5)
        wanted = vae.decode(z / SCALE + SHIFT).sample
        made = ours.reconstruct(z / SCALE + SHIFT)
        assert (made - wanted).abs().max() <= tolerance
        shown = ours.decode(z)
    assert 0.02 < (wanted.abs() > 1).float().mean() < 0.98, "the clamp and what lies inside it must both be met"
    assert shown.dtype == torch.float32 and shown.shape == (2, channels, *SIZE)
    assert (shown - (wanted.clamp(-1, 1) + 1) / 2).abs().max() <= 1e-5


def test_statistics_are_shift_and_scale(stock):
    mean, std = load_vae(stock[1]).statistics
    assert mean.shape == std.shape == (1, 16, 1, 1)
    assert mean.flatten().tolist() == pytest.approx([SHIFT] * 16)
    assert std.flatten().tolist() == pytest.approx([1 / SCALE] * 16)


def test_without_shift_and_with_quantising_convolutions(tmp_path):
    """The autoencoders of the same class that came before FLUX's."""
    vae = stock_vae(3, latent_channels=4, shift_factor=None, use_quant_conv=True, use_post_quant_conv=True)
    vae.save_pretrained(tmp_path)
    ours, x = load_vae(tmp_path), pictures(3)
    with torch.no_grad():
        mode = vae.encode(2 * x - 1).latent_dist.mode()
        assert (ours.encode(x) - mode * SCALE).abs().max() <= 1e-5
        assert (ours.reconstruct(mode) - vae.decode(mode).sample).abs().max() <= 1e-5


def test_opaque_initialization_starts_at_the_rgb_vae(tmp_path):
    stock_vae(3).save_pretrained(tmp_path)
    rgb, wide = load_vae(tmp_path, torch.float64), load_vae(tmp_path, torch.float64, widen=True)
    assert wide.config.channels == 4 and wide.dtype == torch.float64
    x, z = pictures(3, dtype=torch.float64), latents(dtype=torch.float64)
    with torch.no_grad():
        for alpha in (torch.ones_like(x[:, :1]), pictures(1, seed=9, dtype=torch.float64)):
            assert (wide.encode(torch.cat([x, alpha], dim=1)) - rgb.encode(x)).abs().max() <= 1e-13
        decoded = wide.decode(z)
        assert (decoded[:, :3] - rgb.decode(z)).abs().max() <= 1e-7
        assert (decoded[:, 3] == 1).all()
    with pytest.raises(InputError, match="this one has 4"):
        opaque_initialization(wide)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_saved_as_diffusers_saves_it(tmp_path, stored):
    stock_vae(3).to(stored).save_pretrained(tmp_path / "rgb", max_shard_size="30KB")
    assert len(list((tmp_path / "rgb").glob("*.safetensors"))) > 2
    wide = load_vae(tmp_path / "rgb", widen=True)
    write(wide, tmp_path / "rgba", tmp_path / "rgb")

    config = json.loads((tmp_path / "rgba/config.json").read_text())
    assert (config["_class_name"], config["in_channels"], config["out_channels"]) == ("AutoencoderKL", 4, 4)
    assert (config["scaling_factor"], config["shift_factor"]) == (SCALE, SHIFT)
    assert load_file(tmp_path / "rgba" / WEIGHTS)["encoder.conv_in.weight"].shape == (8, 4, 3, 3)
    theirs, back, x = AutoencoderKL.from_pretrained(tmp_path / "rgba"), load_vae(tmp_path / "rgba"), pictures(4)
    with torch.no_grad():
        assert torch.equal(back.encode(x), wide.encode(x))
        assert torch.equal(theirs.encode(2 * x - 1).latent_dist.mean, wide.moments(x)[0])


def test_checkpointing_computes_again_what_it_does_not_keep():
    autoencoder, x = FluxVAE(stock_vae(4).requires_grad_(True)), pictures(4)
    figures = []
    for prepare in (lambda: None, autoencoder.enable_gradient_checkpointing):
        prepare()
        autoencoder.zero_grad()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            autoencoder.reconstruct(autoencoder.moments(x)[0]).square().mean().backward()
        figures.append((sum(kept), [p.grad for p in autoencoder.parameters()]))
    (plain, wanted), (less, made) = figures
    assert less < 0.6 * plain
    assert all((a - b).abs().max() <= 1e-6 * max(1, b.abs().max()) for a, b in zip(made, wanted, strict=True))


def test_a_batch_in_pieces_and_a_video(tmp_path):
    ours = FluxVAE(stock_vae(4))
    x = pictures(4, batch=3)
    with torch.no_grad():
        wanted = ours.encode(x)
        ours.max_batch_pixels = 1
        assert (ours.encode(x) - wanted).abs().max() <= 1e-5
    with pytest.raises(InputError, match="FluxVAE takes single pictures"):
        ours.encode(x[:, :, None])


def test_wrong_folders_are_refused(stock, tmp_path):
    _, folder = stock
    with pytest.raises(InputError, match="holds a AutoencoderKL, not .*: use AlphaVAE or "):
        AlphaVAE.load(folder)
    (tmp_path / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    config = json.loads((folder / "config.json").read_text())
    for changes, words in (
        ({"latents_mean": [0.0] * 16}, "channel by channel"),
        ({"latent_channels": 4}, "do not fit its config.json"),
        ({"_class_name": "AutoencoderTiny"}, "holds a AutoencoderTiny"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(InputError, match=words):
            load_vae(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        load_vae(tmp_path)
