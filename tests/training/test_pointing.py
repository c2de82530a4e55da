"""A pointer's training: it learns and resumes, and the finder and the instruction encoder stay as they are."""

import copy

import pytest
import torch

from omnialpha import config
from omnialpha.models.finder import open_finder
from omnialpha.models.pointer import Pointer
from omnialpha.models.text_encoder.tiny import build_tiny_text_encoder
from omnialpha.models.u2net import U2NetP
from omnialpha.training.pointing import PointerObjective, PointerRecipe
from training_runs import assert_resumes, logged, seeded

TEXT = {"vocab_size": 600, "text_dim": 32, "text_layers": 1, "heads": 2, "vision_dim": 16, "vision_depth": 1}


def parts(bank):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        finder, pointer = U2NetP(inner=4, width=8, depths=(4, 4, 4)), Pointer(32, width=8, blocks=1)
    return pointer, finder, build_tiny_text_encoder([c.text for c in bank.captions], picture_pixels=96 * 96, **TEXT)


def test_it_learns_resumes_bit_for_bit_and_leaves_the_rest(bank, held_out, tmp_path):
    pointer, finder, reader = parts(bank)
    before = [copy.deepcopy(part.state_dict()) for part in (finder, reader)]
    own = PointerObjective(pointer, finder, reader, bank, held_out, 4, 5)
    make = lambda: PointerObjective(*parts(bank), bank, held_out, 4, 5)  # noqa: E731
    moved = assert_resumes(make, tmp_path, validate_every=6)
    assert {name.split(".")[0] for name in moved} == {"pointer"} == {name.split(".")[0] for name in own.kept()}
    for figure in ("missed", "sure", "sure_of_absent"):
        assert all(0 <= value <= 1 for value in logged(tmp_path / "straight", figure))
    exported = open_finder(tmp_path / "straight/model")
    assert exported.pointer is not None and exported.pointer.config["text_dim"] == 32
    for part, was in zip((*own._finder, *own._text_encoder), before, strict=True):
        assert all(torch.equal(value, was[name]) for name, value in part.state_dict().items())


def test_the_loss_is_of_the_named_object_and_of_one_that_is_not_there(bank, held_out):
    own = PointerObjective(*parts(bank), bank, held_out, 4, 5)
    (there, before), (told, maps) = (own.places(bank, seeded(5 * 1_000_003), absent) for absent in (0, 1))
    assert not torch.equal(there[0], told[0]) and torch.equal(there[1:], told[1:]), "the first is asked for another's"
    assert before[0, 0].max() > 0 == maps[0, 0].max() and torch.equal(before[1:], maps[1:])
    with torch.no_grad():
        own.pointer.out.weight.zero_()
        own.pointer.out.bias.fill_(1.0)
        share, sure = maps[:, 0].mean(), torch.sigmoid(torch.tensor(1.0))
        wanted = -(share * sure.log() + (1 - share) * (1 - sure).log())
        assert float(own(0)["loss"]) == pytest.approx(float(wanted), rel=1e-4)


def test_a_recipe_makes_the_objective(bank, tmp_path):
    _, finder, reader = parts(bank)
    finder.save(tmp_path / "finder", torch.float32)
    reader.save_pretrained(tmp_path / "text")
    tree = {"kind": "pointer", "start": str(tmp_path / "finder"), "text_encoder": str(tmp_path / "text"), "batch": 2}
    tree |= {"fit": {"output": "o", "steps": 1, "lr": 1e-3}, "width": 8, "blocks": 1}
    made = config.build(PointerRecipe, tree | {"data": {"size": 32, "foregrounds": 6, "backgrounds": 3}}).objective()
    assert made(0)["loss"].isfinite() and made.pointer.config == {"text_dim": 32, "width": 8, "blocks": 1}
