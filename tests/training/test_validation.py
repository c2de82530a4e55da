"""Held-out examples of a run: which tasks, which records, the figures by hand, and the sheet that shows them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from layered import manifest
from omnialpha import config, rgba
from omnialpha.data.stream.datasets import DatasetSettings
from omnialpha.data.stream.stream import Stream, StreamSettings, open_stream
from omnialpha.data.synthetic.bank import Bank
from omnialpha.errors import InputError
from omnialpha.io import contact_sheet
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import TASKS, Example
from omnialpha.training import run as runs
from omnialpha.training import validation
from omnialpha.training.validation import ValidationSet, chosen, validate

SIZE = (32, 32)


def opened(path: Path, **settings: Any) -> Stream:
    return open_stream(StreamSettings([DatasetSettings(str(path), **settings)]), [SIZE], 1, 0)


# ---- which ones -----------------------------------------------------------------------------------------------------


def test_one_task_of_every_category_the_most_trained() -> None:
    weights = {
        "matting_text": 0.1,
        "matting_auto": 0.2,
        "removal_auto": 1.0,
        "removal_rough": 1.0,
        "text_to_image": 0.0,
    }
    assert chosen(weights, TASKS) == ["matting_auto", "removal_auto"]
    assert chosen(weights, ["matting_text", "removal_rough"]) == ["matting_text", "removal_rough"]
    assert chosen(weights, TASKS, ["matting_text", "decompose_auto"]) == ["matting_text", "decompose_auto"]
    assert len(chosen(dict.fromkeys(TASKS, 1.0), TASKS)) == 5


@pytest.mark.parametrize(
    ("able", "named", "words"),
    [
        (["decompose_auto"], [], "no held-out example is of a task that is trained"),
        (["matting_auto"], ["removal_auto"], "validation_tasks has removal_auto"),
        (["matting_auto"], ["matting_atuo"], "did you mean 'matting_auto'"),
    ],
)
def test_what_cannot_be_validated_is_refused(able: list[str], named: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        chosen({"matting_auto": 1.0}, able, named)


def test_records_are_shown_once_each_and_always_the_same(tmp_path: Path) -> None:
    """Red of a record's foreground is its number times ten."""
    held_out = ValidationSet(opened(manifest(tmp_path, 7)))
    for count, wanted in ((3, [0, 2, 4]), (7, [0, 1, 2, 3, 4, 5, 6]), (20, [0, 1, 2, 3, 4, 5, 6])):
        asked = held_out.examples("matting_auto", count, (1, 1))
        seen = [round(float(t[0][t[3] > 0.9].mean()) * 25.5) for e in asked for t in e.true_layers()]
        assert seen == wanted and all(e.size == SIZE and e.task == "matting_auto" for e in asked)
    first, again = (held_out.examples("matting_auto", 7, SIZE) for _ in range(2))
    assert [e.instruction for e in first] == [e.instruction for e in again]
    assert all(torch.equal(a.inputs[0], b.inputs[0]) for a, b in zip(first, again, strict=True))
    mixture = held_out.mixture({"matting_auto": 1.0, "text_to_image": 2.0}, [SIZE], 2, 5)
    assert {e.task for i in range(20) for e in mixture.batch(i)} == {"matting_auto", "text_to_image"}


def test_only_what_the_records_serve(tmp_path: Path) -> None:
    held_out = ValidationSet(opened(manifest(tmp_path, 2, background=None), bad="skip"))
    assert "text_to_image" in held_out.serves() and "matting_auto" not in held_out.serves()
    mixture = held_out.mixture({"matting_auto": 1.0, "text_to_image": 1.0}, [SIZE], 1, 0)
    assert mixture.weights == {"text_to_image": 1.0}


# ---- figures --------------------------------------------------------------------------------------------------------


def flat(red: float, alpha: float, size: tuple[int, int]) -> torch.Tensor:
    return torch.tensor([red, 0.5, 0.5, alpha]).view(4, 1, 1).expand(4, *size)


def asked(task: str, *inputs: torch.Tensor) -> Example:
    made = TASKS[task]
    return Example(task, made.inputs, inputs, "", made.targets, (2, 2))


def test_figures_by_hand_over_pictures_of_different_sizes() -> None:
    """Four pixels of one picture and twelve of another, so that a mean of means would be another number."""
    sizes = ((2, 2), (3, 4))
    made = [torch.stack([flat(0.5, a, s)]) for a, s in zip((0.2, 1.0), sizes, strict=True)]
    true = [torch.stack([flat(0.5, a, s)]) for a, s in zip((1.0, 0.6), sizes, strict=True)]
    figures = validation.matting([], made, true)
    assert figures["mad"] == pytest.approx((4 * 0.8 + 12 * 0.4) / 16)
    assert figures["constant_mad"] == pytest.approx(4 * 0.4 / 16)  # at the median, .6

    wrong = [torch.stack([flat(0.5 + d, 1.0, s)]) for d, s in zip((0.3, 0.1), sizes, strict=True)]
    error = (4 * 0.3**2 + 12 * 0.1**2) / (3 * 16)
    right = [torch.stack([flat(0.5, 1.0, s)]) for s in sizes]
    assert validation.removal([], wrong, right)["psnr"] == pytest.approx(-10 * np.log10(error), abs=1e-4)

    back, front = flat(0.2, 1.0, (2, 2)), flat(0.8, 0.5, (2, 2))
    whole = rgba.recompose([back, front])
    true = [torch.stack([back, front])]
    perfect = validation.decomposition([asked("decompose_auto", whole)], true, true)
    assert perfect["alpha_mad"] == 0 and perfect["recomposed_psnr"] > 100
    thin = [torch.stack([back, flat(0.8, 0.3, (2, 2))])]
    figures = validation.decomposition([asked("decompose_auto", whole)], thin, true)
    assert figures["alpha_mad"] == pytest.approx(0.2)
    error = ((0.2 + 0.6 * 0.3) - (0.2 + 0.6 * 0.5)) ** 2 / 4  # one of four channels differs
    assert figures["recomposed_psnr"] == pytest.approx(-10 * np.log10(error), abs=1e-3)


# ---- a run ----------------------------------------------------------------------------------------------------------


def test_every_category_is_measured_and_drawn(tiny_model: OmniAlpha, held_out: Bank, tmp_path: Path) -> None:
    names = chosen(dict.fromkeys(TASKS, 1.0), TASKS)
    paths = [tmp_path / "new" / f"{k}.png" for k in range(3)]
    figures = [
        validate(tiny_model, ValidationSet(held_out), names, count, together, SIZE, path)
        for count, together, path in zip((4, 4, 2), (4, 3, 2), paths, strict=True)
    ]
    assert set(figures[0]) == {
        "val_matting_auto_mad", "val_matting_auto_constant_mad", "val_removal_auto_psnr",
        "val_decompose_auto_alpha_mad", "val_decompose_auto_recomposed_psnr",
    }  # fmt: skip
    assert figures[0] == pytest.approx(figures[1], rel=1e-4), "however many are made together"
    assert all(np.isfinite(list(row.values())).all() for row in figures)
    heights = [Image.open(path).height for path in paths]
    assert heights[0] == heights[1] == pytest.approx(heights[2] * 3 / 2, rel=0.1), "three, or two, of each task"


def test_the_sheet_shows_the_truth(tiny_model: OmniAlpha, tmp_path: Path) -> None:
    """A layer in a colour that nothing else has: beside the truth it is in what goes in, under the same shape."""
    held_out = ValidationSet(opened(manifest(tmp_path, 3)))
    validate(tiny_model, held_out, ["foreground_to_background"], 1, 1, SIZE, tmp_path / "sheet.png")
    (example,) = held_out.examples("foreground_to_background", 1, SIZE)
    true = example.true_layers()
    pixels = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
    blue = (abs(pixels - np.array([0, 0, 200])) <= 2).all(-1)
    assert blue.sum() > 500, "the foreground that goes in"
    cell = np.asarray(contact_sheet.thumbnail(true[0], validation.SIDE)).astype(int)
    columns = [x for x in range(pixels.shape[1] - cell.shape[1]) if np.array_equal(pixels[48:192, x : x + 144], cell)]
    assert len(columns) == 1 and columns[0] > blue.any(0).nonzero()[0].max() + 144, "to the right of what was made"


RECIPE = {
    "kind": "sft",
    "batch": 2,
    "sizes": [[32, 32]],
    "validation": 3,
    "loss": {},
    "lora": {"rank": 2},
    "card": {"dtype": "float32"},
    "fit": {"steps": 2, "lr": 1e-3, "device": "cpu", "trackers": [], "validate_every": 1, "log_every": 1},
}


def recipe(model: Path, rows: Path, out: Path, **changes: Any) -> runs.SFTRecipe:
    one = {"path": str(rows)}
    tree = RECIPE | {"start": str(model), "datasets": [one | {"ends": -2}], "held_out": [one | {"starts": -2}]}
    return config.build(runs.SFTRecipe, tree | {"fit": RECIPE["fit"] | {"output": str(out)}} | changes)


def test_a_recipe_validates_on_its_held_out_records(tiny_model_folder: Path, tmp_path: Path) -> None:
    made = recipe(tiny_model_folder, manifest(tmp_path, 6), tmp_path / "run", tasks={"matting_auto": 1.0})
    objective = made.objective()
    asked = objective.held_out.examples("matting_auto", 9, SIZE)
    assert len(asked) == 2 and objective.validated() == ["matting_auto"]
    figures = runs.fit(objective, made.fit, quiet=True)
    assert np.isfinite(figures["loss"])
    assert [p.name for p in sorted((tmp_path / "run/validation").iterdir())] == ["000001.png", "000002.png"]
    assert '"val_loss"' in (tmp_path / "run/log.jsonl").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"held_out": [{"starts": -3}]}, "1 held-out records are trained on, such as 'r3': keep them apart"),
        ({"tasks": {"matting_auto": 1.0}, "validation_tasks": ["matting_atuo"]}, "did you mean 'matting_auto'"),
        (
            {"held_out": [{"starts": -2, "tasks": ["removal_auto"]}], "tasks": {"matting_auto": 1.0}},
            "give some records",
        ),
    ],
)
def test_what_is_held_out_has_to_be(tiny_model_folder: Path, tmp_path: Path, changes: Any, words: str) -> None:
    rows = manifest(tmp_path, 6)
    if "held_out" in changes:
        changes = changes | {"held_out": [{"path": str(rows)} | one for one in changes["held_out"]]}
    with pytest.raises(InputError, match=words):
        recipe(tiny_model_folder, rows, tmp_path / "run", **changes).objective()
