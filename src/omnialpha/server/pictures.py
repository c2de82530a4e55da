"""What the compatible protocols do with a cut-out: put it on a ground, crop, scale and place it, encode it."""

from __future__ import annotations

import base64
import binascii
import io
import re
import zipfile
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageColor
from torch import Tensor

from omnialpha import cutout
from omnialpha import rgba as arithmetic
from omnialpha.cutout import Box
from omnialpha.errors import InputError
from omnialpha.io.conversion import integers
from omnialpha.io.encoding import encode
from omnialpha.io.layers import Layer
from omnialpha.limits import by
from omnialpha.server.refusals import Refusal
from omnialpha.server.results import JobResult

MAX_MARGIN = 500  # pixels on each side, as remove.bg has it, where the subject is smaller
VISIBLE = 0.02  # alpha from which a pixel belongs to the subject
MEDIA = {"png": "image/png", "webp": "image/webp", "jpg": "image/jpeg", "zip": "application/zip"}
NAMES = {"png": "PNG", "webp": "WEBP", "jpg": "JPEG"}


def layer_of(made: JobResult) -> Tensor:
    """The first layer of a result, RGBA (4, H, W)."""
    return made.stack()[0].rgba


def decode_base64(text: str, name: str) -> bytes:
    """The bytes of base64, or of a data URL that holds it. InputError where it is neither."""
    body = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{name} is not base64 ({error}): encode the bytes of the file.") from error


def parse_colour(text: str, name: str) -> Tensor:
    """RGBA (4, 1, 1) of a CSS colour, also as hex digits without `#`. InputError where it is none."""
    given = text.strip()
    given = f"#{given}" if re.fullmatch(r"(?:[0-9a-fA-F]{3,4}){1,2}", given) else given
    try:
        values = cast(tuple[int, ...], ImageColor.getcolor(given, "RGBA"))
    except ValueError:
        raise InputError(f"{name}={text[:40]!r} is no colour: write white, 336699, or 33669980 with alpha.") from None
    return (torch.tensor(values) / 255).view(4, 1, 1)


def is_opaque(picture: Tensor) -> bool:
    """Whether nothing shows through, in 8 bits."""
    return bool(picture[3].min() > 1 - 0.5 / 255)


def put_on(picture: Tensor, ground: Tensor) -> Tensor:
    """A cut-out over a ground (4, 1, 1) or (4, h, w), which is cropped to fill."""
    return arithmetic.over(picture, arithmetic.crop_to_fill(ground, (int(picture.shape[1]), int(picture.shape[2]))))


def grey_png(alpha: Tensor) -> bytes:
    """The PNG of a grey map (H, W) in [0, 1]."""
    buffer = io.BytesIO()
    Image.fromarray((alpha.numpy() * 255 + 0.5).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def smooth_mask(alpha: Tensor) -> Tensor:
    """rembg's post-processing of a mask: opened by 3x3, blurred by sigma 2 over 5x5, and cut at 127 of 255."""
    from scipy import ndimage

    opened = ndimage.grey_opening(alpha.numpy(), footprint=ndimage.generate_binary_structure(2, 1))
    blurred = ndimage.gaussian_filter(opened, 2, radius=2)
    return torch.from_numpy(blurred >= 127 / 255).float()


def encode_picture(picture: Tensor, form: str) -> bytes:
    """A picture as png, webp or jpg, or as the zip of remove.bg: color.jpg and alpha.png.

    Raises:
        InputError: It is see-through, and jpg is asked for.
    """
    if form == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(zipfile.ZipInfo("color.jpg"), encode_picture(arithmetic.opaque(picture[:3]), "jpg"))
            archive.writestr(zipfile.ZipInfo("alpha.png"), grey_png(picture[3]))
        return buffer.getvalue()
    if form == "jpg" and not is_opaque(picture):
        raise InputError("format jpg has no transparency: ask for png, or give a background.")
    return encode(NAMES[form], integers(picture, 8), None, None, None)


def shrink(picture: Tensor, megapixels: float) -> Tensor:
    """The picture at no more than so many megapixels."""
    height, width = picture.shape[1:]
    scale = (megapixels * 1e6 / (height * width)) ** 0.5
    if scale >= 1:
        return picture
    return arithmetic.resize(picture, (max(round(height * scale), 1), max(round(width * scale), 1)))


def bounds(alpha: Tensor) -> Box:
    """Top, left, height and width of what is visible. InputError where nothing is."""
    box = cutout.bounds(alpha, VISIBLE)
    if box is None:
        raise InputError("no subject was found in the picture: choose one with a clear foreground.")
    return box


def length(text: str, whole: int, name: str) -> int:
    """`30px` or `10%` of `whole` in pixels. InputError for anything else, or more than the whole."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)(px|%)", text.strip())
    value = float(match[1]) * (1 if match[2] == "px" else whole / 100) if match else -1
    if not 0 <= value <= whole:
        raise InputError(f"{name}={text[:40]!r} is no length here: write pixels as 30px, or a share as 10%.")
    return round(value)


def crop_subject(picture: Tensor, margin: str, max_pixels: int) -> Tensor:
    """Crop to the subject. margin: one, two or four lengths, as in CSS; shares are of the subject."""
    box = bounds(picture[3])
    height, width = box[2:]
    words = margin.replace(",", " ").split()
    if len(words) not in (1, 2, 4):
        raise InputError(f"crop_margin={margin[:40]!r} has {len(words)} lengths: give one, two or four.")
    sides = (words * 4)[:4]  # top, right, bottom, left
    above, right, below, before = (
        length(word, max(whole, MAX_MARGIN if word.endswith("px") else 0), "crop_margin")
        for word, whole in zip(sides, (height, width) * 2, strict=True)
    )
    size = (height + above + below, width + before + right)
    if size[0] * size[1] > max_pixels:
        raise Refusal("too_large", f"crop_margin={margin[:40]!r} makes {by(size)} of the picture: use a smaller one.")
    return F.pad(cutout.cut(picture, box), (before, right, above, below))


def place_subject(picture: Tensor, scale: str, position: str) -> Tensor:
    """Scale and place the subject on a canvas of the same size.

    Args:
        picture: RGBA (4, H, W).
        scale: `original`, or the share of the canvas that the subject fills, as `80%`.
        position: `original`, `center`, or one or two shares of the free room, as `50% 100%`.
    """
    if scale == position == "original":
        return picture
    canvas = (int(picture.shape[1]), int(picture.shape[2]))
    top, left, height, width = box = bounds(picture[3])
    subject = cutout.cut(picture, box)
    if scale != "original":
        share = length(scale, 1000, "scale") / 1000
        if not scale.endswith("%") or not 0.1 <= share <= 1:
            raise InputError(f"scale={scale[:40]!r} is out of range: use 10% to 100%, or original.")
        factor = min(canvas[0] / height, canvas[1] / width) * share
        height, width = max(int(height * factor), 1), max(int(width * factor), 1)
        subject = arithmetic.resize(subject, (height, width))
        position = "center" if position == "original" else position
    room = (canvas[0] - height, canvas[1] - width)
    if position != "original":
        words = ("50% 50%" if position == "center" else position).replace(",", " ").split()
        if len(words) > 2 or not all(word.endswith("%") for word in words) or not words:
            raise InputError(f"position={position[:40]!r} is none: use original, center, or shares as 50% 100%.")
        across, down = words[0], words[-1]
        top, left = length(down, room[0], "position"), length(across, room[1], "position")
    return Layer("subject", subject, (top, left)).placed(canvas)
