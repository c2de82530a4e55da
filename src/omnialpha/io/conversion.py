"""Pictures of other libraries (PIL, numpy, torch) to RGBA tensors, and back to the same type."""

from __future__ import annotations

import os
from io import IOBase
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.io.decoding import decode
from omnialpha.io.inputs import read_image
from omnialpha.io.samples import ROUNDING, Picture, check_unit_range, integers, readable_errors, rgba_of, to_tensor
from omnialpha.io.sources import ImageSource

if TYPE_CHECKING:
    AnyImage = Picture | ImageSource | Image.Image | np.ndarray | Tensor
else:
    AnyImage = Any

FILES = (str, os.PathLike, bytes, bytearray, memoryview, IOBase)


def _is_file(image: Any) -> bool:
    return isinstance(image, FILES) or hasattr(image, "read")


def read_if_file(image: Any) -> Any:
    """Read a path, an open file or bytes as a Picture; return anything else as it is."""
    return read_image(image) if _is_file(image) else image


def to_rgba(image: AnyImage, *, data: bool = False) -> Tensor:
    """Convert a picture of any type to a straight RGBA tensor.

    Args:
        image: A `Picture`, a path, an open file, bytes, a PIL picture (I;16 and I hold 0 to 65535, F holds 0 to 1), an
            array (H, W[, C]) or a tensor ([C,] H, W) of 1 to 4 channels, or a batch of one. 8 or 16 bits, bools, or
            floats in [0, 1].
        data: The picture is a map, whose values are taken as stored, whatever its colour profile. Integers of other
            types may then be labels 0 and 1, and arrays (1, H, W).

    Returns:
        float32 (4, H, W) in [0, 1], sRGB unless `data`, on the device of a tensor that was given.

    Raises:
        InputError: It is no picture, or cannot be read.
    """
    if isinstance(image, Picture):
        return image.raw if data else image.rgba
    if isinstance(image, Image.Image):
        with readable_errors("The picture"):
            return decode(image, data=data).rgba
    if isinstance(image, Tensor):
        values, eps = image.detach().cpu(), torch.finfo(image.dtype).eps if image.is_floating_point() else 0.0
        array = (values.float() if values.dtype is torch.bfloat16 else values).numpy()  # numpy has no bfloat16
        array = array[0] if array.ndim == 4 and array.shape[0] == 1 else array
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
        named = f"A tensor of shape {tuple(image.shape)}"
        return to_tensor(_checked(array, named, "(H, W) or (C, H, W)", data, eps)).to(image.device)
    if isinstance(image, np.ndarray):
        array = image[0] if image.ndim == 4 and image.shape[0] == 1 else image
        if data and array.ndim == 3 and array.shape[0] == 1 and array.shape[-1] > 4:
            array = array[0]
        return to_tensor(_checked(array, f"An array of shape {image.shape}", "(H, W) or (H, W, C)", data))
    if _is_file(image):
        return to_rgba(read_image(image, data=data))
    raise InputError(
        f"A {type(image).__name__} is not a picture; pass a path, Picture, PIL, numpy or torch image, file or bytes."
    )


def _checked(array: np.ndarray, named: str, layout: str, data: bool, rounding: float = 0.0) -> np.ndarray:
    """(H, W) or (H, W, 1..4) array -> straight RGBA (H, W, 4) float32. named, layout: for messages, as given."""
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[-1] > 4):
        raise InputError(f"{named} is not a picture; it needs 1 to 4 channels as {layout}, and no side of 0.")
    if np.issubdtype(array.dtype, np.floating):
        return rgba_of(check_unit_range(array, named, max(rounding, ROUNDING)))
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if data and np.issubdtype(array.dtype, np.integer) and array.dtype not in (np.uint8, np.uint16):
        if not np.isin(array, (0, 1)).all():
            found = f"{array.dtype} is not a mask of 0 and 1 ({array.min()} to {array.max()})"
            raise InputError(f"{named} and {found}; use uint8 or bool.")
        array = array.astype(bool)
    if array.dtype not in (np.uint8, np.uint16, bool):
        raise InputError(f"{named} and {array.dtype} is not a picture; use uint8, uint16 or floats in [0, 1].")
    return rgba_of(array)


def as_type_of(rgba: Tensor, original: AnyImage) -> Image.Image | np.ndarray | Tensor:
    """Convert an RGBA tensor to the type that a picture was given in.

    Args:
        rgba: (4, H, W) in [0, 1].
        original: What was given.

    Returns:
        RGBA of the type and precision of `original`, a batch of one where that is one. Files and `Picture`s give a PIL
        picture; those of 16 bits an array (H, W, 4) uint16, as PIL has no 16-bit RGBA.
    """
    if isinstance(original, Tensor):
        if original.is_floating_point():
            made = rgba.to(original.device, original.dtype)
        else:
            quantised = integers(rgba, 16 if original.dtype is torch.uint16 else 8)
            made = torch.from_numpy(quantised).permute(2, 0, 1).to(original.device)
        return made[None] if original.ndim == 4 else made
    if isinstance(original, np.ndarray):
        if np.issubdtype(original.dtype, np.floating):
            array = rgba.permute(1, 2, 0).cpu().numpy().astype(original.dtype)
        elif original.dtype.kind == "u" and original.dtype.itemsize == 2:
            array = integers(rgba, 16).astype(original.dtype, copy=False)  # either byte order
        else:
            array = integers(rgba, 8)
        return array[None] if original.ndim == 4 else array
    original = read_if_file(original)
    if isinstance(original, Picture) and original.bits == 16:
        return integers(rgba, 16)
    return Image.fromarray(integers(rgba, 8))
