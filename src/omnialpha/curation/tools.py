"""What the stages work with, made where it is first needed: one set a process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from omnialpha.curation import editing, filters
from omnialpha.curation.prompts import Prompts
from omnialpha.curation.store import Store
from omnialpha.curation.vlm import Server

if TYPE_CHECKING:
    from omnialpha.curation.recipe import CurationRecipe


class Tools:
    """Of a recipe: its store, its words, and the models behind them."""

    def __init__(self, recipe: CurationRecipe) -> None:
        self.recipe = recipe
        self.store, self.prompts = Store(recipe.folder / "store"), Prompts.read(recipe.prompts)
        self.vlm = Server(recipe.vlm)
        self.lock, self.device = threading.Lock(), threading.Lock()

    def turn(self, service: str) -> AbstractContextManager[Any]:
        """To be held while an editor or a remover works: models on this machine work one at a time."""
        local = service in ("edit", "remove") and getattr(self.recipe, service).kind != "server"
        return self.device if local else nullcontext()

    @property
    def editor(self) -> editing.Editor:
        with self.lock:
            return self._editor

    @property
    def remover(self) -> editing.Remover:
        with self.lock:
            return self._remover

    @cached_property
    def _editor(self) -> editing.Editor:
        return editing.EDITORS[self.recipe.edit.kind](self.recipe.edit)

    @cached_property
    def _remover(self) -> editing.Remover:
        return editing.REMOVERS[self.recipe.remove.kind](self.recipe.remove, self.prompts.removal.text)

    @cached_property
    def aesthetic(self) -> Callable[[Tensor], float] | None:
        """Scores a picture over white, (3, H, W); None: the recipe names no scorer."""
        return filters.scorer(self.recipe.filters)
