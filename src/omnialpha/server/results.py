"""What a job has made, kept as the files of a saved stack, and the formats in which it is sent."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Callable
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


@dataclass(frozen=True)
class ResultFormat:
    """A row of `FORMATS`. encode: a result, and the layer that is wanted (None: all), to the bytes of the file."""

    media: str
    encode: Callable[[JobResult, int | None], bytes]


def _png(made: JobResult, layer: int | None) -> bytes:
    if layer is None and len(made.layers) > 1:
        names = ", ".join(f"{number} ({name})" for number, name in enumerate(made.names))
        raise InputError(f"format=png holds one layer: use format=zip, or add layer=NUMBER of {names}.")
    return made.png(layer or 0)


def _zip(made: JobResult, layer: int | None) -> bytes:
    """The folder that `LayerStack.load` reads; stored, as PNG is compressed already."""
    if layer is not None:
        raise InputError(f"format=zip holds all layers: leave layer={layer} out, or use format=png.")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in made.files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def _layered(suffix: str) -> Callable[[JobResult, int | None], bytes]:
    """All layers as one file of a format of `write_layers`, in the depth that they are kept in."""

    def encode(made: JobResult, layer: int | None) -> bytes:
        if layer is not None:
            raise InputError(f"format={suffix} holds all layers: leave layer={layer} out, or use format=png.")
        bits = max(read_image(made.png(k)).bits for k in range(len(made.layers)))
        with tempfile.TemporaryDirectory() as folder:
            write_layers(Path(folder) / f"layers.{suffix}", made.stack(), bits=bits)
            return (Path(folder) / f"layers.{suffix}").read_bytes()

    return encode


FORMATS = {
    "png": ResultFormat("image/png", _png),
    "zip": ResultFormat("application/zip", _zip),
    "psd": ResultFormat("image/vnd.adobe.photoshop", _layered("psd")),
    "ora": ResultFormat("image/openraster", _layered("ora")),
    "exr": ResultFormat("image/x-exr", _layered("exr")),
    "tif": ResultFormat("image/tiff", _layered("tif")),
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
    return FORMATS[form].encode(made, number), FORMATS[form].media
