"""From an opened picture of any mode to straight-alpha sRGB samples; used by files.py alone."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError

from omnialpha import icc

ORIENTATION, PHOTOMETRIC = 274, 262  # EXIF and TIFF tags
GREY_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
OWN_COLOUR = ("CMYK", "LAB", "YCbCr", "HSV")  # converted to RGB by Pillow before anything else
MAX_PIXELS = 89_478_485  # Pillow's own guard; 1.4 GB as float RGBA. 20000 x 4000 passes
# Pillow keeps one byte of a 16-bit sample. The unpacker for the other byte order keeps the other byte.
OTHER_BYTE = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
SMALL_GREY = {"L;2": 85, "L;4": 17}  # PNG of 2 and 4 bits: factor to 8 bits
if sys.byteorder == "little":  # compressed TIFF arrives in the machine's order
    OTHER_BYTE |= {"RGB;16N": "RGB;16B", "RGBA;16N": "RGBA;16B"}


@dataclass
class Decoded:
    """Straight sRGB pixels (H, W, 4) float32 in [0, 1], with what has to be remembered about their file."""

    pixels: np.ndarray
    bits: int = 8
    profile: bytes | None = None  # an RGB profile that pixels can be converted back to
    dpi: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)


def decode(image: Image.Image, path: Path | None = None) -> Decoded:
    """First frame of an opened picture, upright; with its `path`, 16 bits and associated alpha are read in full."""
    frames, raw = getattr(image, "n_frames", 1), _rawmode(image)
    is_tiff = image.format == "TIFF"
    exact = _tiff(path) if path and is_tiff else None
    if exact is None:
        exact = _sixteen_bit(image, path)
    if exact is None:
        exact = _eight_bit(image, raw), 8
    done = Decoded(*exact)
    if frames > 1:
        done.notes.append(f"first of {frames} frames")
    if image.info.get("icc_profile"):
        _apply_profile(done, image)
    turn = 1 if is_tiff else image.getexif().get(ORIENTATION, 1)  # TIFF is upright already, by _tiff or Pillow
    done.pixels = np.ascontiguousarray(orient(done.pixels, turn))
    dpi = _dpi(image)
    done.dpi = dpi[::-1] if dpi and turn >= 5 else dpi
    return done


def decode_unknown(path: Path) -> Decoded:
    """A TIFF that Pillow cannot open at all, such as RGB floats or 16-bit grey with alpha."""
    with path.open("rb") as file:
        is_tiff = file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    exact = _tiff(path) if is_tiff else None
    if exact is None:
        raise UnidentifiedImageError(path)
    return Decoded(*exact)


def orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) as stored -> upright, for EXIF orientations 1 to 8; other values are left alone."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def rgba_of(samples: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 1..4) integers, bools or floats -> straight RGBA (H, W, 4) float32 in [0, 1]."""
    if samples.ndim == 2:
        samples = samples[..., None]
    if samples.dtype == bool or np.issubdtype(samples.dtype, np.floating):
        values = samples.astype(np.float32)
    else:
        values = (samples / np.float64(np.iinfo(samples.dtype).max)).astype(np.float32)
    channels = values.shape[-1]
    colour = values[..., :3] if channels >= 3 else values[..., :1].repeat(3, -1)
    alpha = values[..., -1:] if channels in (2, 4) else np.ones_like(values[..., :1])
    return np.concatenate([colour, alpha], axis=-1)


def _eight_bit(image: Image.Image, raw: str) -> np.ndarray:
    """RGBA (H, W, 4) of a picture that Pillow holds in full."""
    if raw in SMALL_GREY and "transparency" in image.info:  # Pillow scales these samples, but not their key
        image.load()
        image.info["transparency"] *= SMALL_GREY[raw]
    if image.mode == "CMYK" and image.info.get("icc_profile"):
        converted = _by_pillow(image)
        image = image if converted is None else converted
    elif image.mode == "LAB":
        converted = _by_pillow(image, ImageCms.createProfile("LAB"))
        image = image if converted is None else converted
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
        profile = icc.parse(data)
    except ValueError as error:
        done.notes.append(f"the embedded profile was ignored: {error}")
        return
    if space == "grey" and image.mode not in GREY_MODES or space not in ("grey", "RGB"):
        done.notes.append(f"the embedded {space} profile does not belong to a {image.mode} picture and was ignored")
    elif profile is None:
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
        done.pixels[..., :3], clipped = profile.to_srgb(done.pixels[..., :3])
        done.profile = None if profile.grey else data
        if clipped:
            done.notes.append("some colours lie outside sRGB and were clipped")


def _sixteen_bit(image: Image.Image, path: Path | None) -> tuple[np.ndarray, int] | None:
    """RGBA (H, W, 4) and 16, of a picture with more than 8 bits a channel; else None."""
    raw = _rawmode(image)
    key = image.info.get("transparency")  # PNG: the one transparent grey value or RGB triple
    if image.mode.startswith("I;16") or image.mode == "I":  # I: 16 bits in a 32-bit integer
        samples: np.ndarray = np.asarray(image).clip(0, 65535).astype(np.uint16)
        if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0:
            samples = ~samples  # white is zero; Pillow inverts 8-bit files only
    elif image.mode == "F":
        return rgba_of(np.asarray(image).clip(0, 1)), 16
    elif path is None:
        return None
    elif raw == "LA;16B":  # grey and alpha, two bytes each: read as four channels of one byte
        samples = np.ascontiguousarray(_reread(path, raw, "RGBA")).view(">u2").astype(np.uint16)
    elif raw in OTHER_BYTE:
        low = _reread(path, raw, OTHER_BYTE[raw]).astype(np.uint16)
        samples = np.asarray(image).astype(np.uint16) << 8 | low
    else:
        return None
    pixels = rgba_of(samples)
    if key is not None and (samples.ndim == 2 or samples.shape[-1] == 3):
        pixels[(samples.reshape(*samples.shape[:2], -1) == np.asarray(key)).all(-1), 3] = 0
    return pixels, 16


def _rawmode(image: Image.Image) -> str:
    """How the file's bytes become samples, e.g. "RGB;16B"; "" for a picture that is in memory."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    return str(tiles[0].args[0] if isinstance(tiles[0].args, tuple) else tiles[0].args)


def _reread(path: Path, raw: str, instead: str) -> np.ndarray:
    """The file's samples (H, W, C) uint8, unpacked as `instead` says rather than as `raw`."""
    with Image.open(path) as twin:
        assert isinstance(twin, ImageFile.ImageFile) and _rawmode(twin) == raw
        twin.tile = [
            tile._replace(args=(instead, *tile.args[1:]) if isinstance(tile.args, tuple) else instead)
            for tile in twin.tile
        ]
        return np.asarray(twin)


def _tiff(path: Path) -> tuple[np.ndarray, int] | None:
    """RGBA (H, W, 4), upright, and bits of a grey or RGB TIFF of 16 bits, floats or associated alpha.

    None leaves the file to Pillow."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        associated = 1 in page.extrasamples
        plain = page.dtype == np.uint8 and not associated
        if plain or page.photometric not in (0, 1, 2) or page.dtype not in (np.uint8, np.uint16, np.float32):
            return None
        if page.imagewidth * page.imagelength > MAX_PIXELS:
            raise Image.DecompressionBombError
        turn = page.tags.valueof(ORIENTATION, 1)
        if any(map(lambda a, n: a + n > path.stat().st_size, page.dataoffsets, page.databytecounts)):
            raise OSError("the file is truncated")
        try:
            samples = page.asarray()
        except ValueError:  # a compression that needs an extra package; Pillow's libtiff knows most
            return None
        if page.planarconfig == 2 and samples.ndim == 3:
            samples = np.moveaxis(samples, 0, -1)
    samples = samples.reshape(*samples.shape[:2], -1)
    if page.dtype == np.float32:
        samples = samples.clip(0, 1)
    if page.photometric == 0:
        samples = (1 if page.dtype == np.float32 else np.iinfo(page.dtype).max) - samples
    colours = 3 if page.photometric == 2 else 1
    alphas = [colours + i for i, kind in enumerate(page.extrasamples) if kind in (1, 2)][:1]
    pixels = rgba_of(samples[..., [*range(colours), *alphas]])
    if associated:
        alpha = pixels[..., 3:]
        pixels[..., :3] = np.divide(pixels[..., :3], alpha, out=np.zeros_like(pixels[..., :3]), where=alpha > 0)
    return orient(pixels.clip(0, 1), turn), 8 if page.dtype == np.uint8 else 16


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    """Dots per inch (x, y) from the header or EXIF; None if unknown."""
    exif = image.getexif()
    per_inch = {2: 1.0, 3: 2.54}.get(exif.get(296, 2), 0.0)
    x, y = image.info.get("dpi") or (exif.get(282, 0) * per_inch, exif.get(283, 0) * per_inch)
    return (float(x), float(y)) if x > 0 and y > 0 else None
