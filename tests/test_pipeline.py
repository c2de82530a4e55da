"""The one path on a tiny random model: a batch equals single runs, a seed is a picture, sizes come back."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from omnialpha import fidelity, pipeline, rgba
from omnialpha.errors import InputError
from omnialpha.loading import load, pick_device
from omnialpha.models.checkpoints.folders import Card, Defaults
from omnialpha.models.transformer.model import MultiImageTransformer
from omnialpha.pipeline import OmniAlpha
from omnialpha.sampling import schedule
from omnialpha.tasks import MAPS, TASKS, Role

SIZES = {"square": (32, 32), "wide": (20, 51), "tall": (70, 16), "odd": (33, 31), "one pixel": (1, 1), "line": (1, 40)}


@pytest.fixture(scope="module")
def model(tiny_model):
    """The tiny model with louder weights: what it answers depends on every token, and far more than the tolerances."""
    loud = copy.deepcopy(tiny_model)
    torch.manual_seed(1)
    for parameter in [*loud.transformer.parameters(), *loud.text_encoder.parameters()]:
        parameter += 0.2 * torch.randn_like(parameter)
    return loud


def with_card(model, **changes):
    """The same networks under another card."""
    return OmniAlpha(model.vae, model.transformer, model.text_encoder, replace(model.card, **changes)).eval()


def picture(size, seed=0, alpha=False):
    made = torch.rand(4, *size, generator=torch.Generator().manual_seed(seed))
    if not alpha:
        made[3] = 1
    return made


def grey_map(size):
    """A map that fits every role: black, a grey rim, white in the middle."""
    made = torch.zeros(size)
    h, w = size
    made[h // 5 : h - h // 5, w // 5 : w - w // 5] = 0.5
    made[h // 3 : h - h // 3, w // 3 : w - w // 3] = 1
    return made


def example(name, size=(32, 32), seed=0, **settings):
    row = TASKS[name]
    given = {
        role: grey_map(size) if role in MAPS else picture(size, seed + k, alpha=role is Role.FOREGROUND)
        for k, role in enumerate(row.inputs)
    }
    prompt = f"a mug number {seed}" if row.text else None
    return row.example(settings.pop("images", given), prompt=prompt, size=size, **settings)


def mixed():
    """Five requests of unequal sizes, tasks and numbers of pictures in and out."""
    two = {Role.FOREGROUND: [picture((48, 24), 3, alpha=True), picture((48, 24), 4, alpha=True)]}
    return [
        example("matting_auto", (20, 51), seed=1),
        example("text_to_image", (64, 30), seed=2),
        example("decompose_auto", (33, 31), seed=3, layers=3),
        example("removal_rough", (32, 32), seed=4),
        example("foreground_to_full", (48, 24), seed=5, images=two),
    ]


def pictures(stacks):
    return [[layer.rgba for layer in stack] for stack in stacks]


def distance(a, b):
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


# ---- batches and seeds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["paper", "released"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_batch_equals_its_samples_one_by_one(model, guidance, order):
    model = with_card(model, target_order=order)
    examples, seeds = mixed(), [11, 3, 7, 5, 2]
    settings = {"steps": 3, "guidance": guidance, "raw": True}
    together = pictures(model.run(examples, seed=seeds, **settings))
    for example_, seed, batch in zip(examples, seeds, together, strict=True):
        (alone,) = pictures(model.run([example_], seed=[seed], **settings))
        assert len(alone) == len(example_.targets)
        assert distance(alone, batch) <= 1e-4, example_.task
    # the tolerance means something: other words, another picture or another seed are far away
    first = model.run(examples[:1], seed=[11], **settings)
    for change in (replace(examples[0], instruction="Remove the mug."), example("matting_auto", (20, 51), seed=9)):
        assert distance(pictures(model.run([change], seed=[11], **settings))[0], pictures(first)[0]) > 1e-2


def test_a_batch_of_one_seed_counts_up(model):
    examples = [example("matting_auto", seed=1)] * 3
    made = pictures(model.run(examples, seed=5, raw=True))
    for b in range(3):
        assert distance(pictures(model.run(examples[:1], seed=5 + b, raw=True))[0], made[b]) <= 1e-4
    assert distance(made[0], made[1]) > 0.05 and distance(made[1], made[2]) > 0.05


def test_a_seed_is_a_picture(model):
    request = [example("matting_text", (20, 51))]
    first, again, other = (pictures(model.run(request, seed=s, raw=True))[0] for s in (4, 4, 5))
    assert torch.equal(first[0], again[0])
    assert distance(first, other) > 0.05


def test_noise_is_each_samples_own(model):
    cond = model.condition(mixed())
    noise = model.noise(cond, [1, 2, 3, 4, 5])
    assert noise.shape == (5, cond.target_tokens, 16)
    for b, layout in enumerate(cond.layouts):
        alone = model.noise(model.condition([mixed()[b]]), [b + 1])
        assert torch.equal(noise[b, : layout.target_tokens], alone[0])
        assert (noise[b, layout.target_tokens :] == 0).all()
    assert noise[2].std() == pytest.approx(1, abs=0.2), "the longest sample has no padding"
    state = torch.get_rng_state()
    model.noise(cond, 7)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"


def test_one_seed_too_few(model):
    with pytest.raises(ValueError):
        model.run(mixed(), seed=[1, 2])


# ---- sizes, tasks, names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", ["matting_auto", "removal_rough", "text_to_image"])
def test_the_size_that_comes_in_goes_out(model, name, size):
    images = {Role.COMPOSITE: picture(size), Role.ROUGH: torch.ones(size)}
    given = {role: images[role] for role in TASKS[name].inputs}
    (stack,) = model.run([example(name, size, images=given)])
    assert stack.size == size
    for layer in stack:
        assert layer.rgba.shape == (4, *size) and layer.offset == (0, 0)
        assert layer.rgba.isfinite().all() and layer.rgba.min() >= 0 and layer.rgba.max() <= 1


@pytest.mark.parametrize("name", TASKS)
def test_every_task_runs(model, name):
    request = example(name, (24, 40), seed=6)
    (stack,) = model.run([request])
    assert [layer.role for layer in stack] == [str(r) for r in TASKS[name].targets]
    assert [layer.name for layer in stack] == [str(r) for r in TASKS[name].targets]
    assert stack.size == (24, 40) and all(layer.rgba.isfinite().all() for layer in stack)
    kept = fidelity.restore_unchanged(request, [layer.rgba for layer in model.run([request], raw=True)[0]])
    assert all(torch.equal(a, b.rgba) for a, b in zip(kept, stack, strict=True))


@pytest.mark.parametrize("name", ["matting_auto", "matting_rough", "matting_alpha", "removal_auto", "removal_rough"])
@pytest.mark.parametrize("size", [(24, 40), (70, 90)], ids=["as it is", "scaled down"])
def test_transparent_pictures_keep_their_alpha(model, name, size):
    asked = example(name, size, seed=6)
    given = asked.inputs[0].clone()
    given[3, :, : size[1] // 3] = 0
    given[3, :, size[1] // 3 : size[1] // 2] = 0.5
    given[:3, :, : size[1] // 3] = torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1)  # a colour that nobody sees
    (made,) = model.run([replace(asked, inputs=(given, *asked.inputs[1:]))])[0]
    if TASKS[name].category == "removal":
        hidden = given[3] == 0
        assert torch.equal(made.rgba[3], given[3]) and torch.equal(made.rgba[:, hidden], given[:, hidden])
    else:
        assert (made.rgba[3] <= given[3]).all() and made.rgba[3].max() > 0.2


@pytest.mark.parametrize("layers", [2, 3])
def test_layers_of_a_transparent_picture_recompose_to_it(model, layers):
    asked = example("decompose_auto", (24, 40), seed=6, layers=layers)
    given = asked.inputs[0].clone()
    given[3] = torch.linspace(0, 1, 40).mul(1.4).sub(0.2).clamp(0, 1)
    (stack,) = model.run([replace(asked, inputs=(given,))])
    again, wanted = rgba.premultiply(stack.recompose()), rgba.premultiply(given)
    assert (again[3] - wanted[3]).abs().max() <= 1 / 255
    colours = torch.stack([layer.rgba[:3] for layer in stack])
    free = ((colours > 0) & (colours < 1)).all(0).all(0)
    assert free.sum() > 20 and (again - wanted)[:, free].abs().max() <= 1 / 255


def test_layers_are_numbered_from_the_back(model):
    (stack,) = model.run([example("decompose_auto", layers=3)])
    assert [layer.name for layer in stack] == ["background", "foreground-1", "foreground-2"]
    assert stack["foreground-2"] is stack[2]


def test_raw_is_the_decoder_alone(model):
    request = example("removal_rough", (20, 51), seed=4)
    last = []
    (raw,) = model.run([request], raw=True, on_step=lambda step, cond: last.append((step.x, cond)))
    x, cond = last[-1]
    (made,) = model.pictures(x, cond)
    assert torch.equal(raw[0].rgba, cond.canvases[0].restore(made)[0])
    (kept,) = model.run([request])
    outside = request.inputs[1][0] == 0
    assert torch.equal(kept[0].rgba[:, outside], request.inputs[0][:, outside])
    assert not torch.equal(raw[0].rgba[:, outside], request.inputs[0][:, outside])


@pytest.fixture(scope="module")
def fine(model):
    """The model with a transformer whose tokens are one latent."""
    config = {**model.transformer.config, "patch_size": 1, "in_channels": 4}
    transformer = MultiImageTransformer.from_config(config).eval().requires_grad_(False)
    return OmniAlpha(model.vae, transformer, model.text_encoder, model.card).eval()


@pytest.mark.parametrize("which", ["model", "fine"])
def test_targets_are_encoded_as_the_model_makes_them(which, request):
    """What `pictures` decodes, `encode_targets` encodes: same order, same packing."""
    model, examples = request.getfixturevalue(which), mixed()
    cond = model.condition(examples)
    targets = [
        torch.stack([picture(e.size, 20 + b + k) for k in range(len(e.targets))]) for b, e in enumerate(examples)
    ]
    x0 = model.encode_targets(targets, cond)
    assert x0.shape == model.noise(cond).shape
    with torch.no_grad():
        for b, made in enumerate(model.pictures(x0, cond)):
            fitted = cond.canvases[b].fit(targets[b])
            wanted = model.vae.decode(model.vae.encode(fitted))
            assert (made - wanted).abs().max() < 1e-5


# ---- what the transformer's output means -----------------------------------------------------------------------------


def test_x0_and_velocity_cards_agree(model):
    examples = mixed()
    x0_model, v_model = with_card(model, prediction="x0"), with_card(model, prediction="velocity")
    with torch.no_grad():
        cond = x0_model.condition(examples)
        x_t, t = x0_model.noise(cond, 3), torch.tensor([1.0, 0.8, 0.5, 0.3, 0.05])
        out = model.transformer(x_t, cond.inputs, cond.text, t, cond.positions)
        assert torch.equal(v_model.velocity(x_t, t, cond), out)
        v = x0_model.velocity(x_t, t, cond)
    assert torch.equal(v, (x_t - out) / t.view(-1, 1, 1))
    assert (x_t - t.view(-1, 1, 1) * v - out).abs().max() < 1e-5, "x0 is what the network said"
    assert (out - v).abs().max() > 0.1


def test_one_step_by_hand(model):
    """t goes from 1 to 0: an x0 card's picture is the network's output, a velocity card's is noise less output."""
    request = [example("matting_auto", seed=2)]
    for prediction in ("x0", "velocity"):
        one = with_card(model, prediction=prediction)
        with torch.no_grad():
            cond = one.condition(request)
            noise = one.noise(cond, 9)
            out = one.transformer(noise, cond.inputs, cond.text, torch.ones(1), cond.positions)
            wanted = one.pictures(out if prediction == "x0" else noise - out, cond)[0]
        (made,) = one.run(request, seed=9, steps=1, guidance=1.0, raw=True)
        assert (made[0].rgba - cond.canvases[0].restore(wanted)[0]).abs().max() < 1e-5


def test_each_sample_has_the_schedule_of_its_own_length(model):
    seen = []
    model = with_card(model)
    velocity = model.velocity
    model.velocity = lambda x, t, cond: seen.append((t, cond)) or velocity(x, t, cond)
    model.run(mixed(), steps=3, guidance=1.0)
    assert len(seen) == 3
    cond = seen[0][1]
    tokens = [layout.target_tokens for layout in cond.layouts]
    assert len(set(tokens)) > 2
    wanted = torch.stack([schedule(3, n, model.card.shift) for n in tokens])
    assert torch.equal(torch.stack([t for t, _ in seen], dim=1), wanted[:, :-1])


@pytest.mark.parametrize("together", [0, 10_000])
def test_guidance_runs_the_empty_instruction_too_and_only_when_asked(model, monkeypatch, together):
    monkeypatch.setattr(pipeline.sampling, "MAX_PAIRED_TOKENS", together)
    calls = []
    hook = model.transformer.register_forward_pre_hook(lambda module, args: calls.append(args[2].shape[:2]))
    request = [example("matting_text", seed=2)]
    try:
        model.run(request, steps=2, guidance=1.0)
        assert len(calls) == 2 and len(set(calls)) == 1
        calls.clear()
        plain = model.run(request, steps=2, guidance=3.0, raw=True)
        if together:
            assert [rows for rows, _ in calls] == [2, 2]
        else:
            assert len(calls) == 4 and min(calls) < max(calls), "the negative text is shorter"
    finally:
        hook.remove()
    assert distance(pictures(plain)[0], pictures(model.run(request, steps=2, guidance=1.0, raw=True))[0]) > 1e-3


def test_guidance_in_one_batch_equals_guidance_in_two(model, monkeypatch):
    made = []
    for together in (0, 10_000):
        monkeypatch.setattr(pipeline.sampling, "MAX_PAIRED_TOKENS", together)
        made.append(model.run(mixed(), steps=2, guidance=3.0, raw=True))
    for a, b in zip(*map(pictures, made), strict=True):
        assert distance(a, b) <= 1e-4


def test_guidance_encodes_pictures_once_and_equals_two_conditions(model):
    calls = []
    hook = model.vae.encoder.register_forward_hook(lambda module, args, out: calls.append(len(out)))
    try:
        guided = model.condition(mixed(), guided=True)
    finally:
        hook.remove()
    assert sum(calls) == sum(len(e.inputs) for e in mixed())
    empty = model.condition([replace(e, instruction="") for e in mixed()])
    plain = model.condition(mixed())
    for one, other in ((guided, plain), (guided.negative, empty)):
        assert one.lengths == other.lengths
        assert torch.allclose(one.text, other.text, atol=1e-5)
        assert torch.equal(one.inputs, other.inputs)


def test_defaults_are_the_cards(model):
    indices = []

    def watch(step, cond):
        indices.append((step.index, step.total))

    model.run([example("matting_auto")], on_step=watch)
    steps = model.card.defaults("matting_auto").steps
    assert indices == [(i + 1, steps) for i in range(steps)]
    indices.clear()
    model.run([example("text_to_image")], on_step=watch)
    assert len(indices) == model.card.defaults("text_to_image").steps != steps


def test_a_task_has_its_own_defaults_or_its_categorys(model):
    sampling = {"*": Defaults(2, 1.0), "matting": Defaults(3, 1.0), "matting_text": Defaults(4, 2.0)}
    card = replace(model.card, sampling=sampling)
    assert [card.defaults(n).steps for n in ("matting_text", "matting_auto", "removal_auto")] == [4, 3, 2]


# ---- watching and cancelling ---------------------------------------------------------------------------------------


def test_raising_in_on_step_cancels(model):
    calls = []
    hook = model.transformer.register_forward_pre_hook(lambda module, args: calls.append(1))

    def cancel(step, cond):
        if step.index == 2:
            raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            model.run([example("matting_auto")], steps=5, guidance=1.0, on_step=cancel)
    finally:
        hook.remove()
    assert len(calls) == 2


def test_previews(model):
    seen = []

    def preview(step, cond):
        seen.append((step, model.decode(step.x0, cond)))

    made = model.run([example("decompose_auto", (20, 51))], steps=3, on_step=preview)
    assert [len(stacks[0]) for _, stacks in seen] == [2, 2, 2]
    assert all(stacks[0].size == (20, 51) for _, stacks in seen)
    assert torch.equal(seen[-1][0].x, seen[-1][0].x0)
    assert distance(pictures(seen[-1][1])[0], pictures(made)[0]) == 0
    assert distance(pictures(seen[0][1])[0], pictures(made)[0]) > 1e-3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": 1001}, "steps=1001"),
        ({"guidance": -0.5}, "guidance=-0.5"),
        ({"guidance": 31}, "guidance=31"),
        ({"guidance": float("nan")}, "guidance=nan"),
    ],
)
def test_settings_out_of_range(model, settings, words):
    with pytest.raises(InputError, match=words):
        model.run([example("matting_auto")], **settings)


def test_no_examples(model):
    with pytest.raises(InputError, match="no examples"):
        model.run([])


def test_too_many_pictures(model):
    small = with_card(model, grid=replace(model.card.grid, sample_pixels=4 * 16 * 16))
    assert small.canvas(example("decompose_auto", layers=3)).size == (16, 16)
    with pytest.raises(InputError, match="5 pictures leave .* use at most 4 pictures"):
        small.run([example("decompose_auto", layers=4)])


def test_native_size(model):
    assert model.native_size() == (32, 32)
    grid = replace(model.card.grid, picture_pixels=60 * 40, sample_pixels=50 * 50)
    assert with_card(model, grid=grid).native_size() == (48, 48)


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_failed_save_leaves_the_old_model(model, tmp_path, monkeypatch):
    model.save(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(self, folder, dtype=None):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(type(model.text_encoder), "save_pretrained", full)
        model.save(tmp_path, torch.bfloat16)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    model.save(tmp_path, torch.bfloat16)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_save_and_load_are_inverse(model, tmp_path):
    model.save(tmp_path)
    back = OmniAlpha.from_folder(tmp_path)
    assert back.card == model.card and not back.training
    assert not any(p.requires_grad for p in back.parameters())
    ours, theirs = model.state_dict(), back.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    for a, b in zip(pictures(model.run(mixed(), seed=3)), pictures(back.run(mixed(), seed=3)), strict=True):
        assert distance(a, b) == 0


def test_a_token_of_one_latent(model, fine, tmp_path):
    """Four times the tokens, the same noise; it runs, and is read back as it was."""
    examples = mixed()[:2]
    cond, coarse = fine.condition(examples), model.condition(examples)
    assert (fine.patch, model.patch) == (1, 2)
    assert [4 * layout.target_tokens for layout in coarse.layouts] == [layout.target_tokens for layout in cond.layouts]
    for made, wanted in zip(
        fine.pictures(fine.noise(cond), cond), model.pictures(model.noise(coarse), coarse), strict=True
    ):
        assert torch.allclose(made, wanted, atol=1e-5)
    fine.save(tmp_path)
    back = OmniAlpha.from_folder(tmp_path)
    for a, b in zip(pictures(fine.run(examples, seed=3)), pictures(back.run(examples, seed=3)), strict=True):
        assert distance(a, b) == 0 and a[0].shape[-2:] in {(20, 51), (64, 30)}


def test_half_precision_folders(model, tmp_path):
    before = model.transformer.dtype
    model.save(tmp_path, torch.bfloat16)
    assert model.transformer.dtype == before, "saving leaves the model as it is"
    back = OmniAlpha.from_folder(tmp_path)
    for name, value in model.named_parameters():
        assert torch.equal(back.get_parameter(name), value.bfloat16().float()), name
    assert load(tmp_path, device="cpu", dtype=torch.bfloat16).transformer.dtype == torch.bfloat16


def test_cards_round_trip(tiny_model_folder, tmp_path):
    card = Card.read(tiny_model_folder)
    card.write(tmp_path / "new")
    assert Card.read(tmp_path / "new") == card and card.name == "tiny"
    tree = json.loads((tmp_path / "new/omnialpha.json").read_text())
    for change, words in (
        ({"predicton": "x0"}, "'predicton'.*did you mean 'prediction'"),
        ({"prediction": "noise"}, "'prediction' is 'noise': use one of 'velocity', 'x0'"),
        ({"grid": {"multiple": 16}}, "lacks 'grid.picture_pixels'"),
    ):
        (tmp_path / "new/omnialpha.json").write_text(json.dumps(tree | change))
        with pytest.raises(InputError, match=words):
            Card.read(tmp_path / "new")
    (tmp_path / "new/omnialpha.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        Card.read(tmp_path / "new")


def test_places_that_hold_no_model(tmp_path):
    with pytest.raises(InputError, match="neither bundled .nano.* nor a folder"):
        load("no-such-model")
    with pytest.raises(InputError, match="lacks transformer/"):
        load(tmp_path)
    for part in ("vae", "transformer", "text_encoder", "tokenizer", "processor"):
        (tmp_path / part).mkdir()
    with pytest.raises(InputError, match="has no omnialpha.json"):
        load(tmp_path, device="cpu")


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == "cpu"
    for name in ("cuda", "cuda:0", "mps", "tpu", ""):
        with pytest.raises(InputError, match=f"device '{name}' is not available here: use one of auto, cpu"):
            pick_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == "cuda" and pick_device("cuda:1") == "cuda:1"
    with pytest.raises(InputError, match="'cuda:2' does not exist: there are 2"):
        pick_device("cuda:2")
    with pytest.raises(InputError, match="'cuda:x'"):
        pick_device("cuda:x")
