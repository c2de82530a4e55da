"""`omnialpha eval vae` from the command line, on the bundled model and on what cannot be measured."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import Result

from omnialpha.data.synthetic import layers as synthetic
from omnialpha.models.vae.alphavae import AlphaVAE

Call = Callable[..., Result]


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `in` of the current one: four procedural layers in two categories."""
    monkeypatch.chdir(tmp_path)
    layers, _ = synthetic.bank(4, 40, seed=1)
    for k, pixels in enumerate(layers):
        path = tmp_path / "in" / ("toy", "plant")[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return Path("in")


def test_the_bundled_model(call: Call, pictures: Path) -> None:
    first = call("eval", "vae", "nano", pictures, "--device", "cpu")
    assert first.exit_code == 0, first.stderr
    out = Path("runs/eval-vae/nano-in")
    assert first.stdout.startswith("4 pictures: PSNR (dB) ") and f"wrote {out / 'index.html'} in " in first.stdout
    assert "note: lpips skipped, no backbone" in first.stderr and "note: fid skipped, no features" in first.stderr
    assert sorted(p.name for p in out.iterdir()) == [
        "index.html", "report.json", "report.md", "rows.csv", "rows.jsonl", "summary.csv",
    ]  # fmt: skip

    again = call("eval", "vae", "nano", pictures, "--device", "cpu", "--json")
    assert again.exit_code == 0
    told = json.loads(again.stdout)
    assert (
        told["header"] | {"n": "4", "resolution": "40x40 (as stored)", "device": "cpu", "model": "nano"}
        == told["header"]
    )
    assert set(told["skipped"]) == {"lpips", "fid", "kid"} and told["bad"] == {}
    assert [row["category"] for row in told["summary"]] == ["total", "plant", "toy"]
    total = told["summary"][0]
    assert total["psnr"] > 20 and total["ssim"] > 0.7 and total["alpha_mad"] < 0.05
    assert len((out / "rows.jsonl").read_text().splitlines()) == 4


def test_diffusers_own_autoencoder_beside_ours(call: Call, pictures: Path) -> None:
    from diffusers import AutoencoderKLQwenImage

    torch.manual_seed(0)
    AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4, input_channels=4,
    ).save_pretrained("tiny")  # fmt: skip
    found = []
    for model in ("tiny", "diffusers:tiny"):
        result = call("eval", "vae", model, pictures, "--device", "cpu", "--json")
        assert result.exit_code == 0, result.stderr
        found.append(json.loads(result.stdout))
    assert [data["output"] for data in found] == ["runs/eval-vae/tiny-in", "runs/eval-vae/diffusers-tiny-in"]
    ours, theirs = (data["summary"][0] for data in found)
    assert ours["psnr"] == pytest.approx(theirs["psnr"], abs=1e-3) and ours["psnr"] < 30


def test_options_reach_the_benchmark(call: Call, pictures: Path) -> None:
    told = ["--size", 24, "--limit", 1, "--batch", 2, "--compat", "alphavae", "--quiet", "-o", "out", "--device", "cpu"]
    result = call("eval", "vae", "nano", pictures, *told)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    data = json.loads(Path("out/report.json").read_text())
    assert data["header"]["resolution"] == "24x24 (longer side 24 px)" and data["header"]["n"] == "2"
    assert any("JPEG (quality 75" in note for note in data["notes"])


def test_bad_pictures(call: Call, pictures: Path) -> None:
    Image.new("RGB", (40, 40)).save(pictures / "toy" / "flat.png")
    result = call("eval", "vae", "nano", pictures, "-o", "out")
    assert result.exit_code == 2 and "flat.png has no alpha channel" in result.stderr
    result = call("eval", "vae", "nano", pictures, "-o", "out", "--skip-bad")
    assert result.exit_code == 0 and "note: passed over, nano: in/toy/flat.png has no alpha channel" in result.stderr
    assert result.stdout.startswith("4 pictures")


def test_a_vae_of_the_wrong_kind(call: Call, pictures: Path) -> None:
    AlphaVAE(base_dim=8, z_dim=4, dim_mult=[1], num_res_blocks=1, channels=3).save_pretrained("rgb/vae")
    result = call("eval", "vae", "rgb", pictures)
    assert result.exit_code == 2
    assert "rgb/vae is a VAE for 3 channels, without alpha" in result.stderr
    assert "`omnialpha vae init rgb/vae FOLDER`" in result.stderr


def test_any_folder_with_a_vae(call: Call, pictures: Path) -> None:
    torch.manual_seed(0)
    AlphaVAE(base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1).save_pretrained("model/vae")
    for where in ("model", "model/vae"):
        result = call("eval", "vae", where, pictures, "--limit", 1, "-o", "out", "--quiet")
        assert result.exit_code == 0, result.stderr
    assert len(Path("out/rows.jsonl").read_text().splitlines()) == 2  # it is the same model


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "in"], "model 'nowhere' is neither bundled (nano) nor a folder"),
        (["nano", "nothing"], "nothing is not a folder"),
        (["nano", "empty"], "empty holds no pictures"),
        (["nano", "in", "--size", "0"], "size=0 is out of range"),
        (["nano", "in", "--size", "big"], "'big' is not a whole number"),
        (["nano", "in", "--compat", "other"], "compat='other' is not known: use alphavae"),
        (["nano", "in", "--lpips", "vgg16.pth"], "there is no file vgg16.pth with weights for LPIPS"),
        (["nano", "in", "--fid", "inception.pt"], "'inception.pt' is neither a TorchScript file nor"),
        (["nano", "in", "--device", "toaster"], "toaster"),
        (["nano"], "Missing argument 'DIR'"),
    ],
)
def test_what_is_refused(call: Call, pictures: Path, arguments: list[str], words: str) -> None:
    Path("empty").mkdir()
    result = call("eval", "vae", *arguments)
    assert result.exit_code == 2 and words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and not Path("runs").exists()


def test_a_stop_says_what_is_kept(call: Call, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from omnialpha.evaluation.runner import Runner

    whole = Runner.rows

    def stopped(self: Runner, *asked: object) -> Iterator[dict[str, object]]:
        rows = whole(self, *asked)  # type: ignore[arg-type]
        yield next(rows)
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "rows", stopped)
    result = call("eval", "vae", "nano", pictures, "-o", "out")
    assert result.exit_code == 130
    assert "stopped, 1 of 4 pictures are kept in out: run it again to go on" in result.stderr
    monkeypatch.setattr(Runner, "rows", whole)
    assert call("eval", "vae", "nano", pictures, "-o", "out").exit_code == 0
    assert len(Path("out/rows.jsonl").read_text().splitlines()) == 4


def test_its_help_loads_nothing_heavy() -> None:
    code = "import json, sys, omnialpha.cli.evaluate; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "numpy", "PIL", "diffusers"}.isdisjoint(json.loads(run.stdout))
