"""Files of layers: written, read back, and read by programs that are not ours."""

import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from omnialpha import rgba
from omnialpha.errors import InputError
from omnialpha.io import colour, read_image, write_image
from omnialpha.io.layer_writing import LAYER_FORMATS, write_layers
from omnialpha.io.layers import Layer, LayerStack
from omnialpha.io.samples import integers
from omnialpha.io.stack_reading import read_stack

HEIGHT, WIDTH = 60, 80
NAMES = ["background", "tree ü", "dog"]


def soft(seed: int, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    """A smooth picture whose alpha runs from 0 to 1, with clear and with solid rows."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 4, 6, 6, generator=generator)
    picture = torch.nn.functional.interpolate(small, size=(height, width), mode="bilinear")[0]
    picture[3, : height // 8], picture[3, -height // 8 :] = 0, 1
    return picture


@pytest.fixture
def stack() -> LayerStack:
    layers = [rgba.opaque(soft(0)), soft(1), soft(2, 20, 30)]
    offsets = [(0, 0), (0, 0), (12, -4)]
    named = zip(NAMES, layers, offsets, strict=True)
    return LayerStack((HEIGHT, WIDTH), [Layer(name, layer, offset) for name, layer, offset in named])


def levels(picture: torch.Tensor, bits: int = 8) -> np.ndarray:
    """(4, H, W) -> (H, W, 4), premultiplied, in steps of the file."""
    return np.rint(rgba.premultiply(picture).permute(1, 2, 0).numpy() * (2**bits - 1)).astype(np.int64)


LAYERED = [suffix for suffix in LAYER_FORMATS if suffix not in (".webp", ".tiff")]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", LAYERED)
def test_layers_come_back(tmp_path: Path, stack: LayerStack, suffix: str, bits: int) -> None:
    file = tmp_path / f"layers{suffix}"
    write_layers(file, stack, bits=bits, dpi=(300, 300))
    read = read_stack(file)
    assert read.size == stack.size and [layer.name for layer in read] == NAMES
    off = 2e-3 if suffix == ".exr" else 1.01 / (2**bits - 1)
    for before, after in zip(stack, read, strict=True):
        difference = rgba.premultiply(before.placed(stack.size)) - rgba.premultiply(after.placed(stack.size))
        assert float(difference.abs().max()) <= off
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_layers_are_cut_to_what_is_seen(tmp_path: Path, stack: LayerStack) -> None:
    write_layers(tmp_path / "x.psd", stack)
    assert [layer.offset for layer in read_stack(tmp_path / "x.psd")] == [(0, 0), (7, 0), (14, -4)]
    empty = LayerStack((4, 5), [Layer("all", rgba.opaque(torch.ones(3, 4, 5))), Layer("none", torch.zeros(4, 4, 5))])
    for suffix in (".psd", ".ora", ".tif"):
        write_layers(tmp_path / f"e{suffix}", empty)
        assert [layer.name for layer in read_stack(tmp_path / f"e{suffix}")] == ["all", "none"]


def test_a_picture_of_layers_is_an_input_like_any_other(tmp_path: Path, stack: LayerStack) -> None:
    for suffix, off in ((".psd", 2), (".ora", 2), (".exr", 2)):
        write_layers(tmp_path / f"x{suffix}", stack)
        picture = read_image(tmp_path / f"x{suffix}")
        assert picture.notes == ("3 layers as one picture",)
        assert np.abs(levels(picture.rgba) - levels(stack.recompose())).max() <= off


def test_profile_and_depth_of_a_psd(tmp_path: Path, stack: LayerStack) -> None:
    from PIL import ImageCms
    from psd_tools import PSDImage
    from psd_tools.constants import Resource

    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write_layers(tmp_path / "x.psd", stack, bits=16, icc=icc)
    psd = PSDImage.open(tmp_path / "x.psd")
    assert psd.depth == 16 and psd.image_resources.get_data(Resource.ICC_PROFILE) == icc
    assert psd.color_mode.name == "RGB" and psd.channels == 4


# ---- readers of others ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16])
def test_psd_by_photoshopapi(tmp_path: Path, stack: LayerStack, bits: int) -> None:
    psapi = pytest.importorskip("photoshopapi")
    plain = [Layer(layer.name.replace("ü", "u"), layer.rgba, layer.offset) for layer in stack]  # it reads ASCII alone
    write_layers(tmp_path / "x.psd", LayerStack(stack.size, plain), bits=bits)
    kind = psapi.LayeredFile_8bit if bits == 8 else psapi.LayeredFile_16bit
    file = kind.read(str(tmp_path / "x.psd"))
    assert (file.width, file.height) == (WIDTH, HEIGHT)
    assert [layer.name for layer in file.layers][::-1] == [layer.name for layer in plain]  # the top one comes first
    alpha = np.asarray(file.layers[1].get_image_data()[-1])
    expected = integers(stack[1].rgba, bits)[7:, :, 3]
    assert np.array_equal(alpha.reshape(expected.shape), expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_merged_picture_of_a_psd_by_openimageio(tmp_path: Path, stack: LayerStack, bits: int) -> None:
    oiio = pytest.importorskip("OpenImageIO")
    write_layers(tmp_path / "x.psd", stack, bits=bits)
    file = oiio.ImageInput.open(str(tmp_path / "x.psd"))
    merged = file.read_image(oiio.FLOAT)
    assert merged.shape == (HEIGHT, WIDTH, 4)
    flat = rgba.premultiply(stack.recompose()).permute(1, 2, 0).numpy()
    assert np.abs(merged - flat).max() < 3 / 255
    sizes = []
    while file.seek_subimage(len(sizes) + 1, 0):
        sizes.append((file.spec().height, file.spec().width))
    assert sizes == [(HEIGHT, WIDTH), (HEIGHT - 7, WIDTH), (18, 30)]


def test_ora_by_pyora(tmp_path: Path, stack: LayerStack) -> None:
    pyora = pytest.importorskip("pyora")
    write_layers(tmp_path / "x.ora", stack)
    project = pyora.Project.load(str(tmp_path / "x.ora"))
    assert project.dimensions == (WIDTH, HEIGHT)
    assert [layer.name for layer in project.children_recursive][::-1] == NAMES
    composed = np.asarray(project.get_image_data().convert("RGBA"), np.float32) / 255
    flat = stack.recompose().permute(1, 2, 0).numpy()
    assert np.abs(composed[..., :3] * composed[..., 3:] - flat[..., :3] * flat[..., 3:]).max() < 3 / 255


def test_openraster_as_its_specification_has_it(tmp_path: Path, stack: LayerStack) -> None:
    write_layers(tmp_path / "x.ora", stack, bits=16, settings={"seed": 7})
    with zipfile.ZipFile(tmp_path / "x.ora") as archive:
        first = archive.infolist()[0]
        assert first.filename == "mimetype" and first.compress_type == zipfile.ZIP_STORED
        assert archive.read("mimetype") == b"image/openraster"
        tree = ElementTree.fromstring(archive.read("stack.xml"))
        assert [node.get("name") for node in tree.iter("layer")] == NAMES[::-1]
        with Image.open(archive.open("Thumbnails/thumbnail.png")) as small:
            assert max(small.size) <= 256 and small.mode == "RGBA"
        merged = read_image(archive.read("mergedimage.png"))
    assert merged.bits == 16 and np.abs(levels(merged.rgba, 16) - levels(stack.recompose(), 16)).max() <= 2
    before = (tmp_path / "x.ora").read_bytes()
    write_layers(tmp_path / "x.ora", stack, bits=16, settings={"seed": 7})
    assert (tmp_path / "x.ora").read_bytes() == before


def test_exr_is_linear_premultiplied_half_floats_in_parts(tmp_path: Path, stack: LayerStack) -> None:
    openexr = pytest.importorskip("OpenEXR")
    write_layers(tmp_path / "x.exr", stack, settings={"seed": 7})
    file = openexr.File(str(tmp_path / "x.exr"))
    assert [part.name() for part in file.parts] == ["00 background", "01 tree ü", "02 dog"]
    samples = file.parts[1].channels["RGBA"].pixels
    tree = stack[1].rgba.permute(1, 2, 0).numpy()
    assert samples.dtype == np.float16
    assert np.allclose(samples[..., :3], colour.srgb_decode(tree[..., :3]) * tree[..., 3:], atol=1e-3)
    assert json.loads(file.parts[0].header["comments"]) == {"seed": 7}


def test_exr_by_openimageio(tmp_path: Path, stack: LayerStack) -> None:
    oiio = pytest.importorskip("OpenImageIO")
    write_layers(tmp_path / "x.exr", stack)
    image = oiio.ImageBuf(str(tmp_path / "x.exr"), 2, 0)
    assert image.spec().getattribute("oiio:subimagename") == "02 dog" and image.spec().channelnames == (
        "R",
        "G",
        "B",
        "A",
    )


def test_pages_of_a_tiff_and_the_preview(tmp_path: Path, stack: LayerStack) -> None:
    write_layers(tmp_path / "x.tif", stack, bits=16)
    with Image.open(tmp_path / "x.tif") as image:
        assert image.n_frames == 3
    assert read_image(tmp_path / "x.tif", frame=1).bits == 16
    write_layers(tmp_path / "x.webp", stack)
    with Image.open(tmp_path / "x.webp") as image:
        assert image.n_frames == 3
        image.seek(2)
        last = torch.from_numpy(np.asarray(image.convert("RGBA"), np.float32) / 255).permute(2, 0, 1)
    assert np.abs(levels(last) - levels(stack.recompose())).max() <= 2


@pytest.mark.skipif(not (shutil.which("krita") and shutil.which("xvfb-run")), reason="needs Krita and Xvfb")
@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".ora", ".psd"])
def test_krita_shows_the_same_composite(tmp_path: Path, stack: LayerStack, suffix: str) -> None:
    write_layers(tmp_path / f"x{suffix}", stack)
    export = ["krita", str(tmp_path / f"x{suffix}"), "--export", "--export-filename", str(tmp_path / "y.png")]
    subprocess.run(["xvfb-run", "-a", *export], check=True, capture_output=True, timeout=300)
    shown, ours = read_image(tmp_path / "y.png").rgba, read_stack(tmp_path / f"x{suffix}").recompose()
    assert np.abs(levels(shown) - levels(ours)).max() <= 1


# ---- what cannot be -------------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_is_refused_before_any_work(tmp_path: Path, stack: LayerStack) -> None:
    with pytest.raises(InputError, match=r"x.png cannot hold layers: end it with one of .psd, .ora"):
        write_layers(tmp_path / "x.png", stack)
    with pytest.raises(InputError, match="does not exist; create it first"):
        write_layers(tmp_path / "no" / "x.psd", stack)
    wide = LayerStack((1, 30001), [Layer("wide", torch.ones(4, 1, 30001))])
    with pytest.raises(InputError, match="a side of 30001 px, but PSD ends at 30000"):
        write_layers(tmp_path / "x.psd", wide)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("suffix", [".psd", ".ora", ".exr", ".tif"])
def test_a_damaged_file_is_said_to_be(tmp_path: Path, stack: LayerStack, suffix: str) -> None:
    file = tmp_path / f"x{suffix}"
    write_layers(file, stack)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    with pytest.raises(InputError, match=file.name):
        read_stack(file)


def test_an_old_file_stays_where_the_new_one_fails(
    tmp_path: Path, stack: LayerStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.ora"
    write_layers(file, stack)
    before = file.read_bytes()
    monkeypatch.setattr("omnialpha.io.stack_reading.read_stack", lambda path: LayerStack((1, 1), [stack[0]]))
    with pytest.raises(RuntimeError, match="does not read back"):
        write_layers(file, stack)
    assert file.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [file.name]


def test_pages_of_several_sizes_are_no_layers(tmp_path: Path) -> None:
    import tifffile

    with tifffile.TiffWriter(tmp_path / "x.tif") as writer:
        for side in (8, 9):
            writer.write(np.zeros((side, side, 3), np.uint8), photometric="rgb")
    with pytest.raises(InputError, match="pages of 2 sizes"):
        read_stack(tmp_path / "x.tif")
    write_image(tmp_path / "one.png", soft(3))
    assert len(read_stack(tmp_path / "one.png")) == 1
