"""Schedules equal diffusers', the integrator equals closed forms, and everybody shares one lazy generator."""

import math
from itertools import islice

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from omnialpha.errors import InputError
from omnialpha.sampling import FULL_INTERVAL, Shift, apply_guidance, check_settings, euler_step, sample, schedule

QWEN_IMAGE = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
    "use_dynamic_shifting": True,
}
EVEN = Shift(fixed=0.0, terminal=0.0)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- the schedule ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [16, 256, 1024, 4096, 8192, 12288])
@pytest.mark.parametrize("steps", [2, 3, 8, 20, 50])
def test_schedule_equals_diffusers(steps, tokens):
    scheduler = FlowMatchEulerDiscreteScheduler(**QWEN_IMAGE)
    mu = 0.5 + (tokens - 256) * (0.9 - 0.5) / (8192 - 256)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    ours = schedule(steps, tokens, Shift())
    assert ours.shape == (steps + 1,) and ours.dtype == torch.float32
    assert (ours - scheduler.sigmas).abs().max() <= 1e-6
    assert ours[0] == 1 and ours[-1] == 0 and ours[-2] == pytest.approx(0.02, abs=1e-6)


def test_mu_is_linear_between_its_ends():
    assert Shift().mu(256) == 0.5 and Shift().mu(8192) == pytest.approx(0.9) and Shift().mu(4224) == pytest.approx(0.7)
    assert Shift(fixed=1.25).mu(256) == Shift(fixed=1.25).mu(8192) == 1.25


def test_without_a_shift_times_are_even():
    assert torch.allclose(schedule(8, 999, EVEN), torch.linspace(1, 0, 9), atol=1e-7)


def test_a_shift_by_log_3_is_the_rational_map():
    """exp(mu) = 3 moves t to 3 t / (1 + 2 t)."""
    t = torch.linspace(1, 0, 11)
    assert torch.allclose(schedule(10, 1, Shift(fixed=math.log(3), terminal=0)), 3 * t / (1 + 2 * t), atol=1e-6)


@pytest.mark.parametrize("shift", [Shift(), EVEN, Shift(fixed=2.0, terminal=0.1)])
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_times_fall_from_one_to_zero(steps, shift):
    times = schedule(steps, 300, shift)
    assert times[0] == 1 and times[-1] == 0 and (times.diff() < 0).all() and times.isfinite().all()


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_steps_out_of_range(steps):
    with pytest.raises(InputError, match=f"steps={steps} .*1 to 1000"):
        schedule(steps, 256, Shift())


# ---- the integrator -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_a_constant_velocity_is_integrated_exactly(steps):
    noise, speed = normal(2, 5, 3), normal(2, 5, 3, seed=1)
    made = list(sample(lambda x, t: speed, noise, schedule(steps, 256, Shift())))
    assert len(made) == steps
    for step in made:
        assert (step.x - (noise - (1 - step.t) * speed)).abs().max() < 1e-6
        assert (step.x0 - (noise - speed)).abs().max() < 1e-6
    assert made[-1].t == 0 and torch.equal(made[-1].x, made[-1].x0)


def test_the_flow_to_one_point_is_exact_at_every_step():
    """v = (x - x0) / t is linear in x, and its Euler steps stay on the straight line."""
    noise, goal = normal(3, 4, 6), normal(3, 4, 6, seed=1)
    for step in sample(lambda x, t: (x - goal) / t.view(-1, 1, 1), noise, schedule(6, 256, Shift())):
        assert (step.x - torch.lerp(goal, noise, step.t)).abs().max() < 2e-6
        assert (step.x0 - goal).abs().max() < 5e-6


def test_a_linear_velocity_gives_eulers_product():
    noise, times = normal(1, 4, 2).double(), schedule(7, 256, Shift())
    x = [step.x for step in sample(lambda x, t: 0.8 * x, noise, times)]
    factors = torch.cumprod(1 + 0.8 * times.double().diff(), 0)
    for made, factor in zip(x, factors, strict=True):
        assert (made - noise * factor).abs().max() < 1e-6
    assert abs(factors[-1] - math.exp(-0.8)) > 0.01, "Euler's product, not the exact solution"


def test_steps_tell_where_they_are():
    times, noise, seen = schedule(4, 256, Shift()), normal(2, 3, 2), []

    def velocity(x, t):
        seen.append((x, t))
        return torch.sin(3 * x) + t.view(-1, 1, 1)

    made = list(sample(velocity, noise, times))
    assert [(s.index, s.total, s.t) for s in made] == [(i, 4, float(times[i])) for i in range(1, 5)]
    assert torch.equal(seen[0][0], noise)
    for i, (x, t) in enumerate(seen):
        assert t.shape == (2,) and (t == times[i]).all()
        v = torch.sin(3 * x) + times[i]
        assert (made[i].x0 - (x - times[i] * v)).abs().max() < 1e-6
        assert (made[i].x - euler_step(x, v, float(times[i]), float(times[i + 1]))).abs().max() < 1e-6
    assert all(torch.equal(made[i].x, seen[i + 1][0]) for i in range(3))


def test_samples_may_have_schedules_of_their_own():
    noise = normal(3, 5, 2)
    times = torch.stack([schedule(5, tokens, Shift()) for tokens in (64, 2000, 8000)])

    def velocity(x, t):
        return torch.cos(2 * x) - 2 * t.view(-1, 1, 1) * x

    together = list(sample(velocity, noise, times))
    for b in range(3):
        alone = list(sample(velocity, noise[b : b + 1], times[b]))
        for one, all_ in zip(alone, together, strict=True):
            assert torch.equal(one.x[0], all_.x[b]) and torch.equal(one.x0[0], all_.x0[b])
    swapped = list(sample(velocity, noise, times.flip(0)))
    assert (swapped[-1].x[0] - together[-1].x[0]).abs().max() > 1e-3


def test_an_end_before_zero_is_a_plain_step():
    noise, speed = normal(1, 2, 2), normal(1, 2, 2, seed=1)
    done = list(sample(lambda x, t: speed, noise, torch.tensor([1.0, 0.7, 0.4])))[-1]
    assert torch.allclose(done.x, noise - 0.6 * speed, atol=1e-6) and done.t == pytest.approx(0.4)
    assert torch.allclose(done.x0, noise - speed, atol=1e-6)


def test_half_precision_models_are_integrated_in_float32():
    noise, speed = normal(1, 4, 4).bfloat16(), normal(1, 4, 4, seed=1).bfloat16()
    step = list(sample(lambda x, t: speed, noise, schedule(50, 256, Shift())))[-1]
    assert step.x.dtype == torch.float32
    assert (step.x - (noise.float() - speed.float())).abs().max() < 1e-6


def test_sampling_is_lazy_and_can_be_abandoned():
    calls = []

    def velocity(x, t):
        calls.append(float(t[0]))
        return x

    steps = sample(velocity, normal(1, 2, 2), schedule(10, 256, Shift()))
    assert calls == [], "nothing runs before the first step is asked for"
    assert [s.index for s in islice(steps, 3)] == [1, 2, 3]
    assert len(calls) == 3
    steps.close()
    assert next(steps, None) is None and len(calls) == 3


# ---- guidance -------------------------------------------------------------------------------------------------------


def guided(wanted, other, scale, interval=FULL_INTERVAL, t=0.5):
    """One guided velocity from two constant ones."""
    times = torch.full((len(wanted),), t) if isinstance(t, float) else t
    return apply_guidance(lambda x, t: wanted, lambda x, t: (wanted, other), scale, interval)(wanted, times)


def test_scale_one_is_the_conditional_itself():
    def never(x, t):
        raise AssertionError("the unconditional velocity is not needed")

    def conditional(x, t):
        return x

    assert apply_guidance(conditional, never, 1.0) is conditional


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 4.0, 30.0])
def test_guidance_keeps_each_tokens_norm(scale):
    wanted, other = normal(2, 5, 8), normal(2, 5, 8, seed=1)
    made = guided(wanted, other, scale)
    assert torch.allclose(made.norm(dim=-1), wanted.norm(dim=-1), rtol=1e-5)
    direction = other + scale * (wanted - other)
    cosine = torch.cosine_similarity(made, direction, dim=-1)
    assert torch.allclose(cosine, torch.ones_like(cosine), atol=1e-5)


def test_equal_velocities_need_no_guidance():
    v = normal(1, 3, 4)
    assert torch.allclose(guided(v, v, 5.0), v, atol=1e-6)


def test_zero_velocities_stay_finite():
    wanted, other = normal(1, 4, 8), normal(1, 4, 8, seed=1)
    wanted[:, 0] = other[:, 0] = 0  # a padded token, or an exact start
    wanted[:, 1] = 0
    wanted[:, 2], other[:, 2] = 1.0, 2.0  # cancels at scale 2
    made = guided(wanted, other, 2.0)
    assert made.isfinite().all()
    assert (made[:, :3] == 0).all()
    assert made[:, 3].norm() == pytest.approx(float(wanted[:, 3].norm()), rel=1e-5)


def test_guided_sampling_asks_both_at_the_same_point():
    seen = {"with": [], "without": []}

    def record(name):
        def velocity(x, t):
            seen[name].append((x.clone(), t.clone()))
            return torch.tanh(x) if name == "with" else torch.sin(x)

        return velocity

    first, second = record("with"), record("without")
    list(
        sample(
            apply_guidance(first, lambda x, t: (first(x, t), second(x, t)), 3.0),
            normal(2, 3, 4),
            schedule(4, 256, Shift()),
        )
    )
    assert len(seen["with"]) == len(seen["without"]) == 4
    for a, b in zip(seen["with"], seen["without"], strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_guidance_outside_its_interval_is_none():
    wanted, other = normal(3, 5, 8), normal(3, 5, 8, seed=1)
    full = guided(wanted, other, 4.0)
    made = guided(wanted, other, 4.0, (0.2, 0.6), torch.tensor([0.1, 0.6, 0.61]))
    assert torch.equal(made[1], full[1]) and not torch.equal(full[1], wanted[1])
    assert torch.equal(made[0], wanted[0]) and torch.equal(made[2], wanted[2])

    def never(x, t):
        raise AssertionError("nothing is guided at these times")

    assert apply_guidance(lambda x, t: x, never, 4.0, (0.2, 0.6))(wanted, torch.tensor([0.7, 0.9, 0.1])) is wanted


@pytest.mark.parametrize("interval", [(-0.1, 0.5), (0.5, 0.4), (0.0, 1.5)])
def test_guidance_intervals_out_of_range_are_refused(interval):
    with pytest.raises(InputError, match="guidance interval"):
        check_settings(None, None, interval)
