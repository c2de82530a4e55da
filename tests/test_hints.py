"""What a model is told by its finder: which tasks get an input more, which take its alpha, which stay as they are."""

from dataclasses import replace

import pytest
import torch

from finders import SIDE, Red
from omnialpha import fidelity, loading, masks
from omnialpha.errors import InputError
from omnialpha.evaluation.suite.suite import of_model
from omnialpha.hints import add_hint, count_inputs, look
from omnialpha.models.checkpoints.folders import resolve
from omnialpha.models.finder import FINDER, hint_of
from omnialpha.models.u2net import U2NetP
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import MAPS, TASKS, Role
from omnialpha.training.latent_cache.cache import decode, encode

AUTOMATIC = ("matting_auto", "removal_auto", "decompose_auto")
H, W = 24, 40


def picture(alpha=False):
    made = torch.rand(4, H, W, generator=torch.Generator().manual_seed(1))
    made[3] = 1
    made[0] = 0
    made[0, 6:18, 10:30] = 1
    if alpha:
        made[3] = made[0]
    return made


def guide():
    made = torch.zeros(H, W)
    made[4:20, 8:32], made[8:16, 14:26] = 0.5, 1
    return made


def example(name, **settings):
    row = TASKS[name]
    given = {role: guide() if role in MAPS else picture(alpha=role is Role.FOREGROUND) for role in row.inputs}
    return row.example(given, prompt="a mug" if row.text else None, size=(H, W), **settings)


def with_finder(model, finder, **changes):
    """The same networks with a finder, under another card."""
    made = OmniAlpha(model.vae, model.transformer, model.text_encoder, replace(model.card, **changes)).eval()
    made.use_finder(finder)
    return made


# ---- examples -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_tasks_whose_subject_no_map_marks_get_an_input_more(name, tiny_model):
    request, finder = example(name), Red()
    made = add_hint(request, finder, tiny_model.card)
    if name not in (*AUTOMATIC, "matting_text"):
        assert made is request and not finder.asked
        return
    assert made.roles == (*request.roles, Role.HINT) and len(made.inputs) == len(request.inputs) + 1
    assert made.found.shape == (2 * SIDE, 2 * SIDE) and made.found[16, 16] > 0.9 and made.found[0, 0] == 0
    assert torch.equal(made.inputs[-1], masks.as_picture(made.found))
    assert (made.instruction, made.targets, made.size) == (request.instruction, request.targets, request.size)
    assert finder.asked == [None, None], "nothing says where to look, and it looks twice"
    assert add_hint(made, finder, tiny_model.card) is made and len(finder.asked) == 2, "and no more"


def test_training_may_take_one_look_or_none(tiny_model):
    request, finder = example("matting_auto"), Red()
    made = add_hint(request, finder, tiny_model.card, looks=1)
    assert made.roles == (*request.roles, Role.HINT) and made.found.shape == (SIDE, SIDE) and len(finder.asked) == 1
    own = with_finder(tiny_model, finder)
    assert [len(own.condition([request], looks=count).layouts[0].inputs) for count in (0, 1, 2)] == [1, 2, 2]


def test_an_example_is_counted_as_it_will_be(tiny_model):
    request = example("decompose_auto", layers=3)
    made = add_hint(request, Red(), tiny_model.card)
    asked = ((request, False), (request, True), (made, True))
    assert [count_inputs(one, found) for one, found in asked] == [1, 2, 2]
    assert count_inputs(example("matting_rough"), True) == 2
    by_text = example("matting_text")
    assert count_inputs(by_text, True) == len(add_hint(by_text, Red(), tiny_model.card).roles) == 2


@pytest.mark.parametrize("role", MAPS)
def test_a_map_says_where_to_look_where_the_card_takes_alpha_from_the_finder(role, tiny_model):
    card = replace(tiny_model.card, alpha_from_finder=[f"matting_{role}"])
    request, finder = example(f"matting_{role}"), Red(hints=True)
    made = add_hint(request, finder, card)
    assert made.roles == request.roles and made.inputs is request.inputs, "there is no input more"
    assert made.found.shape == (2 * SIDE, 2 * SIDE)
    assert torch.equal(finder.asked[0], hint_of(role, guide())[None])
    others = (example(f"removal_{role}"), Red(hints=True)), (request, Red())  # other tasks; one that takes no hints
    assert all(add_hint(other, found, card) is other and not found.asked for other, found in others)


# ---- the path -------------------------------------------------------------------------------------------------------


def test_a_model_without_a_finder_changes_nothing(tiny_model):
    requests = [example(name) for name in TASKS]
    assert tiny_model.finder is None
    assert all(a is b for a, b in zip(tiny_model.add_hints(requests), requests, strict=True))


def test_a_condition_has_one_input_more(tiny_model):
    requests = [example("matting_auto"), example("matting_rough"), example("text_to_image")]
    own = with_finder(tiny_model, Red())
    plain, told = tiny_model.condition(requests), own.condition(requests)
    assert [len(layout.inputs) for layout in plain.layouts] == [1, 2, 0]
    assert [len(layout.inputs) for layout in told.layouts] == [2, 2, 0]
    assert told.inputs.shape[1] >= sum(h * w for h, w in told.layouts[0].inputs)
    assert told.layouts[0].targets == plain.layouts[0].targets
    assert told.examples[0].found is not None and told.examples[1].found is None


def test_a_hint_is_heard_and_other_tasks_are_as_before(tiny_model):
    own, settings = with_finder(tiny_model, Red()), {"seed": 3, "raw": True}
    requests = [example("matting_auto"), example("matting_rough")]
    plain, told = ([stack[0].rgba for r in requests for stack in m.run([r], **settings)] for m in (tiny_model, own))
    again = [own.run([r], **settings)[0][0].rgba for r in requests]
    assert all(torch.equal(a, b) for a, b in zip(told, again, strict=True)), "one seed is one picture"
    assert (told[0] - plain[0]).abs().max() > 1e-4 and torch.equal(told[1], plain[1])
    together = own.run(requests, seed=[3, 3], raw=True)
    assert all((stack[0].rgba - one).abs().max() < 1e-4 for stack, one in zip(together, told, strict=True))


def test_the_canvas_is_that_of_all_pictures(tiny_model):
    grid = replace(tiny_model.card.grid, sample_pixels=2 * 32 * 32)
    own = with_finder(tiny_model, Red(), grid=grid)
    request = example("matting_auto")
    size = own.canvas(request).size
    assert own.canvas(own.add_hints([request])[0]).size == own.condition([request]).canvases[0].size == size
    own.use_finder(None)
    assert own.canvas(request).size > size, "with one picture less they are larger"


def test_alpha_from_the_finder(tiny_model):
    names = ["matting_auto", "decompose_auto", "matting_rough"]
    own = with_finder(tiny_model, Red(hints=True), alpha_from_finder=names)
    found = torch.nn.functional.interpolate(
        look(Red(), picture())[None, None], size=(H, W), mode="bilinear", antialias=True
    )[0, 0]
    (matte,), (_, front) = (own.run([example(name)])[0] for name in names[:2])
    wanted = fidelity.snap_alpha(torch.cat([picture()[:3], found[None]]))[3]
    assert torch.equal(matte.rgba[3], wanted) and torch.equal(front.rgba[3], wanted)
    (rough,) = own.run([example("matting_rough")])[0]
    assert torch.equal(rough.rgba[3], torch.where(guide() < fidelity.SNAP, 0, wanted))
    (other,) = with_finder(tiny_model, Red(hints=True)).run([example("matting_auto")])[0]
    assert not torch.equal(other.rgba[3], wanted), "only where the card says so"


def test_layers_that_the_finder_does_not_tell_apart_keep_their_own_alphas(tiny_model):
    request = example("decompose_auto", layers=3)
    made = with_finder(tiny_model, Red(), alpha_from_finder=["decompose_auto"]).run([request])[0]
    plain = with_finder(tiny_model, Red()).run([request])[0]
    assert all(torch.equal(a.rgba, b.rgba) for a, b in zip(made, plain, strict=True))


def test_automatic_removal_leaves_all_but_the_found_subject_bit_equal(tiny_model):
    (made,) = with_finder(tiny_model, Red()).run([example("removal_auto")])[0]
    where = fidelity.removal_mask_of_finder(look(Red(), picture()), (H, W))
    assert torch.equal(made.rgba[:, ~where], picture()[:, ~where])
    assert (picture()[0] == 1)[where].any() and not (picture()[0] == 1)[~where].any()
    assert not torch.equal(made.rgba[:, where], picture()[:, where])


def test_a_cached_batch_is_the_condition_that_it_was_made_of(tiny_model):
    own = with_finder(tiny_model, Red())
    requests = [example("matting_auto"), example("matting_rough")]
    batch = [replace(one, truths=(picture(alpha=True),) * len(one.targets)) for one in requests]
    with torch.no_grad():
        cond, x0 = decode(own, *encode(own, "me", batch, 1.0, torch.float32), [False, False])
        wanted = own.condition(requests)
        assert cond.layouts == wanted.layouts and torch.equal(cond.inputs, wanted.inputs)
        assert torch.equal(x0, own.encode_targets([one.true_layers() for one in batch], wanted))


# ---- folders --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tiny_model, tmp_path):
    """The tiny model in a folder with a tiny finder."""
    net = U2NetP(inner=4, width=8, depths=(4, 4, 4)).eval()
    with_finder(tiny_model, net).save(tmp_path / "model")
    return tmp_path / "model"


def test_a_finder_is_saved_and_loaded_with_its_model(folder, tiny_model):
    parts = resolve(folder)
    assert parts.finder == folder / FINDER and parts.card.finder == FINDER
    model = OmniAlpha.from_folder(folder)
    assert isinstance(model.finder, U2NetP) and model.finder.config["width"] == 8
    assert not any(name.startswith("_finder") for name in model.state_dict()), "it is no part of what is trained"
    assert model.state_dict().keys() == tiny_model.state_dict().keys()


def test_another_finder_takes_the_place_of_the_cards(folder, tiny_model_folder, tmp_path, monkeypatch):
    other = tmp_path / "other.onnx"
    opened, stand_in = [], Red()
    monkeypatch.setattr("omnialpha.pretrained.open_finder", lambda path: opened.append(path) or stand_in)
    assert resolve(folder, finder=str(other)).finder == other
    model = loading.load(folder, finder=other, device="cpu")
    assert opened == [other] and model.finder is stand_in
    model.run([example("matting_auto")])
    assert len(stand_in.asked) == 2
    with pytest.raises(InputError, match=r"tiny takes no hints of a finder: leave out .*other\.onnx"):
        resolve(tiny_model_folder, finder=other)


def test_a_finder_that_is_missing_is_named(folder, tmp_path):
    with pytest.raises(InputError, match="nothing is no finder"):
        loading.load(folder, finder=tmp_path / "nothing", device="cpu")
    for path in (folder / FINDER).iterdir():
        path.unlink()
    (folder / FINDER).rmdir()
    with pytest.raises(InputError, match=f"{FINDER} is no finder: give an .onnx file"):
        OmniAlpha.from_folder(folder)


def test_marks_are_read_by_a_finder_that_takes_hints(tiny_model):
    own, deaf = Red(hints=True), Red()
    made = with_finder(tiny_model, own).outline(picture(), [(20, 12)], [])
    assert made.shape == (H, W) and made[12, 20] == 1 and made[0, 0] == 0 and len(own.asked) == 1
    with_finder(tiny_model, deaf).outline(picture(), [(20, 12)], [])
    assert not deaf.asked, "the bundled one reads them where the model's own cannot"
    own.asked.clear()
    model = with_finder(tiny_model, own)
    cut = model.matte(picture(), points=[(20, 12)], boxes=[(8, 4, 24, 16)])
    assert torch.equal(own.asked[0], masks.marks((H, W), [(20, 12)], [(8, 4, 24, 16)])[None])
    outside = made.new_zeros(H, W, dtype=torch.bool)
    outside[:4], outside[20:], outside[:, :8], outside[:, 32:] = True, True, True, True
    assert (cut[3][outside] == 0).all()
    with pytest.raises(InputError, match="rough, points or boxes together"):
        model.matte(picture(), points=[(20, 12)], rough=guide())


def test_nothing_is_sampled_where_the_finders_alpha_is_all(
    tiny_model: OmniAlpha, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = with_finder(tiny_model, Red(), alpha_from_finder=["matting_auto"])
    own.card = replace(own.card, refine=True)
    asked = TASKS["matting_auto"].example(image=torch.rand(4, 48, 40, generator=torch.Generator().manual_seed(0)))
    quick, steps = own.run([asked])[0], list[int]()
    own.run([asked], raw=True, on_step=lambda step, _: steps.append(step.index))
    assert steps  # raw asks the model itself
    monkeypatch.setattr("omnialpha.hints.cut_out", lambda *_: None)
    assert torch.equal(quick[0].rgba, own.run([asked])[0][0].rgba)
    monkeypatch.undo()
    monkeypatch.setattr(own.transformer, "forward", lambda *_: pytest.fail("the transformer was asked"))
    own.run([asked])


def test_the_suite_decodes_one_sampling_in_both_ways(tiny_model: OmniAlpha) -> None:
    own = with_finder(tiny_model, Red(), alpha_from_finder=["matting_auto"])
    own.card = replace(own.card, refine=True)
    asked = TASKS["matting_auto"].example(image=torch.rand(4, 48, 40, generator=torch.Generator().manual_seed(0)))
    [both] = of_model(own).make([asked], [3])
    for made, raw in zip(both, (False, True), strict=True):
        assert torch.equal(made[0], own.run([asked], seed=3, raw=raw)[0][0].rgba.clamp(0, 1))
