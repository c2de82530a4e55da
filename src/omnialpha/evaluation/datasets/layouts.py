"""Published data sets as they are unpacked: a reader a layout, from what --data says and a task to samples.

A folder that is not laid out so is refused in one sentence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omnialpha.data.records import folders
from omnialpha.data.records.records import LayeredRecord
from omnialpha.data.stream.datasets import DatasetSettings, rows
from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.composed import composition_1k, distinctions_646
from omnialpha.evaluation.datasets.designs import crello
from omnialpha.evaluation.datasets.folder_datasets import (
    by_name,
    existing,
    find_folders,
    incomplete,
    inside,
    listed,
    matting,
    removal,
    unlike,
)
from omnialpha.evaluation.datasets.parquet_datasets import find_tables, table_rows
from omnialpha.evaluation.datasets.rgba_pictures import rgba_pictures
from omnialpha.evaluation.datasets.samples import MadePicture, Sample, of_record
from omnialpha.tasks import Role
from omnialpha.tasks import task as find_task

Reader = Callable[[str, str], Iterator[Any]]  # path and task -> samples


def refmatte_rw100(data: str, task: str) -> Iterator[Sample]:
    """image/ (or image_all/, a copy for each object), mask/ with one matte an object, and refmatte_rw100_label.json:
    by the mask's name image_name and expressions. Which of these is asked for says eval_index_expression.json by
    image_name; where that is missing, it is the last one.
    """
    title, names = "RefMatte-RW100", {"image": ("image_all", "image", "img"), "mask": ("mask",)}
    root, found = find_folders(data, title, ("RefMatte_RW_100", "."), names, names)
    path = root / "refmatte_rw100_label.json"
    if not path.is_file():
        raise unlike(root, title, path.name)
    labels, index = _json(path), _json(root / "eval_index_expression.json")
    images, masks = (by_name(found[kind]) for kind in names)
    for name, label in sorted(labels.items()):
        try:
            picture, said = str(label["image_name"]), label["expressions"]
            prompt = str(said[int(index.get(picture, index.get(name, -1)))])
        except (KeyError, IndexError, TypeError, ValueError):
            raise InputError(f"{path} says nothing of use about {name!r}: copy it again.") from None
        image = images.get(name.casefold()) or images.get(Path(picture).stem.casefold())
        if image is None or name.casefold() not in masks:
            raise incomplete(found["mask" if image else "image"], [name], path, len(labels))
        yield Sample(name, task, {Role.COMPOSITE: image}, (masks[name.casefold()],), prompt, grey=True)


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig")) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}): copy it again.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds a {type(values).__name__}, not a table: copy it again.")
    return values


def alphatest(data: str, task: str) -> Iterator[Sample]:
    """Diffusion_test_data/ with images/CATEGORY/ and prompts/CATEGORY/prompt.txt, a line a picture in the order of
    their names. Keys are those of AlphaVAE's own outputs, CATEGORY/00000.
    """
    names = {"images": ("images",), "prompts": ("prompts",)}
    roots = ("Diffusion_test_data", "data/Diffusion_test_data", ".")
    found = find_folders(data, "AlphaTest", roots, names, names)[1]
    for place in sorted(path for path in found["prompts"].iterdir() if path.is_dir()):
        lines = listed(place / "prompt.txt", "AlphaTest")
        truths = folders.find(inside(found["images"], place.name) or found["images"] / place.name)
        if len(truths) != len(lines):
            raise InputError(
                f"AlphaTest has {len(lines)} prompts and {len(truths)} pictures of {place.name}: copy it again."
            )
        for number, (prompt, truth) in enumerate(zip(lines, truths, strict=True)):
            yield Sample(f"{place.name}/{number:05}", task, {}, (truth,), prompt, place.name)


def records(data: str, task: str) -> Iterator[Sample]:
    """LayeredRecord records and published pairs, as docs/data.md has them, those that serve the task."""
    taken: set[str] = set()
    serves: set[str] = set()
    for row in rows(DatasetSettings(data)):
        if row.record is None:
            raise InputError(f"{row.place}: {row.reasons[0]} (`omnialpha data check {data}` lists all mistakes.)")
        if isinstance(row.record, LayeredRecord) and task not in row.record.tasks():
            serves |= set(row.record.tasks())
            continue
        key = "".join(c if c.isalnum() or c in "._-" else "_" for c in row.record.id).lstrip(".") or "_"
        key = key if key not in taken else f"{key}-{row.number}"
        taken.add(key)
        yield of_record(row.record, task, key)
    if not taken:
        raise InputError(
            f"no record in {data} serves {task}, they serve {', '.join(sorted(serves)) or 'none'}: use --task."
        )


def ober(data: str, task: str) -> Iterator[Sample]:
    """The published table (data/test-*.parquet with input, gt, object_mask and subset), or its pictures in input/, gt/
    and object_mask/. The folders of an earlier release could not be confirmed.
    """
    folder = existing(data, "OBER")
    return _ober_table(tables, task) if (tables := find_tables(folder)) else OBER_FILES(data, task)


def _ober_table(tables: Sequence[Path], task: str) -> Iterator[Sample]:
    columns = ("input", "gt", "object_mask")
    for number, (table, row) in enumerate(table_rows(tables, "the table of OBER", columns, ("subset",))):
        if not all(isinstance(row[name], dict) for name in columns):
            raise InputError(f"row {number} of {table} holds no pictures: copy it again.")
        composite, truth, mask = (
            MadePicture(f"{table}:{number}.{name}", partial(bytes, row[name]["bytes"])) for name in columns
        )
        inputs = {role: composite if role is Role.COMPOSITE else mask for role in find_task(task).inputs}
        yield Sample(f"{number:05}", task, inputs, (truth,), category=str(row.get("subset") or ""))


OBER_FILES = removal("OBER", ("test", "OBER-Test", "."), "input", "inputs", "image", "img")
P3M = "P3M-10k/validation/{0}", "validation/{0}", "{0}", "."
LAYOUTS: dict[str, Reader] = {  # by the name of the benchmark
    "aim-500": matting("AIM-500", ("AIM-500", "."), "original"),
    "am-2k": matting("AM-2K", ("AM-2k/validation", "validation", "."), "original"),
    "p3m-500-p": matting("P3M-500-P", tuple(r.format("P3M-500-P") for r in P3M), "blurred_image"),
    "p3m-500-np": matting("P3M-500-NP", tuple(r.format("P3M-500-NP") for r in P3M), "original_image"),
    "alphamatting": matting(
        "alphamatting.com", (".",), "input", "input_training_lowres", "input_training_highres",
        truth=("alpha", "gt_training_lowres", "gt_training_highres"),
        trimap=("trimap_training_lowres/Trimap1", "trimap_training_highres/Trimap1"),
    ),
    "matting-folder": matting(
        "a folder for matting", (".",), "input", "image", "images", truth=("alpha", "mask", "gt"), drawn=True
    ),
    "refmatte-rw100": refmatte_rw100,
    "composition-1k": composition_1k,
    "distinctions-646": distinctions_646,
    "rord": removal("RORD", ("RORD/val", "val", "."), "img"),
    "ober": ober,
    "alphatest": alphatest,
    "crello": crello,
    "alphalayers": records,
    "folder": records,
    "vae": rgba_pictures,
}  # fmt: skip
