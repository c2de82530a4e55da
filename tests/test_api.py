"""The verbs give back the kind that they were given, and choose the task from what lies beside the picture."""

import numpy as np
import pytest
import torch
from PIL import Image

from omnialpha import io
from omnialpha.api import completion_task, select_task
from omnialpha.errors import InputError
from omnialpha.io.layers import LayerStack
from omnialpha.tasks import TASKS, Role

H, W = 18, 27
PIXELS = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
SOLID = np.dstack([PIXELS, np.full((H, W), 255, np.uint8)])
MASK = np.zeros((H, W), np.uint8)
MASK[5:12, 6:18] = 255
KINDS = ("PIL", "uint8", "float32", "tensor", "uint8 tensor", "path", "Picture")


def as_kind(kind, pixels, tmp_path, name="in.png"):
    if kind == "PIL":
        return Image.fromarray(pixels)
    if kind == "uint8":
        return pixels
    if kind == "float32":
        return (pixels / 255).astype(np.float32)
    if kind == "tensor":
        return (
            torch.from_numpy(pixels / np.float32(255)).movedim(-1, 0) if pixels.ndim == 3 else torch.from_numpy(pixels)
        )
    if kind == "uint8 tensor":
        return torch.from_numpy(pixels).movedim(-1, 0)
    Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path / name if kind == "path" else io.read_image(tmp_path / name)


def check_kind(made, kind):
    """It is an RGBA picture of that kind; returns it as float (4, H, W)."""
    if kind in ("PIL", "path", "Picture"):
        assert isinstance(made, Image.Image) and made.mode == "RGBA" and made.size == (W, H)
    elif kind in ("uint8", "float32"):
        assert isinstance(made, np.ndarray) and made.shape == (H, W, 4) and made.dtype == kind
    else:
        assert isinstance(made, torch.Tensor) and made.shape == (4, H, W)
        assert made.dtype == (torch.float32 if kind == "tensor" else torch.uint8)
    return io.to_rgba(made)


@pytest.mark.parametrize("kind", KINDS)
def test_matte_gives_back_the_kind(tiny_model, tmp_path, kind):
    made = check_kind(tiny_model.matte(as_kind(kind, PIXELS, tmp_path), alpha=MASK, steps=1), kind)
    wanted = io.to_rgba(SOLID)
    assert torch.equal(made[3], torch.from_numpy(MASK / np.float32(255)))
    inside = torch.from_numpy(MASK == 255)
    assert torch.equal(made[:3, inside], wanted[:3, inside]), "bit-equal through every kind"


@pytest.mark.parametrize("kind", KINDS)
def test_remove_gives_back_the_kind(tiny_model, tmp_path, kind):
    made = check_kind(tiny_model.remove(as_kind(kind, PIXELS, tmp_path), rough=Image.fromarray(MASK), steps=1), kind)
    outside = torch.from_numpy(MASK == 0)
    assert torch.equal(made[:, outside], io.to_rgba(SOLID)[:, outside])
    assert (made[3] == 1).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("full", [True, False])
def test_complete_gives_back_the_kind(tiny_model, tmp_path, kind, full):
    made = check_kind(
        tiny_model.complete("a cellar", foreground=as_kind(kind, SOLID, tmp_path), full=full, steps=1), kind
    )
    assert (made[3] == 1).all(), "a whole picture, or a background"


def test_complete_takes_a_list(tiny_model):
    made = tiny_model.complete("two mugs", foreground=[SOLID, SOLID], steps=1)
    assert made.shape == (H, W, 4) and made.dtype == np.uint8


def test_decompose_is_a_stack(tiny_model):
    stack = tiny_model.decompose(PIXELS, steps=1)
    assert isinstance(stack, LayerStack) and stack.size == (H, W)
    assert [layer.name for layer in stack] == ["background", "foreground"]
    assert len(tiny_model.decompose(PIXELS, layers=4, steps=1)) == 4
    marked = tiny_model.decompose(PIXELS, precise=MASK, steps=1)
    assert [layer.role for layer in marked] == ["background", "foreground"]


def test_generate(tiny_model):
    made = tiny_model.generate("a red mug", steps=1)
    assert isinstance(made, Image.Image) and made.mode == "RGBA" and made.size == (32, 32)
    assert tiny_model.generate("a red mug", size=(H, W), steps=1).size == (W, H)
    assert tiny_model.generate("a red mug", seed=1, steps=1).tobytes() != made.tobytes()
    assert tiny_model.generate("a red mug", seed=0, steps=1).tobytes() == made.tobytes()


def test_options_reach_the_run(tiny_model):
    seen = []
    tiny_model.matte(PIXELS, steps=3, guidance=1.0, on_step=lambda step, cond: seen.append((step.total, cond.examples)))
    assert len(seen) == 3 and seen[0][0] == 3 and seen[0][1][0].task == "matting_auto"
    raw = tiny_model.remove(PIXELS, rough=MASK, steps=1, raw=True)
    assert not np.array_equal(raw[MASK == 0], SOLID[MASK == 0])
    with pytest.raises(TypeError, match="stepps"):
        tiny_model.matte(PIXELS, stepps=3)


@pytest.mark.parametrize(
    ("verb", "given", "text", "task"),
    [
        ("matte", {}, None, "matting_auto"),
        ("matte", {}, "", "matting_auto"),
        ("matte", {}, "the mug", "matting_text"),
        ("matte", {Role.TRIMAP: 1}, None, "matting_trimap"),
        ("matte", {Role.ALPHA: 1, Role.ROUGH: None}, None, "matting_alpha"),
        ("remove", {}, None, "removal_auto"),
        ("remove", {Role.PRECISE: 1}, None, "removal_precise"),
        ("decompose", {}, None, "decompose_auto"),
        ("decompose", {Role.ROUGH: 1}, None, "decompose_rough"),
    ],
)
def test_what_lies_beside_the_picture_chooses_the_task(verb, given, text, task):
    assert select_task(verb, given, text) is TASKS[task]


def test_completions():
    assert completion_task(1, None, True) is TASKS["foreground_to_full"]
    assert completion_task(1, None, False) is TASKS["foreground_to_background"]
    assert completion_task(None, 1, True) is TASKS["background_to_full"]
    assert completion_task(None, 1, False) is TASKS["background_to_foreground"]


def test_what_cannot_be_chosen(tiny_model):
    with pytest.raises(InputError, match="matte got trimap, rough together: give one of them"):
        tiny_model.matte(PIXELS, trimap=MASK, rough=MASK)
    with pytest.raises(InputError, match="matte got alpha, text together"):
        tiny_model.matte(PIXELS, alpha=MASK, text="the mug")
    with pytest.raises(InputError, match="remove takes no text, but got 'the mug'"):
        select_task("remove", {}, "the mug")
    for sides in ({}, {"foreground": SOLID, "background": PIXELS}):
        with pytest.raises(InputError, match="needs a foreground or a background: give exactly one"):
            tiny_model.complete("a cellar", **sides)
    with pytest.raises(InputError, match="layers=9 is out of range"):
        tiny_model.decompose(PIXELS, layers=9)
    with pytest.raises(InputError, match="needs a text"):
        tiny_model.generate("  ")
    with pytest.raises(InputError, match="no file"):
        tiny_model.matte("no/such/file.png")
