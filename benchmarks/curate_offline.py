"""Curation end to end on this machine: drawn foregrounds, scikit-image's photographs with the finder as segmenter, nano
as editor and remover, a canned server in the place of the vision-language model.

    python benchmarks/curate_offline.py [-n 12] [--data FOLDER] [--limit N] [-o FOLDER]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

from common.canned_vlm import CannedVLM, serve
from PIL import Image
from skimage import data

from omnialpha import config
from omnialpha.curation.curate import curate, estimate
from omnialpha.curation.recipe import CurationRecipe
from omnialpha.curation.store import Store
from omnialpha.data.synthetic import layers

SIDE, RIM = 256, 24  # pixels of a drawn foreground, and of clear pixels around it
SEED = 33


def draw(folder: Path, count: int) -> None:
    """Drawn foregrounds as files, the same every time."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(layers.bank(count, SIDE - 2 * RIM, SEED)[0]):
        whole = Image.new("RGBA", (SIDE, SIDE))
        whole.paste(Image.fromarray(pixels), (RIM, RIM))
        whole.save(folder / f"{number:03}.png")


def photograph(folder: Path) -> None:
    """scikit-image's photographs of one subject, small."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("astronaut", "cat", "coffee", "rocket"):
        image = Image.fromarray(getattr(data, name)())
        image.thumbnail((SIDE, SIDE))
        image.save(folder / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=12, help="drawn foregrounds")
    parser.add_argument("--data", type=Path, help="also a folder of RGBA pictures")
    parser.add_argument("--limit", type=int, default=0, help="so many items of all")
    parser.add_argument("-o", "--output", type=Path, help="keep what comes out here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, serve(vlm := CannedVLM()) as url:
        draw(Path(scratch) / "drawn", given.n)
        photograph(Path(scratch) / "photographs")
        folders = [{"kind": "rgba", "path": f"{scratch}/drawn", "licence": "Apache-2.0"}]
        folders += [{"kind": "photographs", "path": f"{scratch}/photographs", "whole": True}]
        folders += [{"kind": "rgba", "path": str(given.data), "name": "folder"}] if given.data else []
        values = {
            "output": str(given.output or Path(scratch) / "out"), "sources": folders, "side": SIDE,
            "limit": given.limit,
            "vlm": {"url": url, "model": "canned", "parallel": 8},
            "edit": {"kind": "completion"}, "remove": {"kind": "removal"},
            "filters": {"min_side": 64, "min_sharpness": 0.0, "allowed_cut": ["bottom", "left", "right"]},
        }  # fmt: skip
        recipe = config.build(CurationRecipe, values)
        began = time.monotonic()
        curated = curate(recipe)
        seconds = time.monotonic() - began
        counts = ", ".join(f"{count} {name}" for name, count in sorted(curated.counts.items()))
        print(f"{len(curated.status)} items in {seconds:.0f} s: {counts}; questions: {dict(vlm.asked)}")
        store = Store(recipe.folder / "store")
        print(f"{'stage':12} {'answers':>8} {'rejected':>9} {'median s':>9}")
        for part in estimate(recipe):
            answers = store.answers(part.stage)
            rejected = Counter("rejected" in answer for answer in answers)[True]
            print(f"{part.stage:12} {len(answers):8} {rejected:9} {median(a['seconds'] for a in answers):9.3f}")
        again = time.monotonic()
        curate(recipe)
        print(f"a second run: {time.monotonic() - again:.1f} s, nothing asked or made")


if __name__ == "__main__":
    main()
