"""Pictures of the studio, kept as the files that were given, bit for bit; a page knows them by id."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.files import atomic_file, sha256
from omnialpha.io import Picture, read_image, write_image

ACCENT = (0.1, 0.75, 0.55)  # what a map is shown in
SHADE = 0.55  # the alpha of a map at its whitest


class PictureShelf:
    """A folder of pictures. An id is `HASH/NAME`: the hash of the file, and the name that its user knows."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.shown_folder = folder / "pictures", folder / "shown"
        self.shown_folder.mkdir(parents=True, exist_ok=True)

    def keep(self, file: str | Path) -> str:
        """Copy a file as it is. Returns its id."""
        file = Path(file)
        id = f"{sha256(file.read_bytes())[:16]}/{file.name}"
        target = self.folder / id
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(target) as made:
                shutil.copyfile(file, made)
        return id

    def path(self, id: str) -> Path:
        """The file of an id. InputError where there is none."""
        found = re.fullmatch(r"[0-9a-f]{16}/([^/\\]+)", id)
        if not found or found[1] in (".", "..") or not (self.folder / id).is_file():
            raise InputError(f"the picture {id[-40:]!r} is not there any more: give it again.")
        return self.folder / id

    def read(self, id: str, frame: int | None = None, is_map: bool = False) -> Picture:
        """The picture of an id in full precision. InputError, by the name that its user knows, where it is none."""
        path = self.path(id)
        try:
            return read_image(path, frame=frame, data=is_map)
        except InputError as error:
            raise InputError(str(error).replace(str(path), path.name)) from None

    def shown(self, id: str, frame: int | None = None) -> tuple[Path, tuple[int, int]]:
        """A PNG of 8 bits for browsers, and the (height, width) of the picture."""
        picture = self.read(id, frame).rgba
        made = self.shown_folder / f"{id.partition('/')[0]}-{frame or 0}.png"
        if not made.exists():
            write_image(made, picture)
        return made, (picture.shape[1], picture.shape[2])

    def shown_map(self, values: Tensor) -> Path:
        """A PNG that tints what a map (H, W) marks."""
        colour = torch.tensor(ACCENT)[:, None, None].expand(3, *values.shape)
        made = self.shown_folder / f"map-{sha256(values.numpy().tobytes())[:16]}.png"
        if not made.exists():
            write_image(made, torch.cat([colour, values[None] * SHADE]))
        return made
