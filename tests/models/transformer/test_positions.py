"""MSRoPE-BiL positions: equal to the published tables, and right where those are not."""

import itertools

import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope
from hypothesis import given, settings
from hypothesis import strategies as st

from omnialpha.errors import InputError
from omnialpha.models.transformer.blocks import rotate
from omnialpha.models.transformer.positions import Layout, batch_positions, layer_ids, position_ids, rotary

AXES = (4, 6, 6)
TALL, WIDE, ODD = (10, 4), (3, 12), (5, 7)
SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))
LAYOUTS = st.builds(
    Layout,
    st.lists(SIZES, min_size=1, max_size=4).map(tuple),
    st.lists(SIZES, max_size=4).map(tuple),
)
ORDERS = st.sampled_from(["paper", "released"])


@pytest.mark.parametrize("axes", [(16, 56, 56), AXES])
@pytest.mark.parametrize(
    ("layout", "target_order"),
    [
        (Layout((TALL,)), "paper"),
        (Layout((WIDE,), (ODD,)), "paper"),
        (Layout((ODD,), (TALL, WIDE)), "released"),
        (Layout((TALL, WIDE), (ODD,)), "released"),
        (Layout(((64, 36),), ((48, 48),)), "paper"),
    ],
)
def test_tables_have_the_bits_of_the_published_ones(axes, layout, target_order):
    image_ids, text_ids = position_ids(layout, 9, target_order)
    stock = QwenEmbedRope(theta=10000, axes_dim=list(axes), scale_rope=True)
    image, text = stock([[(1, h, w) for h, w in layout.pictures]], max_txt_seq_len=9, device=torch.device("cpu"))
    for ids, expected in ((image_ids, image), (text_ids, text)):
        cos, sin = rotary(ids, axes)
        assert cos.dtype == sin.dtype == torch.float32
        assert torch.equal(cos, expected.real)
        assert torch.equal(sin, expected.imag)


def test_positions_have_no_upper_limit():
    cos, sin = rotary(torch.tensor([[9000, -9000, 123456]]), AXES)
    first = torch.tensor([9000.0, -9000.0, 123456.0])  # the first channel pair of an axis turns one radian a step
    assert torch.allclose(cos[0, [0, 2, 5]], first.cos(), atol=1e-6)
    assert torch.allclose(sin[0, [0, 2, 5]], first.sin(), atol=1e-6)


def test_rows_and_columns_are_centred_with_the_extra_one_first():
    ids, _ = position_ids(Layout(((3, 4),)), 0, "paper")
    assert ids.shape == (12, 3)
    assert ids[:, 1].unique().tolist() == [-2, -1, 0]
    assert ids[:, 2].unique().tolist() == [-2, -1, 0, 1]
    assert ids[1].tolist() == [0, -2, -1]  # row-major


@pytest.mark.parametrize(("targets", "inputs"), [(1, 0), (1, 2), (2, 1), (4, 3)])
def test_orders_of_the_targets_mirror_each_other(targets, inputs):
    paper, released = (layer_ids(targets, inputs, order) for order in ("paper", "released"))
    assert paper[:targets] == released[:targets][::-1]
    assert paper[:targets] == [targets - k for k in range(1, targets + 1)]
    assert paper[targets:] == released[targets:] == [targets + k - 1 for k in range(1, inputs + 1)]


def test_unknown_target_order_is_refused():
    with pytest.raises(InputError, match="'forward'.*paper, released"):
        layer_ids(1, 1, "forward")


@settings(max_examples=100, deadline=None)
@given(LAYOUTS, ORDERS)
def test_no_two_tokens_share_a_position_and_text_comes_after_every_layer(layout, target_order):
    image, text = position_ids(layout, 5, target_order)
    assert image.shape == (layout.target_tokens + layout.input_tokens, 3)
    assert len({tuple(row) for row in torch.cat((image, text)).tolist()}) == len(image) + len(text)
    assert text[:, 0].min() > image[:, 0].max()
    assert (text == text[:, :1]).all()
    assert text[:, 0].diff().eq(1).all()


def test_text_starts_past_the_layers_when_pictures_are_tiny():
    tiny = Layout(((2, 2),) * 3, ((2, 2),) * 4)
    assert tiny.text_start == 7  # the published rule would give 1, inside the layers
    assert Layout(((64, 64),), ((10, 80),)).text_start == 40


@settings(max_examples=20, deadline=None)
@given(LAYOUTS, ORDERS, st.integers(-20, 20))
def test_scores_only_depend_on_differences_of_layers(layout, target_order, shift):
    ids = torch.cat(position_ids(layout, 3, target_order))
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, len(ids), 1, sum(AXES), generator=generator)

    def scores(moved):
        cos, sin = (table[None, :, None] for table in rotary(moved, AXES))
        return rotate(query, cos, sin)[0, :, 0] @ rotate(key, cos, sin)[0, :, 0].T

    moved = ids + torch.tensor([shift, 0, 0])
    assert torch.allclose(scores(ids), scores(moved), atol=1e-4)
    images_only = torch.cat((moved[:-3], ids[-3:]))
    if shift:
        assert not torch.allclose(scores(ids), scores(images_only), atol=1e-4)


def test_batch_of_different_layouts_is_padded_behind_targets_and_behind_inputs():
    layouts = [Layout((TALL, WIDE), (ODD,)), Layout((ODD,), (TALL, TALL)), Layout((WIDE,))]
    lengths = [3, 8, 5]
    batch = batch_positions(layouts, lengths, "paper", AXES)
    assert batch.target_mask.sum(1).tolist() == [76, 35, 36]
    assert batch.input_mask.sum(1).tolist() == [35, 80, 0]
    assert batch.text_mask.sum(1).tolist() == lengths
    assert batch.image_cos.shape == (3, 76 + 80, 8)
    real = torch.cat((batch.target_mask, batch.input_mask), dim=1)
    for b, (layout, length) in enumerate(zip(layouts, lengths, strict=True)):
        image_ids, text_ids = position_ids(layout, length, "paper")
        assert torch.equal(batch.image_cos[b][real[b]], rotary(image_ids, AXES)[0])
        assert torch.equal(batch.image_sin[b][real[b]], rotary(image_ids, AXES)[1])
        assert torch.equal(batch.text_cos[b, :length], rotary(text_ids, AXES)[0])
        assert torch.equal(batch.text_sin[b, :length], rotary(text_ids, AXES)[1])
        assert not batch.target_mask[b].diff().int().cumsum(0).gt(1).any()  # one run of True, at the front


def test_no_masks_where_nothing_is_padded():
    batch = batch_positions([Layout((TALL,), (ODD,)), Layout(((4, 10),), ((7, 5),))], [4, 4], "paper", AXES)
    assert (batch.target_mask, batch.input_mask, batch.text_mask) == (None, None, None)
    assert not torch.equal(batch.image_cos[0], batch.image_cos[1])  # same lengths, other shapes


def test_equal_layouts_share_one_cached_table():
    first = batch_positions([Layout((TALL,), (ODD,))] * 3, [4, 4, 4], "paper", list(AXES))
    again = batch_positions([Layout((TALL,), (ODD,))], [4], "paper", AXES)
    assert first.image_cos.shape[0] == 3
    assert first.image_cos.data_ptr() == again.image_cos.data_ptr()
    assert first.text_sin.data_ptr() == again.text_sin.data_ptr()


def test_tables_cached_in_inference_mode_can_be_trained_with():
    layout = Layout(((3, 5),), ((6, 2),))  # a layout that no other test caches
    with torch.inference_mode():
        batch_positions([layout], [11], "paper", AXES)
    batch = batch_positions([layout], [11], "paper", AXES)
    x = torch.randn(1, 27, 1, 16, requires_grad=True)
    rotate(x, batch.image_cos[:, :, None], batch.image_sin[:, :, None]).sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("bad", [((), ((2, 2),)), (((0, 2),), ())])
def test_layouts_without_a_target_or_with_empty_pictures_are_programming_errors(bad):
    with pytest.raises(AssertionError):
        Layout(*bad)


def test_every_layer_count_fits_before_the_text():
    for targets, inputs, side in itertools.product(range(1, 12), range(12), (1, 2, 16)):
        image, text = position_ids(Layout(((side, side),) * targets, ((side, side),) * inputs), 1, "paper")
        assert int(text[0, 0]) >= max(targets + inputs, side // 2) > int(image[:, 0].max())
