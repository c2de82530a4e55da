"""The finish of a cut-out: edge, colours, shadow, margin, background."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import grey_dilation, grey_erosion
from typer.testing import CliRunner

import omnialpha
from omnialpha import rgba
from omnialpha.cli.main import app
from omnialpha.cutout import choked, cropped, feathered, finish, shadow
from omnialpha.cutout_options import Cutout
from omnialpha.errors import InputError
from omnialpha.io import read_image, read_settings, write_image

SIZE = (60, 80)


def ball(softness: float = 3.0) -> torch.Tensor:
    """Alpha of a ball of 20 px in the middle."""
    y, x = torch.meshgrid(torch.arange(SIZE[0]) - 30.0, torch.arange(SIZE[1]) - 40.0, indexing="ij")
    return ((20 - torch.hypot(x, y)) / softness + 0.5).clamp(0, 1)


def scene(softness: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A red ball, as a layer, and the picture of it on green."""
    alpha = ball(softness)
    red = torch.tensor([0.9, 0.1, 0.1])[:, None, None].expand(3, *SIZE)
    green = torch.tensor([0.1, 0.8, 0.2])[:, None, None].expand(3, *SIZE)
    layer = torch.cat([red, alpha[None]])
    return layer, rgba.opaque(alpha * red + (1 - alpha) * green)


@pytest.mark.parametrize("radius", [1.0, 2.5, 4.3])
def test_choke_is_grey_morphology_by_a_disk(radius: float) -> None:
    alpha = torch.rand(40, 50, generator=torch.Generator().manual_seed(0))
    reach = np.arange(-int(radius), int(radius) + 1)
    disk = reach[:, None] ** 2 + reach[None] ** 2 <= radius**2
    kwargs = {"footprint": disk, "mode": "constant"}
    assert np.array_equal(choked(alpha, radius).numpy(), grey_erosion(alpha.numpy(), cval=np.inf, **kwargs))
    assert np.array_equal(choked(alpha, -radius).numpy(), grey_dilation(alpha.numpy(), cval=-np.inf, **kwargs))


def test_choke_moves_an_edge_by_its_pixels_and_by_parts_of_one() -> None:
    area = {radius: float(choked(ball(), radius).sum()) for radius in (0.0, 0.5, 2.0, -2.0)}
    moved = {radius: 20 - (value / torch.pi) ** 0.5 for radius, value in area.items()}
    assert moved[2.0] - moved[0.0] == pytest.approx(2, abs=0.2)
    assert moved[-2.0] - moved[0.0] == pytest.approx(-2, abs=0.25)
    assert moved[0.5] - moved[0.0] == pytest.approx(0.5, abs=0.15)


def test_feather_softens_and_keeps_the_area() -> None:
    hard = (ball() > 0.5).float()
    soft = feathered(hard, 8)
    row = soft[30, 40:]
    width = int(((row > 0.05) & (row < 0.95)).sum())
    assert 5 <= width <= 9 and float(soft.sum()) == pytest.approx(float(hard.sum()), rel=0.01)
    assert torch.equal(feathered(hard, 0), hard)


def test_decontamination_is_apart_from_alpha() -> None:
    layer, picture = scene()
    soft = (layer[3] > 0.2) & (layer[3] < 0.8)
    with_it, without = (finish(layer, picture, Cutout(decontaminate=flag))[0] for flag in (True, False))
    assert torch.equal(with_it[3], without[3])
    assert torch.equal(with_it, layer) and torch.equal(without[:3], picture[:3])
    wide = finish(layer, picture, Cutout(choke=-4))[0]  # where the picture is green already
    rim = (layer[3] == 0) & (wide[3] > 0.5)
    assert int(rim.sum()) > 100 and float((wide[0] - wide[1])[rim].mean()) > 0.5
    assert float((without[0] - without[1])[soft].mean()) < float((with_it[0] - with_it[1])[soft].mean()) - 0.2


def lit(plain: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """A ball before a wall that gets darker to the right, with a shadow of .4 below it; the shadow's true alpha."""
    y, x = torch.meshgrid(torch.linspace(0, 1, SIZE[0]), torch.linspace(0, 1, SIZE[1]), indexing="ij")
    wall = 0.9 - 0.2 * x
    if not plain:
        wall = wall * (0.5 + 0.5 * torch.rand(*SIZE, generator=torch.Generator().manual_seed(3)))
    dark = 0.4 * torch.exp(-(((y - 0.82) / 0.06) ** 2) - ((x - 0.55) / 0.2) ** 2)
    alpha = ball()
    grey = alpha * 0.3 + (1 - alpha) * wall * (1 - dark)
    return rgba.opaque(grey.expand(3, *SIZE)), dark


def test_a_shadow_on_a_plain_background_is_kept() -> None:
    picture, dark = lit()
    made = shadow(picture, ball())
    assert made is not None
    seen = (ball() == 0) & (dark > 0.1)
    assert float((made - dark)[seen].abs().mean()) < 0.05
    away = (ball() == 0) & (dark < 0.005)
    assert float(made[away].max()) < 0.08
    kept, notes = finish(torch.cat([picture[:3], ball()[None]]), picture, Cutout(shadow="keep"))
    assert not notes and torch.equal(kept[:, ball() == 1], torch.cat([picture[:3], ball()[None]])[:, ball() == 1])
    assert float(kept[3][seen].mean()) > 0.12 and float(kept[:3][:, seen].mean()) < 0.02


def test_no_shadow_is_made_up_where_the_background_is_not_plain() -> None:
    picture, _ = lit(plain=False)
    layer = torch.cat([picture[:3], ball()[None]])
    made, notes = finish(layer, picture, Cutout(shadow="keep"))
    assert torch.equal(made, layer) and notes == ("no shadow was kept, as the background is not plain",)
    import skimage.data

    wood = torch.from_numpy(skimage.data.coffee()).permute(2, 0, 1) / 255
    cup = torch.zeros(400, 600)
    cup[20:390, 80:480] = 1
    assert shadow(rgba.opaque(wood), cup) is None
    clear = rgba.opaque(torch.full((3, *SIZE), 0.8))
    assert float(shadow(clear, torch.zeros(SIZE)).max()) == 0  # type: ignore[union-attr]


def test_crop_has_a_margin_in_pixels_or_shares() -> None:
    layer, _ = scene(softness=1.0)
    side = 40  # of the ball
    assert cropped(layer, Cutout(crop="0")).shape == (4, side + 1, side + 1)
    assert cropped(layer, Cutout(crop="7")).shape == (4, side + 15, side + 15)
    assert cropped(layer, Cutout(crop="100%")).shape == (4, 3 * (side + 1), 3 * (side + 1))  # beyond the picture
    assert float(cropped(layer, Cutout(crop="100%"))[3].sum()) == pytest.approx(float(layer[3].sum()))
    empty = torch.zeros(4, 5, 6)
    assert cropped(empty, Cutout(crop="3")).shape == empty.shape


def test_a_background_is_behind_what_was_cropped(tmp_path: Path) -> None:
    layer, picture = scene()
    made = finish(layer, picture, Cutout(crop="10", background="#0000ff"))[0]
    assert made[:, 0, 0].tolist() == [0, 0, 1, 1] and bool((made[3] == 1).all())
    write_image(tmp_path / "back.png", rgba.opaque(torch.full((3, 10, 10), 0.25)))
    made = finish(layer, picture, Cutout(background=str(tmp_path / "back.png")))[0]
    assert made.shape == layer.shape and float(made[0, 0, 0]) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"choke": 101.0}, "choke=101 is out of range"),
        ({"feather": -1.0}, "feather=-1 is out of range"),
        ({"feather": float("nan")}, "feather=nan"),
        ({"shadow": "some"}, "shadow='some' is not known"),
        ({"crop": "wide"}, "crop='wide' is no margin"),
        ({"crop": "-3"}, "crop='-3' is no margin"),
    ],
)
def test_options_that_cannot_be(options: dict, said: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InputError, match=said):
        Cutout(**options)


def test_the_command_line_has_every_option_and_the_library_the_same_result(tmp_path: Path) -> None:
    """And the settings of what was asked for are in the file."""
    _, picture = scene()
    write_image(tmp_path / "in.png", picture)
    arguments = ["matte", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), "--json"]
    asked = ["--choke", "1.5", "--feather", "2", "--crop", "5%", "--no-decontaminate", "--shadow", "keep"]
    result = CliRunner().invoke(app, [*arguments, *asked, "--background", "white", "--refine", "closed-form"])
    assert result.exit_code == 0, result.output
    settings = read_settings(tmp_path / "out.png")
    assert settings and {field.name for field in fields(Cutout)} <= settings.keys() and settings["choke"] == 1.5
    options = Cutout(1.5, 2.0, False, "keep", "5%", "white")
    ours = omnialpha.load().matte(str(tmp_path / "in.png"), cutout=options, refine="closed-form")
    made = read_image(tmp_path / "out.png").rgba
    assert torch.equal(
        (made * 255).round(), torch.from_numpy(np.asarray(ours.convert("RGBA"))).permute(2, 0, 1).float()
    )


@pytest.mark.parametrize("how", ["auto", "off", "closed-form"])
def test_refining_can_be_chosen(how: str) -> None:
    """Off leaves the finder's own alpha, stretched; closed-form is what auto does for a cut-out by the finder."""
    _, picture = scene()
    model = omnialpha.load()
    made = model.matte(picture, refine=how)
    assert made.shape == picture.shape
    auto = model.matte(picture)
    assert torch.equal(made, auto) == (how != "off")
    with pytest.raises(InputError, match="refine='best' is not known: use auto, off, closed-form"):
        model.matte(picture, refine="best")
