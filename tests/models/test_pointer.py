"""The pointer: what it is told, the files it is read from, and the hint that a finder gets of it."""

from dataclasses import replace

import pytest
import torch

from finders import Red
from omnialpha.errors import InputError
from omnialpha.hints import add_hint, cut_out, look_for, summaries
from omnialpha.models.finder import open_finder
from omnialpha.models.network_files import WEIGHTS
from omnialpha.models.pointer import CELLS, Pointer
from omnialpha.models.u2net import U2NetP
from omnialpha.tasks import TASKS


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def tiny(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Pointer(text_dim=6, width=8, blocks=2).eval()


class At(torch.nn.Module):
    """A pointer at a part of the cells, as sure as it is told to be."""

    def __init__(self, rows, columns, sure):
        super().__init__()
        self.where = torch.full((1, CELLS, CELLS), -12.0)
        self.where[:, rows, columns] = torch.logit(torch.tensor(sure))

    def forward(self, pictures, text):
        self.asked = (pictures, text)
        return self.where


def read(instructions):
    return torch.tensor([[float(len(text))] * 6 for text in instructions])


@torch.no_grad()
def test_its_answer_depends_on_the_picture_the_words_and_the_place():
    net, text = tiny(), rand(2, 6)
    pictures = torch.cat([rand(2, 3, 40, 64), torch.ones(2, 1, 40, 64)], dim=1)
    made = net(pictures, text)
    assert made.shape == (2, CELLS, CELLS)
    assert not torch.allclose(made, net(pictures, text.flip(0)), atol=1e-3)
    assert not torch.allclose(made, net(pictures.flip(0), text), atol=1e-3)
    plain = net(torch.ones(1, 4, 32, 32), text[:1])[0, 3:9, 3:9]  # away from the edges, where zeros are padded
    assert plain.std(0).max() > 1e-4 and plain.std(1).max() > 1e-4, "it knows rows and columns"
    hidden = pictures.clone()
    hidden[:, 3] = 0
    assert torch.allclose(net(hidden, text), net(torch.ones_like(hidden), text), atol=1e-5), "nothing is seen there"


def test_a_finder_keeps_its_pointer(tmp_path):
    finder = U2NetP(inner=4, width=8, depths=(4, 4, 4))
    finder.save(tmp_path / "plain")
    assert open_finder(tmp_path / "plain").pointer is None
    finder.pointer = tiny()
    finder.save(tmp_path / "told", torch.float32)
    found = open_finder(tmp_path / "told")
    assert isinstance(found.pointer, Pointer) and found.pointer.config == {"text_dim": 6, "width": 8, "blocks": 2}
    for name, value in finder.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    assert not any(p.requires_grad for p in found.parameters())
    (tmp_path / "told/pointer" / WEIGHTS).write_bytes(b"broken")
    with pytest.raises(InputError, match="the pointer in .* cannot be read"):
        open_finder(tmp_path / "told")


def scene(*columns):
    """Red blocks (4, 24, 40) that begin at these columns, on black."""
    picture = torch.zeros(4, 24, 40)
    picture[3] = 1
    for first in columns:
        picture[0, 6:18, first : first + 12] = 1
    return picture


LEFT, RIGHT = slice(2, 4), slice(8, 11)  # cells inside of blocks that begin at 3 and at 25
ROWS = slice(3, 9)


def asked(columns, place, sure=0.9, words="Cut out the cup."):
    """The hints that a finder was given."""
    finder = Red(hints=True)
    finder.pointer = At(ROWS, place, sure)
    look_for(finder, scene(*columns), read([words])[0] if words else None, 1)
    return finder.asked


def test_of_two_things_the_finder_is_told_which():
    own, told = asked((3, 25), RIGHT)
    assert own is None and told.shape == (1, 24, 40)
    assert (told[0, 8:16, 28:36] == 0).all() and (told[0, :, :20] == -1).all()
    assert (asked((3, 25), LEFT)[1][0, 8:16, 8:12] == 0).all()


def test_it_is_not_told_where_there_is_nothing_to_tell():
    assert asked((3,), LEFT) == [None], "the one thing that it sees is meant"
    assert len(asked((25,), LEFT)) == 2, "the one thing that it sees is not meant"
    assert asked((3, 25), RIGHT, sure=0.05) == [None], "what is named is not there"
    assert asked((3, 25), RIGHT, words="") == [None]


class Counting:
    """An encoder of lengths."""

    def __init__(self):
        self.asked = []

    def summary(self, instructions):
        self.asked.append(list(instructions))
        return read(instructions)


def test_an_example_by_text_takes_what_its_words_name(tiny_model):
    request = TASKS["matting_text"].example({"composite": scene(3, 25)}, prompt="a cup")
    other = TASKS["matting_auto"].example({"composite": scene(3, 25)})
    drawn = TASKS["text_to_image"].example(prompt="a cup", size=(24, 40))
    finder, encoder = Red(hints=True), Counting()
    finder.pointer = At(ROWS, RIGHT, 0.9)
    blank = replace(request, instruction="")
    said = summaries([request, other, drawn, request, blank], finder, encoder)
    assert encoder.asked == [[request.instruction] * 2], "all that name a subject, at once"
    assert [words is None for words in said] == [False, True, True, False, True]
    assert summaries([request], finder, None) == [None] == summaries([request], Red(), encoder)
    made = add_hint(request, finder, tiny_model.card, looks=1, said=said[0])
    assert made.roles[-1] == "hint" and len(finder.asked) == 2
    assert finder.pointer.asked[1].tolist() == [[float(len(request.instruction))] * 6]
    add_hint(other, finder, tiny_model.card, looks=1, said=said[1])
    assert len(finder.asked) == 3, "nothing is named"
    card = replace(tiny_model.card, alpha_from_finder=["matting_text"])
    with pytest.raises(InputError, match="cannot be told by words"):
        add_hint(request, Red(hints=True), card, said=said[0])


def test_what_a_text_names_is_cut_out_without_sampling(tiny_model):
    request = TASKS["matting_text"].example({"composite": scene(3, 25)}, prompt="a cup")
    finder = Red(hints=True)
    finder.pointer = At(ROWS, RIGHT, 0.9)
    card = replace(tiny_model.card, alpha_from_finder=["matting_text"])
    assert cut_out([request], finder, tiny_model.card, text_encoder=Counting()) is None
    assert cut_out([request], finder, card) is None, "who is not told asks the networks"
    (stack,) = cut_out([request], finder, card, text_encoder=Counting())
    alpha = stack[0].rgba[3]
    assert alpha[:, 25:37].max() > 0.9 and alpha[:, :20].max() < 0.1
    drawn = TASKS["text_to_image"].example(prompt="a cup", size=(24, 40))
    assert cut_out([request, drawn], finder, card, text_encoder=Counting()) is None, "all or none"
