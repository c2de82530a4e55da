"""The pointer: what it is told, the files it is read from, and the hint that a finder gets of it."""

from dataclasses import replace

import pytest
import torch

from finders import Red
from omnialpha.errors import InputError
from omnialpha.hints import add_hint, pointed
from omnialpha.models.finder import U2NetP, open_finder
from omnialpha.models.pointer import CELLS, WEIGHTS, Pointer
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


def test_the_hint_is_a_rough_map_of_what_is_named():
    finder, picture = Red(hints=True), torch.ones(4, 30, 50)
    finder.pointer = At(slice(0, 12), slice(6, 12), 0.9)
    made = pointed(finder, picture, "Cut out the cup.", read)
    assert made.shape == (96, 96)
    assert (made[:, :40] == -1).all() and (made[:, 56:] == 0).all()
    assert finder.pointer.asked[1].tolist() == [[16.0] * 6]
    assert pointed(finder, picture, "", read) is None and pointed(finder, picture, "cup", None) is None
    finder.pointer = At(slice(0, 12), slice(6, 12), 0.05)
    assert pointed(finder, picture, "cup", read) is None, "what it names is not there"
    finder.pointer = None
    assert pointed(finder, picture, "cup", read) is None


def test_a_text_says_where_the_finder_looks(tiny_model):
    request = TASKS["matting_text"].example(image_of(red=True), prompt="a cup")
    finder = Red(hints=True)
    finder.pointer = At(slice(0, 6), slice(0, 12), 0.9)
    made = add_hint(request, finder, tiny_model.card, looks=1, read=read)
    assert made.roles[-1] == "hint" and torch.equal(finder.asked[0][0], pointed(finder, request.inputs[0], "x", read))
    automatic = TASKS["matting_auto"].example(image_of(red=True))
    add_hint(automatic, finder, tiny_model.card, looks=1, read=read)
    assert finder.asked[1] is None, "nothing is named"
    card = replace(tiny_model.card, alpha_from_finder=["matting_text"])
    with pytest.raises(InputError, match="cannot be told by words"):
        add_hint(request, Red(hints=True), card, read=read)


def image_of(red):
    picture = torch.zeros(4, 24, 40)
    picture[3] = 1
    picture[0, 6:18, 10:30] = float(red)
    return {"composite": picture}
