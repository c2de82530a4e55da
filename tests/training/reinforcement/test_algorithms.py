"""The losses of GRPO and DiffusionNFT: exact gradients, limits, and the signs of what is learnt."""

import pytest
import torch

from omnialpha.errors import InputError
from omnialpha.training.reinforcement.algorithms import GRPO, NFT, nft_losses
from omnialpha.transitions import Transition, token_mean


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Shape:
    """What losses need of a rollout, for a policy whose velocity is a tensor."""

    def __init__(self, advantages, steps=4, kind="flow_sde"):
        count = len(advantages)
        draw = torch.randn(4, 2, count, 5, 3, generator=seeded(1))
        self.before, self.velocity, self.x0 = draw[0], draw[1], draw[2, 0]
        self.times = torch.linspace(1, 0, steps + 1)
        self.steps = torch.tensor([[1], [2]]).expand(2, count)
        self.transition, self.seed = Transition(kind, 0.5), 3
        self.advantages = torch.tensor(advantages)
        self.cond = type("Cond", (), {"positions": type("Positions", (), {"target_mask": None})()})()
        moments = [self.transition.moments(self.before[k], self.velocity[k], *self.span(k)) for k in range(2)]
        self.means = torch.stack([mean for mean, _ in moments])
        self.after = self.means + torch.stack([deviation * draw[3, k] for k, (_, deviation) in enumerate(moments)])

    def span(self, k):
        return self.times[self.steps[k] - 1], self.times[self.steps[k]]


def test_before_an_update_the_ratio_is_one_and_the_gradient_is_reinforce():
    made = Shape([1.5, -0.5, -1.0])
    v = made.velocity[0].clone().requires_grad_()
    losses = GRPO(clip=1e-4).losses(made, 0, lambda *_: v, lambda _: None)
    assert float(losses["ratio"]) == 1 and float(losses["clip_fraction"]) == 0
    losses["loss"].backward()
    other = made.velocity[0].clone().requires_grad_()
    mean, deviation = made.transition.moments(made.before[0], other, *made.span(0))
    density = torch.distributions.Normal(mean, deviation).log_prob(made.after[0]).mean(dim=(1, 2))
    (-(made.advantages * density).mean()).backward()
    assert torch.allclose(v.grad, other.grad, atol=1e-6)


@pytest.mark.parametrize("normalise", [False, True])
def test_probability_follows_the_advantage(normalise):
    """A small step down the gradient makes what has a positive advantage likelier, and the other less so."""
    made = Shape([1.0, -1.0])
    v = made.velocity[0].clone().requires_grad_()
    algorithm = GRPO(clip=0.2, normalise=normalise)
    algorithm.losses(made, 0, lambda *_: v, lambda _: None)["loss"].backward()
    moved = v.detach() - 1e-2 * v.grad
    before, after = (_density(made, velocity) for velocity in (made.velocity[0], moved))
    assert after[0] > before[0] and after[1] < before[1]


def _density(made, velocity):
    mean, deviation = made.transition.moments(made.before[0], velocity, *made.span(0))
    return torch.distributions.Normal(mean, deviation).log_prob(made.after[0]).mean(dim=(1, 2))


def test_the_clip_stops_the_gradient_of_what_moved_its_way():
    made = Shape([1.0, -1.0])
    better = (made.velocity[0] + 5e-2 * torch.randn(2, 5, 3, generator=seeded(5))).requires_grad_()
    losses = GRPO(clip=1e-7).losses(made, 0, lambda *_: better, lambda _: None)
    losses["loss"].backward()
    assert float(losses["clip_fraction"]) == 1
    ratio = (_density(made, better.detach()) - _density(made, made.velocity[0])).exp()
    for k, advantage in enumerate((1.0, -1.0)):
        stopped = bool((ratio[k] - 1) * advantage > 0)  # already moved the way that the advantage says
        assert bool((better.grad[k] == 0).all()) == stopped


def test_ratio_norm_by_hand():
    made = Shape([1.0, -1.0])
    v = made.velocity[0] + 0.1
    losses = GRPO(clip=10.0, normalise=True).losses(made, 0, lambda *_: v, lambda _: None)
    t, t_next = made.span(0)
    mean, deviation = made.transition.moments(made.before[0], v, t, t_next)
    k = deviation.flatten()
    change = _density(made, v) - _density(made, made.velocity[0])
    ratio = (k * (change + (mean - made.means[0]).square().mean(dim=(1, 2)) / (2 * k**2))).exp()
    wanted = (-made.advantages * ratio / (t - t_next)).mean()
    assert float(losses["loss"]) == pytest.approx(float(wanted), rel=1e-5)


def test_the_reference_costs_nothing_where_nothing_has_moved():
    made = Shape([1.0, -1.0])
    asked = []

    def ask(policy, x, t):
        asked.append(policy)
        return made.velocity[0] * (1.1 if policy == "trained" else 1.0)

    losses = GRPO(kl=1.0, norm=1.0).losses(made, 0, ask, lambda _: None)
    assert asked == ["reference", "trained"]
    squared = made.velocity[0].square().mean(dim=(1, 2))
    assert float(losses["kl"]) == pytest.approx(float((0.01 * squared).mean()), rel=1e-4)
    assert float(losses["norm_excess"]) == pytest.approx(0.01, rel=1e-3)
    same = GRPO(kl=1.0, norm=1.0).losses(made, 0, lambda *_: made.velocity[0], lambda _: None)
    assert float(same["kl"]) == float(same["norm_excess"]) == 0


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
def test_nft_gradient_at_the_old_policy_is_the_advantage_times_that_of_flow_matching(beta):
    x0, noise, old = torch.randn(3, 4, 5, 3, generator=seeded(2), dtype=torch.float64).unbind()
    t, advantages, most = torch.tensor([0.2, 0.5, 0.8, 1.0], dtype=torch.float64), torch.tensor([2.0, -1, 0.5, -1.5]), 5
    x_t = torch.lerp(x0, noise, t.view(-1, 1, 1))
    v, other = old.clone().requires_grad_(), old.clone().requires_grad_()
    good = (advantages.double() / (2 * most) + 0.5).clamp(0, 1)
    (most * nft_losses(x_t, t, x0, v, old, good, beta, None)).sum().backward()
    off = x_t - t.view(-1, 1, 1) * other - x0
    weight = off.detach().abs().mean(dim=(1, 2))
    (advantages.double() * off.square().mean(dim=(1, 2)) / weight).sum().backward()
    assert torch.allclose(v.grad, other.grad, atol=1e-12)


def test_nft_by_hand_off_the_old_policy():
    x0, noise, old, v = torch.randn(4, 2, 5, 3, generator=seeded(2)).unbind()
    t, good, beta = torch.tensor([0.3, 0.9]), torch.tensor([0.7, 0.1]), 0.4
    x_t = x0 + t.view(-1, 1, 1) * (noise - x0)
    wanted = torch.zeros(2)
    for b in range(2):
        for share, implicit in ((good[b], beta * v + (1 - beta) * old), (1 - good[b], (1 + beta) * old - beta * v)):
            off = (x_t - t.view(-1, 1, 1) * implicit)[b] - x0[b]
            wanted[b] += share / beta * off.square().mean() / off.abs().mean()
    assert torch.allclose(nft_losses(x_t, t, x0, v, old, good, beta, None), wanted, rtol=1e-4)


def test_nft_counts_real_tokens_only():
    x0, noise, old, v = torch.randn(4, 2, 5, 3, generator=seeded(2)).unbind()
    t, good = torch.tensor([0.3, 0.9]), torch.tensor([0.7, 0.1])
    x_t, mask = torch.lerp(x0, noise, t.view(-1, 1, 1)), torch.ones(2, 5)
    mask[1, 3:] = 0
    got = nft_losses(x_t, t, x0, v, old, good, 0.5, mask)
    short = nft_losses(*(x[1:, :3] if x.ndim == 3 else x[1:] for x in (x_t, t, x0, v, old, good)), 0.5, None)
    assert torch.allclose(got[1:], short)


def test_nft_asks_old_and_reference_at_the_same_noisy_latents():
    made, seen = Shape([1.0, -1.0], kind="ode"), []

    def ask(policy, x, t):
        seen.append((policy, x, t))
        return torch.zeros_like(x)

    losses = NFT(updates=2).losses(made, 1, ask, lambda n: torch.full_like(made.x0, float(n)))
    assert [policy for policy, _, _ in seen] == ["old", "reference", "trained"]
    x, t = seen[0][1:]
    assert torch.allclose(x, torch.lerp(made.x0, torch.ones_like(made.x0), t.view(-1, 1, 1)))
    assert all(float(time) in made.times[:-1].tolist() for time in t)
    assert torch.isfinite(losses["loss"])


def test_times_are_each_taken_once_over_the_updates_of_a_rollout():
    made, algorithm = Shape([1.0, -1.0, 0.0], kind="ode"), NFT(updates=2)
    taken = []
    for number in range(algorithm.updates * algorithm.parts(4, 0)):
        algorithm.losses(
            made, number, lambda p, x, t: (taken.append(t) if p == "old" else None, x)[1], lambda _: made.x0 * 0
        )
        taken[-1] = taken[-1].clone()
    assert torch.stack(taken).sort(dim=0).values.T.tolist() == [sorted(made.times[:-1].tolist())] * 3


def test_schedules_of_the_old_policy():
    fast, slow = NFT(schedule="fast"), NFT(schedule="slow")
    assert [fast.decay(n) for n in (0, 100, 10_000)] == [0, pytest.approx(0.1), 0.5]
    assert [slow.decay(n) for n in (74, 75, 175, 10_000)] == [0, 0, pytest.approx(0.75), 0.999]


@pytest.mark.parametrize(
    "made", [lambda: GRPO(updates=0), lambda: GRPO(clip=0.0), lambda: NFT(beta=0), lambda: NFT(kl=-1)]
)
def test_bad_settings(made):
    with pytest.raises(InputError, match="use 1 update or more"):
        made()


def test_token_mean():
    values = torch.arange(12.0).view(1, 3, 4)
    assert float(token_mean(values)) == 5.5
    assert float(token_mean(values, torch.tensor([[1.0, 0, 1]]))) == pytest.approx((1.5 + 9.5) / 2)
