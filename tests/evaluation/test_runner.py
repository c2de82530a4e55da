"""From samples to rows: nothing is made twice, others' files get the same figures, and what cannot be used is told."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import benchmark_trees as trees
from layered import manifest
from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.benchmarks import BENCHMARKS, PUBLISHED
from omnialpha.evaluation.methods import predictions
from omnialpha.evaluation.methods.constants import BEST_CONSTANT
from omnialpha.evaluation.methods.method import Method, check, identity_of, of_folder
from omnialpha.evaluation.metrics.features import Features
from omnialpha.evaluation.reports.benchmark_report import common, report
from omnialpha.evaluation.reports.report import Report, Row
from omnialpha.evaluation.runner import MADE, ROWS, EvaluationSettings, Runner, SampleSet
from omnialpha.evaluation.scoring import SCORINGS, Networks
from omnialpha.models.checkpoints.folders import resolve
from omnialpha.tasks import Example

AIM, TASK, TEXT = BENCHMARKS["aim-500"], "matting_auto", "text_to_image"


class Made:
    """A method that counts what it is asked for, and makes a matte of the red channel, weakened by the seed."""

    def __init__(self, identity: str = "one", batch: int = 1, fails: str = "") -> None:
        self.asked: list[Sequence[int]] = []
        self.fails = fails
        self.method = Method(
            "red", self.make, lambda task: task.startswith("matting"), identity, "red", batch, task=TASK
        )

    def make(self, examples: Sequence[Example], seeds: Sequence[int]) -> list[Tensor]:
        self.asked.append(seeds)
        if self.fails == "nan":
            return [torch.full((1, 4, *e.size), float("nan")) for e in examples]
        if self.fails == "shape":
            return [torch.zeros(1, 4, 3, 3) for _ in examples]
        if self.fails and any(float(e.inputs[0][0].mean()) > float(self.fails) for e in examples):
            raise InputError("the program ended with exit code 1")
        alphas = [e.inputs[0][:1] * (1 - seed % 97 / 1000) for e, seed in zip(examples, seeds, strict=True)]
        return [torch.cat([e.inputs[0][:3], alpha])[None] for e, alpha in zip(examples, alphas, strict=True)]

    @property
    def count(self) -> int:
        return sum(map(len, self.asked))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return trees.matting(tmp_path / "AIM-500", "abc", of=".png")


class Run:
    """A runner on the samples of one folder."""

    def __init__(self, data: Path, out: str = "out", **settings: object) -> None:
        self.runner = Runner(data.parent / out, EvaluationSettings(**settings))  # type: ignore[arg-type]
        self.parts = {TASK: SampleSet(AIM.samples(str(data), TASK), SCORINGS["matting"])}
        self.out, self.bad = self.runner.out, self.runner.bad

    def rows(self, method: Method) -> Iterator[Row]:
        return self.runner.rows(method, self.parts[TASK])

    def report(self, methods: Sequence[Method], rows: dict[str, list[Row]]) -> Report:
        return report(AIM, self.runner, self.parts, methods, rows, "cpu", "AIM-500")


def runner(data: Path, out: str = "out", **settings: object) -> Run:
    return Run(data, out, **settings)


def figures(rows: Sequence[Row]) -> list[Row]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "key", "method")} for row in rows]


def test_rows_and_files(data: Path) -> None:
    made, run = Made(), runner(data)
    rows = list(run.rows(made.method))
    assert [row["sample"] for row in rows] == ["a", "b", "c"] and made.count == 3
    assert all(row["seconds"] >= 0 and row["sad"] > 0 and row["unknown_sad"] > 0 for row in rows)
    assert len({seeds[0] for seeds in made.asked}) == 3  # a seed of its own for each
    place = run.out / "red"
    assert sorted(p.name for p in (place / "predictions").iterdir()) == ["a.png", "b.png", "c.png"]
    asked = predictions.read_requests(place)
    assert asked["b"].instruction and asked["b"].inputs == {"composite": [str(data / "original" / "b.png")]}


def test_nothing_is_done_twice(data: Path) -> None:
    made, run = Made(), runner(data)
    first = list(run.rows(made.method))
    files = {name: (run.out / "red" / name).read_bytes() for name in (MADE, ROWS)}
    assert list(runner(data).rows(made.method)) == first and made.count == 3
    assert {name: (run.out / "red" / name).read_bytes() for name in files} == files


def test_after_a_stop_only_what_is_missing_is_made(data: Path) -> None:
    made, run = Made(), runner(data)
    rows: Iterator[Row] = run.rows(made.method)
    next(rows)
    rows.close()
    with (run.out / "red" / ROWS).open("a") as file:
        file.write('{"key": "b", "cont')  # cut off while it was written
    assert made.count == 1 and len(list(runner(data).rows(made.method))) == 3 and made.count == 3


@pytest.mark.parametrize("change", ["seed", "identity", "size", "picture", "prediction", "gone"])
def test_what_has_changed_is_made_anew(change: str, data: Path) -> None:
    made, run = Made(), runner(data)
    list(run.rows(made.method))
    again, expected, place = Made("two" if change == "identity" else "one"), 3, run.out / "red" / "predictions"
    settings = {"seed": {"seed": 1}, "size": {"size": 30}}.get(change, {})
    if change == "picture":
        trees.save(trees.composite(7), data / "original" / "b.png")
        expected = 1
    elif change == "prediction":
        (place / "b.png").write_bytes((place / "a.png").read_bytes())
        expected = 1
    elif change == "gone":
        (place / "c.png").unlink()
        expected = 1
    rows = list(runner(data, **settings).rows(again.method))
    assert again.count == expected and len(rows) == 3
    assert list(runner(data, **settings).rows(again.method)) == rows and again.count == expected


def test_a_changed_truth_is_made_and_measured_anew(data: Path) -> None:
    made = Made()
    before = list(runner(data).rows(made.method))
    trees.save(255 - trees.alpha(0), data / "mask" / "a.png")
    after = list(runner(data).rows(made.method))
    assert after[0]["sad"] != before[0]["sad"] and after[1:] == before[1:]


def test_a_batch_is_of_one_size_and_gives_the_same(data: Path) -> None:
    trees.matting(data, ["d"], of=".png", size=(20, 30))
    alone, together = Made(), Made(batch=2)
    one = list(runner(data).rows(alone.method))
    two = list(runner(data, "other").rows(together.method))
    assert figures(one) == figures(two)
    assert [len(seeds) for seeds in together.asked] == [2, 1, 1]


def test_predictions_of_a_folder_get_the_same_figures(data: Path) -> None:
    run = runner(data)
    own = list(run.rows(Made().method))
    for folder in (run.out / "red", run.out / "red" / "predictions"):
        theirs = list(run.rows(of_folder("theirs", folder, TASK)))
        assert figures(theirs) == figures(own) and all(row["seconds"] is None for row in theirs)


def test_mattes_of_others(data: Path, tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        trees.save(trees.alpha(number), tmp_path / "mattes" / f"{name}.png")
    method = of_folder("exact", tmp_path / "mattes", TASK)
    assert [row["sad"] for row in runner(data).rows(method)] == [0, 0, 0]
    trees.save(255 - trees.alpha(1), tmp_path / "mattes" / "b.png")
    assert [row["sad"] > 0 for row in runner(data).rows(method)] == [False, True, False]  # measured anew


@pytest.mark.parametrize("fault", ["missing", "size", "damaged"])
def test_predictions_that_cannot_be_used(fault: str, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mattes"
    for number, name in enumerate("abc"):
        trees.save(trees.alpha(number), folder / f"{name}.png")
    if fault == "missing":
        (folder / "b.png").unlink()
    elif fault == "size":
        trees.save(trees.alpha(1, 8, 8), folder / "b.png")
    else:
        (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:80])
    words = {
        "missing": "b.png is missing",
        "size": "b.png is 8x8 px, the truth 56x40 px",
        "damaged": "b.png is damaged",
    }
    method = of_folder("theirs", folder, TASK)
    with pytest.raises(InputError, match=words[fault]):
        list(runner(data).rows(method))
    run = runner(data, skip_bad=True)
    assert [row["sample"] for row in run.rows(method)] == ["a", "c"]
    assert words[fault] in run.bad["theirs"]["b"]


def test_a_method_that_fails_at_one_picture(data: Path) -> None:
    bright = sorted(float(s.load().inputs[0][0].mean()) for s in AIM.samples(str(data), TASK))
    fails = str((bright[1] + bright[2]) / 2)
    with pytest.raises(InputError, match="exit code 1"):
        list(runner(data).rows(Made(fails=fails).method))
    run, made = runner(data, "other", skip_bad=True), Made(batch=3, fails=fails)
    assert len(list(run.rows(made.method))) == 2  # the others of its batch are not to blame
    assert list(run.bad["red"].values()) == ["the program ended with exit code 1"]


@pytest.mark.parametrize(
    ("fails", "words"), [("nan", "NaN"), ("shape", r"made \(1, 4, 3, 3\) of a, not \(1, 4, 40, 56\)")]
)
def test_rows_of_that_are_none(fails: str, words: str, data: Path) -> None:
    with pytest.raises(InputError, match=words):
        list(runner(data).rows(Made(fails=fails).method))
    run = runner(data, skip_bad=True)
    assert list(run.rows(Made(fails=fails).method)) == [] and len(run.bad["red"]) == 3


def test_who_cannot_take_part(data: Path) -> None:
    one = Made()
    with pytest.raises(InputError, match="red cannot do removal_auto: leave it out"):
        check([replace(one.method, task="removal_auto")])
    with pytest.raises(InputError, match="red would be measured twice"):
        check([one.method, one.method])
    with pytest.raises(InputError, match="nowhere is no folder of predictions"):
        check([of_folder("x", Path("nowhere"), TASK)])
    check([one.method, of_folder("x", data, TASK)])
    assert of_folder("a b/../{x}", data).place == "a-b-..--x"


def test_features_are_kept_and_made_once(tmp_path: Path) -> None:
    calls = []

    def colours(pictures: Tensor) -> Tensor:
        calls.append(len(pictures))
        return pictures.float().mean(dim=(2, 3))

    row = BENCHMARKS["alphatest"]
    samples = row.samples(str(trees.alphatest(tmp_path / "AlphaTest", each=2)), "text_to_image")
    part = SampleSet(samples, SCORINGS["generation"])
    networks = Networks(features=Features("colours", "colours", colours))

    def make(examples: Sequence[Example], seeds: Sequence[int]) -> list[Tensor]:
        return [
            torch.rand(1, 4, *e.size, generator=torch.Generator().manual_seed(s))
            for e, s in zip(examples, seeds, strict=True)
        ]

    method = Method("noise", make, lambda task: True, "noise", task=TEXT)
    for expected in (4 * [18], []):
        run = Runner(tmp_path / "out", EvaluationSettings(networks=networks))
        calls.clear()
        rows = list(run.rows(method, part))
        assert calls == expected
    made = report(row, run, {TEXT: part}, [method], {"noise": rows}, "cpu", "AlphaTest")
    total = made.summary[0]
    assert [r["category"] for r in made.summary] == ["total", "animal", "toy"] and total["n"] == 4
    assert total["fid"] > 0 and total["kid"] is not None
    assert "clip_score" in made.skipped and "fid" not in made.skipped


def test_the_published_weighting(tmp_path: Path) -> None:
    row = BENCHMARKS["alphatest"]
    samples = row.samples(str(trees.alphatest(tmp_path / "AlphaTest", PUBLISHED, each=2)), "text_to_image")
    part = SampleSet(samples, SCORINGS["generation"])
    networks = Networks(features=Features("c", "c", lambda x: x.float().mean(dim=(2, 3))))
    run = Runner(tmp_path / "out", EvaluationSettings(networks=networks))
    shades = {"mixed": 1.0}

    for sample in samples:
        shade = shades.get(sample.category, 0.0)
        predictions.write(tmp_path / "made", sample.key, torch.full((1, 4, 40, 56), shade))
    method = of_folder("flat", tmp_path / "made", TEXT)
    made = report(row, run, {TEXT: part}, [method], {"flat": list(run.rows(method, part))}, "cpu", "AlphaTest")
    by = {r["category"]: r for r in made.summary}
    others = [by[name]["fid"] for name in PUBLISHED if name != "mixed"]
    assert by["published weighting"]["fid"] == pytest.approx(0.5 * by["mixed"]["fid"] + 0.5 * sum(others) / 7)


def test_a_report_is_of_the_samples_that_all_have_answered(data: Path, tmp_path: Path) -> None:
    run, made = runner(data, skip_bad=True), Made()
    for number, name in enumerate("ac"):
        trees.save(trees.alpha(number), tmp_path / "mattes" / f"{name}.png")
    methods = [made.method, of_folder("theirs", tmp_path / "mattes", TASK)]
    check(methods)
    rows_of = {method.name: list(run.rows(method)) for method in methods}
    assert {name: len(rows) for name, rows in common(run.runner, run.parts, methods, rows_of).items()} == {
        "red": 2,
        "theirs": 2,
    }
    told = run.report(methods, rows_of)
    assert told.header["n"] == "2" and [row["method"] for row in told.summary] == ["red", "theirs", BEST_CONSTANT]
    assert told.header["resolution"] == "56x40 (as stored)" and "unknown region" in told.header["region"]
    assert told.header["time a picture"].startswith("red ") and "theirs" not in told.header["time a picture"]
    sad = [row["sad"] for row in rows_of["red"] if row["sample"] in "ac"]
    assert told.summary[0]["sad"] == pytest.approx(sum(sad) / 2)
    notes = "\n".join(told.notes)
    assert "n=2, the whole AIM-500 has 500" in notes and "red has 1 samples more" in notes
    assert "passed over, theirs: " in notes and "red: red" in notes
    assert [case.title.split(":")[0] for case in told.cases] == ["worst", "best"]
    assert list(told.cases[0].pictures) == [
        "given: composite",
        "true: foreground",
        "red: foreground",
        "theirs: foreground",
    ]
    sads = {row["sample"]: row["sad"] for row in rows_of["red"]}
    worst, best = (case.title.split(": ")[1] for case in told.cases)
    assert sads[worst] >= sads[best]
    files = told.write(run.out)
    assert json.loads(files["json"].read_text())["header"]["scale"] == AIM.scale
    assert "Worst and best cases" in files["page"].read_text()
    with pytest.raises(InputError, match="none of the 3 samples can be measured for every method"):
        run.report(methods, rows_of | {"theirs": []})


def test_layers_of_records(tmp_path: Path) -> None:
    row = BENCHMARKS["folder"]
    task = row.task("decompose_auto")
    part = SampleSet(row.samples(str(manifest(tmp_path, 2, layers=2)), task), SCORINGS[row.scored_as(task)])
    run = Runner(tmp_path / "out")

    def make(examples: Sequence[Example], seeds: Sequence[int]) -> list[Tensor]:
        return [torch.stack([e.inputs[0], *[torch.zeros_like(e.inputs[0])] * 2]) for e in examples]

    method = Method("input", make, lambda task: True, "input", task=task)
    rows = list(run.rows(method, part))
    assert min(r["recomposed_psnr"] for r in rows) > 55 and rows[0]["alpha_iou_0"] < 0.9  # but for 8 bits
    assert (run.out / "input" / "predictions" / "r0" / "02.png").is_file()
    told = report(row, run, {task: part}, [method], {"input": rows}, "cpu", "rows")
    assert list(told.cases[0].pictures)[-1] == "input: foreground 2"


def test_the_identity_of_a_model(tiny_model_folder: Path, tmp_path: Path) -> None:
    parts = resolve(tiny_model_folder)
    same = identity_of(parts, steps=None)
    assert same == identity_of(resolve(tiny_model_folder), steps=None) != identity_of(parts, steps=3)
    from shutil import copytree

    other = resolve(copytree(tiny_model_folder, tmp_path / "tiny"))
    assert identity_of(other, steps=None) == same  # wherever it lies
    weights = next(other.transformer.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert identity_of(other, steps=None) != same
    assert identity_of(replace(parts, vae=other.transformer), steps=None) != same
    assert identity_of(replace(parts, finder=other.vae), steps=None) != same
