"""The finder of a small model: U²-Netp with a hint (`models.u2net`), or any salient-object ONNX.

The alpha that it finds becomes an input picture of the automatic tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.models.network_files import CONFIG, WEIGHTS
from omnialpha.models.pointer import Pointer
from omnialpha.models.u2net import MEAN, STD, DrawingExpert, U2NetP, prepare, stretched
from omnialpha.tasks import Role

FINDER = "finder"  # the folder of a model's finder in its own
# Of a map's white and black, what a hint holds: 1 subject, 0 unknown, -1 background. A rough mask holds more than the
# subject, a precise one less.
HINTS: dict[Role, tuple[float, float]] = {
    Role.ALPHA: (1.0, -1.0),
    Role.TRIMAP: (1.0, -1.0),
    Role.PRECISE: (1.0, -0.5),
    Role.ROUGH: (0.0, -1.0),
}


class Finder(Protocol):
    """What finds subjects. hints: whether it makes use of a hint. pointer: where a text says to look, if it has one.
    expert: what sees drawings in its place, if it has one.
    """

    hints: bool
    pointer: Pointer | None
    expert: DrawingExpert | None

    def find(self, pictures: Tensor, hints: Tensor | None = None, mirror: bool = True) -> Tensor:
        """Straight RGBA (B, 4, H, W) in [0, 1], hints (B, h, w) in [-1, 1] -> alpha (B, s, s) in [0, 1] at its own
        size, whatever the picture's shape. mirror: may look at the mirror image too.
        """
        ...


def hint_of(role: Role, guide: Tensor) -> Tensor:
    """A map (..., H, W) in [0, 1] of this role as a hint in [-1, 1]."""
    white, black = HINTS[role]
    return black + (white - black) * guide


# ---- any salient-object file ----------------------------------------------------------------------------------------

# File names as rembg stores them -> how their pictures are normalised, and whether logits come out; others are read
# as U²-Net's are.
HALF, ONE = (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)
FILES: dict[str, tuple[Sequence[float], Sequence[float], bool]] = {
    "isnet-anime": (MEAN, ONE, False),
    "isnet": (HALF, ONE, False),
    "birefnet": (MEAN, STD, True),
    "bria-rmbg": (HALF, ONE, False),
    "ben2": (HALF, ONE, False),
}


class OnnxFinder:
    """A salient-object network in an ONNX file, run by onnxruntime. It takes no hints."""

    hints = False
    pointer: Pointer | None = None
    expert: DrawingExpert | None = None

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise InputError(f"{path} needs onnxruntime: pip install omnialpha[onnx].") from error
        try:
            self.session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # its own have no base in common
            raise InputError(f"{path} is not an ONNX file that can be run ({error}): download it again.") from error
        given = self.session.get_inputs()[0]
        side = given.shape[-1]
        self.name, self.side = given.name, side if isinstance(side, int) else 1024
        row = next((row for start, row in FILES.items() if path.stem.lower().startswith(start)), (MEAN, STD, False))
        self.mean, self.std, self.logits = row

    @torch.no_grad()
    def find(self, pictures: Tensor, hints: Tensor | None = None, mirror: bool = True) -> Tensor:
        """See `Finder`."""
        x = prepare(pictures, self.side, self.mean, self.std).cpu().float()
        maps = [torch.from_numpy(self.session.run(None, {self.name: one[None].numpy()})[0])[0, 0] for one in x]
        made = torch.stack(maps)
        return stretched(made.sigmoid() if self.logits else made).to(pictures.device)


@cache
def bundled_finder() -> Finder:
    """The one in the package."""
    return open_finder(Path(__file__).parent.parent / "weights" / "nano" / FINDER)


def open_finder(path: str | Path) -> Finder:
    """A folder that `U2NetP.save` wrote, or a salient-object ONNX file. InputError for anything else."""
    path = Path(path).expanduser()
    if path.suffix.lower() == ".onnx" and path.is_file():
        return OnnxFinder(path)
    if (path / CONFIG).is_file():
        return U2NetP.load(path)
    raise InputError(f"{path} is no finder: give an .onnx file, or a folder with {CONFIG} and {WEIGHTS}.")
