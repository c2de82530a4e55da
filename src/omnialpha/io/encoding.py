"""From integer RGBA samples to the bytes of a PNG, WebP, JPEG or TIFF file; used by `writing` alone."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from omnialpha.io.metadata import MARK, SETTINGS, Metadata, tiff_tags, with_resolution

Dpi = tuple[float, float] | None
NOTHING = Metadata()


def encode(
    name: str, array: np.ndarray, text: str | None, icc: bytes | None, dpi: Dpi, kept: Metadata = NOTHING
) -> bytes:
    """Encode integer samples.

    Args:
        name: PNG, WEBP (lossless), JPEG (without alpha) or TIFF.
        array: Straight RGBA (H, W, 4), uint8, or uint16 for PNG and TIFF.
        text: Settings in ASCII, for PNG alone.
        icc, dpi: Profile and resolution (x, y) to embed.
        kept: Metadata that the format has room for.

    Returns:
        The bytes of the file.
    """
    buffer = BytesIO()
    profile: dict[str, Any] = {"icc_profile": icc} if icc else {}
    if name == "PNG" and array.dtype == np.uint16:
        buffer.write(_png16(array, _texts(text, kept), icc, dpi, kept.exif))
    elif name == "PNG":
        profile |= {"dpi": dpi} if dpi else {}
        profile |= {"exif": kept.exif} if kept.exif else {}
        Image.fromarray(array).save(buffer, name, pnginfo=_texts(text, kept), **profile)
    elif name == "WEBP":
        profile |= {"exif": with_resolution(kept.exif, dpi) or b"", "xmp": kept.xmp or b""}
        # exact: the colour under alpha 0 is kept too
        Image.fromarray(array).save(buffer, name, lossless=True, exact=True, **profile)
    elif name == "JPEG":
        rgb = Image.fromarray(np.ascontiguousarray(array[..., :3]))
        profile |= {"exif": MARK + kept.exif} if kept.exif else {}
        profile |= {"xmp": kept.xmp} if kept.xmp else {}
        rgb.save(buffer, name, quality=95, subsampling=0, dpi=dpi or (0, 0), **profile)
    else:
        import tifffile

        options: dict[str, Any] = {"resolution": dpi, "resolutionunit": "INCH"} if dpi else {}
        options |= {"photometric": "rgb", "extrasamples": ["unassalpha"], "compression": "adobe_deflate"}
        options |= {"metadata": None, "software": False, "iccprofile": icc, "extratags": tiff_tags(kept)}
        tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def _texts(settings: str | None, kept: Metadata) -> PngInfo:
    """The text chunks of a PNG: the settings, the input's own, its XMP."""
    info = PngInfo()
    if settings is not None:
        info.add_text(SETTINGS, settings)
    for key, value in kept.text.items():
        info.add_text(key, value)
    if kept.xmp:
        info.add_itxt("XML:com.adobe.xmp", kept.xmp)
    return info


def _png16(array: np.ndarray, texts: PngInfo, icc: bytes | None, dpi: Dpi, exif: bytes | None) -> bytes:
    """(H, W, 4) uint16 -> a 16-bit RGBA PNG (Pillow writes 8 bits only); every row uses the filter `Sub`."""
    height, width = array.shape[:2]
    rows = array.astype(">u2").reshape(height, -1).view(np.uint8)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = 1
    filtered[:, 1:9] = rows[:, :8]
    filtered[:, 9:] = rows[:, 8:] - rows[:, :-8]  # modulo 256, as the format asks
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 6, 0, 0, 0))]
    if icc:
        chunks.append((b"iCCP", b"icc\0\0" + zlib.compress(icc)))
    if dpi:
        chunks.append((b"pHYs", struct.pack(">IIB", round(dpi[0] / 0.0254), round(dpi[1] / 0.0254), 1)))
    chunks += [(kind, data) for kind, data, _ in texts.chunks]
    chunks += [(b"eXIf", exif)] if exif else []
    chunks += [(b"IDAT", zlib.compress(filtered.tobytes())), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
