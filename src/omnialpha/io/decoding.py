"""From an opened picture of any mode to straight-alpha sRGB samples; used by this folder alone."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageFile

from omnialpha.errors import InputError
from omnialpha.io import colour, metadata, tiffs
from omnialpha.io.samples import Decoded, check_unit_range, decoder_errors, orient, rgba_of
from omnialpha.io.sources import SourceFile

ORIENTATION, PHOTOMETRIC = 274, 262  # EXIF and TIFF tags
GREY_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
OWN_COLOUR = ("CMYK", "LAB", "YCbCr", "HSV")  # converted to RGB by Pillow before anything else
# Pillow keeps one byte of a 16-bit sample. The unpacker for the other byte order keeps the other byte.
OTHER_BYTE = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
SMALL_GREY = {"L;2": 85, "L;4": 17}  # PNG of 2 and 4 bits: factor to 8 bits
if sys.byteorder == "little":  # compressed TIFF arrives in the machine's order
    OTHER_BYTE |= {"RGB;16N": "RGB;16B", "RGBA;16N": "RGBA;16B"}


def decode(
    image: Image.Image, source: SourceFile | None = None, *, frame: int | None = None, data: bool = False
) -> Decoded:
    """An opened picture, upright. With its `source`, 16 bits, associated alpha and metadata are read in full.

    frame: from 0 on; None: the first, with a note if there are more. data: samples as stored, whatever their profile.
    """
    name = source.name if source else "The picture"
    with decoder_errors():
        frames = getattr(image, "n_frames", 1)
        check_frame(frame, frames, name)
        if frame is not None:
            image.seek(frame)
    raw, is_tiff = _rawmode(image), image.format == "TIFF"
    pixels, bits, notes = tiffs.read(source, frame or 0) if source and is_tiff else (None, 8, [])
    with decoder_errors():
        exif = image.getexif()
        if pixels is None:
            image.load()
    if pixels is None:
        deep = _sixteen_bit(image, raw, None if frame else source, name)
        pixels, bits = deep or (_eight_bit(image, raw), 8)
    done = Decoded(pixels, bits, notes=notes)
    if frame is None and frames > 1:
        done.notes.append(f"first of {frames} frames")
    if image.info.get("icc_profile") and not data:
        _apply_profile(done, image)
    turn = 1 if is_tiff else exif.get(ORIENTATION, 1)  # TIFF is upright already, by `tiffs` or Pillow
    turn = turn if turn in range(1, 9) else 1
    done.pixels = np.ascontiguousarray(orient(done.pixels, turn))
    done.stored = None if done.stored is None else np.ascontiguousarray(orient(done.stored, turn))
    dpi = _dpi(image)
    done.dpi = dpi[::-1] if dpi and turn >= 5 else dpi
    if source:
        with decoder_errors():
            done.metadata, more = metadata.read(image, (done.pixels.shape[1], done.pixels.shape[0]))
        done.notes += more
    return done


def decode_unknown(source: SourceFile, *, frame: int | None = None, data: bool = False) -> Decoded:
    """A TIFF that Pillow cannot open at all, such as RGB floats or 16-bit grey with alpha."""
    frames = tiffs.count(source)
    check_frame(frame, frames, source.name)
    pixels, bits, notes = tiffs.read(source, frame or 0, alone=True)
    assert pixels is not None
    done = Decoded(pixels, bits, notes=list(notes))
    if frame is None and frames > 1:
        done.notes.append(f"first of {frames} frames")
    profile, grey = tiffs.profile(source, frame or 0)
    if profile and not data:
        stand_in = Image.new("L" if grey else "RGB", (1, 1))
        stand_in.info["icc_profile"] = profile
        _apply_profile(done, stand_in)
    return done


def check_frame(frame: int | None, frames: int, name: str) -> None:
    """InputError where there is no such frame, counted from 0."""
    if frame is not None and not 0 <= frame < frames:
        last = f"; use 0 to {frames - 1}" if frames > 1 else ", number 0; leave the frame out"
        raise InputError(f"{name} has no frame {frame}, as it has {frames}{last}.")


def _eight_bit(image: Image.Image, raw: str) -> np.ndarray:
    """RGBA (H, W, 4) of a picture that Pillow holds in full."""
    if raw in SMALL_GREY and "transparency" in image.info:  # Pillow scales these samples, but not their key
        image.info["transparency"] *= SMALL_GREY[raw]
    if image.mode == "CMYK" and image.info.get("icc_profile"):
        converted = _by_pillow(image)
        image = image if converted is None else converted
    elif image.mode == "LAB":
        converted = _by_pillow(image, ImageCms.createProfile("LAB"))
        image = image if converted is None else converted
    if image.mode == "La":  # premultiplied; Pillow goes no further at once
        image = image.convert("LA")
    return rgba_of(np.asarray(image.convert("RGBA")))


def _by_pillow(image: Image.Image, source: Any = None) -> Image.Image | None:
    """8-bit conversion to sRGB by the colour engine, for profiles that are tables; None where it refuses."""
    try:
        profile = source or ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return None


def _apply_profile(done: Decoded, image: Image.Image) -> None:
    """Converts done.pixels from the embedded profile to sRGB and notes what is lost."""
    data: bytes = image.info["icc_profile"]
    space = {b"GRAY": "grey", b"RGB ": "RGB", b"CMYK": "CMYK", b"Lab ": "Lab"}.get(data[16:20], "other")
    if image.mode in OWN_COLOUR:
        if image.mode == "CMYK" and space == "CMYK" and _by_pillow(image.crop((0, 0, 1, 1))) is not None:
            done.notes.append("CMYK was converted to sRGB")
        return
    try:
        profile = colour.parse(data)
    except ValueError as error:
        done.notes.append(f"the embedded profile was ignored: {error}")
        return
    if space == "grey" and image.mode not in GREY_MODES or space not in ("grey", "RGB"):
        done.notes.append(f"the embedded {space} profile does not belong to a {image.mode} picture and was ignored")
    elif profile is None:
        done.stored = done.pixels[..., :3].copy()
        flat = Image.fromarray((done.pixels[..., :3] * 255 + 0.5).astype(np.uint8))
        flat.info["icc_profile"] = data
        converted = _by_pillow(flat)
        if converted is None:
            done.notes.append("the embedded profile is damaged and was ignored")
        else:
            done.pixels[..., :3] = np.asarray(converted, np.float32) / 255
            done.notes.append("the embedded profile is a table: converted to sRGB in 8 bits, and not kept")
    elif profile.is_srgb():
        done.profile = data
    else:
        done.stored = done.pixels[..., :3].copy()
        done.pixels[..., :3], clipped = profile.to_srgb(done.pixels[..., :3])
        done.profile = None if profile.grey else data
        if clipped:
            done.notes.append("some colours lie outside sRGB and are clipped, but where they are copied to a file")


def _sixteen_bit(image: Image.Image, raw: str, source: SourceFile | None, name: str) -> tuple[np.ndarray, int] | None:
    """RGBA (H, W, 4) and 16, of a loaded picture with more than 8 bits a channel; else None.

    I;16 and I hold 0 to 65535, F holds 0 to 1; InputError for what lies outside."""
    key = image.info.get("transparency")  # PNG: the one transparent grey value or RGB triple
    if image.mode == "F":
        return rgba_of(check_unit_range(np.asarray(image), name)), 16
    if image.mode.startswith("I"):
        samples = _grey_integers(image, raw, source is None, name)
    elif source is None:
        return None
    elif raw == "LA;16B":  # grey and alpha, two bytes each: read as four channels of one byte
        samples = np.ascontiguousarray(_reread(source, raw, "RGBA")).view(">u2").astype(np.uint16)
    elif raw in OTHER_BYTE:
        low = _reread(source, raw, OTHER_BYTE[raw]).astype(np.uint16)
        samples = np.asarray(image).astype(np.uint16) << 8 | low
    else:
        return None
    pixels = rgba_of(samples)
    if key is not None and (samples.ndim == 2 or samples.shape[-1] == 3):
        pixels[(samples.reshape(*samples.shape[:2], -1) == np.asarray(key)).all(-1), 3] = 0
    return pixels, 16


def _grey_integers(image: Image.Image, raw: str, in_memory: bool, name: str) -> np.ndarray:
    """(H, W) uint16 of the modes I;16 (12 bits too) and I, which is 16 bits in a 32-bit integer."""
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise InputError(f"{name} holds integers from {low} to {high}, not 0 to 65535; scale it to 16 bits first.")
    if in_memory and image.mode == "I" and 0 < high <= 255:
        raise InputError(
            f"{name} is of mode I, which is read as 16 bits, but its highest value is {high}: "
            'convert("L") makes it 8 bits, multiplying by 257 makes it 16.'
        )
    if raw == "I;12":
        return ((values.astype(np.uint32) * 65535 + 2047) // 4095).astype(np.uint16)
    samples = values.astype(np.uint16)
    if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0:
        samples = ~samples  # white is zero; Pillow inverts 8-bit files only
    return samples


def _rawmode(image: Image.Image) -> str:
    """How the file's bytes become samples, e.g. "RGB;16B"; "" for a picture that is in memory."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    return str(tiles[0].args[0] if isinstance(tiles[0].args, tuple) else tiles[0].args)


def _reread(source: SourceFile, raw: str, instead: str) -> np.ndarray:
    """The file's samples (H, W, C) uint8, unpacked as `instead` says rather than as `raw`."""
    with source.open() as file, decoder_errors(), Image.open(file) as twin:
        assert isinstance(twin, ImageFile.ImageFile) and _rawmode(twin) == raw
        twin.tile = [
            tile._replace(args=(instead, *tile.args[1:]) if isinstance(tile.args, tuple) else instead)
            for tile in twin.tile
        ]
        return np.asarray(twin)


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    """Dots per inch (x, y) from the header or EXIF; None if unknown or no numbers."""
    exif = image.getexif()
    per_inch = {2: 1.0, 3: 2.54}.get(exif.get(296, 2), 0.0)
    try:
        x, y = map(float, image.info.get("dpi") or (exif.get(282, 0) * per_inch, exif.get(283, 0) * per_inch))
    except (TypeError, ValueError, ZeroDivisionError):  # the file holds something else there
        return None
    return (x, y) if x > 0 and y > 0 else None
