"""Rollouts: a group as one batch, encoded once, of which only what is learnt from is kept and decoded."""

import pytest
import torch

from omnialpha.tasks import TASKS, Role
from omnialpha.training.reinforcement.rollouts import RolloutSettings, roll


@pytest.fixture(scope="module")
def example():
    picture = torch.rand(4, 32, 32, generator=torch.Generator().manual_seed(0))
    picture[3] = 1
    return TASKS["decompose_rough"].example(image=picture, rough=(torch.arange(32 * 32).view(32, 32) % 32 > 12).float())


def settings(**changes):
    return RolloutSettings(**{"group": 3, "steps": 6, "window": 2} | changes)


def test_what_is_kept_does_not_grow_with_the_steps(tiny_model, example):
    short, long = (roll(tiny_model, example, settings(steps=steps), 1) for steps in (4, 9))
    assert short.before.shape == long.before.shape == (2, 3, *short.x0.shape[1:])
    released = roll(tiny_model, example, settings(window=0, keep=0.6, steps=6), 1)
    assert released.before.shape[0] == 3 == int(0.6 * 5)


def test_the_same_seed_gives_the_same_group_and_its_members_differ(tiny_model, example):
    one, again, other = (roll(tiny_model, example, settings(), seed) for seed in (1, 1, 2))
    assert torch.equal(one.x0, again.x0) and torch.equal(one.after, again.after)
    assert not torch.equal(one.x0, other.x0)
    assert len({float(x.sum()) for x in one.x0}) == 3


def test_one_noise_for_a_group_leaves_the_difference_to_the_random_steps(tiny_model, example):
    made = roll(tiny_model, example, settings(same_noise=True, steps=8), 5)
    assert torch.equal(made.before[0, 0], made.before[0, 1])
    assert not torch.equal(made.after[0, 0], made.after[0, 1])


@pytest.mark.parametrize("kind", ["flow_sde", "dance", "cps"])
def test_without_strength_it_is_the_plain_sampler(tiny_model, example, kind):
    random = roll(tiny_model, example, settings(transition=kind, strength=0.0), 3)
    plain = roll(tiny_model, example, settings(transition="ode"), 3)
    assert torch.allclose(random.x0, plain.x0, atol=1e-5)
    assert plain.before.shape[0] == 0  # nothing of it is random


def test_kept_steps_begin_and_end_where_they_say(tiny_model, example):
    made = roll(tiny_model, example, settings(window=0, keep=1.0, steps=5), 4)
    for k in range(made.steps.shape[0]):
        for g in range(3):
            step = int(made.steps[k, g])
            assert 1 <= step < 5  # never the last one
            follows = [(j, g) for j in range(made.steps.shape[0]) if int(made.steps[j, g]) == step + 1]
            assert all(torch.equal(made.after[k, g], made.before[j, g]) for j, g in follows)
            t, t_next = (time[g] for time in made.span(k))
            assert (float(t), float(t_next)) == (float(made.times[step - 1]), float(made.times[step]))


def test_the_window_lies_in_its_share_of_the_steps():
    one = settings(steps=10, window=2, within=0.5)
    firsts = {int(one.choose(torch.Generator().manual_seed(seed))[0, 0]) for seed in range(60)}
    assert firsts == {1, 2, 3, 4}  # of steps 1 to 5


def test_the_released_times(tiny_model):
    times = settings(times="released", steps=20).schedule(8, tiny_model)
    assert float(times[0]) == 1 and float(times[-1]) == 0
    assert float(times[10]) == pytest.approx(3 * 0.5 / 2)


def test_the_network_is_told_rounded_times(tiny_model, example, monkeypatch):
    seen = []
    velocity = tiny_model.velocity
    monkeypatch.setattr(tiny_model, "velocity", lambda x, t, cond: (seen.append(t), velocity(x, t, cond))[1])
    roll(tiny_model, example, settings(times="released", round_times=True), 1)
    assert all(torch.equal(t * 1000, (t * 1000).round()) for t in seen) and len(seen) == 6


def test_a_group_is_encoded_once(tiny_model, example, monkeypatch):
    calls = []
    condition = tiny_model.condition
    monkeypatch.setattr(
        tiny_model, "condition", lambda *given, **more: (calls.append(given), condition(*given, **more))[1]
    )
    made = roll(tiny_model, example, settings(group=4), 1)
    assert len(calls) == 1 and len(made.cond.examples) == 4


def test_only_what_is_asked_for_is_decoded(tiny_model, example, monkeypatch):
    made = roll(tiny_model, example, settings(), 1)
    whole = torch.stack(tiny_model.pictures(made.x0, made.cond))
    decoded, decode = [], tiny_model.vae.decode
    monkeypatch.setattr(tiny_model.vae, "decode", lambda z: (decoded.append(len(z)), decode(z))[1])
    backs = torch.stack(tiny_model.pictures(made.x0, made.cond, {Role.BACKGROUND}))
    own = example.targets.index(Role.BACKGROUND)
    assert decoded == [1, 1, 1]
    assert torch.allclose(backs[:, own], whole[:, own], atol=1e-5) and not backs[:, 1 - own].any()
