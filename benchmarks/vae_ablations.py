"""What each term of the autoencoder's objective is worth, at equal compute: `python benchmarks/vae_ablations.py`.

A small RGB autoencoder is trained (recipes/nano-rgb-vae.toml), given an alpha channel by opaque initialisation, and
fine-tuned with all terms and without each of them (recipes/nano-alphavae.toml); the same network is also trained on
RGBA pictures from nothing. All are measured on held-out layers. Runs resume: what is finished is not trained again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common.documents import write_block
from common.tables import Table, save
from common.training_runs import begin
from torch import Tensor

from omnialpha import config, rgba
from omnialpha.data.synthetic.scenes import compose
from omnialpha.evaluation.metrics.backgrounds import BACKGROUNDS
from omnialpha.models.vae.alphavae import load_vae
from omnialpha.training.loop import fit
from omnialpha.training.perceptual import pyramid
from omnialpha.training.sources import load_banks
from omnialpha.training.vae import on_black_and_white
from omnialpha.training.vae_recipe import VAERecipe

ROOT = Path(__file__).resolve().parents[1]
RGB, RGBA = ROOT / "recipes/nano-rgb-vae.toml", ROOT / "recipes/nano-alphavae.toml"

FROM_RGB: dict[str, list[str]] = {
    "all terms": [],
    "naive square error": ["loss.pixels=naive"],
    "no discriminator": ["loss.adversarial=0.0"],
    "no perceptual distance": ["loss.perceptual=0.0"],
    "no KL to the prior": ["loss.prior=0.0"],
    "no KL to the initial VAE": ["loss.reference=0.0"],
    "100 x KL to the initial VAE": ["loss.reference=1e-4"],
}
FROM_NOTHING = {  # settings of the network that differ from the RGB one's
    "from random weights": {"linear_skip": False},
    "from the linear autoencoder": {},
}


def made(recipe: Path, overrides: Sequence[str]) -> VAERecipe:
    return config.build(VAERecipe, config.load(recipe, overrides))


def train(recipe: Path, folder: Path, overrides: Sequence[str], model: dict[str, Any] | None = None) -> Path:
    """The VAE folder that this run ends with. model: settings of a VAE from nothing."""
    tree = config.load(recipe, [*overrides, f"fit.output={folder.as_posix()}"])
    if model:
        tree["model"] = model
    begin(folder, tree)
    if not (folder / "model").is_dir():
        ready = config.build(VAERecipe, tree)
        fit(ready.objective(), ready.fit)
    return folder / "model" / "vae"


@torch.no_grad()
def held_out(recipe: VAERecipe, count: int) -> tuple[Tensor, Tensor]:
    """(layers, opaque composites), (count, 4, H, W) each, of the recipe's held-out bank."""
    _, bank = load_banks(recipe.data)
    size = recipe.sizes[0]
    scenes = compose(bank, count, 1, (size[0], size[1]), torch.Generator().manual_seed(99))
    composites = [scene.composite for scene in scenes if scene.composite is not None]
    return torch.stack([scene.layers[0] for scene in scenes]), torch.stack(composites)


@torch.no_grad()
def figures(folder: Path, first: Path, layers: Tensor, composites: Tensor) -> list[float]:
    """PSNR of layers over nine backgrounds, their perceptual distance, alpha MAD, PSNR of opaque pictures; how far the
    latents of opaque pictures went from the initial VAE's, and what its decoder makes of them.
    """
    vae, base = load_vae(folder), load_vae(first)
    out = torch.cat([vae.decode(vae.encode(x)) for x in layers.split(32)])
    each = [
        rgba.psnr(rgba.flatten(x, c), rgba.flatten(y, c))
        for x, y in zip(layers, out, strict=True)
        for c in BACKGROUNDS.values()
    ]
    true, got = (on_black_and_white(rgba.premultiply(p)) for p in (layers, out))
    mad = (layers[:, 3] - out[:, 3]).abs().mean()
    latents = torch.cat([vae.encode(x) for x in composites.split(32)])
    again = torch.cat([vae.decode(z) for z in latents.split(32)])
    opaque = [rgba.psnr(x[:3], y) for x, y in zip(composites, rgba.flatten(again), strict=True)]
    shift, scale = vae.statistics
    raw = latents * scale + shift
    wanted = torch.cat([base.encode(x[:, :3]) for x in composites.split(32)])
    shift, scale = base.statistics
    drift = ((raw - shift) / scale - wanted).square().mean().sqrt() / wanted.std()
    old = torch.cat([base.decode((z - shift) / scale) for z in raw.split(32)])
    kept = [rgba.psnr(x[:3], y) for x, y in zip(composites, old, strict=True)]
    mean = [sum(v) / len(v) for v in (each, opaque, kept)]
    return [mean[0], float(pyramid(true, got).mean()), float(mad), mean[1], float(drift), mean[2]]


def curve(folder: Path) -> dict[int, float]:
    """Held-out PSNR by step, as training logged it."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row["val_psnr"] for row in rows if "val_psnr" in row}


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description="Ablations of the autoencoder's objective at equal compute.")
    parser.add_argument("--data", help="a folder with foregrounds.jsonl and backgrounds.jsonl (default: drawn layers)")
    parser.add_argument("--runs", type=Path, default=Path("runs/vae-ablations"))
    parser.add_argument(
        "--quick", action="store_true", help="three steps each, to see that it works: no figure to quote"
    )
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--only", help="names of variants, with commas")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--document", type=Path, help="put the tables into this file, between marks")
    options = parser.parse_args(argv)
    data = [f'data.folders=["{options.data}"]', "data.foregrounds=0"] if options.data else []
    quick = (
        ["fit.steps=3", "fit.warmup=1", "fit.validate_every=1", "fit.device=cpu", "batch=4"] if options.quick else []
    )
    common = [*data, *quick]
    if options.quick:
        common += ["data.foregrounds=24", "data.backgrounds=12"]
    first = train(RGB, options.runs / "rgb", common)
    rgb, rgba_recipe = made(RGB, common), made(RGBA, [*common, f"start={first.as_posix()}"])
    layers, composites = held_out(rgba_recipe, 8 if options.quick else options.pictures)
    both = rgba_recipe.fit.steps + rgb.fit.steps
    table = Table(
        "Terms of the objective, at equal compute",
        f"n={len(layers)} held-out layers and composites of {rgba_recipe.sizes[0][0]} px, "
        f"{'the folder given' if options.data else 'drawn layers'}, {rgba_recipe.fit.steps} steps of "
        f"{rgba_recipe.batch}, lr {rgba_recipe.fit.lr:g}, seed {rgba_recipe.fit.seed}, CPU, float32",
        {"variant": "", "PSNR, dB": ".2f", "distance": ".4f", "alpha MAD": ".4f", "opaque, dB": ".2f", "drift": ".3f",
         "old decoder, dB": ".2f"},
        notes=[
            "PSNR: layers over nine backgrounds, mean of all. distance: training.perceptual.pyramid.",
            "opaque: PSNR of opaque pictures. drift: of their latents from the initial VAE's, in standard deviations.",
            "old decoder: PSNR of what the initial VAE's decoder makes of the new latents of opaque pictures.",
            f"The RGB stage took {rgb.fit.steps} steps; one run each.",
        ],
    )  # fmt: skip
    curves: dict[str, dict[int, float]] = {}
    runs: list[tuple[str, list[str], dict[str, Any] | None]] = [
        (name, [f"start={first.as_posix()}", *changes], None) for name, changes in FROM_RGB.items()
    ]
    for name, changes in FROM_NOTHING.items():
        for about, steps in (("", rgba_recipe.fit.steps), (" (steps of both stages)", both)):
            alone = ["start=", "loss.reference=0.0", f"fit.steps={steps}"]
            runs.append((name + about, alone, rgb.model | {"channels": 4} | changes))
    wanted = options.only.split(",") if options.only else [name for name, _, _ in runs]
    for name, overrides, model in runs:
        if name not in wanted:
            continue
        folder = options.runs / "".join(c if c.isalnum() else "-" for c in name).strip("-")
        vae = train(RGBA, folder, [*common, *overrides], model)
        table.rows.append([name, *figures(vae, first, layers, composites)])
        curves[name] = curve(folder)
        print(table.text(), flush=True)
    steps = sorted({step for c in curves.values() for step in c if step <= rgba_recipe.fit.steps})
    steps_table = Table(
        "Held-out PSNR while training, dB",
        table.about,
        {"variant": "", **{str(step): ".2f" for step in steps}},
        [[name, *(c.get(step) for step in steps)] for name, c in curves.items()],
        ["Layers and composites, nine backgrounds, averaged weights. Columns: steps of this stage."],
    )
    print(steps_table.text())
    tables = [table, steps_table]
    save(tables, {"pictures": len(layers)}, options.json, None)
    if options.document:
        write_block(options.document, "ablations", tables, shlex.join(["python", "benchmarks/vae_ablations.py", *argv]))


if __name__ == "__main__":
    main()
