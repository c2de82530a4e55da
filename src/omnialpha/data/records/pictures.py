"""Pictures of a record: read from wherever they lie, scaled and cut alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from omnialpha import masks
from omnialpha.data.records.folders import scaled
from omnialpha.errors import InputError
from omnialpha.io import read_image
from omnialpha.tasks import MAPS, Role, check_map, map_values

Size = tuple[int, int]
IN_VIEW = 0.9  # a cut holds at least this share of the subject that any cut could hold; of several, of each
LEVELS = {Role.TRIMAP: 2, Role.PRECISE: 1, Role.ROUGH: 1}  # the highest value of a map, counted in steps


class Blob(Protocol):
    """A picture's file that lies in a larger one. `str` of it is what a mistake in it is called by."""

    @property
    def suffix(self) -> str: ...

    def read(self) -> bytes: ...


Handle = Path | Blob


def opened(handle: Handle) -> Path | BytesIO:
    """What a picture is decoded from; error messages name the handle."""
    if isinstance(handle, Path):
        return handle
    file = BytesIO(handle.read())
    file.name = str(handle)  # type: ignore[attr-defined]
    return file


def read(handle: Handle, role: Role | None = None) -> Tensor:
    """RGBA (4, H, W) in [0, 1]; the same values wherever the file lies. A map as opaque grey: see `map_values`."""
    picture = read_image(opened(handle), data=role in MAPS).rgba
    if role not in MAPS:
        return picture
    with error_context(str(handle)):
        return masks.as_picture(map_values(picture, role))


def fitted(
    pictures: Sequence[Tensor], size: Size, subjects: Sequence[Tensor], generator: torch.Generator
) -> list[Tensor]:
    """Pictures (4, H, W) of one size, scaled alike until they cover `size`, and cut alike at a place drawn evenly.

    subjects: (H, W) each, where what must stay in view is: see `IN_VIEW`.
    """
    height, width = pictures[0].shape[1:]
    scale = max(size[0] / height, size[1] / width)
    whole = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    maps = torch.stack([scaled(masks.as_picture(s.clamp(0, 1)), whole)[0] for s in subjects or [torch.ones(whole)]])
    top, left = (_place(maps.sum(2 - axis), size[axis], generator) for axis in (0, 1))
    return [scaled(p, whole)[:, top : top + size[0], left : left + size[1]].contiguous() for p in pictures]


def _place(profiles: Tensor, length: int, generator: torch.Generator) -> int:
    """Where a cut of `length` begins in the profiles (N, L) of the subjects."""
    total = F.pad(profiles.double().cumsum(1), (1, 0))
    held = total[:, length:] - total[:, :-length]
    held = (held / held.max(1, keepdim=True).values.clamp_min(1e-9)).amin(0)  # of the subject that fares worst
    able = (held >= IN_VIEW * held.max()).nonzero().flatten()
    return int(able[int(torch.randint(len(able), (1,), generator=generator))])


@contextmanager
def error_context(ident: str) -> Iterator[None]:
    """Put the record's id before the message of an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"record {ident!r}: {error}") from error


def read_all(handles: Sequence[Handle], roles: Sequence[Role | None] = ()) -> list[Tensor]:
    """Pictures of one size, (4, H, W) each, by `read`; InputError otherwise. roles: of the first of them."""
    pictures = [read(handle, role) for handle, role in zip_longest(handles, roles)]
    sizes = [(int(p.shape[1]), int(p.shape[2])) for p in pictures]
    check_sizes(dict(zip(map(str, handles), sizes, strict=True)))
    return pictures


def check_sizes(sizes: Mapping[str, Size]) -> None:
    """InputError where pictures, (height, width) by name, differ."""
    first = next(iter(sizes.items()), None)
    for name, (height, width) in sizes.items():
        if first and (height, width) != first[1]:
            h, w = first[1]
            raise InputError(f"{name} is {width}x{height} px, {first[0]} {w}x{h} px: make them the same size.")


def subject_mask(picture: Tensor, role: Role) -> Tensor:
    """(H, W): where a foreground, or what a map as `read` marks, is seen."""
    return picture[3] if role is Role.FOREGROUND else picture[0]


def levels(picture: Tensor, role: Role) -> Tensor:
    """A given map after scaling, with no values but its own: {0, 1}, or {0, .5, 1} of a trimap; others unchanged."""
    if role not in MAPS:
        return picture
    steps = LEVELS.get(role)
    grey = check_map(picture, role)
    return grey if steps is None else (grey * steps).round() / steps
