"""PSD and OpenRaster files, made here by psd-tools and zipfile, come back as the layers that were painted."""

import io
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from psd_tools import PSDImage
from psd_tools.constants import BlendMode

from layered import HEIGHT, WIDTH, back, front
from omnialpha.errors import InputError
from omnialpha.io import layer_files
from omnialpha.io.layer_files import open_layers, read_layers

LEVEL = 1 / 255


def opaque(pixels: np.ndarray) -> np.ndarray:
    return np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def composite(layers: list[tuple[np.ndarray, tuple[int, int], float]]) -> np.ndarray:
    """(H, W, 3) in [0, 1] of layers at (top, left) with an opacity, back to front, over black, pixel by pixel."""
    made = np.zeros((HEIGHT, WIDTH, 3))
    for pixels, (top, left), opacity in layers:
        height, width = pixels.shape[:2]
        under = made[top : top + height, left : left + width]
        share = pixels[: under.shape[0], : under.shape[1], 3:] / 255 * opacity
        under[:] = share * pixels[: under.shape[0], : under.shape[1], :3] / 255 + (1 - share) * under
    return made


PAINTED = [(opaque(back(1)), (0, 0), 1.0), (front(2), (0, 0), 0.5), (front(3, 1)[8:30, 10:50], (12, 20), 1.0)]
NAMES = ["Back", "Half", "Moved"]


def ora(path: Path, stack: str, files: dict[str, bytes], size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "image/openraster", zipfile.ZIP_STORED)
        archive.writestr("stack.xml", f'<image w="{size[1]}" h="{size[0]}">{stack}</image>')
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def painted_ora(path: Path, merged: bool = True) -> Path:
    files = {f"data/{name}.png": png(pixels) for name, (pixels, *_) in zip(NAMES, PAINTED, strict=True)}
    stack = (
        '<stack><layer name="Moved" src="data/Moved.png" x="20" y="12"/>'
        '<layer name="Hidden" src="data/Back.png" visibility="hidden" composite-op="svg:multiply"/>'
        '<stack name="group" opacity="0.625">'
        '<layer name="Half" src="data/Half.png" opacity="0.8" composite-op="svg:src-over"/></stack>'
        '<layer name="Back" src="data/Back.png"/></stack>'
    )
    whole = (composite(PAINTED) * 255).round().astype(np.uint8)
    return ora(path, stack, files | ({"mergedimage.png": png(opaque(whole))} if merged else {}))


def painted_psd(path: Path) -> Path:
    psd = PSDImage.new("RGBA", (WIDTH, HEIGHT))
    for name, (pixels, (top, left), _) in zip(NAMES, PAINTED, strict=True):
        layer = psd.create_pixel_layer(Image.fromarray(pixels), name=name, top=top, left=left)
        if name == "Half":
            layer.opacity = round(0.8 * 255)
            psd.create_group([layer], name="group").opacity = round(0.625 * 255)
    hidden = psd.create_pixel_layer(Image.fromarray(front(5)), name="Hidden", blend_mode=BlendMode.MULTIPLY)
    hidden.visible = False
    psd.save(path)
    return path


@pytest.mark.parametrize("make", [painted_ora, painted_psd])
def test_layers_come_back_to_front_with_offset_and_opacity(make: Any, tmp_path: Path) -> None:
    suffix = ".ora" if make is painted_ora else ".psd"
    path = make(tmp_path / f"painted{suffix}")
    stack = read_layers(path)
    assert [layer.name for layer in stack] == NAMES and stack.size == (HEIGHT, WIDTH)
    assert stack["Moved"].offset[0] >= 12 and stack["Moved"].offset[1] >= 20  # psd-tools may trim what is transparent
    whole = stack.recompose()
    assert (whole[3] == 1).all()
    expected = torch.from_numpy(composite(PAINTED)).permute(2, 0, 1)
    assert (whole[:3] - expected).abs().max() < 1.5 * LEVEL
    assert stack["Half"].rgba[3].max() == pytest.approx(0.5, abs=LEVEL)
    with open_layers(path) as file:
        preview = file.preview()
    assert preview is not None and (preview[:3] - expected).abs().max() < 3 * LEVEL


def test_a_layer_of_16_bits_is_read_in_full(tmp_path: Path) -> None:
    from omnialpha.io import write_image

    ramp = torch.linspace(0, 1, 300).expand(4, 2, 300).clone()
    write_image(tmp_path / "deep.png", ramp, bits=16)
    layer = '<stack><layer src="data/a.png"/></stack>'
    path = ora(tmp_path / "a.ora", layer, {"data/a.png": (tmp_path / "deep.png").read_bytes()}, (2, 300))
    read = read_layers(path)
    assert (read[0].rgba - ramp).abs().max() < 1 / 65535 and read[0].name == "data/a.png"


def test_a_mask_of_a_psd_hides_what_it_hides(tmp_path: Path) -> None:
    psd = PSDImage.new("RGBA", (WIDTH, HEIGHT))
    layer = psd.create_pixel_layer(Image.fromarray(opaque(back(1))), name="masked")
    shown = np.zeros((HEIGHT, WIDTH), np.uint8)
    shown[10:20, 5:25] = 255
    shown[20:30, 5:25] = 51
    layer.create_mask(Image.fromarray(shown))
    psd.save(tmp_path / "m.psd")
    alpha = read_layers(tmp_path / "m.psd")[0].placed((HEIGHT, WIDTH))[3]
    assert torch.equal(alpha, torch.from_numpy(shown / np.float32(255)))


LAYER = '<layer name="odd" src="data/a.png" {}/>'
FAULTS = {
    "mode": ("<stack>" + LAYER.format('composite-op="svg:multiply"') + "</stack>", "'odd' that is blended by svg:mul"),
    "group": (
        '<stack><stack name="g" opacity="0.5">' + 2 * LAYER.format("") + "</stack></stack>",
        "'g' that is a group of 2 layers with opacity 0.50",
    ),
    "missing": ('<stack><layer src="data/b.png"/></stack>', "names the picture 'data/b.png', which it does not hold"),
    "escape": ('<stack><layer src="../../secret.png"/></stack>', r"names the picture '../../secret.png'"),
    "empty": ("<stack></stack>", "has 0 visible layers"),
    "opacity": ("<stack>" + LAYER.format('opacity="7"') + "</stack>", "of opacity 7: use 0 to 1"),
    "xml": ("<stack>", "cannot be read"),
    "entity": ("<stack/><!DOCTYPE x>", "declares entities"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_told_by_layers_is_refused(fault: str, tmp_path: Path) -> None:
    stack, message = FAULTS[fault]
    (tmp_path / "secret.png").write_bytes(png(front(1)))
    (tmp_path / "in" / "here").mkdir(parents=True)
    path = ora(tmp_path / "in" / "here" / "a.ora", stack, {"data/a.png": png(front(1))})
    with pytest.raises(InputError, match=re.escape(message)):
        read_layers(path)


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = "<stack>" + LAYER.format("") + "</stack>"
    with pytest.raises(InputError, match="is 100000x100000 px"):
        read_layers(ora(tmp_path / "large.ora", stack, {"data/a.png": png(front(1))}, (100_000, 100_000)))
    monkeypatch.setattr(layer_files, "MAX_BYTES", 100_000)
    with pytest.raises(InputError, match=re.escape("holds 'data/a.png' of more than 100,000 bytes")):
        read_layers(ora(tmp_path / "bomb.ora", stack, {"data/a.png": bytes(200_000)}))
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, 4, 100_000, 100_000, 8, 3)
    (tmp_path / "large.psd").write_bytes(head)
    with pytest.raises(InputError, match="is 100000x100000 px"):
        read_layers(tmp_path / "large.psd")


def test_a_psd_that_blends_otherwise_is_refused(tmp_path: Path) -> None:
    psd = PSDImage.new("RGBA", (WIDTH, HEIGHT))
    psd.create_pixel_layer(Image.fromarray(front(1)), name="glow", blend_mode=BlendMode.SCREEN)
    psd.save(tmp_path / "a.psd")
    with pytest.raises(InputError, match="'glow' that is blended by screen: merge it down"):
        read_layers(tmp_path / "a.psd")
    cut = (tmp_path / "a.psd").read_bytes()
    for length in (0, 20, 40, len(cut) // 2):
        (tmp_path / "cut.psd").write_bytes(cut[:length])
        with pytest.raises(InputError, match=r"cut\.psd"):
            read_layers(tmp_path / "cut.psd")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(front(1)))
    with pytest.raises(InputError, match=r"is no file of layers: give \.psd, \.psb, \.ora"):
        read_layers(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.ora cannot be read"):
        read_layers((tmp_path / "a.png").rename(tmp_path / "a.ora"))
    with pytest.raises(InputError, match=r"none\.psd cannot be read"):
        read_layers(tmp_path / "none.psd")
    with zipfile.ZipFile(tmp_path / "b.ora", "w") as archive:
        archive.writestr("mimetype", "application/zip")
        archive.writestr("stack.xml", "<image/>")
    with pytest.raises(InputError, match="no OpenRaster"):
        read_layers(tmp_path / "b.ora")
