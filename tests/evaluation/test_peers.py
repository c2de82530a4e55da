"""The simple methods do on easy pictures what they are known for, and say so where they cannot."""

import pytest
import torch
from skimage import data
from torch import Tensor

from omnialpha import masks, rgba
from omnialpha.errors import InputError
from omnialpha.evaluation import peers
from omnialpha.evaluation.matting import measure

pytest.importorskip("cv2")
SIDE = 64


def scene(soft: float = 3.0) -> tuple[Tensor, Tensor]:
    """A red disk with a soft edge on a green gradient: rgb (3, S, S), alpha (S, S)."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    radius = ((y - 30) ** 2 + (x - 34) ** 2).float().sqrt()
    alpha = ((18 - radius) / soft + 0.5).clamp(0, 1)
    back = torch.stack([y * 0.0, 0.4 + y / SIDE * 0.3, 0.2 + x / SIDE * 0.1])
    front = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    return front * alpha + back * (1 - alpha), alpha


@pytest.mark.parametrize(("power", "metric"), [(1, "mad"), (2, "mse")])
def test_no_constant_is_better_than_the_best(power: int, metric: str) -> None:
    true = torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(0)) ** 3
    best = peers.best_constant(true, power)
    error = float(measure(torch.full_like(true, best), true)[metric].mean())
    for other in torch.linspace(0, 1, 41).tolist():
        assert error <= float(measure(torch.full_like(true, other), true)[metric].mean()) + 1e-9


def test_the_best_constant_counts_only_what_it_is_told_to() -> None:
    true = torch.tensor([[0.0, 0.0, 0.2], [0.4, 0.4, 1.0]])
    assert peers.best_constant(true, 1, true > 0) == pytest.approx(0.4)
    assert peers.best_constant(true, 2, true > 0) == pytest.approx(0.5)
    with pytest.raises(InputError, match="0 pixels"):
        peers.best_constant(true, 1, true > 2)


def test_grabcut_finds_a_disk() -> None:
    rgb, alpha = scene(soft=0.5)
    by_rectangle = peers.grabcut_rectangle(rgb)
    by_trimap = peers.grabcut_trimap(rgb, masks.trimap(alpha, 5))
    for found in (by_rectangle, by_trimap):
        assert set(found.unique().tolist()) == {0.0, 1.0}
        assert float(measure(found, alpha)["mad"]) < 0.01
    assert torch.equal(by_rectangle, peers.grabcut_rectangle(rgb))  # and the same one every time


def test_grabcut_without_background_keeps_all_that_may_be_subject() -> None:
    rgb, _ = scene()
    assert torch.equal(peers.grabcut_trimap(rgb, torch.full((SIDE, SIDE), 0.5)), torch.ones(SIDE, SIDE))


def test_closed_form_recovers_a_soft_edge() -> None:
    rgb, alpha = scene(soft=6)
    trimap = masks.trimap(alpha, 4)
    found = peers.closed_form(rgb, trimap)
    assert torch.equal(found[trimap != 0.5], trimap[trimap != 0.5])
    assert float(measure(found, alpha, trimap, "unknown")["mad"]) < 0.02
    assert float(measure(trimap, alpha, trimap, "unknown")["mad"]) > 0.1  # what it started from


def test_closed_form_without_sure_subject_answers_the_trimap() -> None:
    rgb, alpha = scene()
    trimap = masks.trimap(alpha * 0.6, 4)  # see-through: nothing is sure
    assert not peers.has_anchors(trimap) and peers.has_anchors(masks.trimap(alpha, 4))
    assert torch.equal(peers.closed_form(rgb, trimap), trimap)


def test_closed_form_is_pymatting_own() -> None:
    from pymatting import estimate_alpha_cf

    rgb = torch.from_numpy(data.astronaut()[30:94, 180:244] / 255).permute(2, 0, 1).float()
    _, alpha = scene()
    trimap = masks.trimap(alpha, 6)
    theirs = estimate_alpha_cf(rgb.permute(1, 2, 0).double().numpy(), trimap.double().numpy())
    assert float((peers.closed_form(rgb, trimap) - torch.from_numpy(theirs)).abs().max()) < 1e-3


def test_telea_fills_a_hole_and_touches_nothing_else() -> None:
    rgb, _ = scene()
    back = rgb.clone()
    back[0], back[1:] = torch.linspace(0.2, 0.4, SIDE), 0.5  # a gradient, which any inpainting continues
    hole = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    hole[20:32, 24:40] = True
    filled = peers.telea(torch.where(hole, rgb, back), hole)
    assert torch.equal(filled[:, ~hole], back[:, ~hole])
    assert rgba.psnr(filled, back, hole) > 35
    with pytest.raises(InputError, match="whole picture"):
        peers.telea(rgb, torch.ones(SIDE, SIDE, dtype=torch.bool))
