"""Data sets as folders of pictures that bear equal names, and sentences for folders that are laid out otherwise.

Names of folders and files are compared without regard to letter case and format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omnialpha import masks
from omnialpha.data.records import folders
from omnialpha.data.records.pictures import Handle, read, subject_mask
from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.samples import Sample, digest, png
from omnialpha.files import sha256
from omnialpha.tasks import Role
from omnialpha.tasks import task as find_task

MARKS = ("", "_m", "_mask")  # what a mask's name may end in beside that of its picture
SHOWN = 6  # names of a folder that a sentence lists
RIM = 0.02  # of the shorter side: how far the unknown band of a drawn trimap reaches beyond what is soft


@dataclass(frozen=True)
class Files:
    """A picture, its truth and its maps bear one name in several folders, which may have folders in them.

    roots: where these may lie in what was given. of: the names that each may have. truth: of which target. drawn: where
    there are no trimaps, they are drawn from the true mattes.
    """

    title: str
    roots: tuple[str, ...]
    of: Mapping[str, tuple[str, ...]]
    truth: Role
    drawn: bool = False

    def __call__(self, data: str, task: str) -> Iterator[Sample]:
        row, folder = find_task(task), existing(data, self.title)
        needed = dict.fromkeys(["composite", "truth", *(k for r in row.inputs if not self._draws(k := _kind(r)))])
        places = [place for root in self.roots if (place := inside(folder, root))]
        found = next((f for place in places if needed.keys() <= (f := self._folders(place)).keys()), None)
        if found is None:
            held = self._folders(places[0]) if places else {}
            lacking = " and ".join(" or ".join(f"{n}/" for n in self.of[kind]) for kind in needed if kind not in held)
            raise unlike(folder, self.title, lacking)
        pictures = {kind: by_name(found[kind]) for kind in found}
        if lost := sorted(pictures["truth"].keys() - pictures["composite"].keys()):
            raise partial(found["composite"], lost, found["truth"], len(pictures["truth"]))
        for kind in [kind for kind in found if kind in needed or self._draws(kind)]:
            if lost := [name for name in pictures["composite"] if _of(pictures[kind], name) is None]:
                raise partial(found[kind], lost, found["composite"], len(pictures["composite"]))
        for name, path in pictures["composite"].items():
            true = _of(pictures["truth"], name)
            trimap: Handle | None = _of(pictures.get("trimap", {}), name)
            if trimap is None and true is not None and self.drawn:
                trimap = DrawnTrimap(true)
            given = {role: trimap if role is Role.TRIMAP else _of(pictures[_kind(role)], name) for role in row.inputs}
            inputs = {role: (handle or path,) for role, handle in given.items()}
            truths = tuple(true if role is self.truth else None for role in row.targets)
            key = path.relative_to(found["composite"]).with_suffix("").as_posix()
            yield Sample(key, task, inputs, truths, trimap=trimap, grey=self.truth is Role.FOREGROUND)

    def _folders(self, root: Path) -> dict[str, Path]:
        found = {kind: next((f for n in names if (f := inside(root, n))), None) for kind, names in self.of.items()}
        return {kind: folder for kind, folder in found.items() if folder is not None}

    def _draws(self, kind: str) -> bool:
        return self.drawn and kind == "trimap"


@dataclass(frozen=True)
class DrawnTrimap:
    """A trimap from the file of a true matte: unknown where that is soft, and `RIM` of the shorter side around it."""

    matte: Path

    suffix = ".png"

    def read(self) -> bytes:
        alpha = subject_mask(read(self.matte), Role.ALPHA)
        return png(masks.as_picture(masks.trimap(alpha, RIM * min(alpha.shape))))

    def digest(self) -> str:
        return sha256(f"trimap {RIM} {digest(self.matte)}")

    def __str__(self) -> str:
        return f"the trimap drawn from {self.matte}"


def _kind(role: Role) -> str:
    """In `Files.of`."""
    return "composite" if role is Role.COMPOSITE else "trimap" if role is Role.TRIMAP else "mask"


def _of(pictures: Mapping[str, Path], name: str) -> Path | None:
    return next((pictures[name + mark] for mark in MARKS if name + mark in pictures), None)


def by_name(folder: Path) -> dict[str, Path]:
    """The pictures below a folder by their paths without formats, in small letters."""
    return {path.relative_to(folder).with_suffix("").as_posix().casefold(): path for path in folders.find(folder)}


def inside(folder: Path, name: str) -> Path | None:
    """The folder of that path below another one, whatever its letter case; `.` is that folder itself."""
    for part in Path(name).parts:
        below = [path for path in sorted(folder.iterdir()) if path.name.casefold() == part.casefold()]
        if not (found := next((path for path in below if path.is_dir()), None)):
            return None
        folder = found
    return folder


def existing(data: str, title: str) -> Path:
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise InputError(f"{data} is not a folder: give the one that {title} was unpacked to.")
    return folder


def unlike(folder: Path, title: str, expected: str) -> InputError:
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir() if not path.name.startswith("."))
    held = ", ".join([*names[:SHOWN], *(["..."] if len(names) > SHOWN else [])]) or "nothing"
    return InputError(f"{folder} is not laid out as {title}: it lacks {expected} and holds {held}; give its folder.")


def partial(folder: Path, lost: Sequence[str], other: Path, count: int) -> InputError:
    return InputError(
        f"{folder} lacks {len(lost)} of the {count} pictures in {other.name}, the first is {lost[0]}: copy it again."
    )


def matting(
    title: str, roots: tuple[str, ...], *picture: str, truth: tuple[str, ...] = ("mask",), trimap: tuple[str, ...] = (),
    drawn: bool = False,
) -> Files:  # fmt: skip
    of = {"composite": picture, "truth": truth, "trimap": (*trimap, "trimap", "trimaps")}
    return Files(title, roots, of, Role.FOREGROUND, drawn)


def removal(title: str, roots: tuple[str, ...], *picture: str) -> Files:
    masks = ("object_mask", "mask", "masks")
    return Files(
        title, roots, {"composite": picture, "truth": ("gt", "bg", "background"), "mask": masks}, Role.BACKGROUND
    )


def listed(path: Path, title: str) -> list[str]:
    """The names in a list, which may have Windows' line ends."""
    if not path.is_file():
        raise unlike(path.parent, title, path.name)
    return [name for line in path.read_text(encoding="utf-8-sig").splitlines() if (name := line.strip())]
