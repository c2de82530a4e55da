"""Finished candidates of curation, drawn by rule: a disk or two in front of ramps, their pictures in a store."""

from pathlib import Path

import torch

from layered import back, front
from omnialpha import masks, rgba
from omnialpha.curation.candidate import Candidate
from omnialpha.curation.store import Store

SIZE = (40, 56)


def picture(samples: object) -> torch.Tensor:
    """(H, W, C) uint8 -> (C, H, W) in [0, 1]."""
    return torch.as_tensor(samples).permute(2, 0, 1).float() / 255


def candidate(store: Store, number: int, layers: int = 1, score: float | None = None) -> Candidate:
    """One of which everything is made; its composite is the foregrounds over the background, to 8 bits."""
    fronts = [store.put(picture(front(number, k, *SIZE))) for k in range(layers)]
    ground = store.put(picture(back(number, *SIZE)))
    pictures = [store.get(digest) for digest in (ground, *fronts)]
    alpha = rgba.recompose(pictures[1:])[3]
    maps = {"trimap": masks.trimap(alpha, 3), "rough": masks.rough(alpha, 3)}
    maps |= {"alpha": alpha, "precise": masks.precise(alpha)}
    return Candidate(
        f"src-{number % 2}/m_{number}",
        f"src-{number % 2}",
        ("CC0", "research only")[number % 2],
        origin=(f"{number}.png",),
        foregrounds=tuple(fronts),
        subjects=("disk",) * layers,
        captions=tuple(f"a disk {number} {k}" for k in range(layers)),
        scene=f"disks on a ramp {number}",
        instruction="Replace the background with a ramp.",
        composite=store.put(rgba.recompose(pictures)),
        mask=store.put(masks.as_picture((alpha > 0.05).float())),
        background=ground,
        background_caption=f"a ramp {number}",
        maps={name: store.put(masks.as_picture(values)) for name, values in maps.items()},
        scores={"premultiplied": number / 1000 if score is None else score, "literal": 0.5},
    )


def candidates(folder: Path, count: int) -> tuple[Store, list[Candidate]]:
    """Every third of them has two foregrounds."""
    store = Store(folder / "store")
    return store, [candidate(store, n, 2 if n % 3 == 2 else 1) for n in range(count)]
