"""What is minimised: formulas by hand and by Monte Carlo, and small objectives that learn and resume bit for bit."""

import copy
import json
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from omnialpha import config, rgba
from omnialpha.data import bank as banks
from omnialpha.data.mixture import Mixture
from omnialpha.errors import InputError
from omnialpha.models.transformer import MultiImageTransformer
from omnialpha.models.vae import AlphaVAE
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import TASKS
from omnialpha.training import run as runs
from omnialpha.training.loop import FitSettings, fit
from omnialpha.training.sft import FlowLoss, SFTObjective, corpus, draw_times, flow_loss, initialize
from omnialpha.training.vae import (
    BACKGROUND_MEAN,
    BACKGROUND_SQUARE,
    VAELoss,
    VAEObjective,
    calibrate,
    composited_error,
    fit_linear_codec,
)

MEAN, SQUARE = (torch.tensor(v).view(1, 3, 1, 1) for v in (BACKGROUND_MEAN, BACKGROUND_SQUARE))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def bank():
    return banks.procedural(20, 6, 32, seed=3)


@pytest.fixture(scope="module")
def held_out():
    return banks.procedural(8, 4, 32, seed=4)


def settings(folder, **changes):
    base = {"steps": 6, "lr": 1e-3, "device": "cpu", "log_every": 1, "tensorboard": False}
    return FitSettings(output=str(folder), **(base | changes))


def logged(folder, name="loss"):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def assert_resumes(make, folder, **changes):
    """Six steps at once, and three and three, end in the same bits; returns how far the weights went."""
    objectives = [make() for _ in range(3)]
    start = {n: p.detach().clone() for n, p in objectives[0].named_parameters()}
    common = {"warmup": 2, "ema": 0.9, "weight_decay": 0.01} | changes
    fit(objectives[0], settings(folder / "straight", **common), quiet=True)
    fit(objectives[1], settings(folder / "parts", **common | {"steps": 3}), quiet=True)
    fit(objectives[2], settings(folder / "parts", **common), quiet=True)
    straight, resumed = objectives[0].state_dict(), objectives[2].state_dict()
    assert all(torch.equal(straight[n], resumed[n]) for n in straight)
    states = [torch.load(folder / name / "checkpoint.pt", weights_only=True) for name in ("straight", "parts")]
    assert states[0]["step"] == states[1]["step"] == 6
    assert all(torch.equal(a, b) for a, b in zip(states[0]["average"], states[1]["average"], strict=True))
    assert logged(folder / "straight") == logged(folder / "parts")
    moved = {n: float((p.detach() - start[n]).abs().max()) for n, p in objectives[0].named_parameters()}
    assert all(p.isfinite().all() for p in objectives[0].parameters())
    return moved


# ---- the autoencoder's loss -----------------------------------------------------------------------------------------


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
    assert BACKGROUND_MEAN == (-0.0357, -0.0811, -0.1797) and BACKGROUND_SQUARE == (0.3163, 0.3060, 0.3634)


def small_vae(seed=1, **changes):
    torch.manual_seed(seed)
    base = {"base_dim": 8, "z_dim": 8, "dim_mult": [1, 2], "num_res_blocks": 1, "patch_size": 2}
    return AlphaVAE(**base | {"linear_skip": True, "premultiplied": True} | changes)


def vae_objective(bank, held_out, batch=4, **changes):
    vae = small_vae(**changes)
    objective = VAEObjective(vae, bank, held_out, VAELoss(), batch, [(16, 16), (16, 24)], seed=2)
    fit_linear_codec(vae, torch.cat([objective.pictures(bank, 100 + i * 2) for i in range(8)]))
    return objective


@pytest.mark.parametrize("premultiplied", [True, False])
def test_the_vae_loss_is_the_error_of_composites(bank, held_out, premultiplied):
    """`reconstruction` against composites of the two pictures on random backgrounds, in [-1, 1]."""
    objective = vae_objective(bank, held_out, premultiplied=premultiplied)
    g = seeded(3)
    x, made = torch.rand(2, 4, 8, 8, generator=g), torch.rand(2, 4, 8, 8, generator=g)
    out = rgba.premultiply(made) if premultiplied else made
    zeros = torch.zeros(2, 8, 4, 4)
    losses = objective._losses(x, out, zeros, zeros)
    b = (MEAN + (SQUARE - MEAN**2).sqrt() * torch.randn(4000, 1, 3, 1, 1, generator=g) + 1) / 2
    error = (2 * (rgba.flatten(x, b) - rgba.flatten(made, b))).square().flatten(1).mean(1)
    assert float(losses["reconstruction"]) == pytest.approx(float(error.mean()), abs=5 * float(error.std()) / 4000**0.5)
    assert losses["alpha_mad"] == pytest.approx(float((x[:, 3] - made[:, 3]).abs().mean()), rel=1e-5)
    assert losses["kl"] == pytest.approx(0.0)

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
    assert float(objective._losses(hidden, rgba.premultiply(x), zeros, zeros)["loss"]) == 0.0


def test_kl_is_the_gaussians(bank, held_out):
    objective = vae_objective(bank, held_out)
    x = torch.rand(1, 4, 8, 8, generator=seeded(3))
    mean, logvar = torch.full((1, 8, 4, 4), 0.7), torch.full((1, 8, 4, 4), -1.5)
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(0.7, math.exp(-0.75)), normal(0.0, 1.0))
    losses = objective._losses(x, rgba.premultiply(x), mean, logvar)
    assert losses["kl"] == pytest.approx(float(wanted), rel=1e-5)
    assert losses["loss"] == pytest.approx(1e-6 * float(wanted), rel=1e-4)


def test_the_linear_codec_is_the_best_one(bank, held_out):
    """Its error is the energy of the covariance's smallest eigenvalues, and no other basis of that size does better."""
    vae = small_vae(z_dim=8)
    x = torch.rand(6, 4, 16, 16, generator=seeded(5))
    x = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), 5, 1)  # smooth, so that patches have structure
    fit_linear_codec(vae, x)
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
    vae.set_linear_codec(basis.contiguous(), straight.mean((0, 2, 3)))
    assert error() > 1.5 * best


def test_calibration(bank, held_out):
    objective = vae_objective(bank, held_out)
    batches = [objective.pictures(bank, i) for i in (0, 2, 4)]

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


def test_the_vae_resumes_bit_for_bit_and_exports(bank, held_out, tmp_path):
    moved = assert_resumes(lambda: vae_objective(bank, held_out), tmp_path)
    assert sum(step > 0 for step in moved.values()) > 0.9 * len(moved)
    back = AlphaVAE.load(tmp_path / "parts/model/vae")
    assert back.config.latents_std and back.config.premultiplied and back.ratio == 4


def test_the_vae_learns(bank, held_out, tmp_path):
    objective = VAEObjective(small_vae(), bank, held_out, VAELoss(), 4, [(16, 16)], seed=2)
    before = objective.validate(tmp_path, 0)
    fit(objective, settings(tmp_path, steps=60, lr=3e-3, save_every=1000, validate_every=60), quiet=True)
    losses = logged(tmp_path)
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])
    after = {name: logged(tmp_path, name)[0] for name in before}
    assert after["val_composite_psnr"] > before["val_composite_psnr"] + 0.5
    assert after["val_alpha_mad"] < before["val_alpha_mad"]


# ---- flow matching --------------------------------------------------------------------------------------------------


def test_flow_loss_by_hand():
    velocity = torch.tensor([[[1.0, 3.0], [0.0, 0.0]], [[2.0, 2.0], [9.0, 9.0]]])
    wanted = torch.tensor([[[0.0, 1.0], [2.0, 0.0]], [[1.0, 2.0], [0.0, 0.0]]])
    weight = torch.tensor([2.0, 0.5])
    # tokens: (1 + 4) / 2 = 2.5 and 4 / 2 = 2; 1 / 2 = .5 and 81
    assert flow_loss(velocity, wanted, weight, None) == pytest.approx((2 * 2.25 + 0.5 * 40.75) / 2)
    mask = torch.tensor([[True, True], [True, False]])
    assert flow_loss(velocity, wanted, weight, mask) == pytest.approx((2 * 2.25 + 0.5 * 0.5) / 2)
    assert flow_loss(wanted, wanted, weight, mask) == 0


def test_times():
    uniform = draw_times(FlowLoss(), 4000, seeded(0))
    assert uniform.min() > 0 and uniform.max() <= 1
    for q in (0.1, 0.5, 0.9):
        assert float(uniform.quantile(q)) == pytest.approx(q, abs=0.03)
    normal = draw_times(FlowLoss(time="logit_normal", mean=0.5, std=1.2), 4000, seeded(0))
    for q in (0.16, 0.5, 0.84):
        z = torch.distributions.Normal(0.5, 1.2).icdf(torch.tensor(q))
        assert float(normal.quantile(q)) == pytest.approx(float(z.sigmoid()), abs=0.03)


class Recorder(nn.Module):
    """In the place of a model: keeps what the objective asks of it, answers `velocity` = 3 everywhere."""

    def __init__(self, masked=False):
        super().__init__()
        self.vae, self.answer, self.masked, self.seen = nn.Linear(1, 1), nn.Parameter(torch.tensor(3.0)), masked, []

    def condition(self, examples):
        mask = torch.tensor([[True, True, False]]).expand(len(examples), -1) if self.masked else None
        return SimpleNamespace(examples=examples, positions=SimpleNamespace(target_mask=mask))

    def encode_targets(self, targets, cond):
        return torch.stack([t.mean() * torch.ones(3, 2) for t in targets])

    def noise(self, cond, seeds):
        assert len(set(seeds)) == len(seeds)
        return torch.stack([torch.randn(3, 2, generator=seeded(s)) for s in seeds])

    def velocity(self, x_t, t, cond):
        self.seen.append((cond.examples[0].task, x_t, t))
        return self.answer.expand_as(x_t)


def recorded(bank, masked=False, weight="one", batch_size=4, seed=0, time="uniform"):
    mixture = Mixture(bank, {"matting_auto": 1.0, "removal_auto": 1.0}, [(16, 16)], batch_size, seed)
    return SFTObjective(Recorder(masked), mixture, bank, FlowLoss(time=time, weight=weight))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weight", ["one", "t"])
def test_the_sft_loss_by_hand(bank, masked, weight):
    objective = recorded(bank, masked, weight)
    losses = objective(7)
    task, x_t, t = objective.model.seen[0]
    targets = objective.mixture.batch(7).targets
    x0 = objective.model.encode_targets(list(targets), None)
    noise = (x_t - (1 - t.view(-1, 1, 1)) * x0) / t.view(-1, 1, 1)
    error = (3 - (noise - x0)).square().mean(-1)[:, : 2 if masked else 3].mean(1)
    factor = t**2 / t.clamp(min=0.05) if weight == "t" else torch.ones(4)
    assert losses["loss"].item() == pytest.approx((error * factor).mean().item(), rel=1e-3)
    assert losses[f"loss/{task}"] == losses["loss"] and not losses[f"loss/{task}"].requires_grad
    assert noise.std() == pytest.approx(1, abs=0.5)


def test_the_objective_is_a_function_of_its_index(bank):
    first, again, other = (recorded(bank)(i)["loss"] for i in (3, 3, 4))
    assert first == again != other
    assert recorded(bank, seed=1)(3)["loss"] != first


def test_times_do_not_depend_on_the_task(bank):
    """Both come from generators seeded by the index; from equal numbers the first t would tell the task."""
    objective = recorded(bank, batch_size=2, time="logit_normal")
    for index in range(300):
        objective(index)
    times = {}
    for task, _, t in objective.model.seen:
        times.setdefault(task, []).append(t)
    means = [torch.stack(v).mean(0) for v in times.values()]
    assert len(means) == 2 and (means[0] - means[1]).abs().max() < 0.09  # four standard errors


def sft_objective(model, bank, held_out, **changes):
    made = copy.deepcopy(model).requires_grad_(True).train()
    weights = dict.fromkeys(("matting_auto", "text_to_image", "removal_rough", "decompose_auto"), 1.0)
    base = {"weights": weights, "sizes": [(16, 16), (16, 32)], "batch_size": 2, "seed": 5, "prompt_dropout": 0.2}
    return SFTObjective(made, Mixture(bank, **base | changes), held_out, FlowLoss(weight="t"), validation=2)


def test_sft_resumes_bit_for_bit_with_validation_in_between(tiny_model, bank, held_out, tmp_path):
    moved = assert_resumes(lambda: sft_objective(tiny_model, bank, held_out), tmp_path, validate_every=2)
    assert all(step == 0 for name, step in moved.items() if name.startswith("model.vae.")), "the VAE is frozen"
    for part in ("transformer", "instructor"):
        steps = [step for name, step in moved.items() if name.startswith(f"model.{part}.")]
        assert sum(step > 0 for step in steps) > 0.8 * len(steps), part
    for name in ("val_matting_auto_mad", "val_removal_rough_psnr", "val_matting_text_constant_mad"):
        values = logged(tmp_path / "straight", name)
        assert len(values) == 3 and all(map(math.isfinite, values))
    exported = OmniAlpha.from_folder(tmp_path / "straight/model")
    averages = torch.load(tmp_path / "straight/checkpoint.pt", weights_only=True)
    names = list(averages["weights"])
    index = names.index("model.transformer.proj_out.weight")
    assert torch.equal(exported.transformer.proj_out.weight, averages["average"][index].bfloat16().float())


def test_sft_learns_one_batch_by_heart(tiny_model, bank, held_out, tmp_path):
    objective = sft_objective(tiny_model, bank, held_out, weights={"matting_rough": 1.0}, batch_size=4)
    initialize(objective.model.transformer)
    batch = objective.mixture.batch(0)
    objective.mixture = SimpleNamespace(batch=lambda index: batch, seed=0)
    fit(objective, settings(tmp_path, steps=60, lr=1e-2, save_every=1000), quiet=True)
    losses = logged(tmp_path)
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    assert logged(tmp_path, "loss/matting_rough") == losses


def test_a_start_from_nothing_says_zero_and_passes_everything_through(tiny_model):
    transformer = copy.deepcopy(tiny_model.transformer)
    assert isinstance(transformer, MultiImageTransformer)
    initialize(transformer)
    model = OmniAlpha(tiny_model.vae, transformer, tiny_model.instructor, tiny_model.card)
    seen = []
    hook = transformer.transformer_blocks[0].register_forward_hook(lambda m, args, out: seen.append((args[0], out[0])))
    with torch.no_grad():
        cond = model.condition([TASKS["matting_auto"].example(image=torch.rand(3, 16, 16))])
        x = model.noise(cond)
        out = transformer(x, cond.inputs, cond.text, torch.ones(1), cond.positions)
    hook.remove()
    assert out.abs().max() == 0 and x.abs().max() > 0
    assert torch.equal(*seen[0])
    weight = transformer.img_in.weight
    assert weight.abs().max() <= math.sqrt(6 / sum(weight.shape)) + 1e-6 and weight.std() > 0


def test_the_corpus_holds_what_training_will_say(bank):
    mixture = Mixture(bank, {"matting_text": 1.0}, [(16, 16)], 2, 5)
    words = corpus(mixture, 4)
    assert words == [e.instruction for i in range(4) for e in mixture.batch(i).examples] and len(words) == 8


# ---- from recipe to model -------------------------------------------------------------------------------------------

DATA = """
[data]
size = 32
foregrounds = 12
backgrounds = 4
"""
VAE_RECIPE = """
kind = "vae"
batch = 4
sizes = [[16, 16]]
[fit]
steps = 2
lr = 1e-3
output = "unset"
device = "cpu"
tensorboard = false
[model]
base_dim = 4
z_dim = 4
dim_mult = [1, 2]
num_res_blocks = 1
patch_size = 4
linear_skip = true
premultiplied = true
"""
SFT_RECIPE = """
kind = "sft"
batch = 2
sizes = [[16, 16]]
validation = 2
[fit]
steps = 2
lr = 1e-3
output = "unset"
device = "cpu"
tensorboard = false
[loss]
time = "logit_normal"
weight = "t"
[transformer]
in_channels = 16
out_channels = 4
num_layers = 1
attention_head_dim = 16
num_attention_heads = 2
joint_attention_dim = 32
axes_dims_rope = [4, 6, 6]
[instructor]
vocab_size = 400
text_dim = 32
text_layers = 1
heads = 2
vision_dim = 16
vision_depth = 1
[card]
name = "recipe"
license = "Apache-2.0"
prediction = "x0"
picture_pixels = 1024
[card.grid]
multiple = 16
picture_pixels = 1024
sample_pixels = 8192
[card.template]
prefix = "<|im_start|>"
picture = "Picture {i}: <|vision_start|><|image_pad|><|vision_end|>"
suffix = "<|im_end|>"
[tasks]
matting_auto = 1.0
text_to_image = 1.0
"""


def test_recipes_from_nothing_to_a_model_that_runs(tmp_path):
    (tmp_path / "vae.toml").write_text(VAE_RECIPE + DATA)
    (tmp_path / "sft.toml").write_text(SFT_RECIPE + DATA)
    figures = runs.run(tmp_path / "vae.toml", [f"fit.output={tmp_path}/vae", "loss.kl=1e-5"], quiet=True)
    assert math.isfinite(figures["reconstruction"])
    common = [f"fit.output={tmp_path}/sft", f"vae={tmp_path}/vae/model/vae"]
    runs.run(tmp_path / "sft.toml", common, quiet=True)
    model = OmniAlpha.from_folder(tmp_path / "sft/model")
    assert model.card.name == "recipe" and model.vae.config.latents_std
    (stack,) = model.run([TASKS["decompose_auto"].example(image=torch.rand(3, 20, 30))], steps=1, guidance=1.0)
    assert stack.size == (20, 30) and len(stack) == 2

    runs.run(tmp_path / "sft.toml", [*common, "fit.steps=3", "data.seed=9", "data.foregrounds=5"], quiet=True)
    assert torch.load(tmp_path / "sft/checkpoint.pt", weights_only=True)["step"] == 3
    vocabularies = [m.instructor.tokenizer.get_vocab() for m in (model, OmniAlpha.from_folder(tmp_path / "sft/model"))]
    assert vocabularies[0] == vocabularies[1], "other captions, but the weights know the first tokens"
    model = OmniAlpha.from_folder(tmp_path / "sft/model")

    going_on = [f"fit.output={tmp_path}/more", f"start={tmp_path}/sft/model", "card.name=more", "fit.lr=0"]
    runs.run(tmp_path / "sft.toml", going_on, quiet=True)
    more = OmniAlpha.from_folder(tmp_path / "more/model")
    assert more.card.name == "more"
    assert all(torch.equal(p, more.get_parameter(n)) for n, p in model.named_parameters()), "lr 0 changes nothing"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("kind=vea", "kind='vea': use one of vae, sft"),
        ("fit.stepps=3", "'fit.stepps'.*did you mean 'fit.steps'"),
        ("tasks.matting_atuo=1.0", "unknown task 'matting_atuo': did you mean 'matting_auto'"),
        ("card.predictoin=x0", "'card.predictoin'.*'card.prediction'"),
        ("loss.weight=t2", "'loss.weight' is 't2': use one of 'one', 't'"),
    ],
)
def test_mistakes_in_recipes(tmp_path, override, words):
    (tmp_path / "sft.toml").write_text(SFT_RECIPE + DATA)
    with pytest.raises(InputError, match=words):
        runs.run(tmp_path / "sft.toml", [override], quiet=True)


def test_banks_of_a_recipe_share_nothing():
    train, test = runs.load_banks(config.build(runs.DataSettings, {"size": 16, "foregrounds": 10, "backgrounds": 3}))
    assert len(train.captions) == 10 and len(test.captions) == banks.TEST_FOREGROUNDS
    equal = (train.foregrounds[:, None] == test.foregrounds[None, :50]).flatten(2).all(-1)
    assert not equal.any()
