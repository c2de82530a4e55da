"""From integer RGBA samples to the bytes of a PNG, WebP, JPEG or TIFF file; used by files.py alone."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

SETTINGS = "omnialpha"  # the PNG text chunk that holds the settings a picture was made with
Dpi = tuple[float, float] | None


def encode(name: str, array: np.ndarray, text: str | None, icc: bytes | None, dpi: Dpi) -> bytes:
    """(H, W, 4) uint8 or uint16 -> a file of the format `name`; `text` (ASCII) goes into PNG alone."""
    buffer = BytesIO()
    profile: dict[str, Any] = {"icc_profile": icc} if icc else {}
    if name == "PNG" and array.dtype == np.uint16:
        buffer.write(_png16(array, text, icc, dpi))
    elif name == "PNG":
        info = PngInfo()
        if text is not None:
            info.add_text(SETTINGS, text)
        Image.fromarray(array).save(buffer, name, pnginfo=info, **profile, **({"dpi": dpi} if dpi else {}))
    elif name == "WEBP":
        exif = Image.Exif()
        exif.update({282: dpi[0], 283: dpi[1], 296: 2} if dpi else {})
        # exact: the colour under alpha 0 is kept too
        Image.fromarray(array).save(buffer, name, lossless=True, exact=True, exif=exif, **profile)
    elif name == "JPEG":
        rgb = Image.fromarray(np.ascontiguousarray(array[..., :3]))
        rgb.save(buffer, name, quality=95, subsampling=0, dpi=dpi or (0, 0), **profile)
    else:
        import tifffile

        options: dict[str, Any] = {"resolution": dpi, "resolutionunit": "INCH"} if dpi else {}
        options |= {"photometric": "rgb", "extrasamples": ["unassalpha"], "compression": "adobe_deflate"}
        tifffile.imwrite(buffer, array, metadata=None, software=False, iccprofile=icc, **options)
    return buffer.getvalue()


def _png16(array: np.ndarray, text: str | None, icc: bytes | None, dpi: Dpi) -> bytes:
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
    if text is not None:
        chunks.append((b"tEXt", SETTINGS.encode() + b"\0" + text.encode("ascii")))
    chunks += [(b"IDAT", zlib.compress(filtered.tobytes())), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
