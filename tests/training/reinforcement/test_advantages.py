"""From rewards to advantages: by hand, with floors, invalid terms and groups that teach nothing."""

import pytest
import torch

from omnialpha.errors import InputError
from omnialpha.training.reinforcement.advantages import AdvantageSettings, advantages

NAN = float("nan")


def z(values):
    return (values - values.mean()) / values.std(correction=0)


def test_by_hand():
    rewards = {"a": torch.tensor([0.1, 0.5, 0.9, 0.3]), "b": torch.tensor([0.2, 0.8, 0.4, 0.4])}
    got, figures = advantages(rewards, {"a": 2.0, "b": 1.0}, AdvantageSettings())
    assert torch.allclose(got, z((2 * z(rewards["a"]) + z(rewards["b"])) / 3), atol=1e-6)
    assert float(got.mean()) == pytest.approx(0, abs=1e-6)
    assert figures["reward/a"] == pytest.approx(0.45) and figures["dropped"] == 0


def test_invalid_terms_say_nothing():
    rewards = {"a": torch.tensor([0.1, 0.5, 0.9]), "b": torch.full((3,), NAN)}
    alone, _ = advantages({"a": rewards["a"]}, {"a": 1.0}, AdvantageSettings())
    both, _ = advantages(rewards, {"a": 1.0, "b": 5.0}, AdvantageSettings())
    assert torch.equal(alone, both)
    part = {"a": rewards["a"], "b": torch.tensor([NAN, 0.2, 0.6])}
    got, _ = advantages(part, {"a": 1.0, "b": 1.0}, AdvantageSettings())
    summed = torch.stack([z(rewards["a"])[0], *((z(rewards["a"])[1:] + torch.tensor([-1.0, 1.0])) / 2)])
    assert torch.allclose(got, z(summed), atol=1e-5)


def test_noise_of_a_saturated_term_is_not_blown_up():
    noisy = {"a": torch.tensor([1.0, 1 - 1e-7, 1.0, 1.0]), "b": torch.tensor([0.1, 0.2, 0.3, 0.4])}
    got, _ = advantages(noisy, {"a": 1.0, "b": 1.0}, AdvantageSettings())
    alone, _ = advantages({"b": noisy["b"]}, {"b": 1.0}, AdvantageSettings())
    assert torch.allclose(got, alone, atol=1e-3)


def test_a_group_that_does_not_vary_is_dropped():
    got, figures = advantages({"a": torch.full((4,), 0.7)}, {"a": 1.0}, AdvantageSettings())
    assert got.tolist() == [0] * 4 and figures["dropped"] == 1


def test_clip():
    rewards = {"a": torch.tensor([0.0] * 15 + [1.0])}
    got, figures = advantages(rewards, {"a": 1.0}, AdvantageSettings(clip=2.0))
    assert float(got.max()) == 2 and figures["advantage_clipped"] == pytest.approx(1 / 16)


def test_a_group_of_eight_cannot_reach_the_released_clip():
    got, figures = advantages({"a": torch.tensor([0.0] * 7 + [1.0])}, {"a": 1.0}, AdvantageSettings())
    assert float(got.max()) == pytest.approx(7**0.5) and figures["advantage_clipped"] == 0


def test_bad_settings():
    with pytest.raises(InputError, match="floor=0"):
        AdvantageSettings(floor=0)
