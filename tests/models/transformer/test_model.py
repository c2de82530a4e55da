"""The multi-image transformer: equal to diffusers' where that is right, and right in batches, masks and gradients."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from diffusers import QwenImageEditPlusPipeline, QwenImageTransformer2DModel
from diffusers.models.attention_dispatch import AttentionBackendName

import small
from omnialpha.errors import InputError
from omnialpha.models.transformer.blocks import rotate
from omnialpha.models.transformer.model import MultiImageTransformer, dead_parameters, pack, unpack
from omnialpha.models.transformer.positions import Layout, batch_positions
from small import AXES

CONFIG = small.CONFIG | {"num_layers": 2}
ONE = Layout(((4, 6),), ((3, 5),))
TWO = Layout(((4, 6), (5, 5)), ((3, 5),))
MIXED = [ONE, Layout(((6, 2), (5, 5)), ((3, 5), (7, 2))), Layout(((4, 6),))]
LENGTHS = [7, 3, 5]


def build(zero_cond_t=False, seed=0):
    """A model whose gates and modulations are all at work: every parameter random."""
    torch.manual_seed(seed)
    model = MultiImageTransformer(**CONFIG, zero_cond_t=zero_cond_t).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def stock(model):
    other = QwenImageTransformer2DModel(**CONFIG, zero_cond_t=model.zero_cond_t).eval()
    other.load_state_dict(model.state_dict())
    return other


def sample(layout, length, batch=1, seed=0):
    """Random targets, inputs, text and t of `batch` samples of one layout."""
    g = torch.Generator().manual_seed(seed)
    rows = (layout.target_tokens, layout.input_tokens)
    pictures = [torch.randn(batch, n, CONFIG["in_channels"], generator=g) for n in rows]
    return *pictures, torch.randn(batch, length, 32, generator=g), torch.rand(batch, generator=g)


def padded_batch(fill, layouts=MIXED, lengths=LENGTHS):
    """The samples one by one, and all of them in one batch whose padding is `fill`."""
    singles = [sample(layout, n, seed=i) for i, (layout, n) in enumerate(zip(layouts, lengths, strict=True))]
    batch = []
    for tensors in list(zip(*singles, strict=True))[:3]:
        rows = max(x.shape[1] for x in tensors)
        full = torch.full((len(tensors), rows, tensors[0].shape[2]), fill)
        for b, x in enumerate(tensors):
            full[b, : x.shape[1]] = x[0]
        batch.append(full)
    return singles, (*batch, torch.cat([single[3] for single in singles]))


@pytest.mark.parametrize(
    ("layout", "zero_cond_t"),
    [
        (Layout(((4, 6),)), False),
        (ONE, False),
        (Layout(((4, 6),), ((3, 5), (7, 2))), False),
        (TWO, False),
        (Layout(((4, 6),)), True),
        (ONE, True),
        (Layout(((4, 6),), ((3, 5), (7, 2))), True),
    ],
)
def test_equals_diffusers(layout, zero_cond_t):
    model = build(zero_cond_t)
    targets, inputs, text, t = sample(layout, 7, batch=2)
    shapes = [[(1, h, w) for h, w in layout.pictures]] * 2
    with torch.no_grad():
        ours = model(targets, inputs, text, t, batch_positions([layout] * 2, [7, 7], "released", AXES))
        theirs = stock(model)(torch.cat((targets, inputs), 1), text, None, t, shapes).sample[:, : targets.shape[1]]
    assert ours.shape == (2, layout.target_tokens, 16)
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("target_order", ["paper", "released"])
def test_only_inputs_are_modulated_at_time_zero_with_two_targets(target_order):
    model = build(zero_cond_t=True)
    positions = batch_positions([TWO], [7], target_order, AXES)
    targets, inputs, text, t = sample(TWO, 7)
    tables = [
        torch.complex(cos[0], sin[0])
        for cos, sin in ((positions.image_cos, positions.image_sin), (positions.text_cos, positions.text_sin))
    ]

    class Tables(torch.nn.Module):
        def forward(self, *args, **kwargs):
            return tables

    reference = stock(model)
    reference.pos_embed = Tables()
    merged = [[(1, TWO.target_tokens, 1), (1, TWO.input_tokens, 1)]]  # "the first picture" is then all targets
    with torch.no_grad():
        ours = model(targets, inputs, text, t, positions)
        theirs = reference(torch.cat((targets, inputs), 1), text, None, t, merged).sample[:, : targets.shape[1]]
        theirs_unmerged = reference(
            torch.cat((targets, inputs), 1), text, None, t, [[(1, h, w) for h, w in TWO.pictures]]
        ).sample[:, : targets.shape[1]]
    assert (ours - theirs).abs().max() <= 1e-5
    assert (ours - theirs_unmerged).abs().max() > 1e-2  # the defect this class is free of


@pytest.mark.parametrize("zero_cond_t", [False, True])
@pytest.mark.parametrize("target_order", ["paper", "released"])
def test_batch_of_unequal_samples_equals_one_by_one(zero_cond_t, target_order):
    model = build(zero_cond_t)
    singles, batch = padded_batch(fill=0.0)
    with torch.no_grad():
        together = model(*batch, batch_positions(MIXED, LENGTHS, target_order, AXES))
        for b, (layout, length) in enumerate(zip(MIXED, LENGTHS, strict=True)):
            alone = model(*singles[b], batch_positions([layout], [length], target_order, AXES))
            assert (together[b, : alone.shape[1]] - alone[0]).abs().max() <= 1e-5


def test_times_of_a_batch_are_per_sample():
    model = build()
    targets, inputs, text, _ = sample(ONE, 7)
    positions = batch_positions([ONE] * 2, [7, 7], "paper", AXES)
    with torch.no_grad():
        twice = [x.expand(2, -1, -1) for x in (targets, inputs, text)]
        early, late = model(*twice, torch.tensor([0.9, 0.1]), positions)
    assert (early - late).abs().max() > 0.01


def test_padding_has_no_influence():
    model = build(zero_cond_t=True)
    positions = batch_positions(MIXED, LENGTHS, "paper", AXES)
    with torch.no_grad():
        clean, dirty = (model(*padded_batch(fill)[1], positions) for fill in (0.0, 3e4))
    assert dirty.isfinite().all()
    assert torch.equal(clean[positions.target_mask], dirty[positions.target_mask])


def test_gradients_of_padding_are_zero():
    model = build()
    positions = batch_positions(MIXED, LENGTHS, "paper", AXES)
    targets, inputs, text, t = (x.requires_grad_() for x in padded_batch(fill=1.0)[1])
    model(targets, inputs, text, t, positions)[positions.target_mask].square().sum().backward()
    masks = (positions.target_mask, positions.input_mask, positions.text_mask)
    for x, mask in zip((targets, inputs, text), masks, strict=True):
        assert x.grad[~mask].eq(0).all()
        assert x.grad[mask].ne(0).any(dim=-1).all()


def test_masks_of_the_call_win_over_those_of_the_positions():
    model = build()
    targets, inputs, text, t = sample(ONE, 7)
    positions = batch_positions([ONE], [7], "paper", AXES)
    mask = torch.arange(7)[None] < 4
    with torch.no_grad():
        masked = model(targets, inputs, text, t, replace(positions, text_mask=mask))
        cut = model(targets, inputs, text[:, :4], t, batch_positions([ONE], [4], "paper", AXES))
    assert (masked - cut).abs().max() <= 1e-5


def test_no_mask_reaches_attention_where_nothing_is_padded(monkeypatch):
    seen = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def spy(*args, attn_mask=None, **kwargs):
        seen.append(attn_mask)
        return attention(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    with torch.no_grad():
        build()(*sample(ONE, 7, batch=2), batch_positions([ONE] * 2, [7, 7], "paper", AXES))
    assert seen == [None, None]


@pytest.mark.parametrize("zero_cond_t", [False, True])
def test_all_but_the_dead_parameters_get_a_gradient(zero_cond_t):
    model = build(zero_cond_t)
    model(*sample(TWO, 7), batch_positions([TWO], [7], "paper", AXES)).square().sum().backward()
    dead = dead_parameters(model)
    assert dead == [
        f"transformer_blocks.1.{name}"
        for name in (
            "attn.add_q_proj.weight",
            "attn.add_q_proj.bias",
            "attn.to_add_out.weight",
            "attn.to_add_out.bias",
            "attn.norm_added_q.weight",
            "txt_mlp.net.0.proj.weight",
            "txt_mlp.net.0.proj.bias",
            "txt_mlp.net.2.weight",
            "txt_mlp.net.2.bias",
        )
    ]
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == dead


def test_gradients_equal_those_of_diffusers_and_those_with_checkpointing():
    model = build()
    tensors, positions = sample(TWO, 7, batch=2), batch_positions([TWO] * 2, [7, 7], "released", AXES)

    def gradients(module, out):
        out.square().mean().backward()
        return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}

    plain = gradients(model, model(*tensors, positions))
    saving = copy.deepcopy(model).train()
    saving.zero_grad()
    saving.enable_gradient_checkpointing()
    calls = []
    saving.transformer_blocks[0].register_forward_pre_hook(lambda *_: calls.append(0))
    checkpointed = gradients(saving, saving(*tensors, positions))
    assert len(calls) == 2  # once forward, once again in the backward pass

    reference, (targets, inputs, text, t) = stock(model), tensors
    shapes = [[(1, h, w) for h, w in TWO.pictures]] * 2
    out = reference(torch.cat((targets, inputs), 1), text, None, t, shapes).sample[:, : targets.shape[1]]
    theirs = gradients(reference, out)
    assert checkpointed.keys() == plain.keys()
    for name, grad in plain.items():
        assert torch.equal(grad, checkpointed[name]), name
        assert torch.allclose(grad, theirs[name], atol=1e-6, rtol=1e-4), name


def test_autocast_follows_float32_because_time_keeps_the_precision_of_the_weights():
    model, tensors = build(), sample(ONE, 7, batch=2)
    positions = batch_positions([ONE] * 2, [7, 5], "paper", AXES)
    with torch.no_grad():
        exact = model(*tensors, positions)
        expected = model._times(tensors[3], exact)[2]
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(*tensors, positions)
            time = model._times(tensors[3], rough)[2]
    assert rough.dtype == torch.bfloat16
    assert (time - expected).abs().max() < 0.02 * expected.abs().max()
    assert (rough - exact).square().mean().sqrt() < 0.03 * exact.square().mean().sqrt()


def test_bfloat16_weights_give_what_diffusers_gives():
    model = build().bfloat16()
    targets, inputs, text, t = (x.bfloat16() for x in sample(ONE, 7, batch=2))
    with torch.no_grad():
        ours = model(targets, inputs, text, t, batch_positions([ONE] * 2, [7, 7], "paper", AXES))
        theirs = stock(model).bfloat16()(torch.cat((targets, inputs), 1), text, None, t, [[(1, 4, 6), (1, 3, 5)]] * 2)
    theirs = theirs.sample[:, : targets.shape[1]]
    assert (ours - theirs).float().square().mean().sqrt() < 0.01 * theirs.float().square().mean().sqrt()


def test_rotation_has_the_same_bits_when_compiled(monkeypatch):
    x, angle = torch.randn(2, 9, 3, 16), torch.randn(2, 9, 1, 8)
    eager = rotate(x, angle.cos(), angle.sin())
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(rotate(x, angle.cos(), angle.sin()), eager)


def test_blocks_compile_without_a_graph_break():
    model, tensors = build(zero_cond_t=True), padded_batch(fill=0.0)[1]
    positions = batch_positions(MIXED, LENGTHS, "paper", AXES)
    with torch.no_grad():
        plain = model(*tensors, positions)
        model.compile_repeated_blocks(backend="eager", fullgraph=True)
        compiled = model(*tensors, positions)
    torch.compiler.reset()
    assert (plain - compiled).abs().max() <= 1e-5


def test_saves_and_loads_and_opens_in_diffusers(tmp_path):
    model = build(zero_cond_t=True)
    model.save_pretrained(tmp_path)
    for cls in (MultiImageTransformer, QwenImageTransformer2DModel):
        loaded = cls.from_pretrained(tmp_path)
        assert loaded.config.num_layers == 2
        assert loaded.config.zero_cond_t is True
        state, expected = loaded.state_dict(), model.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], value) for name, value in expected.items())
    stock(model).save_pretrained(tmp_path / "stock")
    again = MultiImageTransformer.from_pretrained(tmp_path / "stock")
    tensors, positions = sample(TWO, 7), batch_positions([TWO], [7], "paper", AXES)
    with torch.no_grad():
        assert (again(*tensors, positions) - model(*tensors, positions)).abs().max() <= 1e-5


def test_lora_on_attention_trains_and_can_be_switched_off(tmp_path):
    peft = pytest.importorskip("peft")
    model = build()
    tensors, positions = sample(TWO, 7), batch_positions([TWO], [7], "paper", AXES)
    with torch.no_grad():
        base = model(*tensors, positions)
    attention = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    model.add_adapter(peft.LoraConfig(r=4, target_modules=attention))
    with torch.no_grad():
        assert torch.equal(model(*tensors, positions), base)  # an untrained adapter changes nothing
    trained = dict(model.named_parameters())
    trained = {name: p for name, p in trained.items() if p.requires_grad}
    assert len(trained) == 2 * 2 * len(attention)
    model(*tensors, positions).square().sum().backward()
    dead = set(dead_parameters(model))
    assert {name for name, p in trained.items() if p.grad is None} == dead & trained.keys()
    assert len(dead & trained.keys()) == 4  # A and B of add_q_proj and of to_add_out
    for name, p in trained.items():
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name)))
    with torch.no_grad():
        adapted = model(*tensors, positions)
        model.save_lora_adapter(tmp_path)
        fresh = build()
        fresh.load_lora_adapter(tmp_path, prefix=None, weight_name="pytorch_lora_weights.safetensors")
        assert (adapted - base).abs().max() > 0.01
        assert (fresh(*tensors, positions) - adapted).abs().max() <= 1e-6
        model.disable_adapters()
        assert torch.equal(model(*tensors, positions), base)


@pytest.mark.parametrize("name", ["flash_varlen", "flash_hub", "sage_varlen"])
def test_back_ends_that_only_cut_the_end_refuse_padded_pictures(name):
    model = build()
    for processor in model.attn_processors.values():
        processor._attention_backend = AttentionBackendName(name)
    with pytest.raises(InputError, match=name):
        model(*padded_batch(fill=0.0)[1], batch_positions(MIXED, LENGTHS, "paper", AXES))


@pytest.mark.parametrize("name", ["_native_math", "native"])
def test_attention_back_end_can_be_chosen(name):
    model, tensors = build(), padded_batch(fill=0.0)[1]
    positions = batch_positions(MIXED, LENGTHS, "paper", AXES)
    with torch.no_grad():
        default = model(*tensors, positions)
        try:
            model.set_attention_backend(name)
            chosen = model(*tensors, positions)
        finally:
            model.reset_attention_backend()
    assert (default - chosen).abs().max() <= 1e-5


@pytest.mark.parametrize("option", ["use_additional_t_cond", "use_layer3d_rope"])
def test_configurations_of_other_models_are_refused(option):
    with pytest.raises(InputError, match=option):
        MultiImageTransformer(**CONFIG, **{option: True})


def test_positions_of_other_sizes_are_a_programming_error():
    with pytest.raises(AssertionError, match="46 tokens for 71 tokens"):
        build()(*sample(TWO, 7), batch_positions([ONE], [7], "paper", AXES))


@pytest.mark.parametrize(("channels", "height", "width"), [(16, 8, 12), (3, 2, 2), (1, 6, 10)])
def test_packing_is_the_published_one_and_invertible(channels, height, width):
    latents = torch.randn(2, channels, height, width)
    tokens = pack(latents)
    pipeline = QwenImageEditPlusPipeline
    assert torch.equal(tokens, pipeline._pack_latents(latents, 2, channels, height, width))
    assert torch.equal(unpack(tokens, height, width), pipeline._unpack_latents(tokens, height, width, 1)[:, :, 0])
    assert torch.equal(unpack(tokens, height, width), latents)
    assert torch.equal(unpack(pack(latents, patch=1), height, width, patch=1), latents)


def test_packing_refuses_sizes_that_do_not_divide():
    with pytest.raises(AssertionError, match="5 x 4"):
        pack(torch.zeros(1, 1, 5, 4))
    with pytest.raises(AssertionError, match="8 x 4"):
        unpack(torch.zeros(1, math.prod((2, 3)), 4), 8, 4)
