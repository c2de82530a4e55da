"""The pictures of a batch: those of a folder, of a list or of the command line, and the maps beside them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from omnialpha.errors import InputError

# What is taken for a picture in a folder, by its suffix; a file that is named is tried whatever its suffix.
PICTURES = frozenset(
    (".png", ".webp", ".jpg", ".jpeg", ".jfif", ".jpe", ".tif", ".tiff", ".bmp", ".gif", ".avif", ".heic", ".heif")
    + (".ppm", ".pgm", ".pnm", ".jp2", ".tga", ".psd")
)
LIST = ".txt"  # the suffix of a list of files


@dataclass(frozen=True)
class Inputs:
    """Where pictures come from.

    Attributes:
        folder: What the names of pictures are relative to.
        files: Those that were named, or None for what is in the folder.
        include, exclude: Patterns such as `*.jpg` or `2024/*`, of a name or of its last part, for folders.
        left_out: Folders that are not looked into: the output's, and that of the maps.
    """

    folder: Path
    files: tuple[Path, ...] | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    left_out: tuple[Path, ...] = ()

    def find(self) -> dict[str, Path]:
        """Name -> path, in the order in which they are done. A name is the path below the folder, with `/`."""
        if self.files is not None:
            return {Path(os.path.relpath(path, self.folder)).as_posix(): path for path in self.files}
        return {name: path for name, path in walk(self.folder, self.left_out) if self._wanted(name)}

    def _wanted(self, name: str) -> bool:
        if matches(name, self.exclude):
            return False
        return matches(name, self.include) if self.include else PurePosixPath(name).suffix.lower() in PICTURES


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern fits a name such as `a/b.png`, or its last part."""
    last = PurePosixPath(name).name
    return any(fnmatchcase(name, pattern) or fnmatchcase(last, pattern) for pattern in patterns)


def walk(folder: Path, left_out: Sequence[Path] = ()) -> Iterator[tuple[str, Path]]:
    """Name and path of every file below a folder, sorted, without what is hidden or lies in `left_out`."""
    for where, folders, files in os.walk(folder):
        here = Path(where)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and (here / f).resolve() not in left_out)
        for file in sorted(files):
            if not file.startswith("."):
                path = here / file
                yield path.relative_to(folder).as_posix(), path


def gather(
    given: Sequence[Path],
    output: Path,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    maps: Path | None = None,
) -> Inputs:
    """What the arguments of a command name.

    Args:
        given: A folder; or files; or a list of files, one a line, as a .txt file or `-` for standard input.
        output: The folder of the outputs.
        include, exclude: See `Inputs`.
        maps: The folder of the maps, which may lie among the pictures.

    Raises:
        InputError: They name nothing, or the output would lie where the inputs are.
    """
    folders = [path for path in given if path.is_dir()]
    if folders and len(given) > 1:
        raise InputError(f"the folder {folders[0]} was given with other inputs: give one folder, or files.")
    if folders:
        folder, inside = folders[0].resolve(), output.resolve()
        if inside == folder or inside in folder.parents:
            sentence = (
                f"the inputs in {folders[0]} lie in the output folder {output}: choose another, so they are kept."
            )
            raise InputError(sentence)
        left_out = (inside, *([maps.resolve()] if maps else []))
        return Inputs(folder, None, tuple(include), tuple(exclude), left_out)
    if include or exclude:
        raise InputError(f"--include and --exclude are for a folder, but {given[0]} is none: leave them out.")
    one = given[0]
    if len(given) == 1 and str(one) != "-" and not one.exists():
        raise InputError(f"there is no {one}: give a folder, a list of files, or files.")
    listed = len(given) == 1 and (one.suffix.lower() == LIST or str(one) == "-")
    files = [path.absolute() for path in (_listed(one) if listed else given)]
    if not files:
        raise InputError(f"the list {one} names no file: write one path a line.")
    files = list(dict.fromkeys(Path(os.path.normpath(file)) for file in files))
    inside = output.resolve()
    for file in files:
        if inside in file.resolve().parents:
            raise InputError(
                f"the input {file} lies in the output folder {output}: choose another, so that it is kept."
            )
    return Inputs(Path(os.path.commonpath([file.parent for file in files])), tuple(files))


def _listed(path: Path) -> list[Path]:
    """The paths in a list, relative to where the list is (to the current folder, from standard input)."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the list {path} cannot be read ({error}): give a text file, one path a line.") from error
    below = Path() if str(path) == "-" else path.parent
    return [below / line.strip() for line in text.splitlines() if line.strip()]


class Maps:
    """The maps of a folder, found by the names of the pictures that they belong to."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"--maps {folder} is no folder: give the one that holds the maps.")
        self.folder = folder
        self.files: dict[str, list[str]] = {}
        for name, _ in walk(folder):
            if PurePosixPath(name).suffix.lower() in PICTURES:
                self.files.setdefault(str(PurePosixPath(name).with_suffix("")), []).append(name)

    def find(self, name: str) -> Path:
        """The map of a picture: of the same name, or of the same name but for the suffix. InputError: none, or two."""
        found = self.files.get(str(PurePosixPath(name).with_suffix("")), [])
        if name in found:
            found = [name]
        if len(found) != 1:
            what = f"holds {' and '.join(found)}" if found else "holds no map"
            raise InputError(f"{self.folder} {what} for {name}: give it one of the same name.")
        return self.folder / found[0]
