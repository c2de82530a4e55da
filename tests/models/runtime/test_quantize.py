"""Quantised weights: how close, how small, and what is said where a package is missing."""

import copy
import importlib.util
import shutil

import pytest
import torch
from torch import nn

import omnialpha
from omnialpha.errors import InputError
from omnialpha.loading import Setup, swap
from omnialpha.models.checkpoints.folders import resolve
from omnialpha.models.lora import adapters
from omnialpha.models.runtime import quantize as quantizing
from omnialpha.models.runtime.offload import size_of
from omnialpha.models.runtime.placement import Placement, place
from omnialpha.models.runtime.quantize import KINDS, linears, load_gguf, quantize, read_gguf
from omnialpha.models.transformer.model import MultiImageTransformer
from omnialpha.models.transformer.positions import Layout, batch_positions
from omnialpha.tasks import TASKS

CPU = torch.device("cpu")
AXES = (8, 12, 12)
CONFIG = {
    "num_layers": 2,
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "axes_dims_rope": AXES,
    "joint_attention_dim": 64,
    "in_channels": 16,
    "out_channels": 4,
}
LAYOUT = Layout(((4, 6),), ((3, 5),))


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


KIND = [pytest.param(name, marks=needs(kind.package)) for name, kind in KINDS.items()]


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(0)
    model = MultiImageTransformer(**CONFIG).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def velocity(model, dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    tokens = [torch.randn(1, rows, 16, generator=g).to(dtype) for rows in (LAYOUT.target_tokens, LAYOUT.input_tokens)]
    text, t = torch.randn(1, 7, 64, generator=g).to(dtype), torch.tensor([0.7])
    return model(*tokens, text, t, batch_positions([LAYOUT], [7], "released", AXES)).float()


def distance(made, wanted):
    return float((made - wanted).detach().norm() / wanted.detach().norm())


@pytest.mark.parametrize("kind", KIND)
def test_a_layer_keeps_its_output_to_the_stated_error(kind):
    torch.manual_seed(0)
    box = nn.ModuleDict({"transformer_blocks": nn.ModuleList([nn.Sequential(nn.Linear(512, 1024))])})
    x, layer = torch.randn(64, 512), box["transformer_blocks"][0]
    wanted = layer(x)
    assert quantize(box, kind, CPU, CPU) == 1
    assert 0.5 * KINDS[kind].error < distance(layer(x), wanted) < 1.3 * KINDS[kind].error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KIND)
def test_the_transformer_stays_close_and_shrinks_as_told(transformer, kind, dtype):
    model = nn.Module.to(copy.deepcopy(transformer), dtype)
    before, wanted = size_of(model), velocity(model, dtype)
    weights = sum(layer.weight.numel() for *_, layer in linears(model))
    assert weights == sum(p.numel() for b in model.transformer_blocks for p in b.parameters() if p.ndim == 2)
    assert quantize(model, kind, CPU, CPU) == 2 * 14
    # scales an output of 128 columns weigh 32 bits / 128 more than those of wide layers
    bits = KINDS[kind].bits + (0.25 if KINDS[kind].package == "torchao" else 0)
    assert before - size_of(model) == pytest.approx(weights * (8 * dtype.itemsize - bits) / 8, rel=0.01)
    assert model.dtype == dtype
    assert 0 < distance(velocity(model, dtype), wanted) < {"int8": 0.01, "fp8": 0.04, "nf4": 0.13}[kind]
    assert quantize(model, kind, CPU, CPU) == 0  # nothing is left to do


@pytest.mark.parametrize("kind", KIND)
def test_nano_quantised(kind):
    """What `KINDS` costs the bundled model in a step: its velocity, and the text before it."""
    from omnialpha.pipeline import OmniAlpha

    exact, model = OmniAlpha.from_folder(None), OmniAlpha.from_folder(None)
    example = TASKS["matting_auto"].example(composite=torch.rand(4, 96, 96, generator=torch.Generator().manual_seed(1)))
    results = []
    with torch.no_grad(), place(model, Placement(device="cpu", quantize=kind)).undo:
        for one in (exact, model):
            cond = one.condition([example])
            results.append((cond.text, one.velocity(one.noise(cond), torch.tensor([0.6]), cond)))
    text, step = (distance(b, a) for a, b in zip(*results, strict=True))
    assert 0 < text < {"int8": 0.01, "fp8": 0.02, "nf4": 0.06}[kind]
    assert 0 < step < {"int8": 0.04, "fp8": 0.12, "nf4": 0.35}[kind]
    assert size_of(model.transformer) < {"int8": 0.3, "fp8": 0.3, "nf4": 0.2}[kind] * size_of(exact.transformer)


@pytest.mark.parametrize("kind", KIND)
def test_adapters_keep_their_precision(transformer, kind):
    from peft import LoraConfig, inject_adapter_in_model

    model = copy.deepcopy(transformer)
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["to_q"], init_lora_weights=False), model)
    wanted = velocity(model)
    assert quantize(model, kind, CPU, CPU) == 28
    assert {p.dtype for name, p in model.named_parameters() if "lora_" in name} == {torch.float32}
    assert distance(velocity(model), wanted) < 0.15


@pytest.mark.parametrize(
    ("kind", "offload"),
    [
        pytest.param(name, offload, marks=needs(kind.package))
        for name, kind in KINDS.items()
        for offload in kind.offloads
        if offload != "none"
    ],
)
def test_quantised_and_offloaded(tiny_model, kind, offload):
    made = []
    for mode in ("none", offload):
        model = copy.deepcopy(tiny_model)
        example = TASKS["matting_auto"].example(composite=torch.full((4, 32, 32), 0.5))
        with place(model, Placement(device="cpu", quantize=kind, offload=mode)).undo:
            made.append(model.run([example], steps=2, raw=True)[0][0].rgba)
    assert torch.equal(*made)


def test_a_missing_package_is_named(transformer, monkeypatch, tmp_path):
    monkeypatch.setattr(quantizing.importlib.util, "find_spec", lambda name: None)
    for kind in KINDS:
        with pytest.raises(InputError, match=rf"{KINDS[kind].package} is not installed: .*omnialpha\[quant\]"):
            quantize(transformer, kind, CPU, CPU)
    with pytest.raises(InputError, match=r"gguf is not installed: .*omnialpha\[quant\]"):
        load_gguf(tmp_path / "x.gguf", tmp_path)


# ---- GGUF ---------------------------------------------------------------------------------------------------------


def write_gguf(model, file):
    """The blocks' matrices in 8 bits, the rest as it is."""
    import gguf

    writer, kind = gguf.GGUFWriter(file, "qwen_image"), gguf.GGMLQuantizationType.Q8_0
    for name, value in model.state_dict().items():
        value = value.numpy()
        if value.ndim == 2 and name.startswith("transformer_blocks."):
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@needs("gguf")
def test_gguf_runs_as_it_is_stored(transformer, tmp_path):
    transformer.save_config(tmp_path)
    write_gguf(transformer, tmp_path / "small.gguf")
    model = load_gguf(tmp_path / "small.gguf", tmp_path, torch.float32)
    assert isinstance(model, MultiImageTransformer)
    assert 0 < distance(velocity(model), velocity(transformer)) < 0.01
    weights = sum(layer.weight.numel() for *_, layer in linears(transformer))
    assert size_of(transformer) - size_of(model) == weights * (4 - 34 / 32)  # 34 bytes hold 32 of them


@needs("gguf")
def test_gguf_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"x\.gguf is no file"):
        load_gguf(tmp_path / "x.gguf", tmp_path)
    MultiImageTransformer(**CONFIG).save_config(tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(InputError, match=r"x\.gguf cannot be read as GGUF"):
        load_gguf(tmp_path / "x.gguf", tmp_path)


@pytest.fixture
def gguf_file(released_base, tmp_path):
    """The transformer of the released layout under the names of its checkpoint, in 8 bits."""
    file = tmp_path / "edit-Q8_0.gguf"
    write_gguf(omnialpha.load(released_base, dtype="float32").transformer, file)
    return file


@needs("gguf")
def test_a_model_runs_with_its_transformer_from_gguf(released_base, gguf_file, tmp_path):
    example = TASKS["matting_auto"].example(composite=torch.full((4, 32, 32), 0.5))
    exact = omnialpha.load(released_base, dtype="float32").run([example], steps=2, raw=True)[0][0].rgba
    base = tmp_path / "base"
    shutil.copytree(released_base, base)
    for path in (base / "transformer").glob("*.safetensors*"):
        path.unlink()  # 40 GB that nobody has to download
    with pytest.raises(InputError, match="transformer has neither"):
        omnialpha.load(base)
    made = {}
    for offload in ("none", "model"):
        model = omnialpha.load(base, dtype="float32", quantize=str(gguf_file), offload=offload)
        made[offload] = model.run([example], steps=2, raw=True)[0][0].rgba
    assert 0 < distance(made["none"], exact) < 0.02
    assert torch.equal(made["model"], made["none"])


@needs("gguf")
def test_a_lora_goes_on_top_of_gguf(released_base, released_omnialpha, gguf_file):
    lora = released_omnialpha / "lora"
    models = [
        omnialpha.load(released_base, dtype="float32", lora=given, quantize=quantized)
        for given in ((), lora)
        for quantized in (None, str(gguf_file))
    ]
    example = TASKS["matting_auto"].example(composite=torch.full((4, 32, 32), 0.5))
    plain, rounded, adapted, both = (model.run([example], steps=2, raw=True)[0][0].rgba for model in models)
    assert distance(adapted, plain) > 3 * distance(rounded, plain)
    assert distance(both, adapted) < 0.02
    with pytest.raises(InputError, match="is quantised"):
        adapters.fuse(models[-1].transformer)
    swap(models[-1])
    assert torch.equal(models[-1].run([example], steps=2, raw=True)[0][0].rgba, rounded)


@needs("gguf")
def test_gguf_that_does_not_fit_is_refused(released_base, gguf_file, tmp_path):
    other = tmp_path / "other.gguf"
    write_gguf(MultiImageTransformer(**CONFIG), other)
    with pytest.raises(InputError, match=r"other\.gguf (lacks|holds) "):
        omnialpha.load(released_base, quantize=str(other))
    with pytest.raises(InputError, match=r"cannot be used with offload=group: use none or model"):
        omnialpha.load(released_base, quantize=str(gguf_file), offload="group")
    with pytest.raises(InputError, match=r"quantize='gguf' is not known: .* FILE\.gguf"):
        omnialpha.load(released_base, quantize="gguf")


@needs("gguf")
def test_the_estimate_knows_the_size_of_gguf(released_base, gguf_file):
    example = TASKS["matting_auto"].example(composite=torch.full((4, 32, 32), 0.5))
    parts = resolve(released_base)
    bits = read_gguf(gguf_file)[1]
    assert 8.5 < bits < 32  # 8.5 in the blocks
    peaks = [
        Setup(parts, Placement("cpu", "float32", quantize=kind)).forecast(example, 2, True).weights_bytes
        for kind in (None, str(gguf_file))
    ]
    assert peaks[1] < peaks[0]
