"""What a run may be asked for: the library refuses what the command line refuses, before any work, in one sentence."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from omnialpha import limits, sampling
from omnialpha.cli.options import Options
from omnialpha.errors import InputError
from omnialpha.tasks import TASKS

PICTURE = torch.ones(4, 16, 24)
WRONG = [
    ("seed", -1, "seed=-1 is out of range: use 0 to 9223372036854775807"),
    ("seed", 2**64, f"seed={2**64} is out of range"),
    ("seed", 1.5, "seed=1.5 is not a whole number"),
    ("seed", "7", "seed='7' is not a whole number"),
    ("seed", [1, 2], "2 seeds were given for 1 examples"),
    ("seed", [-1], "seed=-1 is out of range"),
    ("steps", 0, "steps=0 is out of range: use 1 to 1000"),
    ("steps", 1001, "steps=1001 is out of range"),
    ("steps", 1.5, "steps=1.5 is not a whole number"),
    ("steps", "3", "steps='3' is not a whole number"),
    ("guidance", float("nan"), "guidance=nan is out of range: use 0 to 30"),
    ("guidance", 30.5, "guidance=30.5 is out of range"),
    ("guidance", "2", "guidance='2' is not a number"),
]


@pytest.fixture
def unable(tiny_model, monkeypatch):
    """A model that cannot do any work."""
    monkeypatch.setattr(type(tiny_model), "condition", lambda *arguments, **options: pytest.fail("work was done"))
    return tiny_model


@pytest.mark.parametrize(("name", "value", "sentence"), WRONG)
def test_a_run_refuses(unable, name, value, sentence):
    with pytest.raises(InputError) as refused:
        unable.matte(PICTURE, **{name: value})
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ((20000, 20000), "size=(20000, 20000) (height, width) is out of range: use sides of 1 to 16384 px."),
        ((16384, 16384), "use at most 89,478,485 pixels"),
        ((0, 9), "size=(0, 9) (height, width) is out of range"),
        ((96, -1), "is out of range"),
        ("96x96", "size='96x96' (height, width) is not a size: pass (height, width) in whole pixels"),
        ((96.0, 96), "is not a size: pass (height, width) in whole pixels"),
        (96, "is not a size"),
        ((1, 2, 3), "is not a size"),
        ((), "is not a size"),
    ],
)
def test_a_size_is_refused(unable, size, sentence):
    with pytest.raises(InputError) as refused:
        unable.generate("a mug", size=size)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    "picture",
    [
        np.broadcast_to(np.uint8(0), (20000, 20000, 3)),
        torch.zeros(1, dtype=torch.uint8).expand(3, 20000, 20000),
        SimpleNamespace(size=(20000, 20000)),  # as PIL has it
    ],
    ids=["array", "tensor", "PIL"],
)
def test_a_picture_that_no_file_could_hold_is_refused(unable, picture):
    with pytest.raises(InputError, match="20000.* has more than 89,478,485 pixels: make it smaller or crop it"):
        unable.matte(picture)


def test_numbers_of_numpy_are_numbers(tiny_model):
    wanted = tiny_model.matte(PICTURE, seed=3, steps=2, guidance=2.0)
    made = tiny_model.matte(PICTURE, seed=np.int64(3), steps=np.int64(2), guidance=np.float32(2))
    assert torch.equal(made, wanted)
    assert torch.equal(tiny_model.matte(PICTURE, seed=[np.int64(3)], steps=2, guidance=2), wanted)
    assert not torch.equal(tiny_model.matte(PICTURE, seed=4, steps=2, guidance=2.0), wanted)
    size = (np.int64(20), np.int64(30))
    assert tiny_model.generate("a mug", size=size, steps=1).size == (30, 20)
    assert TASKS["text_to_image"].example(prompt="a mug", size=size).size == (20, 30)
    tiny_model.matte(PICTURE, seed=limits.MAX_SEED, steps=1)


def test_seeds_of_a_batch_are_its_own(tiny_model):
    examples = [TASKS["matting_auto"].example(image=PICTURE)] * 2
    cond = tiny_model.condition(examples)
    assert torch.equal(tiny_model.noise(cond, 5), tiny_model.noise(cond, np.array([5, 6])))


def test_the_command_line_says_the_same():
    with pytest.raises(InputError, match="seed=-1 is out of range: use 0 to 9223372036854775807"):
        Options(seed=-1)
    with pytest.raises(InputError, match="steps=0 is out of range: use 1 to 1000"):
        sampling.check_settings(0, None)
    with pytest.raises(InputError, match=r"--size 20000x9 is out of range: use sides of 1 to 16384 px\."):
        Options(size="20000x9").height_width(TASKS["text_to_image"])
    assert Options(size="30x20").height_width(TASKS["text_to_image"]) == (20, 30)


def test_a_size_reads_width_first():
    assert limits.by((20, 30)) == "30x20" and limits.by(torch.ones(20, 30).shape) == "30x20"
