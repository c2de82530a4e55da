"""The RGBA autoencoder: equal to diffusers' on one frame, exact where it says so, written back without loss."""

import copy
import json
import shutil
from functools import partial

import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageUpsample
from safetensors.torch import load_file, save_file

from omnialpha import rgba
from omnialpha.errors import InputError
from omnialpha.models.vae.alphavae import AlphaVAE, load_vae, opaque_initialization, write
from omnialpha.models.vae.autoencoder import WEIGHTS
from omnialpha.models.vae.folding import fold, unfold

MEAN, STD = [0.4, -0.7, 0.1, 1.3], [1.6, 0.5, 2.2, 0.9]
TINY = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 2, 2, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
    "latents_mean": MEAN,
    "latents_std": STD,
}
SIZE = (24, 40)  # neither square nor a power of two


def stock_vae(channels, seed=0):
    """diffusers' 3-D network with every parameter random, the norms' scales and the slices that never act included."""
    torch.manual_seed(seed)
    vae = AutoencoderKLQwenImage(**TINY, input_channels=channels).eval().requires_grad_(False)
    for parameter in vae.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    vae.decoder.conv_out.weight *= 2  # some of the output beyond the clamp
    return vae


def keep_dtype(vae):
    """diffusers' upsampling goes through float32, whatever it is given: let it not."""
    for module in vae.decoder.modules():
        if isinstance(module, QwenImageUpsample):
            module.forward = partial(torch.nn.Upsample.forward, module)
    return vae


@pytest.fixture(scope="module", params=[3, 4], ids=["rgb", "rgba"])
def stock(request, tmp_path_factory):
    """(diffusers' VAE, the folder it was saved to)"""
    vae = stock_vae(request.param)
    folder = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(folder)
    return vae, folder


@pytest.fixture(scope="module")
def rgb(tmp_path_factory):
    """(an RGB AlphaVAE, the diffusers folder that it was read from)"""
    folder = tmp_path_factory.mktemp("rgb")
    stock_vae(3).save_pretrained(folder)
    return AlphaVAE.load(folder).requires_grad_(False), folder


def pictures(channels, batch=2, size=SIZE, seed=1, dtype=torch.float32):
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def latents(batch=2, size=SIZE, seed=2, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 4, size[0] // 8, size[1] // 8, generator=g).to(dtype)


# ---- equal to diffusers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_encode_equals_the_stock_posterior_mode(stock, dtype, tolerance):
    vae, folder = stock
    channels = vae.config.input_channels
    ours = AlphaVAE.load(folder, dtype)
    assert ours.config.channels == channels and ours.ratio == 8
    x = pictures(channels, dtype=dtype)
    with torch.no_grad():
        posterior = vae.to(dtype).encode((2 * x - 1)[:, :, None]).latent_dist
        mode = posterior.mode()[:, :, 0]
        mean, logvar = ours.moments(x)
        encoded = ours.encode(x)
    mu, sigma = (torch.tensor(v, dtype=dtype).view(1, 4, 1, 1) for v in (MEAN, STD))
    wanted = (mode - mu) / sigma
    assert mode.std() > 0.01
    assert (mean - mode).abs().max() <= tolerance
    assert (logvar - posterior.logvar[:, :, 0]).abs().max() <= tolerance
    assert (encoded - wanted).abs().max() <= tolerance * 2  # one of the deviations is .5
    assert encoded.shape == (2, 4, 3, 5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_decode_equals_stock(stock, dtype, tolerance):
    vae, folder = stock
    ours = AlphaVAE.load(folder, dtype)
    z = latents(dtype=dtype)
    mu, sigma = (torch.tensor(v, dtype=dtype).view(1, 4, 1, 1) for v in (MEAN, STD))
    raw = z * sigma + mu
    keep_dtype(vae)
    with torch.no_grad():
        wanted = vae.to(dtype).decode(raw[:, :, None]).sample[:, :, 0]
        made = ours.reconstruct(raw)
        picture = ours.decode(z)
    inside = wanted.abs() < 1
    assert 0.02 < (~inside).float().mean() < 0.98, "the clamp and what lies inside it must both be met"
    assert made.abs().max() > 1, "training needs the values before the clamp"
    assert (made.clamp(-1, 1) - wanted).abs().max() <= tolerance
    assert picture.shape == (2, vae.config.input_channels, *SIZE) and picture.dtype == torch.float32
    assert (picture - (wanted + 1) / 2).abs().max() <= 1e-5


def test_one_pixel_of_latents(stock):
    vae, folder = stock
    x = pictures(vae.config.input_channels, batch=1, size=(8, 8), dtype=torch.float64)
    with torch.no_grad():
        wanted = vae.double().encode((2 * x - 1)[:, :, None]).latent_dist.mode()[:, :, 0]
        assert (AlphaVAE.load(folder, torch.float64).moments(x)[0] - wanted).abs().max() <= 1e-12


def test_gradients_equal_stock(stock):
    """The network reuses memory; training must not notice."""
    vae, folder = stock
    ours = AlphaVAE.load(folder, torch.float64)
    x = pictures(vae.config.input_channels, dtype=torch.float64)
    vae = keep_dtype(vae).double().requires_grad_(True)
    posterior = vae.encode((2 * x - 1)[:, :, None]).latent_dist
    wanted = vae.decode(posterior.mean).sample[:, :, 0].square().mean() + posterior.logvar.mean()
    mean, logvar = ours.moments(x)
    loss = ours.reconstruct(mean).clamp(-1, 1).square().mean() + logvar.mean()
    loss.backward()
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)
    theirs = fold({name: parameter.grad for name, parameter in vae.named_parameters() if parameter.grad is not None})
    vae.requires_grad_(False)
    vae.zero_grad()
    for name, parameter in ours.named_parameters():
        assert parameter.grad.abs().max() > 0 or name == "quant_conv.bias", name
        assert (parameter.grad - theirs[name]).abs().max() <= 1e-12 * max(1, theirs[name].abs().max()), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_the_truth_as_stock(stock, dtype):
    vae, folder = stock
    x, z = pictures(vae.config.input_channels), latents()
    with torch.no_grad():
        exact, ours = AlphaVAE.load(folder, torch.float64), AlphaVAE.load(folder, dtype)
        theirs = copy.deepcopy(vae).to(dtype)
        mode, made = exact.moments(x.double())[0], exact.reconstruct(z.double()).clamp(-1, 1)
        stock_mode = theirs.encode((2 * x - 1)[:, :, None].to(dtype)).latent_dist.mode()[:, :, 0]
        stock_made = theirs.decode(z[:, :, None].to(dtype)).sample[:, :, 0]
        for wanted, a, b in (
            (mode, ours.moments(x)[0], stock_mode),
            (made, ours.reconstruct(z.to(dtype)).clamp(-1, 1), stock_made),
        ):
            assert a.dtype == b.dtype == dtype
            error, stock_error = (float((v.double() - wanted).square().mean().sqrt()) for v in (a, b))
            # processors that multiply float16 by themselves round a 2-D convolution more than a 3-D one: 1.31 on one
            assert 0 < error <= (1.2 if dtype is torch.bfloat16 else 1.5) * stock_error


def test_a_wrong_number_of_channels_is_an_invariant(rgb):
    with pytest.raises(AssertionError, match="4 channels given"):
        rgb[0].encode(pictures(4))


# ---- opaque initialisation ------------------------------------------------------------------------------------------


def test_opaque_initialization_starts_at_the_rgb_vae(rgb):
    vae = rgb[0].double()
    wide = opaque_initialization(vae)
    x = pictures(3, dtype=torch.float64)
    alphas = [torch.ones_like(x[:, :1]), torch.zeros_like(x[:, :1]), pictures(1, seed=9, dtype=torch.float64)]
    encoded = [wide.encode(torch.cat([x, alpha], dim=1)) for alpha in alphas]
    assert torch.equal(encoded[0], encoded[1]) and torch.equal(encoded[0], encoded[2]), "alpha must not be seen"
    assert (encoded[0] - vae.encode(x)).abs().max() <= 1e-14
    z = latents(dtype=torch.float64)
    decoded = wide.decode(z)
    assert (decoded[:, :3] - vae.decode(z)).abs().max() <= 1e-7  # one float32 rounding of equal values
    assert (decoded[:, 3] == 1).all()
    assert wide.config.latents_mean == MEAN and wide.config.channels == 4
    vae.float()


def test_opaque_alpha_can_be_trained_from_its_first_step(rgb):
    """It starts at the clamp, where a clamped output would have no gradient."""
    wide = opaque_initialization(rgb[0]).requires_grad_(True)
    wide.reconstruct(latents())[:, 3].square().mean().backward()
    assert wide.decoder.conv_out.bias.grad[3] == pytest.approx(2.0, rel=1e-4)
    assert wide.decoder.conv_out.weight.grad[3].abs().max() > 1e-3


def test_opaque_initialization_refuses_what_is_done(rgb):
    with pytest.raises(InputError, match="this one has 4"):
        opaque_initialization(opaque_initialization(rgb[0]))


@pytest.mark.parametrize("linear_skip", [False, True])
@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_opaque_initialization_of_a_small_model(patch_size, linear_skip):
    """Its pixels are folded into channels, and a linear path has colours of its own."""
    settings = {"patch_size": patch_size, "linear_skip": linear_skip, "latents_mean": MEAN, "latents_std": STD}
    vae = AlphaVAE(8, 4, [1, 2], 1, channels=3, **settings).double().eval().requires_grad_(False)
    for parameter in vae.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    wide = opaque_initialization(vae).requires_grad_(False)
    x, z = pictures(3, dtype=torch.float64), latents(dtype=torch.float64)
    for alpha in (torch.zeros_like(x[:, :1]), pictures(1, seed=9, dtype=torch.float64)):
        moments = zip(wide.moments(torch.cat([x, alpha], dim=1)), vae.moments(x), strict=True)
        assert max(float((a - b).abs().max()) for a, b in moments) <= 1e-14
    made = wide.reconstruct(z)
    assert (made[:, :3] - vae.reconstruct(z)).abs().max() <= 1e-14 and (made[:, 3] == 1).all()
    assert dict(wide.config).items() >= (settings | {"channels": 4}).items()


# ---- folding and export ---------------------------------------------------------------------------------------------


def test_fold_and_unfold_are_inverse_and_keep_what_never_acts(stock):
    template = stock[0].float().state_dict()
    folded = fold(template)
    assert set(folded) == {name for name in template if ".time_conv." not in name}
    assert any(".time_conv." in name for name in template)
    again = fold(unfold(folded, template))
    assert again.keys() == folded.keys() and all(torch.equal(again[k], folded[k]) for k in folded)

    changed = {name: weight + 1 for name, weight in folded.items()}
    full = unfold(changed, template)
    assert full.keys() == template.keys()
    temporal = 0
    for name, old in template.items():
        assert full[name].shape == old.shape
        if ".time_conv." in name:
            assert torch.equal(full[name], old)
        elif old.ndim == 5:
            assert torch.equal(full[name][:, :, -1], old[:, :, -1] + 1)
            assert torch.equal(full[name][:, :, :-1], old[:, :, :-1])
            temporal += old.shape[2] > 1
        else:
            assert torch.equal(full[name], old + 1)
    assert temporal > 20


def test_unfolding_rgba_over_rgb_leaves_the_new_slices_empty(rgb):
    vae, folder = rgb
    template = load_file(folder / WEIGHTS)
    full = unfold(opaque_initialization(vae).state_dict(), template)
    first, last = full["encoder.conv_in.weight"], full["decoder.conv_out.weight"]
    assert first.shape[1] == last.shape[0] == 4
    assert first[:, 3].abs().max() == 0 and last[3].abs().max() == 0
    assert torch.equal(first[:, :3], template["encoder.conv_in.weight"])


def test_exported_rgba_weights_work_in_diffusers(rgb, tmp_path):
    vae, source = rgb
    wide = opaque_initialization(vae)
    torch.manual_seed(3)
    for parameter in wide.parameters():
        parameter.requires_grad_(False).add_(0.02 * torch.randn_like(parameter))
    moved = [m + 0.25 for m in MEAN]
    wide.register_to_config(latents_mean=moved)
    wide.export(tmp_path / "out", source)

    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["_class_name"] == "AutoencoderKLQwenImageAlpha"
    assert (config["in_channels"], config["out_channels"]) == (4, 4) and "input_channels" not in config
    assert config["latents_mean"] == moved and config["latents_std"] == STD
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", WEIGHTS]

    back = AlphaVAE.load(tmp_path / "out")
    assert all(torch.equal(back.state_dict()[k], v) for k, v in wide.state_dict().items())

    theirs = AutoencoderKLQwenImage(**TINY, input_channels=4).eval()
    theirs.load_state_dict(load_file(tmp_path / "out" / WEIGHTS))
    theirs, wide = keep_dtype(theirs).double(), wide.double()
    x, z = pictures(4, dtype=torch.float64), latents(dtype=torch.float64)
    with torch.no_grad():
        mode = theirs.encode((2 * x - 1)[:, :, None]).latent_dist.mode()[:, :, 0]
        assert (wide.moments(x)[0] - mode).abs().max() <= 1e-12
        made = theirs.decode(z[:, :, None]).sample[:, :, 0]
        assert (wide.reconstruct(z).clamp(-1, 1) - made).abs().max() <= 1e-12
    assert back.config.latents_mean == moved


def test_export_over_its_own_source(stock, tmp_path):
    vae, _ = stock
    vae.float().save_pretrained(tmp_path)
    ours = AlphaVAE.load(tmp_path).requires_grad_(False)
    ours.encoder.conv_out.bias += 1
    ours.export(tmp_path, tmp_path)
    back = AlphaVAE.load(tmp_path)
    assert all(torch.equal(back.state_dict()[k], v) for k, v in ours.state_dict().items())
    if ours.config.channels == 3:  # then the class is diffusers' own
        theirs = AutoencoderKLQwenImage.from_pretrained(tmp_path).state_dict()
        moved = {k: not torch.equal(theirs[k], v) for k, v in vae.state_dict().items()}
        assert [k for k, v in moved.items() if v] == ["encoder.conv_out.bias"]


def test_writing_keeps_the_layout_that_a_codec_came_from(stock, tmp_path):
    vae, source = stock
    ours = AlphaVAE.load(source)
    ours.register_to_config(latents_mean=[m + 1 for m in MEAN])
    own = small(patch_size=2)
    own.save_pretrained(tmp_path / "own")
    for autoencoder, origin, kind in (
        (ours, source, "AutoencoderKLQwenImage"),
        (ours, None, "AlphaVAE"),
        (own, tmp_path / "own", "AlphaVAE"),
    ):
        write(autoencoder, tmp_path / "out", origin)
        assert json.loads((tmp_path / "out/config.json").read_text())["_class_name"] == kind
        assert (load_file(tmp_path / "out" / WEIGHTS)["decoder.conv_in.weight"].ndim == 5) == (origin == source)
        back = load_vae(tmp_path / "out")
        assert back.normalisation == autoencoder.normalisation
        assert all(torch.equal(back.state_dict()[k], v) for k, v in autoencoder.state_dict().items())
        shutil.rmtree(tmp_path / "out")


def test_own_layout_round_trip(tmp_path):
    vae = small(patch_size=2, linear_skip=True, premultiplied=True, latents_std=[0.5] * 16)
    vae.save_pretrained(tmp_path)
    back = AlphaVAE.load(tmp_path)
    assert dict(back.config).items() >= {"patch_size": 2, "premultiplied": True, "latents_std": [0.5] * 16}.items()
    x = pictures(4)
    with torch.no_grad():
        assert torch.equal(back.encode(x), vae.encode(x))
    assert AlphaVAE.load(tmp_path, torch.bfloat16).dtype == torch.bfloat16


# ---- any kind of Qwen-Image VAE -------------------------------------------------------------------------------------


def released(folder, source, **changes):
    """A folder like `source` with other settings in its config.json; None takes one out."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


ALPHA_CLASS = {"_class_name": "AutoencoderKLQwenImageAlpha", "input_channels": None}


def test_every_class_and_number_of_channels(stock, tmp_path):
    """diffusers' own (base; of Qwen-Image-Layered with input_channels 4), and the released RGBA class."""
    vae, source = stock
    channels = vae.config.input_channels
    written = {"in_channels": channels, "out_channels": channels} if channels == 4 else {}  # null there means three
    alpha = released(tmp_path / "alpha", source, **ALPHA_CLASS, **written)
    x = pictures(channels)
    with torch.no_grad():
        wanted = AlphaVAE.load(source).encode(x)
        for folder in (source, alpha):
            made = load_vae(folder)
            assert type(made) is AlphaVAE and made.config.channels == channels
            assert torch.equal(made.encode(x), wanted)


def test_widening_is_for_rgb_only(stock):
    vae, folder = stock
    wide = load_vae(folder, torch.float64, widen=True)
    assert wide.config.channels == 4 and wide.dtype == torch.float64 and not wide.training
    plain = AlphaVAE.load(folder, torch.float64)
    if vae.config.input_channels == 4:
        assert all(torch.equal(wide.state_dict()[k], v) for k, v in plain.state_dict().items())
    with torch.no_grad():
        z = latents(dtype=torch.float64)
        assert torch.equal(wide.decode(z)[:, :3], plain.decode(z)[:, :3])


def test_statistics_that_are_not_written_are_those_of_diffusers(tmp_path):
    settings = {k: v for k, v in TINY.items() if not k.startswith("latents_")} | {"z_dim": 16}
    theirs = AutoencoderKLQwenImage(**settings)
    theirs.save_pretrained(tmp_path / "full")
    bare = AlphaVAE.load(released(tmp_path / "bare", tmp_path / "full", latents_mean=None, latents_std=None))
    mean, std = bare.statistics
    assert mean.flatten().tolist() == pytest.approx(theirs.config.latents_mean)
    assert std.flatten().tolist() == pytest.approx(theirs.config.latents_std)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_half_precision_files_and_shards(rgb, tmp_path, stored):
    vae = stock_vae(3).to(stored)
    vae.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    back = AlphaVAE.load(tmp_path)
    assert back.dtype == torch.float32 and vae.dtype == stored
    wanted = fold(vae.state_dict())
    assert all(torch.equal(v, wanted[k].float()) for k, v in back.state_dict().items())
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with pytest.raises(InputError, match="lacks 1 of .* shards, the first is diffusion_pytorch_model-00002-of-"):
        AlphaVAE.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "AutoencoderKLWan"}, "holds a AutoencoderKLWan.*AutoencoderKLQwenImageAlpha or AutoencoderKL"),
        ({"_class_name": None}, "holds a None"),
        ({"attn_scales": [0.5]}, "without attn_scales"),
        ({"base_dim": 16}, "do not fit its config.json .*encoder.conv_in.weight.*restore both"),
    ],
)
def test_other_kinds_are_refused_by_name(rgb, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        load_vae(released(tmp_path / "vae", rgb[1], **changes))


def test_a_video_codec_is_no_picture_codec(rgb):
    with pytest.raises(
        InputError, match=r"AlphaVAE takes single pictures .* not shape \(1, 3, 5, 8, 8\): .* one by one"
    ):
        rgb[0].encode(torch.zeros(1, 3, 5, 8, 8))
    with pytest.raises(InputError, match="single pictures"):
        rgb[0].decode(torch.zeros(1, 4, 2, 1, 1))


def test_uneven_channels_and_lacking_weights_are_refused(rgb, tmp_path):
    state = load_file(rgb[1] / WEIGHTS)
    folder = released(tmp_path / "vae", rgb[1])
    save_file(state | {"decoder.conv_out.weight": torch.zeros(4, 8, 3, 3, 3)}, folder / WEIGHTS)
    with pytest.raises(InputError, match="reads 3 channels and writes 4"):
        AlphaVAE.load(folder)
    for lost in ("encoder.conv_in.weight", "decoder.norm_out.gamma"):
        save_file({k: v for k, v in state.items() if k != lost}, folder / WEIGHTS)
        with pytest.raises(InputError, match=lost):
            AlphaVAE.load(folder)
    (folder / WEIGHTS).write_bytes((rgb[1] / WEIGHTS).read_bytes()[:1000])
    with pytest.raises(InputError, match=f"{WEIGHTS} .* is cut short, damaged"):
        AlphaVAE.load(folder)


# ---- the small model's own parts ------------------------------------------------------------------------------------


def small(z_dim=16, **settings):
    torch.manual_seed(5)
    return AlphaVAE(base_dim=4, z_dim=z_dim, dim_mult=[1], num_res_blocks=1, **settings).eval()


def orthonormal(size, seed=0):
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[
        0
    ]


@pytest.mark.parametrize(("patch_size", "dim_mult"), [(2, [1]), (1, [1, 2])])
def test_a_full_linear_codec_is_exact(patch_size, dim_mult):
    torch.manual_seed(0)
    vae = AlphaVAE(4, 16, dim_mult, 1, patch_size=patch_size, linear_skip=True).double().eval()
    mean = torch.tensor([0.2, -0.4, 0.1, 0.7], dtype=torch.float64)
    vae.set_linear_autoencoder(orthonormal(16), mean)
    x = pictures(4, dtype=torch.float64)
    with torch.no_grad():
        z, logvar = vae.moments(x)
        assert (vae.reconstruct(z) - (2 * x - 1)).abs().max() < 1e-12
        assert (vae.decode(vae.encode(x)) - x).abs().max() < 1e-6
        energy = ((2 * x - 1) - mean.view(1, 4, 1, 1)).square().sum()
        assert torch.allclose(z.square().sum(), energy), "an orthonormal autoencoder keeps lengths"
    assert (logvar == -6).all()


def test_a_partial_linear_codec_is_the_projection():
    vae = small(z_dim=5, patch_size=2, linear_skip=True).double()
    basis, mean = orthonormal(16)[:5], torch.tensor([0.2, -0.4, 0.1, 0.7], dtype=torch.float64)
    vae.set_linear_autoencoder(basis, mean)
    x = pictures(4, dtype=torch.float64)
    with torch.no_grad():
        out = vae.reconstruct(vae.moments(x)[0])
    centred = torch.nn.functional.unfold(2 * x - 1 - mean.view(1, 4, 1, 1), 2, stride=2)  # (B, 16, L)
    wanted = torch.nn.functional.fold(basis.T @ (basis @ centred), SIZE, 2, stride=2) + mean.view(1, 4, 1, 1)
    assert (out - wanted).abs().max() < 1e-12
    assert (out - (2 * x - 1)).abs().max() > 0.1


def test_premultiplied_hidden_colour_has_no_influence():
    vae = small(patch_size=2, linear_skip=True, premultiplied=True)
    x = pictures(4)
    x[:, 3, :, :20] = 0
    other = x.clone()
    other[:, :3, :, :20] = pictures(3, seed=7)[..., :20]
    seen = x.clone()
    seen[:, :3, :, 20:] = pictures(3, seed=7)[..., 20:]
    with torch.no_grad():
        assert torch.equal(vae.encode(x), vae.encode(other))
        assert not torch.allclose(vae.encode(x), vae.encode(seen), atol=1e-2)
        plain = small(patch_size=2, linear_skip=True)
        assert not torch.allclose(plain.encode(x), plain.encode(other), atol=1e-2)


def test_premultiplied_output_is_straight_again():
    vae = small(patch_size=2, linear_skip=True, premultiplied=True)
    vae.set_linear_autoencoder(orthonormal(16).float(), torch.zeros(4))
    x = pictures(4)
    x[:, 3] = x[:, 3] * 0.8 + 0.2
    with torch.no_grad():
        made = vae.decode(vae.encode(x))
    assert (rgba.premultiply(made) - rgba.premultiply(x)).abs().max() < 1e-5
    assert (made - x).abs().max() < 1e-4


# ---- gradient checkpointing -----------------------------------------------------------------------------------------


def kept_for_backward(autoencoder, x):
    """(bytes that wait for the backward pass, the gradient of every parameter)"""
    sizes = {}

    def note(tensor):
        sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    autoencoder.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        mean, logvar = autoencoder.moments(x)
        loss = autoencoder.reconstruct(mean).square().mean() + logvar.mean()
    weights = {p.data_ptr() for p in autoencoder.parameters()}
    loss.backward()
    return sum(v for k, v in sizes.items() if k not in weights), [p.grad.clone() for p in autoencoder.parameters()]


def test_checkpointing_computes_again_what_it_does_not_keep():
    torch.manual_seed(0)
    vae = AlphaVAE(8, 4, [1, 2, 2], 2, patch_size=2, linear_skip=True)
    x = pictures(4, size=(64, 64))
    plain, wanted = kept_for_backward(vae, x)
    vae.enable_gradient_checkpointing()
    less, made = kept_for_backward(vae, x)
    assert less < 0.4 * plain
    assert all((a - b).abs().max() <= 1e-6 * max(1, b.abs().max()) for a, b in zip(made, wanted, strict=True))
    assert max(float(g.abs().max()) for g in wanted) > 1e-3
    vae.disable_gradient_checkpointing()
    assert kept_for_backward(vae, x)[0] == plain


# ---- mistakes -------------------------------------------------------------------------------------------------------


def test_folders_that_are_no_vae(rgb, tmp_path):
    with pytest.raises(InputError, match="no config.json"):
        AlphaVAE.load(tmp_path)
    (tmp_path / "config.json").write_bytes((rgb[1] / "config.json").read_bytes())
    with pytest.raises(InputError, match=f"has neither {WEIGHTS}"):
        AlphaVAE.load(tmp_path)


def test_own_parts_are_not_exported_in_silence(rgb, tmp_path):
    with pytest.raises(InputError, match="save_pretrained"):
        small(linear_skip=True).export(tmp_path / "out", rgb[1])
    assert not (tmp_path / "out").exists()
