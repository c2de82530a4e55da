"""EXIF, XMP and text chunks of a picture, made true of what is written: upright, no thumbnail, the size that it has."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

SETTINGS = "omnialpha"  # the PNG text chunk that holds the settings a picture was made with
MARK = b"Exif\0\0"  # before the EXIF of a JPEG
ORIENTATION, EXIF_IFD, WIDTH, HEIGHT = 274, 0x8769, 0xA002, 0xA003
THUMBNAIL, THUMBNAIL_BYTES = 0x201, 0x202
# Tags of a TIFF that tell of the picture, not of how the file is laid out: description, maker, model, software, date,
# artist, copyright, and the parts of EXIF and GPS.
COPIED_TAGS = (270, 271, 272, 305, 306, 315, 33432, EXIF_IFD, 0x8825)
LAYOUT = ('{"shape', "ImageJ=", "<?xml")  # descriptions that programs read as the layout of the file
NOT_TEXT = ("XML:com.adobe.xmp", SETTINGS)
SEGMENT = 65533  # bytes that a segment of a JPEG holds
XMP_MARK = 29  # bytes of them that say it is XMP


@dataclass(frozen=True)
class Metadata:
    """exif: from its byte order on, without the mark of JPEG. xmp: UTF-8. text: the chunks of a PNG."""

    exif: bytes | None = None
    xmp: bytes | None = None
    text: Mapping[str, str] = field(default_factory=dict)


def read(image: Image.Image, size: tuple[int, int]) -> tuple[Metadata, list[str]]:
    """What a decoded picture, upright of `size` (width, height), carries, and notes on what is damaged."""
    notes = []
    exif = _exif(image)
    if exif:
        try:
            exif = upright(exif, size)
        except (struct.error, KeyError):
            exif = None
            notes.append("the EXIF is damaged and was left out")
    xmp = image.info.get("xmp")
    if isinstance(xmp, bytes):
        xmp = re.sub(rb"(tiff:Orientation\s*(?:=\s*[\"']|>)\s*)\d+", rb"\g<1>1", xmp)
    text = {
        key: value
        for key, value in getattr(image, "text", {}).items()
        if key not in NOT_TEXT and not key.startswith("Raw profile type")  # hexadecimal EXIF, ICC and others
    }
    return Metadata(exif or None, xmp if isinstance(xmp, bytes) else None, text), notes


def _exif(image: Image.Image) -> bytes | None:
    stored = image.info.get("exif")
    if isinstance(stored, bytes):
        return stored.removeprefix(MARK)
    if image.format != "TIFF" and "Raw profile type exif" not in image.info:
        return None
    whole, kept = image.getexif(), Image.Exif()
    for tag in COPIED_TAGS:
        value: Any = whole.get_ifd(tag) if tag in (EXIF_IFD, 0x8825) else whole.get(tag)
        if value and not str(value).startswith(LAYOUT):
            kept[tag] = value
    return kept.tobytes(8).removeprefix(MARK) if len(kept) else None


def upright(exif: bytes, size: tuple[int, int]) -> bytes:
    """EXIF bytes with orientation 1, `size` (width, height) and no thumbnail, all else in its place.

    struct.error or KeyError where they are damaged."""
    order = {b"II": "<", b"MM": ">"}[exif[:2]]
    data = bytearray(exif)

    def long(place: int) -> int:
        return int(struct.unpack_from(order + "I", data, place)[0])

    values = {ORIENTATION: 1, WIDTH: size[0], HEIGHT: size[1]}
    main, end = _directory(data, order, long(4))
    inner, _ = _directory(data, order, long(main[EXIF_IFD][1])) if EXIF_IFD in main else ({}, 0)
    for directory in (main, inner):
        for tag in values.keys() & directory.keys():
            kind, place = directory[tag]
            if kind in (3, 4):  # SHORT, LONG
                struct.pack_into(order + ("H" if kind == 3 else "I"), data, place, values[tag])
    if following := long(end):
        struct.pack_into(order + "I", data, end, 0)
        thumbnail = {tag: long(place) for tag, (_, place) in _directory(data, order, following)[0].items()}
        first, count = thumbnail.get(THUMBNAIL, 0), thumbnail.get(THUMBNAIL_BYTES, 0)
        if first + count >= len(data) - 1:  # the last thing there, but for a byte that makes the length even
            del data[first if first else len(data) :]
        else:
            data[first : first + count] = bytes(count)
    return bytes(data)


def _directory(data: bytearray, order: str, start: int) -> tuple[dict[int, tuple[int, int]], int]:
    """Type and place (of the value, or of where that lies) of each tag; and where the place of the next one stands."""
    end = start + 2 + 12 * struct.unpack_from(order + "H", data, start)[0]
    entries = {}
    for at in range(start + 2, end, 12):
        tag, kind, _, _ = struct.unpack_from(order + "HHII", data, at)
        entries[tag] = kind, at + 8
    return entries, end


def with_resolution(exif: bytes | None, dpi: tuple[float, float] | None) -> bytes | None:
    """EXIF that says `dpi`; as it is where there is none to say, or it has a resolution of its own."""
    made = _loaded(exif)
    if dpi is None or 282 in made:
        return exif
    made.update({282: dpi[0], 283: dpi[1], 296: 2})
    return made.tobytes(8).removeprefix(MARK)


def fit_to_format(data: Metadata, form: str) -> tuple[Metadata, list[str]]:
    """What a file of the format `form` can hold of it, and notes on what it cannot."""
    notes = []

    def drop(what: str, **without: Any) -> None:
        nonlocal data
        data = replace(data, **without)
        notes.append(f"{form} has no room for the {what} of the input: left out")

    if data.text and form != "PNG":
        drop("text " + ", ".join(sorted(data.text)), text={})
    if form == "JPEG" and data.exif and len(data.exif) + len(MARK) > SEGMENT:
        drop(f"EXIF ({len(data.exif):,} bytes)", exif=None)
    if form == "JPEG" and data.xmp and len(data.xmp) + XMP_MARK > SEGMENT:
        drop(f"XMP ({len(data.xmp):,} bytes)", xmp=None)
    if form == "TIFF" and any(tag in COPIED_TAGS[-2:] for tag in _loaded(data.exif)):
        notes.append("TIFF has room for the maker, date, artist and words of the input's EXIF, not for the rest")
    return data, notes


def _loaded(exif: bytes | None) -> Image.Exif:
    made = Image.Exif()
    if exif:
        made.load(exif)
    return made


def tiff_tags(data: Metadata) -> list[tuple[int, int, int, bytes, bool]]:
    """The words of the EXIF and the XMP as extra tags of a TIFF: code, type, count, value, first page alone."""
    words = _loaded(data.exif)
    texts = {tag: str(words[tag]).encode("ascii", "replace") + b"\0" for tag in COPIED_TAGS[:-2] if tag in words}
    tags = [(tag, 2, len(text), text, True) for tag, text in texts.items()]
    return tags + ([(700, 1, len(data.xmp), data.xmp, True)] if data.xmp else [])
