"""Pictures and answers of curation in a folder that all workers see, each under a digest that says what it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from omnialpha.evaluation.datasets.samples import png_of
from omnialpha.files import atomic_write, sha256
from omnialpha.io import read_image


@dataclass(frozen=True)
class Store:
    """Written once and never changed: two workers that make the same write the same file."""

    folder: Path

    def path(self, digest: str) -> Path:
        """Of a picture, a PNG of 8 bits."""
        return self.folder / "pictures" / digest[:2] / f"{digest}.png"

    def put(self, picture: Tensor) -> str:
        """Keep a picture (3 or 4, H, W) in [0, 1], straight alpha, and return its digest."""
        data = png_of(picture)
        digest = sha256(data)
        self._write(self.path(digest), data)
        return digest

    def get(self, digest: str) -> Tensor:
        """A picture, (4, H, W) in [0, 1]."""
        return read_image(self.path(digest)).rgba

    def answer(self, stage: str, key: str) -> dict[str, Any] | None:
        """What a stage made of the inputs that `key` is the digest of; None: it has not been asked."""
        path = self._answer(stage, key)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def keep(self, stage: str, key: str, answer: dict[str, Any]) -> None:
        self._write(self._answer(stage, key), json.dumps(answer, ensure_ascii=False).encode())

    def answers(self, stage: str) -> list[dict[str, Any]]:
        """All that a stage has made so far."""
        files = sorted((self.folder / "answers" / stage).glob("??/*.json"))
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    def _answer(self, stage: str, key: str) -> Path:
        return self.folder / "answers" / stage / key[:2] / f"{key}.json"

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, data)
