"""Training runs of a benchmark: long ones, which go on where they were stopped, but not with another recipe, and short
ones, of which nothing is kept.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from omnialpha.models.transformer.model import MultiImageTransformer
from omnialpha.tasks import CATEGORIES, TASKS
from omnialpha.training.objective import FitSettings, Objective
from omnialpha.training.run import SFTRecipe
from omnialpha.training.sft import SFTObjective, initialize


def begin(folder: Path, recipe: dict[str, Any]) -> None:
    """Keep what is in a run's folder only if it was begun with this very recipe."""
    said, wanted = folder / "recipe.json", json.dumps(recipe, sort_keys=True)
    if said.is_file() and said.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    said.write_text(wanted)


def tasks_of(category: str | None) -> dict[str, float]:
    """Each category weighs the same, and each task of a category too. None: of all categories."""
    chosen = CATEGORIES if category is None else (category,)
    rows = {c: [name for name, task in TASKS.items() if task.category == c] for c in chosen}
    return {name: 1 / len(names) for names in rows.values() for name in names}


def plain_start(objective: SFTObjective, recipe: SFTRecipe) -> None:
    """Give the transformer of a recipe from nothing a start that is not aligned, by the recipe's seed."""
    torch.manual_seed(recipe.fit.seed)
    transformer = MultiImageTransformer(**recipe.transformer)
    initialize(transformer)
    objective.model.transformer.load_state_dict(transformer.state_dict())


def first_steps(
    objective: Objective, settings: FitSettings, warmup: int, pace: Callable[[], float] = lambda: 1.0
) -> Iterator[float]:
    """The loss of one training step after another, in float32, at a constant rate after so many steps of warm-up, times
    what `pace` says before each.
    """
    trained = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, settings.lr, settings.betas, weight_decay=settings.weight_decay)
    step = 0
    while True:
        optimizer.param_groups[0]["lr"] = settings.lr * min(1.0, (step + 1) / warmup) * pace()
        loss = objective(step)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        yield float(loss.detach())
