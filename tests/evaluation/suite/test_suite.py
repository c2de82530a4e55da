"""The suite: known answers get known figures, what is finished is not done again, and its report says everything."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omnialpha import fidelity, rgba
from omnialpha.errors import InputError
from omnialpha.evaluation.datasets import heldout
from omnialpha.evaluation.datasets.heldout import HeldOutScenes
from omnialpha.evaluation.methods.baselines import BASELINES, best_constant
from omnialpha.evaluation.methods.constants import BEST_CONSTANT
from omnialpha.evaluation.methods.method import Method
from omnialpha.evaluation.metrics.image import PSNR_8_BIT, psnr
from omnialpha.evaluation.metrics.matting import measure
from omnialpha.evaluation.reports.report import Row
from omnialpha.evaluation.runner import ROWS
from omnialpha.evaluation.suite.figures import summarise
from omnialpha.evaluation.suite.matting import TWO
from omnialpha.evaluation.suite.report import report
from omnialpha.evaluation.suite.sections import CATEGORIES
from omnialpha.evaluation.suite.suite import Scenes, Section, Suite, of_model
from omnialpha.evaluation.suite.tables import REQUIRED, TABLES, SuiteResults, readme, verdict
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import TASKS, Example, Role

pytest.importorskip("cv2")
N = 3


@pytest.fixture(scope="module")
def scenes(tiny_model: OmniAlpha) -> Scenes:
    return Scenes(tiny_model, heldout.open_source(side=32), N, 0)


def sections_of(scenes: Scenes, *categories: str) -> list[Section]:
    return [section for name in categories for section in CATEGORIES[name](scenes)]


def knows(scenes: Scenes) -> Method:
    """Stands in for a model that always answers the truth; its raw answers are half as opaque in front."""

    def make(examples: Sequence[Example], seeds: Sequence[int]) -> list[Tensor]:
        made = []
        for example in examples:
            raw = example.true_layers().clone()
            raw[-1, 3] *= 0.5
            made.append(torch.stack([example.true_layers(), raw]))
        return made

    names = (f"{scenes.model.card.name}, default", f"{scenes.model.card.name}, raw")
    return Method("knows", make, lambda task: True, "truth", batch=2, outputs=names)


def run(scenes: Scenes, out: Path, *categories: str, peers: Sequence[str] = ()) -> tuple[Suite, list[Row]]:
    """By a model that knows the truth."""
    parts = sections_of(scenes, *categories)
    suite = Suite(scenes, parts, [knows(scenes), *(BASELINES[name] for name in peers)], out)
    return suite, list(suite.rows())


def figures(rows: Sequence[Row], part: str, method: str) -> Row:
    return summarise([row for row in rows if (row["part"], row["method"]) == (part, method)])


# ---- what is asked --------------------------------------------------------------------------------------------------


def test_every_task_is_asked_once_of_one_object(scenes: Scenes) -> None:
    parts = sections_of(scenes, *CATEGORIES)
    asked = {part.task for part in parts if part.examples}
    assert asked == {*TASKS, "reconstruction"}
    for part in parts:
        assert all(e.task == part.task and e.size == scenes.size for e in part.examples)
        assert part.category == ("autoencoder" if part.task == "reconstruction" else TASKS[part.task].category)
    assert len({part.name for part in parts}) == len(parts)


def test_wordings_take_turns_and_maps_are_those_of_the_subject(scenes: Scenes) -> None:
    part = next(p for p in sections_of(scenes, "matting") if p.name == "matting_precise")
    words = [TASKS["matting_precise"].instruct(wording=b) for b in range(N)]
    assert [e.instruction for e in part.examples] == words
    for b, example in enumerate(part.examples):
        alpha = scenes.ones.target[b, 3]
        assert torch.equal(example.inputs[0], scenes.ones.composite[b])
        assert torch.equal(example.inputs[1][0] > 0.5, alpha / alpha.max() > 0.95)


# ---- figures --------------------------------------------------------------------------------------------------------


def test_the_truth_has_no_error(scenes: Scenes, tmp_path: Path) -> None:
    _, rows = run(scenes, tmp_path, "matting", "removal", "decomposition", "generation")
    for task in ("auto", "alpha", "trimap", "precise", "rough"):
        made = figures(rows, f"matting_{task}", "tiny, default")
        assert {made[name] for name in ("sad", "mad", "mse", "grad", "conn", "mad_unknown")} == {0.0}
        assert made["composites"] == PSNR_8_BIT and made["n"] == N
        assert figures(rows, f"removal_{task}", "tiny, default")["hole_pooled"] == float("inf")
        split = figures(rows, f"decompose_{task}", "tiny, default")
        assert split["background_l1"] == split["foreground_l1"] == split["alpha_mad"] == 0
        assert split["recomposed"] > 55
    half = figures(rows, "matting_auto", "tiny, raw")
    assert half["mad"] == pytest.approx(float(scenes.ones.target[:, 3].mean()) / 2, rel=1e-5)
    named = figures(rows, "matting_text: as composed", "tiny, default")
    assert named["right"] == 100
    assert (
        figures(rows, "text_to_image", "tiny, default")["both"]
        == figures(rows, "text_to_image", "true drawings")["both"]
    )


def test_pooled_and_mean_errors_in_the_hole(scenes: Scenes, tmp_path: Path) -> None:
    _, rows = run(scenes, tmp_path, "removal", peers=["telea", "unchanged", "blank"])
    held = scenes.ones
    hole = torch.stack([fidelity.removal_mask(m, Role.ROUGH) for m in held.rough])
    made = figures(rows, "removal_rough", "input unchanged")
    true, seen = held.background[:, :3], held.composite[:, :3]
    grey = rgba.psnr(torch.full_like(true, 0.5), true, hole)  # wrong outside the hole too, which does not count
    assert figures(rows, "removal_rough", "blank")["hole_pooled"] == pytest.approx(grey)
    assert made["hole_pooled"] == pytest.approx(rgba.psnr(seen, true, hole))
    each = [min(rgba.psnr(s, t, h), PSNR_8_BIT) for s, t, h in zip(seen, true, hole, strict=True)]
    assert made["hole"] == pytest.approx(sum(each) / N)
    assert made["whole"] == pytest.approx(float(psnr(seen, true, ceiling=PSNR_8_BIT).mean()))
    assert made["hole_share"] == pytest.approx(100 * float(hole.float().mean()), rel=1e-6)
    assert figures(rows, "removal_rough", "Telea")["hole_pooled"] > made["hole_pooled"]


def test_the_best_constant_is_of_all_pictures_together(scenes: Scenes, tmp_path: Path) -> None:
    _, rows = run(scenes, tmp_path, "matting", peers=["blank"])
    true = scenes.ones.target[:, 3]
    made = figures(rows, "matting_auto", BEST_CONSTANT)
    for metric, power in (("mad", 1), ("mse", 2)):
        flat = torch.full_like(true, best_constant(true, power))
        assert made[metric] == pytest.approx(float(measure(flat, true)[metric].mean()))
        assert made[metric] <= figures(rows, "matting_auto", "blank")[metric] + 1e-9


def test_trimaps_without_anchors_have_a_table_without_them(scenes: Scenes, tmp_path: Path) -> None:
    held = scenes.ones
    one = held.scenes[1]
    without = one.maps[Role.TRIMAP].clone()
    without[:3] = without[:3].clamp(max=0.5)  # as that of a see-through subject
    changed = replace(one, maps={**one.maps, Role.TRIMAP: without})
    bare = Scenes(scenes.model, scenes.source, N, 0)
    bare.ones = HeldOutScenes((held.scenes[0], changed, *held.scenes[2:]))
    keep = [0, 2]
    _, rows = run(bare, tmp_path, "matting", peers=["opaque"])
    table = next(t for t in TABLES["matting"](SuiteResults(rows, "tiny")) if "only where" in t.title)
    made = {row["method"]: row["mad"] for row in table.rows}
    true = held.target[keep, 3]
    assert made["opaque"] == pytest.approx(float((1 - true).mean()), rel=1e-5)
    assert made[BEST_CONSTANT] == pytest.approx(float((true - true.median()).abs().mean()), rel=1e-5)
    assert [row["method"] for row in table.rows][-1] == BEST_CONSTANT


def test_a_text_is_answered_rightly_by_the_asked_object_alone(scenes: Scenes) -> None:
    part = next(p for p in sections_of(scenes, "matting") if p.name == "matting_text: as composed")
    held = scenes.twos
    assert [row["right"] for row in part.score(range(N), held.target[:, None])] == [100.0] * N
    assert [row["right"] for row in part.score(range(N), held.other[:, None])] == [0.0] * N
    fewer = part.score(range(1, N), held.target[1:, None])
    assert fewer == part.score(range(N), held.target[:, None])[1:]


def test_completion_measures_what_is_kept(scenes: Scenes, tmp_path: Path) -> None:
    _, rows = run(scenes, tmp_path, "completion", peers=["unchanged", "blank"])
    kept = figures(rows, "background_to_full", "input unchanged")
    assert kept["kept"] == PSNR_8_BIT and kept["changed"] == 0
    assert figures(rows, "background_to_full", "blank")["changed"] > 50
    part = next(p for p in sections_of(scenes, "completion") if p.name == "background_to_full")
    added = scenes.ones.background.clone()
    added[:, :3, :12, :12] = 1 - added[:, :3, :12, :12]  # a seventh of the picture
    for row in part.score(range(N), added[:, None]):
        assert row["kept"] == PSNR_8_BIT and 5 < row["changed"] < 50
    assert figures(rows, "foreground_to_full", "tiny, default")["kept"] > 50
    assert figures(rows, "foreground_to_full", "blank")["kept"] < 25
    shown = figures(rows, "background_to_foreground", "tiny, default")
    assert shown["shown"] == 100 and shown["away"] > 0
    nothing = figures(rows, "background_to_foreground", "blank")
    assert nothing["shown"] == nothing["away"] == nothing["opacity"] == 0
    true = figures(rows, "foreground_to_background", "the true layer")
    assert true["away"] > 0.05 and true["opacity"] == pytest.approx(100, abs=1e-3)


# ---- the model itself -----------------------------------------------------------------------------------------------


def test_a_model_is_sampled_once_for_both_outputs(scenes: Scenes) -> None:
    model = scenes.model
    part = next(p for p in sections_of(scenes, "removal") if p.name == "removal_rough")
    one = of_model(model, batch=2)
    made = one.make(part.examples[:2], [0, 1])
    for k, raw in enumerate((False, True)):
        stacks = model.run(part.examples[:2], seed=[0, 1], raw=raw)
        for answers, stack in zip(made, stacks, strict=True):
            assert torch.allclose(answers[k, 0], stack[0].rgba.clamp(0, 1), atol=1e-6)
    assert one.names == ("tiny, default", "tiny, raw") and one.batch == 2
    assert one.identity == of_model(model).identity


# ---- what is finished -----------------------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_was_stopped(scenes: Scenes, tmp_path: Path) -> None:
    suite, rows = run(scenes, tmp_path, "removal", peers=["telea"])
    assert len(suite) == len(rows) == 5 * 2 * N + 4 * N
    lines = (tmp_path / ROWS).read_text().splitlines(keepends=True)

    def never(examples: Sequence[Example], seeds: Sequence[int]) -> list[Tensor]:
        raise AssertionError("this was done before")

    idle = [replace(one, make=never) for one in suite.methods]
    assert list(Suite(scenes, suite.sections, idle, tmp_path).rows()) == rows

    (tmp_path / ROWS).write_text("".join(lines[:-1]))  # the last picture is lost
    made: list[int] = []

    def counted(examples: Sequence[Example], seeds: Sequence[int]) -> list[Tensor]:
        made.extend(seeds)
        return suite.methods[0].make(examples, seeds)

    again, steps = [replace(suite.methods[0], make=counted), idle[1]], []
    assert list(Suite(scenes, suite.sections, again, tmp_path).rows(steps.append)) == rows
    assert made == [N - 1]
    assert steps == [section.name for section in suite.sections]


def test_other_scenes_and_other_weights_are_other_rows(scenes: Scenes, tmp_path: Path) -> None:
    suite, rows = run(scenes, tmp_path, "generation")
    other = Scenes(scenes.model, scenes.source, N, 1)
    keys = {row["key"] for row in run(other, tmp_path, "generation")[1] if "key" in row}
    assert keys.isdisjoint(row.get("key") for row in rows)
    changed = [replace(suite.methods[0], identity="other")]
    again = Suite(scenes, suite.sections, changed, tmp_path).rows()
    assert {row["key"] for row in again if "key" in row}.isdisjoint(row.get("key") for row in rows)


def test_what_cannot_be_measured_is_refused(scenes: Scenes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="n=0 scenes"):
        Scenes(scenes.model, scenes.source, 0, 0)
    parts = sections_of(scenes, "generation")
    model = knows(scenes)
    blank = BASELINES["blank"]
    with pytest.raises(InputError, match="two methods are called 'blank'"):
        Suite(scenes, parts, [model, blank, blank], tmp_path)
    hollow = Method("hollow", lambda e, s: [torch.full((1, 4, *x.size), float("nan")) for x in e], lambda t: True, "x")
    with pytest.raises(InputError, match="hollow answers NaN for 0"):
        list(Suite(scenes, parts, [model, hollow], tmp_path).rows())


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_what_is_required_is_judged_by_both_outputs(scenes: Scenes, tmp_path: Path) -> None:
    _, rows = run(scenes, tmp_path, "matting", "removal", "decomposition", peers=["telea", "grabcut", "closed-form"])
    results = SuiteResults(rows, "tiny")
    made = {row["what"]: row for row in verdict(results).rows}
    assert len(made) == 7
    matte = made["automatic matting, MAD"]
    assert matte["default"] == 0 and matte["raw"] > 0 and matte["bound"] == "<= 0.05"
    assert matte["met"] == ("yes" if matte["raw"] <= 0.05 else "NO")
    closed, trimap = figures(rows, "matting_trimap", "closed form")["mad"], made["matting with a trimap, MAD"]
    assert trimap["bound"] == f"< {closed:.4f} (closed form's)" and trimap["default"] == 0
    assert trimap["raw"] == figures(rows, "matting_trimap", "tiny, raw")["mad"]
    assert trimap["met"] == ("yes" if trimap["raw"] < closed else "NO")
    assert made["text picks the right one of two, as composed, %"]["met"] == "yes"
    pooled = made["removal, rough map, PSNR in the hole above Telea's, pooled, dB"]
    assert pooled["default"] == float("inf")
    assert not verdict(SuiteResults([row for row in rows if row["category"] == "none"], "tiny")).rows


@pytest.mark.parametrize(
    ("what", "value", "met"),
    [
        ("automatic matting, MAD", 0.05, True), ("automatic matting, MAD", 0.0501, False),
        ("recomposition PSNR, mean, dB", 22.0, True), ("recomposition PSNR, mean, dB", 21.9, False),
    ],
)  # fmt: skip
def test_what_is_required_holds_at_its_bound(what: str, value: float, met: bool) -> None:
    one = next(one for one in REQUIRED if one.what == what)
    about = {"category": "any", "part": one.part, "task": "any", "guidance": "any", one.figure: value}
    rows = [about | {"method": method} for method in ("tiny, default", "tiny, raw")]
    assert [row["met"] for row in verdict(SuiteResults(rows, "tiny")).rows] == ["yes" if met else "NO"]


def test_the_readme_row_names_who_stands_beside(scenes: Scenes, tmp_path: Path) -> None:
    _, rows = run(scenes, tmp_path, "matting", peers=["grabcut", "closed-form"])
    table = {row["what"]: row for row in readme(SuiteResults(rows, "tiny")).rows}
    auto = table["automatic matting, MAD"]
    constant = figures(rows, "matting_auto", BEST_CONSTANT)["mad"]
    assert auto["value"].startswith(f".000 (constant {constant:.3f}".replace("0.", "."))
    assert "GrabCut with a rectangle ." in auto["value"] and auto["required"] == "at most .05"
    assert table["text picks the right one of two objects"]["value"] == "100.0 % (chance 50.0 %)"
    assert "closed form ." in table["matting with a trimap, MAD"]["value"]
    assert not any("removal" in what for what in table)


def test_the_report_of_everything(scenes: Scenes, tmp_path: Path) -> None:
    peers = ["grabcut", "knn", "opaque", "unchanged", "blank"]
    suite, rows = run(scenes, tmp_path, *CATEGORIES, peers=peers)
    parts = suite.sections
    made = report(suite, rows)
    titles = [table.title for table in made.tables]
    assert titles[0] == "In short" and titles[-1] == "Required / measured / met" and len(titles) == 16
    assert any(note.startswith("n=3 is too few to quote") for note in made.notes)
    assert any(note.startswith("GrabCut: without a map: that 8%") for note in made.notes)
    assert {row["part"] for row in made.summary} == {part.name for part in parts}
    cases = [case.title.split(":")[0] for case in made.cases]
    assert "matting_auto, best" in cases and "decompose_auto, worst" in cases and "text_to_image, worst" in cases
    worst = next(case for case in made.cases if case.title.startswith("decompose_trimap, worst"))
    assert list(worst.pictures) == ["composite", "trimap"] + [
        f"{name}: {role}" for name in ("true", "tiny, default", "tiny, raw") for role in ("background", "foreground")
    ]
    ranked = [
        row["alpha_mad"] for row in rows if row["part"] == "decompose_trimap" and row["method"] == "tiny, default"
    ]
    assert worst.note.startswith(f"alpha mad {max(ranked):.4g}")
    automatic = next(table for table in made.tables if table.title == "Matting, automatic")
    assert [row["method"] for row in automatic.rows] == [
        "tiny, default", "tiny, raw", "GrabCut", "opaque", "blank", "GrabCut", "KNN matting", BEST_CONSTANT,
    ]  # fmt: skip
    assert [row["guidance"] for row in automatic.rows][-3:] == ["trimap", "trimap", "truth"]
    files = made.write(tmp_path)
    assert "nothing" in files["markdown"].read_text() and files["page"].stat().st_size > 10_000
    assert len(files["rows"].read_text().splitlines()) == len(rows) + 1
    two: Any = next(row for row in rows if row["part"] == f"matting_auto: {TWO}")
    assert not two["method"].startswith("tiny")
