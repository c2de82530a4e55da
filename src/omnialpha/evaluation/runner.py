"""Samples through a method to predictions in files, and from files to figures. What is finished is not done again.

OUT/NAME/ of each method: samples.jsonl and predictions/, see `predictions`; made.jsonl, what each prediction was made
from and how long it took; rows.jsonl, its figures.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.samples import Sample
from omnialpha.evaluation.methods import predictions
from omnialpha.evaluation.methods.method import Method
from omnialpha.evaluation.reports.report import Row, append_row, read_rows
from omnialpha.evaluation.scoring import KINDS, Networks
from omnialpha.files import atomic_write, sha256
from omnialpha.tasks import Example

MADE, ROWS, FEATURES = "made.jsonl", "rows.jsonl", "features"


@dataclass(frozen=True)
class Settings:
    """size: of the longer side in px (None: as stored). seed: each sample has its own, drawn from this one and its key.
    skip_bad: samples that cannot be measured are listed instead of ending the run.
    """

    size: int | None = None
    seed: int = 0
    skip_bad: bool = False
    networks: Networks = Networks()

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise InputError(f"size={self.size} is out of range: use 1 or more.")

    def seed_of(self, key: str) -> int:
        return int(sha256(f"{self.seed}:{key}")[:8], 16)


@dataclass(frozen=True)
class Entrant:
    """Whose predictions are measured: a method's that makes them, or those of a folder. task: what it is asked for."""

    name: str
    task: str
    method: Method | None = None
    folder: Path | None = None

    @property
    def place(self) -> str:
        """Its folder below that of the run."""
        return "".join(c if c.isalnum() or c in "._-" else "-" for c in self.name).strip(".-") or "unnamed"


def check(entrants: Sequence[Entrant]) -> None:
    """InputError, before anything is made, for an entrant that cannot take part."""
    places = [entrant.place for entrant in entrants]
    for entrant in entrants:
        if places.count(entrant.place) > 1:
            raise InputError(f"{entrant.name} would be measured twice: give NAME=FOLDER to tell predictions apart.")
        if entrant.method and not entrant.method.does(entrant.task):
            raise InputError(f"{entrant.name} cannot do {entrant.task}: leave it out, or give another --task.")
        if entrant.folder and not entrant.folder.is_dir():
            raise InputError(f"{entrant.folder} is no folder of predictions: check the path.")


class _Waiting(NamedTuple):
    sample: Sample
    asked: str
    example: Example


@dataclass
class Runner:
    """One benchmark for any number of entrants, which all answer the same samples. samples: by what is asked for, the
    same ones in the same order. kind: see `scoring.KINDS`.

    bad: entrant's name -> sample's key -> why it was passed over, filled by `rows`.
    """

    samples: Mapping[str, Sequence[Sample]]
    kind: str
    out: Path
    settings: Settings = Settings()
    bad: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found = [[sample.key for sample in of] for of in self.samples.values()]
        assert all(keys == found[0] for keys in found), "not the same samples"
        assert len(set(found[0])) == len(found[0]), "two samples have one key"
        self.shared = [self.kind, self.settings.networks.identity()]

    def __len__(self) -> int:
        """Samples of each entrant."""
        return len(next(iter(self.samples.values())))

    def source(self, entrant: Entrant) -> Path:
        """The folder that holds KEY.png; one that a run has written is found by itself."""
        if entrant.folder is None:
            return self.out / entrant.place / predictions.PREDICTIONS
        below = entrant.folder / predictions.PREDICTIONS
        return below if below.is_dir() else entrant.folder

    def rows(self, entrant: Entrant) -> Iterator[Row]:
        """The figures of one sample after the other, each stored before it is given."""
        place = self.out / entrant.place
        place.mkdir(parents=True, exist_ok=True)
        predictions.write_asked(place, (sample.asked() for sample in self.samples[entrant.task]))
        made, stored = read_rows(place / MADE), read_rows(place / ROWS)
        waiting: list[_Waiting] = []
        for sample in self.samples[entrant.task]:
            try:
                asked = sample.identity(self.settings.size)
                if entrant.method is None or self._is_made(entrant, sample, asked, made.get(sample.key)):
                    yield from self._make(entrant, waiting)
                    yield self._score(entrant, sample, asked, None, made.get(sample.key), stored.get(sample.key))
                    continue
                example = sample.load(self.settings.size)
            except InputError as error:
                yield from self._make(entrant, waiting)
                self._pass_over(entrant, sample, error)
                continue
            if waiting and (len(waiting) >= entrant.method.batch or waiting[0].example.size != example.size):
                yield from self._make(entrant, waiting)
            waiting.append(_Waiting(sample, asked, example))
        yield from self._make(entrant, waiting)

    def load(self, entrant: Entrant, sample: Sample, example: Example) -> Tensor:
        """A prediction (m, 4, H, W) from its files."""
        known = any(truth is not None for truth in example.truths) or bool(example.inputs)
        size, mattes = example.size if known else None, KINDS[self.kind].mattes
        return predictions.read(self.source(entrant), sample.key, len(sample.targets), size, grey_is_alpha=mattes)

    def _pass_over(self, entrant: Entrant, sample: Sample, error: InputError) -> None:
        if not self.settings.skip_bad:
            raise error
        self.bad.setdefault(entrant.name, {})[sample.key] = str(error)

    # ---- predictions -----------------------------------------------------------------------------------------------

    def _request(self, entrant: Entrant, sample: Sample, asked: str) -> str:
        assert entrant.method is not None
        return _hash([asked, entrant.method.identity, self.settings.seed_of(sample.key)])

    def _is_made(self, entrant: Entrant, sample: Sample, asked: str, row: Row | None) -> bool:
        """Whether the files are those that this very request has made."""
        if row is None or row["content"] != self._request(entrant, sample, asked):
            return False
        files = predictions.digest(self.source(entrant), sample.key, len(sample.targets))
        return bool(files) and row["files"] == files

    def _make(self, entrant: Entrant, waiting: list[_Waiting]) -> Iterator[Row]:
        """Predictions and figures of the samples that wait, all of one size; afterwards none does."""
        batch, method = list(waiting), entrant.method
        waiting.clear()
        if not batch or method is None:
            return
        began = time.perf_counter()
        try:
            made = method.make([w.example for w in batch], [self.settings.seed_of(w.sample.key) for w in batch])
        except InputError as error:
            if len(batch) > 1:  # only one of them may be to blame
                for one in batch:
                    yield from self._make(entrant, [one])
                return
            self._pass_over(entrant, batch[0].sample, error)
            return
        seconds = (time.perf_counter() - began) / len(batch)
        for (sample, asked, example), layers in zip(batch, made, strict=True):
            try:
                row = self._keep(entrant, sample, asked, example, layers, seconds)
                yield self._score(entrant, sample, asked, example, row, None)
            except InputError as error:
                self._pass_over(entrant, sample, error)

    def _keep(
        self, entrant: Entrant, sample: Sample, asked: str, example: Example, layers: Tensor, seconds: float
    ) -> Row:
        wanted = (len(example.targets), 4, *example.size)
        if tuple(layers.shape) != wanted:
            raise InputError(f"{entrant.name} made {tuple(layers.shape)} of {sample.key}, not {wanted}: leave it out.")
        place, count = self.out / entrant.place, len(layers)
        predictions.write(place, sample.key, layers)
        files = predictions.digest(self.source(entrant), sample.key, count)
        content = self._request(entrant, sample, asked)
        row: Row = {"key": sample.key, "content": content, "files": files, "seconds": round(seconds, 4)}
        append_row(place / MADE, row)
        return row

    # ---- figures ---------------------------------------------------------------------------------------------------

    def _score(
        self,
        entrant: Entrant,
        sample: Sample,
        asked: str,
        example: Example | None,
        made: Row | None,
        stored: Row | None,
    ) -> Row:
        kind, networks, place = KINDS[self.kind], self.settings.networks, self.out / entrant.place
        files = predictions.digest(self.source(entrant), sample.key, len(sample.targets))
        content = _hash([asked, files, self.shared])
        seconds = made["seconds"] if made and entrant.method else None
        if (
            files
            and stored
            and stored["content"] == content
            and (not stored["features"] or _file(place, content).is_file())
        ):
            return stored | {"seconds": seconds}
        example = sample.load(self.settings.size) if example is None else example
        layers = self.load(entrant, sample, example)
        with torch.inference_mode():
            figures = kind.score(example, layers, networks)
        features = kind.features(example, layers, networks)
        if features:
            buffer = io.BytesIO()
            np.savez(buffer, **{name: value.numpy() for name, value in features.items()})  # type: ignore[arg-type]
            _file(place, content).parent.mkdir(exist_ok=True)
            atomic_write(_file(place, content), buffer.getvalue())
        height, width = layers.shape[-2:]
        row: Row = {
            "key": sample.key,
            "content": content,
            "category": sample.category,
            "height": height,
            "width": width,
        }
        row |= {"features": bool(features), "seconds": seconds}
        row |= {name: value if isfinite(value) else None for name, value in figures.items()}
        append_row(place / ROWS, row)
        return row

    def features(self, entrant: Entrant, rows: Sequence[Row]) -> list[dict[str, Tensor]]:
        """What `scoring.of_sets` takes, of those rows that have any."""
        paths = [_file(self.out / entrant.place, row["content"]) for row in rows if row["features"]]
        return [{name: torch.from_numpy(values) for name, values in np.load(path).items()} for path in paths]


def _file(place: Path, content: str) -> Path:
    return place / FEATURES / f"{content}.npz"


def _hash(told: object) -> str:
    return sha256(json.dumps(told, sort_keys=True))[:32]
