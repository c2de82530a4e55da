"""The cache of latents and embeddings: equal to encoding on the fly, resumed to the byte, checked when read."""

import copy
import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from layered import manifest
from omnialpha import config
from omnialpha.cli.main import app
from omnialpha.data.stream.mixture import Mixture
from omnialpha.data.synthetic import bank as banks
from omnialpha.errors import InputError
from omnialpha.training import run as runs
from omnialpha.training.latent_cache import build_cache, cache
from omnialpha.training.latent_cache.cache import CachedBatches
from omnialpha.training.sft import FlowLoss, LoraSettings, SFTObjective

RECIPE = {"sizes": [[16, 16], [16, 32]], "batch": 3, "seed": 7}
TASKS = dict.fromkeys(("matting_text", "text_to_image", "decompose_auto"), 1.0)
BATCHES, A_SHARD = 7, 3


@pytest.fixture(scope="module")
def bank():
    return banks.procedural(20, 6, 32, seed=3)


def mixture(bank, dropout=0.0):
    return Mixture(bank, TASKS, [tuple(size) for size in RECIPE["sizes"]], 3, 7, dropout)


def filled(folder, model, bank, batches=BATCHES, **changes):
    settings = {"a_shard": A_SHARD, "dtype": "float32"} | changes
    return build_cache.build_cache(folder, model, mixture(bank), RECIPE, batches, **settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_model, bank):
    """A cache of 7 batches in 3 shards, float32."""
    folder = tmp_path_factory.mktemp("cache") / "whole"
    made = filled(folder, tiny_model, bank)
    assert (made.made, made.kept, made.redone, made.batches) == (3, 0, 0, 7)
    return folder


def opened(folder, model, seed=7, dropout=0.0, **changes):
    return CachedBatches.open(folder, model, RECIPE | changes, seed, dropout)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def trained(model, source, bank):
    torch.manual_seed(0)
    made = SFTObjective(copy.deepcopy(model), source, bank, FlowLoss(), 2, lora=LoraSettings(2))
    for name, value in made.named_parameters():
        if "lora_B" in name:  # zero at first, which would leave A without gradients
            torch.nn.init.normal_(value, std=0.3)
    return made


def gradients(objective, index):
    objective.zero_grad()
    losses = objective(index)
    losses["loss"].backward()
    return losses, {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}


def distance(slopes, wanted):
    """Of all gradients together, relative."""
    own, other = (torch.cat([slope.flatten() for slope in each.values()]) for each in (slopes, wanted))
    return float((own - other).norm() / other.norm())


class OnTheFly:
    """The batches of a mixture, in a cache's order and without the same instructions."""

    def __init__(self, cached, drawn):
        self.cached, self.drawn, self.seed = cached, drawn, cached.seed

    def __getitem__(self, index):
        made, weight = self.drawn[self.cached.place(index)]
        dropped = self.cached.dropped(index, len(made))
        return [replace(e, instruction="") if d else e for e, d in zip(made, dropped, strict=True)], weight


def on_the_fly(cached, bank):
    return OnTheFly(cached, mixture(bank))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_losses_and_gradients_are_those_of_encoding_on_the_fly(whole, tiny_model, bank, dropout):
    cached = opened(whole, tiny_model, dropout=dropout)
    plain, read = (trained(tiny_model, source, bank) for source in (on_the_fly(cached, bank), cached))
    tasks = set()
    for index in range(BATCHES):
        (wanted, slopes), (got, made) = gradients(plain, index), gradients(read, index)
        assert wanted.keys() == got.keys() and slopes.keys() == made.keys() and slopes
        tasks |= wanted.keys()
        assert got["loss"].item() == pytest.approx(wanted["loss"].item(), rel=1e-6)
        assert distance(made, slopes) <= 1e-6
    assert len(tasks) == 4, "the loss and three tasks"


def test_noise_and_times_are_those_of_encoding_on_the_fly(whole, tiny_model, bank, monkeypatch):
    cached = opened(whole, tiny_model)
    seen = []
    for source in (on_the_fly(cached, bank), cached):
        objective = trained(tiny_model, source, bank)
        real = objective.model.noise
        monkeypatch.setattr(
            objective.model, "noise", lambda c, s, real=real: seen.append((s, real(c, s))) or seen[-1][1]
        )
        objective(4)
    (seeds, noise), (again, same) = seen
    assert seeds == again and torch.equal(noise, same)


def test_bfloat16_costs_little(tmp_path, whole, tiny_model, bank):
    filled(tmp_path / "half", tiny_model, bank, dtype="bfloat16")
    full, half = (trained(tiny_model, opened(f, tiny_model), bank) for f in (whole, tmp_path / "half"))
    for index in range(BATCHES):
        (wanted, slopes), (got, made) = gradients(full, index), gradients(half, index)
        assert got["loss"].item() == pytest.approx(wanted["loss"].item(), rel=1e-2)
        assert 0 < distance(made, slopes) <= 1e-2
    assert sum(map(len, contents(tmp_path / "half").values())) < 0.8 * sum(map(len, contents(whole).values()))


def test_an_interrupted_cache_goes_on_to_the_same_bytes(tmp_path, whole, tiny_model, bank):
    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path / "part", tiny_model, bank, watch=stop)
    assert set(contents(tmp_path / "part")) == {"cache.json", "00000.safetensors"}
    with pytest.raises(InputError, match="has 3 batches, of 7 that were asked for: .*make do with --batches 3"):
        opened(tmp_path / "part", tiny_model)
    made = filled(tmp_path / "part", tiny_model, bank)
    assert (made.made, made.kept) == (2, 1) and contents(tmp_path / "part") == contents(whole)
    fewer = filled(tmp_path / "more", tiny_model, bank, batches=4)
    assert fewer.made == 2 and filled(tmp_path / "more", tiny_model, bank).made == 2, "the short shard, and the third"
    assert contents(tmp_path / "more") == contents(whole)


@pytest.mark.parametrize("place", [0.3, 0.9, None])
def test_a_damaged_shard_is_refused_and_made_anew(tmp_path, whole, tiny_model, bank, place):
    folder = tmp_path / "copy"
    folder.mkdir()
    for name, data in contents(whole).items():
        (folder / name).write_bytes(data)
    shard = folder / "00001.safetensors"
    data = bytearray(shard.read_bytes())
    if place is None:
        del data[-5:]
    else:
        data[int(place * len(data))] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match="00001.safetensors is damaged: run `omnialpha data cache` again"):
        cached = opened(folder, tiny_model)
        for index in range(BATCHES):
            cached.encoded(index, tiny_model)
    made = filled(folder, tiny_model, bank)
    assert (made.kept, made.redone) == (2, 1) and contents(folder) == contents(whole)


def test_other_data_is_found_by_its_key(tmp_path, whole, tiny_model, bank):
    folder = tmp_path / "copy"
    folder.mkdir()
    for name, data in contents(whole).items():
        (folder / name).write_bytes(data)
    assert filled(folder, tiny_model, bank, verify=True).kept == 3
    other = banks.procedural(20, 6, 32, seed=4)
    assert filled(folder, tiny_model, other).kept == 3
    assert filled(folder, tiny_model, other, verify=True).redone == 3


def test_a_key_is_of_every_pixel_and_word(bank):
    def changed(change):
        batch = mixture(bank).batch(1)
        change(batch)
        return cache.key("model", batch)

    def word(batch):
        batch[2] = replace(batch[2], instruction=batch[2].instruction + ".")

    keys = [
        changed(lambda batch: None),
        changed(lambda batch: batch[2].truths[0][3, 5, 5].add_(1e-3)),
        changed(lambda batch: batch[2].inputs[0][3, 5, 5].add_(1e-3)),
        changed(word),
    ]
    same = mixture(bank).batch(1)
    assert len(set(keys)) == 4 and keys[0] == cache.key("model", same) != cache.key("another", same)


def test_another_model_is_refused(tmp_path, whole, tiny_model, bank):
    for part in ("vae", "text_encoder"):
        other = copy.deepcopy(tiny_model)
        next(getattr(other, part).parameters()).data.flatten()[0] += 1
        with pytest.raises(InputError, match="made with other weights or settings"):
            opened(whole, other)
        with pytest.raises(InputError, match="begun with another model: give the name of a new folder"):
            filled(whole, other, bank)
    other = copy.deepcopy(tiny_model)
    other.transformer.proj_out.weight.data += 1
    assert len(opened(whole, other)) == BATCHES, "the transformer encodes nothing"
    for change in ({"instructions": {"text_to_image": "{prompt}"}}, {"layer_order": "foregrounds_first"}):
        other.card = replace(tiny_model.card, **change)
        with pytest.raises(InputError, match="made with other weights or settings"):
            opened(whole, other)


def test_another_recipe_is_refused(tmp_path, whole, tiny_model, bank):
    with pytest.raises(InputError, match=r"made with batch=3, the recipe has 4: give the recipe that value"):
        opened(whole, tiny_model, batch=4)
    assert len(opened(whole, tiny_model, seed=9)) == BATCHES, "training may have any seed"
    with pytest.raises(InputError, match="made with seed=7"):
        build_cache.build_cache(whole, tiny_model, mixture(bank), RECIPE | {"seed": 6}, 7, A_SHARD, "float32")
    with pytest.raises(InputError, match="begun with --dtype float32"):
        filled(whole, tiny_model, bank, dtype="bfloat16")
    with pytest.raises(InputError, match="holds no cache: make one with"):
        opened(tmp_path, tiny_model)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no cache"):
        filled(tmp_path, tiny_model, bank)
    with pytest.raises(InputError, match="a cache of 0 batches"):
        filled(tmp_path / "none", tiny_model, bank, batches=0)


def test_the_order(whole, tiny_model):
    cached, again, other = opened(whole, tiny_model), opened(whole, tiny_model), opened(whole, tiny_model, seed=6)
    epochs = [[cached.place(7 * epoch + k) for k in range(7)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and len(set(map(tuple, epochs))) == 4
    assert epochs[2] == [again.place(14 + k) for k in range(7)]
    assert epochs[0] != [other.place(k) for k in range(7)]


def test_two_readers_see_what_one_sees(whole, tiny_model):
    alone, pair = opened(whole, tiny_model, dropout=0.3), [opened(whole, tiny_model, dropout=0.3) for _ in range(2)]
    for index in (*range(0, 16, 2), *range(1, 16, 2)):
        (cond, x0), (other, same) = alone.encoded(index, tiny_model), pair[index % 2].encoded(index, tiny_model)
        assert torch.equal(x0, same) and torch.equal(cond.text, other.text) and torch.equal(cond.inputs, other.inputs)


def test_instructions_are_dropped_as_often_as_asked(whole, tiny_model):
    cached = opened(whole, tiny_model, dropout=0.15)
    draws = [cached.dropped(index, 3) for index in range(4000)]
    assert sum(map(sum, draws)) / 12000 == pytest.approx(0.15, abs=0.013)  # four standard errors
    assert draws[:50] == [opened(whole, tiny_model, dropout=0.15).dropped(index, 3) for index in range(50)]
    assert draws[:50] != [opened(whole, tiny_model, seed=6, dropout=0.15).dropped(index, 3) for index in range(50)]
    words = [e.instruction for e in cached.encoded(11, tiny_model)[0].examples]
    assert [not w for w in words] == draws[11]


# ---- by recipe ------------------------------------------------------------------------------------------------------

LORA = """
kind = "sft"
start = "{model}"
batch = 2
sizes = [[16, 16]]
prompt_dropout = 0.3
validation = 2
[fit]
steps = 2
lr = 1e-2
output = "unset"
device = "cpu"
log_every = 1
trackers = []
[loss]
[lora]
rank = 2
[data]
size = 32
foregrounds = 8
backgrounds = 3
[tasks]
matting_auto = 1.0
text_to_image = 1.0
"""


@pytest.fixture
def recipe(tmp_path, tiny_model_folder):
    path = tmp_path / "lora.toml"
    path.write_text(LORA.format(model=tiny_model_folder))
    return path


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="omnialpha", catch_exceptions=False)


def test_a_lora_is_trained_from_a_cache(tmp_path, recipe):
    made = call("data", "cache", recipe, tmp_path / "out", "--batches", 5, "--shard", 2, "--json", "--device", "cpu")
    told = json.loads(made.stdout)
    assert made.exit_code == 0 and (told["made"], told["batches"]) == (3, 5) and made.stderr == ""
    assert "3 kept" in call("data", "cache", recipe, tmp_path / "out", "--batches", 5, "--shard", 2).stdout
    common = [f"cache={tmp_path / 'out'}", "fit.save_every=2", "fit.validate_every=2"]
    runs.run(recipe, [*common, f"fit.output={tmp_path}/parts"], quiet=True)
    for name in ("parts", "straight"):
        figures = runs.run(recipe, [*common, "fit.steps=4", f"fit.output={tmp_path}/{name}"], quiet=True)
        assert figures["loss"] > 0
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("parts", "straight")]
    assert states[0]["step"] == 4 and states[0]["weights"]
    assert all(torch.equal(states[0]["weights"][n], w) for n, w in states[1]["weights"].items()), "resumed bit for bit"
    assert (tmp_path / "straight/model/pytorch_lora_weights.safetensors").is_file()
    log = [json.loads(line) for line in (tmp_path / "straight/log.jsonl").read_text().splitlines()]
    assert any("val_loss" in row for row in log)


def test_a_run_keeps_the_batches_that_it_began_with(tmp_path, recipe):
    """Half a run, a larger cache, and the other half: as if the cache had stayed as it was."""
    cached = ("data", "cache", recipe, tmp_path / "out", "--shard", 2, "--device", "cpu", "--batches")
    common = [f"cache={tmp_path / 'out'}", "fit.save_every=2"]
    assert call(*cached, 5).exit_code == 0
    runs.run(recipe, [*common, f"fit.output={tmp_path}/parts"], quiet=True)
    runs.run(recipe, [*common, "fit.steps=6", f"fit.output={tmp_path}/straight"], quiet=True)
    assert call(*cached, 9).exit_code == 0
    runs.run(recipe, [*common, "fit.steps=6", f"fit.output={tmp_path}/parts"], quiet=True)
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("parts", "straight")]
    assert all(torch.equal(states[0]["weights"][n], w) for n, w in states[1]["weights"].items())
    assert json.loads((tmp_path / "parts/cache.json").read_text()) == {"batches": 5}
    runs.run(recipe, [*common, f"fit.output={tmp_path}/new"], quiet=True)
    assert json.loads((tmp_path / "new/cache.json").read_text()) == {"batches": 9}, "a new run takes them all"
    (tmp_path / "out/00002.safetensors").unlink()
    with pytest.raises(InputError, match="has 4 batches, this run began with 5: make them by `omnialpha data cache`"):
        runs.run(recipe, [*common, "fit.steps=8", f"fit.output={tmp_path}/parts"], quiet=True)


def test_encoders_are_not_read_to_be_compared(tmp_path, recipe, tiny_model_folder, monkeypatch):
    """Only validation needs them; files that look newer are read, and found to be the same."""
    from omnialpha.models.text_encoder.encoder import TextEncoder

    model = tmp_path / "model"
    shutil.copytree(tiny_model_folder, model)
    common = [f"start={model}", f"cache={tmp_path / 'out'}", f"fit.output={tmp_path}/lora"]
    assert call("data", "cache", recipe, tmp_path / "out", common[0], "--batches", 2).exit_code == 0
    reads, real = [], TextEncoder.from_pretrained.__func__
    monkeypatch.setattr(TextEncoder, "from_pretrained", classmethod(lambda *a, **k: reads.append(a) or real(*a, **k)))
    runs.run(recipe, common, quiet=True)
    assert not reads
    runs.run(recipe, [*common, "fit.validate_every=3", "fit.steps=3"], quiet=True)
    assert len(reads) == 1
    weights = model / "text_encoder/model.safetensors"
    os.utime(weights, ns=(1, 1))
    runs.run(recipe, [*common, "fit.steps=4"], quiet=True)
    assert len(reads) == 2
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InputError, match="made with other weights or settings"):
        runs.run(recipe, [*common, "fit.steps=5"], quiet=True)


def test_encoders_stay_out_of_the_trained_module(whole, tiny_model, bank):
    objective = trained(tiny_model, opened(whole, tiny_model), bank)
    assert not any("vae" in n or "text_encoder" in n for n, _ in objective.named_parameters())
    objective.to("meta")  # as a device that they would take memory of
    assert {p.device.type for m in (objective.model.vae, objective.model.text_encoder) for p in m.parameters()} == {
        "cpu"
    }


def test_records_are_not_needed_once_they_are_cached(tmp_path, recipe):
    rows = manifest(tmp_path / "rows", 4)
    recipe.write_text(recipe.read_text() + f'\n[[datasets]]\npath = "{rows}"\n')
    assert call("data", "cache", recipe, tmp_path / "out", "--batches", 2).exit_code == 0
    rows.unlink()
    runs.run(recipe, [f"cache={tmp_path / 'out'}", f"fit.output={tmp_path}/lora"], quiet=True)


def test_batches_by_tokens(tmp_path, recipe, tiny_model, bank):
    """Of unlike samples, with their weights: the losses of encoding them on the fly."""
    by_tokens = ["batch=0", "tokens=200", "text_tokens=40", "sizes=[[16, 16], [16, 32]]", "tasks.decompose_auto=1.0"]
    options = ("--batches", 4, "--dtype", "float32")
    assert call("data", "cache", recipe, tmp_path / "out", *by_tokens, *options).exit_code == 0
    common = [*by_tokens, f"cache={tmp_path / 'out'}", "fit.validate_every=2", f"fit.output={tmp_path}/lora"]
    changes = [*common, "prompt_dropout=0.0"]
    made = config.build(runs.SFTRecipe, config.load(recipe, changes))
    read = made.objective()
    drawn = made.mixture(tiny_model.card, tiny_model.vae.ratio * tiny_model.patch)
    kinds = [{e.task for e in drawn.batch(index)} for index in range(4)]
    assert read.model.transformer.packs and max(map(len, kinds)) > 1
    for index in range(4):
        got, wanted = read.losses(read.mixture, index), read.losses(OnTheFly(read.mixture, drawn), index)
        assert got.keys() == wanted.keys()
        for name, value in wanted.items():
            assert got[name].item() == pytest.approx(value.item(), rel=1e-5)
    assert runs.run(recipe, common, quiet=True)["loss"] > 0
    with pytest.raises(InputError, match="made with batch=null, the recipe has 2"):
        runs.run(recipe, [*common, "batch=2", "tokens=0"], quiet=True)
    with pytest.raises(InputError, match="made with tokens=200, the recipe has 300"):
        runs.run(recipe, [*common, "tokens=300"], quiet=True)


def test_tokens_or_a_batch(tmp_path, recipe, flux_folder):
    with pytest.raises(InputError, match="has both batch and tokens: give one"):
        runs.run(recipe, ["tokens=200", f"fit.output={tmp_path}/lora"], quiet=True)
    with pytest.raises(InputError, match="has neither batch nor tokens"):
        runs.run(recipe, ["batch=0", f"fit.output={tmp_path}/lora"], quiet=True)
    made = call("data", "cache", recipe, tmp_path / "out", "batch=0", "tokens=60")
    assert made.exit_code == 2 and "more than tokens=60 of a batch" in made.stderr
    flux = [f"start={flux_folder}", "tasks={text_to_image=1.0}", "lora.targets=flux", "batch=0", "tokens=9999"]
    with pytest.raises(InputError, match="cannot be packed for a model of the family flux: give a batch"):
        runs.run(recipe, [*flux, f"fit.output={tmp_path}/lora"], quiet=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("curriculum=[{step=0, tasks={matting_auto=1.0}}]", "come in any order, not by a \\[\\[curriculum\\]\\]"),
        ("sizes=[[32, 32]]", "made with sizes="),
        ("tasks.matting_auto=2.0", "made with tasks="),
    ],
)
def test_recipes_that_a_cache_is_not_for(tmp_path, recipe, change, words):
    call("data", "cache", recipe, tmp_path / "out", "--batches", 1)
    with pytest.raises(InputError, match=words):
        runs.run(recipe, [change, f"cache={tmp_path / 'out'}", f"fit.output={tmp_path}/lora"], quiet=True)


def test_a_trained_instruction_encoder_has_no_cache(tmp_path, recipe):
    recipe.write_text(recipe.read_text().replace("[lora]\nrank = 2\n", '[card]\nname = "x"\n'))
    made = call("data", "cache", recipe, tmp_path / "out")
    assert made.exit_code == 2 and "frozen instruction encoder" in made.stderr and not (tmp_path / "out").exists()


def test_flux_keeps_its_pooled_vectors(tmp_path, flux_folder, bank):
    from omnialpha.models.checkpoints.folders import resolve
    from omnialpha.pipeline import OmniAlpha

    model = OmniAlpha.from_parts(resolve(flux_folder))
    drawn = Mixture(bank, {"text_to_image": 1.0}, [(32, 32)], 2, 5)
    build_cache.build_cache(tmp_path / "out", model, drawn, RECIPE, 1, 1, "float32")
    for dropout in (0.0, 1.0):
        cond, x0 = opened(tmp_path / "out", model, dropout=dropout).encoded(0, model)
        batch = drawn.batch(0)
        words = [replace(e, instruction="") for e in batch] if dropout else batch
        wanted = model.condition(words)
        torch.testing.assert_close(cond.pooled, wanted.pooled)
        torch.testing.assert_close(cond.text, wanted.text)
        torch.testing.assert_close(x0, model.encode_targets([e.true_layers() for e in batch], wanted))
