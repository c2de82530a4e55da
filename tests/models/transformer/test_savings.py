"""What the transformer saves must not change what it says; what only comes near must say how near."""

import copy

import pytest
import torch
from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig
from torch.nn import functional as F

from omnialpha.errors import InputError
from omnialpha.models.transformer.model import MultiImageTransformer, Shared
from omnialpha.models.transformer.positions import Layout, batch_positions
from small import AXES, CONFIG

LAYOUTS = [Layout(((4, 6), (5, 5)), ((3, 5),)), Layout(((6, 2),), ((3, 5), (7, 2))), Layout(((4, 6),))]
LENGTHS = [7, 3, 5]
TIMES = (1.0, 0.7, 0.2)


def build(**settings):
    torch.manual_seed(0)
    model = MultiImageTransformer(**CONFIG, **settings).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def batch(layouts=LAYOUTS, lengths=LENGTHS, seed=0):
    """Targets, inputs, text and positions of a batch whose samples differ in every length."""
    g = torch.Generator().manual_seed(seed)
    rows = [max(layout.target_tokens for layout in layouts), max(layout.input_tokens for layout in layouts)]
    pictures = [torch.randn(len(layouts), n, CONFIG["in_channels"], generator=g) for n in rows]
    text = torch.randn(len(layouts), max(lengths), 32, generator=g)
    return (*pictures, text), batch_positions(layouts, lengths, "paper", AXES)


@torch.no_grad()
def run(model, tensors, positions, shared=None, times=TIMES):
    """Outputs at several times of a run, on the rows that count."""
    mask = positions.target_mask
    out = [model(*tensors, torch.full((len(tensors[0]),), t), positions, shared=shared) for t in times]
    return torch.stack([x if mask is None else x[mask] for x in out])


KINDS = [{}, {"zero_cond_t": True}, {"condition_attention": "cached"}]


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_constants_of_a_run_are_computed_once(settings):
    model, (tensors, positions) = build(**settings), batch()
    shared, calls = Shared(), []
    model.txt_in.register_forward_hook(lambda *args: calls.append(1))
    expected = run(model, tensors, positions)
    assert torch.equal(run(model, tensors, positions, shared), expected)
    assert len(calls) == len(TIMES) + 1
    assert torch.equal(run(model, (tensors[0], tensors[1] * 0, tensors[2] * 0), positions, shared), expected)


def test_constants_are_not_kept_where_gradients_are_wanted():
    model, (tensors, positions) = build().requires_grad_(True), batch()
    shared = Shared()
    model(*tensors, torch.full((3,), 0.5), positions, shared=shared).sum().backward()
    assert shared == Shared()
    assert model.txt_in.weight.grad.abs().max() > 0


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_modulation_from_a_table(settings):
    model, (tensors, positions) = build(**settings), batch()
    expected, keys = run(model, tensors, positions), set(model.state_dict())
    names = {key for key in keys if "_mod." in key}
    model.tabulate()
    assert set(model.state_dict()) == keys - names
    made = run(model, tensors, positions)
    assert (made - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert len(model.table.index) == len(TIMES) + bool(model.sees_zero)
    assert torch.equal(run(model, tensors, positions), made)
    mixed = torch.tensor([0.9, 0.7, 0.2])  # a time of each sample's own, one of them new
    with torch.no_grad():
        from_table = model(*tensors, mixed, positions)
    model.tabulate(False)
    assert set(model.state_dict()) == keys
    assert (model(*tensors, mixed, positions) - from_table).abs().max() <= 1e-5 * expected.abs().max()
    assert torch.equal(run(model, tensors, positions), expected)


def test_a_table_is_dropped_with_the_weights_it_came_from():
    model, (tensors, positions) = build(), batch()
    model.tabulate()
    before = run(model, tensors, positions)
    model.table.modules[1][0][1].weight += 0.1
    assert torch.equal(run(model, tensors, positions), before)
    model.forget_tables()
    assert (run(model, tensors, positions) - before).abs().max() > 0.01


def test_training_refuses_a_table():
    model, (tensors, positions) = build().requires_grad_(True), batch()
    model.tabulate()
    with pytest.raises(AssertionError, match="tabulate"):
        model(*tensors, torch.full((3,), 0.5), positions)


def masked(model, tensors, positions, t):
    """Inputs that do not see targets, the long way: one pass over everything under a mask; batch of one layout."""
    rows = [part.shape[1] for part in tensors]
    image = model.img_in(torch.cat(tensors[:2], dim=1))
    text = model.txt_in(model.txt_norm(tensors[2]))
    time, zero = (model.time_text_embed(x, image) for x in (t, torch.zeros(1)))
    cos = torch.cat((positions.image_cos, positions.text_cos), dim=1)[:, :, None]
    sin = torch.cat((positions.image_sin, positions.text_sin), dim=1)[:, :, None]
    sees = torch.ones(sum(rows), sum(rows), dtype=torch.bool)
    sees[rows[0] :, : rows[0]] = False

    def turn(x):
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)

    for block in model.transformer_blocks:
        attn = block.attn
        image_params = torch.cat(
            (
                block.img_mod(time)[:, None].expand(-1, rows[0], -1),
                block.img_mod(zero)[:, None].expand(len(t), rows[1], -1),
            ),
            dim=1,
        ).chunk(6, dim=-1)
        text_params = block.txt_mod(zero)[:, None].chunk(6, dim=-1)
        a, b = block.img_norm1(image), block.txt_norm1(text)
        a, b = a * (1 + image_params[1]) + image_params[0], b * (1 + text_params[1]) + text_params[0]
        q, k, v = (
            torch.cat((one(a).unflatten(-1, (2, 16)), two(b).unflatten(-1, (2, 16))), dim=1)
            for one, two in (
                (attn.to_q, attn.add_q_proj),
                (attn.to_k, attn.add_k_proj),
                (attn.to_v, attn.add_v_proj),
            )
        )
        split = rows[0] + rows[1]
        q = torch.cat((attn.norm_q(q[:, :split]), attn.norm_added_q(q[:, split:])), dim=1)
        k = torch.cat((attn.norm_k(k[:, :split]), attn.norm_added_k(k[:, split:])), dim=1)
        q, k, v = (x.transpose(1, 2) for x in (turn(q), turn(k), v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=sees).transpose(1, 2).flatten(2)
        image = image + image_params[2] * attn.to_out[0](out[:, :split])
        text = text + text_params[2] * attn.to_add_out(out[:, split:])
        image = image + image_params[5] * block.img_mlp(
            block.img_norm2(image) * (1 + image_params[4]) + image_params[3]
        )
        text = text + text_params[5] * block.txt_mlp(block.txt_norm2(text) * (1 + text_params[4]) + text_params[3])
    return model.proj_out(model.norm_out(image[:, : rows[0]], time))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_inputs_that_do_not_see_targets_equal_the_masked_run(layout):
    model, (tensors, positions) = build(condition_attention="cached"), batch([layout] * 2, [7, 7])
    shared = Shared()
    for t in (torch.tensor([0.9, 0.3]), torch.tensor([0.1, 0.8])):
        expected = masked(model, tensors, positions, t)
        with torch.no_grad():
            made = model(*tensors, t, positions, shared=shared)
        assert (made - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_inputs_that_do_not_see_targets_are_computed_once():
    model, (tensors, positions) = build(condition_attention="cached"), batch()
    shared, calls = Shared(), []
    model.transformer_blocks[0].attn.add_k_proj.register_forward_hook(lambda *args: calls.append(1))
    run(model, tensors, positions, shared)
    assert len(calls) == 1
    joint = MultiImageTransformer(**CONFIG).eval()
    joint.load_state_dict(model.state_dict())
    assert (run(joint, tensors, positions) - run(model, tensors, positions)).abs().max() > 0.01


def test_inputs_that_do_not_see_targets_train_alike_in_batches_and_alone():
    model = build(condition_attention="cached").requires_grad_(True)
    (tensors, positions), t = batch(), torch.tensor([0.9, 0.3, 0.6])

    def gradients():
        made = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return made

    model(*tensors, t, positions)[positions.target_mask].square().sum().backward()
    together = gradients()
    for b, (layout, length) in enumerate(zip(LAYOUTS, LENGTHS, strict=True)):
        alone = (layout.target_tokens, layout.input_tokens, length)
        parts = [x[b : b + 1, :n] for x, n in zip(tensors, alone, strict=True)]
        model(*parts, t[b : b + 1], batch_positions([layout], [length], "paper", AXES)).square().sum().backward()
    summed = gradients()
    model.enable_gradient_checkpointing()
    model(*tensors, t, positions)[positions.target_mask].square().sum().backward()
    checkpointed = gradients()
    assert together.keys() == summed.keys() == checkpointed.keys()
    for name, grad in together.items():
        assert torch.allclose(grad, summed[name], rtol=1e-3, atol=1e-4 * float(grad.abs().max()) + 1e-6), name
        assert torch.equal(grad, checkpointed[name]), name


def test_unknown_condition_attention_is_refused():
    with pytest.raises(InputError, match="'sideways'"):
        MultiImageTransformer(**CONFIG, condition_attention="sideways")


CACHES = {
    "first-block": FirstBlockCacheConfig(threshold=0.3),
    "taylor": TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=2, taylor_factors_dtype=torch.float32),
}


@pytest.mark.parametrize("name", CACHES)
def test_step_caches_of_diffusers_skip_blocks_and_stay_near(name):
    model, (tensors, positions) = build(), batch()
    times = [1 - i / 1000 for i in range(10)]
    exact, calls = run(model, tensors, positions, times=times), []
    model.transformer_blocks[1].attn.to_q.register_forward_hook(lambda *args: calls.append(1))
    model.enable_cache(copy.deepcopy(CACHES[name]))
    with model.cache_context("conditional"):
        near = run(model, tensors, positions, times=times)
    assert len(calls) < len(times)
    assert 0 < float((near - exact).norm() / exact.norm()) < 0.3
    model.disable_cache()
    assert torch.equal(run(model, tensors, positions, times=times), exact)
