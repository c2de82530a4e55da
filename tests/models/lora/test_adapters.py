"""LoRA on the transformer: equal to the written-out sum, to diffusers and to peft; swapped and taken off bit by bit."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from diffusers.loaders import QwenImageLoraLoaderMixin
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import small
from omnialpha.errors import InputError
from omnialpha.models.lora import adapters
from omnialpha.models.lora import files as lora_files
from omnialpha.models.lora.adapter_file import PRESETS, AdapterFile, Settings, describe, sampling_settings
from omnialpha.models.lora.names import ATTENTION, MLP, Modules, find_targets
from omnialpha.models.transformer.model import MultiImageTransformer, dead_parameters
from omnialpha.models.transformer.positions import Layout, batch_positions
from omnialpha.sampling import Shift, schedule
from small import AXES

CONFIG = small.CONFIG | {"num_layers": 2}
LAYOUT = Layout(((4, 6),), ((3, 5),))
# Of everything a LoRA may touch, with ranks and alphas that differ: (module, rank, alpha).
MODULES = [
    *((f"transformer_blocks.{block}.{name}", 4, 8.0) for block in (0, 1) for name in ATTENTION + MLP),
    *((f"transformer_blocks.{block}.{name}", 3, 1.5) for block in (0, 1) for name in ("img_mod.1", "txt_mod.1")),
    *((name, 2, 2.0) for name in ("img_in", "txt_in", "norm_out.linear", "proj_out")),
    ("time_text_embed.timestep_embedder.linear_1", 2, 5.0),
]
# By form: what stands before the module, the ends of down and up, and whether dots become underscores.
FORMS = {
    "diffusers": ("transformer.", "lora_A.weight", "lora_B.weight", False),
    "bare": ("", "lora_A.weight", "lora_B.weight", False),
    "peft": ("base_model.model.", "lora_A.weight", "lora_B.weight", False),
    "peft, named": ("base_model.model.", "lora_A.default.weight", "lora_B.default.weight", False),
    "kohya": ("lora_unet_", "lora_down.weight", "lora_up.weight", True),
    "lightning": ("", "lora_down.weight", "lora_up.weight", False),
    "ai-toolkit": ("diffusion_model.", "lora_A.weight", "lora_B.weight", False),
    "OneTrainer": ("lora_transformer_", "lora_down.weight", "lora_up.weight", True),
    "before peft": ("transformer.", "lora.down.weight", "lora.up.weight", False),
}


def build():
    """A model with every parameter random and at work."""
    torch.manual_seed(0)
    model = MultiImageTransformer(**CONFIG).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return model


def stock(model):
    """Diffusers' own class with the same weights."""
    other = QwenImageTransformer2DModel(**CONFIG).eval()
    other.load_state_dict(model.state_dict())
    return other.to(model.dtype)


def run(model, dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    targets, inputs, text = (
        torch.randn(2, n, c, generator=g).to(dtype) for n, c in ((24, 16), (15, 16), (7, CONFIG["joint_attention_dim"]))
    )
    t = torch.tensor([0.25, 0.875], dtype=dtype)
    with torch.no_grad():
        if isinstance(model, MultiImageTransformer):
            return model(targets, inputs, text, t, batch_positions([LAYOUT] * 2, [7, 7], "released", AXES))
        shapes = [[(1, h, w) for h, w in LAYOUT.pictures]] * 2
        return model(torch.cat((targets, inputs), 1), text, None, t, shapes).sample[:, :24]


def tensors(model, modules=MODULES, seed=3):
    """(down, up, alpha) by module."""
    g = torch.Generator().manual_seed(seed)
    made = {}
    for name, rank, alpha in modules:
        out, columns = model.get_submodule(name).weight.shape
        made[name] = (0.2 * torch.randn(rank, columns, generator=g), 0.2 * torch.randn(out, rank, generator=g), alpha)
    return made


def write(path, made, form="lightning", alphas=True, header=None):
    """A file in one of FORMS; its alphas as tensors."""
    prefix, down, up, flat = FORMS[form]
    state = {}
    for name, (a, b, alpha) in made.items():
        start = prefix + (name.replace(".", "_") if flat else name)
        state |= {f"{start}.{down}": a, f"{start}.{up}": b}
        if alphas:
            state[f"{start}.alpha"] = torch.tensor(alpha)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, header)
    return path


def changed(model, *parts):
    """A copy whose weights are W + sum of weight * alpha / r * up @ down, for (made, weight) in parts."""
    other = copy.deepcopy(model)
    for made, weight in parts:
        for name, (down, up, alpha) in made.items():
            other.get_submodule(name).weight += weight * alpha / len(down) * up @ down
    return other


def worst(a, b):
    return (a - b).abs().max().item() / b.abs().max().item()


@pytest.fixture(scope="module")
def base():
    return build()


@pytest.fixture
def model(base):
    return copy.deepcopy(base)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_equals_the_sum_written_out(model, base, tmp_path, form):
    made = tensors(base)
    adapters.apply(model, [AdapterFile(write(tmp_path / "x.safetensors", made, form), 0.7)])
    assert worst(run(model), run(changed(base, (made, 0.7)))) < 1e-5
    assert worst(run(model), run(base)) > 0.1


@pytest.mark.parametrize("form", ["diffusers", "kohya", "lightning", "ai-toolkit"])
def test_files_act_as_in_diffusers(base, tmp_path, form):
    uniform = [(name, 4, 4.0 if form == "diffusers" else 6.0) for name, _, _ in MODULES]
    path = write(tmp_path / "x.safetensors", tensors(base, uniform), form, alphas=form != "diffusers")
    theirs = stock(base)
    theirs.load_lora_adapter(QwenImageLoraLoaderMixin.lora_state_dict(str(path)), adapter_name="x")
    for ours in (copy.deepcopy(base), stock(base)):
        adapters.apply(ours, [AdapterFile(path)])
        assert worst(run(ours), run(theirs)) < 1e-5
        assert worst(run(ours), run(base)) > 0.1


def test_a_released_file_acts_as_in_diffusers(released_omnialpha, released_base):
    folder = released_base / "transformer"
    other, ours = (QwenImageTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32) for _ in range(2))
    other.load_lora_adapter(released_omnialpha / "lora", weight_name="pytorch_lora_weights.safetensors")
    assert adapters.apply(ours, [AdapterFile(released_omnialpha / "lora")])[0].name == "lora"
    g = torch.Generator().manual_seed(0)
    arguments = (torch.randn(1, 24, 64, generator=g), torch.randn(1, 7, 64, generator=g), None, torch.tensor([0.4]))
    with torch.no_grad():
        theirs, mine = (model(*arguments, [[(1, 4, 6)]]).sample for model in (other, ours))
        adapters.apply(ours)
        assert worst(mine, theirs) < 1e-5
        assert worst(ours(*arguments, [[(1, 4, 6)]]).sample, theirs) > 0.01


def test_several_add_up_by_their_weights_as_in_diffusers(model, base, tmp_path):
    one, two = tensors(base, [(name, 4, 4.0) for name, _, _ in MODULES]), tensors(base, MODULES[:9], seed=8)
    two = {name: (down, up, float(len(down))) for name, (down, up, _) in two.items()}
    paths = [write(tmp_path / f"{i}.safetensors", made, "diffusers", False) for i, made in enumerate((one, two))]
    adapters.apply(model, [AdapterFile(paths[0], 0.5), AdapterFile(paths[1], -1.5)])
    assert worst(run(model), run(changed(base, (one, 0.5), (two, -1.5)))) < 1e-5
    theirs = stock(base)
    for name, path in zip("ab", paths, strict=True):
        theirs.load_lora_adapter(path, adapter_name=name)
    theirs.set_adapters(["a", "b"], [0.5, -1.5])
    assert worst(run(model), run(theirs)) < 1e-5


def test_swapping_and_taking_off_leave_the_base_bit_by_bit(model, base, tmp_path):
    modules = dict(model.named_modules())
    files = [AdapterFile(write(tmp_path / f"{i}.safetensors", tensors(base, seed=i))) for i in (1, 2)]
    alone = []
    for file in files:
        fresh = copy.deepcopy(base)
        adapters.apply(fresh, [file])
        alone.append(run(fresh))
    for order in ([0], [1], [0, 1], [0]):
        adapters.apply(model, [files[i] for i in order])
        assert len(order) > 1 or torch.equal(run(model), alone[order[0]])
    assert adapters.apply(model) == adapters.applied(model) == ()
    assert torch.equal(run(model), run(base))
    assert model.state_dict().keys() == base.state_dict().keys()
    assert dict(model.named_modules()) == modules  # the same objects, in their places


def test_equal_names_are_numbered(model, base, tmp_path):
    paths = [write(tmp_path / folder / "type.safetensors", tensors(base)) for folder in "xyz"]
    files = adapters.apply(model, [AdapterFile(path, weight) for path, weight in zip(paths, (1, 2, 3), strict=True)])
    assert [file.name for file in files] == ["type_", "type_-2", "type_-3"]  # a module cannot be called `type`
    assert worst(run(model), run(changed(base, (tensors(base), 6.0)))) < 1e-5


def apply_all(model, folder, *parts):
    """Files of (made, weight) in parts, applied; what `changed` writes out."""
    files = [AdapterFile(write(folder / f"{i}.safetensors", made), weight) for i, (made, weight) in enumerate(parts)]
    return adapters.apply(model, files)


def test_fusing_equals_not_fusing_and_leaves_plain_modules(model, base, tmp_path):
    parts = (tensors(base), 0.6), (tensors(base, MODULES[3:20], seed=5), -0.3)
    apply_all(model, tmp_path, *parts, (tensors(base, seed=6), 0.0))
    beside = run(model)
    adapters.fuse(model)
    assert worst(run(model), beside) < 1e-5
    assert adapters.applied(model) == ()
    state, expected = model.state_dict(), changed(base, *parts).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.allclose(value, expected[key], rtol=0, atol=1e-6) for key, value in state.items())


def test_fusing_in_bfloat16_rounds_once(base, tmp_path):
    parts = (tensors(base), 0.3), (tensors(base, seed=5), 1.7)
    parts = [({k: (a.bfloat16().float(), b.bfloat16().float(), c) for k, (a, b, c) in m.items()}, w) for m, w in parts]
    model = copy.deepcopy(base).bfloat16()
    exact, stepwise = changed(copy.deepcopy(model).float(), *parts), changed(copy.deepcopy(model), *parts)
    apply_all(model, tmp_path, *parts)
    adapters.fuse(model)

    def excess(other):  # in half steps between bfloat16 numbers; 1 is the rounding that cannot be helped
        worst = 0.0
        for name, *_ in MODULES:
            weight, want = other.get_submodule(name).weight.float(), exact.get_submodule(name).weight
            step = torch.exp2(want.abs().log2().floor() - 8)
            worst = max(worst, ((weight - want).abs() / step).max().item())
        return worst

    assert model.dtype == torch.bfloat16
    assert excess(model) < 1.01
    assert excess(stepwise) > 1.5  # what adding one after the other would have given


def test_what_cannot_be_fused_is_refused_whole(model, base, tmp_path):
    apply_all(model, tmp_path, (tensors(base), 1.0))
    last = model.proj_out.get_base_layer()
    last.weight = nn.Parameter(last.weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(InputError, match="proj_out is quantised"):
        adapters.fuse(model)
    assert torch.equal(model.img_in.get_base_layer().weight, base.img_in.weight)


def test_bfloat16_computes_in_bfloat16_as_diffusers_does(base, tmp_path):
    made = tensors(base, [(name, 4, 4.0) for name, _, _ in MODULES])
    path = write(tmp_path / "x.safetensors", made, "diffusers", alphas=False)
    model = copy.deepcopy(base).bfloat16()
    theirs = stock(model)
    adapters.apply(model, [AdapterFile(path)])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    theirs.load_lora_adapter(path, low_cpu_mem_usage=True)
    ours, theirs = (run(m, torch.bfloat16).float() for m in (model, theirs))
    assert (ours - theirs).square().mean().sqrt() < 0.02 * theirs.square().mean().sqrt()
    made = {name: (down.bfloat16().float(), up.bfloat16().float(), alpha) for name, (down, up, alpha) in made.items()}
    exact = run(changed(copy.deepcopy(base).bfloat16().float(), (made, 1.0)))
    assert (ours - exact).square().mean().sqrt() < 0.05 * exact.square().mean().sqrt()


def dora(path, base, modules=MODULES[:30], form="kohya"):
    """A DoRA file, its factors, and the lengths that they give to the rows."""
    made, g = tensors(base, modules), torch.Generator().manual_seed(4)
    lengths = {name: 0.5 + torch.rand(len(up), generator=g) for name, (_, up, _) in made.items()}
    state = load_file(write(path, made, form))
    prefix, *_, flat = FORMS[form]
    for name, value in lengths.items():
        end = "dora_scale" if form == "kohya" else "lora_magnitude_vector"
        key = f"{prefix}{name.replace('.', '_') if flat else name}.{end}"
        state[key] = value[:, None] if form == "kohya" else value
    save_file(state, path)
    return made, lengths


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_dora_equals_its_definition_and_peft(model, base, tmp_path, form):
    uniform = [(name, 4, 6.0) for name, _, _ in MODULES[:30]]
    made, lengths = dora(tmp_path / "x.safetensors", base, uniform, form)
    adapters.apply(model, [AdapterFile(tmp_path / "x.safetensors", 0.8)])
    beside = run(model)

    written = changed(base, (made, 0.8))
    for name, length in lengths.items():
        weight = written.get_submodule(name).weight
        weight *= (length / weight.norm(dim=1))[:, None]
    assert worst(beside, run(written)) < 1e-5

    theirs = copy.deepcopy(base)
    settings = LoraConfig(r=4, lora_alpha=0.8 * 6.0, use_dora=True, target_modules=list(made))
    inject_adapter_in_model(settings, theirs)
    state = {f"{name}.lora_A.weight": down for name, (down, _, _) in made.items()}
    state |= {f"{name}.lora_B.weight": up for name, (_, up, _) in made.items()}
    state |= {f"{name}.lora_magnitude_vector": length for name, length in lengths.items()}
    set_peft_model_state_dict(theirs, state)
    assert worst(beside, run(theirs)) < 1e-5
    assert worst(run(changed(base, (made, 0.8))), beside) > 0.01  # without the lengths it is something else

    adapters.fuse(model)
    assert worst(run(model), beside) < 1e-5


@pytest.mark.parametrize("tabulated", [False, True])
def test_tables_of_modulation_follow_the_adapters(model, base, tmp_path, tabulated):
    made = tensors(base)
    wanted = run(base), run(changed(base, (made, 1.0)))
    calls, forget = [], model.forget_tables
    model.forget_tables = lambda: [calls.append(1), forget()]
    model.tabulate(tabulated)
    run(model)
    apply_all(model, tmp_path, (made, 1.0))
    assert worst(run(model), wanted[1]) < 1e-5
    adapters.apply(model)
    assert worst(run(model), wanted[0]) < 1e-5
    apply_all(model, tmp_path, (made, 1.0))
    adapters.fuse(model)
    assert worst(run(model), wanted[1]) < 1e-5
    assert (model.table is not None) == tabulated
    assert len(calls) >= 4


# ---- few-step settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [4, 8])
def test_lightning_presets_are_the_published_schedule(steps):
    shift = {"base_shift": math.log(3), "max_shift": math.log(3), "shift_terminal": None}
    published = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="exponential", **shift)
    published.set_timesteps(sigmas=[1 - i / steps for i in range(steps)], mu=math.log(3))
    file = AdapterFile.parse(f"some/lora.safetensors@lightning-{steps}")
    assert (file.steps, file.guidance) == (steps, 1.0)
    for tokens in (256, 4096):
        assert torch.allclose(schedule(file.steps, tokens, file.shift), published.sigmas, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "path", "weight", "preset"),
    [
        ("a/b.safetensors", "a/b.safetensors", 1.0, None),
        ("a/b.safetensors:0.8", "a/b.safetensors", 0.8, None),
        ("a/b.safetensors:-1e-1@lightning-4", "a/b.safetensors", -0.1, "lightning-4"),
        ("a/b@lightning-8", "a/b", 1.0, "lightning-8"),
        (r"C:\models\b.safetensors", r"C:\models\b.safetensors", 1.0, None),
        (r"C:\models\b.safetensors:.5", r"C:\models\b.safetensors", 0.5, None),
        ("a:b/c:d.safetensors", "a:b/c:d.safetensors", 1.0, None),
        ("a:b/c:d.safetensors:2", "a:b/c:d.safetensors", 2.0, None),
        ("owner/name@main", "owner/name@main", 1.0, None),
        (":0.5", ":0.5", 1.0, None),
    ],
)
def test_text_gives_path_weight_and_preset(text, path, weight, preset):
    wanted = vars(PRESETS[preset]) if preset else {}
    assert AdapterFile.parse(text) == AdapterFile(Path(path), weight, **wanted)


def test_a_path_that_exists_is_taken_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x:0.5", "y@lightning-4"):
        Path(name).mkdir()
    assert AdapterFile.parse("x:0.5") == AdapterFile(Path("x:0.5"))
    assert AdapterFile.parse("y@lightning-4:0.5") == AdapterFile(Path("y@lightning-4"), 0.5)
    assert AdapterFile.parse("y@lightning-4").steps is None


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/Qwen-V1.0-bf16.safetensors", "Qwen-V1_0-bf16"),
        ("a/fine/pytorch_lora_weights.safetensors", "fine"),
        ("a/adapter_model.safetensors", "a"),
        ("owner/name", "name"),
        ("items.safetensors", "items_"),
    ],
)
def test_names_by_default(path, name):
    assert AdapterFile(Path(path)).name == name


def test_settings_travel_in_the_header_and_those_given_win(model, base, tmp_path):
    lightning = PRESETS["lightning-4"]
    path = write(tmp_path / "x.safetensors", tensors(base))
    adapters.apply(model, [AdapterFile(path, **vars(lightning))])
    saved = adapters.save(model, tmp_path / "saved.safetensors")
    described = describe(AdapterFile(saved, 0.5))
    assert described == AdapterFile(saved, 0.5, **vars(lightning))
    assert adapters.apply(model, [AdapterFile(saved, 0.5)]) == (described,)
    assert sampling_settings([described]) == lightning
    (file,) = adapters.apply(model, [AdapterFile(saved, steps=6)])
    assert sampling_settings([file]) == replace(lightning, steps=6)
    plain = AdapterFile(path)
    assert sampling_settings([plain, file]) == replace(lightning, steps=6)
    assert sampling_settings([plain, replace(file, weight=0.0)]) == sampling_settings([]) == Settings()
    with pytest.raises(InputError, match=r"different steps \(saved: 6, b: 8\)"):
        sampling_settings([file, AdapterFile(Path("b"), steps=8)])
    kept = adapters.save(model, tmp_path / "other", settings=Settings(shift=Shift(fixed=0.5)))
    with safe_open(kept, "pt") as opened:
        assert json.loads(opened.metadata()["omnialpha"])["shift"]["fixed"] == 0.5


# ---- training ------------------------------------------------------------------------------------------------------


def velocity(model):
    g = torch.Generator().manual_seed(2)
    parts = [torch.randn(1, n, c, generator=g) for n, c in ((24, 16), (15, 16), (7, CONFIG["joint_attention_dim"]))]
    return model(*parts, torch.tensor([0.5]), batch_positions([LAYOUT], [7], "paper", AXES))


@pytest.mark.parametrize("given", [{}, {"dora": True}, {"targets": "attention", "dropout": 0.1}])
def test_all_that_is_added_trains(model, base, given):
    trained = adapters.add(model, 4, 8.0, **given)
    assert torch.equal(run(model), run(base)) or given.get("dora")
    assert worst(run(model), run(base)) < 1e-6
    dead = [
        name
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" in dead_parameters(base)
    ]
    wanted = ATTENTION if given.get("targets") else ATTENTION + MLP
    names = {f"transformer_blocks.{i}.{name}" for i in (0, 1) for name in wanted} - set(dead)
    assert {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad} == names
    assert {id(p) for p in trained} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(trained) == len(names) * (3 if given.get("dora") else 2)
    model.train()
    velocity(model).square().sum().backward()
    assert all(parameter.grad is not None for parameter in trained)
    assert sum(bool(parameter.grad.any()) for parameter in trained) >= len(names)  # at first the ups alone
    assert all(parameter.grad is None for parameter in base.parameters())


def test_a_frozen_adapter_below_stays_as_it_is(model, base, tmp_path):
    apply_all(model, tmp_path, (tensors(base), 1.0))
    trained = adapters.add(model, 4, name="policy")
    assert worst(run(model), run(changed(base, (tensors(base), 1.0)))) < 1e-5
    velocity(model).square().sum().backward()
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trained}
    assert all(parameter.grad is not None for parameter in trained)


def test_training_is_in_float32(base):
    trained = adapters.add(copy.deepcopy(base).bfloat16(), 4)
    assert {parameter.dtype for parameter in trained} == {torch.float32}


def test_an_adapter_of_weight_zero_takes_no_part(model, base, tmp_path):
    apply_all(model, tmp_path, (tensors(base), 0.0))
    assert torch.equal(run(model), run(base))
    assert not any(module.active_adapters for module in model.modules() if isinstance(module, LoraLayer))


def test_other_targets_by_their_endings(model):
    adapters.add(model, 2, targets=["img_mod.1", "transformer_blocks.0.attn.to_q", "img_in"])
    found = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert found == {f"transformer_blocks.{i}.img_mod.1" for i in (0, 1)} | {"transformer_blocks.0.attn.to_q", "img_in"}


def test_the_full_model_has_as_many_parameters_as_published():
    with torch.device("meta"):
        model = MultiImageTransformer(num_layers=2)
    for targets, millions in (("attention", 755), ("attention+mlp", 1699)):
        names = find_targets(targets, [n for n, m in model.named_modules() if isinstance(m, nn.Linear)])
        count = sum(256 * sum(model.get_submodule(name).weight.shape) for name in names) * 30
        assert round(count / 1e6) == millions


# ---- writing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_dora", [False, True])
def test_saved_files_read_back_bit_by_bit(model, base, tmp_path, with_dora):
    if with_dora:
        dora(tmp_path / "x.safetensors", base)
    else:
        write(tmp_path / "x.safetensors", tensors(base))
    adapters.apply(model, [AdapterFile(tmp_path / "x.safetensors")])
    once = run(model)
    saved = adapters.save(model, tmp_path / "saved")
    again = copy.deepcopy(base)
    adapters.apply(again, [AdapterFile(saved.parent)])
    assert torch.equal(run(again), once)
    assert again.state_dict().keys() == {key.replace(".x.", ".saved.") for key in model.state_dict()}
    for (_, mine), (_, other) in zip(again.state_dict().items(), model.state_dict().items(), strict=True):
        assert torch.equal(mine, other)
    assert [path.name for path in (tmp_path / "saved").iterdir() if path.suffix == ".part"] == []


def test_saved_files_act_the_same_in_diffusers(model, base, tmp_path):
    apply_all(model, tmp_path, (tensors(base), 1.0))
    wanted = run(model)
    theirs = stock(base)
    saved = adapters.save(model, tmp_path / "diffusers")
    theirs.load_lora_adapter(saved.parent, weight_name=saved.name)  # without that name it ignores the alphas
    assert worst(run(theirs), wanted) < 1e-5


def test_files_of_peft_and_diffusers_are_read_with_their_settings(model, base, tmp_path):
    """Ranks and alphas by pattern, rank-stabilised scaling: as peft and diffusers write them."""
    patterns = {"rank_pattern": {"to_q": 2, "transformer_blocks.1.attn.to_k": 6}, "alpha_pattern": {r"net\.\d": 3}}
    settings = LoraConfig(
        r=4, lora_alpha=8, use_rslora=True, target_modules=["to_q", "to_k", "img_mlp.net.2"], **patterns
    )
    theirs = stock(base)
    theirs.add_adapter(settings)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    theirs.save_lora_adapter(tmp_path / "diffusers")
    metadata = {f"transformer.{key}": value for key, value in settings.to_dict().items()}
    metadata = {key: sorted(value) if isinstance(value, set) else value for key, value in metadata.items()}
    state = {f"transformer.{k}": v for k, v in load_file(tmp_path / "diffusers" / lora_files.FILE).items()}
    save_file(state, tmp_path / "pipeline.safetensors", {"lora_adapter_metadata": json.dumps(metadata)})
    (tmp_path / "peft").mkdir()
    settings.save_pretrained(tmp_path / "peft")
    state = {f"base_model.model.{key.removeprefix('transformer.')}": value for key, value in state.items()}
    save_file(state, tmp_path / "peft" / "adapter_model.safetensors")
    for path in ("diffusers", "pipeline.safetensors", "peft"):
        adapters.apply(model, [AdapterFile(tmp_path / path)])
        assert worst(run(model), run(theirs)) < 1e-5, path


def test_a_file_that_cannot_be_written_leaves_the_old_one(model, base, tmp_path, monkeypatch):
    apply_all(model, tmp_path, (tensors(base), 1.0))
    old = (tmp_path / "0.safetensors").read_bytes()

    def fail(state, path, header):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(lora_files, "save_file", fail)
    with pytest.raises(InputError, match="disk full"):
        adapters.save(model, tmp_path / "0.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["0.safetensors"]
    assert (tmp_path / "0.safetensors").read_bytes() == old


# ---- mistakes ------------------------------------------------------------------------------------------------------

Q = "transformer_blocks.0.attn.to_q"


def broken(change):
    """A file of one module, its tensors changed."""
    state = {f"{Q}.lora_A.weight": torch.ones(4, 32), f"{Q}.lora_B.weight": torch.ones(32, 4)}
    change(state)
    return state


def moved(state, old, new):
    state.update({key.replace(old, new): state.pop(key) for key in list(state)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: moved(s, "to_q", "to_qq"), rf"'{Q}q.lora_A.weight' matches no weight .* nearest is '{Q}'"),
        (
            lambda s: moved(s, "blocks.0", "blocks.60"),
            r"blocks\.60\..* matches no weight .* nearest is 'transformer_blocks",
        ),
        (
            lambda s: moved(s, Q, "lora_unet_single_blocks_0_linear1"),
            "'lora_unet_single_blocks_0_linear1.lora_A.weight'",
        ),
        (lambda s: moved(s, Q, "transformer_blocks.0.attn.norm_q"), "norm_q.*matches no weight"),
        (lambda s: moved(s, Q, "text_encoder.layers.0.q_proj"), "adapts the text encoder"),
        (lambda s: moved(s, Q, "lora_te1_text_model_q_proj"), "adapts the text encoder"),
        (lambda s: moved(s, "lora_A", "lokr_w1"), "another kind of adapter"),
        (lambda s: moved(s, "lora_A.weight", "hada_w1_a"), "another kind of adapter"),
        (lambda s: s.update({f"{Q}.diff_b": torch.ones(32)}), "'transformer_blocks.0.attn.to_q.diff_b' changes more"),
        (lambda s: s.update({f"{Q}.lora_B.bias": torch.ones(32)}), "changes more"),
        (lambda s: s.update({f"{Q}.weight": torch.ones(32, 32)}), rf"'{Q}.weight' is not of a LoRA"),
        (lambda s: s.pop(f"{Q}.lora_B.weight"), rf"'{Q}.lora_A.weight' lacks its other part \(up\)"),
        (lambda s: s.pop(f"{Q}.lora_A.weight"), rf"'{Q}.lora_B.weight' lacks its other part \(down\)"),
        (lambda s: s.update({f"{Q}.lora_A.weight": torch.ones(4, 48)}), r"\(4, 48\), for .* 32 x 32 .* be \(4, 32\)"),
        (
            lambda s: s.update({f"{Q}.lora_B.weight": torch.ones(48, 4)}),
            r"lora_B.weight' is of shape \(48, 4\).*\(32, 4\)",
        ),
        (lambda s: s.update({f"{Q}.lora_B.weight": torch.ones(32, 3)}), r"rank 4 it must be \(32, 4\)"),
        (lambda s: s.update({f"{Q}.lora_A.weight": torch.ones(0, 32)}), r"\(0, 32\)"),
        (lambda s: s.update({f"{Q}.lora_A.weight": torch.full((4, 32), math.nan)}), "lora_A.weight' holds NaN"),
        (lambda s: s.update({f"{Q}.alpha": torch.tensor(math.inf)}), "alpha' holds NaN or infinity"),
        (lambda s: s.update({f"{Q}.alpha": torch.ones(2)}), r"alpha' is of shape \(2,\)"),
        (lambda s: s.update({f"{Q}.dora_scale": torch.ones(1, 32)}), r"dora_scale' is of shape \(1, 32\).*\(32,\)"),
        (lambda s: s.update({f"transformer.{Q}.lora_down.weight": torch.ones(4, 32)}), "are the same part"),
        (lambda s: s.clear(), "holds no tensor"),
    ],
)
def test_mistakes_in_files_are_named(model, base, tmp_path, change, message):
    path = tmp_path / "x.safetensors"
    save_file(broken(change), path)
    with pytest.raises(InputError, match=message) as error:
        adapters.apply(model, [AdapterFile(path)])
    assert str(error.value).startswith(f"LoRA {path}: ")
    assert torch.equal(run(model), run(base))


def test_a_mistake_in_one_file_leaves_what_was_applied(model, base, tmp_path):
    (good,) = apply_all(model, tmp_path, (tensors(base), 1.0))
    before = run(model)
    save_file(broken(lambda s: s.pop(f"{Q}.lora_B.weight")), tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match=r"bad\.safetensors"):
        adapters.apply(model, [good, AdapterFile(tmp_path / "bad.safetensors")])
    assert adapters.applied(model) == (good,)
    assert torch.equal(run(model), before)


def test_underscores_that_can_mean_two_modules_are_refused():
    modules = Modules(["a.b_c", "a_b.c", "a.b.d"])
    assert modules.find("a_b_d", "key") == "a.b.d"
    assert modules.find("a.b_c", "key") == "a.b_c"
    with pytest.raises(InputError, match=r"'key' can mean a\.b_c or a_b\.c"):
        modules.find("a_b_c", "key")


def test_dora_on_some_modules_only_is_incomplete(model, base, tmp_path):
    dora(tmp_path / "x.safetensors", base)
    state = load_file(tmp_path / "x.safetensors")
    del state[f"lora_unet_{Q.replace('.', '_')}.dora_scale"]
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"lacks its other part \(magnitude\)"):
        adapters.apply(model, [AdapterFile(tmp_path / "x.safetensors")])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"omnialpha": "{"}, "'omnialpha' in its header is not valid JSON"),
        ({"omnialpha": '{"stepz": 4}'}, "'stepz'.*did you mean 'steps'"),
        ({"omnialpha": '{"steps": 0}'}, "steps=0 is out of range"),
        ({"lora_adapter_metadata": "[]"}, r"'lora_adapter_metadata' in its header holds \[\]"),
        ({"lora_adapter_metadata": '{"transformer.r": 8}'}, "is of rank 4, its settings say 8"),
        ({"lora_adapter_metadata": '{"transformer.r": 4, "transformer.use_dora": true}'}, r"\(magnitude\)"),
        ({"lora_adapter_metadata": '{"transformer.init_lora_weights": "pissa"}'}, "'pissa', which changes the base"),
    ],
)
def test_mistakes_in_headers_are_named(model, tmp_path, header, message):
    path = tmp_path / "x.safetensors"
    save_file(broken(lambda s: None), path, header)
    with pytest.raises(InputError, match=message) as error:
        adapters.apply(model, [AdapterFile(path)])
    assert str(path) in str(error.value)


def test_mistakes_in_paths_are_named(model, base, tmp_path):
    def refuse(path, message):
        with pytest.raises(InputError, match=message):
            adapters.apply(model, [AdapterFile(path)])

    refuse(tmp_path / "none.safetensors", "does not exist")
    refuse(tmp_path, "holds none")
    (tmp_path / "x.pt").write_bytes(b"x")
    refuse(tmp_path / "x.pt", "is not a .safetensors file")
    (tmp_path / "x.safetensors").write_bytes(b"x" * 100)
    refuse(tmp_path / "x.safetensors", "damaged")
    write(tmp_path / "x.safetensors", tensors(base))
    adapters.apply(model, [AdapterFile(tmp_path)])  # the only one
    write(tmp_path / "y.safetensors", tensors(base))
    refuse(tmp_path, "holds x.safetensors, y.safetensors: name")
    write(tmp_path / lora_files.FILE, tensors(base))
    adapters.apply(model, [AdapterFile(tmp_path)])  # the one that diffusers would take


def test_mistakes_in_arguments_are_named(model, base, tmp_path):
    def refuse(call, message):
        with pytest.raises(InputError, match=message):
            call()

    refuse(lambda: AdapterFile(Path("x"), math.nan), "weight nan")
    refuse(lambda: AdapterFile(Path("x"), steps=0), "steps=0")
    refuse(lambda: AdapterFile(Path("x"), name="a.b"), "'a.b' cannot be used.*'a_b'")
    refuse(lambda: adapters.add(model, 0), "rank 0")
    refuse(lambda: adapters.add(model, 4, dropout=1.0), "dropout 1")
    refuse(lambda: adapters.add(model, 4, targets="attn"), "targets 'attn' are not known")
    refuse(lambda: adapters.add(model, 4, targets=["ff.net.2"]), "'ff.net.2' matches no module: did you mean")
    refuse(lambda: adapters.save(model, tmp_path), r"has 0 LoRAs \(none\)")
    adapters.add(model, 2)
    refuse(lambda: adapters.add(model, 2), "'default' is on the model already")
    adapters.add(model, 2, name="second")
    refuse(lambda: adapters.save(model, tmp_path), r"has 2 LoRAs \(default, second\)")
