"""The simple methods do on easy pictures what they are known for, and say so where they cannot."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor

from finders import SIDE as SEEN
from finders import fake_finder
from omnialpha import masks, rgba
from omnialpha.errors import InputError
from omnialpha.evaluation.methods import baselines, classical
from omnialpha.evaluation.methods.baselines import BASELINES
from omnialpha.evaluation.metrics.matting import measure
from omnialpha.fidelity import removal_mask
from omnialpha.tasks import MAPS, TASKS, Example, Role

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


def maps(alpha: Tensor) -> dict[Role, Tensor]:
    return {
        Role.ALPHA: alpha,
        Role.TRIMAP: masks.trimap(alpha, 4),
        Role.PRECISE: masks.precise(alpha),
        Role.ROUGH: masks.rough(alpha, 4),
    }


def example(task: str, rgb: Tensor, alpha: Tensor) -> Example:
    """A request of any task about a scene of a given alpha."""
    pictures = {Role.COMPOSITE: rgba.opaque(rgb), Role.BACKGROUND: rgba.opaque(rgb)}
    pictures |= {Role.FOREGROUND: torch.cat([rgb, alpha[None]])}
    pictures |= {role: masks.as_picture(m) for role, m in maps(alpha).items()}
    row = TASKS[task]
    prompt = "a red disk" if row.text else None
    size = (int(rgb.shape[1]), int(rgb.shape[2]))
    return row.example({role: pictures[role] for role in row.inputs}, prompt=prompt, size=size)


def answer(peer: str, task: str, rgb: Tensor, alpha: Tensor) -> Tensor:
    return BASELINES[peer].make([example(task, rgb, alpha)], [0])[0]


@pytest.mark.parametrize(("power", "metric"), [(1, "mad"), (2, "mse")])
def test_no_constant_is_better_than_the_best(power: int, metric: str) -> None:
    true = torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(0)) ** 3
    best = baselines.best_constant(true, power)
    error = float(measure(torch.full_like(true, best), true)[metric].mean())
    for other in torch.linspace(0, 1, 41).tolist():
        assert error <= float(measure(torch.full_like(true, other), true)[metric].mean()) + 1e-9


def test_the_best_constant_counts_only_what_it_is_told_to() -> None:
    true = torch.tensor([[0.0, 0.0, 0.2], [0.4, 0.4, 1.0]])
    assert baselines.best_constant(true, 1, true > 0) == pytest.approx(0.4)
    assert baselines.best_constant(true, 2, true > 0) == pytest.approx(0.5)
    with pytest.raises(InputError, match="0 pixels"):
        baselines.best_constant(true, 1, true > 2)


def test_grabcut_finds_a_disk() -> None:
    rgb, alpha = scene(soft=0.5)
    by_rectangle = classical.grabcut_rectangle(rgb)
    by_trimap = classical.grabcut_trimap(rgb, masks.trimap(alpha, 5))
    for found in (by_rectangle, by_trimap):
        assert set(found.unique().tolist()) == {0.0, 1.0}
        assert float(measure(found, alpha)["mad"]) < 0.01
    assert torch.equal(by_rectangle, classical.grabcut_rectangle(rgb))  # and the same one every time


def test_grabcut_without_background_keeps_all_that_may_be_subject() -> None:
    rgb, _ = scene()
    assert torch.equal(classical.grabcut_trimap(rgb, torch.full((SIDE, SIDE), 0.5)), torch.ones(SIDE, SIDE))


def test_closed_form_recovers_a_soft_edge() -> None:
    rgb, alpha = scene(soft=6)
    trimap = masks.trimap(alpha, 4)
    found = classical.solve("cf", rgb, trimap)
    assert torch.equal(found[trimap != 0.5], trimap[trimap != 0.5])
    assert float(measure(found, alpha, trimap, "unknown")["mad"]) < 0.02
    assert float(measure(trimap, alpha, trimap, "unknown")["mad"]) > 0.1  # what it started from


def test_closed_form_without_sure_subject_answers_the_trimap() -> None:
    rgb, alpha = scene()
    trimap = masks.trimap(alpha * 0.6, 4)  # see-through: nothing is sure
    assert not classical.has_anchors(trimap) and classical.has_anchors(masks.trimap(alpha, 4))
    assert torch.equal(classical.solve("cf", rgb, trimap), trimap)


def test_closed_form_is_pymatting_own() -> None:
    from pymatting import estimate_alpha_cf

    rgb = torch.from_numpy(data.astronaut()[30:94, 180:244] / 255).permute(2, 0, 1).float()
    _, alpha = scene()
    trimap = masks.trimap(alpha, 6)
    theirs = estimate_alpha_cf(rgb.permute(1, 2, 0).double().numpy(), trimap.double().numpy())
    assert float((classical.solve("cf", rgb, trimap) - torch.from_numpy(theirs)).abs().max()) < 1e-3


def test_telea_fills_a_hole_and_touches_nothing_else() -> None:
    rgb, _ = scene()
    back = rgb.clone()
    back[0], back[1:] = torch.linspace(0.2, 0.4, SIDE), 0.5  # a gradient, which any inpainting continues
    hole = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    hole[20:32, 24:40] = True
    filled = classical.telea(torch.where(hole, rgb, back), hole)
    assert torch.equal(filled[:, ~hole], back[:, ~hole])
    assert rgba.psnr(filled, back, hole) > 35
    with pytest.raises(InputError, match="whole picture"):
        classical.telea(rgb, torch.ones(SIDE, SIDE, dtype=torch.bool))


@pytest.mark.parametrize("kind", ["knn", "lbdm", "lkm"])
def test_other_methods_of_pymatting_recover_a_soft_edge(kind: str) -> None:
    import pymatting

    rgb, alpha = scene(soft=6)
    trimap = masks.trimap(alpha, 4)
    found = classical.solve(kind, rgb, trimap)
    assert float(measure(found, alpha, trimap, "unknown")["mad"]) < (0.06 if kind == "knn" else 0.03)
    theirs = getattr(pymatting, f"estimate_alpha_{kind}")(
        rgb.permute(1, 2, 0).double().numpy(), trimap.double().numpy()
    )
    assert float((found - torch.from_numpy(theirs)).abs().max()) < 1e-3


def test_large_kernels_fit_into_a_small_picture() -> None:
    rgb, alpha = scene()
    small, trimap = rgb[:, 10:25, 20:50], masks.trimap(alpha, 3)[10:25, 20:50]
    assert classical.has_anchors(trimap) and classical.solve("lkm", small, trimap).shape == (15, 30)


def test_navier_stokes_continues_a_gradient_and_is_not_telea() -> None:
    rgb = torch.stack([torch.linspace(0.2, 0.4, SIDE).expand(SIDE, SIDE)] * 3)
    where = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    where[20:32, 24:40] = True
    broken = torch.where(where, 0.0, rgb)
    filled = classical.navier_stokes(broken, where)
    assert torch.equal(filled[:, ~where], rgb[:, ~where]) and rgba.psnr(filled, rgb, where) > 35
    assert not torch.equal(filled, classical.telea(broken, where))


def test_the_mean_colour_is_that_of_a_ring() -> None:
    rgb = torch.zeros(3, SIDE, SIDE)
    rgb[0, :, :32], rgb[1] = 1.0, 0.25  # its left half is as near as its right one
    where = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    where[24:40, 24:40] = True
    filled = classical.mean_color(torch.where(where, 1.0, rgb), where)
    assert torch.equal(filled[:, ~where], rgb[:, ~where])
    assert torch.allclose(filled[:, 30, 30], torch.tensor([0.5, 0.25, 0.0]))
    everywhere = torch.ones_like(where)
    assert torch.allclose(classical.mean_color(rgb, everywhere)[:, 0, 0], torch.tensor([0.5, 0.25, 0.0]))


# ---- the table ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASELINES)
def test_every_peer_answers_in_the_layers_of_its_tasks(name: str) -> None:
    rgb, alpha = scene()
    rgb, alpha = rgb[:, :48], alpha[:48]  # not square
    peer = BASELINES[name]
    done = [task for task in TASKS if peer.does(task)]
    assert done and peer.given and peer.identity and peer.name
    for task in done:
        made = answer(name, task, rgb, alpha)
        assert made.shape == (len(TASKS[task].targets), 4, 48, SIDE) and made.dtype == torch.float32
        assert bool(made.isfinite().all()) and float(made.min()) >= 0 and float(made.max()) <= 1
        opaque = [k for k, role in enumerate(TASKS[task].targets) if role is not Role.FOREGROUND]
        assert bool((made[opaque, 3] == 1).all())


def test_peers_have_names_of_their_own() -> None:
    assert (
        len({peer.name for peer in BASELINES.values()})
        == len({peer.identity for peer in BASELINES.values()})
        == len(BASELINES)
    )


@pytest.mark.parametrize("role", MAPS)
def test_the_map_itself(role: Role) -> None:
    rgb, alpha = scene()
    assert torch.allclose(answer("map", f"matting_{role}", rgb, alpha)[0, 3], maps(alpha)[role], atol=1e-6)


@pytest.mark.parametrize("task", ["matting_auto", "matting_trimap", "matting_precise", "matting_rough"])
def test_grabcut_takes_every_map_but_alpha(task: str) -> None:
    rgb, alpha = scene(soft=0.5)
    assert float(measure(answer("grabcut", task, rgb, alpha)[0, 3], alpha)["mad"]) < 0.01
    assert not BASELINES["grabcut"].does("matting_alpha")


def test_mattes_have_the_subjects_own_colours() -> None:
    rgb, alpha = scene(soft=8)
    made = answer("closed-form", "matting_trimap", rgb, alpha)[0]
    edge = (alpha > 0.3) & (alpha < 0.7)
    red = torch.tensor([0.9, 0.1, 0.1])[:, None]
    assert float((made[:3, edge] - red).abs().mean()) < 0.08 < float((rgb[:, edge] - red).abs().mean())
    assert torch.equal(made[:3, made[3] == 1], rgb[:, made[3] == 1])


@pytest.mark.parametrize("name", ["telea", "navier-stokes", "mean-colour"])
@pytest.mark.parametrize("role", MAPS)
def test_a_removal_touches_only_the_hole(name: str, role: Role) -> None:
    rgb, alpha = scene(soft=1)
    made = answer(name, f"removal_{role}", rgb, alpha)[0, :3]
    where = removal_mask(maps(alpha)[role], role)
    assert torch.equal(made[:, ~where], rgb[:, ~where])
    assert float(made[0, 30, 34]) < 0.3 < float(rgb[0, 30, 34])  # the red is gone


def test_a_hole_that_is_everywhere_gets_the_mean_colour() -> None:
    rgb, _ = scene()
    made = answer("telea", "removal_rough", rgb, torch.ones(SIDE, SIDE))[0, :3]
    assert torch.allclose(made, rgb.mean(dim=(1, 2), keepdim=True).expand_as(made), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "task"),
    [("grabcut-telea", "decompose_auto"), ("closed-form-telea", "decompose_trimap"), ("map-telea", "decompose_alpha")],
)
def test_a_matte_and_what_is_filled_behind_it_recompose(name: str, task: str) -> None:
    rgb, alpha = scene(soft=2)
    back, front = answer(name, task, rgb, alpha)
    assert float(measure(front[3], alpha)["mad"]) < 0.03
    assert rgba.psnr(rgba.recompose([back, front])[:3], rgb) > 25
    assert float(back[0, 30, 34]) < 0.3


def test_baselines() -> None:
    rgb, alpha = scene()
    asked = TASKS["decompose_auto"].example(image=rgba.opaque(rgb), layers=3)
    layers = BASELINES["unchanged"].make([asked], [0])[0]
    assert layers.shape[0] == 3 and torch.equal(layers[0, :3], rgb) and not layers[1:].any()
    assert torch.equal(answer("unchanged", "background_to_full", rgb, alpha)[0, :3], rgb)
    assert bool((answer("opaque", "matting_auto", rgb, alpha)[0, 3] == 1).all())
    assert not answer("blank", "matting_auto", rgb, alpha)[0, 3].any()
    assert bool((answer("blank", "removal_auto", rgb, alpha)[0, :3] == 0.5).all())


def test_a_finder_answers_at_the_size_of_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, file = fake_finder(monkeypatch), tmp_path / "u2netp.onnx"
    file.write_bytes(b"one")
    method = baselines.finder(file)
    assert (method.name, opened) == ("u2netp", [str(file)])
    assert [name for name in TASKS if method.does(name)] == ["matting_auto"]
    rgb, alpha = scene()
    rgb = torch.cat([alpha[None], rgb[1:]])[:, :, :48]  # what it finds is its red
    made = method.make([example("matting_auto", rgb, alpha[:, :48])], [0])[0]
    small = F.interpolate(rgb[None, :1], size=(SEEN, SEEN), mode="area")
    wanted = F.interpolate(small, size=(SIDE, 48), mode="bilinear", align_corners=False)[0, 0]
    assert made.shape == (1, 4, SIDE, 48) and torch.allclose(made[0, 3], wanted, atol=1e-6)
    assert float(measure(made[0, 3], alpha[:, :48])["mad"]) < 0.05
    file.write_bytes(b"two")
    assert baselines.finder(file).identity != method.identity and baselines.finder(file, "it").name == "it"
