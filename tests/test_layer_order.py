"""Models that are shown foregrounds first: pictures go in and come out back to front all the same."""

import copy
from dataclasses import replace
from functools import partial
from types import MethodType

import pytest
import torch

from omnialpha.canvas import Grid
from omnialpha.models.checkpoints.folders import Card
from omnialpha.pipeline import OmniAlpha
from omnialpha.sampling import sample, schedule
from omnialpha.tasks import TASKS, Role
from omnialpha.training.sft import flow_losses

SIZE, FIRST = (32, 32), "foregrounds_first"
BG, FG, FULL = Role.BACKGROUND, Role.FOREGROUND, Role.FULL
LAYERS = (2, 3, None)  # of two decompositions, and a matte: one batch, padded


def places(cond):
    """For each example, where the tokens of (foregrounds..., background) lie in those of (background, foregrounds...);
    what pads stays.
    """
    rows = []
    for example, layout in zip(cond.examples, cond.layouts, strict=True):
        tokens = torch.arange(layout.target_tokens).split([h * w for h, w in layout.targets])
        if example.task == "decompose_auto":
            tokens = (*tokens[1:], tokens[0])
        rows.append(torch.cat([*tokens, torch.arange(layout.target_tokens, cond.target_tokens)]))
    return torch.stack(rows)


def taken(x, rows):
    return x.gather(1, rows[..., None].expand_as(x))


@pytest.fixture(scope="module")
def model(tiny_model):
    """Back to front, with weights loud enough that every place counts."""
    loud = copy.deepcopy(tiny_model)
    torch.manual_seed(1)
    for parameter in loud.transformer.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    return loud


@pytest.fixture(scope="module")
def examples():
    picture = torch.rand(4, *SIZE, generator=torch.Generator().manual_seed(0))
    names = ["matting_auto" if layers is None else "decompose_auto" for layers in LAYERS]
    return [TASKS[name].example(image=picture, layers=n) for name, n in zip(names, LAYERS, strict=True)]


@pytest.fixture(scope="module")
def targets():
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(n or 1, 4, *SIZE, generator=generator) for n in LAYERS]


@pytest.fixture(scope="module")
def first(model, examples):
    """The same network with its places relabelled: foregrounds first. It hears (and says) what the other one does."""
    rows = places(model.condition(examples))
    back = rows.argsort(dim=1)
    transformer, forward = copy.copy(model.transformer), model.transformer.forward

    def relabelled(self, x_t, *rest, **extra):
        return taken(forward(taken(x_t, back), *rest, **extra), rows)

    transformer.forward = MethodType(relabelled, transformer)
    return OmniAlpha(model.vae, transformer, model.text_encoder, replace(model.card, layer_order=FIRST)).eval()


def test_which_target_stands_where() -> None:
    card = Card("tiny", "none", Grid(multiple=16, picture_pixels=1024, sample_pixels=1024))
    other = replace(card, layer_order=FIRST)
    for roles, wanted in (((BG, FG), [1, 0]), ((BG, FG, FG, FG), [1, 2, 3, 0]), ((FG, FG), [0, 1]), ((FULL,), [0])):
        assert card.order(roles) == list(range(len(roles)))
        assert other.order(roles) == wanted
    assert other.order((BG,)) == [0]


def test_targets_are_permuted_and_come_back(model, first, examples, targets):
    cond, other = model.condition(examples), first.condition(examples)
    x0, moved = model.encode_targets(targets, cond), first.encode_targets(targets, other)
    assert (x0 - moved).abs().max() > 0.1
    torch.testing.assert_close(moved, taken(x0, places(cond)), rtol=0, atol=1e-5)
    for a, b in zip(model.pictures(x0, cond), first.pictures(moved, other), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_stacks_of_both_orders_are_back_to_front(model, first, examples):
    """From the same noise of the same layers, the relabelled model makes the same stacks."""
    cond, other = model.condition(examples), first.condition(examples)
    noise, times = model.noise(cond, 3), schedule(3, cond.target_tokens, model.card.shift)
    stacks = []
    for one, told, start in ((model, cond, noise), (first, other, taken(noise, places(cond)))):
        *_, last = sample(partial(one.velocity, cond=told), start, times)
        stacks.append(one.decode(last.x, told, raw=True))
    for a, b, example in zip(*stacks, examples, strict=True):
        assert [layer.role for layer in a] == [layer.role for layer in b] == [str(role) for role in example.targets]
        for one, same in zip(a, b, strict=True):
            torch.testing.assert_close(one.rgba, same.rgba, rtol=0, atol=1e-4)
    layers = [layer.rgba for layer in stacks[0][1]]
    assert all((x - y).abs().max() > 0.05 for x, y in zip(layers, layers[1:] + layers[:1], strict=True)), "they differ"


def test_the_loss_is_that_of_the_relabelled_model(model, first, examples, targets):
    """A model of either order learns the same: loss for loss, and not so if the targets were left in place."""
    cond, other = model.condition(examples), first.condition(examples)
    x0, moved, t = model.encode_targets(targets, cond), first.encode_targets(targets, other), torch.tensor([0.3] * 3)
    noise = model.noise(cond, 5)
    shuffled = taken(noise, places(cond))

    def losses(one, told, clean, start):
        velocity = one.velocity(torch.lerp(clean, start, t.view(-1, 1, 1)), t, told)
        return flow_losses(velocity, start - clean, torch.ones(3), told.positions.target_mask)

    own = losses(model, cond, x0, noise)
    torch.testing.assert_close(losses(first, other, moved, shuffled), own, rtol=1e-4, atol=1e-4)
    left = losses(first, other, x0, shuffled)
    assert (left - own)[:2].abs().min() > 1e-2 and (left - own)[2].abs() < 1e-4
