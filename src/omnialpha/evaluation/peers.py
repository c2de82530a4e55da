"""What a model is measured beside: classical methods on float tensors, one picture at a time, no learning.

rgb (3, H, W) and maps (H, W), all in [0, 1]; a trimap is 0, .5 and 1. OpenCV comes with the extra `eval`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.evaluation.components import opencv

FRAME = 0.08  # of each side: what a centred rectangle leaves out; of .02 to .15 the best on procedural scenes
ROUNDS = 5  # of GrabCut's estimation
COMPONENTS = 5  # colour clusters in each of GrabCut's two mixtures; each needs as many pixels
TELEA_RADIUS = 3.0  # pixels, as in OpenCV's own example
FOREGROUND, BACKGROUND = 0.9, 0.1  # pymatting's own limits for the sure parts of a trimap


def best_constant(true: Tensor, power: int = 1, where: Tensor | None = None) -> float:
    """The one alpha that minimises mean |true - c|^power: the median (power 1: SAD, MAD) or the mean (power 2: MSE)."""
    if power not in (1, 2):
        raise InputError(f"power={power} has no closed form here: use 1 (SAD, MAD) or 2 (MSE).")
    values = (true if where is None else true[where]).double().flatten()
    if not len(values):
        raise InputError("0 pixels are counted, so no constant is best: pass a map that is not empty.")
    return float(values.median() if power == 1 else values.mean())


def grabcut_rectangle(rgb: Tensor, frame: float = FRAME) -> Tensor:
    """OpenCV GrabCut told only that a border of `frame` is background: binary alpha (H, W)."""
    height, width = rgb.shape[-2:]
    top, left = max(1, round(height * frame)), max(1, round(width * frame))
    guess = torch.zeros(height, width)
    guess[top : height - top, left : width - left] = 0.5
    return grabcut_trimap(rgb, guess)


def grabcut_trimap(rgb: Tensor, trimap: Tensor) -> Tensor:
    """OpenCV GrabCut from a trimap, its unknown part taken for probable foreground: binary alpha (H, W).

    Where either side has too few pixels to estimate colours from, all that may be foreground is."""
    cv2 = opencv()
    sure, maybe = trimap > FOREGROUND, trimap > BACKGROUND
    if min(int(maybe.sum()), int((~maybe).sum())) < COMPONENTS:
        return maybe.float()
    labels = torch.full(trimap.shape, cv2.GC_BGD, dtype=torch.uint8)
    labels[maybe], labels[sure] = cv2.GC_PR_FGD, cv2.GC_FGD
    cv2.setRNGSeed(0)  # its clustering draws from a global generator
    mixtures = np.zeros((2, 1, 13 * COMPONENTS))
    done, *_ = cv2.grabCut(_bytes(rgb), labels.numpy(), None, *mixtures, ROUNDS, cv2.GC_INIT_WITH_MASK)
    return torch.from_numpy(np.isin(done, (cv2.GC_FGD, cv2.GC_PR_FGD))).float()


def has_anchors(trimap: Tensor) -> bool:
    """Whether a trimap has both sure foreground and sure background, which closed-form matting starts from."""
    return bool((trimap > FOREGROUND).any()) and bool((trimap < BACKGROUND).any())


def closed_form(rgb: Tensor, trimap: Tensor) -> Tensor:
    """pymatting's closed-form matting (Levin et al. 2008): alpha (H, W).

    A trimap without anchors (a see-through subject has no sure foreground) comes back as it is, .5 where unknown."""
    from pymatting.alpha.estimate_alpha_cf import estimate_alpha_cf
    from pymatting.preconditioner.jacobi import jacobi  # the same solution; the default one prints about small pictures

    if not has_anchors(trimap):
        return trimap.float()
    pixels = rgb.permute(1, 2, 0).double().cpu().numpy()
    alpha = estimate_alpha_cf(pixels, trimap.double().cpu().numpy(), preconditioner=jacobi)
    return torch.from_numpy(np.ascontiguousarray(alpha)).float().clamp(0, 1)


def telea(rgb: Tensor, hole: Tensor, radius: float = TELEA_RADIUS) -> Tensor:
    """OpenCV's fast marching inpainting (Telea 2004) of hole (H, W) bool, in 8 bits: (3, H, W), unchanged elsewhere."""
    cv2 = opencv()
    hole = hole.bool().cpu()
    if bool(hole.all()):
        raise InputError(
            "the hole covers the whole picture, so there is nothing to fill it from: leave some of it out."
        )
    filled = cv2.inpaint(_bytes(rgb), hole.numpy().astype(np.uint8), radius, cv2.INPAINT_TELEA)
    return torch.where(hole, torch.from_numpy(filled).permute(2, 0, 1).float() / 255, rgb.cpu())


def _bytes(rgb: Tensor) -> np.ndarray:
    """(3, H, W) -> (H, W, 3) uint8. Nothing here minds that OpenCV would call it BGR."""
    return np.ascontiguousarray((rgb.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())
