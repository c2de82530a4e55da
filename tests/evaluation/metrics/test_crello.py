"""Layer metrics: alignments against all alignments, merges against their definition, closed forms."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from omnialpha import rgba
from omnialpha.errors import InputError
from omnialpha.evaluation.metrics import crello

SIZE = 8


def layer(color: tuple[float, float, float], rows: slice = slice(None), columns: slice = slice(None)) -> Tensor:
    """One colour, opaque there and black and transparent elsewhere."""
    made = torch.zeros(4, SIZE, SIZE)
    made[3, rows, columns] = 1
    made[:3, rows, columns] = torch.tensor(color).view(3, 1, 1)
    return made


RED, GREEN, BLUE, GREY = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.6, 0.6, 0.6)
BACK = layer(GREY)
LEFT, CENTRE = layer(RED, columns=slice(0, 4)), layer(GREEN, slice(2, 6), slice(2, 6))


def soft(count: int, seed: int) -> Tensor:
    """Random layers in 8-bit steps, nearly all of which overlap; the first one is opaque."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randint(0, 256, (count, 4, SIZE, SIZE), generator=generator) / 255
    made[:, 3] *= torch.rand((count, SIZE, SIZE), generator=generator) > 0.4
    made[0, 3] = 1
    return (made * 255).round() / 255


# ---- one layer ------------------------------------------------------------------------------------------------------


def test_figures_of_one_layer() -> None:
    p, t = layer(RED)[None], layer(RED)[None]
    p[:, 1] += 0.3  # green everywhere: a third of the channels
    t[:, 3, :, 4:] = 0.5  # half as visible on the right half
    p[:, 2, :, 4:] += 0.3
    assert float(crello.rgb_l1(p, t)) == pytest.approx(0.15)  # .1 on the left, .2 on the right
    assert float(crello.rgb_l1(p, t, by_alpha=True)) == pytest.approx((0.1 + 0.2 / 2) / 1.5)
    assert float(crello.alpha_iou(p, t)) == pytest.approx(0.75)


def test_empty_layers() -> None:
    nothing, something = torch.zeros(1, 4, SIZE, SIZE), layer(RED)[None]
    for p, t, color, overlap in ((nothing, nothing, 0, 0), (something, nothing, 0, 0), (nothing, something, 1 / 3, 0)):
        assert float(crello.rgb_l1(p, t)) == pytest.approx(color)
        assert float(crello.alpha_iou(p, t)) == overlap


# ---- alignment ------------------------------------------------------------------------------------------------------


def paths(n: int, m: int) -> Iterator[list[crello.Pair]]:
    """All ways from (0, 0) to (n - 1, m - 1) by steps of one in either or both."""
    if n == m == 1:
        yield [(0, 0)]
    for i, j in ((n - 1, m - 1), (n - 1, m), (n, m - 1)):
        if i > 0 and j > 0:
            for path in paths(i, j):
                yield [*path, (n - 1, m - 1)]


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (4, 1), (3, 3), (4, 5)])
def test_no_alignment_is_cheaper(n: int, m: int) -> None:
    for seed in range(20):
        costs = np.random.default_rng(seed).random((n, m))
        made = crello.align(costs)
        every = list(paths(n, m))
        assert made in every
        assert sum(costs[p] for p in made) == pytest.approx(min(sum(costs[p] for p in path) for path in every))


def test_of_equal_alignments_the_diagonal_is_taken() -> None:
    assert crello.align(np.zeros((3, 3))) == [(0, 0), (1, 1), (2, 2)]
    assert crello.align(np.zeros((4, 2))) == [(0, 0), (1, 0), (2, 0), (3, 1)]  # from the last pair backwards


def test_layers_that_can_be_lifted_off_together() -> None:
    right, spot = layer(GREEN, columns=slice(6, 8)), layer(BLUE, slice(3, 5), slice(0, 3))
    for stack, groups in (
        ([BACK, LEFT, right], [[0], [1, 2]]),
        ([BACK, LEFT, spot, right], [[0], [1], [2, 3]]),
        ([BACK, right, spot, LEFT], [[0], [2], [1, 3]]),
        ([LEFT, right, BACK], [[0, 1], [2]]),
        ([BACK, torch.zeros_like(BACK)], [[0, 1]]),  # an empty layer covers nothing
    ):
        assert crello.top_groups(torch.stack(stack)) == groups


def test_a_layer_is_put_over_another_as_pillow_does() -> None:
    back, front = soft(2, seed=3)[1], soft(2, seed=4)[1]
    arrays = [(x * 255).round().byte().permute(1, 2, 0).contiguous().numpy() for x in (back, front)]
    wanted = Image.alpha_composite(*(Image.fromarray(array) for array in arrays))
    made = crello.put(back, front)
    gap = (made * 255 - torch.from_numpy(np.array(wanted)).permute(2, 0, 1)).abs()
    assert float(gap.max()) < 1.5
    hidden = (back[3] == 0) & (front[3] == 0)
    assert bool(hidden.any()) and torch.equal(made[:, hidden], back[:, hidden])


# ---- merges ---------------------------------------------------------------------------------------------------------


def test_equal_stacks_are_equal_at_every_level() -> None:
    stack = [BACK, LEFT, CENTRE]
    levels = crello.compare(stack, stack)
    assert [level.merges for level in levels] == [0] * 6
    assert all(
        level.rgb_l1 == 0 and level.alpha_iou == 1 and level.pairs == ((0, 0), (1, 1), (2, 2)) for level in levels
    )


@pytest.mark.parametrize("swap", [False, True], ids=["predicted too fine", "true too fine"])
def test_a_layer_in_two_parts_is_merged(swap: bool) -> None:
    """The front is LEFT with CENTRE on it, whole on one side and in two parts on the other."""
    fine, coarse = [BACK, LEFT, CENTRE], [BACK, crello.put(LEFT, CENTRE)]
    first, then, *rest = crello.compare(*((coarse, fine) if swap else (fine, coarse)))
    assert first.merges == 0 and first.pairs == (((0, 0), (1, 1), (1, 2)) if swap else ((0, 0), (1, 1), (2, 1)))
    union, left, centre = 32 + 8, 32, 16
    assert first.alpha_iou == pytest.approx((1 + left / union + centre / union) / 3)
    assert then.merges == 1 and then.rgb_l1 == 0 and then.alpha_iou == 1
    assert then.runs[1 if swap else 0] == ((0, 1), (1, 3))
    assert rest == [then] * 4


def test_two_layers_are_not_merged() -> None:
    levels = crello.compare([BACK, LEFT], [crello.put(BACK, LEFT)])
    assert levels[-1].merges == 0 and levels[-1].alpha_iou == pytest.approx(0.75)


def test_colour_under_the_predicted_alpha_counts() -> None:
    kept = LEFT.clone()
    kept[3] = 0
    assert float(crello.rgb_l1(kept[None], LEFT[None])) == 0
    assert float(crello.rgb_l1(torch.zeros_like(kept)[None], LEFT[None])) == pytest.approx(1 / 3)


def by_definition(predicted: Tensor, true: Tensor, merges: int) -> list[tuple[float, float]]:
    """(RGB L1, alpha IoU) a level, by lists of pictures that are merged one after another."""

    def figures(x: Tensor, weigher: Tensor) -> tuple[float, float]:
        return float(crello.rgb_l1(x[None], weigher[None])), float(crello.alpha_iou(x[None], weigher[None]))

    def alike(x: Tensor, others: list[Tensor]) -> float:
        return sum(1 - (color + 1 - overlap) / 2 for color, overlap in (figures(x, other) for other in others))

    def best(layers: list[Tensor], others: list[Tensor], pairs: list[crello.Pair]) -> tuple[float, int]:
        found = (0.0, -1)
        for k in range(len(layers) - 1 if len(layers) > 2 else 0):
            one, two = ([others[j] for i, j in pairs if i == place] for place in (k, k + 1))
            merged = crello.put(layers[k], layers[k + 1])
            options = [alike(merged, two)]
            if k + 2 < len(layers):
                options += [alike(layers[k + 2], one), alike(layers[k + 2], two)]
            gain = alike(merged, one) + max(options) - alike(layers[k], one) - alike(layers[k + 1], two)
            found = (gain, k) if gain > found[0] else found
        return found

    p, t, made = list(predicted), list(true), []
    for _ in range(merges + 1):
        all_figures = {(i, j): figures(p[i], t[j]) for i in range(len(p)) for j in range(len(t))}
        every = paths(len(p), len(t))
        pairs = min(every, key=lambda path: sum(all_figures[x][0] + 1 - all_figures[x][1] for x in path))
        made.append(tuple(float(np.mean([all_figures[x][k] for x in pairs])) for k in (0, 1)))
        (gain_p, at_p), (gain_t, at_t) = best(p, t, pairs), best(t, p, [(j, i) for i, j in pairs])
        if max(gain_p, gain_t) <= 0:
            break
        layers, at = (p, at_p) if gain_p > gain_t else (t, at_t)
        layers[at : at + 2] = [crello.put(layers[at], layers[at + 1])]
    return made + [made[-1]] * (merges + 1 - len(made))  # type: ignore[return-value]


@pytest.mark.parametrize(("n", "m"), [(3, 3), (5, 2), (2, 5), (5, 4)])
def test_merges_are_those_of_the_definition(n: int, m: int) -> None:
    deepest = 0
    for seed in range(6):
        p, t = soft(n, seed), soft(m, seed + 100)
        levels = crello.compare(p, t)
        assert len(levels) == 6 and all(len(g) == 1 for x in (p, t) for g in crello.top_groups(x))
        for level, (color, overlap) in zip(levels, by_definition(p, t, 5), strict=True):
            assert (level.rgb_l1, level.alpha_iou) == pytest.approx((color, overlap), abs=1e-5)
        deepest = max(deepest, levels[-1].merges)
    assert deepest >= 2 or n == m == 3


def test_figures_of_a_row() -> None:
    made = crello.measure([BACK, LEFT, CENTRE], [BACK, crello.put(LEFT, CENTRE)], merges=2)
    assert list(made) == ["rgb_l1_0", "rgb_l1_1", "rgb_l1_2", "alpha_iou_0", "alpha_iou_1", "alpha_iou_2"]
    assert made["alpha_iou_0"] < 0.9 and made["alpha_iou_1"] == made["alpha_iou_2"] == 1


def test_stacks_that_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="0 predicted layers"):
        crello.compare([], [BACK])
    with pytest.raises(InputError, match="8x8 and 6x8 px"):
        crello.compare([BACK], [BACK[:, :, :6]])
    with pytest.raises(InputError, match=r"true layers of shape \(1, 3, 8, 8\)"):
        crello.compare([BACK], [BACK[:3]])


# ---- recomposition --------------------------------------------------------------------------------------------------


def test_recomposition() -> None:
    stack = [BACK, LEFT, CENTRE]
    picture = rgba.recompose(stack)
    assert crello.recomposition(stack, picture) == crello.recomposition(torch.stack(stack), picture) == 100
    darker = rgba.opaque((picture[:3] - 0.1).clamp(0))
    assert crello.recomposition(stack, darker) == pytest.approx(
        -10 * np.log10(float(((picture[:3] - darker[:3]) ** 2).mean())), abs=1e-4
    )
    hole = [LEFT, CENTRE]  # shows the white that it is put on
    assert crello.recomposition(hole, picture) < crello.recomposition(hole, rgba.recompose(hole)) == 100
