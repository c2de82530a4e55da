"""What the library takes: maps as data, kinds in and out, metadata, pipes, frames; what was silently wrong before."""

import os
import struct
import sys
import threading
import types
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageFile

from omnialpha.errors import InputError
from omnialpha.io import Picture, as_type_of, decoding, read_image, tiffs, to_rgba, write_image
from omnialpha.io.encoding import encode
from omnialpha.io.metadata import upright
from omnialpha.tasks import TASKS, Role, check_map

ADOBE = np.array([[0.6097, 0.2053, 0.1492], [0.3111, 0.6257, 0.0632], [0.0195, 0.0609, 0.7446]])


def profile(gamma: float, space: bytes = b"RGB ") -> bytes:
    """A minimal ICC profile with a gamma curve and Adobe RGB's primaries."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {b"kTRC": curve} if space == b"GRAY" else {n + b"TRC": curve for n in (b"r", b"g", b"b")}
    for i, name in enumerate((b"r", b"g", b"b") if space == b"RGB " else ()):
        tags[name + b"XYZ"] = b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(x * 65536) for x in ADOBE[:, i]))
    start, table, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    header = bytearray(128)
    header[16:20], header[20:24] = space, b"XYZ "
    return bytes(header) + struct.pack(">I", len(tags)) + table + body


LEVELS = np.repeat(np.uint8([0, 128, 255]), 4).reshape(1, 12).repeat(6, 0)  # a trimap, (6, 12)
PHOTO = np.random.default_rng(0).integers(0, 256, (6, 12, 3), dtype=np.uint8)
GROUND = np.where(LEVELS > 0, 255, 0).astype(np.uint8)  # an alpha of 0 where the trimap is black


def as_map(picture: Any, role: Role = Role.TRIMAP) -> np.ndarray:
    """The values that a task takes from a map, 0 to 255."""
    example = TASKS[f"matting_{role}"].example(composite=PHOTO, **{str(role): picture})
    return (example.inputs[1][0] * 255).numpy()


def grey_with(alpha: np.ndarray | int, grey: np.ndarray = LEVELS) -> Image.Image:
    return Image.fromarray(np.dstack([grey, grey, grey, np.broadcast_to(np.uint8(alpha), grey.shape)]))


MAPS: dict[str, Any] = {
    "L": Image.fromarray(LEVELS),
    "RGB": Image.fromarray(LEVELS).convert("RGB"),
    "P": Image.fromarray(LEVELS).convert("P"),
    "LA": Image.fromarray(LEVELS).convert("LA"),
    "opaque": grey_with(255),
    "254 everywhere": grey_with(254),
    "one pixel of 254": grey_with(np.where(np.arange(72).reshape(6, 12) == 30, 254, 255)),
    "half": grey_with(128),
    "near-constant": grey_with(np.where(LEVELS > 0, 250, 240)),
    "transparent ground": grey_with(GROUND),
    "16 bits": Image.fromarray(LEVELS.astype(np.uint16) * 257),
    "array": LEVELS,
    "one of a batch": LEVELS[None],
    "16-bit array": LEVELS.astype(">u2") * 257,
    "tensor": torch.from_numpy(LEVELS),
    "channel tensor": torch.from_numpy(LEVELS)[None],
    "batch tensor": torch.from_numpy(LEVELS / np.float32(255))[None, None],
}


@pytest.mark.parametrize("kind", MAPS)
def test_a_trimap_is_its_grey_values_whatever_its_alpha(kind: str) -> None:
    assert np.abs(as_map(MAPS[kind]) - LEVELS).max() < 1e-3


@pytest.mark.parametrize("role", [Role.ALPHA, Role.PRECISE, Role.ROUGH])
def test_a_cut_out_given_as_a_map_means_its_alpha(role: Role) -> None:
    alpha = np.linspace(0, 255, 72).astype(np.uint8).reshape(6, 12)
    noise = np.random.default_rng(1).integers(0, 256, (6, 12, 3), dtype=np.uint8)
    assert np.allclose(as_map(np.dstack([noise, alpha]), role), alpha, atol=1e-3)
    for colour in (0, 255, 90):  # a silhouette of one colour
        assert np.allclose(as_map(grey_with(alpha, np.full_like(alpha, colour)), role), alpha, atol=1e-3)
    assert np.allclose(as_map(grey_with(alpha, alpha), role), alpha, atol=1e-3), "grey and alpha say the same"


def test_a_trimap_painted_in_grey_alone_stays_unknown() -> None:
    assert np.allclose(as_map(grey_with(GROUND, np.full_like(LEVELS, 128))), GROUND * (128 / 255), atol=1e-3)


def test_a_map_of_which_grey_and_alpha_both_vary_is_refused() -> None:
    ramp = np.linspace(0, 255, 72).astype(np.uint8).reshape(6, 12)
    with pytest.raises(InputError, match="the alpha varies both in grey and in alpha: save the one"):
        as_map(grey_with(GROUND, ramp), Role.ALPHA)


@pytest.mark.parametrize("space", [b"GRAY", b"RGB "])
@pytest.mark.parametrize("gamma", [1.0, 1.8])
def test_no_profile_changes_a_map(tmp_path: Path, space: bytes, gamma: float) -> None:
    image = Image.fromarray(LEVELS).convert("L" if space == b"GRAY" else "RGB")
    image.save(tmp_path / "x.png", icc_profile=profile(gamma, space))
    managed = read_image(tmp_path / "x.png")
    assert abs(float(managed.rgba[0, 0, 5]) * 255 - 128) > 10, "a picture is managed"
    opened = Image.open(tmp_path / "x.png")
    for given in (tmp_path / "x.png", opened, managed, (tmp_path / "x.png").read_bytes()):
        assert np.abs(as_map(given) - LEVELS).max() < 1e-3


def test_a_map_is_turned_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[274] = 3
    file = BytesIO()
    Image.fromarray(LEVELS).save(file, "PNG", exif=exif)
    assert np.abs(as_map(file.getvalue()) - LEVELS[::-1, ::-1]).max() < 1e-3


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integers_of_0_and_1_are_not_taken_for_black(dtype: Any) -> None:
    ones = (LEVELS > 0).astype(dtype)
    for given in (ones, torch.from_numpy(ones), ones[None]):
        with pytest.raises(InputError, match="the rough is nearly black.* 1 in integers: multiply by 255 or pass bool"):
            as_map(given, Role.ROUGH)
    assert np.array_equal(as_map(ones.astype(bool), Role.ROUGH), ones * 255.0)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int8, np.uint32])
def test_labels_0_and_1_are_a_mask_and_others_are_not(dtype: Any) -> None:
    labels = (LEVELS > 0).astype(dtype)
    assert np.array_equal(as_map(labels, Role.PRECISE), labels * 255.0)
    with pytest.raises(InputError, match=r"not a mask of 0 and 1 \(0 to 2\)"):
        as_map(labels * dtype(2), Role.PRECISE)
    with pytest.raises(InputError, match="is not a picture; use uint8"):
        to_rgba(labels)


# --- floats and rare depths


def write_tiff(path: Path, array: np.ndarray, **options: Any) -> Path:
    tifffile.imwrite(path, array, **({"photometric": "minisblack"} | options))
    return path


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("photometric", ["minisblack", "rgb"])
def test_float_tiffs(tmp_path: Path, dtype: Any, photometric: str) -> None:
    values = (PHOTO / 255).astype(dtype) if photometric == "rgb" else (LEVELS / 255).astype(dtype)
    values.flat[0] = 1 + np.finfo(dtype).eps  # rounding
    picture = read_image(write_tiff(tmp_path / "x.tif", values, photometric=photometric))
    read = picture.rgba[:3].permute(1, 2, 0).numpy()
    expected = values.astype(np.float32).clip(0, 1)
    assert picture.bits == 16 and np.array_equal(read, np.broadcast_to(expected.reshape(6, 12, -1), (6, 12, 3)))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (LEVELS.astype(np.float32), r"x.tif holds floats from 0 to 255, which are not in \[0, 1\]; divide by 255"),
        (LEVELS.astype(np.float64) / 255 - 0.1, r"floats from -0.1 to 0.9, .* scale or clip"),
        (LEVELS.astype(np.float16) / 255 * 1.5, r"floats from 0 to 1.5, .* scale or clip"),
        (np.where(LEVELS == 0, np.nan, 0.5).astype(np.float32), "x.tif holds NaN or infinite values; replace"),
        (np.where(LEVELS == 0, np.inf, 0.5).astype(np.float32), "x.tif holds NaN or infinite values; replace"),
        (LEVELS.astype(np.uint32), "x.tif holds uint32 samples, whose white is not agreed on; save it with 8 or 16"),
        (LEVELS.astype(np.int16), "x.tif holds int16 samples"),
    ],
)
def test_tiffs_without_a_meaning_are_refused_in_one_sentence(tmp_path: Path, array: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_image(write_tiff(tmp_path / "x.tif", array))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_samples_of_no_known_meaning_are_noted(tmp_path: Path, dtype: Any) -> None:
    four = np.dstack([PHOTO, LEVELS]).astype(dtype)
    picture = read_image(write_tiff(tmp_path / "x.tif", four, photometric="rgb", extrasamples=["unspecified"]))
    assert picture.notes == ("1 extra sample(s) a pixel, not marked as alpha, left out",)
    assert bool((picture.rgba[3] == 1).all())


def test_white_is_zero_leaves_alpha_alone(tmp_path: Path) -> None:
    pair = np.dstack([LEVELS, LEVELS]).astype(np.uint16) * 257
    write_tiff(tmp_path / "x.tif", pair, photometric="miniswhite", planarconfig="contig", extrasamples=["unassalpha"])
    rgba = read_image(tmp_path / "x.tif").rgba.numpy() * 255
    assert np.allclose(rgba[3], LEVELS, atol=1e-3) and np.allclose(rgba[0], 255.0 - LEVELS, atol=1e-3)


def test_12_bit_grey_is_scaled_to_its_own_white(tmp_path: Path) -> None:
    values = np.arange(0, 4096, 63)[:64].reshape(4, 16)
    values[-1, -1] = 4095
    pairs = values.reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
    data, tags = packed.astype(np.uint8).tobytes(), [(256, 16), (257, 4), (258, 12), (259, 1), (262, 1), (273, 134)]
    tags += [(277, 1), (278, 4), (279, 96)]
    body = b"".join(struct.pack("<HHII", tag, 4 if tag > 262 else 3, 1, value) for tag, value in tags)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + body + bytes(4)
    (tmp_path / "x.tif").write_bytes(head.ljust(134, b"\0") + data)
    picture = read_image(tmp_path / "x.tif")
    assert np.abs(picture.rgba[0].numpy() * 4095 - values).max() < 0.05 and picture.bits == 16


def test_pillow_s_modes_of_more_than_8_bits() -> None:
    deep = LEVELS.astype(np.uint16) * 257
    for image in (
        Image.fromarray(deep),
        Image.fromarray(deep.astype(np.int32)),
        Image.fromarray(LEVELS / np.float32(255)),
    ):
        assert image.mode in ("I;16", "I", "F")
        assert np.abs(to_rgba(image)[0].numpy() * 255 - LEVELS).max() < 1e-3
    for image, words in [
        (Image.fromarray(LEVELS.astype(np.int32)), 'mode I.* highest value is 255: convert\\("L"\\)'),
        (Image.fromarray(LEVELS.astype(np.int32) * 1000), "integers from 0 to 255000, not 0 to 65535"),
        (Image.fromarray(LEVELS.astype(np.int32) - 9), "integers from -9 to 246"),
        (Image.fromarray(LEVELS.astype(np.float32)), "floats from 0 to 255, .* divide by 255"),
    ]:
        with pytest.raises(InputError, match=words):
            to_rgba(image)


def test_a_turned_tiff_of_floats_is_upright(tmp_path: Path) -> None:
    """Pillow cannot open RGB floats at all, so that nothing but the page itself says which side is up."""
    array = np.random.default_rng(0).random((2, 3, 3), dtype=np.float32)
    tags: Any = [(274, 3, 1, 6, True)]
    tifffile.imwrite(tmp_path / "x.tif", array, photometric="rgb", extratags=tags)
    assert np.array_equal(read_image(tmp_path / "x.tif").rgba[:3].numpy(), np.rot90(array, -1).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_premultiplied_modes_of_pillow(mode: str) -> None:
    solid = Image.fromarray(np.dstack([LEVELS] * 3 + [np.full_like(LEVELS, 255)])).convert("RGBA")
    image = solid.convert("LA").convert("La") if mode == "La" else solid.convert("RGBa")
    assert image.mode == mode and np.abs(to_rgba(image)[0].numpy() * 255 - LEVELS).max() < 1e-3


# --- our own mistakes are not the file's


@pytest.mark.parametrize("error", [TypeError, KeyError, IndexError, ValueError])
def test_our_own_bugs_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def bug(*args: object, **options: object) -> None:
        raise error("a bug of ours")

    Image.fromarray(PHOTO).save(tmp_path / "x.png")
    write_tiff(tmp_path / "x.tif", LEVELS.astype(np.uint16))
    monkeypatch.setattr(decoding, "rgba_of", bug)
    monkeypatch.setattr(tiffs, "rgba_of", bug)
    for name in ("x.png", "x.tif"):
        with pytest.raises(error, match="a bug of ours") as caught:
            read_image(tmp_path / name)
        assert type(caught.value) is error


@pytest.mark.parametrize("error", [TypeError, KeyError, struct.error])
def test_what_a_decoder_raises_means_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def refuse(*args: object) -> None:
        raise error("odd bytes")

    Image.fromarray(PHOTO).save(tmp_path / "x.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    with pytest.raises(InputError, match=r"x.png is damaged or cut off \(.*odd bytes"):
        read_image(tmp_path / "x.png")


# --- kinds of the library

RGBA = np.dstack([PHOTO, LEVELS])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [False, True])
def test_float_tensors_come_back_as_given(dtype: torch.dtype, batch: bool) -> None:
    given = torch.from_numpy(RGBA / np.float32(255)).permute(2, 0, 1).to(dtype)
    given = given[None] if batch else given
    made = to_rgba(given)
    assert made.shape == (4, 6, 12) and made.dtype == torch.float32
    back = as_type_of(made, given)
    assert isinstance(back, torch.Tensor) and back.dtype == dtype and torch.equal(back, given)


@pytest.mark.parametrize("dtype", [">u2", "<u2", np.uint8, np.float16, np.float64])
@pytest.mark.parametrize("batch", [False, True])
def test_arrays_come_back_as_given(dtype: Any, batch: bool) -> None:
    top = 1 if np.issubdtype(dtype, np.floating) else np.iinfo(dtype).max
    given = (RGBA / 255 * top).astype(dtype)
    given = given[None] if batch else given
    back = as_type_of(to_rgba(given), given)
    assert isinstance(back, np.ndarray) and back.dtype == given.dtype and back.shape == given.shape
    assert np.allclose(back, given, rtol=0, atol=1e-7 if top == 1 else 0)


def test_16_bit_tensors_keep_their_depth() -> None:
    given = torch.from_numpy(np.random.default_rng(2).integers(0, 65536, (4, 6, 12), dtype=np.uint16))
    back = as_type_of(to_rgba(given), given)
    assert isinstance(back, torch.Tensor) and back.dtype == torch.uint16 and np.array_equal(back.numpy(), given.numpy())


def test_rounding_beyond_1_is_cut_and_more_is_refused() -> None:
    for value in (1.0000001, -1e-7, 1.000009):
        made = to_rgba(np.full((3, 4), value))
        assert float(made.min()) >= 0 and float(made.max()) == 1
    with pytest.raises(InputError, match=r"An array of shape \(3, 4\) holds floats from 1.001 to 1.001"):
        to_rgba(np.full((3, 4), 1.001))
    assert float(to_rgba(torch.full((3, 4), 1.0078125, dtype=torch.bfloat16)).max()) == 1


def test_shapes_are_told_as_given() -> None:
    for given, words in [
        (np.zeros((3, 4, 5)), r"An array of shape \(3, 4, 5\)"),
        (np.zeros((2, 3, 4, 4)), r"An array of shape \(2, 3, 4, 4\)"),
        (torch.zeros(6, 12, 4), r"A tensor of shape \(6, 12, 4\)"),
        (torch.zeros(1, 7, 12, 9), r"A tensor of shape \(1, 7, 12, 9\)"),
    ]:
        with pytest.raises(InputError, match=words):
            to_rgba(given)


def test_bytes_and_open_files_are_pictures(tmp_path: Path, tiny_model: Any) -> None:
    Image.fromarray(RGBA).save(tmp_path / "x.png")
    data, expected = (tmp_path / "x.png").read_bytes(), to_rgba(RGBA)
    with (tmp_path / "x.png").open("rb") as file:
        for given in (data, bytearray(data), BytesIO(data), file):
            assert torch.equal(to_rgba(given), expected)
    made = tiny_model.matte(BytesIO(data), alpha=LEVELS, steps=1)
    assert made.mode == "RGBA" and np.array_equal(np.asarray(made)[..., 3], LEVELS)
    with (
        (tmp_path / "x.png").open(encoding="latin-1") as text,
        pytest.raises(InputError, match="open it with mode 'rb'"),
    ):
        to_rgba(text)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"The given bytes is empty \(0 bytes\)"):
        to_rgba(b"")


def test_a_path_of_16_bits_gives_16_bits(tmp_path: Path, tiny_model: Any) -> None:
    deep = np.random.default_rng(3).integers(0, 65536, (6, 12, 3), dtype=np.uint16)
    write_image(tmp_path / "x.png", to_rgba(deep), bits=16)
    for given in (tmp_path / "x.png", read_image(tmp_path / "x.png")):
        made = tiny_model.matte(given, alpha=np.full((6, 12), 255, np.uint8), steps=1)
        assert made.dtype == np.uint16 and np.array_equal(made[..., :3], deep) and (made[..., 3] == 65535).all()
    assert as_type_of(to_rgba(deep), tmp_path / "x.png").dtype == np.uint16  # type: ignore[union-attr]


# --- metadata and samples


def photograph(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif.update({271: "Maker", 274: orientation, 306: "2024:05:06 07:08:09"})
    exif.get_ifd(0x8769).update({0x829A: 0.01, 0xA002: 12, 0xA003: 6})
    return exif


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6" dc:title="t"/></x:xmpmeta>'


@pytest.mark.parametrize("source", ["jpg", "png", "webp"])
@pytest.mark.parametrize(("suffix", "bits"), [("png", 8), ("png", 16), ("webp", 8), ("jpg", 8), ("tif", 8)])
def test_exif_and_xmp_are_kept_upright(tmp_path: Path, source: str, suffix: str, bits: int) -> None:
    extra: dict[str, Any] = {"exif": photograph()}
    if source == "png":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        info.add_text("Title", "a cat")
        info.add_text("omnialpha", "{}")
        extra["pnginfo"] = info
    else:
        extra["xmp"] = XMP
    Image.fromarray(PHOTO).save(tmp_path / f"in.{source}", **extra)
    picture = read_image(tmp_path / f"in.{source}")
    assert picture.rgba.shape == (4, 12, 6), "turned"
    notes = write_image(tmp_path / f"out.{suffix}", picture.rgba, bits=bits, source=picture, settings={"a": 1})
    with Image.open(tmp_path / f"out.{suffix}") as made:
        made.load()
        exif = made.getexif()
        assert made.size == (6, 12) and exif[271] == "Maker" and exif.get(274, 1) == 1
        assert exif[306] == "2024:05:06 07:08:09" and b'tiff:Orientation="1" dc:title="t"' in made.info["xmp"]
        if suffix != "tif":
            told = exif.get_ifd(0x8769)
            assert (told[0xA002], told[0xA003]) == (6, 12) and told[0x829A] == pytest.approx(0.01)
        if source == "png" and suffix == "png":
            assert made.text["Title"] == "a cat" and made.text["omnialpha"] == '{"a": 1}'
    assert [("text Title" in n or "EXIF" in n) for n in notes] == [True] * (
        (source == "png" and suffix != "png") + (suffix == "tif")
    )
    assert torch.equal(read_image(tmp_path / f"out.{suffix}").rgba, picture.rgba) or suffix == "jpg", "not turned twice"


def test_the_thumbnail_goes_and_all_else_keeps_its_place() -> None:
    entries = struct.pack("<HHHIHH", 1, 274, 3, 1, 8, 0) + struct.pack("<I", 26)
    second = struct.pack("<HHHII", 2, 0x201, 4, 1, 56) + struct.pack("<HHII", 0x202, 4, 1, 9) + bytes(4)
    exif = b"II*\0" + struct.pack("<I", 8) + entries + second + b"THUMBNAIL"
    assert len(exif) == 65
    made = upright(exif, (3, 2))
    assert made[:18] == exif[:18] and made[18:20] == b"\1\0" and made[22:26] == bytes(4) and b"THUMB" not in made
    assert upright(exif + b"after", (3, 2))[56:] == bytes(9) + b"after"
    for damaged in (b"II*\0", b"XX*\0\1\0\0\0", exif[:12]):
        with pytest.raises((struct.error, KeyError)):
            upright(damaged, (3, 2))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_noted_and_left_out(tmp_path: Path) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "x.png", exif=b"II*\0\x08\0\0\0\x09\0")
    picture = read_image(tmp_path / "x.png")
    assert picture.metadata.exif is None and picture.notes == ("the EXIF is damaged and was left out",)


def test_words_of_a_tiff_are_kept_and_its_layout_is_not(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", PHOTO, photometric="rgb", extratags=[(315, "s", 0, "A. Painter", True)])
    picture = read_image(tmp_path / "in.tif")
    write_image(tmp_path / "out.png", picture.rgba, source=picture)
    with Image.open(tmp_path / "out.png") as made:
        exif = dict(made.getexif())
    assert exif[315] == "A. Painter" and not exif.keys() & {270, 273, 279, 256}


def test_exif_too_long_for_a_jpeg_is_left_out_with_a_note(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[37510] = bytes(70_000)
    Image.fromarray(PHOTO).save(tmp_path / "in.png", exif=exif)
    picture = read_image(tmp_path / "in.png")
    (note,) = write_image(tmp_path / "out.jpg", picture.rgba, source=picture)
    assert (
        "JPEG has no room for the EXIF (70," in note
        and write_image(tmp_path / "b.png", picture.rgba, source=picture) == ()
    )


@pytest.mark.parametrize(("suffix", "bits"), [("png", 8), ("png", 16), ("webp", 8), ("tif", 16)])
def test_copied_colours_outside_srgb_are_the_file_s_own(tmp_path: Path, suffix: str, bits: int) -> None:
    top, data = 2**bits - 1, profile(2.2)
    array = np.dstack([PHOTO, np.full((6, 12), 255)]).astype(np.uint16 if bits == 16 else np.uint8) * (top // 255)
    array[0, :, :3] = (0, top, 0)
    name = {"png": "PNG", "webp": "WEBP", "tif": "TIFF"}[suffix]
    (tmp_path / f"in.{suffix}").write_bytes(encode(name, array, None, data, None))
    picture = read_image(tmp_path / f"in.{suffix}")
    changed = picture.rgba.clone()
    changed[:3, 3] = 0.5
    changed[3, 1] = 0.25
    write_image(tmp_path / f"out.{suffix}", changed, bits=bits, source=picture)
    made = (read_image(tmp_path / f"out.{suffix}").raw * top).round().permute(1, 2, 0).numpy()
    kept = np.arange(6) != 3
    assert np.array_equal(made[kept, :, :3], array[kept, :, :3]) and np.ptp(made[3, :, 0]) == 0
    assert (made[1, :, 3] == round(top / 4)).all()
    clipped = tmp_path / f"clipped.{suffix}"
    write_image(clipped, picture.rgba, bits=bits, icc=data)
    assert not np.array_equal((read_image(clipped).raw * top).round()[0].numpy(), array[..., 0]), "the test can fail"


# --- HEIC, frames, pipes, links


def test_heic_names_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    with pytest.raises(InputError, match=r"x.heic is HEIC, which needs pillow-heif: `pip install omnialpha\[heif\]`"):
        read_image(tmp_path / "x.heic")
    fake, asked = types.ModuleType("pillow_heif"), []
    fake.register_heif_opener = lambda: asked.append(True)  # type: ignore[attr-defined]
    fake.__spec__ = types.SimpleNamespace(name="pillow_heif")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "pillow_heif", fake)
    with pytest.raises(InputError, match="not a picture in a known format"):  # the fake opens nothing
        read_image(tmp_path / "x.heic")
    assert asked == [True]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif", "deep.tif"])
def test_any_frame_can_be_read(tmp_path: Path, suffix: str) -> None:
    path, colours = tmp_path / f"x.{suffix}", [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    if suffix == "deep.tif":
        pages = np.stack([np.full((7, 9, 3), np.array(c) * 257, np.uint16) for c in colours])
        tifffile.imwrite(path, pages, photometric="rgb")
    else:
        frames = [Image.new("RGB", (9, 7), colour) for colour in colours]
        lossless = {"lossless": True} if suffix == "webp" else {}
        frames[0].save(path, save_all=True, append_images=frames[1:], **lossless)
    for i, colour in enumerate(colours):
        picture = read_image(path, frame=i)
        assert torch.allclose(picture.rgba[:3, 3, 4] * 255, torch.tensor(colour).float(), atol=1.5), (i, colour)
        assert picture.notes == ()
    assert read_image(path).notes == ("first of 3 frames",)
    for wrong in (3, -1):
        with pytest.raises(InputError, match=f"no frame {wrong}, as it has 3; use 0 to 2"):
            read_image(path, frame=wrong)
    Image.fromarray(PHOTO).save(tmp_path / "still.png")
    with pytest.raises(InputError, match="no frame 1, as it has 1"):
        read_image(tmp_path / "still.png", frame=1)


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_a_pipe_is_read_once(tmp_path: Path, suffix: str) -> None:
    plain, pipe = tmp_path / f"x.{suffix}", tmp_path / "pipe"
    write_image(plain, to_rgba(PHOTO), **({} if suffix == "jpg" else {"bits": 16}))
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(plain.read_bytes()), daemon=True)
    writer.start()
    made, expected = read_image(pipe), read_image(plain)
    writer.join(10)
    assert torch.equal(made.rgba, expected.rgba) and made.bits == expected.bits


def test_an_output_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "real.png", tmp_path / "link.png"
    link.symlink_to("there/real.png")
    for value in (0.0, 1.0):  # once dangling, once over what is there
        write_image(link, torch.full((4, 2, 3), value))
        assert link.is_symlink() and bool((read_image(target).rgba == value).all())
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["link.png", "real.png", "there"]
    link.unlink()
    link.symlink_to("gone/real.png")
    with pytest.raises(InputError, match="gone does not exist; create"):
        write_image(link, torch.ones(4, 2, 3))


def test_a_reader_that_went_away_is_told() -> None:
    class Gone(BytesIO):
        def write(self, data: Any) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(InputError, match="could not be written .Broken pipe."):
        write_image(Gone(), torch.ones(4, 2, 3))


def test_an_open_file_gets_a_png() -> None:
    file, picture = BytesIO(), Picture(to_rgba(PHOTO), dpi=(300, 300))
    write_image(file, picture.rgba, source=picture)
    made = read_image(file.getvalue())
    assert torch.equal(made.rgba, picture.rgba) and made.dpi == pytest.approx((300, 300), abs=0.02)
    assert check_map(to_rgba(LEVELS), Role.TRIMAP).shape == (4, 6, 12)
