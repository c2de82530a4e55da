"""Anything that holds layers as a `LayerStack`: a folder, PSD, OpenRaster, OpenEXR, pages of a TIFF, or one picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from omnialpha.errors import InputError
from omnialpha.io import colour
from omnialpha.io.layer_files import LAYERED, read_layers
from omnialpha.io.layers import Layer, LayerStack
from omnialpha.io.reading import read_image
from omnialpha.limits import MAX_PIXELS, by

PAGE_NAME = 285  # TIFF tag


def read_stack(path: str | Path) -> LayerStack:
    """Read layers, back to front.

    Args:
        path: A folder that `LayerStack.save` wrote, a file that `write_layers` wrote, a PSD, PSB or OpenRaster file of
            another program, or a picture, which is one layer.

    Raises:
        InputError: It is missing, damaged, too large, or holds what layers one over the other cannot show.
    """
    path = Path(path)
    if path.is_dir():
        return LayerStack.load(path)
    suffix = path.suffix.lower()
    if suffix in LAYERED:
        return read_layers(path)
    if suffix in READERS and path.is_file():
        return READERS[suffix](path)
    picture = read_image(path).rgba
    return LayerStack((picture.shape[1], picture.shape[2]), [Layer(path.stem, picture)])


def _exr(path: Path) -> LayerStack:
    """A layer a part: linear light, premultiplied; its name without the number that `write_layers` puts before it."""
    try:
        import OpenEXR
    except ImportError:
        raise InputError(f"{path} needs the package OpenEXR: pip install omnialpha[layers].") from None
    try:
        file = OpenEXR.File(str(path))
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{path} is damaged or cut off ({error}); save or copy it again.") from error
    layers: list[Layer] = []
    if not file.parts:
        raise InputError(f"{path} is damaged or cut off (it holds no picture); save or copy it again.")
    window = file.parts[0].header["displayWindow"]
    width, height = (int(high - low + 1) for low, high in zip(*window, strict=True))
    if height * width > MAX_PIXELS:
        raise InputError(f"{path} is {by((height, width))} px: use at most {MAX_PIXELS:,} pixels.")
    for number, part in enumerate(file.parts):
        name = part.name() or f"layer {number}"
        samples = _exr_samples(path, part.channels)
        alpha = samples[..., 3:].clip(0, 1)
        straight = np.divide(samples[..., :3], alpha, out=np.zeros_like(samples[..., :3]), where=alpha > 0)
        pixels = np.concatenate([colour.srgb_encode(straight.clip(0, 1)), alpha], -1).transpose(2, 0, 1)
        left, top = (int(a - b) for a, b in zip(part.header["dataWindow"][0], window[0], strict=True))
        name = name[3:] if name[:3] == f"{number:02} " else name
        layers.append(Layer(name, torch.from_numpy(np.ascontiguousarray(pixels, np.float32)), (top, left)))
    return LayerStack((height, width), layers)


def _exr_samples(path: Path, channels: dict) -> np.ndarray:  # type: ignore[type-arg]
    """(h, w, 4) float32 of a part with RGBA or RGB."""
    for name in ("RGBA", "RGB"):
        if name in channels:
            samples = np.asarray(channels[name].pixels, np.float32)
            return samples if name == "RGBA" else np.concatenate([samples, np.ones_like(samples[..., :1])], -1)
    raise InputError(f"{path} has a part with the channels {', '.join(channels)}: save it with R, G, B and A.")


def _tiff(path: Path) -> LayerStack:
    """A layer a page, which all have one size."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            names = [page.aspage().tags.valueof(PAGE_NAME, "") for page in file.pages]
    except (tifffile.TiffFileError, ValueError, OSError) as error:
        raise InputError(f"{path} is damaged or cut off ({error}); save or copy it again.") from error
    if len(names) == 1:
        picture = read_image(path).rgba
        return LayerStack((picture.shape[1], picture.shape[2]), [Layer(names[0] or path.stem, picture)])
    layers = [Layer(name or f"page {k}", read_image(path, frame=k).rgba) for k, name in enumerate(names)]
    sizes = {tuple(layer.rgba.shape[1:]) for layer in layers}
    if len(sizes) > 1:
        raise InputError(f"{path} has pages of {len(sizes)} sizes, so they are no layers: make them the same size.")
    return LayerStack((layers[0].rgba.shape[1], layers[0].rgba.shape[2]), layers)


READERS: dict[str, Callable[[Path], LayerStack]] = {".exr": _exr, ".tif": _tiff, ".tiff": _tiff}
