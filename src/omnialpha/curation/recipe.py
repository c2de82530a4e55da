"""What `omnialpha curate` is told: a TOML file, typed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from omnialpha.curation import editing, output
from omnialpha.curation.editing import EditSettings
from omnialpha.curation.filters import FilterSettings
from omnialpha.curation.output import OutputSettings
from omnialpha.curation.prompts import Prompts
from omnialpha.curation.sources import SourceSettings
from omnialpha.curation.vlm import Server, VLMSettings
from omnialpha.errors import InputError


@dataclass(frozen=True)
class MaskSettings:
    """above, grow: the mask that is removed is alpha above the first, grown by a share of the shorter side.
    derivation: of the maps, as training makes them, or as the paper does.
    """

    above: float = 0.05
    grow: float = 0.0
    derivation: Literal["training", "published"] = "training"

    def __post_init__(self) -> None:
        if not (0 <= self.above < 1 and 0 <= self.grow < 1):
            raise InputError(f"mask.above={self.above:g}, mask.grow={self.grow:g}: both are shares from 0 to below 1.")


@dataclass(frozen=True)
class SelectSettings:
    """score: by which records are sorted. keep: so many of the best, 0: see threshold. threshold: those at most so bad,
    0: see keep; where both are 0 all are kept. near: how near to the cut, as a share of it, is a tie to look at. test:
    share of the test split, by what the foreground is alone; from 1 on its number.
    """

    score: Literal["literal", "premultiplied"] = "premultiplied"
    keep: int = 0
    threshold: float = 0.0
    near: float = 0.02
    test: float = 0.1

    def __post_init__(self) -> None:
        if min(self.keep, self.threshold, self.near, self.test) < 0 or (self.keep and self.threshold):
            raise InputError(
                f"select has keep={self.keep}, threshold={self.threshold:g}, near={self.near:g}, test={self.test:g}: "
                "use numbers from 0, and keep or threshold alone."
            )


@dataclass(frozen=True)
class RunSettings:
    """engine: threads of this machine, or Ray. workers: threads, of each Ray worker too. actors, gpus: Ray workers, and
    the share of a GPU of each. shard: candidates that are done or not done together. failures: that are put up with
    before the run stops.
    """

    engine: Literal["threads", "ray"] = "threads"
    workers: int = 8
    actors: int = 2
    gpus: float = 0.0
    shard: int = 64
    failures: int = 50

    def __post_init__(self) -> None:
        if min(self.workers, self.actors, self.shard) < 1 or min(self.gpus, self.failures) < 0:
            raise InputError(
                f"run has workers={self.workers}, actors={self.actors}, shard={self.shard}, gpus={self.gpus:g}, "
                f"failures={self.failures}: use 1 or more of the first three, and 0 or more of the others."
            )


@dataclass(frozen=True)
class CurationRecipe:
    """output: the folder of the store and of what comes out. side: pictures have at most side x side pixels. limit:
    only so many items, spread over all, as a trial; 0: all. prompts: a file that replaces some of prompts.toml.
    """

    output: str
    sources: list[SourceSettings]
    vlm: VLMSettings
    edit: EditSettings
    remove: EditSettings
    side: int = 1024
    limit: int = 0
    prompts: str = ""
    filters: FilterSettings = field(default_factory=FilterSettings)
    mask: MaskSettings = field(default_factory=MaskSettings)
    select: SelectSettings = field(default_factory=SelectSettings)
    run: RunSettings = field(default_factory=RunSettings)
    out: OutputSettings = field(default_factory=OutputSettings)

    def __post_init__(self) -> None:
        if not self.sources:
            raise InputError("the recipe has no [[sources]]: name a collection or a folder of pictures.")
        if self.side < 64 or self.limit < 0:
            raise InputError(f"side={self.side}, limit={self.limit}: use 64 pixels or more, and 0 or more items.")

    @property
    def folder(self) -> Path:
        return Path(self.output).expanduser()

    def check(self) -> None:
        """InputError for what would stop the run later: unknown kinds, addresses, keys and words."""
        Prompts.read(self.prompts)
        output.check(self.out)
        Server(self.vlm)
        for section in ("edit", "remove"):
            settings: EditSettings = getattr(self, section)
            editing.check_kind(section, settings.kind)
            if settings.kind == "server":
                Server(settings.server)
