"""The autoencoder's terms: formulas by hand, by Monte Carlo and by autograd; training that learns, resumes bit for bit
and exports the layout it came from.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from omnialpha import rgba
from omnialpha.models.vae.alphavae import AlphaVAE
from omnialpha.training.discriminator import Discriminator, adaptive_weight, hinge, pull
from omnialpha.training.loop import fit
from omnialpha.training.perceptual import pyramid
from omnialpha.training.sources import ScenePictures
from omnialpha.training.vae import (
    Background,
    DiscriminatorSettings,
    VAELoss,
    VAEObjective,
    calibrate,
    composited_error,
    fit_linear_autoencoder,
    on_black_and_white,
    reference_kl,
)
from training_runs import assert_resumes, logged, seeded, settings

MEAN, SQUARE = Background().moments(torch.device("cpu"))


def test_composited_error_is_the_expectation_over_backgrounds():
    """Monte Carlo over backgrounds with just these two moments: agreement within five standard errors."""
    g = seeded(0)
    a, a_hat = torch.rand(6, 1, 2, 2, generator=g), torch.rand(6, 1, 2, 2, generator=g)
    x, x_hat = torch.rand(6, 3, 2, 2, generator=g) * 2 - 1, torch.rand(6, 3, 2, 2, generator=g) * 2 - 1
    wanted = composited_error(a * x - a_hat * x_hat, a - a_hat, MEAN, SQUARE)
    spread = (SQUARE - MEAN**2).sqrt()
    n = 40_000
    for noise in (torch.randn(n, 1, 3, 1, 1, generator=g), torch.randint(2, (n, 1, 3, 1, 1), generator=g) * 2.0 - 1):
        b = MEAN + spread * noise
        error = ((a * x + (1 - a) * b) - (a_hat * x_hat + (1 - a_hat) * b)).square()  # (n, 6, 3, 2, 2)
        close = (error.mean(0) - wanted).abs() <= 5 * error.std(0) / math.sqrt(n) + 1e-6
        assert close.all()
    assert (wanted >= -1e-6).all() and wanted.mean() > 0.1
    mid_grey = (a * x - a_hat * x_hat).square()
    assert (mid_grey - wanted).abs().mean() > 0.02, "the moments matter"


def test_composited_error_of_equals_is_zero():
    zero = torch.zeros(2, 3, 4, 4)
    assert (composited_error(zero, zero[:, :1], MEAN, SQUARE) == 0).all()


def test_background_moments_are_possible():
    assert (SQUARE > MEAN**2).all() and (SQUARE <= 1).all()
    assert Background() == Background((-0.0357, -0.0811, -0.1797), (0.3163, 0.3060, 0.3634))


def small_vae(seed=1, **changes):
    torch.manual_seed(seed)
    base = {"base_dim": 8, "z_dim": 8, "dim_mult": [1, 2], "num_res_blocks": 1, "patch_size": 2}
    return AlphaVAE(**base | {"linear_skip": True, "premultiplied": True} | changes)


NANO = VAELoss(alpha=0.5, edge=0.5)
FULL = VAELoss(perceptual=0.2, reference=1e-4, adversarial=0.5, adversarial_from=2)


def vae_objective(bank, held_out, weights=NANO, **changes):
    vae = small_vae(**changes)
    pictures, held = (ScenePictures(b, 4, [(16, 16), (16, 24)], 2) for b in (bank, held_out))
    fit_linear_autoencoder(vae, torch.cat([pictures[100 + i * 2] for i in range(8)]))
    return VAEObjective(vae, pictures, held, weights, discriminator=DiscriminatorSettings(width=8, layers=2))


@pytest.mark.parametrize("premultiplied", [True, False])
@torch.no_grad()
def test_the_vae_loss_is_the_error_of_composites(bank, held_out, premultiplied):
    """`reconstruction` against composites of the two pictures on random backgrounds, in [-1, 1]."""
    objective = vae_objective(bank, held_out, premultiplied=premultiplied)
    g = seeded(3)
    x, made = torch.rand(2, 4, 8, 8, generator=g), torch.rand(2, 4, 8, 8, generator=g)
    out = rgba.premultiply(made) if premultiplied else made
    zeros = torch.zeros(2, 8, 4, 4)
    losses = objective.losses(x, 2 * out - 1, zeros, zeros)
    b = (MEAN + (SQUARE - MEAN**2).sqrt() * torch.randn(4000, 1, 3, 1, 1, generator=g) + 1) / 2
    error = (2 * (rgba.flatten(x, b) - rgba.flatten(made, b))).square().flatten(1).mean(1)
    assert float(losses["reconstruction"]) == pytest.approx(float(error.mean()), abs=5 * float(error.std()) / 4000**0.5)
    assert losses["alpha_mad"] == pytest.approx(float((x[:, 3] - made[:, 3]).abs().mean()), rel=1e-5)
    assert losses["prior"] == pytest.approx(0.0)

    edges = 0.0
    for back in (0.0, 1.0):
        e = rgba.flatten(x, (back,) * 3) - rgba.flatten(made, (back,) * 3)
        edges += float(torch.cat([e.diff(dim=-1).flatten(), e.diff(dim=-2).flatten()]).abs().mean())
    alpha = float((x[:, 3] - made[:, 3]).square().mean())
    assert float(losses["loss"]) == pytest.approx(float(losses["reconstruction"]) + 0.5 * alpha + 0.5 * edges, rel=1e-5)


def test_a_perfect_reconstruction_costs_nothing_whatever_is_hidden(bank, held_out):
    objective = vae_objective(bank, held_out)
    x = torch.rand(2, 4, 8, 8, generator=seeded(3))
    x[:, 3, :, :4] = 0
    hidden = x.clone()
    hidden[:, :3, :, :4] = 1
    zeros = torch.zeros(2, 8, 4, 4)
    assert float(objective.losses(hidden, 2 * rgba.premultiply(x) - 1, zeros, zeros)["loss"]) < 1e-7


def test_kl_is_the_gaussians(bank, held_out):
    objective = vae_objective(bank, held_out)
    x = torch.rand(1, 4, 8, 8, generator=seeded(3))
    mean, logvar = torch.full((1, 8, 4, 4), 0.7), torch.full((1, 8, 4, 4), -1.5)
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(0.7, math.exp(-0.75)), normal(0.0, 1.0))
    losses = objective.losses(x, 2 * rgba.premultiply(x) - 1, mean, logvar)
    assert losses["prior"] == pytest.approx(float(wanted), rel=1e-5)
    assert losses["loss"] == pytest.approx(1e-6 * float(wanted), rel=1e-4, abs=5e-8)


def test_the_linear_codec_is_the_best_one(bank, held_out):
    """Its error is the energy of the covariance's smallest eigenvalues, and no other basis of that size does better."""
    vae = small_vae(z_dim=8)
    x = torch.rand(6, 4, 16, 16, generator=seeded(5))
    x = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), 5, 1)  # smooth, so that patches have structure
    fit_linear_autoencoder(vae, x)
    straight = rgba.premultiply(x) * 2 - 1

    def error():
        with torch.no_grad():
            mean, _ = vae.moments(x)
            return float((vae.reconstruct(mean) - straight).square().mean())

    best = error()
    patches = F.unfold(straight - straight.mean((0, 2, 3))[:, None, None], 4, stride=4).transpose(1, 2).flatten(0, 1)
    values = torch.linalg.eigvalsh((patches.T @ patches / len(patches)).double())
    assert best == pytest.approx(float(values[:-8].sum()) / 64, rel=1e-4)
    assert best < 0.5 * float(values.sum()) / 64
    basis = torch.linalg.qr(torch.randn(64, 8, generator=seeded(1)))[0].T
    vae.set_linear_autoencoder(basis.contiguous(), straight.mean((0, 2, 3)))
    assert error() > 1.5 * best


def test_calibration(bank, held_out):
    objective = vae_objective(bank, held_out)
    batches = [objective.pictures[i] for i in (0, 2, 4)]

    def normalised():
        with torch.no_grad():
            return torch.cat([objective.vae.encode(x) for x in batches]).transpose(0, 1).flatten(1)

    calibrate(objective.vae, batches, whitening=1.0)
    white = normalised()
    assert white.mean(1).abs().max() < 1e-4 and (white.std(1) - 1).abs().max() < 1e-3
    calibrate(objective.vae, batches)
    half = normalised()
    assert half.mean(1).abs().max() < 1e-4 and float(half.square().mean()) == pytest.approx(1, abs=1e-2)
    assert float(half.std(1).max() / half.std(1).min()) > 2, "strong channels stay stronger"
    x = batches[0]
    with torch.no_grad():
        calibrated = objective.vae.decode(objective.vae.encode(x))
        objective.vae.register_to_config(latents_mean=None, latents_std=None)
        assert (objective.vae.decode(objective.vae.encode(x)) - calibrated).abs().max() < 1e-4


@pytest.mark.parametrize("weights", [NANO, FULL])
def test_the_vae_resumes_bit_for_bit_and_exports(bank, held_out, tmp_path, weights):
    moved = assert_resumes(lambda: vae_objective(bank, held_out, weights), tmp_path)
    frozen = [name for name in moved if name.startswith("reference.")]
    assert all(moved.pop(name) == 0 for name in frozen)
    assert sum(step > 0 for step in moved.values()) > 0.9 * len(moved)
    back = AlphaVAE.load(tmp_path / "parts/model/vae")
    assert back.config.latents_std and back.config.premultiplied and back.ratio == 4


def test_the_vae_learns(bank, held_out, tmp_path):
    sources = [ScenePictures(b, 4, [(16, 16)], 2) for b in (bank, held_out)]
    objective = VAEObjective(small_vae(), *sources, NANO)
    before = objective.validate(tmp_path, 0)
    fit(objective, settings(tmp_path, steps=60, lr=3e-3, save_every=1000, validate_every=60), quiet=True)
    losses = logged(tmp_path)
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])
    after = {name: logged(tmp_path, name)[0] for name in before}
    assert after["val_psnr"] > before["val_psnr"] + 0.5
    assert after["val_alpha_mad"] < before["val_alpha_mad"]


# ---- perceptual, reference, discriminator ----


def test_composites_are_on_true_black_and_true_white():
    x = torch.rand(2, 4, 6, 6, generator=seeded(1))
    both = on_black_and_white(rgba.premultiply(x))
    torch.testing.assert_close(both[:2], rgba.flatten(x, (0.0,) * 3))
    torch.testing.assert_close(both[2:], rgba.flatten(x, (1.0,) * 3))
    clear = x.clone()
    clear[:, 3] = 0
    assert (on_black_and_white(rgba.premultiply(clear))[:2] == 0).all(), "not mid grey"


def test_the_pyramid_is_a_distance_that_sees_texture():
    x = torch.rand(2, 3, 32, 32, generator=seeded(1)) * 0.2
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1)
    shifted = x + float((x - blurred).square().mean().sqrt())  # the same square error, no structure lost
    assert (pyramid(x, x) == 0).all()
    torch.testing.assert_close(pyramid(x, blurred), pyramid(blurred, x))
    assert (pyramid(x, blurred) > 3 * pyramid(x, shifted)).all()
    x.requires_grad_()
    pyramid(x, blurred).sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0


def test_reference_kl_is_the_gaussians():
    g = seeded(2)
    mean, mean_0, logvar, logvar_0 = (torch.randn(2, 3, 4, 4, generator=g) for _ in range(4))
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(mean, (logvar / 2).exp()), normal(mean_0, (logvar_0 / 2).exp()))
    torch.testing.assert_close(reference_kl(mean, logvar, mean_0, logvar_0), wanted.mean())


@torch.no_grad()
def test_the_reference_is_the_vae_at_the_start(bank, held_out):
    objective = vae_objective(bank, held_out, VAELoss(reference=1.0))
    assert float(objective(0)["reference"]) == pytest.approx(0, abs=1e-6)
    objective.vae.quant_conv.bias += 0.1
    assert float(objective(0)["reference"]) > 0.1


def test_the_pull_is_the_discriminators_gradient_and_leaves_it_alone():
    discriminator, made = (
        Discriminator(width=8, layers=2),
        torch.randn(2, 4, 16, 16, generator=seeded(1)).requires_grad_(),
    )
    (wanted,) = torch.autograd.grad(-discriminator(made).mean(), made)
    pull(discriminator, made).backward()
    torch.testing.assert_close(made.grad, wanted)
    assert all(p.grad is None for p in discriminator.parameters())


def test_the_adaptive_weight_evens_the_gradients():
    last = torch.ones(3, requires_grad=True)
    weight = adaptive_weight((last * 6).sum(), (last * 2).sum(), last)
    assert float(weight) == pytest.approx(3, rel=1e-4)
    assert float(adaptive_weight((last * 6).sum(), (last * 0).sum(), last)) == 1e4


def test_hinge():
    assert float(hinge(torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0]))) == pytest.approx(0.5 * (0.5 + 1.0))


def test_the_discriminator_begins_at_its_step_and_keeps_to_its_own_rate(bank, held_out, tmp_path):
    objective = vae_objective(bank, held_out, FULL)
    before = [p.detach().clone() for p in objective.discriminator.parameters()]
    fit(objective, settings(tmp_path, steps=2), quiet=True)
    assert all(torch.equal(a, b) for a, b in zip(before, objective.discriminator.parameters(), strict=True))
    fit(objective, settings(tmp_path, steps=3), quiet=True)
    assert sum(not torch.equal(a, b) for a, b in zip(before, objective.discriminator.parameters(), strict=True)) > 5
    assert len(logged(tmp_path, "discriminator")) == 1
    assert objective.groups()[1]["betas"] == (0.5, 0.9)


def test_the_discriminator_changes_what_the_autoencoder_learns_as_much_as_the_pictures_do(bank, held_out):
    """At the last layer its gradient is `adversarial` times as long as that of the rest."""
    with_discriminator = vae_objective(bank, held_out, FULL)
    gradients = {}
    for name, step in (("without", 0), ("with", 2)):
        with_discriminator.step = step
        with_discriminator.zero_grad()
        with_discriminator(0)["loss"].backward()
        gradients[name] = with_discriminator.last.grad.clone()
    added = (gradients["with"] - gradients["without"]).norm()
    assert 0.2 * gradients["without"].norm() < added < 0.8 * gradients["without"].norm()
