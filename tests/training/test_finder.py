"""The finder's training: what is trained and what is not, the hints that it is shown, that it learns and resumes."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from omnialpha import config
from omnialpha.data.records import hints
from omnialpha.errors import InputError
from omnialpha.models.finder import open_finder
from omnialpha.models.u2net import U2NetP
from omnialpha.training.finder import FinderBatch, FinderLoss, FinderObjective, FinderRecipe
from omnialpha.training.loop import fit
from training_runs import assert_resumes, logged, seeded, settings

SIDE = 32


def net(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return U2NetP(inner=4, width=8, depths=(4, 4, 4))


def objective(bank, held_out, photographs=3, seed=5, loss=None):
    return FinderObjective(net(), bank, held_out, loss or FinderLoss(), 8, photographs, SIDE, seed)


# ---- hints ----------------------------------------------------------------------------------------------------------


def subject(kind):
    """Alpha (64, 64) of a soft disk, a thin ring's half and a faint smudge."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    distance = ((y - 30) ** 2 + (x - 36) ** 2).sqrt()
    soft = ((18 - distance) / 6 + 0.5).clamp(0, 1)
    return {"disk": soft, "glass": soft * 0.4, "dot": ((y == 3) & (x == 60)).float()}[kind]


@pytest.mark.parametrize("shape", ["disk", "glass", "dot"])
@pytest.mark.parametrize("name", hints.KINDS)
def test_a_hint_says_more_of_the_subject_than_of_the_rest(name, shape):
    alpha = subject(shape)
    for seed in range(8):
        made = hints.hint(name, alpha, seeded(seed))
        assert made.shape == alpha.shape and -1 <= made.min() <= made.max() <= 1
        if name == "none":
            assert not made.any()
        elif (name, shape) not in {("precise", "glass"), ("trimap", "dot"), ("trimap", "glass")}:  # nothing is solid
            inside, outside = (float((made * share).sum() / share.sum()) for share in (alpha, (alpha == 0).float()))
            assert made.any() and inside > outside, (name, shape, seed)


def test_the_signs_of_hints():
    """Certain background is never where the subject is, certain subject never where it is not."""
    alpha = subject("disk")
    for seed in range(8):
        made = {name: hints.hint(name, alpha, seeded(seed)) for name in hints.KINDS}
        assert torch.equal(made["alpha"], 2 * alpha - 1)
        assert (made["rough"].max(), made["rough"].min()) == (0, -1) and (alpha[made["rough"] == -1] == 0).all()
        assert set(made["trimap"].unique().tolist()) == {-1, 0, 1}
        assert (alpha[made["trimap"] == 1] > 0.9).all() and (alpha[made["trimap"] == -1] == 0).all()
        assert set(made["precise"].unique().tolist()) == {-0.5, 1} and (alpha[made["precise"] == 1] > 0.9).all()
        box = made["box"]
        assert (box.max(), box.min()) == (0, -1) and (alpha[box == -1] * 1.0).sum() < 0.1 * alpha.sum()
        assert alpha[made["clicks"] == 1].max() > 0.8 and 1 <= (made["clicks"] == 1).sum() < 50
        assert (alpha[made["clicks"] == -1] < 0.5).all()


def test_kinds_are_drawn_by_their_shares_and_faint_subjects_are_not_pointed_at():
    generator, alpha = seeded(0), F.interpolate(subject("disk")[None, None], size=(16, 16), mode="area")[0, 0]
    drawn = [hints.draw_hint(alpha, generator)[0] for _ in range(600)]
    for name, (share, _) in hints.KINDS.items():
        assert drawn.count(name) / 600 == pytest.approx(share / 0.6, abs=0.07), name
    assert "none" not in drawn
    assert not any(hints.draw_hint(alpha * 0.09, generator)[1].any() for _ in range(20))


# ---- the objective --------------------------------------------------------------------------------------------------


def test_the_losses_by_hand(bank, held_out):
    own = objective(bank, held_out, loss=FinderLoss(alpha=1, edge=2, composition=3, logistic=4))
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 1] = 100.0
    own.net = type("Net", (torch.nn.Module,), {"forward": lambda _, x: logits, "read": lambda _, *a: a[0]})()
    alpha, contrast = torch.tensor([[[1.0, 0.0], [0.5, 0.0]]]), torch.tensor([[[0.4, 0.0], [1.0, 0.2]]])
    made = own.losses(FinderBatch(torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 2), alpha, contrast, ["none"]))
    assert made["alpha"] == pytest.approx(1.5 / 4)
    assert made["edge"] == pytest.approx((0.5 + 0) / 2 + (1 + 0.5) / 2)  # down the rows, along the columns
    assert made["composition"] == pytest.approx((0.5 * 0.4 + 0.5 * 0.2) / 4)
    assert made["logistic"] == pytest.approx((math.log(2) + (0 + 100 + 50 + 100) / 4) / 2)
    terms = [made[name].item() * k for k, name in enumerate(("alpha", "edge", "composition", "logistic"), 1)]
    assert made["loss"].item() == pytest.approx(sum(terms))


def test_a_batch_is_a_function_of_its_index_and_seed(bank, held_out):
    first, again, other = (objective(bank, held_out)(i) for i in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first) and first["loss"] != other["loss"]
    assert objective(bank, held_out, seed=6)(3)["loss"] != first["loss"]


def test_a_batch_holds_scenes_and_photographs_with_hints_that_fit(bank, held_out, monkeypatch):
    own, seen = objective(bank, held_out), []
    monkeypatch.setattr(own, "losses", lambda drawn: seen.append(drawn) or {})
    for index in range(6):
        own(index)
    for drawn in seen:
        assert drawn.pictures.shape == (8, 4, SIDE, SIDE) and drawn.hints.shape == drawn.alpha.shape == (8, SIDE, SIDE)
        assert drawn.pictures.min() >= 0 and drawn.pictures.max() <= 1 and (drawn.pictures[:, 3] == 1).all()
        assert drawn.hints.abs().max() <= 1 and "none" not in drawn.kinds
        assert not drawn.contrast[6:].any() and drawn.contrast[:6].any(), "of photographs layers are not known"
        assert drawn.alpha[6:].amin((1, 2)).tolist() == [0, 0], "stretched as the published network is read"
    score = torch.cat([(d.hints * (2 * d.alpha - 1))[:6].flatten() for d in seen])
    assert score[score != 0].mean() > 0.4


def test_of_two_objects_the_marked_one_is_the_subject_and_unmarked_all_are(bank, held_out, monkeypatch):
    own = objective(bank, held_out)
    monkeypatch.setattr("omnialpha.training.finder.cut", lambda maps, generator: maps)
    for kind in ("alpha", "none"):
        monkeypatch.setattr(hints, "draw_hint", lambda alpha, g, k=kind: (k, hints.hint(k, alpha, g)))
        drawn = own.scenes(bank, 4, 2, seeded(1))
        if kind == "alpha":
            marked = drawn.hints.flatten(1).any(1)
            assert marked.any() and torch.allclose(drawn.hints[marked], 2 * drawn.alpha[marked] - 1, atol=1e-6)
            one = drawn.alpha
        else:
            assert not drawn.hints.any() and (drawn.alpha >= one - 1e-6).all() and drawn.alpha.sum() > 1.2 * one.sum()


# ---- runs -----------------------------------------------------------------------------------------------------------


def train(own, folder, **changes):
    """On its first batch again and again."""
    generator = own.forward
    own.forward = lambda index: generator(0)
    fit(own, settings(folder, steps=12, lr=1e-2, save_every=1000, **changes), quiet=True)
    return logged(folder)


def test_what_reads_hints_is_trained_and_the_published_weights_are_not(bank, held_out, tmp_path):
    own = objective(bank, held_out)
    before, teacher = copy.deepcopy(own.net.state_dict()), copy.deepcopy(own._teacher[0].state_dict())
    losses = train(own, tmp_path)
    assert sum(losses[-3:]) < 0.97 * sum(losses[:3])
    moved = {name for name, value in own.net.state_dict().items() if not torch.equal(value, before[name])}
    told = {name for name in before if name.startswith("told.")}
    assert len(moved & told) > 0.9 * len(told)
    assert not moved - told, "without hints the network is the published one"
    assert all(torch.equal(value, teacher[name]) for name, value in own._teacher[0].state_dict().items())
    assert not any("teacher" in name for name in own.state_dict())


def test_it_resumes_bit_for_bit_and_measures_by_kind_of_hint(bank, held_out, tmp_path, monkeypatch):
    quick = lambda own, pictures, marked=None: own(own.read(pictures, marked, SIDE))[:, 0].sigmoid()  # noqa: E731
    monkeypatch.setattr(U2NetP, "find", quick)
    moved = assert_resumes(lambda: objective(bank, held_out), tmp_path, validate_every=6)
    assert all(step == 0 for name, step in moved.items() if not name.startswith("net.told."))
    for name in ("mad/clicks", "mad/two/clicks", "mad/photo/clicks"):
        (figure,) = logged(tmp_path / "straight", name)
        assert 0 < figure < 1
    assert not logged(tmp_path / "straight", "mad/none")
    exported = open_finder(tmp_path / "straight/model")
    assert torch.equal(exported.fuse.weight, net().fuse.weight.half().float())


def test_a_recipe_makes_the_objective(tmp_path):
    net().save(tmp_path / "start", torch.float32)
    data = {"size": SIDE, "foregrounds": 6, "backgrounds": 3}
    tree = {"kind": "finder", "start": str(tmp_path / "start"), "fit": {"output": "o", "steps": 1, "lr": 1e-3}}
    made = config.build(FinderRecipe, tree | {"data": data, "side": SIDE, "batch": 4}).objective()
    assert made.photographs == 0, "drawn scenes are no photographs"
    assert torch.equal(made.net.fuse.weight, net().fuse.weight) and made(0)["loss"].isfinite()
    with pytest.raises(InputError, match="batch=3 is too small"):
        config.build(FinderRecipe, tree | {"batch": 3}).objective()
