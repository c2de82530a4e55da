"""Composition-1k and Distinctions-646: foregrounds on the backgrounds of a list, composed as they are drawn."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from omnialpha.data.records import folders
from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.folder_datasets import by_name, existing, inside, listed, matting, partial, unlike
from omnialpha.evaluation.datasets.samples import Sample, digest
from omnialpha.files import sha256
from omnialpha.tasks import Role
from omnialpha.tasks import task as find_task

EACH = 20  # backgrounds of a foreground
VOC = ("bg", "background", "backgrounds", "JPEGImages", "VOC2012/JPEGImages", "VOCdevkit/VOC2012/JPEGImages",
       "VOC2008/JPEGImages", "VOCdevkit/VOC2008/JPEGImages")  # fmt: skip
COMPOSITION_MERGED = matting("Composition-1k", (".",), "merged", truth=("alpha_copy",))


@dataclass(frozen=True)
class Composed:
    """A foreground over the top left of a background, which is enlarged where it is too small, cut down to 8 bits: as
    the scripts beside these data sets make their test pictures.
    """

    front: Path
    alpha: Path
    back: Path

    suffix = ".png"

    def read(self) -> bytes:
        try:
            opened = [Image.open(path) for path in (self.front, self.alpha, self.back)]
            front, alpha, back = (image.convert(mode) for image, mode in zip(opened, ("RGB", "L", "RGB"), strict=True))
        except OSError as error:
            raise InputError(f"{self} cannot be composed ({error}): copy the data set again.") from error
        if front.size != alpha.size:
            raise InputError(f"{self.alpha} is of another size than {self.front}: copy the data set again.")
        scale = max(front.width / back.width, front.height / back.height)
        if scale > 1:
            back = back.resize(
                (math.ceil(back.width * scale), math.ceil(back.height * scale)), Image.Resampling.BICUBIC
            )
        behind = np.asarray(back.crop((0, 0, *front.size)), dtype=np.float64)
        share = np.asarray(alpha, dtype=np.float64)[..., None] / 255
        file = io.BytesIO()
        mixed = share * np.asarray(front, dtype=np.float64) + (1 - share) * behind
        Image.fromarray((mixed + 1e-6).astype(np.uint8)).save(file, "PNG", compress_level=1)
        return file.getvalue()

    def digest(self) -> str:
        return sha256(*map(digest, (self.front, self.alpha, self.back)))

    def __str__(self) -> str:
        return f"{self.front} on {self.back.name}"


def composition_1k(data: str, task: str) -> Iterator[Sample]:
    """merged/, alpha_copy/ and trimaps/, or as Adobe gives it: Test_set/ with `Adobe-licensed images/` fg/, alpha/ and
    trimaps/, test_fg_names.txt, test_bg_names.txt, and the backgrounds of Pascal VOC in bg/ or VOCdevkit/.
    """
    folder = existing(data, "Composition-1k")
    root = next((r for n in ("Combined_Dataset/Test_set", "Test_set", ".") if (r := inside(folder, n))), folder)
    images = inside(root, "Adobe-licensed images") or root
    if (fronts := inside(images, "fg")) is None:
        return COMPOSITION_MERGED(data, task)
    order = listed(root / "test_fg_names.txt", "Composition-1k")
    backs = listed(root / "test_bg_names.txt", "Composition-1k")
    alphas, trimaps = (by_name(f) if (f := inside(images, n)) else {} for n in ("alpha", "trimaps"))
    return _on_backgrounds("Composition-1k", task, (folder, root), order, backs, by_name(fronts), alphas, trimaps)


def distinctions_646(data: str, task: str) -> Iterator[Sample]:
    """Test/ with FG/, GT/ and bg_test.txt, and the backgrounds of Pascal VOC. Its own order of foregrounds, and how it
    sizes backgrounds, could not be confirmed: here by name, and as in Composition-1k.
    """
    folder = existing(data, "Distinctions-646")
    root = next((r for n in ("Distinctions-646/Test", "Test", ".") if (r := inside(folder, n))), folder)
    if (fronts := inside(root, "FG")) is None or (truths := inside(root, "GT")) is None:
        raise unlike(folder, "Distinctions-646", "Test/FG/ and Test/GT/")
    backs = listed(root / "bg_test.txt", "Distinctions-646")
    of, order = by_name(fronts), sorted(path.name for path in folders.find(fronts))
    return _on_backgrounds("Distinctions-646", task, (folder, root), order, backs, of, by_name(truths), {})


def _on_backgrounds(
    title: str, task: str, roots: Sequence[Path], order: Sequence[str], backs: Sequence[str],
    fronts: Mapping[str, Path], alphas: Mapping[str, Path], trimaps: Mapping[str, Path],
) -> Iterator[Sample]:  # fmt: skip
    """Each foreground on the next backgrounds of the list, named by the foreground and the number of the background."""
    voc = next((f for root in roots for name in VOC if (f := inside(root, name))), None)
    if voc is None:
        raise unlike(roots[0], title, "the backgrounds of Pascal VOC, in bg/ or VOCdevkit/VOC2012/JPEGImages/")
    if len(backs) < (needed := EACH * len(order)):
        raise InputError(
            f"{title} lists {len(backs)} backgrounds, {len(order)} foregrounds need {needed}: copy it again."
        )
    have = {name.casefold(): name for name in os.listdir(voc)}
    for number, name in enumerate(order):
        stem = Path(name).stem
        if stem.casefold() not in fronts or stem.casefold() not in alphas:
            raise partial(roots[-1], [name], roots[-1], len(order))
        for place in range(EACH):
            back = backs[number * EACH + place]
            if back.casefold() not in have:
                raise partial(voc, [back], roots[-1], len(backs))
            truth, key = alphas[stem.casefold()], f"{stem}_{place}"
            trimap = trimaps.get(key.casefold())
            if Role.TRIMAP in find_task(task).inputs and trimap is None:
                raise unlike(roots[-1], title, f"the trimap {key}.png")
            picture = Composed(fronts[stem.casefold()], truth, voc / have[back.casefold()])
            inputs = {Role.COMPOSITE: (picture,)} | (
                {Role.TRIMAP: (trimap,)} if trimap and Role.TRIMAP in find_task(task).inputs else {}
            )
            yield Sample(key, task, inputs, (truth,), category=stem, trimap=trimap, grey=True)
