"""Finders beside each other: `python benchmarks/finder.py FINDER... [--data FOLDER] [--photographs FOLDER]`.

FINDER: a folder of `U2NetP`'s. --data: a folder of layers (docs/data.md), whose held-out part is composed into scenes;
without one, drawn layers. --photographs: a folder with input/ and alpha/.
Alpha MAD over the whole picture, as the finder says it, scaled up bilinearly, without refinement.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common.tables import Table
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from omnialpha import masks
from omnialpha.data.records import hints
from omnialpha.data.synthetic import bank as banks
from omnialpha.data.synthetic.bank import Bank
from omnialpha.data.synthetic.scenes import compose
from omnialpha.hints import click, look
from omnialpha.io import read_image
from omnialpha.models.u2net import SIDE, U2NetP

WAYS = ("one look", "two looks", "click as a hint", "click followed")


def scenes(nets: dict[str, U2NetP], bank: Bank, n: int) -> tuple[dict[str, list[float | None]], int]:
    """Of each finder the MAD by kind of hint, `none` first; every scene is shown once with each kind."""
    generator = torch.Generator().manual_seed(0)
    seen: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in nets}
    for _ in range(n):
        (made,) = compose(bank, 1, 1, (SIDE, SIDE), generator)
        assert made.composite is not None
        alpha = made.layers[0, 3]
        for kind in hints.KINDS:
            hint = hints.hint(kind, alpha, generator)[None]
            for name, net in nets.items():
                off = (net.find(made.composite[None], hint)[0] - alpha).abs().mean()
                seen[name][kind].append(float(off))
    return {name: [sum(row[k]) / n for k in hints.KINDS] for name, row in seen.items()}, n


def error(found: Tensor, alpha: Tensor) -> float:
    """MAD of a map (s, s) of a picture stretched to a square, scaled up to the truth (H, W)."""
    full = F.interpolate(found[None, None], size=alpha.shape, mode="bilinear", align_corners=False)[0, 0]
    return float((full - alpha).abs().mean())


def middle(alpha: Tensor) -> masks.Mark | None:
    """(x, y) of the pixel farthest inside what is opaque; None where nothing is."""
    depth = distance_transform_edt(np.pad(alpha.numpy() > 0.9, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return (int(x), int(y)) if depth.max() else None


def ways(net: U2NetP, picture: Tensor, alpha: Tensor) -> list[float] | None:
    """Whether it is its expert's (0 or 1), and MAD of one look of its own, two looks, a click as a hint and a click
    that is followed; None without an opaque pixel.
    """
    if (point := middle(alpha)) is None:
        return None
    size = (int(alpha.shape[0]), int(alpha.shape[1]))
    hinted = net.find(picture[None], masks.marks(size, [point])[None])[0]
    followed = click(net, picture, point)
    found = [net.find(picture[None])[0], look(net, picture), hinted, hinted if followed is None else followed]
    expert = float(net.expert is not None and net.expert.suits(picture))
    return [expert, *(error(one, alpha) for one in found)]


def objects(bank: Bank, n: int, count: int, side: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Composites of so many objects, which stand apart, and the alpha of each of them."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(n):
        (made,) = compose(bank, 1, count, (side, side), generator, apart=count > 1)
        assert made.composite is not None
        yield from ((made.composite, layer[3]) for layer in made.layers)


def photographs(folder: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """The pictures of a folder and their true alphas."""
    for path in sorted((folder / "input").iterdir()):
        yield read_image(path).rgba, read_image(folder / "alpha" / path.name, data=True).rgba[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("finders", nargs="*", metavar="FINDER", help="the bundled one, if there is none")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("-n", type=int, default=32, help="scenes")
    asked = parser.parse_args()
    bundled = Path(__file__).resolve().parents[1] / "src" / "omnialpha" / "weights" / "nano" / "finder"
    nets = {name: U2NetP.load(Path(name)) for name in asked.finders or [str(bundled)]}
    bank = banks.read(asked.data, 256, "test") if asked.data else banks.unseen(256)
    rows, n = scenes(nets, bank, asked.n)
    about = f"n={n} held-out scenes of {SIDE}x{SIDE} px, {asked.data or 'drawn'}, whole picture, seed 0, CPU, float32"
    table = Table("Alpha MAD by kind of hint", about, {"finder": "", **dict.fromkeys(hints.KINDS, ".4f")})
    table.rows += [[Path(name).name, *rows[name]] for name in nets]
    print(table.text())
    sets = {f"one object, {side} px": list(objects(bank, asked.n, 1, side)) for side in (96, SIDE)}
    sets[f"one of two objects, {SIDE} px"] = list(objects(bank, asked.n, 2, SIDE))
    if asked.photographs:
        sets["photographs, as stored"] = list(photographs(asked.photographs))
    columns = {"finder": "", "pictures": "", "n": "", "its expert's": ".0%", **dict.fromkeys(WAYS, ".4f")}
    about = "whole picture, click: the pixel farthest inside, seed 0, CPU, float32"
    table = Table("Alpha MAD by way of looking", about, columns)
    for (name, net), (kind, of) in product(nets.items(), sets.items()):
        made = [one for picture, alpha in of if (one := ways(net, picture, alpha))]
        table.rows.append([Path(name).name, kind, len(made), *np.mean(made, axis=0).tolist()])
    print(table.text())


if __name__ == "__main__":
    main()
