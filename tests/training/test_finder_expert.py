"""The expert's training: what it sees of which kind, that it and its gate learn while its finder stays, and resumes."""

import copy

import pytest
import torch

from omnialpha import config
from omnialpha.errors import InputError
from omnialpha.models.finder import open_finder
from omnialpha.models.u2net import DrawingExpert, U2NetP
from omnialpha.training.finder import FinderLoss
from omnialpha.training.finder_expert import ExpertObjective, ExpertRecipe
from omnialpha.training.loop import fit
from training_runs import assert_resumes, logged, seeded, settings


@pytest.fixture(scope="module")
def finder():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return U2NetP(inner=4, width=8, depths=(4, 4, 4)).eval().requires_grad_(False)


@pytest.fixture
def own(finder, bank, held_out, monkeypatch):
    """Makes an objective: drawn layers are those of `bank`, folders' those of `held_out`."""
    monkeypatch.setattr(DrawingExpert, "side_length", 32)

    def make(seed=5):
        net = copy.deepcopy(finder)
        torch.manual_seed(0)
        net.expert = DrawingExpert.of(net)
        return ExpertObjective(net, bank, held_out, (bank, held_out), FinderLoss(), 8, seed)

    return make


def test_a_batch_is_a_function_of_its_index_and_seed(own):
    first, again, other = (own()(i) for i in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first) and first["loss"] != other["loss"]
    assert own(seed=6)(3)["loss"] != first["loss"]
    terms = {"alpha": 1.0, "edge": 1.0, "logistic": 0.3, "gate": 1.0}
    assert first["loss"].item() == pytest.approx(sum(share * first[name].item() for name, share in terms.items()))


def test_scenes_come_with_the_alpha_of_all_their_objects(own, bank, monkeypatch):
    monkeypatch.setattr("omnialpha.training.finder_expert.cut", lambda maps, generator: maps)
    made = own()
    for objects in (1, 2):
        pictures, alpha = made.scenes(bank, 4, objects, seeded(1))
        assert pictures.shape == (4, 4, 32, 32) and not pictures[:, 3].any(), "no hint"
        assert alpha.shape == (4, 32, 32) and alpha.min() >= 0 and alpha.max() <= 1 + 1e-6
        assert (alpha.amax((1, 2)) > 0.2).all()


def test_some_batches_are_grey_or_as_a_camera_takes_them_and_none_is_where_all_are_plain(own, bank, monkeypatch):
    made, shown = own(), []
    monkeypatch.setattr(made.net, "read", lambda pictures: shown.append(pictures) or pictures)
    for seed in range(60):
        made.photographs(bank, 1, seeded(seed))
    grey = sum(bool((one[:, 0] == one[:, 2]).all()) for one in shown)
    assert 1 <= grey <= 15 and all((one[:, 3] == 1).all() and one.shape[1] == 4 for one in shown)
    shown.clear()
    for seed in range(20):
        made.photographs(bank, 1, seeded(seed), plain=True)
    assert not any((one[:, 0] == one[:, 2]).all() for one in shown)


def test_the_gate_learns_what_is_a_drawing_and_alpha_is_not_asked_of_photographs(own, monkeypatch):
    made, seen = own(), {}
    empty = lambda bank, count, *_: (torch.zeros(count, 4, 32, 32), torch.zeros(count, 32, 32))  # noqa: E731
    monkeypatch.setattr(made, "scenes", empty)
    monkeypatch.setattr(made, "photographs", lambda bank, count, _: torch.zeros(count, 4, 32, 32))
    wanted = torch.tensor([9.0] * 6 + [-9.0] + [-9.0])  # 5 + 1 drawn, 1 of the folders, which it may call anything, 1
    for folders in (9.0, -9.0):
        wanted[6] = folders
        monkeypatch.setattr(made.net, "judge", lambda features: wanted)
        assert made(0)["gate"] < 1e-3
    monkeypatch.setattr(made.net, "judge", lambda features: -wanted)
    assert made(0)["gate"] > 8
    decode = made.net.decode
    monkeypatch.setattr(made.net, "decode", lambda features, x: seen.update(n=len(x)) or decode(features, x))
    made(0)
    assert seen["n"] == 7


def test_the_expert_learns_and_its_finder_does_not(own, tmp_path):
    made = own()
    before, generator = copy.deepcopy(made._finder[0].state_dict()), made.forward
    made.forward = lambda index: generator(0)
    fit(made, settings(tmp_path, steps=30, lr=1e-2, save_every=1000), quiet=True)
    for name in ("alpha", "gate"):
        losses = logged(tmp_path, name)
        assert sum(losses[-3:]) < 0.9 * sum(losses[:3]), name
    back, started = open_finder(tmp_path / "model"), "expert."
    assert all(
        torch.equal(value.half().float(), back.state_dict()[name])
        for name, value in before.items()
        if not name.startswith(started)
    )
    assert not torch.equal(back.expert.fuse.weight, back.fuse.weight) and back.expert.gate.weight.any()


def test_it_resumes_bit_for_bit_and_measures_by_kind_of_picture(own, tmp_path):
    assert_resumes(own, tmp_path, validate_every=6)
    for name in ("mad/drawn", "mad/folders", "drawings", "photographs"):
        (figure,) = logged(tmp_path / "straight", name)
        assert 0 <= figure <= 1


def test_a_recipe_makes_the_objective_or_says_what_it_lacks(finder, tmp_path, monkeypatch, bank):
    finder.save(tmp_path / "start", torch.float32)
    tree = {"kind": "finder-expert", "start": str(tmp_path / "start"), "fit": {"output": "o", "steps": 1, "lr": 1e-3}}
    data = {"size": 32, "foregrounds": 6, "backgrounds": 3, "folders": ["photographs"]}
    monkeypatch.setattr("omnialpha.training.finder_expert.banks.read", lambda *_: bank)
    monkeypatch.setattr("omnialpha.training.finder_expert.banks.unseen", lambda _: bank)
    made = config.build(ExpertRecipe, tree | {"data": data, "batch": 8}).objective()
    assert torch.equal(made.net.fuse.weight, finder.fuse.weight) and made(0)["loss"].isfinite()
    made.export(tmp_path / "again")
    with torch.no_grad():
        made.net.fuse.weight.add_(1)
    made.export(tmp_path / "again")
    more = config.build(ExpertRecipe, tree | {"data": data, "batch": 8, "start": str(tmp_path / "again")}).objective()
    assert torch.allclose(more.net.fuse.weight, finder.fuse.weight + 1, atol=1e-3), "it goes on"
    for changes, said in (
        ({"batch": 7}, "batch=7 is too small"),
        ({"data": data | {"folders": []}}, "give data.foregrounds and data.folders"),
        ({"data": data | {"foregrounds": 0}}, "give data.foregrounds and data.folders"),
    ):
        with pytest.raises(InputError, match=said):
            config.build(ExpertRecipe, tree | {"data": data, "batch": 8} | changes).objective()
