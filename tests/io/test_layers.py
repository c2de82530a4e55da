"""Layer stacks: placing, recomposition, saving and loading."""

import json
from pathlib import Path

import pytest
import torch
from PIL import ImageCms

from omnialpha import rgba
from omnialpha.errors import InputError
from omnialpha.io import read_image, read_settings, write_image
from omnialpha.io.layers import Layer, LayerStack


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def stack() -> LayerStack:
    background = noise(4, 20, 30)
    background[3] = 1
    return LayerStack(
        (20, 30),
        [
            Layer("background", background, role="background"),
            Layer("small cat", noise(4, 8, 9, seed=1), (5, 6), "foreground"),
            Layer("hat/../é", noise(4, 12, 40, seed=2), (-4, -3)),
        ],
    )


def test_a_layer_may_be_small_and_may_stick_out() -> None:
    layer = Layer("x", noise(4, 4, 6), (-1, 3))
    placed = layer.placed((5, 7))
    assert torch.equal(placed[:, :3, 3:], layer.rgba[:, 1:, :4])
    assert placed[:, 3:].abs().sum() == 0 and placed[:, :, :3].abs().sum() == 0
    for outside in ((-4, 0), (5, 0), (0, -6), (0, 7), (90, 90), (-90, -90)):
        assert Layer("x", layer.rgba, outside).placed((5, 7)).abs().sum() == 0


def test_recompose_equals_over_by_hand() -> None:
    layers = stack()
    cat = torch.zeros(4, 20, 30)
    cat[:, 5:13, 6:15] = layers["small cat"].rgba
    hat = torch.zeros(4, 20, 30)
    hat[:, :8, :30] = layers[2].rgba[:, 4:, 3:33]
    assert torch.allclose(layers.recompose(), rgba.over(hat, rgba.over(cat, layers[0].rgba)), atol=1e-6)


def test_order_names_and_error() -> None:
    layers = stack()
    assert len(layers) == 3 and [layer.name for layer in layers][0] == "background" and layers[-1].offset == (-4, -3)
    assert layers.error(layers.recompose())["mae"] == 0
    black = layers.recompose() * torch.tensor([0, 0, 0, 1.0])[:, None, None]
    assert layers.error(black)["mae"] == pytest.approx(float(layers.recompose()[:3].mean()) * 3 / 4, rel=1e-4)
    with pytest.raises(InputError, match="small cat"):
        layers["smal cat"]
    with pytest.raises(InputError, match=r"\(4, 3, 3\)"):
        layers.error(torch.zeros(4, 3, 3))


def test_bad_layers_are_refused() -> None:
    with pytest.raises(InputError, match="0 layers"):
        LayerStack((3, 3), [])
    with pytest.raises(InputError, match="3x0"):
        LayerStack((0, 3), [Layer("x", noise(4, 3, 3))])
    with pytest.raises(InputError, match=r"\(3, 5, 5\)"):
        Layer("x", noise(3, 5, 5))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_saved_stack_recomposes_within_one_step(tmp_path: Path, bits: int) -> None:
    before = stack()
    before.save(tmp_path / "out", bits=bits)
    after = LayerStack.load(tmp_path / "out")
    assert (after.recompose() - before.recompose()).abs().max() <= (1.001 / 255 if bits == 8 else 3 / 65535)
    assert after.size == before.size
    assert [(a.name, a.offset, a.role) for a in after] == [(b.name, b.offset, b.role) for b in before]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out"]


def test_saving_again_replaces_a_stack_an_empty_folder_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    stack().save(folder)
    LayerStack((20, 30), list(stack())[:1]).save(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["00-background.png", "layers.json"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="notes.txt"):
        stack().save(folder)
    assert (folder / "notes.txt").read_text() == "mine" and len(LayerStack.load(folder)) == 1
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        stack().save(other)
    with pytest.raises(InputError, match="is a file"):
        stack().save(other / "a.txt")
    with pytest.raises(InputError, match="does not exist"):
        stack().save(tmp_path / "no" / "out")


def test_a_failed_save_leaves_the_old_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack().save(tmp_path / "out")

    def full(path: Path, *args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("omnialpha.io.layers.write_image", full)
    with pytest.raises(InputError, match="No space left"):
        stack().save(tmp_path / "out")
    assert len(LayerStack.load(tmp_path / "out")) == 3 and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_edited_layer_is_read_back(tmp_path: Path) -> None:
    stack().save(tmp_path / "out")
    write_image(tmp_path / "out" / "01-small-cat.png", torch.ones(4, 3, 3))
    assert torch.equal(LayerStack.load(tmp_path / "out")["small cat"].rgba, torch.ones(4, 3, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 9}, "version 1"),
        ({"layers": [{"name": "x"}]}, "file"),
        ({"layers": [{"name": "x", "file": "../secret.png", "offset": [0, 0]}]}, "inside the folder"),
        ({"layers": [{"name": "x", "file": "gone.png", "offset": [0, 0]}]}, "There is no file"),
        ({"size": [3]}, "field"),
        ({"layers": []}, "0 layers"),
    ],
)
def test_damaged_stacks_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    stack().save(tmp_path / "out")
    index = tmp_path / "out" / "layers.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    with pytest.raises(InputError, match=message):
        LayerStack.load(tmp_path / "out")


def test_every_layer_carries_profile_resolution_and_settings(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    settings = {"task": "decompose_auto", "seed": 7}
    stack().save(tmp_path / "out", settings=settings, icc=profile, dpi=(300, 150))
    for file in (tmp_path / "out").glob("*.png"):
        made = read_image(file)
        assert made.icc == profile and made.dpi == pytest.approx((300, 150), abs=0.02)
        assert read_settings(file) == settings
    assert json.loads((tmp_path / "out" / "layers.json").read_text())["settings"] == settings
    assert len(LayerStack.load(tmp_path / "out")) == 3


@pytest.mark.parametrize("name", ["out.png", "out.JPG", "out.psd", "out.ora", "out.exr"])
def test_a_name_of_a_picture_is_no_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        InputError, match=rf"{name} cannot hold layers: name a folder, or a .psd, .ora, .exr, .tif or .webp file\.$"
    ):
        stack().save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    stack().save(tmp_path / "v1.2")  # no picture's


def test_what_is_no_stack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no layers.json"):
        LayerStack.load(tmp_path)
    with pytest.raises(InputError, match="no layers.json"):
        LayerStack.load(tmp_path / "missing")
    (tmp_path / "layers.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        LayerStack.load(tmp_path)
