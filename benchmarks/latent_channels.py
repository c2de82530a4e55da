"""What latents of fewer channels would keep: `python benchmarks/latent_channels.py`.

The autoencoder's latents are projected on their first principal components, and decoded: the best that fewer channels
could say to this decoder.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from common.documents import write_block
from common.tables import Table, save

import omnialpha
from omnialpha import rgba
from omnialpha.data.synthetic.scenes import compose
from omnialpha.evaluation.metrics.image import psnr
from omnialpha.evaluation.metrics.matting import measure
from omnialpha.training.sources import DataSettings, held_out

SIZE = (96, 96)  # pixels
CHANNELS = (32, 24, 16, 8, 4)


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description="An autoencoder's latents, reduced to their principal components.")
    parser.add_argument("--model", default="nano", help="whose autoencoder")
    parser.add_argument("-n", type=int, default=64, help="held-out layers, and pictures")
    parser.add_argument("--quick", action="store_true", help="two of each, to see that it works: no figure to quote")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--document", type=Path, help="put the table into this file, between marks")
    options = parser.parse_args(argv)
    count = 2 if options.quick else options.n
    vae = omnialpha.load(options.model).vae
    scenes = compose(held_out(DataSettings(folders=[])), count, 1, SIZE, torch.Generator().manual_seed(1))
    x = torch.stack([*(scene.layers[0] for scene in scenes), *(scene.composite for scene in scenes)])
    latents = vae.encode(x)
    flat = latents.movedim(1, -1).flatten(0, -2)
    mean = flat.mean(dim=0)
    energies, components = torch.linalg.svd(flat - mean, full_matrices=False)[1:]
    table = Table(
        "Latents of fewer channels",
        f"n={count} held-out drawn layers and {count} pictures of {SIZE[0]} px, colours premultiplied, CPU, float32",
        {"channels": "d", "variance, %": ".1f", "alpha, MAD": ".4f", "layers, dB": ".1f", "pictures, dB": ".1f"},
    )
    for channels in (c for c in CHANNELS if c <= latents.shape[1]):
        kept = (flat - mean) @ components[:channels].T @ components[:channels] + mean
        back = vae.decode(kept.view(latents.movedim(1, -1).shape).movedim(-1, 1)).clamp(0, 1)
        alpha = measure(back[:count, 3], x[:count, 3], names=("mad",))["mad"].mean()
        errors = psnr(rgba.premultiply(back)[:, :3], rgba.premultiply(x)[:, :3]).view(2, count).mean(dim=1)
        share = 100 * float(energies[:channels].square().sum() / energies.square().sum())
        table.rows.append([channels, share, float(alpha), *errors.tolist()])
    print(table.text())
    save([table], {"n": count, "model": options.model}, options.json, None)
    if options.document:
        write_block(
            options.document, "channels", [table], shlex.join(["python", "benchmarks/latent_channels.py", *argv])
        )


if __name__ == "__main__":
    main()
