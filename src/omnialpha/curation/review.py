"""A page on which a person accepts or rejects candidates, and the decisions that come back from it.

FOLDER/index.html  candidates by score, with the cut between them; works offline
FOLDER/pictures/   what it shows, in small
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from omnialpha import rgba
from omnialpha.curation.candidate import Candidate
from omnialpha.curation.store import Store
from omnialpha.errors import InputError
from omnialpha.evaluation.reports.report import finite, shrink, to_bytes
from omnialpha.files import atomic_write, sha256
from omnialpha.templates import render

FORMAT, VERSION = "omnialpha review decisions", 1
PAGE, PICTURES = "index.html", "pictures"
VERDICTS = ("accept", "reject")
SHOWN = ("foreground", "composite", "background", "recomposed", "difference")
SIDE = 384  # px of the longer side of a picture
AMPLIFIED = 4  # times a difference is shown
WORKERS = 8  # threads that make pictures


def mark(candidate: Candidate) -> str:
    """What a decision is about: other pictures under the same id have another."""
    pictures = [list(candidate.foregrounds), candidate.background, candidate.composite]
    return sha256(json.dumps(pictures))[:20]


def write_review(
    folder: Path,
    store: Store,
    candidates: Sequence[Candidate],
    scores: Mapping[str, float],
    cut: float | None,
    near: Collection[str],
    decided: Mapping[str, str] | None = None,
) -> Path:
    """Write the page; pictures that are there already are kept, those of other candidates taken away.

    Args:
        candidates: that have all their pictures.
        scores: by id, by which they are sorted, lower first.
        cut: the score of the last that is kept; None: there is no cut.
        near: ids close to the cut.
        decided: what the page begins with, see `read_decisions`.

    Returns:
        The page.
    """
    ordered = sorted(candidates, key=lambda candidate: (scores[candidate.id], candidate.id))
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(WORKERS) as pool:
        sizes = list(pool.map(lambda candidate: _pictures(folder, store, candidate), ordered))
    wanted = {_file(candidate, label) for candidate in ordered for label in SHOWN}
    for path in (folder / PICTURES).glob("*.webp"):
        if f"{PICTURES}/{path.name}" not in wanted:
            path.unlink()
    cards = [
        _card(candidate, scores[candidate.id], size, candidate.id in near)
        for candidate, size in zip(ordered, sizes, strict=True)
    ]
    data = {
        "format": FORMAT, "version": VERSION, "run": sha256(json.dumps([[c["id"], c["mark"]] for c in cards]))[:20],
        "cut": cut if cut is not None and isfinite(cut) else None, "decided": dict(decided or {}), "cards": cards,
        "amplified": AMPLIFIED,
    }  # fmt: skip
    page = folder / PAGE
    atomic_write(page, render("review.html", title="Accept or reject", count=len(cards), data=data))
    return page


def _card(candidate: Candidate, score: float, size: tuple[int, int], near: bool) -> dict[str, Any]:
    words = [("foreground", text) for text in candidate.captions] + [("scene", candidate.scene)]
    words += [("instruction", candidate.instruction), ("background", candidate.background_caption)]
    return {
        "id": candidate.id, "mark": mark(candidate), "source": candidate.source, "licence": candidate.licence,
        "score": score if isfinite(score) else None, "scores": finite(candidate.scores), "near": near,
        "words": [pair for pair in words if pair[1]], "size": size,
        "pictures": [(label, _file(candidate, label)) for label in SHOWN],
    }  # fmt: skip


# ---- pictures -------------------------------------------------------------------------------------------------------


def _file(candidate: Candidate, label: str) -> str:
    return f"{PICTURES}/{mark(candidate)}-{label}.webp"


def _pictures(folder: Path, store: Store, candidate: Candidate) -> tuple[int, int]:
    """Make those that are not there. Their width and height."""
    paths = {label: folder / _file(candidate, label) for label in SHOWN}
    if not all(path.is_file() for path in paths.values()):
        for label, picture in _shown(store, candidate).items():
            file = BytesIO()
            Image.fromarray(to_bytes(shrink(picture, SIDE))).save(file, "WEBP", quality=88, method=2)
            atomic_write(paths[label], file.getvalue())
    with Image.open(paths[SHOWN[0]]) as image:
        return image.size


def _shown(store: Store, candidate: Candidate) -> dict[str, Tensor]:
    """SHOWN, (4, H, W) each."""
    layers = [store.get(layer) for layer in candidate.foregrounds]
    back, whole = store.get(candidate.background), store.get(candidate.composite)
    again = rgba.recompose([back, *layers])
    difference = rgba.opaque(((whole - again)[:3].abs() * AMPLIFIED).clamp(0, 1))
    return dict(zip(SHOWN, (rgba.recompose(layers), whole, back, again, difference), strict=True))


# ---- what comes back ------------------------------------------------------------------------------------------------


def read_decisions(path: Path, candidates: Iterable[Candidate]) -> dict[str, str]:
    """ "accept" or "reject" by id, from a file that was saved from the page.

    Args:
        candidates: all that there are; those without a composite are not compared with what was decided on.

    Raises:
        InputError: The file is missing, damaged or of another version, or has an id that no candidate has, or a
            decision on pictures that have changed since.
    """
    again = "save it from the page again"
    if not path.is_file():
        raise InputError(f"there is no file {path}: give the {path.name} that was saved from the page.")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        decisions, marks = dict(stored["decisions"]), dict(stored["marks"])
        kind, version = stored["format"], stored["version"]
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{path} is damaged, or holds no decisions: {again}.") from None
    if (kind, version) != (FORMAT, VERSION):
        raise InputError(f"{path} is {kind!r} of version {version!r}, not {FORMAT!r} of {VERSION}: {again}.")
    known = {candidate.id: mark(candidate) if candidate.composite else None for candidate in candidates}
    for name, verdict in decisions.items():
        if verdict not in VERDICTS:
            raise InputError(f"{path} has {verdict!r} for {name}, neither accept nor reject: {again}.")
    if unknown := sorted(decisions.keys() - known.keys()):
        raise InputError(f"{path} decides on {_some(unknown)}, which no candidate is called: take that out of it.")
    if changed := sorted(name for name in decisions if known[name] not in (None, marks.get(name))):
        raise InputError(f"{path} decides on {_some(changed)}, whose pictures are others now: decide on the new page.")
    return decisions


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
