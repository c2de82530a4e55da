"""The evaluation engine: methods on samples, a row of figures each. What is finished is not done again.

Each row is stored as it is made, under a hash of all that it depends on: pictures, words, size, method, seed and
networks. A run that was stopped goes on there, and what has changed is measured anew.

Where predictions are kept, OUT/NAME/ of each method holds samples.jsonl and predictions/ (see `predictions`),
made.jsonl (what each prediction was made from, and how long it took), rows.jsonl and features/. Where they are not,
rows.jsonl and features/ of all methods lie in OUT.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.evaluation.methods import predictions
from omnialpha.evaluation.methods.method import Method
from omnialpha.evaluation.reports.report import Row, append_row, read_rows
from omnialpha.evaluation.scoring import Networks, Scoring
from omnialpha.files import atomic_write, sha256
from omnialpha.tasks import Example

MADE, ROWS, FEATURES = "made.jsonl", "rows.jsonl", "features"


@dataclass(frozen=True)
class EvaluationSettings:
    """How samples are measured.

    Args:
        size: of the longer side in px, to which pictures are resized (None: as stored).
        seed: each sample has its own, drawn from this one and its key.
        skip_bad: samples that cannot be measured are listed instead of ending the run.
        networks: what some figures need.
    """

    size: int | None = None
    seed: int = 0
    skip_bad: bool = False
    networks: Networks = Networks()


@dataclass(frozen=True)
class SampleSet:
    """Samples of one task and how predictions for them are scored.

    Args:
        samples: with `key` (a name, unique in the part), `category`, `identity(longer)` (the same for the same pictures
            and words, measured at the same longer side in px) and `load(longer)`, which gives an `example`. Where
            predictions are files: `targets`; where they are kept: `request()`.
        kind: of figures.
        about: what stands in every row of the part, such as its name.
        seeds: by a sample's key, where they are not drawn from the key.
    """

    samples: Sequence[Any]
    kind: Scoring
    about: Mapping[str, Any] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.samples)


class _Waiting(NamedTuple):
    sample: Any
    request: str  # a hash of all that its prediction depends on
    example: Example


@dataclass
class Runner:
    """Measures methods, and keeps what is finished.

    Args:
        out: the folder of the run.
        settings: the same for all methods.
        keep: whether predictions are written as files, in 8 bits, and scored as such, as those of a folder are.
            Otherwise they are scored as they were made.

    Attributes:
        bad: method's name -> sample's key -> why it was passed over, filled by `rows`.
    """

    out: Path
    settings: EvaluationSettings = EvaluationSettings()
    keep: bool = True
    bad: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.networks = self.settings.networks.identity()
        self.known: dict[Path, dict[str, Row]] = {}

    def rows(self, method: Method, part: SampleSet) -> Iterator[Row]:
        """Measure a method (of one output where predictions are kept) on all samples of a part.

        Yields one row after the other, each stored before it is given; of a method of several outputs, one of each.
        InputError for a sample or prediction that cannot be used, unless those are skipped.
        """
        assert len({sample.key for sample in part.samples}) == len(part), "two samples have one key"
        place = self._place(method)
        place.mkdir(parents=True, exist_ok=True)
        if self.keep:
            predictions.write_requests(place, (sample.request() for sample in part.samples))
        waiting: list[_Waiting] = []
        for sample in part.samples:
            try:
                seed = self._seed(part, sample)
                request = _hash([sample.identity(self.settings.size), method.identity, seed])
                if rows := self._finished(method, part, sample, request):
                    yield from self._make(method, part, waiting)
                    yield from rows
                    continue
                example = sample.load(self.settings.size)
            except InputError as error:
                yield from self._make(method, part, waiting)
                self._pass_over(method, sample, error)
                continue
            if waiting and (len(waiting) >= method.batch or waiting[0].example.size != example.size):
                yield from self._make(method, part, waiting)
            waiting.append(_Waiting(sample, request, example))
        yield from self._make(method, part, waiting)

    def features(self, method: Method, rows: Sequence[Row]) -> list[dict[str, Tensor]]:
        """What `scoring.of_sets` takes, of those rows that have any."""
        paths = [self._features_of(method, row["key"]) for row in rows if row["features"]]
        return [{name: torch.from_numpy(values) for name, values in np.load(path).items()} for path in paths]

    def predicted(self, method: Method, part: SampleSet, sample: Any, example: Example) -> Tensor:
        """A finished prediction: (m, 4, H, W), before that (outputs,) of a method of several. From its files, or made
        once more where they are not kept.
        """
        if self.keep:
            return self._read(method, part, sample, example)
        assert method.make is not None
        return method.make([example], [self._seed(part, sample)])[0]

    # ---- places ------------------------------------------------------------------------------------------------------

    def _place(self, method: Method) -> Path:
        return self.out / method.place if self.keep else self.out

    def _features_of(self, method: Method, key: str) -> Path:
        return self._place(method) / FEATURES / f"{key}.npz"

    def _source(self, method: Method) -> Path:
        """The folder that holds KEY.png; one that a run has written is found by itself."""
        folder = method.folder or self._place(method)
        below = folder / predictions.PREDICTIONS
        return below if method.folder is None or below.is_dir() else folder

    def _files(self, method: Method, sample: Any) -> str:
        """A hash of the files of a prediction; empty if one is missing."""
        return predictions.digest(self._source(method), sample.key, len(sample.targets))

    def _read(self, method: Method, part: SampleSet, sample: Any, example: Example) -> Tensor:
        known = bool(example.inputs) or any(truth is not None for truth in example.truths)
        count, size = len(sample.targets), example.size if known else None
        return predictions.read(self._source(method), sample.key, count, size, grey_is_alpha=part.kind.mattes)

    def _stored(self, method: Method, name: str) -> dict[str, Row]:
        """The rows of a file by key, read once."""
        path = self._place(method) / name
        if path not in self.known:
            self.known[path] = read_rows(path)
        return self.known[path]

    def _store(self, method: Method, name: str, rows: Sequence[Row]) -> None:
        append_row(self._place(method) / name, *rows)
        self._stored(method, name).update({row["key"]: row for row in rows})

    # ---- what is finished --------------------------------------------------------------------------------------------

    def _seed(self, part: SampleSet, sample: Any) -> int:
        return part.seeds.get(sample.key, int(sha256(f"{self.settings.seed}:{sample.key}")[:8], 16))

    def _made(self, method: Method, sample: Any) -> Row:
        """What is known of how a prediction was made; empty for one that this run has not made as files."""
        return self._stored(method, MADE).get(sample.key, {}) if self.keep and method.make else {}

    def _keys(self, method: Method, part: SampleSet, sample: Any, request: str) -> list[str]:
        """Of what a row depends on, for each output; none if its prediction has no files yet."""
        prediction = self._files(method, sample) if self.keep else request
        subject = [request, prediction, part.kind.name, self.networks, dict(part.about), sample.key]
        return [_hash([*subject, output]) for output in method.outputs or ("",)] if prediction else []

    def _finished(self, method: Method, part: SampleSet, sample: Any, request: str) -> list[Row]:
        """The rows of a sample; none where a prediction must be made first."""
        made = self._made(method, sample)
        if self.keep and method.make:  # only files that this very request has made count
            fresh = made and made["content"] == request and made["files"] == self._files(method, sample) != ""
            if not fresh:
                return []
        keys, stored = self._keys(method, part, sample, request), self._stored(method, ROWS)
        rows = [row for key in keys if (row := stored.get(key))]
        lost = any(row["features"] and not self._features_of(method, row["key"]).is_file() for row in rows)
        if keys and len(rows) == len(keys) and not lost:
            named = zip(rows, method.names, strict=True)
            return [row | {"method": name, "seconds": made.get("seconds")} for row, name in named]
        if not self.keep:
            return []
        example = sample.load(self.settings.size)
        return self._score(method, part, sample, request, example, self._read(method, part, sample, example))

    def _make(self, method: Method, part: SampleSet, waiting: list[_Waiting]) -> Iterator[Row]:
        """Predictions and rows of the samples that wait, all of one size; afterwards none does."""
        batch = list(waiting)
        waiting.clear()
        if not batch:
            return
        assert method.make is not None
        began = time.perf_counter()
        try:
            made = method.make([one.example for one in batch], [self._seed(part, one.sample) for one in batch])
        except InputError as error:
            if len(batch) == 1:
                self._pass_over(method, batch[0].sample, error)
            else:  # only one of them may be to blame
                for one in batch:
                    yield from self._make(method, part, [one])
            return
        seconds = (time.perf_counter() - began) / len(batch)
        for (sample, request, example), layers in zip(batch, made, strict=True):
            try:
                self._check(method, sample, example, layers)
                if self.keep:
                    predictions.write(self._place(method), sample.key, layers)
                    row: Row = {"key": sample.key, "content": request, "files": self._files(method, sample)}
                    self._store(method, MADE, [row | {"seconds": round(seconds, 4)}])
                    layers = self._read(method, part, sample, example)
                yield from self._score(method, part, sample, request, example, layers)
            except InputError as error:
                self._pass_over(method, sample, error)

    def _check(self, method: Method, sample: Any, example: Example, layers: Tensor) -> None:
        several = (len(method.outputs),) if method.outputs else ()
        wanted = (*several, len(example.targets), 4, *example.size)
        if tuple(layers.shape) != wanted:
            raise InputError(f"{method.name} made {tuple(layers.shape)} of {sample.key}, not {wanted}: leave it out.")
        if not bool(layers.isfinite().all()):
            raise InputError(f"{method.name} answers NaN for {sample.key}: its weights are damaged, or leave it out.")

    def _pass_over(self, method: Method, sample: Any, error: InputError) -> None:
        if not self.settings.skip_bad:
            raise error
        self.bad.setdefault(method.name, {})[sample.key] = str(error)

    def _score(
        self, method: Method, part: SampleSet, sample: Any, request: str, example: Example, layers: Tensor
    ) -> list[Row]:
        """A row of each output, stored."""
        kind, networks, rows = part.kind, self.settings.networks, []
        keys = self._keys(method, part, sample, request)
        for name, key, one in zip(method.names, keys, layers if method.outputs else [layers], strict=True):
            with torch.inference_mode():
                figures = kind.score(example, one, networks)
            features = kind.features(example, one, networks)
            if features:
                buffer, path = io.BytesIO(), self._features_of(method, key)
                np.savez(buffer, **{name: value.numpy() for name, value in features.items()})  # type: ignore[arg-type]
                path.parent.mkdir(exist_ok=True)
                atomic_write(path, buffer.getvalue())
            row: Row = {"key": key, "sample": sample.key, "category": sample.category, "method": name, **part.about}
            row |= {"height": int(one.shape[-2]), "width": int(one.shape[-1]), "features": bool(features)}
            rows.append(row | {name: value if isfinite(value) else None for name, value in figures.items()})
        self._store(method, ROWS, rows)
        return [row | {"seconds": self._made(method, sample).get("seconds")} for row in rows]


def _hash(subject: object) -> str:
    return sha256(json.dumps(subject, sort_keys=True))[:32]
