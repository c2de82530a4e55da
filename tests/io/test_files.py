"""Reading every kind of picture right, writing them whole, and one sentence for every mistake."""

import os
import resource
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from omnialpha.errors import InputError
from omnialpha.io import (
    FORMATS,
    as_type_of,
    check_output,
    colour,
    read_image,
    read_settings,
    to_rgba,
    write_image,
    writing,
)
from omnialpha.io.encoding import encode

STEP = 1.001 / 255


def samples(seed: int = 0, dtype: Any = np.uint8, height: int = 12, width: int = 17) -> np.ndarray:
    """Random (H, W, 4) samples of the full range."""
    top = int(np.iinfo(dtype).max)
    return np.random.default_rng(seed).integers(0, top, (height, width, 4), dtype=dtype, endpoint=True)


def hwc(picture: torch.Tensor) -> np.ndarray:
    return picture.permute(1, 2, 0).numpy()


def opaque(rgb: np.ndarray, top: float = 255) -> np.ndarray:
    """(H, W, 3) or grey (H, W) samples -> what must be read: (H, W, 4) in [0, 1]."""
    rgb = rgb[..., None].repeat(3, -1) if rgb.ndim == 2 else rgb
    return np.concatenate([rgb / top, np.ones_like(rgb[..., :1], dtype=float)], -1)


def png(array: np.ndarray, kind: int, bits: int, *extra: tuple[bytes, bytes]) -> bytes:
    """An independent PNG writer: unfiltered rows, any colour kind and depth."""
    height, width = array.shape[:2]
    if bits < 8:
        packed = np.unpackbits(array.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :].reshape(height, -1)
        rows = np.packbits(packed, axis=-1)
    else:
        rows = array.reshape(height, -1).astype(">u2" if bits == 16 else "u1").view(np.uint8)
    data = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", data), (b"IEND", b"")]
    parts = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def profile(gamma: float = 2.2, space: bytes = b"RGB ", matrix: np.ndarray | None = None) -> bytes:
    """A minimal ICC profile with a gamma curve; Adobe RGB's primaries (adapted to D50) unless given."""
    adobe = np.array([[0.6097, 0.2053, 0.1492], [0.3111, 0.6257, 0.0632], [0.0195, 0.0609, 0.7446]])
    matrix = adobe if matrix is None else matrix
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"

    def xyz(*v: float) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(x * 65536) for x in v))

    tags = {b"wtpt": xyz(0.9642, 1.0, 0.8249)}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        tags |= {name + b"XYZ": xyz(*matrix[:, i]) for i, name in enumerate((b"r", b"g", b"b"))}
        tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78) + b"\0"
    tags |= {b"desc": text, b"cprt": b"text\0\0\0\0none\0\0\0\0"}
    start, table, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = bytearray(128)
    header[0:4] = struct.pack(">I", start + len(body))
    header[8:12], header[12:16], header[16:20], header[20:24] = b"\x02\x10\0\0", b"mntr", space, b"XYZ "
    header[36:40], header[68:80] = b"acsp", struct.pack(">3i", 63190, 65536, 54061)
    return bytes(header) + struct.pack(">I", len(tags)) + table + body


# --- reading modes and depths


def test_8_bit_modes_equal_their_original(tmp_path: Path) -> None:
    array = samples()
    rgba, rgb, grey = Image.fromarray(array), Image.fromarray(array[..., :3].copy()), Image.fromarray(array[..., 0])
    la = Image.merge("LA", [grey, Image.fromarray(array[..., 3])])
    la_expected = np.concatenate([opaque(array[..., 0])[..., :3], array[..., 3:] / 255], -1)
    bits = Image.fromarray(array[..., 0] > 127)
    cases: list[tuple[Image.Image, str, np.ndarray]] = [
        (rgba, "png", array / 255),
        (rgba, "tif", array / 255),
        (rgb, "png", opaque(array[..., :3])),
        (rgb, "bmp", opaque(array[..., :3])),
        (grey, "png", opaque(array[..., 0])),
        (la, "png", la_expected),
        (bits, "png", opaque((array[..., 0] > 127) * 255)),
        (bits, "tif", opaque((array[..., 0] > 127) * 255)),
        (rgb.convert("CMYK"), "tif", opaque(array[..., :3])),
    ]
    for image, suffix, expected in cases:
        path = tmp_path / f"x.{suffix}"
        image.save(path)
        picture = read_image(path)
        assert np.abs(hwc(picture.rgba) - expected).max() <= STEP, (image.mode, suffix)
        assert picture.bits == 8 and picture.rgba.dtype == torch.float32 and picture.notes == ()


def test_flat_cmyk_and_rgb_jpeg(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (200, 90, 30), np.uint8)
    for image in (Image.fromarray(flat), Image.fromarray(flat).convert("CMYK")):
        image.save(tmp_path / "x.jpg", quality=100, subsampling=0)
        assert np.abs(hwc(read_image(tmp_path / "x.jpg").rgba) - opaque(flat)).max() <= STEP, image.mode


def test_lab_tiff(tmp_path: Path) -> None:
    flat = Image.new("RGB", (8, 8), (120, 130, 110))
    lab = ImageCms.profileToProfile(
        flat, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    lab.save(tmp_path / "x.tif")
    assert np.abs(hwc(read_image(tmp_path / "x.tif").rgba) * 255 - (120, 130, 110, 255)).max() < 2


def test_palettes_with_and_without_transparency(tmp_path: Path) -> None:
    index = np.arange(12 * 17, dtype=np.uint8).reshape(12, 17)
    colours = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(index)
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "x.png")
    assert np.abs(hwc(read_image(tmp_path / "x.png").rgba) - opaque(colours[index])).max() <= STEP
    alphas = np.arange(255, -1, -1, dtype=np.uint8)
    image.save(tmp_path / "x.png", transparency=alphas.tobytes())
    expected = np.concatenate([colours[index], alphas[index][..., None]], -1) / 255
    assert np.abs(hwc(read_image(tmp_path / "x.png").rgba) - expected).max() <= STEP
    image.save(tmp_path / "x.gif", transparency=3)
    assert hwc(read_image(tmp_path / "x.gif").rgba)[..., 3].tolist() == (index != 3).astype(float).tolist()


@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bit_png_in_full_precision(tmp_path: Path, kind: int, channels: int) -> None:
    array = samples(dtype=np.uint16)[..., :channels]
    (tmp_path / "x.png").write_bytes(png(array, kind, 16))
    picture = read_image(tmp_path / "x.png")
    colour = array[..., :3] if channels > 2 else array[..., :1].repeat(3, -1)
    alpha = array[..., -1:] if channels in (2, 4) else np.full_like(array[..., :1], 65535)
    assert np.abs(hwc(picture.rgba) - np.concatenate([colour, alpha], -1) / 65535).max() < 1e-6
    assert picture.bits == 16


def test_16_bit_png_colour_keys(tmp_path: Path) -> None:
    array = samples(dtype=np.uint16)
    key = tuple(int(v) for v in array[3, 4, :3])
    (tmp_path / "x.png").write_bytes(png(array[..., :3], 2, 16, (b"tRNS", struct.pack(">3H", *key))))
    alpha = hwc(read_image(tmp_path / "x.png").rgba)[..., 3]
    assert alpha[3, 4] == 0 and alpha.sum() == alpha.size - 1
    (tmp_path / "x.png").write_bytes(png(array[..., :1], 0, 16, (b"tRNS", struct.pack(">H", key[0]))))
    assert hwc(read_image(tmp_path / "x.png").rgba)[3, 4, 3] == 0


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_small_grey_png(tmp_path: Path, bits: int) -> None:
    array = np.arange(64).reshape(8, 8) % 2**bits
    (tmp_path / "x.png").write_bytes(png(array, 0, bits))
    assert np.abs(hwc(read_image(tmp_path / "x.png").rgba) - opaque(array, 2**bits - 1)).max() <= STEP
    (tmp_path / "x.png").write_bytes(png(array, 0, bits, (b"tRNS", struct.pack(">H", 1))))
    assert np.array_equal(hwc(read_image(tmp_path / "x.png").rgba)[..., 3], array != 1)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_16_bit_tiff(tmp_path: Path, compression: str | None, byteorder: Any, planar: str) -> None:
    array = samples(dtype=np.uint16)
    stored = np.moveaxis(array, -1, 0) if planar == "separate" else array
    options: dict[str, Any] = {"photometric": "rgb", "extrasamples": ["unassalpha"], "planarconfig": planar}
    tifffile.imwrite(tmp_path / "x.tif", stored, compression=compression, byteorder=byteorder, **options)
    picture = read_image(tmp_path / "x.tif")
    assert np.abs(hwc(picture.rgba) - array / 65535).max() < 1e-6 and picture.bits == 16


def test_lzw_16_bit_tiff_without_an_extra_codec(tmp_path: Path) -> None:
    """Photoshop's default: what tifffile cannot unpack alone is read by Pillow's libtiff, still in 16 bits."""
    array = samples(dtype=np.uint16)
    for channels in (3, 4):
        data = _lzw_tiff(array[..., :channels])
        (tmp_path / "x.tif").write_bytes(data)
        read = hwc(read_image(tmp_path / "x.tif").rgba)
        assert np.abs(read[..., :channels] - array[..., :channels] / 65535).max() < 1e-6


def _lzw_tiff(array: np.ndarray) -> bytes:
    """A 16-bit LZW TIFF: clear codes so often that every code stays 9 bits wide."""
    height, width, channels = array.shape
    codes: list[int] = []
    for i, byte in enumerate(array.astype("<u2").tobytes()):
        codes += [256, byte] if i % 200 == 0 else [byte]
    bits = "".join(f"{code:09b}" for code in [*codes, 257])
    strip = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    short, long = 3, 4
    entries = [(256, short, 1, width), (257, short, 1, height), (258, short, channels, 0), (259, short, 1, 5)]
    entries += [(262, short, 1, 2), (273, long, 1, 0), (277, short, 1, channels), (278, short, 1, height)]
    entries += [(279, long, 1, len(strip))] + ([(338, short, 1, 2)] if channels == 4 else [])
    after = 8 + 2 + 12 * len(entries) + 4
    places = {258: after, 273: after + 2 * channels}
    out = b"II*\0" + struct.pack("<IH", 8, len(entries))
    for tag, kind, count, value in entries:  # little-endian: a short in a field of four bytes reads the same
        out += struct.pack("<HHII", tag, kind, count, places.get(tag, value))
    return out + struct.pack("<I", 0) + struct.pack(f"<{channels}H", *[16] * channels) + strip


def test_other_deep_tiffs(tmp_path: Path) -> None:
    array = samples(dtype=np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", array[..., 0], photometric="minisblack")
    assert np.abs(hwc(read_image(tmp_path / "x.tif").rgba) - opaque(array[..., 0], 65535)).max() < 1e-6
    tifffile.imwrite(tmp_path / "x.tif", array[..., 0], photometric="miniswhite")
    assert np.abs(hwc(read_image(tmp_path / "x.tif").rgba) - opaque(65535 - array[..., 0], 65535)).max() < 1e-6
    la = array[..., [0, 3]]
    tifffile.imwrite(
        tmp_path / "x.tif", la, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"]
    )
    assert np.abs(hwc(read_image(tmp_path / "x.tif").rgba)[..., 2:] - la / 65535).max() < 1e-6
    floats = (array[..., :3] / 65535).astype(np.float32)
    tifffile.imwrite(tmp_path / "x.tif", floats, photometric="rgb")
    assert np.abs(hwc(read_image(tmp_path / "x.tif").rgba) - opaque(floats, 1)).max() < 1e-6


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_associated_alpha_is_divided_out(tmp_path: Path, dtype: Any) -> None:
    array = samples(dtype=dtype)
    top = np.iinfo(dtype).max
    array[..., 3] = np.maximum(array[..., 3], top // 2)
    stored = array.copy()
    stored[..., :3] = np.round(array[..., :3].astype(float) * array[..., 3:] / top)
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric="rgb", extrasamples=["assocalpha"])
    assert np.abs(hwc(read_image(tmp_path / "x.tif").rgba) - array / top).max() <= 1.1 / top


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_honoured(tmp_path: Path, suffix: str, orientation: int) -> None:
    """A red top left quarter must be where EXIF says it belongs."""
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :16, 0] = 255
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(stored).save(tmp_path / f"x.{suffix}", exif=exif)
    upright = hwc(read_image(tmp_path / f"x.{suffix}").rgba)
    turned = orientation >= 5
    assert upright.shape == ((32, 16, 4) if turned else (16, 32, 4))
    bottom, right = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    row, column = (-1 if bottom else 0), (-1 if right else 0)
    assert upright[row, column, 0] > 0.9 and upright[~row, column, 0] < 0.1 and upright[row, ~column, 0] < 0.1


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_orientation_of_a_16_bit_tiff(tmp_path: Path, orientation: int) -> None:
    array = samples(dtype=np.uint16)
    options: dict[str, Any] = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    tifffile.imwrite(tmp_path / "x.tif", array, extratags=[(274, "H", 1, orientation)], **options)
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
    assert np.abs(hwc(read_image(tmp_path / "x.tif").rgba) - np.rot90(array, turns) / 65535).max() < 1e-6


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_an_animation_gives_its_first_frame_and_says_so(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:], **options)
    picture = read_image(tmp_path / f"x.{suffix}")
    assert picture.notes == ("first of 3 frames",)
    assert np.abs(hwc(picture.rgba) - (1, 0, 0, 1)).max() <= STEP


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "tiff"])
@pytest.mark.parametrize("size", [(1, 1), (1, 16000), (3, 2)])
def test_tiny_and_wide_pictures_round_trip(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    array = samples(height=size[0], width=size[1])
    write_image(tmp_path / f"x.{suffix}", to_rgba(array))
    assert np.array_equal(np.round(hwc(read_image(tmp_path / f"x.{suffix}").rgba) * 255), array)


def test_20000_pixels_wide(tmp_path: Path) -> None:
    write_image(tmp_path / "x.png", torch.ones(4, 3, 20000))
    assert read_image(tmp_path / "x.png").rgba.shape == (4, 3, 20000)
    with pytest.raises(InputError, match="ends at 16383"):
        write_image(tmp_path / "x.webp", torch.ones(4, 3, 20000))


# --- colour profiles


def test_our_conversion_agrees_with_the_colour_engine() -> None:
    array = samples(height=40, width=40)[..., :3].copy()
    source = ImageCms.ImageCmsProfile(BytesIO(profile()))
    reference = ImageCms.profileToProfile(
        Image.fromarray(array), source, ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    parsed = colour.parse(profile())
    assert parsed is not None and reference is not None
    ours, clipped = parsed.to_srgb(array / 255)
    assert clipped and np.abs(ours - np.asarray(reference) / 255).max() <= STEP


def in_gamut(bits: int) -> np.ndarray:
    """Every grey, darks included, and pale colours: all within sRGB."""
    top = 2**bits - 1
    grey = np.linspace(0, top, 256)[:, None].repeat(3, 1)
    pale = np.random.default_rng(0).uniform(0.4, 0.7, (256, 3)) * top
    rgb = np.concatenate([grey, pale]).round().astype(np.uint16 if bits == 16 else np.uint8).reshape(16, 32, 3)
    return np.concatenate([rgb, np.full_like(rgb[..., :1], top)], -1)


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_untouched_pixels_of_a_profiled_file_round_trip(tmp_path: Path, suffix: str, gamma: float) -> None:
    array, data = in_gamut(8), profile(gamma)
    (tmp_path / f"a.{suffix}").write_bytes(encode(FORMATS[f".{suffix}"].name, array, None, data, None))
    picture = read_image(tmp_path / f"a.{suffix}")
    assert picture.icc == data and np.abs(hwc(picture.rgba) - array / 255).max() > 0.02 and picture.notes == ()
    write_image(tmp_path / f"b.{suffix}", picture.rgba, icc=picture.icc)
    with Image.open(tmp_path / f"b.{suffix}") as image:
        assert image.info["icc_profile"] == data
        assert np.abs(np.asarray(image.convert("RGBA")).astype(int) - array).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_profiled_files_keep_their_depth(tmp_path: Path, suffix: str) -> None:
    array, data = in_gamut(16), profile()
    (tmp_path / f"a.{suffix}").write_bytes(encode(FORMATS[f".{suffix}"].name, array, None, data, None))
    picture = read_image(tmp_path / f"a.{suffix}")
    write_image(tmp_path / f"b.{suffix}", picture.rgba, icc=picture.icc, bits=16)
    first, second = (read_image(tmp_path / f"{name}.{suffix}").rgba for name in "ab")
    assert (first - second).abs().max() < 1e-4 and picture.bits == 16 and picture.icc == data


def test_an_srgb_profile_changes_nothing_and_is_kept(tmp_path: Path) -> None:
    array = samples()
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(array).save(tmp_path / "a.png", icc_profile=data)
    picture = read_image(tmp_path / "a.png")
    assert picture.icc == data and np.array_equal(np.round(hwc(picture.rgba) * 255), array)
    write_image(tmp_path / "b.png", picture.rgba, icc=picture.icc)
    with Image.open(tmp_path / "b.png") as image:
        assert image.info["icc_profile"] == data and np.array_equal(np.asarray(image), array)


def test_grey_wrong_and_damaged_profiles(tmp_path: Path) -> None:
    grey = Image.fromarray(samples()[..., 0])
    grey.save(tmp_path / "x.png", icc_profile=profile(1.0, b"GRAY"))
    picture = read_image(tmp_path / "x.png")
    expected = colour.srgb_encode(np.asarray(grey) / 255)
    assert picture.icc is None and np.abs(hwc(picture.rgba)[..., 0] - expected).max() <= STEP
    grey.convert("RGB").save(tmp_path / "x.png", icc_profile=profile(1.0, b"GRAY"))
    assert "does not belong" in read_image(tmp_path / "x.png").notes[0]
    for damaged in (b"not a profile", profile()[:150], profile()[:330]):
        grey.convert("RGB").save(tmp_path / "x.png", icc_profile=damaged)
        picture = read_image(tmp_path / "x.png")
        assert "ignored" in picture.notes[0] and picture.icc is None
        assert np.abs(hwc(picture.rgba)[..., 0] - np.asarray(grey) / 255).max() <= STEP


def test_colours_outside_srgb_are_clipped_and_noted(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (0, 255, 0)).save(tmp_path / "x.png", icc_profile=profile())
    picture = read_image(tmp_path / "x.png")
    assert "outside sRGB" in picture.notes[0] and picture.rgba.min() >= 0 and picture.rgba.max() <= 1


# --- what is remembered


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg", "tif"])
def test_dots_per_inch_are_kept(tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / f"x.{suffix}", torch.ones(4, 5, 6), dpi=(300, 150))
    assert read_image(tmp_path / f"x.{suffix}").dpi == pytest.approx((300, 150), abs=0.02)
    write_image(tmp_path / f"x.{suffix}", torch.ones(4, 5, 6))
    assert read_image(tmp_path / f"x.{suffix}").dpi is None


@pytest.mark.parametrize("bits", [8, 16])
def test_settings_are_read_back(tmp_path: Path, bits: int) -> None:
    settings = {"task": "matting_auto", "seed": 7, "text": "é 猫 \n", "nested": {"a": [1, 2.5, None]}}
    write_image(tmp_path / "x.png", torch.rand(4, 5, 6), settings=settings, bits=bits)
    assert read_settings(tmp_path / "x.png") == settings
    write_image(tmp_path / "x.png", torch.rand(4, 5, 6), bits=bits)
    assert read_settings(tmp_path / "x.png") is None


@pytest.mark.parametrize(("suffix", "bits"), [("png", 8), ("png", 16), ("webp", 8), ("tif", 8), ("tiff", 16)])
def test_lossless_formats_are_lossless_also_under_alpha_0(tmp_path: Path, suffix: str, bits: int) -> None:
    array = samples(dtype=np.uint16 if bits == 16 else np.uint8)
    array[:6, :, 3] = 0
    write_image(tmp_path / f"x.{suffix}", to_rgba(array), bits=bits)
    picture = read_image(tmp_path / f"x.{suffix}")
    assert picture.bits == bits
    assert np.array_equal(np.round(hwc(picture.rgba).astype(np.float64) * (2**bits - 1)), array)


# --- kinds


def test_every_kind_in_and_the_same_kind_out(tmp_path: Path) -> None:
    array = samples()
    write_image(tmp_path / "x.png", to_rgba(array))
    expected = to_rgba(array)
    channels_first = torch.from_numpy(array).permute(2, 0, 1)
    originals: list[Any] = [array, array / 255, (array / 255).astype(np.float32), array.astype(np.uint16) * 257]
    originals += [channels_first, expected, expected.double(), Image.fromarray(array)]
    for original in originals:
        assert torch.allclose(to_rgba(original), expected, atol=1e-6)
        back = as_type_of(expected, original)
        assert type(back) is type(original)
        if isinstance(original, np.ndarray):
            assert back.dtype == original.dtype and np.allclose(back, original, atol=1e-6)
        elif isinstance(original, torch.Tensor):
            assert back.dtype == original.dtype and torch.allclose(back, original)
        else:
            assert back.mode == "RGBA" and back.tobytes() == original.tobytes()
    for path in (tmp_path / "x.png", str(tmp_path / "x.png"), read_image(tmp_path / "x.png")):
        assert torch.equal(to_rgba(path), expected)
        assert as_type_of(expected, path).tobytes() == Image.fromarray(array).tobytes()  # type: ignore[union-attr]


def test_arrays_of_1_to_4_channels() -> None:
    array = samples()
    assert np.allclose(hwc(to_rgba(array[..., 0])), opaque(array[..., 0]))
    assert np.allclose(hwc(to_rgba(array[..., :1])), opaque(array[..., 0]))
    assert np.allclose(hwc(to_rgba(array[..., :3])), opaque(array[..., :3]))
    assert np.allclose(hwc(to_rgba(array[..., [0, 3]]))[..., 3], array[..., 3] / 255)
    assert hwc(to_rgba(torch.ones(3, 4, dtype=torch.bool))).tolist() == np.ones((3, 4, 4)).tolist()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((3, 3, 5)), "1 to 4 channels"),
        (np.zeros((0, 3, 3)), "1 to 4 channels"),
        (torch.zeros(2, 4, 3, 3), r"shape \(2, 4, 3, 3\).* 1 to 4 channels"),
        (torch.zeros(5, 3, 4), r"shape \(5, 3, 4\).* 1 to 4 channels as \(H, W\) or \(C, H, W\)"),
        (np.full((3, 3), 255.0), "not in"),
        (np.full((3, 3), np.nan), "NaN"),
        (np.full((3, 3), -np.inf), "infinite"),
        (np.zeros((3, 3), np.int64), "int64"),
        (7, "int is not a picture"),
    ],
)
def test_what_is_no_picture_is_refused(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_rgba(value)


# --- mistakes in reading


def _truncate(path: Path, share: float = 0.6) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(samples(height=90, width=90)[..., :3].copy()).save(path)
    _truncate(path)
    with pytest.raises(InputError, match=r"x\.\w+ is (damaged|not a picture)"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_truncated_16_bit_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    array = samples(dtype=np.uint16, height=60, width=60)
    path.write_bytes(encode(FORMATS[f".{suffix}"].name, array, None, None, None))
    _truncate(path)
    with pytest.raises(InputError, match="damaged|not a picture"):
        read_image(path)


def test_missing_folder_empty_and_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    for name, message in [
        ("gone.png", "There is no file .*gone.png; check"),
        (".", "is a folder"),
        ("empty.png", r"empty.png is empty \(0 bytes\)"),
        ("text.png", "text.png is not a picture"),
    ]:
        with pytest.raises(InputError, match=message):
            read_image(tmp_path / name)
        with pytest.raises(InputError, match=message):
            read_settings(tmp_path / name)


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "x.png", torch.ones(4, 2, 2))

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # the superuser may read everything, so chmod proves nothing
    with pytest.raises(InputError, match="x.png may not be read"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_decompression_bombs_are_refused_without_a_warning(
    tmp_path: Path, side: int, recwarn: pytest.WarningsRecorder
) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    data = png(np.zeros((1, 1, 4)), 6, 8)
    (tmp_path / "x.png").write_bytes(data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:])
    with pytest.raises(InputError, match="x.png has more than 89,478,485 pixels"):
        read_image(tmp_path / "x.png")
    assert not recwarn.list


# --- mistakes in writing


def test_outputs_that_cannot_be_are_refused_before_any_work(tmp_path: Path) -> None:
    source = tmp_path / "in.png"
    write_image(source, torch.ones(4, 2, 2))
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(source)
    for name, message in [
        ("x.xyz", "no known format; end it with one of .png"),
        ("x", "no known format"),
        ("no/x.png", "does not exist; create"),
        ("folder.png", "is a folder"),
        ("in.png", "also an input"),
        ("./in.png", "also an input"),
        ("link.png", "also an input"),
        ("in.png/x.png", "does not exist"),
    ]:
        with pytest.raises(InputError, match=message):
            check_output(tmp_path / name, inputs=[source])
    assert check_output(tmp_path / "X.PNG", inputs=[source]).name == "PNG"


def test_a_folder_without_write_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser may write everywhere
    with pytest.raises(InputError, match="may not be written"):
        write_image(tmp_path / "x.png", torch.ones(4, 2, 2))


def test_jpeg_takes_opaque_pictures_only(tmp_path: Path) -> None:
    flat = torch.cat([torch.full((3, 16, 16), 0.5), torch.ones(1, 16, 16)])
    write_image(tmp_path / "x.jpg", flat)
    assert (read_image(tmp_path / "x.jpg").rgba - flat).abs().max() <= 2 / 255
    flat[3, 0, 0] = 0.99
    with pytest.raises(InputError, match="use .png"):
        write_image(tmp_path / "y.jpg", flat)
    assert not (tmp_path / "y.jpg").exists()


@pytest.mark.parametrize(
    ("picture", "options", "message"),
    [
        (torch.ones(3, 4, 4), {}, r"\(3, 4, 4\)"),
        (torch.full((4, 4, 4), float("nan")), {}, "NaN"),
        (torch.ones(4, 4, 4), {"bits": 12}, "12 bits"),
    ],
)
def test_pictures_that_cannot_be_written(
    tmp_path: Path, picture: torch.Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write_image(tmp_path / "x.png", picture, **options)
    with pytest.raises(InputError, match="16 bits"):
        write_image(tmp_path / "x.webp", torch.ones(4, 4, 4), bits=16)
    assert list(tmp_path.iterdir()) == []


def _no_space(*args: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg", "tif"])
@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, broken: str
) -> None:
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, broken, _no_space)
    with pytest.raises(InputError, match="No space left on device"):
        write_image(path, torch.ones(4, 5, 5))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_real_limit_on_file_size(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    picture = torch.rand(4, 64, 64)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(InputError, match="could not be written"):
            write_image(tmp_path / "x.png", picture)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b""])
def test_a_file_that_does_not_read_back_is_not_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr(writing, "encode", lambda *args: damage(encode(*args)))
    with pytest.raises(InputError, match="could not be written"):
        write_image(tmp_path / "x.png", torch.rand(4, 64, 64))
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_its_alpha_is_not_delivered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_alpha(name: str, array: np.ndarray, *rest: Any) -> bytes:
        return png(array[..., :3], 2, 8)

    monkeypatch.setattr(writing, "encode", without_alpha)
    with pytest.raises(RuntimeError, match="reads back as RGB"):
        write_image(tmp_path / "x.png", torch.rand(4, 8, 8) * 0.9)
    assert list(tmp_path.iterdir()) == []
