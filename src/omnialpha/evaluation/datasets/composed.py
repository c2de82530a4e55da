"""Composition-1k and Distinctions-646: foregrounds on the backgrounds of a list, composed as they are drawn."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from omnialpha.data.records import folders
from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.folder_datasets import (
    by_name,
    find_folders,
    incomplete,
    inside,
    listed,
    matting,
    unlike,
)
from omnialpha.evaluation.datasets.samples import MadePicture, Sample, png
from omnialpha.tasks import Role
from omnialpha.tasks import task as find_task

EACH = 20  # backgrounds of a foreground
IMAGES = "Adobe-licensed images"
VOC = ("bg", "background", "backgrounds", "JPEGImages", "VOC2012/JPEGImages", "VOCdevkit/VOC2012/JPEGImages",
       "VOC2008/JPEGImages", "VOCdevkit/VOC2008/JPEGImages")  # fmt: skip
COMPOSITION_MERGED = matting("Composition-1k", (".",), "merged", truth=("alpha_copy",))


def composition_1k(data: str, task: str) -> Iterator[Sample]:
    """merged/, alpha_copy/ and trimaps/, or as Adobe gives it: Test_set/ with `Adobe-licensed images/` fg/, alpha/ and
    trimaps/, test_fg_names.txt, test_bg_names.txt, and the backgrounds of Pascal VOC in bg/ or VOCdevkit/.
    """
    title, names = "Composition-1k", {kind: (f"{IMAGES}/{kind}", kind) for kind in ("fg", "alpha", "trimaps")}
    root, found = find_folders(data, title, ("Combined_Dataset/Test_set", "Test_set", "."), names)
    if "fg" not in found:
        return COMPOSITION_MERGED(data, task)
    order, backs = (listed(root / f"test_{kind}_names.txt", title) for kind in ("fg", "bg"))
    return _on_backgrounds(title, task, (Path(data).expanduser(), root), found, order, backs)


def distinctions_646(data: str, task: str) -> Iterator[Sample]:
    """Test/ with FG/, GT/ and bg_test.txt, and the backgrounds of Pascal VOC. Its own order of foregrounds, and how it
    sizes backgrounds, could not be confirmed: here by name, and as in Composition-1k.
    """
    title, names = "Distinctions-646", {"fg": ("FG",), "alpha": ("GT",)}
    root, found = find_folders(data, title, ("Distinctions-646/Test", "Test", "."), names, names)
    order = sorted(path.name for path in folders.find(found["fg"]))
    backs = listed(root / "bg_test.txt", title)
    return _on_backgrounds(title, task, (Path(data).expanduser(), root), found, order, backs)


def _on_backgrounds(
    title: str, task: str, roots: tuple[Path, Path], found: Mapping[str, Path], order: Sequence[str],
    backs: Sequence[str],
) -> Iterator[Sample]:  # fmt: skip
    """Each foreground on the next backgrounds of the list, named by the foreground and the number of the background."""
    folder, root = roots
    voc = inside(folder, *VOC) or inside(root, *VOC)
    if voc is None:
        raise unlike(folder, title, "the backgrounds of Pascal VOC, in bg/ or VOCdevkit/VOC2012/JPEGImages/")
    if len(backs) < (needed := EACH * len(order)):
        raise InputError(
            f"{title} lists {len(backs)} backgrounds, {len(order)} foregrounds need {needed}: copy it again."
        )
    fronts, alphas, trimaps = (by_name(found[kind]) if kind in found else {} for kind in ("fg", "alpha", "trimaps"))
    have = {name.casefold(): name for name in os.listdir(voc)}
    asks_trimap = Role.TRIMAP in find_task(task).inputs
    for number, name in enumerate(order):
        stem = Path(name).stem
        front, truth = (of.get(stem.casefold()) for of in (fronts, alphas))
        if front is None or truth is None:
            raise incomplete(root, [name], root, len(order))
        for place, back in enumerate(backs[number * EACH : (number + 1) * EACH]):
            if back.casefold() not in have:
                raise incomplete(voc, [back], root, len(backs))
            key = f"{stem}_{place}"
            trimap = trimaps.get(key.casefold())
            if asks_trimap and trimap is None:
                raise unlike(root, title, f"the trimap {key}.png")
            sources = front, truth, voc / have[back.casefold()]
            picture = MadePicture(f"{front} on {back}", partial(compose, *sources), sources, "composed")
            inputs = {Role.COMPOSITE: picture} | ({Role.TRIMAP: trimap} if asks_trimap and trimap else {})
            yield Sample(key, task, inputs, (truth,), category=stem, trimap=trimap, grey=True)


def compose(front: Path, alpha: Path, back: Path) -> bytes:
    """A foreground over the top left of a background, which is enlarged where it is too small, cut down to 8 bits: as
    the scripts of these data sets make their test pictures.
    """
    try:
        over, share, under = (Image.open(p).convert(m) for p, m in ((front, "RGB"), (alpha, "L"), (back, "RGB")))
    except OSError as error:
        raise InputError(f"{front} on {back.name} cannot be composed ({error}): copy the data set again.") from error
    if over.size != share.size:
        raise InputError(f"{alpha} is of another size than {front}: copy the data set again.")
    scale = max(over.width / under.width, over.height / under.height)
    if scale > 1:
        size = math.ceil(under.width * scale), math.ceil(under.height * scale)
        under = under.resize(size, Image.Resampling.BICUBIC)
    behind = np.asarray(under.crop((0, 0, *over.size)), dtype=np.float64)
    weight = np.asarray(share, dtype=np.float64)[..., None] / 255
    mixed = weight * np.asarray(over, dtype=np.float64) + (1 - weight) * behind
    return png(Image.fromarray((mixed + 1e-6).astype(np.uint8)))
