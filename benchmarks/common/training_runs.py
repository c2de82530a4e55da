"""Training runs of a benchmark, which go on where they were stopped, but not with another recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any


def begin(folder: Path, recipe: dict[str, Any]) -> None:
    """Keep what is in a run's folder only if it was begun with this very recipe."""
    said, wanted = folder / "recipe.json", json.dumps(recipe, sort_keys=True)
    if said.is_file() and said.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    said.write_text(wanted)
