"""A study with people: what the page holds and hides, and what comes back from it."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from judged_runs import GREY, run, sample, two
from omnialpha.errors import InputError
from omnialpha.evaluation.judge.pairs import ASPECTS, aspects, match
from omnialpha.evaluation.judge.study import Study, build, read, read_answers
from pages import Page

KEYS = tuple(f"a-{n}" for n in range(12))


def made(folder: Path, names: Sequence[str] = ("overall",), keys: Sequence[str] = KEYS, **options: Any) -> Study:
    return build(match(*two(folder, keys)), folder / "study", aspects(names), **options)


def page_data(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Page((folder / "study/page/index.html").read_text()).scripts[0])
    return data


def result(
    study: Study, path: Path, answers: Sequence[Mapping[str, object]], name: str = "x", /, **other: object
) -> Path:
    told = {"format": "omnialpha study result", "version": 1, "study": study.id, "annotator": name, "answers": answers}
    path.write_text(json.dumps(told | other))
    return path


def shade(folder: Path, listed: Sequence[Any]) -> float:
    """Of the opaque half of the one picture of a result."""
    with Image.open(folder / "study/page" / listed[0][1]) as image:
        return float(np.asarray(image)[:, image.width // 2 :].mean() / 255)


# ---- the page -------------------------------------------------------------------------------------------------------


def test_the_page_stands_alone(tmp_path: Path) -> None:
    made(tmp_path)
    text = (tmp_path / "study/page/index.html").read_text()
    page = Page(text)
    assert "http" not in text.replace('http-equiv="', "") and "fetch(" not in text and "import " not in page.scripts[1]
    assert [values for tag, values in page.tags if tag == "link"] == [{"rel": "icon", "href": "data:,"}]
    assert all("src" not in values for _, values in page.tags)
    ids = [values["id"] for _, values in page.tags if "id" in values]
    assert len(ids) == len(set(ids)) and {"name", "question", "left", "right", "given", "save", "back"} <= set(ids)
    labels = {values["for"] for tag, values in page.tags if tag == "label"}
    assert labels == {values["id"] for tag, values in page.tags if tag == "input"}
    assert "prefers-color-scheme: dark" in text and 'lang="en"' in text


def test_its_data(tmp_path: Path) -> None:
    study = made(tmp_path, ["prompt", "overall"])
    data = page_data(tmp_path)
    assert data["study"] == study.id and len(data["samples"]) == len(KEYS)
    assert data["questions"] == {name: ASPECTS[name].question for name in ("overall", "prompt")}
    for shown, kept, key in zip(data["samples"], study.samples, KEYS, strict=True):
        assert shown["text"] == f"Do it to {key}.\na {key}" and shown["aspects"] == ["overall", "prompt"]
        label, file, width, height = shown["given"][0]
        assert (label, width, height) == ("composite", 32, 24) and (tmp_path / "study/page" / file).is_file()
        levels = {side: shade(tmp_path, listed) for side, listed in zip(kept.order, shown["results"], strict=True)}
        number = KEYS.index(key)
        assert levels == pytest.approx({side: grey + number / 255 for side, grey in GREY.items()}, abs=0.01)


def test_nothing_in_the_page_tells_which_is_which(tmp_path: Path) -> None:
    study = made(tmp_path)
    text = (tmp_path / "study/page/index.html").read_text()
    assert "heron" not in text and "otter" not in text
    files = {p.name for p in (tmp_path / "study/page").rglob("*") if p.is_file()}
    assert "study.json" not in files and not any(word in name for name in files for word in ("heron", "otter", "a-"))
    firsts = [one.order[0] for one in study.samples]
    assert 2 <= firsts.count("A") <= 10  # the first of the two is no hint either
    assert [one.order[0] for one in made(tmp_path / "x", seed=1).samples] != firsts


def test_the_same_runs_give_the_same_study(tmp_path: Path) -> None:
    study = made(tmp_path)
    before = {p: p.read_bytes() for p in (tmp_path / "study").rglob("*") if p.is_file()}
    assert made(tmp_path).id == study.id and read(tmp_path / "study").id == study.id
    assert before == {p: p.read_bytes() for p in (tmp_path / "study").rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="holds another study, whose answers would be lost"):
        made(tmp_path, ["quality"])
    assert before == {p: p.read_bytes() for p in (tmp_path / "study").rglob("*") if p.is_file()}


def test_a_text_cannot_leave_its_script(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script> @script@ \u2028 <!--"
    asked = [sample("one", tmp_path / "in")]
    asked = [type(asked[0])(**{**vars(asked[0]), "instruction": evil})]
    build(match(*(run(tmp_path / n, asked, 0.5) for n in "xy")), tmp_path / "study", ("overall",))
    page = Page((tmp_path / "study/page/index.html").read_text())
    assert len(page.scripts) == 2 and json.loads(page.scripts[0])["samples"][0]["text"].startswith(evil)


def test_layers_stand_in_order(tmp_path: Path) -> None:
    asked = [sample("one", tmp_path / "in", layers=2)]
    build(match(*(run(tmp_path / n, asked, 0.5) for n in "xy")), tmp_path / "study", ("overall",))
    assert [label for label, *_ in page_data(tmp_path)["samples"][0]["results"][0]] == ["full 1", "full 2"]


# ---- what comes back ------------------------------------------------------------------------------------------------


def test_answers_in_terms_of_the_sides(tmp_path: Path) -> None:
    study = made(tmp_path)
    told = [{"sample": s.id, "aspect": "overall", "left": n % 2, "choice": ("left", "tie", "right")[n % 3]}
            for n, s in enumerate(study.samples)]  # fmt: skip
    answers = read_answers(read(tmp_path / "study"), [result(study, tmp_path / "r.json", told, "Ann")])
    for n, (answer, one) in enumerate(zip(answers, study.samples, strict=True)):
        left, right = one.order[n % 2], one.order[1 - n % 2]
        assert (answer.sample, answer.first, answer.rater) == (KEYS[n], left, "Ann")
        assert answer.verdict == (left, "tie", right)[n % 3]


def one(**other: object) -> dict[str, object]:
    return {"sample": "s0001", "aspect": "overall", "left": 0, "choice": "left"} | other


@pytest.mark.parametrize(
    ("answers", "other", "words"),
    [
        ([one()], {"study": "0123"}, "answers study '0123', but this one is"),
        ([one()], {"format": "something"}, "is no result of a study"),
        ([one()], {"version": 2}, "is no result of a study"),
        ([one()], {"annotator": " "}, "is no result of a study"),
        ([one()], {"answers": 1}, "is no result of a study"),
        ([], {}, "holds no answers"),
        ([one(sample="s9999")], {}, "answer 1 is not to a question of this study"),
        ([one(sample=["s0001"])], {}, "answer 1 is not"),
        ([one(aspect="quality")], {}, "answer 1 is not"),
        ([one(left=2)], {}, "answer 1 is not"),
        ([one(left=True)], {}, "answer 1 is not"),
        ([one(choice="A")], {}, "answer 1 is not"),
        ([one(choice=["left"])], {}, "answer 1 is not"),
        (["left"], {}, "answer 1 is not"),
        ([one(), one(choice="tie")], {}, "answer 2 is not to a question of this study, or a second one to it"),
    ],
)
def test_results_that_are_refused(tmp_path: Path, answers: list[Any], other: dict[str, object], words: str) -> None:
    study = made(tmp_path, keys=["one"])
    path = result(study, tmp_path / "r.json", answers, **other)
    with pytest.raises(InputError, match=words):
        read_answers(study, [path])


def test_an_annotator_counts_once(tmp_path: Path) -> None:
    study = made(tmp_path, keys=["one"])
    first, second = (result(study, tmp_path / f"{n}.json", [one()], name) for n, name in ((1, "Ann"), (2, "ann")))
    for files in ([first, second], [first, first]):
        with pytest.raises(InputError, match="are both by"):
            read_answers(study, files)
    assert len(read_answers(study, [first, result(study, second, [one()], "Bob")])) == 2


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, "there is no file"),
        (lambda path: path.write_text("{"), "is no result of a study"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "is no result of a study"),
        (lambda path: path.write_text("[]"), "is no result of a study"),
    ],
)
def test_files_that_are_none(tmp_path: Path, write: Callable[[Path], object], words: str) -> None:
    study = made(tmp_path, keys=["one"])
    write(tmp_path / "r.json")
    with pytest.raises(InputError, match=words):
        read_answers(study, [tmp_path / "r.json"])


def test_folders_that_hold_no_study(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no study\.json"):
        read(tmp_path)
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(InputError, match="is damaged"):
        read(tmp_path)
