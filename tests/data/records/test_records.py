"""Rows become examples: what each task gets of a record, targets that fit the inputs, and clear mistakes."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from layered import HEIGHT, WIDTH, back, front, layered_row, pair_row, save
from omnialpha import rgba
from omnialpha.data.records.pictures import fitted, levels
from omnialpha.data.records.records import LayeredRecord, PairRecord, parse
from omnialpha.data.scene import draw_map
from omnialpha.errors import InputError
from omnialpha.tasks import DERIVED, MAPS, TASKS, Role

SIZE = (HEIGHT, WIDTH)
FG, BG, COMPOSITE = Role.FOREGROUND, Role.BACKGROUND, Role.COMPOSITE


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def layered(folder, layers=1, **changes):
    record = parse(layered_row(folder, 3, layers, **changes), folder)
    assert isinstance(record, LayeredRecord)
    return record


def true(pixels):
    """uint8 (H, W, 3 or 4) as the package holds pictures."""
    x = torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)
    return x if len(x) == 4 else torch.cat([x, torch.ones_like(x[:1])])


def fault(values, task=""):
    with pytest.raises(InputError) as caught:
        parse(values, Path(), task)
    return str(caught.value)


# ---- what a record serves ------------------------------------------------------------------------------------------


def test_a_full_record_serves_all_tasks(tmp_path):
    assert layered(tmp_path).tasks() == tuple(TASKS) and len(TASKS) == 21


@pytest.mark.parametrize(
    ("without", "lost"),
    [
        ("captions", {name for name, row in TASKS.items() if row.text}),
        ("foreground", set(TASKS)),
        ("background", {name for name, row in TASKS.items() if row.inputs + row.targets != (FG,)}),
    ],
)
def test_what_is_missing_takes_tasks_away(tmp_path, without, lost):
    changes = {without: None} | ({"captions": {"background": "x"}} if without == "foreground" else {})
    assert set(layered(tmp_path, **changes).tasks()) == set(TASKS) - lost


def test_a_given_composite_stands_for_what_it_is_made_of(tmp_path):
    save(back(9), tmp_path / "flat.png")
    row = layered_row(tmp_path, 3, background=None, composite="flat.png", captions={"full": "a scene"})
    tasks = parse(row, tmp_path).tasks()
    matting = {name for name in TASKS if name.startswith("matting") and name != "matting_text"}
    assert set(tasks) == matting | {"foreground_to_full"}
    mask = {"id": 1, "composite": "a.png", "background": "b.png", "rough": "c.png"}
    assert parse(mask, Path()).tasks() == ("removal_auto", "removal_rough"), "a map is all that a removal needs"


def test_layers_are_bounded_by_the_tasks(tmp_path):
    def tasks(count):
        row = {"id": 1, "foreground": [f"{k}.png" for k in range(count)], "background": "b.png"}
        return set(parse(row | {"captions": {"background": "a place"}}, Path()).tasks())

    assert {"decompose_auto", "foreground_to_background"} <= tasks(7)
    assert "decompose_auto" not in tasks(8) and "foreground_to_background" in tasks(8)
    assert "foreground_to_background" not in tasks(9) and "removal_auto" in tasks(9)


def test_records_are_lazy_and_can_be_sent_to_processes(tmp_path):
    record = parse({"id": 1, "foreground": "nowhere.png"}, tmp_path)
    assert pickle.loads(pickle.dumps(record)) == record


# ---- examples of one foreground --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_inputs_and_targets_fit_each_other(tmp_path, name):
    """At the files' own size every picture is the file, and what is derived follows from the files."""
    record, row = layered(tmp_path), TASKS[name]
    example = record.example(name, seeded(0), SIZE)
    targets = example.true_layers()
    assert example.task == name and example.roles == row.inputs and example.size == SIZE
    assert targets.shape == (len(row.targets), 4, *SIZE) and example.targets == row.targets
    fore, behind = true(front(3)), true(back(3))
    wanted = {FG: fore, BG: behind, COMPOSITE: rgba.recompose([behind, fore])}
    wanted[Role.FULL] = wanted[COMPOSITE]
    for role, picture in zip(example.roles + example.targets, [*example.inputs, *targets], strict=True):
        if role in wanted:
            assert (rgba.premultiply(picture) - rgba.premultiply(wanted[role])).abs().max() < 1e-6
    for role, picture in zip(example.roles, example.inputs, strict=True):
        if role in MAPS:
            assert bool((picture[3] == 1).all()) and float(picture[0][fore[3] == 1].min()) >= 0.5
    if row.text:
        assert {FG: "disk 3", BG: "ramp 3"}.get(row.text, "disk 3 in front of ramp 3") in example.instruction


def test_a_draw_is_its_generator(tmp_path):
    record = layered(tmp_path)
    one, again = (record.example("matting_rough", seeded(1), (16, 16)) for _ in range(2))
    assert one.instruction == again.instruction and torch.equal(one.truths[0], again.truths[0])
    assert all(torch.equal(p, q) for p, q in zip(one.inputs, again.inputs, strict=True))
    words = {record.example("matting_auto", seeded(s), (16, 16)).instruction for s in range(40)}
    assert words == set(TASKS["matting_auto"].instructions)
    radii = {float(record.example("matting_rough", seeded(s), SIZE).inputs[1].mean()) for s in range(10)}
    assert len(radii) > 3, "masks are drawn afresh"


def test_given_maps_are_taken_and_keep_their_levels(tmp_path):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:30, 5:25] = 255
    save(mask, tmp_path / "mask.png")
    trimap = mask // 2
    trimap[15:25, 10:20] = 255
    save(trimap, tmp_path / "trimap.png")
    record = layered(tmp_path, rough="mask.png", trimap="trimap.png")
    rough = record.example("removal_rough", seeded(0), SIZE).inputs[1]
    assert torch.equal(rough[0], torch.from_numpy(mask / 255).float())
    for name, values in (("removal_rough", {0, 1}), ("removal_trimap", {0, 0.5, 1})):
        small = record.example(name, seeded(0), (20, 23)).inputs[1]
        assert set(small[0].unique().tolist()) == values


def test_a_map_may_come_as_a_cut_out(tmp_path):
    save(front(3), tmp_path / "cut.png")
    picture = layered(tmp_path, alpha="cut.png").example("matting_alpha", seeded(0), SIZE).inputs[1]
    assert torch.allclose(picture[0], true(front(3))[3], atol=1e-6)


def test_a_trimap_of_a_veil_is_not_unknown_everywhere():
    """A layer that is nowhere definite still has a most opaque part."""
    alpha = torch.full((20, 20), 0.4)
    alpha[8:12, 8:12] = 0.6
    values = draw_map(Role.TRIMAP, alpha, seeded(0))
    assert float(values[0].max()) == 1.0
    assert torch.equal(levels(values, Role.TRIMAP), values)


# ---- several foregrounds ---------------------------------------------------------------------------------------------


def scene(folder):
    """Two layers, and their pictures."""
    return layered(folder, 2), [true(front(3, k)) for k in range(2)], true(back(3))


def near(a, b):
    return bool((rgba.premultiply(a) - rgba.premultiply(b)).abs().max() < 1e-5)


def test_all_layers_back_to_front_where_a_task_has_several(tmp_path):
    record, layers, behind = scene(tmp_path)
    example = record.example("decompose_auto", seeded(0), SIZE)
    targets = example.truths
    assert example.targets == (BG, FG, FG)
    assert all(near(t, w) for t, w in zip(targets, [behind, *layers], strict=True))
    assert near(rgba.recompose([*targets]), example.inputs[0])
    example = record.example("foreground_to_full", seeded(0), SIZE)
    targets = example.truths
    assert example.roles == (FG, FG) and near(targets[0], rgba.recompose([behind, *layers]))
    example = record.example("background_to_foreground", seeded(0), SIZE)
    targets = example.truths
    assert example.targets == (FG, FG) and "disk 3 0 and disk 3 1" in example.instruction


def test_a_text_names_one_of_the_layers_in_the_picture_of_all(tmp_path):
    record, layers, behind = scene(tmp_path)
    named = set()
    for seed in range(12):
        example = record.example("matting_text", seeded(seed), SIZE)
        targets = example.truths
        which = next(k for k in range(2) if f"disk 3 {k}" in example.instruction)
        assert near(targets[0], layers[which]) and near(example.inputs[0], rgba.recompose([behind, *layers]))
        named.add(which)
    assert named == {0, 1}


def test_without_a_map_the_subject_is_all_layers_as_one(tmp_path):
    record, layers, behind = scene(tmp_path)
    for seed in range(4):
        assert near(record.example("matting_auto", seeded(seed), SIZE).truths[0], rgba.recompose(layers))
        assert near(record.example("removal_auto", seeded(seed), SIZE).truths[0], behind)


@pytest.mark.parametrize("name", ["matting_alpha", "removal_alpha", "decompose_alpha"])
def test_a_map_marks_all_or_the_front_layer_and_the_rest_is_background(tmp_path, name):
    record, layers, behind = scene(tmp_path)
    whole = rgba.recompose([behind, *layers])
    cases = {"all": (rgba.recompose(layers), behind), "front": (layers[1], rgba.recompose([behind, layers[0]]))}
    seen = set()
    for seed in range(12):
        example = record.example(name, seeded(seed), SIZE)
        targets = example.truths
        assert near(example.inputs[0], whole)
        marked = example.inputs[1][0]
        case = next(case for case, (subject, _) in cases.items() if torch.allclose(marked, subject[3], atol=1e-5))
        subject, rest = cases[case]
        for role, target in zip(example.targets, targets, strict=True):
            assert near(target, {FG: subject, BG: rest}[role])
        seen.add(case)
    assert seen == set(cases)


def test_a_given_composite_or_map_is_about_all_layers(tmp_path):
    save(back(7), tmp_path / "flat.png")
    save(front(3)[..., 3], tmp_path / "mask.png")
    for given in ({"composite": "flat.png"}, {"rough": "mask.png"}):
        record = layered(tmp_path, 2, **given)
        layers = [true(front(3, k)) for k in range(2)]
        assert all(
            near(record.example("matting_rough", seeded(s), SIZE).truths[0], rgba.recompose(layers)) for s in range(8)
        )


# ---- scaling and cutting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (20, 28), (64, 32), (33, 100)])
def test_all_pictures_are_cut_alike(tmp_path, size):
    """The target over the background is the composite at every size: no picture is shifted or stretched alone."""
    example = layered(tmp_path).example("decompose_rough", seeded(4), size)
    targets = example.truths
    assert targets[0].shape[-2:] == size
    assert (rgba.recompose([*targets])[:3] - example.inputs[0][:3]).abs().max() < 1e-5


def test_a_cut_keeps_the_subject_and_moves():
    x = torch.zeros(4, 20, 100)
    x[3, 8:12, 70:76] = 1
    places = set()
    for seed in range(30):
        (cut,) = fitted([x], (20, 20), [x[3]], seeded(seed))
        assert float(cut[3].sum()) >= 0.9 * 24
        places.add(int(cut[3].argmax() % 20))
    assert len(places) > 5
    anywhere = [float(fitted([x], (20, 20), [], seeded(s))[0][3].sum()) for s in range(30)]
    assert 0.0 in anywhere and max(anywhere) > 0


def test_no_halo_at_an_edge():
    x = torch.zeros(4, 32, 32)
    x[:3] = 1.0  # white under alpha 0
    x[0, 8:24, 8:24], x[1:3, 8:24, 8:24], x[3, 8:24, 8:24] = 0.5, 0.0, 1.0
    (cut,) = fitted([x], (13, 13), [], seeded(0))
    seen = cut[:, cut[3] > 0]
    assert float((seen[0] - 0.5).abs().max()) < 1e-3 and float(seen[1].max()) < 1e-3


# ---- pairs -----------------------------------------------------------------------------------------------------------


def test_a_pair_serves_its_task(tmp_path):
    record = parse(pair_row(tmp_path, 5), tmp_path, "matting_rough")
    assert isinstance(record, PairRecord) and record.tasks() == ("matting_rough",)
    example = record.example("matting_rough", seeded(0), SIZE)
    targets = example.truths
    assert example.roles == (COMPOSITE, Role.ROUGH) and example.targets == (FG,)
    assert near(targets[0], true(front(5))) and near(example.inputs[0], true(back(5)))
    assert set(example.inputs[1][0].unique().tolist()) == {0.0, 1.0}
    assert example.instruction in TASKS["matting_rough"].instructions
    whole = parse(pair_row(tmp_path, 5, "Do  it."), tmp_path, "matting_rough")
    asked = whole.example("matting_rough", seeded(0), SIZE)
    assert asked.instruction == asked.prompt == "Do it." and example.prompt is None


def test_the_prompt_of_a_text_pair_is_what_is_described(tmp_path):
    save(front(1), tmp_path / "a.png")
    row = {"id": 1, "prompt": "a disk", "input_images": [], "output_images": ["a.png"]}
    record = parse(row, tmp_path, "text_to_image")
    asked = [record.example("text_to_image", seeded(s), (24, 24)) for s in range(30)]
    assert {e.instruction for e in asked} == {w.format(prompt="a disk") for w in TASKS["text_to_image"].instructions}
    assert {e.prompt for e in asked} == {"a disk"}


def test_a_pair_of_several_layers(tmp_path):
    save(back(1), tmp_path / "in.png")
    for k in range(2):
        save(front(1, k), tmp_path / f"{k}.png")
    row = {"id": 1, "input_images": ["in.png"], "output_images": ["in.png", "0.png", "1.png"]}
    record = parse(row, tmp_path, "decompose_auto")
    example = record.example("decompose_auto", seeded(0), SIZE)
    targets = example.truths
    assert example.targets == (BG, FG, FG) and near(targets[2], true(front(1, 1)))


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_mistakes_in_a_row():
    assert fault("[1") == "the row is '[1', not a JSON object."
    assert fault({"foreground": "a.png"}) == "the row has no id: give it one of its own."
    assert "'forground' is unknown: did you mean 'foreground'?" in fault({"id": 1, "forground": "a.png"})
    assert "'inputs_images' is unknown: did you mean 'input_images'?" in fault(
        {"id": 1, "inputs_images": [], "output_images": ["a.png"]}
    )
    assert "'captions.foregound' is unknown: did you mean 'captions.foreground'?" in fault(
        {"id": 1, "foreground": "a.png", "captions": {"foregound": "x"}}
    )
    two = {"id": 1, "foreground": ["a.png", "b.png"]}
    assert "captions.foreground has 1, the row has 2 foreground(s)" in fault(two | {"captions": {"foreground": "x"}})
    assert "captions.full is ' ': write text" in fault(two | {"captions": {"full": " "}})
    assert fault({"id": 1, "captions": {}}) == "the row names no picture."
    assert "is a layered record, and `task` is for pairs" in fault(two, "matting_auto")
    pair = {"id": 1, "input_images": ["a.png"], "output_images": ["b.png"]}
    assert "input_images has 1, matting_rough takes 2." in fault(pair, "matting_rough")
    assert "matting_auto makes 1 layer(s), not 2" in fault(pair | {"output_images": ["b", "c"]}, "matting_auto")
    assert "output_images is empty" in fault(pair | {"output_images": []}, "matting_auto")
    assert "input_images is 'a.png': write a list." in fault(pair | {"input_images": "a.png"}, "matting_auto")


def test_mistakes_in_pictures(tmp_path):
    def drawn(**changes):
        with pytest.raises(InputError) as caught:
            layered(tmp_path, **changes).example("removal_auto", seeded(0), SIZE)
        return str(caught.value)

    save(back(1)[:20], tmp_path / "small.png")
    assert "record 'r3': There is no file" in drawn(background="nowhere.png")
    assert "small.png is 56x20 px" in (told := drawn(background="small.png")) and "56x40 px: make them" in told
    save(np.zeros_like(front(1)), tmp_path / "empty.png")
    assert "record 'r3': a foreground or a map is empty" in drawn(foreground="empty.png")
    with pytest.raises(InputError, match="'r3' cannot serve matting_text: it serves matting_auto"):
        layered(tmp_path, captions=None).example("matting_text", seeded(0), SIZE)


# ---- the page --------------------------------------------------------------------------------------------------------


def needs():
    """The table of docs/data.md, from the table of tasks."""
    lines = ["| task | pictures | caption of | of several foregrounds |", "|---|---|---|---|"]
    for row in TASKS.values():
        roles = dict.fromkeys(COMPOSITE if role is Role.FULL else role for role in row.inputs + row.targets)
        pictures = ", ".join(f"{role}{'*' * (role in DERIVED)}" for role in roles)
        several = "all as one, or the front one" if set(MAPS) & roles.keys() else "all as one"
        if row.many is FG:
            several = "a layer each"
        elif row.text is FG:
            several = "one, drawn"
        lines.append(f"| `{row.name}` | {pictures} | {row.text or ''} | {several} |")
    return "\n".join(lines)


def test_the_page_says_what_each_task_needs():
    """When this fails, put what `needs` returns between the page's two marks."""
    page = (Path(__file__).parents[3] / "docs/data.md").read_text(encoding="utf-8")
    assert page.partition("<!-- needs: begin -->\n")[2].partition("\n<!-- needs: end -->")[0] == needs()
