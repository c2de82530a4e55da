"""What comes out of curation: layered records, shards and tables of those that are kept, and what became of the rest.

FOLDER/train.jsonl, test.jsonl  layered records, their pictures in FOLDER/pictures/NAME/
FOLDER/shards/, parquet/        the same records, for streaming and for Hugging Face `datasets`
FOLDER/manifest.jsonl           every item: origin, licence, pictures, words, scores, and its split or why it has none
FOLDER/rejected.jsonl           what was left out, where and why
FOLDER/README.md, samples.png   the card of the data set, and a look at it
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from omnialpha import rgba
from omnialpha.curation import card, parquet_files
from omnialpha.curation.candidate import Candidate, Outcome
from omnialpha.curation.store import Store
from omnialpha.data.records import shards
from omnialpha.data.records.check import write_manifest
from omnialpha.data.records.pictures import Handle
from omnialpha.data.records.records import LayeredRecord
from omnialpha.errors import InputError
from omnialpha.evaluation.reports.report import finite
from omnialpha.files import atomic_folder, atomic_write, sha256
from omnialpha.io import contact_sheet
from omnialpha.tasks import Role

MANIFEST, REJECTED, CARD, SAMPLES = "manifest.jsonl", "rejected.jsonl", "README.md", "samples.png"
PICTURES, SHARDS, PARQUET = "pictures", "shards", "parquet"
SPLITS = ("train", "test")


@dataclass(frozen=True)
class OutputSettings:
    """maps: records have the maps too, which training otherwise draws anew. shards, parquet: whether they are written.
    size_mb: of a file of them at most. rows: of a row group in parquet. samples: records on the sample sheet. title: of
    the card.
    """

    maps: bool = False
    shards: bool = True
    parquet: bool = True
    size_mb: int = 512
    rows: int = 16
    samples: int = 12
    title: str = "Layered pictures"

    def __post_init__(self) -> None:
        if min(self.size_mb, self.rows) < 1 or self.samples < 0:
            raise InputError(
                f"out has size_mb={self.size_mb}, rows={self.rows}, samples={self.samples}: use 1 or more of the first "
                "two, and 0 or more samples."
            )


def check(settings: OutputSettings) -> None:
    """InputError for what would stop `write` after hours of work."""
    if settings.parquet:
        parquet_files.arrow()


def write(
    folder: Path,
    store: Store,
    kept: Mapping[str, Sequence[Candidate]],
    outcomes: Sequence[Outcome],
    about: Mapping[str, Any],
    settings: OutputSettings,
) -> dict[str, int]:
    """Write all of it, each file whole or not at all; the same candidates give the same bytes.

    Args:
        kept: by split, the best first.
        outcomes: of every item, those that are kept too.
        about: how it was made, for the card; of these, `score` names the score that was selected by, `cut` is where,
            and `near` lists the ids close to it.

    Returns:
        How many records each split has.

    Raises:
        InputError: The folder holds something else, a picture is not in the store, or pyarrow is missing.
    """
    if not (folder / MANIFEST).is_file() and (there := [n for n in (PICTURES, PARQUET) if (folder / n).exists()]):
        raise InputError(f"{folder / there[0]} is not of a data set built here: choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    check(settings)
    places = {candidate.id: split for split in SPLITS for candidate in kept.get(split, ())}
    ordered = sorted(outcomes, key=lambda outcome: outcome.candidate.id)
    _write_lines(folder / MANIFEST, (_item(outcome, places) for outcome in ordered))
    _write_lines(folder / REJECTED, (_rejection(outcome) for outcome in ordered if outcome.stage))
    records = _records(folder, store, kept, settings)
    for split in SPLITS:
        _write_records(folder, split, records[split], settings)
    if settings.parquet:
        with atomic_folder(folder / PARQUET) as tables:
            for split in SPLITS:
                parquet_files.write(records[split], tables, split, settings.size_mb << 20, settings.rows)
    elif (folder / PARQUET).is_dir():
        shutil.rmtree(folder / PARQUET)
    _write_samples(folder / SAMPLES, store, [c for split in SPLITS for c in kept.get(split, ())], settings.samples)
    forms = [name for name, wanted in ((SHARDS, settings.shards), (PARQUET, settings.parquet)) if wanted]
    atomic_write(folder / CARD, card.draw(settings.title, forms, outcomes, places, about))
    return {split: len(records[split]) for split in SPLITS}


# ---- lines ----------------------------------------------------------------------------------------------------------


def _item(outcome: Outcome, places: Mapping[str, str]) -> dict[str, Any]:
    values = outcome.candidate.data()
    scores = finite(values["scores"])
    split = places.get(outcome.candidate.id)
    return values | {"scores": scores, "split": split, "stage": outcome.stage, "reason": outcome.reason}


def _rejection(outcome: Outcome) -> dict[str, Any]:
    failed = {"failed": True} if outcome.failed else {}
    return {"id": outcome.candidate.id, "stage": outcome.stage, "reason": outcome.reason} | failed


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


# ---- records --------------------------------------------------------------------------------------------------------


def _write_records(folder: Path, split: str, records: Sequence[LayeredRecord], settings: OutputSettings) -> None:
    """The manifest and the shards of a split; those of another run are taken away."""
    if records:
        write_manifest(records, folder / f"{split}.jsonl")
    else:
        (folder / f"{split}.jsonl").unlink(missing_ok=True)
    packed, place = records if settings.shards else [], folder / SHARDS / split
    if packed or place.is_dir():
        shards.pack(packed, place, settings.size_mb << 20, force=True)


def _records(
    folder: Path, store: Store, kept: Mapping[str, Sequence[Candidate]], settings: OutputSettings
) -> dict[str, list[LayeredRecord]]:
    """By split, their pictures put below the folder."""
    made: dict[str, list[LayeredRecord]] = {split: [] for split in SPLITS}
    with atomic_folder(folder / PICTURES) as pictures:
        for split, records in made.items():
            for candidate in kept.get(split, ()):
                name, named = safe_name(candidate.id), _parts(candidate, settings.maps)
                (pictures / name).mkdir()
                for file, digest in (pair for part in named.values() for pair in part.items()):
                    _link(store.path(digest), pictures / name / file, candidate.id)
                home = (folder / PICTURES / name).absolute()
                handles: dict[Role, tuple[Handle, ...]] = {
                    role: tuple(home / file for file in part) for role, part in named.items()
                }
                records.append(LayeredRecord(candidate.id, handles, _captions(candidate)))
    return made


def safe_name(ident: str) -> str:
    """A file name that says which candidate it is of, and is of no other."""
    return f"{re.sub(r'[^A-Za-z0-9-]+', '_', ident)[-80:]}-{sha256(ident)[:8]}"


def _parts(candidate: Candidate, maps: bool) -> dict[Role, dict[str, str]]:
    """Digests by file name, by role."""
    several = len(candidate.foregrounds) > 1
    fronts = {f"foreground{k if several else ''}.png": digest for k, digest in enumerate(candidate.foregrounds)}
    others = {"background": candidate.background, "composite": candidate.composite} | dict(
        candidate.maps if maps else {}
    )
    rest = {Role(role): {f"{role}.png": digest} for role, digest in others.items() if digest}
    return {Role.FOREGROUND: fronts} | rest


def _captions(candidate: Candidate) -> dict[Role, tuple[str, ...]]:
    """Those that are there; of several foregrounds only where each has one."""
    fronts = tuple(candidate.captions) if len(candidate.captions) == len(candidate.foregrounds) else ("",)
    texts = {
        Role.FOREGROUND: fronts,
        Role.BACKGROUND: (candidate.background_caption,),
        Role.FULL: (candidate.scene,),
    }
    return {role: words for role, words in texts.items() if all(text.strip() for text in words)}


def _link(source: Path, path: Path, ident: str) -> None:
    if not source.is_file():
        raise InputError(f"{source}, a picture of {ident}, is not in the store: delete its answers, and run it again.")
    try:
        os.link(source, path)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, path)


# ---- samples --------------------------------------------------------------------------------------------------------


def _write_samples(path: Path, store: Store, candidates: Sequence[Candidate], count: int) -> None:
    """A contact sheet of candidates spread evenly over all."""
    whole = [candidate for candidate in candidates if candidate.background and candidate.composite]
    count = min(count, len(whole))
    if not count:
        path.unlink(missing_ok=True)
        return
    contact_sheet.write(path, [_sample(store, whole[k * len(whole) // count]) for k in range(count)])


def _sample(store: Store, candidate: Candidate) -> Image.Image:
    layers = [store.get(layer) for layer in candidate.foregrounds]
    back, whole = store.get(candidate.background), store.get(candidate.composite)
    front = ("foreground", rgba.recompose(layers))
    made = [("composite", whole), ("background", back), ("recomposed", rgba.recompose([back, *layers]))]
    return contact_sheet.card(candidate.id, [[front], made], candidate.scene)
