"""RGBA pictures of a folder tree, as samples for autoencoders: a picture goes in and should come back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omnialpha import rgba
from omnialpha.data.records.folders import find, has_alpha
from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.samples import sized
from omnialpha.evaluation.metrics.image import SSIM_WINDOW
from omnialpha.files import sha256
from omnialpha.io import read_image
from omnialpha.limits import by
from omnialpha.tasks import Example, Role

TASK = "reconstruction"
ROOT = "all"  # the category of pictures that lie in no subfolder


@dataclass(frozen=True)
class RGBAPicture:
    """A picture to encode and decode.

    Args:
        path: its file.
        key: its path below the folder, with `/`; `category` is its first part.
        targets: one picture, or one composite for each of BACKGROUNDS from an autoencoder for RGB.
        smallest: side in px that every metric takes.
    """

    path: Path
    key: str
    category: str
    targets: tuple[Role, ...] = (Role.FULL,)
    smallest: int = SSIM_WINDOW

    def identity(self, longer: int | None) -> str:
        return sha256(json.dumps([self.key, sha256(self.path), longer]))

    def load(self, longer: int | None) -> Example:
        if not has_alpha(self.path):
            raise InputError(
                f"{self.path} has no alpha channel: leave it out, or pass over such files with --skip-bad."
            )
        picture = read_image(self.path).rgba
        size = sized(picture.shape, longer)
        if min(size) < self.smallest:
            raise InputError(
                f"{self.path} would be measured at {by(size)}, but needs sides of {self.smallest} px: use another size."
            )
        picture = rgba.resize(picture, size)
        truths = (picture, *[None] * (len(self.targets) - 1))
        return Example(TASK, (Role.FULL,), (picture,), "", self.targets, size, truths=truths)


def rgba_pictures(data: str | Path, task: str = TASK) -> Iterator[RGBAPicture]:
    """The pictures of a folder tree by name."""
    for path in find(data):
        name = path.relative_to(data)
        yield RGBAPicture(path, name.as_posix(), name.parts[0] if len(name.parts) > 1 else ROOT)
