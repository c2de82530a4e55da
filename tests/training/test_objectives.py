"""What is minimised: formulas by hand and by Monte Carlo, and small objectives that learn and resume bit for bit."""

import copy
import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from layered import layered_row
from omnialpha import config
from omnialpha.data.stream.mixture import Mixture
from omnialpha.data.synthetic import bank as banks
from omnialpha.errors import InputError
from omnialpha.models.transformer.model import MultiImageTransformer
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import TASKS
from omnialpha.training import run as runs
from omnialpha.training.loop import fit
from omnialpha.training.sft import FlowLoss, SFTObjective, corpus, draw_times, flow_losses, initialize
from omnialpha.training.sources import DataSettings, load_banks
from training_runs import assert_resumes, logged, seeded, settings

# ---- flow matching --------------------------------------------------------------------------------------------------


def test_flow_loss_by_hand():
    velocity = torch.tensor([[[1.0, 3.0], [0.0, 0.0]], [[2.0, 2.0], [9.0, 9.0]]])
    wanted = torch.tensor([[[0.0, 1.0], [2.0, 0.0]], [[1.0, 2.0], [0.0, 0.0]]])
    weight = torch.tensor([2.0, 0.5])
    # tokens: (1 + 4) / 2 = 2.5 and 4 / 2 = 2; 1 / 2 = .5 and 81
    assert flow_losses(velocity, wanted, weight, None).mean() == pytest.approx((2 * 2.25 + 0.5 * 40.75) / 2)
    mask = torch.tensor([[True, True], [True, False]])
    assert flow_losses(velocity, wanted, weight, mask).mean() == pytest.approx((2 * 2.25 + 0.5 * 0.5) / 2)
    assert flow_losses(wanted, wanted, weight, mask).mean() == 0


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

    def condition(self, examples, looks):
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
    targets = [example.true_layers() for example in objective.mixture.batch(7)]
    x0 = objective.model.encode_targets(targets, None)
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


def test_hints_are_dropped_for_a_share_of_the_batches(bank):
    objective = recorded(bank)
    condition, seen = objective.model.condition, []
    objective.model.condition = lambda examples, looks: seen.append(looks) or condition(examples, looks)
    for share in (0.0, 0.25, 1.0):
        objective.hint_dropout = share
        seen.clear()
        for index in range(200):
            objective(index)
        assert seen.count(0) / 200 == pytest.approx(share, abs=0.08) and seen.count(0) + seen.count(1) == 200


def sft_objective(model, bank, held_out, **changes):
    made = copy.deepcopy(model).requires_grad_(True).train()
    weights = dict.fromkeys(("matting_auto", "text_to_image", "removal_rough", "decompose_auto"), 1.0)
    base = {"weights": weights, "sizes": [(16, 16), (16, 32)], "batch_size": 2, "seed": 5, "prompt_dropout": 0.2}
    return SFTObjective(made, Mixture(bank, **base | changes), held_out, FlowLoss(weight="t"), validation=2)


def test_sft_resumes_bit_for_bit_with_validation_in_between(tiny_model, bank, held_out, tmp_path):
    moved = assert_resumes(lambda: sft_objective(tiny_model, bank, held_out), tmp_path, validate_every=2)
    assert all(step == 0 for name, step in moved.items() if name.startswith("model.vae.")), "the VAE is frozen"
    for part in ("transformer", "text_encoder"):
        steps = [step for name, step in moved.items() if name.startswith(f"model.{part}.")]
        assert sum(step > 0 for step in steps) > 0.8 * len(steps), part
    figures = ("matting_auto_mad", "matting_auto_constant_mad", "removal_rough_psnr", "decompose_auto_alpha_mad")
    for name in ("val_loss", *(f"val_{figure}" for figure in figures)):
        values = logged(tmp_path / "straight", name)
        assert len(values) == 3 and all(map(math.isfinite, values))
    exported = OmniAlpha.from_folder(tmp_path / "straight/model")
    averages = torch.load(tmp_path / "straight/checkpoint.pt", weights_only=True)
    names = list(averages["weights"])
    index = names.index("model.transformer.proj_out.weight")
    assert torch.equal(exported.transformer.proj_out.weight, averages["average"][index].bfloat16().float())


class Always:
    """A stream of one batch."""

    seed = 0

    def __init__(self, batch):
        self.batch = batch

    def __getitem__(self, index):
        return self.batch


def test_sft_learns_one_batch_by_heart(tiny_model, bank, held_out, tmp_path):
    objective = sft_objective(tiny_model, bank, held_out, weights={"matting_rough": 1.0}, batch_size=4)
    initialize(objective.model.transformer)
    objective.mixture = objective.data = Always(objective.mixture[0])
    fit(objective, settings(tmp_path, steps=60, lr=1e-2, save_every=1000), quiet=True)
    losses = logged(tmp_path)
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    assert logged(tmp_path, "loss/matting_rough") == losses


def test_a_start_from_nothing_says_zero_and_passes_everything_through(tiny_model):
    transformer = copy.deepcopy(tiny_model.transformer)
    assert isinstance(transformer, MultiImageTransformer)
    initialize(transformer)
    model = OmniAlpha(tiny_model.vae, transformer, tiny_model.text_encoder, tiny_model.card)
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
    assert words == [e.instruction for i in range(4) for e in mixture.batch(i)] and len(words) == 8


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
trackers = []
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
trackers = []
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
[text_encoder]
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
    figures = runs.run(tmp_path / "vae.toml", [f"fit.output={tmp_path}/vae", "loss.prior=1e-5"], quiet=True)
    assert math.isfinite(figures["reconstruction"])
    common = [f"fit.output={tmp_path}/sft", f"vae={tmp_path}/vae/model/vae"]
    runs.run(tmp_path / "sft.toml", common, quiet=True)
    model = OmniAlpha.from_folder(tmp_path / "sft/model")
    assert model.card.name == "recipe" and model.vae.config.latents_std
    (stack,) = model.run([TASKS["decompose_auto"].example(image=torch.rand(3, 20, 30))], steps=1, guidance=1.0)
    assert stack.size == (20, 30) and len(stack) == 2

    runs.run(tmp_path / "sft.toml", [*common, "fit.steps=3", "data.seed=9", "data.foregrounds=5"], quiet=True)
    assert torch.load(tmp_path / "sft/checkpoint.pt", weights_only=True)["step"] == 3
    vocabularies = [
        m.text_encoder.tokenizer.get_vocab() for m in (model, OmniAlpha.from_folder(tmp_path / "sft/model"))
    ]
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
    train, test = load_banks(config.build(DataSettings, {"size": 16, "foregrounds": 10, "backgrounds": 3}))
    assert len(train.captions) == 10 and len(test.captions) == banks.TEST_FOREGROUNDS
    equal = (train.foregrounds[:, None] == test.foregrounds[None, :50]).flatten(2).all(-1)
    assert not equal.any()


# ---- records, packing, shifted times --------------------------------------------------------------------------------


def test_a_recipe_over_records(tmp_path):
    rows = [layered_row(tmp_path, number, layers=1 + number % 2) for number in range(4)]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = SFT_RECIPE[: SFT_RECIPE.index("[tasks]")] + DATA
    (tmp_path / "sft.toml").write_text(text + f'\n[[datasets]]\npath = "{tmp_path / "records.jsonl"}"\n')
    (tmp_path / "vae.toml").write_text(VAE_RECIPE + DATA)
    runs.run(tmp_path / "vae.toml", [f"fit.output={tmp_path}/vae"], quiet=True)
    common = [
        f"fit.output={tmp_path}/sft",
        f"vae={tmp_path}/vae/model/vae",
        "fit.steps=4",
        "fit.log_every=1",
        "packing=true",
    ]
    runs.run(tmp_path / "sft.toml", common, quiet=True)
    seen = {key for line in (tmp_path / "sft/log.jsonl").read_text().splitlines() for key in json.loads(line)}
    assert len({key for key in seen if key.startswith("loss/")}) > 1, "several tasks from the same records"
    assert OmniAlpha.from_folder(tmp_path / "sft/model").card.name == "recipe"


def test_neither_tasks_nor_datasets(tmp_path):
    text = SFT_RECIPE[: SFT_RECIPE.index("[tasks]")] + DATA
    (tmp_path / "sft.toml").write_text(text)
    with pytest.raises(InputError, match="lacks 'tasks'"):
        runs.run(tmp_path / "sft.toml", [f"fit.output={tmp_path}/sft"], quiet=True)


def test_packing_changes_no_loss(bank, tiny_model):
    """Captions of different lengths, so that there is padding to leave out."""
    model = copy.deepcopy(tiny_model).requires_grad_(True)
    objective = SFTObjective(model, Mixture(bank, {"matting_text": 1.0}, [(16, 16)], 4, 0), bank, FlowLoss())
    model.transformer.packs = False
    padded = objective(3)["loss"]
    model.transformer.packs = True
    torch.testing.assert_close(objective(3)["loss"], padded, rtol=1e-5, atol=1e-6)


def test_shifted_times():
    plain, shifted = (draw_times(FlowLoss(shift=s), 4000, seeded(0)) for s in (1.0, 3.0))
    inside = plain > 1e-3  # the ends are clamped
    torch.testing.assert_close(shifted[inside], (3 * plain / (1 + 2 * plain))[inside])
    assert float(shifted.median()) == pytest.approx(0.75, abs=0.02)
