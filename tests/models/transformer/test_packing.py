"""Packed rows of unequal samples: the numbers of padded ones and of samples one by one, with no padding computed."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.models.attention_dispatch import AttentionBackendName
from torch.nn import functional as F

from omnialpha.errors import InputError
from omnialpha.models.transformer import packing
from omnialpha.models.transformer.model import MultiImageTransformer, Shared
from omnialpha.models.transformer.positions import Layout, batch_positions
from small import AXES, CONFIG

KINDS = [{}, {"zero_cond_t": True}, {"condition_attention": "cached"}]
LAYOUTS = [
    Layout(((4, 6), (5, 5)), ((3, 5),)),
    Layout(((6, 2),), ((3, 5), (7, 2))),
    Layout(((4, 6),)),
    Layout(((2, 3), (3, 2), (2, 2)), ((1, 4),)),
]
LENGTHS = [7, 3, 5, 1]
TIMES = torch.tensor([0.9, 0.3, 0.6, 0.1])


def build(packs=True, **settings):
    """A model of random weights, its gates at work; the same ones for all settings."""
    torch.manual_seed(0)
    model = MultiImageTransformer(**CONFIG, **settings).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.packs = packs
    return model


def sample(layout, length, seed):
    """Random targets, inputs and text of one sample."""
    g = torch.Generator().manual_seed(seed)
    rows = ((layout.target_tokens, 16), (layout.input_tokens, 16), (length, 32))
    return [torch.randn(1, *shape, generator=g) for shape in rows]


def batch(layouts=LAYOUTS, lengths=LENGTHS, fill=0.0, seed=0):
    """Tensors whose padding is `fill`, and positions."""
    singles = [sample(layout, n, seed + i) for i, (layout, n) in enumerate(zip(layouts, lengths, strict=True))]
    tensors = []
    for parts in zip(*singles, strict=True):
        rows = max(x.shape[1] for x in parts)
        tensors.append(torch.cat([F.pad(x, (0, 0, 0, rows - x.shape[1]), value=fill) for x in parts]))
    return tensors, batch_positions(layouts, lengths, "paper", AXES)


def real(out, positions):
    return out if positions.target_mask is None else out[positions.target_mask]


def gradients(model):
    made = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return made


def close(made, wanted, tolerance):
    """Whether the largest difference is that small, relative to the largest value; of dicts: of every value."""
    if isinstance(wanted, dict):
        return made.keys() == wanted.keys() and all(close(made[name], wanted[name], tolerance) for name in wanted)
    return bool((made - wanted).abs().max() <= tolerance * wanted.abs().max())


MIXTURES = {
    "all kinds": (LAYOUTS, LENGTHS),
    "texts": ([LAYOUTS[0]] * 3, [7, 3, 5]),
    "no inputs": ([LAYOUTS[2]] * 2, [5, 2]),
}


@pytest.mark.parametrize("settings", KINDS, ids=str)
@pytest.mark.parametrize("mixture", MIXTURES)
def test_packed_equals_padded_equals_one_by_one(settings, mixture):
    layouts, lengths = MIXTURES[mixture]
    tensors, positions = batch(layouts, lengths)
    padded, outs, grads = build(packs=False, **settings), [], []
    for model in (build(**settings), padded):
        out = model(*tensors, TIMES[: len(layouts)], positions)
        assert out.shape == (len(layouts), max(layout.target_tokens for layout in layouts), 16)
        assert out.isfinite().all()
        outs.append(real(out, positions).flatten(0, -2))
        outs[-1].square().sum().backward()
        grads.append(gradients(model))
    alone = []
    for number, (layout, length) in enumerate(zip(layouts, lengths, strict=True)):
        place = batch_positions([layout], [length], "paper", AXES)
        alone.append(padded(*sample(layout, length, number), TIMES[number, None], place)[0])
    outs.append(torch.cat(alone))
    outs[-1].square().sum().backward()
    grads.append(gradients(padded))
    for out, grad in zip(outs[1:], grads[1:], strict=True):
        assert close(outs[0], out, 1e-5)
        assert close(grads[0], grad, 1e-4)


@pytest.mark.parametrize("settings", KINDS, ids=str)
@pytest.mark.parametrize("count", [1, 2])
def test_nothing_padded_is_the_path_as_before(settings, count, monkeypatch):
    monkeypatch.setattr(packing.Packing, "of", lambda *_: pytest.fail("packed"))
    tensors, positions = batch(LAYOUTS[:1] * count, [7] * count)
    outs, grads = [], []
    for model in (build(**settings), build(packs=False, **settings)):
        outs.append(model(*tensors, TIMES[:count], positions))
        outs[-1].square().sum().backward()
        grads.append(gradients(model))
    assert torch.equal(*outs)
    assert all(torch.equal(value, grads[1][name]) for name, value in grads[0].items())


def test_one_sample_whose_end_is_masked_is_the_shorter_sample():
    model, (tensors, positions) = build(), batch(LAYOUTS[:1], [7])
    masked = replace(positions, text_mask=torch.arange(7)[None] < 4)
    cut = batch_positions(LAYOUTS[:1], [4], "paper", AXES)
    with torch.no_grad():
        made = model(*tensors, TIMES[:1], masked)
        assert close(made, model(*tensors[:2], tensors[2][:, :4], TIMES[:1], cut), 1e-5)


def test_masks_need_not_end_a_row():
    model, padded, (tensors, positions) = build(), build(packs=False), batch()
    positions = replace(positions, target_mask=positions.target_mask & (torch.arange(49) % 5 != 2))
    with torch.no_grad():
        outs = [real(one(*tensors, TIMES, positions), positions) for one in (model, padded)]
    assert close(*outs, 1e-5)


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_garbage_in_padding_changes_nothing(settings):
    model, outs, grads = build(**settings), [], []
    for fill in (0.0, 1e6, float("nan")):
        tensors, positions = batch(fill=fill)
        tensors[2].requires_grad_()
        out = model(*tensors, TIMES, positions)
        assert out.isfinite().all()
        outs.append(real(out, positions))
        outs[-1].square().sum().backward()
        assert tensors[2].grad[~positions.text_mask].eq(0).all()
        assert tensors[2].grad[positions.text_mask].ne(0).any(dim=-1).all()
        grads.append(gradients(model))
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])
    assert all(torch.equal(value, other[name]) for other in grads[1:] for name, value in grads[0].items())


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_neighbours_have_no_influence(settings):
    model, first, outs = build(**settings), sample(LAYOUTS[1], 3, 77), []
    others = [LAYOUTS[2], LAYOUTS[1], LAYOUTS[0], LAYOUTS[0]]
    for seed, layouts, lengths in ((0, LAYOUTS, LENGTHS), (50, others, [2, 3, 4, 9])):
        tensors, positions = batch(layouts, lengths, seed=seed)
        for x, own in zip(tensors, first, strict=True):
            x[1, : own.shape[1]] = own[0]
        t = torch.rand(4, generator=torch.Generator().manual_seed(seed))
        t[1] = 0.4
        with torch.no_grad():
            outs.append(model(*tensors, t, positions)[1, : LAYOUTS[1].target_tokens])
    assert close(*outs, 1e-6)


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_only_real_tokens_are_computed(settings):
    model, (tensors, positions), rows = build(**settings), batch(), {"img_mlp": [], "txt_mlp": [], "attn.to_k": []}
    for block in model.transformer_blocks:
        for name, seen in rows.items():
            module = block.get_submodule(name)
            module.register_forward_hook(lambda m, args, out, seen=seen: seen.append(args[0].shape[:-1].numel()))
    with torch.no_grad():
        model(*tensors, TIMES, positions)
    targets, inputs = (sum(getattr(layout, f"{kind}_tokens") for layout in LAYOUTS) for kind in ("target", "input"))
    if "condition_attention" in settings:  # inputs and text first, then targets
        assert rows["img_mlp"] == [inputs] * 2 + [targets] * 3
        assert rows["attn.to_k"] == [inputs] * 3 + [targets] * 3
    else:  # the last block makes targets alone
        assert rows["img_mlp"] == [targets + inputs] * 2 + [targets]
        assert rows["attn.to_k"] == [targets + inputs] * 3
    assert rows["txt_mlp"] == [sum(LENGTHS)] * 2


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_one_kernel_for_all_samples_equals_one_after_another(settings, monkeypatch):
    model, (tensors, positions) = build(**settings), batch()
    expected, calls = real(model(*tensors, TIMES, positions), positions), []
    expected.square().sum().backward()
    wanted = gradients(model)

    def varlen(query, key, value, query_bounds, key_bounds, longest_query, longest_key):
        """What torch's does, plainly."""
        assert query_bounds.dtype == key_bounds.dtype == torch.int32
        assert longest_query == query_bounds.diff().max()
        assert longest_key == key_bounds.diff().max()
        assert (query_bounds[-1], key_bounds[-1], key_bounds[-1]) == (len(query), len(key), len(value))
        calls.append(query.shape)
        out = []
        for sample in range(len(TIMES)):
            q, k, v = (
                x[bounds[sample] : bounds[sample + 1]].transpose(0, 1)
                for x, bounds in ((query, query_bounds), (key, key_bounds), (value, key_bounds))
            )
            out.append((torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1) @ v).transpose(0, 1))
        return torch.cat(out)

    monkeypatch.setattr(packing, "_varlen", varlen)
    monkeypatch.setattr(packing, "_has_varlen", lambda *_: True)
    made = real(model(*tensors, TIMES, positions), positions)
    made.square().sum().backward()
    assert len(calls) == (5 if "condition_attention" in settings else 3)
    assert close(made, expected, 1e-5)
    assert close(gradients(model), wanted, 1e-4)


def test_one_kernel_is_for_the_device_alone():
    assert not packing._has_varlen(torch.zeros(1, 4, 2, 16, dtype=torch.bfloat16), None)


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_checkpointing_gives_the_same_gradients(settings):
    model, (tensors, positions) = build(**settings).train(), batch()
    real(model(*tensors, TIMES, positions), positions).square().sum().backward()
    plain = gradients(model)
    model.enable_gradient_checkpointing()
    real(model(*tensors, TIMES, positions), positions).square().sum().backward()
    again = gradients(model)
    assert plain.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in plain.items())


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_runs_with_a_table_and_shared_constants(settings):
    model, padded, (tensors, positions) = build(**settings), build(packs=False, **settings), batch()
    model.tabulate()
    shared = Shared()
    with torch.no_grad():
        for t in (TIMES, TIMES.flip(0)):
            wanted = real(padded(*tensors, t, positions), positions)
            assert close(real(model(*tensors, t, positions, shared), positions), wanted, 1e-5)
            assert close(real(model(*tensors, t, positions), positions), wanted, 1e-5)
    assert shared.inputs.shape[:2] == (1, sum(layout.input_tokens for layout in LAYOUTS))


def test_an_adapter_trains_alike():
    peft = pytest.importorskip("peft")
    grads = []
    for model in (build(), build(packs=False)):
        torch.manual_seed(1)
        model.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q", "add_k_proj", "net.2", "img_mod.1"]))
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.data += 0.1 * torch.randn_like(p)
        tensors, positions = batch()
        real(model(*tensors, TIMES, positions), positions).square().sum().backward()
        grads.append(gradients(model))
    assert len(grads[0]) > 20
    assert close(*grads, 1e-4)


def test_autocast_follows_float32():
    model, (tensors, positions) = build(), batch()
    exact = real(model(*tensors, TIMES, positions), positions)
    with torch.autocast("cpu", torch.bfloat16):
        rough = real(model(*tensors, TIMES, positions), positions)
    rough.float().square().sum().backward()
    assert rough.dtype == torch.bfloat16
    assert all(value.isfinite().all() for value in gradients(model).values())
    assert (rough - exact).square().mean().sqrt() < 0.03 * exact.square().mean().sqrt()


def test_back_ends_without_masks_serve_packed_samples():
    model, (tensors, positions) = build(), batch()
    with torch.no_grad():
        expected = real(model(*tensors, TIMES, positions), positions)
        for processor in model.attn_processors.values():
            processor._attention_backend = AttentionBackendName("_native_flash")
        assert close(real(model(*tensors, TIMES, positions), positions), expected, 1e-5)
        model.packs = False
        with pytest.raises(InputError, match="_native_flash"):
            model(*tensors, TIMES, positions)


def test_step_caches_and_shared_pictures_keep_padded_rows():
    model, (tensors, positions) = build(), batch()
    padded = copy.deepcopy(model)
    padded.packs = False
    for one in (model, padded):
        one.enable_cache(FirstBlockCacheConfig(threshold=0.3))
    with torch.no_grad(), model.cache_context("a"), padded.cache_context("a"):
        outs = [one(*tensors, TIMES, positions) for one in (model, padded)]
    assert torch.equal(*outs)
    model.disable_cache()
    lengths = tuple(x.shape[1] for x in tensors)
    assert isinstance(model._call(positions, lengths), packing.Packing)
    model.shares = object()
    assert isinstance(model._call(positions, lengths), packing.Padding)


def test_blocks_compile_without_a_graph_break():
    model, (tensors, positions) = build(zero_cond_t=True), batch()
    with torch.no_grad():
        plain = model(*tensors, TIMES, positions)
        model.compile_repeated_blocks(backend="eager", fullgraph=True)
        compiled = model(*tensors, TIMES, positions)
    torch.compiler.reset()
    assert close(compiled, plain, 1e-5)
