"""The table of 21 tasks, and what a request refuses before a model is asked."""

import string

import numpy as np
import pytest
import torch
from PIL import Image

from omnialpha.errors import InputError
from omnialpha.tasks import CATEGORIES, MAPS, MAX_LAYERS, MAX_PROMPT, TASKS, Role, check_map, task

SIZE = (12, 20)
MATTE = ("composite",), ("foreground",)
COMPLETION = {
    "foreground_to_background": (("foreground",), ("background",), "background"),
    "foreground_to_full": (("foreground",), ("full",), "full"),
    "background_to_foreground": (("background",), ("foreground",), "foreground"),
    "background_to_full": (("background",), ("full",), "full"),
}
FAMILIES = {"matting": ("foreground",), "removal": ("background",), "decompose": ("background", "foreground")}
MAP_NAMES = ("alpha", "trimap", "precise", "rough")


def picture(seed=0, size=SIZE, alpha=1.0):
    rgb = torch.rand(3, *size, generator=torch.Generator().manual_seed(seed))
    return torch.cat([rgb, torch.full((1, *size), alpha)])


def mask(role=Role.ROUGH, size=SIZE):
    """A map of that role: a white block, for a trimap with a grey rim."""
    grey = torch.zeros(size)
    if role is Role.TRIMAP:
        grey[1:9, 1:15] = 0.5
    grey[3:7, 4:12] = 1
    return grey


def inputs(row, many=1):
    """Pictures for every role of a row."""
    made = {}
    for k, role in enumerate(row.inputs):
        made[role] = mask(role) if role in MAPS else picture(k, alpha=0.5 if role is Role.FOREGROUND else 1.0)
    if row.many in row.inputs and many > 1:
        made[row.many] = [picture(10 + i, alpha=0.5) for i in range(many)]
    return made


def example(name, **changes):
    row = TASKS[name]
    settings = {"prompt": "a red mug" if row.text else None, "size": None if row.inputs else SIZE} | changes
    return row.example(settings.pop("images", inputs(row)), **settings)


# ---- the table ------------------------------------------------------------------------------------------------------


def test_the_21_rows():
    wanted = {"text_to_image": ((), ("foreground",))}
    wanted |= {name: (given, made) for name, (given, made, _) in COMPLETION.items()}
    for family, made in FAMILIES.items():
        wanted[f"{family}_auto"] = (("composite",), made)
        wanted |= {f"{family}_{m}": (("composite", m), made) for m in MAP_NAMES}
    wanted["matting_text"] = MATTE
    assert len(wanted) == 21
    assert {name: (row.inputs, row.targets) for name, row in TASKS.items()} == wanted
    assert all(row.name == name and row.summary for name, row in TASKS.items())


def test_categories():
    assert CATEGORIES == ("generation", "completion", "matting", "removal", "decomposition")
    count = {category: sum(row.category == category for row in TASKS.values()) for category in CATEGORIES}
    assert count == {"generation": 1, "completion": 4, "matting": 6, "removal": 5, "decomposition": 5}


def test_which_rows_take_a_text_and_whose_caption_it_is():
    wanted = {name: caption for name, (_, _, caption) in COMPLETION.items()}
    wanted |= {"text_to_image": "foreground", "matting_text": "foreground"}
    assert {name: row.text for name, row in TASKS.items() if row.text} == wanted


def test_which_rows_take_or_make_several():
    many = {name for name, row in TASKS.items() if row.many}
    assert many == {
        "foreground_to_background", "foreground_to_full", "background_to_foreground", "decompose_auto",
    }  # fmt: skip
    assert all(TASKS[name].many == Role.FOREGROUND for name in many)


@pytest.mark.parametrize("name", TASKS)
def test_wordings(name):
    row = TASKS[name]
    assert len(set(row.instructions)) == len(row.instructions) >= (8 if name.endswith("_auto") else 4)
    for wording in row.instructions:
        fields = [field for _, field, _, _ in string.Formatter().parse(wording) if field is not None]
        assert fields == (["prompt"] if row.text else [])
        assert wording == wording.strip() and "  " not in wording
    prompt = "A {glass} of 50 % milk" if row.text else None
    made = [row.instruct(prompt, i) for i in range(len(row.instructions))]
    assert len(set(made)) == len(made) and row.instruct(prompt, len(made)) == made[0]
    assert all(prompt is None or prompt in words for words in made), "braces of a prompt are the user's own"


def test_no_two_rows_share_a_wording():
    every = [wording for row in TASKS.values() for wording in row.instructions]
    assert len(set(every)) == len(every)


def test_the_map_is_named_in_some_wording_of_its_row():
    for family in FAMILIES:
        for role, words in {
            "alpha": "alpha map",
            "trimap": "trimap",
            "precise": "precise mask",
            "rough": "rough mask",
        }.items():
            assert all(words in wording for wording in TASKS[f"{family}_{role}"].instructions)


def test_task_names_the_nearest():
    assert task("matting_auto") is TASKS["matting_auto"]
    with pytest.raises(InputError, match="'mating_auto'.*did you mean 'matting_auto'"):
        task("mating_auto")


# ---- examples -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_an_example_of_every_row(name):
    row = TASKS[name]
    made = example(name)
    assert made.task == name and made.roles == row.inputs and made.targets == row.targets and made.size == SIZE
    assert all(p.shape == (4, *SIZE) and p.dtype == torch.float32 for p in made.inputs)
    for role, given, kept in zip(made.roles, inputs(row).values(), made.inputs, strict=True):
        if role in MAPS:
            assert torch.equal(kept, torch.stack([given, given, given, torch.ones(SIZE)]))
        else:
            assert torch.equal(kept, given)
    assert ("a red mug" in made.instruction) == (row.text is not None)


def test_several_foregrounds_keep_their_order():
    given = inputs(TASKS["foreground_to_full"], many=3)
    made = example("foreground_to_full", images=given)
    assert made.roles == (Role.FOREGROUND,) * 3
    assert all(torch.equal(a, b) for a, b in zip(made.inputs, given[Role.FOREGROUND], strict=True))


def test_layers_counts_all_targets():
    assert example("decompose_auto", layers=4).targets == ("background", "foreground", "foreground", "foreground")
    assert example("background_to_foreground", layers=3).targets == ("foreground",) * 3
    assert example("matting_auto", layers=1).targets == ("foreground",)
    assert example("decompose_trimap", layers=2).targets == ("background", "foreground")


def test_kinds_and_names_of_pictures():
    grey = np.full((*SIZE, 3), 128, np.uint8)
    row = TASKS["matting_rough"]
    a = row.example(composite=Image.fromarray(grey), rough=(mask() * 255).numpy().astype(np.uint8))
    b = row.example({Role.COMPOSITE: grey}, rough=mask())
    c = row.example(image=grey, rough=mask().bool())
    for other in (b, c):
        assert all(torch.equal(x, y) for x, y in zip(a.inputs, other.inputs, strict=True))
    assert torch.allclose(a.inputs[0][:3], torch.tensor(128 / 255)) and (a.inputs[0][3] == 1).all()


def test_a_cut_out_given_as_a_map_means_its_alpha():
    made = check_map(torch.cat([torch.rand(3, *SIZE), mask()[None]]), Role.ROUGH)
    assert torch.equal(made, torch.stack([mask(), mask(), mask(), torch.ones(SIZE)]))


def test_prompts_are_one_line():
    assert example("matting_text", prompt="  a red\n\t mug ", wording=0).instruction == "Cut out a red mug."


# ---- what is refused ------------------------------------------------------------------------------------------------

GREY, BLACK = torch.full(SIZE, 0.5), torch.zeros(SIZE)
REFUSED = {
    "missing role": ("matting_rough", {"images": {"composite": picture()}}, "needs a rough: give rough=PICTURE"),
    "missing picture": ("matting_auto", {"images": {}}, "needs a composite"),
    "no foregrounds": ("foreground_to_full", {"images": {"foreground": []}}, "needs a foreground"),
    "unknown role": ("matting_auto", {"trimap": mask()}, "has no input 'trimap': it takes composite"),
    "no pictures taken": ("text_to_image", {"image": picture()}, "has no input 'image': it takes no picture"),
    "twice the same": ("matting_auto", {"image": picture()}, "got image and composite"),
    "two composites": ("matting_auto", {"images": {"composite": [picture()] * 2}}, "got 2 pictures as composite"),
    "too many foregrounds": (
        "foreground_to_full",
        {"images": {"foreground": [picture()] * (MAX_LAYERS + 1)}},
        f"got 9 pictures as foreground: give at most {MAX_LAYERS}",
    ),
    "other size": (
        "matting_rough",
        {"images": {"composite": picture(size=(10, 30)), "rough": mask()}},
        "the rough is 20x12 px, the composite 30x10 px",
    ),
    "foregrounds of two sizes": (
        "foreground_to_full",
        {"images": {"foreground": [picture(), picture(size=(12, 21))]}},
        "the foreground is 21x12 px, the foreground 20x12 px",
    ),
    "not a picture": ("matting_auto", {"images": {"composite": 7}}, "A int is not a picture"),
    "black mask": ("removal_precise", {"images": {"composite": picture(), "precise": BLACK}}, "the precise is empty"),
    "transparent mask": (
        "removal_rough",
        {"images": {"composite": picture(), "rough": picture(alpha=0.0)}},
        "the rough is empty",
    ),
    "grey trimap": ("decompose_trimap", {"images": {"composite": picture(), "trimap": GREY}}, "unknown .grey."),
    "no prompt": ("matting_text", {"prompt": None}, "matting_text needs a text that describes the foreground"),
    "blank prompt": ("background_to_full", {"prompt": " \n "}, "needs a text that describes the full"),
    "long prompt": ("text_to_image", {"prompt": "x" * (MAX_PROMPT + 1)}, "has 2001 characters, the limit is 2000"),
    "prompt not taken": ("removal_auto", {"prompt": "the mug"}, "removal_auto takes no text, but got 'the mug'"),
    "no size": ("text_to_image", {"size": None}, "give size=.height, width."),
    "one layer": ("decompose_auto", {"layers": 1}, "layers=1 is out of range for decompose_auto: use 2 to 8"),
    "no layer": ("background_to_foreground", {"layers": 0}, "use 1 to 8"),
    "nine layers": ("decompose_auto", {"layers": 9}, "layers=9 is out of range"),
    "fixed layers": ("decompose_rough", {"layers": 3}, r"decompose_rough makes 2 layer\(s\), not 3"),
    "one matte": ("matting_auto", {"layers": 2}, r"makes 1 layer\(s\), not 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    name, changes, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        example(name, **changes)


def test_the_longest_prompt_and_partial_trimaps_are_taken():
    assert "x" * MAX_PROMPT in example("text_to_image", prompt="x" * MAX_PROMPT).instruction
    for sure in (0.0, 1.0):
        trimap = GREY.clone()
        trimap[0, 0] = sure
        assert example("matting_trimap", images={"composite": picture(), "trimap": trimap})
    faint = torch.zeros(SIZE)
    faint[4, 4] = 0.1
    assert example("matting_alpha", images={"composite": picture(), "alpha": faint})
