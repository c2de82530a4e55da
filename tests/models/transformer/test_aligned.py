"""The aligned start: before any training, the answer is the input picture."""

import pytest
import torch

from omnialpha.models.checkpoints.folders import BUNDLED
from omnialpha.models.transformer.aligned import align, coarse_to_fine
from omnialpha.models.transformer.model import MultiImageTransformer
from omnialpha.models.transformer.positions import Layout, batch_positions
from omnialpha.training.sft import initialize


def aligned(seed=0, **changes):
    torch.manual_seed(seed)
    config = MultiImageTransformer.load_config(BUNDLED["nano"] / "transformer")
    model = MultiImageTransformer.from_config({**config, "num_layers": 2, **changes})
    initialize(model)
    align(model)
    return model


@torch.no_grad()
def answers(model, layouts, words, time=0.7):
    """[(answer of each target (m, L, C), inputs (n, L, C))] of samples with noise as targets."""
    channels, tokens = model.config.in_channels, [layout.target_tokens for layout in layouts]
    targets, inputs = (
        torch.randn(len(layouts), max(counts), channels) for counts in (tokens, [one.input_tokens for one in layouts])
    )
    text = torch.randn(len(layouts), max(words), model.config.joint_attention_dim)
    positions = batch_positions(layouts, words, "paper", model.config.axes_dims_rope)
    made = model(targets, inputs, text, torch.full((len(layouts),), time), positions)
    return [
        (
            row[: layout.target_tokens].unflatten(0, (len(layout.targets), -1)),
            given[: layout.input_tokens].unflatten(0, (len(layout.inputs), -1)),
        )
        for row, given, layout in zip(made, inputs, layouts, strict=True)
    ]


def error(made, wanted):
    """Root of the mean squared error, relative to the picture."""
    return float((made - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


@pytest.mark.parametrize("size", [(6, 6), (5, 7), (4, 9)])
@pytest.mark.parametrize("inputs", [1, 2, 3])
@pytest.mark.parametrize("targets", [1, 2, 3])
def test_the_answer_of_the_nearest_target_is_its_input(targets, inputs, size):
    """One of its 128 directions is left out, and layer norm makes all tokens as large as their mean is."""
    layout = Layout((size,) * targets, (size,) * inputs)
    ((made, given),) = answers(aligned(), [layout], [12])
    assert error(made[0], given[0]) < 0.2


def test_so_it_is_in_a_batch_of_unequal_samples():
    layouts = [Layout(((6, 6),), ((6, 6),)), Layout(((5, 7),) * 2, ((5, 7),) * 2)]
    for made, given in answers(aligned(), layouts, [3, 20]):
        assert error(made[0], given[0]) < 0.2


def test_inputs_that_do_not_see_targets_are_answered_too():
    ((made, given),) = answers(aligned(condition_attention="cached"), [Layout(((6, 6),), ((6, 6),) * 2)], [9])
    assert error(made[0], given[0]) < 0.2


def test_a_narrow_transformer_answers_what_is_coarse():
    model = aligned(num_attention_heads=6)  # 192 wide: 63 channels are free
    ((made, given),) = answers(model, [Layout(((6, 6),), ((6, 6),))], [9])
    coarse = coarse_to_fine(128, 2)[:63]
    assert error(made[0] @ coarse.T, given[0] @ coarse.T) < 0.2
    assert error(made[0], made[0] @ coarse.T @ coarse) < 1e-5, "and nothing else"


def test_a_token_may_be_one_latent():
    model = aligned(patch_size=1, in_channels=32, out_channels=32)
    ((made, given),) = answers(model, [Layout(((6, 6),), ((6, 6),))], [9])
    assert made.shape[-1] == 32 and error(made[0], given[0]) < 0.2
    assert torch.equal(coarse_to_fine(32, 1), torch.eye(32))


def test_one_without_room_starts_as_before():
    model = aligned(num_attention_heads=3)
    assert not model.proj_out.weight.any() and bool((model.transformer_blocks[0].attn.norm_q.weight == 1).all())


def test_everything_that_is_alive_can_learn():
    model = aligned()
    layout = Layout(((6, 6),) * 2, ((6, 6),))
    positions = batch_positions([layout], [5], "paper", model.config.axes_dims_rope)
    shapes = (72, 128), (36, 128), (5, 192)
    out = model(*(torch.randn(1, *shape) for shape in shapes), torch.tensor([0.5]), positions)
    out.square().mean().backward()
    attn = model.transformer_blocks[0].attn
    assert all(layer.weight.grad.abs().max() > 0 for layer in (attn.to_v, attn.to_out[0], model.proj_out, model.img_in))
