"""From a recipe to a trained model: `omnialpha train RECIPE [section.key=value ...]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from omnialpha import config
from omnialpha.errors import InputError
from omnialpha.training.finder import FinderRecipe
from omnialpha.training.finder_expert import ExpertRecipe
from omnialpha.training.grounding import GroundingRecipe
from omnialpha.training.loop import fit
from omnialpha.training.pointing import PointerRecipe
from omnialpha.training.reinforcement.recipe import ReinforcementRecipe
from omnialpha.training.sft_recipe import SFTRecipe
from omnialpha.training.vae_recipe import VAERecipe

Recipe = VAERecipe | SFTRecipe | FinderRecipe | ExpertRecipe | GroundingRecipe | PointerRecipe
KINDS: dict[str, type[Recipe]] = {
    "vae": VAERecipe,
    "sft": SFTRecipe,
    "reinforcement": ReinforcementRecipe,
    "finder": FinderRecipe,
    "finder-expert": ExpertRecipe,
    "grounding": GroundingRecipe,
    "pointer": PointerRecipe,
}


def read(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe file, checked."""
    tree = config.load(path, overrides)
    kind = KINDS.get(tree.get("kind", ""))
    if not kind:
        raise InputError(f"recipe {path} has kind={tree.get('kind')!r}: use one of {', '.join(KINDS)}.")
    return config.build(kind, tree)


def run(path: str | Path, overrides: Sequence[str] = (), quiet: bool = False) -> dict[str, float]:
    """Train by a recipe file; returns the last figures. See `fit` for resumption and cancelling."""
    recipe = read(path, overrides)
    return fit(recipe.objective(), recipe.fit, quiet)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
