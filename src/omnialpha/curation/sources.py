"""What curation starts from, as items that decode nothing yet: published collections, folders of RGBA pictures or of
pictures and mattes, files of layers, and photographs that a model cuts out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

from omnialpha import rgba
from omnialpha.curation.candidate import Rejected, SourceItem
from omnialpha.curation.collections import COLLECTIONS, Collection, PairFolders
from omnialpha.curation.tables import table_layers
from omnialpha.data.records import folders
from omnialpha.data.records.pictures import Handle, read
from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.folder_datasets import by_name, existing, incomplete, inside, listed, unlike
from omnialpha.evaluation.datasets.samples import MadePicture, png_of
from omnialpha.io import FORMATS
from omnialpha.io.layer_files import LAYERED, open_layers
from omnialpha.tasks import TASKS, Role

UNKNOWN = "not stated"
CUTTING = Lock()  # held while a model is loaded or cuts out
DRIFT = 0.02  # mean difference of a merged picture to its layers, above which the file is not what it shows


@dataclass(frozen=True)
class SourceSettings:
    """A table [[sources]] of a recipe.

    Attributes:
        kind: rgba (pictures with alpha), pairs (pictures and mattes in two folders), layers (PSD, PSB, OpenRaster),
            photographs (a model cuts their subjects out), or a collection of `COLLECTIONS`.
        path: its folder. Of rgba also a file of JSON lines {"file": ..., "caption": ...}, of layers also one file.
        name: what ids begin with; by default that of the collection or of the folder.
        licence: on what terms; by default what is known of the collection.
        limit: the first so many items; 0 is all.
        foreground, alpha: of pairs, the two folders.
        mixed: of pairs, the colours are those of a photograph, with the background in soft pixels.
        whole: photographs, and pictures that are mixed, are the composites of their subjects too. Else what is made of
            a subject is a new picture.
        model: of photographs, as `load` takes it; "" is the bundled one.
    """

    kind: str
    path: str
    name: str = ""
    licence: str = ""
    limit: int = 0
    foreground: str = "fg"
    alpha: str = "alpha"
    mixed: bool = False
    whole: bool = False
    model: str = ""


def items(settings: SourceSettings) -> list[SourceItem]:
    """The items of a source in the order of their ids, which are the name and the path without format.

    Nothing is decoded but the bottom layers of files of layers. What is wrong with a single file of layers is said when
    that item is read, by `Rejected`.

    Raises:
        InputError: The kind is unknown, or the folder is laid out otherwise.
    """
    collection = COLLECTIONS.get(settings.kind)
    if collection is None and settings.kind not in KINDS:
        kinds = [*KINDS, *COLLECTIONS]
        near = get_close_matches(settings.kind, kinds, n=1, cutoff=0)[0]
        raise InputError(
            f"sources.kind={settings.kind!r} is not known, the nearest is {near!r}: use {', '.join(kinds)}."
        )
    if settings.limit < 0:
        raise InputError(f"sources.limit={settings.limit} is below 0: use 0 for all.")
    path = Path(settings.path).expanduser()
    name = settings.name or (settings.kind if collection else path.stem if path.is_file() else path.resolve().name)
    licence = settings.licence or (collection.licence if collection else UNKNOWN)
    made = list(_collected(settings, collection) if collection else KINDS[settings.kind](settings))
    folder = str(path.parent if path.is_file() else path)
    made = [replace(item, id=f"{name}/{item.id}", source=name, licence=licence, folder=folder) for item in _named(made)]
    return sorted(made, key=lambda item: item.id)[: settings.limit or None]


def _named(made: list[SourceItem]) -> list[SourceItem]:
    """Items by their paths without format, or with it where two would be called alike."""
    paths = [PurePosixPath(item.id) for item in made]
    short = [str(p.with_suffix("") if p.suffix.lower() in (*FORMATS, *LAYERED) else p) for p in paths]
    count = Counter(short)
    return [replace(item, id=name if count[name] == 1 else item.id) for item, name in zip(made, short, strict=True)]


def _item(path: Path, folder: Path, *layers: Handle, **more: Any) -> SourceItem:
    """Of a file, by its path below a folder; name and licence are filled in by `items`."""
    return SourceItem(path.relative_to(folder).as_posix(), "", UNKNOWN, layers or (path,), **more)


# ---- pictures with alpha, and pictures with mattes ------------------------------------------------------------------


def _rgba(settings: SourceSettings, title: str = "a folder of RGBA pictures") -> Iterator[SourceItem]:
    path = Path(settings.path).expanduser()
    folder = path.parent if path.is_file() else existing(settings.path, title)
    said = _captions([path] if path.is_file() else sorted(folder.glob("*.jsonl")))
    files = sorted(said) if path.is_file() else folders.find(folder)
    if lost := next((file for file in said if not file.is_file()), None):
        raise InputError(f"{lost} is listed with a caption, but is not there: copy it again, or take its line out.")
    if not files or not folders.has_alpha(files[0]):
        raise InputError(f"{files[0] if files else path} has no alpha channel: give RGBA pictures, or another kind.")
    for file in files:
        caption = said.get(file)
        yield _item(file, folder, captions=(caption,) if caption else ())


def _captions(lists: list[Path]) -> dict[Path, str]:
    """Captions by file, of lists whose paths are relative to their own folder."""
    found = {}
    for path in lists:
        for number, line in enumerate(listed(path, "a list of captions"), 1):
            try:
                row = json.loads(line)
                found[path.parent / row["file"]] = str(row.get("caption") or "")
            except (ValueError, TypeError, KeyError, AttributeError):
                raise InputError(f'{path}, row {number}, is no {{"file": ..., "caption": ...}}: correct it.') from None
    return found


def _pairs(settings: SourceSettings) -> Iterator[SourceItem]:
    row = PairFolders((".",), (settings.foreground,), (settings.alpha,), settings.mixed)
    return _paired(settings, "a folder of pairs", (row,))


def _paired(settings: SourceSettings, title: str, rows: tuple[PairFolders, ...]) -> Iterator[SourceItem]:
    folder = existing(settings.path, title)
    for row in rows:
        places = [place for root in row.roots for place in _places(folder, Path(root).parts)]
        held = [(inside(place, *row.color), inside(place, *row.alpha)) for place in places]
        if found := dict.fromkeys((color, alpha) for color, alpha in held if color and alpha):
            for color, alpha in found:
                yield from _pairs_of(folder, color, alpha, row.mixed, settings.whole)
            return
    names = [" or ".join(f"{name}/" for name in of) for of in (rows[0].color, rows[0].alpha)]
    raise unlike(folder, title, " and ".join(names))


def _places(folder: Path, parts: tuple[str, ...]) -> list[Path]:
    """The folders of a path with `*` below another one, whatever their letter case."""
    if not parts:
        return [folder]
    below = sorted(p for p in folder.iterdir() if p.is_dir() and fnmatch(p.name.casefold(), parts[0].casefold()))
    return [place for path in below for place in _places(path, parts[1:])]


def _pairs_of(folder: Path, color: Path, alpha: Path, mixed: bool, whole: bool) -> Iterator[SourceItem]:
    pictures, mattes = by_name(color), by_name(alpha)
    for found, place, others, other in ((mattes, alpha, pictures, color), (pictures, color, mattes, alpha)):
        if lost := sorted(others.keys() - found.keys()):
            raise incomplete(place, lost, other, len(others))
    for name, path in pictures.items():
        yield _item(path, folder, alphas=(mattes[name],), mixed=mixed, composite=path if mixed and whole else None)


def _collected(settings: SourceSettings, row: Collection) -> Iterator[SourceItem]:
    if row.table:
        return table_layers(settings.path, row.title)
    return _paired(settings, row.title, row.folders) if row.folders else _rgba(settings, row.title)


# ---- files of layers ------------------------------------------------------------------------------------------------


def _layers(settings: SourceSettings) -> Iterator[SourceItem]:
    path = Path(settings.path).expanduser()
    folder = path.parent if path.is_file() else existing(settings.path, "a folder of layer files")
    files = [path] if path.is_file() else sorted(p for p in folder.rglob("*") if p.suffix.lower() in LAYERED)
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    if not files:
        raise unlike(folder, "a folder of layer files", " or ".join(LAYERED))
    return (_layered(file, folder) for file in files)


def _layered(path: Path, folder: Path) -> SourceItem:
    try:
        with open_layers(path) as file:
            names = [layer.name for layer in file.layers]
            bottom = file.layers[0].layer().placed(file.size)[3]
    except InputError as error:
        return _item(path, folder, MadePicture(str(path), partial(_refuse, str(error))))
    layers = [
        MadePicture(f"{path}:{name}", partial(_layer, path, index), (path,), f"layer {index}")
        for index, name in enumerate(names)
    ]
    if len(layers) < 2 or not bool((bottom == 1).all()):
        return _item(path, folder, *layers)
    whole = MadePicture(f"{path}:merged", partial(_merged, path), (path,), "merged")
    return _item(path, folder, *layers[1:], background=layers[0], composite=whole)


def _refuse(reason: str) -> bytes:
    raise Rejected(reason)


def _layer(path: Path, index: int) -> bytes:
    """A layer of a file on the whole canvas, as PNG."""
    with open_layers(path) as file:
        return png_of(file.layers[index].layer().placed(file.size))


def _merged(path: Path) -> bytes:
    """The merged picture that a file of opaque background keeps, or else its layers together, as PNG.

    Rejected where it is not what the layers show.
    """
    with open_layers(path) as file:
        whole = rgba.recompose([layer.layer().placed(file.size) for layer in file.layers])
        kept = file.preview()
    if kept is None:
        return png_of(whole)
    if kept.shape != whole.shape or (error := float((kept[:3] - whole[:3]).abs().mean())) > DRIFT:
        differs = f"by {error:.3f} on the mean" if kept.shape == whole.shape else "in size"
        raise Rejected(f"The merged picture in {path} differs from its layers {differs}, more than {DRIFT:g}.")
    return png_of(rgba.opaque(kept))


# ---- photographs ----------------------------------------------------------------------------------------------------


def _photographs(settings: SourceSettings) -> Iterator[SourceItem]:
    folder = existing(settings.path, "a folder of photographs")
    for path in folders.find(folder):
        recipe = f"cut out by {settings.model or 'the bundled model'}"
        subject = MadePicture(f"the subject of {path}", partial(_cut_out, path, settings.model), (path,), recipe)
        yield _item(path, folder, subject, composite=path if settings.whole else None)


@lru_cache(maxsize=1)
def _model(where: str) -> Any:
    from omnialpha.loading import load

    return load(where or None)


def _cut_out(path: Path, model: str) -> bytes:
    """The subject of a photograph, RGBA of its size, as PNG. The model is loaded once in each process, and cuts out one
    picture at a time.
    """
    task = TASKS["matting_auto"]
    example = task.example({Role.COMPOSITE: [rgba.opaque(read(path))]})
    with CUTTING:
        return png_of(_model(model).run([example])[0][0].rgba)


KINDS: Mapping[str, Callable[[SourceSettings], Iterator[SourceItem]]] = {
    "rgba": _rgba,
    "pairs": _pairs,
    "layers": _layers,
    "photographs": _photographs,
}
