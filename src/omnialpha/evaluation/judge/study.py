"""A study with people: pairs on a page that does not say who made what, and the answers that come back from it.

FOLDER/page/      what annotators get: index.html and pictures under names that tell nothing
FOLDER/study.json who made what: stays with whoever runs the study
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.evaluation.judge.pairs import ASPECTS, SIDES, WORDING, Pairs, RenderedPicture, check_ground
from omnialpha.evaluation.judge.verdicts import TIE, Answer
from omnialpha.evaluation.reports.report import png
from omnialpha.files import atomic_write, sha256
from omnialpha.io import read_image
from omnialpha.templates import render

FORMAT, VERSION = "omnialpha study result", 1
STUDY, PAGE, PICTURES = "study.json", "page", "pictures"
TITLE = "Which result is better?"
CHOICES = ("left", TIE, "right")

Listed = list[tuple[str, str, int, int]]  # label, file below PAGE, width, height


@dataclass(frozen=True)
class StudySample:
    """key: of the sample in the benchmark; order: whose the two results are; given, results: what is shown."""

    id: str
    key: str
    aspects: Sequence[str]
    order: Sequence[str]
    given: Listed
    results: Sequence[Listed]


@dataclass(frozen=True)
class Study:
    id: str
    names: Mapping[str, str]
    aspects: Sequence[str]
    ground: str
    wording: str
    missing: Mapping[str, Sequence[str]]
    samples: Sequence[StudySample]

    def pictures(self, folder: Path, key: str) -> dict[str, Tensor]:
        """What was shown of a sample, by what it was."""
        sample = next(s for s in self.samples if s.key == key)
        files = {label: file for label, file, *_ in sample.given}
        for side in SIDES:
            files |= {f"{side}: {label}": file for label, file, *_ in sample.results[sample.order.index(side)]}
        return {label: read_image(folder / PAGE / file).rgba for label, file in files.items()}


def build(pairs: Pairs, folder: Path, aspects: Sequence[str], ground: str = "checkerboard", seed: int = 0) -> Study:
    """Write the study; the same runs, aspects, ground and seed give the same files.

    InputError where the folder holds another study: answers to it could no longer be read.
    """
    check_ground(ground)
    generator = np.random.default_rng(seed)
    files: dict[str, RenderedPicture] = {}  # by their name below PAGE

    def listed(pictures: Sequence[RenderedPicture]) -> Listed:
        names = [f"{PICTURES}/{one.digest[:20]}.png" for one in pictures]
        files.update(zip(names, pictures, strict=True))
        return [(p.label, name, p.pixels.shape[1], p.pixels.shape[0]) for name, p in zip(names, pictures, strict=True)]

    samples: list[StudySample] = []
    shown: list[dict[str, Any]] = []  # to annotators: nothing in it may tell which side a result is of
    for number, pair in enumerate(pairs.pairs, start=1):
        order = SIDES if generator.random() < 0.5 else SIDES[::-1]
        asked = tuple(name for name in aspects if pair.applies(name))
        if asked:
            given, made = pair.shown(ground)
            request, results = pair.request, [listed(made[side]) for side in order]
            sample = StudySample(f"s{number:04}", request.key, asked, order, listed(given), results)
            lines = [request.instruction] + ([request.prompt] if request.prompt not in request.instruction else [])
            text = "\n".join(line for line in lines if line)
            samples.append(sample)
            shown.append({"id": sample.id, "text": text, "aspects": asked, "given": sample.given, "results": results})
    if not samples:
        raise InputError(f"no sample can be asked about {', '.join(aspects)}: ask about overall or quality too.")
    data: dict[str, Any] = {"samples": shown, "questions": {name: ASPECTS[name].question for name in aspects}}
    name = sha256(json.dumps([data, [s.order for s in samples]]))[:12]
    if (folder / STUDY).is_file() and read(folder).id != name:
        raise InputError(f"{folder} holds another study, whose answers would be lost: choose another folder.")
    study = Study(name, pairs.names, aspects, ground, WORDING, pairs.missing, samples)
    (folder / PAGE / PICTURES).mkdir(parents=True, exist_ok=True)
    for file, picture in files.items():
        atomic_write(folder / PAGE / file, png(picture.pixels))
    data = {"study": name} | data | {"format": FORMAT, "version": VERSION}
    atomic_write(folder / PAGE / "index.html", render("study.html", title=TITLE, data=data).encode())
    atomic_write(folder / STUDY, (json.dumps(asdict(study), indent=1, ensure_ascii=False) + "\n").encode())
    return study


# ---- what comes back ------------------------------------------------------------------------------------------------


def read(folder: Path) -> Study:
    """InputError where the folder holds no study."""
    path = folder / STUDY
    if not path.is_file():
        raise InputError(f"{folder} holds no {STUDY}: give a folder that `omnialpha eval study` has written.")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return Study(**stored | {"samples": [StudySample(**sample) for sample in stored["samples"]]})
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{path} is damaged: run `omnialpha eval study` again.") from None


def read_answers(study: Study, files: Sequence[Path]) -> list[Answer]:
    """The answers of all files, one an annotator.

    InputError for a file that is no result, of another study, without answers, by an annotator who has another file,
    or with an answer to what was not asked.
    """
    answers: list[Answer] = []
    seen: dict[str, Path] = {}
    for path in files:
        annotator, stored = _read_result(study, path)
        if (name := annotator.casefold()) in seen:
            raise InputError(f"{seen[name]} and {path} are both by {annotator!r}: leave one of them out.")
        seen[name] = path
        answers += _answers(study, path, annotator, stored)
    return answers


def _read_result(study: Study, path: Path) -> tuple[str, list[Any]]:
    """Annotator and answers."""
    if not path.is_file():
        raise InputError(f"there is no file {path}: give the files that annotators saved from the page.")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        annotator, name, answers = stored["annotator"], stored["study"], stored["answers"]
        good = (stored["format"], stored["version"]) == (FORMAT, VERSION) and isinstance(answers, list)
        good = good and isinstance(annotator, str) and bool(annotator.strip())
    except (ValueError, TypeError, KeyError):
        good = False
    if not good:
        raise InputError(f"{path} is no result of a study, or of another version: save it from the page again.")
    if name != study.id:
        raise InputError(f"{path} answers study {name!r}, but this one is {study.id}: give its own folder.")
    if not answers:
        raise InputError(f"{path} holds no answers: leave it out.")
    return annotator, answers


def _answers(study: Study, path: Path, annotator: str, stored: Sequence[Any]) -> list[Answer]:
    samples = {sample.id: sample for sample in study.samples}
    made: dict[tuple[str, str], Answer] = {}
    for number, one in enumerate(stored, start=1):
        try:
            sample, aspect, left, choice = samples[one["sample"]], one["aspect"], one["left"], one["choice"]
            good = aspect in sample.aspects and type(left) is int and left in (0, 1) and choice in CHOICES
        except (TypeError, KeyError):
            good = False
        if not good or (sample.id, aspect) in made:
            raise InputError(f"{path}: answer {number} is not to a question of this study, or a second one to it.")
        sides = {"left": sample.order[left], "right": sample.order[1 - left], TIE: TIE}
        made[sample.id, aspect] = Answer(sample.key, aspect, sides["left"], sides[choice], rater=annotator)
    return list(made.values())
