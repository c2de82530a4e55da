"""Random steps of the sampler: their limits, their log-probability, and that they keep the flow's distribution."""

import pytest
import torch

from omnialpha.errors import InputError
from omnialpha.sampling import euler_step, sample
from omnialpha.transitions import KINDS, Transition, log_probability

RANDOM = [kind for kind in KINDS if kind != "ode"]
DATA_MEAN, DATA_SD = 0.4, 0.5  # of the Gaussian data whose flow is known


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def exact_velocity(x, t):
    """Of data N(DATA_MEAN, DATA_SD^2): E[noise - x_0 | x_t]."""
    t = t.view(-1, 1, 1)
    variance = ((1 - t) * DATA_SD) ** 2 + t**2
    off = x - (1 - t) * DATA_MEAN
    return t * off / variance - (DATA_MEAN + (1 - t) * DATA_SD**2 * off / variance)


@pytest.mark.parametrize("kind", KINDS)
def test_without_strength_it_is_the_euler_step(kind):
    x, v = torch.randn(2, 3, 5, 4, generator=seeded()).unbind()
    t, t_next = torch.tensor([1.0, 0.7, 0.3]), torch.tensor([0.8, 0.2, 0.1])
    mean, deviation = Transition(kind, 0.0).moments(x, v, t, t_next)
    assert torch.allclose(mean, euler_step(x, v, t.view(-1, 1, 1), t_next.view(-1, 1, 1)), atol=1e-6)
    assert float(deviation.abs().max()) == 0


@pytest.mark.parametrize(
    ("kind", "mean", "deviation"),
    [  # by hand, from the formulas: x = .5, v = -.2, t = .6, t' = .5, strength .3
        (
            "flow_sde",
            0.5 * (1 - 0.09 * 1.5 * 0.1 / 1.2) + 0.2 * (1 + 0.09 * 1.5 * 0.4 / 1.2) * 0.1,
            (0.135 * 0.1) ** 0.5,
        ),
        ("dance", 0.5 - 0.1 * (-0.2 + 0.09 * 0.42 / 1.2), 0.3 * 0.1**0.5),
        ("cps", 0.5 * 0.62 + (0.25 - 0.2269952499**2) ** 0.5 * 0.42, 0.2269952499),
    ],
)
def test_moments_by_hand(kind, mean, deviation):
    x, v = torch.full((1, 1, 1), 0.5), torch.full((1, 1, 1), -0.2)
    got = Transition(kind, 0.3).moments(x, v, torch.tensor([0.6]), torch.tensor([0.5]))
    assert [float(value) for value in got] == pytest.approx([mean, deviation], abs=1e-6)


def test_flow_sde_at_one_takes_the_next_time():
    x, v = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    _, deviation = Transition("flow_sde", 1.0).moments(x, v, torch.tensor([1.0]), torch.tensor([0.75]))
    assert float(deviation) == pytest.approx((1 / 0.25 * 0.25) ** 0.5)


@pytest.mark.parametrize("kind", RANDOM)
def test_the_distribution_stays_that_of_the_flow(kind):
    """Monte Carlo, 20,000 chains, 200 steps: mean and deviation of what comes out against those of the data."""
    noise, generator = torch.randn(20_000, 1, 1, generator=seeded(1)), seeded(2)
    strength = 0.1 if kind == "cps" else 0.7  # of cps each step renews a part, however short it is
    times = torch.linspace(1, 0, 201)
    random = set(range(2, 200))
    steps = sample(
        exact_velocity,
        noise,
        times,
        Transition(kind, strength),
        lambda index: torch.randn(noise.shape, generator=generator) if index in random else None,
    )
    checked = 0
    for step in steps:
        if step.index in (50, 100, 150, 200):
            t = float(times[step.index])
            assert float(step.x.mean()) == pytest.approx((1 - t) * DATA_MEAN, abs=0.02)
            assert float(step.x.std()) == pytest.approx((((1 - t) * DATA_SD) ** 2 + t**2) ** 0.5, rel=0.04)
            checked += 1
    assert checked == 4


def test_log_probability_against_torch():
    x, mean = torch.randn(2, 3, 5, 4, generator=seeded()).unbind()
    deviation = torch.tensor([0.1, 0.5, 2.0]).view(-1, 1, 1)
    known = torch.distributions.Normal(mean, deviation).log_prob(x)
    assert torch.allclose(log_probability(x, mean, deviation), known.mean(dim=(1, 2)), atol=1e-5)
    mask = torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    some = torch.stack([known[b, : int(mask[b].sum())].mean() for b in range(3)])
    assert torch.allclose(log_probability(x, mean, deviation, mask), some, atol=1e-5)


def test_only_steps_with_noise_are_random():
    noise, fresh = torch.randn(2, 2, 3, 4, generator=seeded()).unbind()
    times = torch.linspace(1, 0, 5)
    plain = list(sample(exact_velocity, noise, times))
    steps = list(sample(exact_velocity, noise, times, Transition(), lambda index: fresh if index == 3 else None))
    assert [step.mean is not None for step in steps] == [False, False, True, False]
    assert torch.equal(steps[1].x, plain[1].x)
    _, deviation = Transition().moments(steps[1].x, exact_velocity(steps[1].x, times[2:3]), times[2:3], times[3:4])
    assert torch.allclose(steps[2].x, steps[2].mean + deviation * fresh)


@pytest.mark.parametrize(("kind", "strength", "named"), [("sde", 0.1, "sde"), ("cps", 1.5, "1.5"), ("dance", -1, "-1")])
def test_bad_settings(kind, strength, named):
    with pytest.raises(InputError, match=named):
        Transition(kind, strength)
