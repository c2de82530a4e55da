"""From an opened picture of any mode to a `Picture` in straight-alpha sRGB; used by this folder alone."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageFile

from omnialpha.errors import InputError
from omnialpha.io import colour, metadata, tiffs
from omnialpha.io.samples import Picture, check_frame, check_unit_range, decoder_errors, orient, rgba_of, to_tensor
from omnialpha.io.sources import SourceFile

ORIENTATION, PHOTOMETRIC = 274, 262  # EXIF and TIFF tags
GREY_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
OWN_COLOUR = ("CMYK", "LAB", "YCbCr", "HSV")  # converted to RGB by Pillow before anything else
# Pillow keeps one byte of a 16-bit sample. The unpacker for the other byte order keeps the other byte.
OTHER_BYTE = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
SMALL_GREY = {"L;2": 85, "L;4": 17}  # PNG of 2 and 4 bits: factor to 8 bits
if sys.byteorder == "little":  # compressed TIFF arrives in the machine's order
    OTHER_BYTE |= {"RGB;16N": "RGB;16B", "RGBA;16N": "RGBA;16B"}

Converted = tuple[np.ndarray, np.ndarray | None, bytes | None]  # sRGB, the colours before, the profile to go back to


def decode(
    image: Image.Image, source: SourceFile | None = None, *, frame: int | None = None, data: bool = False
) -> Picture:
    """Decode an opened picture, upright.

    Args:
        image: As Pillow opened it.
        source: Its file, from which 16 bits, associated alpha and metadata are read in full.
        frame: From 0 on; None: the first, with a note if there are more.
        data: Samples as stored, whatever their profile.
    """
    name = source.name if source else "The picture"
    with decoder_errors():
        several = check_frame(frame, getattr(image, "n_frames", 1), name)
        if frame is not None:
            image.seek(frame)
    raw, is_tiff = _rawmode(image), image.format == "TIFF"
    pixels, bits, notes = tiffs.read(source, frame)[:3] if source and is_tiff else (None, 8, [])
    with decoder_errors():
        exif = image.getexif()
        if pixels is None:
            image.load()
    if pixels is None:
        deep = _sixteen_bit(image, raw, None if frame else source, name)
        pixels, bits = (deep, 16) if deep is not None else (_eight_bit(image, raw), 8)
    notes += several
    icc, stored, profile = image.info.get("icc_profile"), None, None
    if icc and not data:
        if image.mode == "CMYK" and _space(icc) == "CMYK" and _by_pillow(image.crop((0, 0, 1, 1))) is not None:
            notes.append("CMYK was converted to sRGB")
        pixels, stored, profile = _to_srgb(pixels, icc, image.mode, notes)
    turn = 1 if is_tiff else exif.get(ORIENTATION, 1)  # TIFF is upright already, by `tiffs` or Pillow
    rgba, before = to_tensor(orient(pixels, turn)), None if stored is None else to_tensor(orient(stored, turn))
    dpi = _dpi(image)
    dpi = dpi[::-1] if dpi and turn in (5, 6, 7, 8) else dpi
    if source is None:
        return Picture(rgba, profile, dpi, bits, tuple(notes), stored=before)
    with decoder_errors():
        kept, more = metadata.read(image, (rgba.shape[2], rgba.shape[1]))
    return Picture(rgba, profile, dpi, bits, (*notes, *more), source.path, before, kept)


def decode_tiff(source: SourceFile, *, frame: int | None = None, data: bool = False) -> Picture:
    """Decode a TIFF that Pillow cannot open at all, such as RGB floats or 16-bit grey with alpha."""
    pixels, bits, notes, icc, grey = tiffs.read(source, frame, alone=True)
    assert pixels is not None
    stored, profile = None, None
    if icc and not data:
        pixels, stored, profile = _to_srgb(pixels, icc, "L" if grey else "RGB", notes)
    before = None if stored is None else to_tensor(stored)
    return Picture(to_tensor(pixels), profile, None, bits, tuple(notes), source.path, before)


def _eight_bit(image: Image.Image, raw: str) -> np.ndarray:
    """RGBA (H, W, 4) of a picture that Pillow holds in full."""
    if raw in SMALL_GREY and "transparency" in image.info:  # Pillow scales these samples, but not their key
        image.info["transparency"] *= SMALL_GREY[raw]
    if image.mode == "CMYK" and image.info.get("icc_profile"):
        image = _by_pillow(image) or image
    elif image.mode == "LAB":
        image = _by_pillow(image, ImageCms.createProfile("LAB")) or image
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


def _space(icc: bytes) -> str:
    return {b"GRAY": "grey", b"RGB ": "RGB", b"CMYK": "CMYK", b"Lab ": "Lab"}.get(icc[16:20], "other")


def _to_srgb(pixels: np.ndarray, icc: bytes, mode: str, notes: list[str]) -> Converted:
    """Pixels (H, W, 4) from an embedded profile to sRGB; what is lost is added to the notes."""
    if mode in OWN_COLOUR:
        return pixels, None, None
    try:
        profile = colour.parse(icc)
    except ValueError as error:
        notes.append(f"the embedded profile was ignored: {error}")
        return pixels, None, None
    rgb, alpha, space = pixels[..., :3], pixels[..., 3:], _space(icc)
    if space == "grey" and mode not in GREY_MODES or space not in ("grey", "RGB"):
        notes.append(f"the embedded {space} profile does not belong to a {mode} picture and was ignored")
        return pixels, None, None
    if profile is None:
        flat = Image.fromarray((rgb * 255 + 0.5).astype(np.uint8))
        flat.info["icc_profile"] = icc
        table = _by_pillow(flat)
        if table is None:
            notes.append("the embedded profile is damaged and was ignored")
            return pixels, rgb, None
        notes.append("the embedded profile is a table: converted to sRGB in 8 bits, and not kept")
        return np.concatenate([np.asarray(table, np.float32) / 255, alpha], axis=-1), rgb, None
    if profile.is_srgb():
        return pixels, None, icc
    converted, clipped = profile.to_srgb(rgb)
    if clipped:
        notes.append("some colours lie outside sRGB and are clipped, but where they are copied to a file")
    return np.concatenate([converted, alpha], axis=-1), rgb, None if profile.grey else icc


def _sixteen_bit(image: Image.Image, raw: str, source: SourceFile | None, name: str) -> np.ndarray | None:
    """RGBA (H, W, 4) of a loaded picture with more than 8 bits a channel; else None.

    I;16 and I hold 0 to 65535, F holds 0 to 1; InputError for what lies outside."""
    key = image.info.get("transparency")  # PNG: the one transparent grey value or RGB triple
    if image.mode == "F":
        return rgba_of(check_unit_range(np.asarray(image), name))
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
    return pixels


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
