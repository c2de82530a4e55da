"""`omnialpha vae`: a VAE for RGBA out of each kind for RGB, whole or not at all; figures of backgrounds."""

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLQwenImage
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import Result

from omnialpha import rgba
from omnialpha.cli import vae as commands
from omnialpha.models.vae.alphavae import AlphaVAE, load_vae
from omnialpha.models.vae.autoencoder import WEIGHTS

Call = Callable[..., Result]
FLUX = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
}
QWEN = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [False]}
QWEN |= {"latents_mean": [0.4, -0.7, 0.1, 1.3], "latents_std": [1.6, 0.5, 2.2, 0.9]}
OWN = {"base_dim": 8, "z_dim": 6, "dim_mult": [1, 2], "num_res_blocks": 1, "patch_size": 4, "linear_skip": True}
KINDS = {
    "qwen": lambda c: AutoencoderKLQwenImage(**QWEN, input_channels=c),
    "flux": lambda c: AutoencoderKL(**FLUX, in_channels=c, out_channels=c),
    "own": lambda c: AlphaVAE(**OWN, channels=c, latents_mean=[0.5] * 6, latents_std=[1.5] * 6),
}
CLASSES = {"qwen": "AutoencoderKLQwenImageAlpha", "flux": "AutoencoderKL", "own": "AlphaVAE"}


def stock(kind: str, folder: Path, channels: int = 3, dtype: torch.dtype = torch.float32) -> Path:
    """A VAE with every parameter random, saved as its library does, with the folder it was once loaded from."""
    torch.manual_seed(0)
    vae = KINDS[kind](channels).requires_grad_(False)
    for parameter in vae.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    vae.to(dtype).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_name_or_path": "somebody/else"}))
    return folder


def refused(result: Result) -> str:
    """The one sentence of a command that ended with a mistake."""
    assert result.exit_code == 2 and result.stdout == "", result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- init -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_alpha_channel_for_each_kind(kind: str, call: Call, tmp_path: Path) -> None:
    source = stock(kind, tmp_path / "rgb")
    made = call("vae", "init", source, tmp_path / "rgba")
    assert made.exit_code == 0, made.stderr
    assert f"wrote {tmp_path / 'rgba'} ({CLASSES[kind]}, 4 channels)" in made.stdout
    found = re.search(r"RGB differs by at most (\S+), alpha from 1 by at most (\S+)\n", made.stderr)
    assert found and max(map(float, found.groups())) <= 1e-6
    assert files(tmp_path) == ["rgb", "rgba"] and files(tmp_path / "rgba") == ["config.json", WEIGHTS]
    config = json.loads((tmp_path / "rgba/config.json").read_text())
    assert config["_class_name"] == CLASSES[kind] and "_name_or_path" not in config

    old, new = load_vae(source), load_vae(tmp_path / "rgba")
    assert new.config.channels == 4 and new.normalisation == old.normalisation
    x = torch.rand(2, 4, 32, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        reconstructed = new.decode(new.encode(x))
        assert (reconstructed[:, :3] - old.decode(old.encode(x[:, :3]))).abs().max() <= 1e-5
        assert (reconstructed[:, 3] == 1).all()


def test_flux_opens_in_diffusers_and_qwen_keeps_three_dimensions(call: Call, tmp_path: Path) -> None:
    for kind in ("flux", "qwen"):
        assert call("vae", "init", stock(kind, tmp_path / kind), tmp_path / f"{kind}4").exit_code == 0
    theirs = AutoencoderKL.from_pretrained(tmp_path / "flux4")
    assert theirs.config.in_channels == theirs.config.out_channels == 4
    state = load_file(tmp_path / "qwen4" / WEIGHTS)
    AutoencoderKLQwenImage(**QWEN, input_channels=4).load_state_dict(state)
    before = load_file(tmp_path / "qwen" / WEIGHTS)
    assert all(torch.equal(state[k], v) for k, v in before.items() if "coder.conv_" not in k)
    assert torch.equal(state["encoder.conv_in.weight"][:, :3], before["encoder.conv_in.weight"])


def test_the_vae_of_a_model_in_its_own_precision(call: Call, tmp_path: Path) -> None:
    source = stock("flux", tmp_path / "model/vae", dtype=torch.bfloat16).parent
    made = json.loads(call("vae", "init", source, tmp_path / "out", "--json", "--quiet").stdout)
    assert made.pop("seconds") >= 0 and max(made.pop("rgb"), made.pop("alpha")) <= 1e-5
    assert made == {"output": str(tmp_path / "out"), "class": "AutoencoderKL"}
    assert {v.dtype for v in load_file(tmp_path / "out" / WEIGHTS).values()} == {torch.bfloat16}


def test_what_is_there_is_replaced_only_by_force(call: Call, tmp_path: Path) -> None:
    source, out = stock("own", tmp_path / "rgb"), stock("own", tmp_path / "out", channels=4)
    (out / "notes.txt").write_text("old")
    assert "out exists: choose another folder, or replace it with --force." in refused(call("vae", "init", source, out))
    assert (out / "notes.txt").is_file()
    assert call("vae", "init", source, out, "--force").exit_code == 0
    assert files(out) == ["config.json", WEIGHTS] and files(tmp_path) == ["out", "rgb"]
    for folder in (source, tmp_path):
        assert "which is read: choose another folder" in refused(call("vae", "init", source, folder, "--force"))
    (tmp_path / "pictures").mkdir()
    assert call("vae", "init", source, tmp_path / "pictures").exit_code == 0, "an empty folder is no loss"
    (tmp_path / "out/config.json").unlink()
    assert "out is no VAE folder, so it is not replaced" in refused(call("vae", "init", source, out, "--force"))


@pytest.mark.parametrize("fault", ["colour", "alpha", "nan"])
def test_what_does_not_pass_the_trial_is_not_kept(
    fault: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = stock("own", tmp_path / "rgb"), stock("own", tmp_path / "out", channels=4)

    def spoiled(vae: AlphaVAE, folder: Path, source: Path) -> None:
        bias = vae.state_dict()["decoder.conv_out.bias"]  # 16 values a channel
        bias[{"colour": 3, "alpha": 50, "nan": 3}[fault]] += float("nan") if fault == "nan" else 1e-3
        vae.save_pretrained(folder)

    monkeypatch.setattr("omnialpha.models.vae.alphavae.write", spoiled)
    before = (out / WEIGHTS).read_bytes()
    figures = {"colour": "5.0e-04 and .* by 0.0e", "alpha": r"by 0.0e\+00 and .* by 5.0e-04", "nan": "by nan"}[fault]
    assert re.search(
        f"rgb cannot be given an alpha channel, as .*{figures}", refused(call("vae", "init", source, out, "--force"))
    )
    assert (out / WEIGHTS).read_bytes() == before and files(tmp_path) == ["out", "rgb"]


def test_an_alpha_that_is_seen_is_noticed(tmp_path: Path) -> None:
    rgb = AlphaVAE.load(stock("own", tmp_path / "rgb"))
    wide = rgb.widened().requires_grad_(False)
    assert commands.compare(rgb, wide)["rgb"] <= 1e-6
    wide.linear_in.weight[:, 3] = 0.01
    wide.linear_in.bias -= wide.linear_in.weight[:, 3].sum((1, 2))  # so that an alpha of 1 everywhere is not
    assert commands.compare(rgb, wide)["rgb"] > 1e-4


def test_what_is_no_vae_for_rgb(call: Call, tmp_path: Path) -> None:
    source, out = stock("own", tmp_path / "rgb"), tmp_path / "out"
    for kind in KINDS:
        wide = stock(kind, tmp_path / f"{kind}-wide", channels=4)
        assert f"{kind}-wide has 4 channels already: only a VAE for RGB is given" in refused(
            call("vae", "init", wide, out)
        )
    (source / WEIGHTS).write_bytes((source / WEIGHTS).read_bytes()[:-100])
    assert "is cut short, damaged or" in refused(call("vae", "init", source, out))
    (source / WEIGHTS).unlink()
    assert f"rgb has neither {WEIGHTS} nor" in refused(call("vae", "init", source, out))
    config = json.loads((source / "config.json").read_text())
    for name in ("AutoencoderKLWan", "QwenImageTransformer2DModel"):  # whatever their weights are called
        (source / "config.json").write_text(json.dumps(config | {"_class_name": name}))
        assert f"rgb holds a {name}, not an autoencoder for pictures known here" in refused(
            call("vae", "init", source, out)
        )
    (source / "config.json").unlink()
    assert "rgb holds no config.json and no vae/" in refused(call("vae", "init", source, out))
    assert "'nowhere' is neither bundled (nano) nor a folder" in refused(call("vae", "init", "nowhere", out))
    assert not out.exists()


def test_other_weights_of_the_right_kind_are_refused(call: Call, tmp_path: Path) -> None:
    source = stock("flux", tmp_path / "rgb")
    state = load_file(source / WEIGHTS)
    save_file({k: v for k, v in state.items() if k != "decoder.conv_in.bias"}, source / WEIGHTS)
    assert "do not fit its config.json" in refused(call("vae", "init", source, tmp_path / "out"))
    assert files(tmp_path) == ["rgb"]


# ---- background-stats -----------------------------------------------------------------------------------------------


@pytest.fixture
def scenes(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A tree of pictures of different sizes, and the mean over them of (mean, mean square) in [-1, 1]."""
    rng, rows = np.random.default_rng(0), []
    for number in range(40):
        pixels = rng.integers(0, rng.integers(2, 256), (rng.integers(3, 30), 12, 3), dtype=np.uint8)
        path = tmp_path / "scenes" / f"{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        b = pixels.reshape(-1, 3) / 127.5 - 1
        rows.append([b.mean(0), (b**2).mean(0)])
    return tmp_path / "scenes", np.mean(rows, axis=0)


def test_figures_of_backgrounds(scenes: tuple[Path, np.ndarray], call: Call) -> None:
    folder, wanted = scenes
    made = json.loads(call("vae", "background-stats", folder, "--json").stdout)
    assert (made["folder"], made["pictures"]) == (str(folder), 40)
    assert np.abs(np.array([made["mean"], made["square"]]) - wanted).max() < 1e-6
    shown = call("vae", "background-stats", folder)
    assert "# of 40 pictures, in [-1, 1]" in shown.stdout
    table = tomllib.loads(shown.stdout)["background"]
    assert np.abs(np.array([table["mean"], table["square"]]) - wanted).max() <= 5.1e-5


def test_grey_pictures_and_an_opaque_alpha_count(call: Call, tmp_path: Path) -> None:
    Image.new("L", (3, 3), 255).save(tmp_path / "grey.png")
    Image.new("RGBA", (5, 2), (0, 0, 0, 255)).save(tmp_path / "opaque.png")
    made = json.loads(call("vae", "background-stats", tmp_path, "--json").stdout)
    assert (made["mean"], made["square"]) == ([0.0] * 3, [1.0] * 3)


def test_what_is_no_background(scenes: tuple[Path, np.ndarray], call: Call, tmp_path: Path) -> None:
    folder = scenes[0]
    assert "missing is not a folder" in refused(call("vae", "background-stats", tmp_path / "missing"))
    (tmp_path / "empty").mkdir()
    assert "empty holds no pictures (.png, " in refused(call("vae", "background-stats", tmp_path / "empty"))
    (folder / "0/1.png").write_bytes((folder / "0/0.png").read_bytes()[:60])
    assert "1.png is damaged or cut off" in refused(call("vae", "background-stats", folder))
    (folder / "0/1.png").unlink()
    Image.new("RGBA", (3, 3), (0, 0, 0, 254)).save(folder / "0/1.png")
    words = "1.png has transparent pixels, so it is no background: flatten it, or take it away."
    assert words in refused(call("vae", "background-stats", folder))


def test_the_figures_are_those_that_the_objective_expects(scenes: tuple[Path, np.ndarray], call: Call) -> None:
    """The expectation of the composited error from the two figures is the mean over the very backgrounds."""
    folder, _ = scenes
    made = json.loads(call("vae", "background-stats", folder, "--json").stdout)
    x = torch.rand(2, 4, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = []
    for path in folder.rglob("*.png"):
        back = torch.from_numpy(np.asarray(Image.open(path)) / 255.0).movedim(-1, 0)
        a, b = (rgba.flatten(picture.expand(4, *back.shape[1:]), back) for picture in x)
        errors.append((2 * (a - b)).square().mean((1, 2)))
    mean, square = torch.tensor([made["mean"], made["square"]], dtype=torch.float64)
    signed, alpha = 2 * x[:, :3, 0, 0] - 1, x[:, 3:, 0, 0]
    difference = (alpha * signed)[0] - (alpha * signed)[1]
    d = alpha[0] - alpha[1]
    expected = difference**2 - 2 * mean * difference * d + square * d**2
    assert torch.stack(errors).mean(0).tolist() == pytest.approx(expected.tolist(), rel=1e-6)
