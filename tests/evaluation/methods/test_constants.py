"""No other constant is better, and pictures count alike whatever their size."""

import pytest
import torch

from omnialpha.evaluation.methods.constants import best_constants
from omnialpha.evaluation.metrics.matting import measure


def mattes() -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Of two sizes; the last has a trimap without grey."""
    generator, made = torch.Generator().manual_seed(0), []
    for power, size in ((3, (9, 9)), (1, (20, 30))):
        alpha = ((torch.rand(size, generator=generator) ** power) * 255).round() / 255
        made.append((alpha, (alpha > 0.3).float() / 2 + (alpha > 0.8).float() / 2))
    return [*made, (torch.zeros(4, 4), torch.zeros(4, 4)), (torch.ones(5, 5), None)]


@pytest.mark.parametrize("metric", ["mad", "mse"])
@pytest.mark.parametrize("region", ["whole", "unknown"])
def test_no_constant_has_a_smaller_mean_error(metric: str, region: str) -> None:
    found = best_constants(mattes())[metric if region == "whole" else f"unknown_{metric}"]
    counted = mattes() if region == "whole" else mattes()[:2]
    means = []
    for value in torch.linspace(0, 1, 256).tolist():
        each = [
            float(measure(torch.full_like(a, value), a, t, region if t is not None else "whole")[metric])
            for a, t in counted
        ]
        means.append(sum(each) / len(each))
    assert found == pytest.approx(min(means), rel=2e-3) and found <= min(means) + 1e-9


def test_known_constants() -> None:
    half = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    assert best_constants([(half, None)]) == pytest.approx({"mad": 0.25, "mse": 0.1875})
    large = torch.ones(50, 50)  # counts as much as the small one
    assert best_constants([(half, None), (large, None)]) == pytest.approx({"mad": 0.375, "mse": 0.234375})
    assert best_constants([]) == {}
