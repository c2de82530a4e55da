"""Offloading, back ends and compilation leave pictures as they are, and can be undone."""

import copy
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from omnialpha.errors import InputError
from omnialpha.models.runtime import offload, placement
from omnialpha.models.runtime.offload import OFFLOADS, size_of
from omnialpha.models.runtime.placement import Placement, pick_device, place
from omnialpha.models.transformer import attention
from omnialpha.models.transformer.positions import Layout, batch_positions
from omnialpha.tasks import TASKS

CPU = torch.device("cpu")


def make(model, **settings):
    """A picture of two branches of guidance, raw."""
    picture = torch.rand(4, 32, 32, generator=torch.Generator().manual_seed(1))
    example = TASKS["decompose_auto"].example(composite=picture, layers=2)
    stack = model.run([example], steps=2, guidance=2.0, raw=True, **settings)[0]
    return torch.stack([layer.rgba for layer in stack])


def parts(model):
    return {"vae": model.vae, "transformer": model.transformer, "text": model.text_encoder}


@pytest.fixture
def model(tiny_model):
    model = copy.deepcopy(tiny_model)
    for parameter in model.transformer.parameters():  # nothing is at rest
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    return model


@pytest.fixture
def whole(model):
    return make(model)


def lacks(module):
    """How many of a module's parameters hold NaN."""
    return sum(bool(parameter.isnan().any()) for parameter in module.parameters())


def test_none_puts_every_part_on_the_device(model, whole):
    with place(model, Placement(device="cpu")).undo:
        assert torch.equal(make(model), whole)


@pytest.mark.parametrize("tabulated", [False, True])
def test_in_turns_one_part_at_a_time_has_weights(model, whole, monkeypatch, tabulated):
    """The device is the CPU here, so waiting is played: weights that wait are NaN, and a part that worked with them
    would say so.
    """
    kept, most = {}, []

    def move(part, device):
        if device == CPU:
            kept[part] = [parameter.clone() for parameter in part.parameters()]
            for parameter in part.parameters():
                parameter.fill_(float("nan"))
        else:
            for parameter, value in zip(part.parameters(), kept.pop(part), strict=True):
                parameter.copy_(value)
        most.append(3 - len(kept))

    if tabulated:
        model.transformer.tabulate()
    monkeypatch.setattr(offload, "move", move)
    for part in parts(model).values():
        move(part, CPU)
    assert all(lacks(part) for part in parts(model).values())
    monkeypatch.setattr(Placement, "torch_device", torch.device("meta"))  # any name but the CPU's
    placed = place(model, Placement(offload="model"))
    assert placed.device == torch.device("meta")
    most.clear()
    made = make(model)
    assert torch.allclose(made, whole, atol=1e-6) if tabulated else torch.equal(made, whole)
    assert max(most) == 1
    placed.undo.close()
    assert len(kept) == 3
    assert not {"encode", "decode"} & vars(model.vae).keys()
    assert not model.transformer._forward_pre_hooks and "precompute_modulation" not in vars(model.transformer)


@pytest.mark.parametrize("tabulated", [False, True])
def test_groups_change_nothing(model, whole, tabulated):
    if tabulated:
        model.transformer.tabulate()
    with place(model, Placement(device="cpu", offload="group")).undo:
        hooked = [block for block in model.transformer.transformer_blocks if hasattr(block, "_diffusers_hook")]
        assert len(hooked) == 2
        assert model.transformer.device == CPU
        made = make(model)
    assert torch.allclose(made, whole, atol=1e-6) if tabulated else torch.equal(made, whole)
    assert not any(m._diffusers_hook.hooks for m in model.modules() if hasattr(m, "_diffusers_hook"))


@pytest.mark.parametrize("tabulated", [False, True])
def test_disk_holds_all_weights_but_those_at_work(model, whole, monkeypatch, tmp_path, tabulated):
    if tabulated:
        model.transformer.tabulate()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    empty_like = torch.empty_like
    monkeypatch.setattr(  # what diffusers leaves in place of weights on disk: to be seen if anything works with it
        torch, "empty_like", lambda x, **k: empty_like(x, **k).fill_(float("nan") if x.is_floating_point() else 0)
    )
    placed = place(model, Placement(device="cpu", offload="disk", folder=tmp_path))
    text = model.text_encoder.model
    groups = (model.transformer.transformer_blocks, text.visual.blocks, text.visual.merger, text.language_model.layers)
    assert all(lacks(part) == len(list(part.parameters())) for part in groups)
    assert next(text.named_parameters())[0] == "visual.patch_embed.proj.weight"  # it says where the text model computes
    files = list(tmp_path.rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) >= sum(size_of(part) for part in groups)
    for _ in range(2):
        # rounding: a matrix product of weights in a file may begin at another address
        assert torch.allclose(make(model), whole, atol=1e-5)
    assert all(lacks(part) == len(list(part.parameters())) for part in groups)
    placed.undo.close()
    assert not list(tmp_path.glob("run-*"))
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert torch.allclose(make(model), whole, atol=1e-6)


def test_disk_that_is_too_small_is_refused(model, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"needs 0\.0 GB, but only 0\.0 GB are free .* make room"):
        place(model, Placement(device="cpu", offload="disk", folder=tmp_path))
    assert not hasattr(model.transformer, "_diffusers_hook")


def test_placed_anew_after_undoing(model, whole, tmp_path):
    for way in OFFLOADS:
        with place(model, Placement(device="cpu", offload=way, folder=tmp_path)).undo:
            assert torch.allclose(make(model), whole, atol=1e-5), way
    assert torch.equal(make(model), whole)


def test_dtype(model):
    with place(model, Placement(device="cpu", dtype="bfloat16")).undo:
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert bool(make(model).isfinite().all())


# ---- kernels ------------------------------------------------------------------------------------------------------


def test_attention_back_ends_are_tried(model, whole):
    there = attention.backends(CPU, torch.float32)
    assert there["native"] == there["_native_math"] == ""
    assert "CUDA" in there["_native_cudnn"] or "No viable" in there["_native_cudnn"]
    assert "xformers" in there["xformers"] and "at once" in there["flex"]
    with place(model, Placement(device="cpu", attention="_native_math")).undo:
        chosen = {block.attn.processor._attention_backend for block in model.transformer.transformer_blocks}
        assert chosen == {"_native_math"}
        assert torch.allclose(make(model), whole, atol=1e-5)
    assert model.transformer.transformer_blocks[0].attn.processor._attention_backend is None


def test_an_attention_back_end_that_is_wrong_is_no_use(monkeypatch):
    backend = attention.AttentionBackendName._NATIVE_MATH
    monkeypatch.setitem(attention._AttentionBackendRegistry._backends, backend, lambda query, key, value: value * 0)
    monkeypatch.setitem(attention._AttentionBackendRegistry._supported_arg_names, backend, {"query", "key", "value"})
    made = attention.backends.__wrapped__(CPU, torch.float32)
    assert made["_native_math"] == "gives wrong results" and made["native"] == ""


@pytest.mark.parametrize("name", ["xformers", "fastest"])
def test_an_attention_back_end_that_is_not_here_is_refused(model, name):
    with pytest.raises(InputError, match=rf"attention='{name}' cannot be used on cpu \(.*\): use one of .*native"):
        place(model, Placement(device="cpu", attention=name))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["none", "group"])
def test_blocks_are_compiled_once_for_all_sizes(model, monkeypatch, way):
    graphs, compile = [], torch.compile

    def capture(graph, inputs):
        graphs.append(graph)
        return graph.forward  # graphs are found and run, but no code is made of them

    monkeypatch.setattr(torch, "compile", lambda function, **s: compile(function, backend=capture, **s))
    torch.compiler.reset()
    cases = [(Layout(((4, 6),), ((3, 5),)), 7), (Layout(((4, 8),), ((4, 8),)), 9), (Layout(((2, 5),), ((7, 5),)), 5)]
    batches = [tokens(*case) for case in cases]
    expected = [model.transformer(*batch) for batch in batches]
    with place(model, Placement(device="cpu", compile=True, offload=way)).undo:
        made, counts = [], []
        for batch in batches:
            made.append(model.transformer(*batch))
            counts.append(len(graphs))
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(made, expected, strict=True))
    assert 1 <= counts[0] == counts[-1] and (way == "group" or counts[0] <= 3)
    assert all(block._compiled_call_impl is None for block in model.transformer.transformer_blocks)


def tokens(layout, length):
    """Arguments of the tiny transformer for one sample."""
    g = torch.Generator().manual_seed(3)
    pictures = [torch.randn(1, rows, 16, generator=g) for rows in (layout.target_tokens, layout.input_tokens)]
    positions = batch_positions([layout], [length], "paper", (4, 6, 6))
    return *pictures, torch.randn(1, length, 32, generator=g), torch.rand(1, generator=g), positions


# ---- what cannot be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"offload": "sometimes"}, "offload='sometimes' is not known: use one of none, model, group, disk"),
        ({"dtype": "float8"}, "dtype='float8' is not known: use one of float32, bfloat16, float16"),
        ({"quantize": "int2"}, "quantize='int2' is not known: use one of int8, fp8, nf4"),
        ({"quantize": "nf4", "offload": "group"}, "offload=group: use none or model"),
        ({"quantize": "int8", "offload": "disk"}, "offload=disk: use none or model or group"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(InputError, match=message):
        Placement(**settings)


def test_devices():
    assert pick_device("cpu") == "cpu" and pick_device("auto") in ("cuda", "mps", "cpu")
    for name in ("gpu", "cpu:x", "cuda:99"):
        with pytest.raises(InputError, match=name):
            pick_device(name)


def test_what_fails_leaves_nothing_behind(model, whole, monkeypatch):
    monkeypatch.setattr(placement, "_compile", partial(pytest.fail, "here"))
    with pytest.raises(TypeError):
        place(model, Placement(device="cpu", offload="model", attention="_native_math", compile=True))
    assert "encode" not in vars(model.vae) and not model.transformer._forward_pre_hooks
    assert model.transformer.transformer_blocks[0].attn.processor._attention_backend is None


KILLED = """
import os, sys
from contextlib import ExitStack
from pathlib import Path
from omnialpha.models.runtime.offload import _own_folder
undo = ExitStack()
place = _own_folder(Path(sys.argv[1]), 1000, undo)
(place / "0").mkdir()
(place / "0" / "group.safetensors").write_bytes(b"weights")
print(place, flush=True)
sys.stdin.read()
os.kill(os.getpid(), 9)
"""


def test_what_a_killed_run_left_goes_and_what_a_living_one_uses_stays(model, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        held = Path(other.stdout.readline().strip()) / "0" / "group.safetensors"
        placed = place(model, Placement(device="cpu", offload="disk", folder=tmp_path))
        assert held.is_file() and len(list(tmp_path.glob("run-*"))) == 2
        placed.undo.close()
        other.stdin.close()
        other.wait()
    assert held.is_file() and other.returncode == -9
    placed = place(model, Placement(device="cpu", offload="disk", folder=tmp_path))
    assert not held.exists() and len(list(tmp_path.glob("run-*"))) == 1
    placed.undo.close()
    assert not list(tmp_path.glob("run-*"))
