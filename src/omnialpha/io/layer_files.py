"""Layers of PSD, PSB and OpenRaster files, read only: groups as their layers, hidden layers left out.

Layers that another programme would blend in a way that `rgba.over` cannot are refused, so that what is read recomposes
to what was painted.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from torch import Tensor

from omnialpha import rgba
from omnialpha.errors import InputError
from omnialpha.io import colour
from omnialpha.io.layers import Layer, LayerStack
from omnialpha.io.reading import read_image
from omnialpha.limits import MAX_PIXELS, by

LAYERED = (".psd", ".psb", ".ora")
MIMETYPE = b"image/openraster"
OVER = "svg:src-over"
MAX_XML = 1 << 24  # bytes of a stack.xml
MAX_BYTES = 8 * MAX_PIXELS + (1 << 20)  # of a picture in an OpenRaster file: 16 bits without compression
NORMAL = ("NORMAL", "PASS_THROUGH")
COLOURS = ("RGB", "GRAYSCALE")


@dataclass(frozen=True)
class FileLayer:
    """A visible layer of a file, not decoded yet. offset: (top, left). opacity: its own and that of its groups."""

    name: str
    offset: tuple[int, int]
    opacity: float
    pixels: Callable[[], Tensor]  # (4, h, w), without the opacity

    def layer(self) -> Layer:
        picture = self.pixels()
        return Layer(self.name, torch.cat([picture[:3], picture[3:] * self.opacity]), self.offset)


@dataclass(frozen=True)
class LayerFile:
    """An opened file. size: (height, width). layers: back to front. preview: the merged picture that it keeps,
    (4, H, W), or None.
    """

    path: Path
    size: tuple[int, int]
    layers: tuple[FileLayer, ...]
    preview: Callable[[], Tensor | None]


def read_layers(path: str | Path) -> LayerStack:
    """All visible layers of a PSD, PSB or OpenRaster file, back to front, each of the size that it has there.

    Raises:
        InputError: as `open_layers`, or a layer cannot be decoded.
    """
    with open_layers(path) as file:
        return LayerStack(file.size, [layer.layer() for layer in file.layers])


@contextmanager
def open_layers(path: str | Path) -> Iterator[LayerFile]:
    """A file whose layers can be decoded one by one inside of the block.

    Raises:
        InputError: The file is missing, damaged, too large or of another format, or needs psd-tools; it has no visible
            layer, or one that is blended, clipped, drawn with effects or computed.
    """
    path = Path(path)
    if path.suffix.lower() not in LAYERED:
        raise InputError(f"{path} is no file of layers: give {', '.join(LAYERED)}.")
    errors = (OSError, ValueError, TypeError, KeyError, IndexError, AssertionError, AttributeError, struct.error,
              zlib.error, BadZipFile, ElementTree.ParseError, EOFError, RuntimeError, NotImplementedError)  # fmt: skip
    try:
        if path.suffix.lower() == ".ora":
            with ZipFile(path) as archive:
                yield _checked(_open_ora(path, archive))
        else:
            yield _checked(_open_psd(path))
    except InputError:
        raise
    except errors as error:  # what the readers raise for damaged files is not theirs to promise
        raise InputError(f"{path} cannot be read ({error or type(error).__name__}): save it again.") from error


def _checked(file: LayerFile) -> LayerFile:
    if not file.layers:
        raise InputError(f"{file.path} has 0 visible layers with pixels: show one, and save it again.")
    return file


def _check_size(path: Path, height: int, width: int) -> tuple[int, int]:
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise InputError(f"{path} is {by((height, width))} px: use at least 1 and at most {MAX_PIXELS:,} pixels.")
    return height, width


# ---- OpenRaster -----------------------------------------------------------------------------------------------------


def _open_ora(path: Path, archive: ZipFile) -> LayerFile:
    names = archive.namelist()
    if "stack.xml" not in names or ("mimetype" in names and archive.read("mimetype").strip() != MIMETYPE):
        raise InputError(f"{path} is a ZIP file, but no OpenRaster: save it as .ora.")
    text = _entry(path, archive, "stack.xml", MAX_XML)
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise InputError(f"{path} declares entities in its stack.xml: save it again.")
    image = ElementTree.fromstring(text)
    size = _check_size(path, int(image.get("h", 0)), int(image.get("w", 0)))
    layers = tuple(reversed(list(_ora_layers(path, archive, image.find("stack"), 1.0))))

    def preview() -> Tensor | None:
        return _ora_pixels(path, archive, "mergedimage.png") if "mergedimage.png" in names else None

    return LayerFile(path, size, layers, preview)


def _ora_layers(path: Path, archive: ZipFile, stack: Any, opacity: float) -> Iterator[FileLayer]:
    """Front to back, as the file lists them."""
    for node in stack if stack is not None else ():
        if node.tag not in ("layer", "stack") or node.get("visibility", "visible") != "visible":
            continue
        name, own = str(node.get("name") or node.get("src") or node.tag), float(node.get("opacity", 1))
        _check_opacity(path, name, own)
        if (mode := node.get("composite-op", OVER)) != OVER:
            raise _not_over(path, name, f"blended by {mode}")
        if node.tag == "stack":
            inner = list(_ora_layers(path, archive, node, opacity * own))
            _check_group(path, name, own, len(inner))
            yield from inner
            continue
        source = str(node.get("src"))

        def pixels(source: str = source) -> Tensor:
            return _ora_pixels(path, archive, source)

        yield FileLayer(name, (int(node.get("y", 0)), int(node.get("x", 0))), opacity * own, pixels)


def _ora_pixels(path: Path, archive: ZipFile, name: str) -> Tensor:
    file = BytesIO(_entry(path, archive, name, MAX_BYTES))
    file.name = f"{path}:{name}"  # type: ignore[attr-defined]
    return read_image(file).rgba


def _entry(path: Path, archive: ZipFile, name: str, most: int) -> bytes:
    """A file of the archive, of at most so many bytes. Its name is only looked up, so it cannot lead out of it."""
    if name not in archive.namelist():
        raise InputError(f"{path} names the picture {name!r}, which it does not hold: save it again.")
    with archive.open(name) as file:
        data = file.read(most + 1)  # what the archive says of the size may be wrong
    if len(data) > most:
        raise InputError(f"{path} holds {name!r} of more than {most:,} bytes: make it smaller.")
    return data


# ---- PSD and PSB ----------------------------------------------------------------------------------------------------


def _open_psd(path: Path) -> LayerFile:
    with path.open("rb") as file:
        head = file.read(26)
    if len(head) < 26 or head[:4] != b"8BPS":
        raise InputError(f"{path} is no PSD file: save it as PSD again.")
    size = _check_size(path, *struct.unpack(">II", head[14:22]))
    psd_image = _psd_tools(path)
    psd = psd_image.open(path)
    if psd.color_mode.name not in COLOURS:
        raise InputError(f"{path} is {psd.color_mode.name}: convert it to RGB, and save it again.")
    from psd_tools.constants import Resource

    icc = psd.image_resources.get_data(Resource.ICC_PROFILE)
    layers = tuple(_psd_layers(path, psd, 1.0, icc))

    def preview() -> Tensor | None:
        return _picture(path, psd.numpy(), icc) if psd.has_preview() else None

    return LayerFile(path, size, layers, preview)


def _psd_tools(path: Path) -> Any:
    try:
        from psd_tools import PSDImage
    except ImportError:
        raise InputError(f"{path} needs the package psd-tools: pip install omnialpha[curate].") from None
    return PSDImage


def _psd_layers(path: Path, group: Any, opacity: float, icc: bytes | None) -> Iterator[FileLayer]:
    """Back to front, as psd-tools lists them."""
    for layer in group:
        if not layer.visible:
            continue
        own = layer.opacity / 255 * (layer.fill_opacity / 255)
        faults = {
            f"blended by {layer.blend_mode.name.lower()}": layer.blend_mode.name not in NORMAL,
            "clipped to the layer below": layer.clipping,
            "drawn with effects": layer.has_effects(),
            "cut by a vector mask": layer.has_vector_mask(),
            "a masked group": layer.is_group() and layer.has_mask(),
            f"computed ({layer.kind})": not layer.is_group() and not layer.has_pixels() and layer.kind != "pixel",
        }
        if fault := next((fault for fault, found in faults.items() if found), None):
            raise _not_over(path, layer.name, fault)
        if layer.is_group():
            inner = list(_psd_layers(path, layer, opacity * own, icc))
            _check_group(path, layer.name, own, len(inner))
            yield from inner
        elif layer.width and layer.height:
            _check_size(path, layer.height, layer.width)

            def pixels(layer: Any = layer) -> Tensor:
                picture = _picture(path, layer.numpy(), icc)
                return torch.cat([picture[:3], picture[3:] * _mask(layer)])

            yield FileLayer(layer.name, (layer.top, layer.left), opacity * own, pixels)


def _picture(path: Path, samples: np.ndarray, icc: bytes | None) -> Tensor:
    """(H, W, C) in [0, 1], grey or RGB with or without alpha, in the colours of a profile -> (4, H, W) in sRGB."""
    count = samples.shape[-1]
    alpha = samples[..., -1:] if count in (2, 4) else np.ones_like(samples[..., :1])
    color = samples[..., :3] if count > 2 else np.repeat(samples[..., :1], 3, axis=-1)
    if icc:
        try:
            profile = colour.parse(icc)
        except ValueError as error:
            raise InputError(f"{path} has a profile that cannot be read ({error}): convert it to sRGB.") from None
        if profile is None:
            raise InputError(f"{path} has a profile that is a table: convert it to sRGB, and save it again.")
        color = color if profile.is_srgb() else profile.to_srgb(color.astype(np.float32))[0]
    pixels = np.concatenate([color, alpha], axis=-1).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).clamp(0, 1)


def _mask(layer: Any) -> Tensor:
    """(h, w) in [0, 1]: what a layer's own mask lets through."""
    if not layer.has_mask() or layer.mask.disabled:
        return torch.ones(layer.height, layer.width)
    mask = layer.mask
    whole = torch.full((1, layer.height, layer.width), mask.background_color / 255)
    drawn = mask.topil()
    if drawn is None:
        return whole[0]
    grey = torch.from_numpy(np.asarray(drawn.convert("L"), np.float32) / 255)
    seen = Layer("mask", torch.stack([grey, grey, grey, torch.ones_like(grey)]), (mask.top - layer.top,
                 mask.left - layer.left)).placed((layer.height, layer.width))  # fmt: skip
    return rgba.flatten(seen, [mask.background_color / 255] * 3)[0]


# ---- what cannot be told by layers one over the other ---------------------------------------------------------------


def _check_opacity(path: Path, name: str, opacity: float) -> None:
    if not 0 <= opacity <= 1:
        raise InputError(f"{path} has a layer {name!r} of opacity {opacity:g}: use 0 to 1.")


def _check_group(path: Path, name: str, opacity: float, layers: int) -> None:
    """A translucent group shows what its layers show together, which they do not each by themselves."""
    if opacity < 1 and layers > 1:
        raise _not_over(path, name, f"a group of {layers} layers with opacity {opacity:.2f}")


def _not_over(path: Path, name: str, fault: str) -> InputError:
    return InputError(f"{path} has a layer {name!r} that is {fault}: merge it down, and save the file again.")
