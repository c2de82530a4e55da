"""A stack of RGBA layers: order, names, offsets, recomposition, and a folder of PNGs with layers.json."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from omnialpha import rgba as arithmetic
from omnialpha.errors import InputError
from omnialpha.files import atomic_folder
from omnialpha.io.reading import read_image
from omnialpha.io.writing import write_image
from omnialpha.limits import by

INDEX, FORMAT, VERSION = "layers.json", "omnialpha-layers", 1


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer of a stack.

    Attributes:
        name: Any words.
        rgba: (4, h, w) in [0, 1], straight alpha.
        offset: Where its top left pixel lies in the stack, (top, left), which may be outside.
        role: What it is to the task that made it.
    """

    name: str
    rgba: Tensor
    offset: tuple[int, int] = (0, 0)
    role: str | None = None

    def __post_init__(self) -> None:
        if self.rgba.ndim != 3 or self.rgba.shape[0] != 4 or self.rgba.numel() == 0:
            raise InputError(f"Layer {self.name!r} has shape {tuple(self.rgba.shape)}; pass (4, height, width).")

    def placed(self, size: tuple[int, int]) -> Tensor:
        """The layer on a transparent canvas (4, *size), cropped to it."""
        canvas = self.rgba.new_zeros(4, *size)
        (top, left), (height, width) = self.offset, self.rgba.shape[1:]
        rows = slice(max(top, 0), max(min(top + height, size[0]), 0))
        columns = slice(max(left, 0), max(min(left + width, size[1]), 0))
        inside = canvas[:, rows, columns]
        if inside.numel():
            inside.copy_(self.rgba[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left])
        return canvas


class LayerStack:
    """Layers back to front, the background first, on a canvas of `size` (height, width)."""

    def __init__(self, size: tuple[int, int], layers: Iterable[Layer]) -> None:
        self.size = (int(size[0]), int(size[1]))
        self.layers = tuple(layers)
        if min(self.size) < 1:
            raise InputError(f"A stack of {by(self.size)} has no pixels; pass a size of at least 1x1.")
        if not self.layers:
            raise InputError("A stack of 0 layers is empty; pass at least one layer.")

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __getitem__(self, key: int | str) -> Layer:
        """By position from the back, or by name (the backmost one of that name)."""
        if isinstance(key, int):
            return self.layers[key]
        names = [layer.name for layer in self.layers]
        if key not in names:
            near = get_close_matches(key, names, n=1, cutoff=0) or names
            raise InputError(f"There is no layer {key!r}; the nearest name is {near[0]!r} of {', '.join(names)}.")
        return self.layers[names.index(key)]

    def recompose(self) -> Tensor:
        """The composite of all layers, RGBA (4, *size)."""
        return arithmetic.recompose([layer.placed(self.size) for layer in self.layers])

    def error(self, reference: Tensor) -> dict[str, float]:
        """The difference of `recompose` to a reference (4, *size), both premultiplied: psnr in dB, mae in [0, 1]."""
        if tuple(reference.shape) != (4, *self.size):
            raise InputError(f"The reference has shape {tuple(reference.shape)}; this stack needs {(4, *self.size)}.")
        a, b = arithmetic.premultiply(self.recompose()), arithmetic.premultiply(reference)
        return {"psnr": arithmetic.psnr(a, b), "mae": float((a - b).abs().mean())}

    def save(
        self,
        folder: str | os.PathLike[str],
        bits: int = 8,
        *,
        settings: dict[str, Any] | None = None,
        icc: bytes | None = None,
        dpi: tuple[float, float] | None = None,
    ) -> list[str]:
        """Write a folder of one PNG a layer and layers.json, whole or not at all.

        Args:
            folder: A new or empty folder, or an earlier stack, which is replaced.
            bits: A channel. 8 round each layer; 16 keep many soft layers within 1/255 of the recomposition.
            settings, icc, dpi: Of every PNG, see `write_image`; the settings are in layers.json too.

        Returns:
            The name of each layer's file in the folder.

        Raises:
            InputError: The folder cannot be written, or holds something else.
        """
        folder = Path(os.path.abspath(folder))
        check_folder(folder)
        try:
            with atomic_folder(folder) as made:
                index = self.index(settings)
                files = [str(entry["file"]) for entry in index["layers"]]
                for file, layer in zip(files, self.layers, strict=True):
                    write_image(made / file, layer.rgba, bits=bits, settings=settings, icc=icc, dpi=dpi)
                (made / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
                return files
        except InputError as error:  # of a layer: name the file as the user knows it
            raise InputError(str(error).replace(str(made), str(folder))) from error
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{folder} could not be written ({reason}); free space or choose another.") from error

    def index(self, settings: dict[str, Any] | None = None) -> dict[str, Any]:
        """What layers.json holds: size, settings, and of each layer its name, file, offset and role."""
        entries = []
        for i, layer in enumerate(self.layers):
            name = re.sub(r"[^A-Za-z0-9]+", "-", layer.name).strip("-").lower()[:40] or "layer"
            where = {"file": f"{i:02d}-{name}.png", "offset": list(layer.offset)}
            entries.append({"name": layer.name, **where, "role": layer.role})
        index: dict[str, Any] = {"format": FORMAT, "version": VERSION, "size": list(self.size), "layers": entries}
        return index | ({"settings": settings} if settings else {})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> LayerStack:
        """Read a folder that `save` wrote. PNGs that were edited since are read as they are.

        Raises:
            InputError: The folder holds no stack, or a damaged one.
        """
        folder = Path(folder)
        index = _read_index(folder)
        try:
            layers = [
                Layer(
                    str(entry["name"]),
                    read_image(folder / _plain_name(folder, entry["file"])).rgba,
                    (int(entry["offset"][0]), int(entry["offset"][1])),
                    entry.get("role"),
                )
                for entry in index["layers"]
            ]
            return cls((int(index["size"][0]), int(index["size"][1])), layers)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise InputError(f"{folder / INDEX} lacks or garbles a field ({error}); save the stack again.") from error


def _plain_name(folder: Path, file: Any) -> str:
    if not isinstance(file, str) or Path(file).name != file:
        raise InputError(f"{folder / INDEX} names the file {file!r}; only files inside the folder are read.")
    return file


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{folder} is not a layer stack, as it has no {INDEX}; name a saved folder.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); save the stack again.") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT or index.get("version") != VERSION:
        raise InputError(f"{path} is not a layer stack of version {VERSION}; save it again with this program.")
    return index


def check_folder(folder: Path) -> None:
    """Raises InputError, before any work is done, where a stack cannot be written or anything but one would be lost."""
    if not folder.parent.is_dir():
        raise InputError(f"The output folder {folder.parent} does not exist; create it first.")
    if not os.access(folder.parent, os.W_OK):
        raise InputError(f"The folder {folder} may not be written; change the permissions or choose another.")
    if not folder.exists():
        suffix = folder.suffix.lower()
        if suffix in (*Image.registered_extensions(), ".ora", ".exr", ".psb"):  # a picture was expected there
            raise InputError(
                f"The output {folder} cannot hold layers: name a folder, or a .psd, .ora, .exr, .tif or .webp file."
            )
        return
    if not folder.is_dir():
        raise InputError(f"The output {folder} is a file; choose a folder.")
    found = {entry.name for entry in folder.iterdir()}
    if not found:
        return
    try:
        ours = {INDEX} | {entry["file"] for entry in _read_index(folder)["layers"]}
    except (InputError, KeyError, TypeError) as error:
        raise InputError(f"The folder {folder} is not empty and holds no layer stack; choose another.") from error
    if found - ours:
        raise InputError(f"The folder {folder} holds {min(found - ours)!r} too; choose another, so that it is kept.")
