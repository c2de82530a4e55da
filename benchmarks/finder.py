"""Finders beside each other: `python benchmarks/finder.py FINDER... [--data FOLDER] [--photographs FOLDER]`.

FINDER: a folder of `U2NetP`'s, or A+B@SHARE, the average of the weights of two. --data: a folder of layers
(docs/data.md), whose held-out part is composed into scenes; without one, drawn layers. --photographs: a folder with
input/ and alpha/.
Alpha MAD over the whole picture, as the finder says it, scaled up bilinearly, without refinement.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from common.tables import Table

from omnialpha.data.records import hints
from omnialpha.data.synthetic import bank as banks
from omnialpha.data.synthetic.scenes import compose
from omnialpha.io import read_image
from omnialpha.models.finder import SIDE, U2NetP


def opened(name: str) -> U2NetP:
    """The finder of a folder, or between those of two."""
    pair, _, share = name.partition("@")
    first, _, second = pair.partition("+")
    net = U2NetP.load(Path(first))
    if second:
        other = U2NetP.load(Path(second)).state_dict()
        mixed = {key: torch.lerp(value, other[key], float(share)) for key, value in net.state_dict().items()}
        net.load_state_dict(mixed)
    return net


def scenes(nets: dict[str, U2NetP], data: Path | None, n: int) -> tuple[dict[str, list[float | None]], int]:
    """Of each finder the MAD by kind of hint, `none` first; every scene is shown once with each kind."""
    bank = banks.read(data, 256, "test") if data else banks.unseen(256)
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


def photographs(net: U2NetP, folder: Path) -> tuple[float, int]:
    """MAD on photographs, and how many there are."""
    off = []
    for path in sorted((folder / "input").iterdir()):
        alpha = read_image(folder / "alpha" / path.name, data=True).rgba[0]
        found = net.find(read_image(path).rgba[None])[0]
        full = F.interpolate(found[None, None], size=alpha.shape, mode="bilinear", align_corners=False)[0, 0]
        off.append(float((full - alpha).abs().mean()))
    return sum(off) / len(off), len(off)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("finders", nargs="*", metavar="FINDER", help="the bundled one, if there is none")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("-n", type=int, default=32, help="scenes")
    asked = parser.parse_args()
    bundled = Path(__file__).resolve().parents[1] / "src" / "omnialpha" / "weights" / "nano" / "finder"
    nets = {name: opened(name) for name in asked.finders or [str(bundled)]}
    rows, n = scenes(nets, asked.data, asked.n)
    about = f"n={n} held-out scenes of {SIDE}x{SIDE} px, {asked.data or 'drawn'}, whole picture, seed 0, CPU, float32"
    columns = {"finder": "", **dict.fromkeys(hints.KINDS, ".4f")}
    if asked.photographs:
        columns["photographs"] = ".4f"
        about += "; photographs as stored"
    table = Table("Alpha MAD by kind of hint", about, columns)
    for name, net in nets.items():
        more = [photographs(net, asked.photographs)[0]] if asked.photographs else []
        table.rows.append([Path(name).name, *rows[name], *more])
    print(table.text())


if __name__ == "__main__":
    main()
