"""Two small runs of one made-up benchmark, to be compared."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from omnialpha.evaluation.methods import predictions
from omnialpha.evaluation.methods.predictions import PredictionRequest
from omnialpha.io import write_image

SIZE = (24, 32)
GREY = {"A": 0.25, "B": 0.75}  # of what each side makes


def sample(key: str, folder: Path, layers: int = 1) -> PredictionRequest:
    """A removal with a prompt; its input is written to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key.replace('/', '-')}.png"
    if not path.exists():
        torch.manual_seed(len(key))
        write_image(path, torch.cat((torch.rand(3, *SIZE), torch.ones(1, *SIZE))))
    return PredictionRequest(
        key, "some_task", f"Do it to {key}.", f"a {key}", "", {"composite": [str(path)]}, [], ["full"] * layers
    )


def run(folder: Path, asked: Sequence[PredictionRequest], grey: float, lacks: Sequence[str] = ()) -> Path:
    """A run whose pictures are of one grey that differs a little from sample to sample, half of each transparent."""
    predictions.write_requests(folder, asked)
    for number, one in enumerate(asked):
        if one.key not in lacks:
            picture = torch.full((4, *SIZE), grey + number / 255)
            picture[3] = 1
            picture[3, :, : SIZE[1] // 2] = 0
            predictions.write(folder, one.key, picture.expand(len(one.targets), -1, -1, -1))
    return folder


def two(folder: Path, keys: Sequence[str], lacks: Mapping[str, Sequence[str]] | None = None) -> tuple[Path, Path]:
    """The folders `heron` and `otter`."""
    asked = [sample(key, folder / "in") for key in keys]
    lacks = lacks or {}
    names = {"A": "heron", "B": "otter"}
    a, b = (run(folder / names[side], asked, GREY[side], lacks.get(side, ())) for side in names)
    return a, b
