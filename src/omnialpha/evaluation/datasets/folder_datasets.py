"""Data sets as folders of pictures that bear equal names, and sentences for folders that are laid out otherwise.

Names of folders and files are compared without regard to letter case and format.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omnialpha import masks
from omnialpha.data.records import folders
from omnialpha.data.records.pictures import Handle, read, subject_mask
from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.samples import MadePicture, Sample, png_of
from omnialpha.tasks import Role
from omnialpha.tasks import task as find_task

MARKS = ("", "_m", "_mask")  # what a mask's name may end in after that of its picture
SHOWN = 6  # names of a folder that a sentence lists
RIM = 0.02  # of the shorter side: how far the unknown band of a drawn trimap reaches beyond what is translucent


@dataclass(frozen=True)
class Files:
    """A picture, its truth and its maps bear one name in several folders, which may have folders in them.

    roots, names: see `find_folders`. truth: of which target. drawn: where there are no trimaps, they are drawn from the
    true mattes.
    """

    title: str
    roots: tuple[str, ...]
    names: Mapping[str, tuple[str, ...]]
    truth: Role
    drawn: bool = False

    def __call__(self, data: str, task: str) -> Iterator[Sample]:
        kinds = {role: self._kind(role) for role in find_task(task).inputs}
        needed = ["composite", "truth", *(kind for kind in kinds.values() if not (self.drawn and kind == "trimap"))]
        found = find_folders(data, self.title, self.roots, self.names, dict.fromkeys(needed))[1]
        pictures = {kind: by_name(folder) for kind, folder in found.items()}
        if lost := sorted(pictures["truth"].keys() - pictures["composite"].keys()):
            raise incomplete(found["composite"], lost, found["truth"], len(pictures["truth"]))
        for kind in [kind for kind in found if kind in needed or (self.drawn and kind == "trimap")]:
            if lost := [name for name in pictures["composite"] if _of(pictures[kind], name) is None]:
                raise incomplete(found[kind], lost, found["composite"], len(pictures["composite"]))
        for name, path in pictures["composite"].items():
            of: dict[str, Handle | None] = {kind: _of(paths, name) for kind, paths in pictures.items()}
            true = of["truth"]
            if of.setdefault("trimap", None) is None and isinstance(true, Path) and self.drawn:
                of["trimap"] = drawn_trimap(true)
            inputs = {role: of[kind] or path for role, kind in kinds.items()}
            truths = tuple(true if role is self.truth else None for role in find_task(task).targets)
            key = path.relative_to(found["composite"]).with_suffix("").as_posix()
            yield Sample(key, task, inputs, truths, trimap=of["trimap"], grey=self.truth is Role.FOREGROUND)

    def _kind(self, role: Role) -> str:
        return str(role) if str(role) in self.names else "mask"


def _of(pictures: Mapping[str, Path], name: str) -> Path | None:
    return next((pictures[name + mark] for mark in MARKS if name + mark in pictures), None)


def drawn_trimap(matte: Path) -> MadePicture:
    """A trimap from the file of a true matte: unknown where that is translucent, and `RIM` of the shorter side around
    it.
    """

    def make() -> bytes:
        alpha = subject_mask(read(matte), Role.ALPHA)
        return png_of(masks.as_picture(masks.trimap(alpha, RIM * min(alpha.shape))))

    return MadePicture(f"the trimap drawn from {matte}", make, (matte,), f"trimap {RIM}")


def matting(
    title: str, roots: tuple[str, ...], *picture: str, truth: tuple[str, ...] = ("mask",), trimap: tuple[str, ...] = (),
    drawn: bool = False,
) -> Files:  # fmt: skip
    names = {"composite": picture, "truth": truth, "trimap": (*trimap, "trimap", "trimaps")}
    return Files(title, roots, names, Role.FOREGROUND, drawn)


def removal(title: str, roots: tuple[str, ...], *picture: str) -> Files:
    of = ("object_mask", "mask", "masks")
    names = {"composite": picture, "truth": ("gt", "bg", "background"), "mask": of}
    return Files(title, roots, names, Role.BACKGROUND)


def find_folders(
    data: str, title: str, roots: Sequence[str], names: Mapping[str, Sequence[str]], needed: Iterable[str] = ()
) -> tuple[Path, dict[str, Path]]:
    """The first of `roots` below `data` that holds all needed kinds of folders, and those that it holds by kind.

    names: of folders by kind, of which the first that is there counts. InputError for data laid out in another way.
    """
    folder = existing(data, title)
    places = [place for root in roots if (place := inside(folder, root))]
    held = [{kind: path for kind, of in names.items() if (path := inside(place, *of))} for place in places]
    for place, found in zip(places, held, strict=True):
        if all(kind in found for kind in needed):
            return place, found
    missing = [kind for kind in needed if not held or kind not in held[0]]
    raise unlike(folder, title, " and ".join(" or ".join(f"{name}/" for name in names[kind]) for kind in missing))


def existing(data: str, title: str) -> Path:
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise InputError(f"{data} is not a folder: give the one that {title} was unpacked to.")
    return folder


def inside(folder: Path, *names: str) -> Path | None:
    """The first of these folders below another one, whatever its letter case; `.` is that folder itself."""
    for name in names:
        found: Path | None = folder
        for part in Path(name).parts:
            below = sorted(found.iterdir()) if found else []
            found = next((p for p in below if p.name.casefold() == part.casefold() and p.is_dir()), None)
        if found:
            return found
    return None


def by_name(folder: Path) -> dict[str, Path]:
    """The pictures below a folder by their paths without formats, in small letters."""
    return {path.relative_to(folder).with_suffix("").as_posix().casefold(): path for path in folders.find(folder)}


def listed(path: Path, title: str) -> list[str]:
    """The names in a list, which may have Windows' line ends."""
    if not path.is_file():
        raise unlike(path.parent, title, path.name)
    return [name for line in path.read_text(encoding="utf-8-sig").splitlines() if (name := line.strip())]


def unlike(folder: Path, title: str, expected: str) -> InputError:
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir() if not path.name.startswith("."))
    held = ", ".join([*names[:SHOWN], *(["..."] if len(names) > SHOWN else [])]) or "nothing"
    return InputError(f"{folder} is not laid out as {title}: it lacks {expected} and holds {held}; give its folder.")


def incomplete(folder: Path, lost: Sequence[str], other: Path, count: int) -> InputError:
    return InputError(
        f"{folder} lacks {len(lost)} of the {count} pictures in {other.name}, the first is {lost[0]}: copy it again."
    )
