"""The reader of generated pictures knows true drawings, and says nothing of nothing."""

import torch

from omnialpha.data.synthetic import layers as synthetic
from omnialpha.evaluation.metrics.reader import Reader, requests


def test_requests_are_even_over_shapes_and_equal_for_equal_seeds() -> None:
    made, again, other = (requests(24, seed, 32) for seed in (5, 5, 6))
    assert [r.shape for r in made[: len(synthetic.SOLID)]] == list(synthetic.SOLID)
    assert [r.prompt for r in made] == [r.prompt for r in again] != [r.prompt for r in other]
    assert all(r.color in synthetic.COLORS and r.prompt.endswith(f"{r.color} {r.shape}") for r in made)


def test_true_drawings_are_read_back() -> None:
    reader = Reader(0)
    asked = requests(24, 5, 48)
    read = [reader.read(r.drawing) for r in asked]
    assert sum(color == r.color for (color, _), r in zip(read, asked, strict=True)) >= 22
    assert sum(shape == r.shape for (_, shape), r in zip(read, asked, strict=True)) >= 20


def test_an_empty_picture_says_nothing() -> None:
    assert Reader(0).read(torch.zeros(4, 16, 16)) == ("", "")
