"""What a job has made, kept as the files of a saved stack, and the formats in which it is sent."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnialpha.errors import InputError
from omnialpha.io import Picture, read_image, write_image
from omnialpha.io.layer_writing import write_layers
from omnialpha.io.layers import INDEX, Layer, LayerStack
from omnialpha.server.refusals import Refusal


@dataclass(frozen=True)
class JobResult:
    """What a job has made. files: of a saved stack by name, `layers.json` among them; layers: those of the PNGs."""

    size: tuple[int, int]
    names: tuple[str, ...]
    layers: tuple[str, ...]
    files: dict[str, bytes]

    @property
    def weight(self) -> int:
        """Memory that it takes."""
        return sum(map(len, self.files.values()))

    def png(self, layer: int = 0) -> bytes:
        """The PNG of a layer."""
        return self.files[self.layers[layer]]

    def stack(self) -> LayerStack:
        """The layers as numbers again, for formats that hold several."""
        rows = json.loads(self.files[INDEX])["layers"]
        made = [Layer(row["name"], read_image(self.files[row["file"]]).rgba, role=row["role"]) for row in rows]
        return LayerStack(self.size, made)


def keep_result(stack: LayerStack, settings: dict[str, Any], source: Picture | None) -> JobResult:
    """Encode what was made, with the depth, profile and metadata of the picture that it was made from."""
    bits, icc, dpi = (source.bits, source.icc, source.dpi) if source else (8, None, None)
    index, files = stack.index(settings), dict[str, bytes]()
    names = tuple(str(entry["file"]) for entry in index["layers"])
    kept = source if len(stack) == 1 else None  # as the command line: metadata belong to one picture
    for name, layer in zip(names, stack, strict=True):
        buffer = io.BytesIO()
        write_image(buffer, layer.rgba, settings=settings, bits=bits, icc=icc, dpi=dpi, source=kept)
        files[name] = buffer.getvalue()
    files[INDEX] = f"{json.dumps(index, indent=2)}\n".encode()
    return JobResult(stack.size, tuple(layer.name for layer in stack), names, files)


FORMATS = {  # and their media types
    "png": "image/png",
    "zip": "application/zip",
    "psd": "image/vnd.adobe.photoshop",
    "ora": "image/openraster",
    "exr": "image/x-exr",
    "tif": "image/tiff",
}


def encode_result(made: JobResult, form: str | None = None, layer: str | None = None) -> tuple[bytes, str]:
    """A result in a format.

    Args:
        made: The result.
        form: One of `FORMATS`; by default png for one layer and zip for several.
        layer: Number or name of the layer that is wanted.

    Returns:
        The bytes, and their media type.

    Raises:
        InputError: There is no such format or layer, or the format does not hold what is asked for.
    """
    form = form or ("png" if len(made.layers) == 1 or layer is not None else "zip")
    if form not in FORMATS:
        raise InputError(f"format={form[:20]!r} is not known: use {', '.join(FORMATS)}.")
    number = None
    if layer is not None:
        known = {str(k): k for k in range(len(made.names))} | {name: k for k, name in enumerate(made.names)}
        if layer not in known:
            raise Refusal("not_found", f"there is no layer {layer[:40]!r}: use 0 to {len(made.names) - 1}, or a name.")
        number = known[layer]
    if form == "png":
        if number is None and len(made.layers) > 1:
            names = ", ".join(f"{number} ({name})" for number, name in enumerate(made.names))
            raise InputError(f"format=png holds one layer: use format=zip, or add layer=NUMBER of {names}.")
        return made.png(number or 0), FORMATS[form]
    if number is not None:
        raise InputError(f"format={form} holds all layers: leave layer={number} out, or use format=png.")
    if form == "zip":  # the folder that `LayerStack.load` reads; stored, as PNG is compressed already
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in made.files.items():
                archive.writestr(zipfile.ZipInfo(name), data)
        return buffer.getvalue(), FORMATS[form]
    bits = max(read_image(made.png(k)).bits for k in range(len(made.layers)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"layers.{form}"
        write_layers(path, made.stack(), bits=bits)
        return path.read_bytes(), FORMATS[form]
