"""Stacks of layers as one file: PSD, OpenRaster, OpenEXR, TIFF of many pages, and an animated WebP to look at."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from omnialpha import rgba as arithmetic
from omnialpha.errors import InputError
from omnialpha.files import atomic_file
from omnialpha.io import colour
from omnialpha.io.encoding import Dpi, encode
from omnialpha.io.layers import Layer, LayerStack
from omnialpha.io.writing import check_writable, in_profile, matrix_profile

THUMBNAIL = 256  # pixels a side of that of an OpenRaster file, at most
HALF = 2e-3  # what half floats of linear light may be off, in sRGB
SHOWN = 1000  # milliseconds of a step of the animated preview


@dataclass(frozen=True)
class LayerSheet:
    """What goes into a file: every layer in samples of the file's depth and profile, cut down to what is seen of it.

    Attributes:
        size: (height, width) of the canvas.
        layers: name, offset (top, left) and samples (h, w, 4), straight; back to front.
        merged: the composite, (H, W, 4).
        stack: as it was given.
    """

    size: tuple[int, int]
    layers: tuple[tuple[str, tuple[int, int], np.ndarray], ...]
    merged: np.ndarray
    stack: LayerStack
    bits: int
    icc: bytes | None
    dpi: Dpi
    settings: dict[str, Any] | None


def write_layers(
    path: str | os.PathLike[str],
    stack: LayerStack,
    *,
    bits: int = 8,
    settings: dict[str, Any] | None = None,
    icc: bytes | None = None,
    dpi: Dpi = None,
) -> None:
    """Write a stack as one file in the format of its suffix, whole or not at all, and read it back to make sure.

    Args:
        path: The file; see LAYER_FORMATS.
        stack: Layers back to front, with names and offsets.
        bits: A channel, 8 or 16; OpenEXR has half floats, linear and premultiplied, and the preview 8 bits anyway.
        settings: Stored where the format has a place for text.
        icc: An RGB profile to convert the colours to and to embed, as for `write_image`.
        dpi: Dots per inch, (x, y).

    Raises:
        InputError: The format does not hold layers of this size, its library is missing, or it cannot be written.
    """
    form = check_layer_file(path)
    if max(stack.size) > form.max_side:
        raise InputError(f"{path} would have a side of {max(stack.size)} px, but {form.name} ends at {form.max_side}.")
    profile = matrix_profile(icc)
    bits = bits if bits in form.bits else max(form.bits)
    sheet = LayerSheet(
        stack.size,
        tuple(_cut(layer, bits, profile) for layer in stack),
        in_profile(stack.recompose(), bits, profile),
        stack, bits, icc if profile else None, dpi, settings,
    )  # fmt: skip
    with atomic_file(Path(path)) as made:
        form.write(made, sheet)
        form.check(made, sheet)


def check_layer_file(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]] = ()) -> LayerFormat:
    """The format of a file of layers; InputError, before any work is done, where it cannot be written."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in LAYER_FORMATS:
        raise InputError(f"The output {path} cannot hold layers: end it with one of {', '.join(LAYER_FORMATS)}.")
    check_writable(path, inputs)
    return LAYER_FORMATS[suffix]


def _cut(layer: Layer, bits: int, profile: colour.Profile | None) -> tuple[str, tuple[int, int], np.ndarray]:
    """A layer as far as alpha is above 0; of an empty one its first pixel."""
    samples = in_profile(layer.rgba, bits, profile)
    rows, columns = (np.flatnonzero(samples[..., 3].any(axis=axis)) for axis in (1, 0))
    top, left = (int(rows[0]), int(columns[0])) if len(rows) else (0, 0)
    bottom, right = (int(rows[-1]) + 1, int(columns[-1]) + 1) if len(rows) else (1, 1)
    return layer.name, (layer.offset[0] + top, layer.offset[1] + left), samples[top:bottom, left:right]


def _psd(path: Path, sheet: LayerSheet) -> None:
    """A document with alpha; RLE, as other readers fail on ZIP."""
    from psd_tools import PSDImage
    from psd_tools.constants import Resource
    from psd_tools.psd.image_resources import ImageResource

    made = PSDImage.new("RGBA", (sheet.size[1], sheet.size[0]), depth=16 if sheet.bits == 16 else 8)
    for name, (top, left), samples in sheet.layers:
        layer = made.create_pixel_layer_from_array(np.ascontiguousarray(samples), top=top, left=left)
        layer.name = name  # in Unicode too
    info: Any = made._record.layer_and_mask_information.layer_info
    info.layer_count = -len(sheet.layers)  # below 0: the merged picture's fourth channel is its transparency
    if sheet.icc:
        made.image_resources[Resource.ICC_PROFILE] = ImageResource(key=Resource.ICC_PROFILE.value, data=sheet.icc)
    made.save(path)


def _ora(path: Path, sheet: LayerSheet) -> None:
    """The top layer comes first in stack.xml; the merged picture and the thumbnail are for viewers."""
    height, width = sheet.size
    image = ElementTree.Element("image", {"version": "0.0.5", "w": str(width), "h": str(height)})
    if sheet.dpi:
        image.attrib |= {"xres": str(round(sheet.dpi[0])), "yres": str(round(sheet.dpi[1]))}
    stack = ElementTree.SubElement(image, "stack")
    text = json.dumps(sheet.settings) if sheet.settings is not None else None
    files = {}
    for number, (name, (top, left), samples) in reversed(list(enumerate(sheet.layers))):
        file = f"data/layer{number:03}.png"
        files[file] = encode("PNG", np.ascontiguousarray(samples), None, sheet.icc, sheet.dpi)
        place = {"name": name, "src": file, "x": str(left), "y": str(top)}
        ElementTree.SubElement(
            stack, "layer", place | {"opacity": "1.0", "visibility": "visible", "composite-op": "svg:src-over"}
        )
    small = Image.fromarray((sheet.merged >> (sheet.bits - 8)).astype(np.uint8))
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    thumbnail = io.BytesIO()
    small.save(thumbnail, "PNG")
    files["stack.xml"] = ElementTree.tostring(image, encoding="UTF-8", xml_declaration=True)
    files["mergedimage.png"] = encode("PNG", sheet.merged, text, sheet.icc, sheet.dpi)
    files["Thumbnails/thumbnail.png"] = thumbnail.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in ({"mimetype": b"image/openraster"} | files).items():  # mimetype first, and stored
            info = zipfile.ZipInfo(name)  # no time: the same bytes every time
            stored = name == "mimetype" or name.endswith(".png")
            archive.writestr(info, data, zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED)


def _exr(path: Path, sheet: LayerSheet) -> None:
    """A part a layer, back to front: half floats, linear light, premultiplied."""
    import OpenEXR

    parts = []
    for number, layer in enumerate(sheet.stack):
        samples = layer.placed(sheet.size).permute(1, 2, 0).numpy()
        light = np.concatenate([colour.srgb_decode(samples[..., :3]) * samples[..., 3:], samples[..., 3:]], -1)
        header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
        if sheet.settings is not None:
            header["comments"] = json.dumps(sheet.settings)
        parts.append(
            OpenEXR.Part(header, {"RGBA": np.ascontiguousarray(light, np.float16)}, f"{number:02} {layer.name}")
        )
    OpenEXR.File(parts).write(str(path))


def _tiff(path: Path, sheet: LayerSheet) -> None:
    """A page a layer, back to front, of the canvas's size, its name in PageName."""
    import tifffile

    dpi: dict[str, Any] = {"resolution": sheet.dpi, "resolutionunit": "INCH"} if sheet.dpi else {}
    with tifffile.TiffWriter(path) as writer:
        for name, (top, left), samples in sheet.layers:
            page = np.zeros((*sheet.size, 4), samples.dtype)
            _paste(page, samples, top, left)
            writer.write(
                page, photometric="rgb", extrasamples=["unassalpha"], compression="adobe_deflate", metadata=None,
                software=False, iccprofile=sheet.icc, extratags=[(285, 2, None, name.encode() + b'\0', True)], **dpi,
            )  # fmt: skip


def _webp(path: Path, sheet: LayerSheet) -> None:
    """The stack as it grows from the back, a second a layer: to look at, not to edit."""
    steps = [LayerStack(sheet.size, sheet.stack.layers[: k + 1]).recompose() for k in range(len(sheet.stack))]
    frames = [Image.fromarray(in_profile(step, 8, None)) for step in steps]
    frames[0].save(path, "WEBP", save_all=True, append_images=frames[1:], duration=SHOWN, loop=0, lossless=True)


def _paste(page: np.ndarray, samples: np.ndarray, top: int, left: int) -> None:
    """Samples into a page (H, W, 4), as far as they lie on it."""
    rows = slice(max(top, 0), max(min(top + len(samples), len(page)), 0))
    columns = slice(max(left, 0), max(min(left + samples.shape[1], page.shape[1]), 0))
    page[rows, columns] = samples[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]


def _check_layers(path: Path, sheet: LayerSheet, rounding: float | None = None) -> None:
    """All layers must be there again, as they were but for rounding to the file's depth."""
    from omnialpha.io.stack_reading import read_stack

    read = read_stack(path)
    lost = read.size != sheet.size or len(read) != len(sheet.stack)
    rounding = rounding or 1.01 / (2**sheet.bits - 1)
    for before, after in zip(sheet.stack, read, strict=False):
        alike = arithmetic.premultiply(before.placed(sheet.size)) - arithmetic.premultiply(after.placed(sheet.size))
        lost |= bool(alike.abs().max() > rounding)
    if lost:
        raise RuntimeError(f"{path.name} does not read back as it was written")


def _check_frames(path: Path, sheet: LayerSheet) -> None:
    with Image.open(path) as image:
        if getattr(image, "n_frames", 1) != len(sheet.stack):
            raise RuntimeError(f"{path.name} does not read back as it was written")


@dataclass(frozen=True)
class LayerFormat:
    """bits: that its samples can have, 32 being floats. max_side: in pixels."""

    name: str
    write: Callable[[Path, LayerSheet], None]
    check: Callable[[Path, LayerSheet], None] = _check_layers
    bits: tuple[int, ...] = (8, 16)
    max_side: int = 2**31 - 1


LAYER_FORMATS: dict[str, LayerFormat] = {
    ".psd": LayerFormat("PSD", _psd, max_side=30000),
    ".ora": LayerFormat("OpenRaster", _ora),
    ".exr": LayerFormat("OpenEXR", _exr, partial(_check_layers, rounding=HALF), bits=(16,)),
    ".tif": LayerFormat("TIFF", _tiff),
    ".tiff": LayerFormat("TIFF", _tiff),
    ".webp": LayerFormat("WebP", _webp, _check_frames, bits=(8,), max_side=16383),
}
