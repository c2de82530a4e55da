"""Classical matting and inpainting on float tensors, one picture at a time, no learning.

rgb (3, H, W) and maps (H, W), all in [0, 1]; a trimap is 0, .5 and 1. OpenCV comes with the extra `eval`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnialpha import kernels, masks
from omnialpha.errors import InputError
from omnialpha.evaluation.metrics.matting import opencv

FRAME = 0.08  # of each side: what a centred rectangle leaves out; of .02 to .15 the best on procedural scenes
ROUNDS = 5  # of GrabCut's estimation
COMPONENTS = 5  # colour clusters in each of GrabCut's two mixtures; each needs as many pixels
RADIUS = 3.0  # pixels that inpainting looks at, as in OpenCV's own example
FOREGROUND, BACKGROUND = 0.9, 0.1  # pymatting's own limits for the sure parts of a trimap
KERNEL = 10  # pixels, the radius of large-kernel matting's windows; pymatting's own
RING = 0.05  # of the shorter side: how wide a hole's surroundings are


def grabcut_rectangle(rgb: Tensor) -> Tensor:
    """OpenCV GrabCut that knows only that a border of FRAME is background: binary alpha (H, W)."""
    height, width = rgb.shape[-2:]
    top, left = max(1, round(height * FRAME)), max(1, round(width * FRAME))
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
    """Whether a trimap has both sure foreground and sure background, which classical matting starts from."""
    return bool((trimap > FOREGROUND).any()) and bool((trimap < BACKGROUND).any())


def solve(kind: str, rgb: Tensor, trimap: Tensor) -> Tensor:
    """Alpha (H, W) by a method of pymatting: "cf", "knn", "lbdm" or "lkm".

    A trimap without anchors (a see-through subject has no sure foreground) comes back as it is, .5 where unknown."""
    if not has_anchors(trimap):
        return trimap.float()
    kernels.load()
    from pymatting.preconditioner.jacobi import jacobi  # the same solution; some defaults print about small pictures

    estimate = getattr(import_module(f"pymatting.alpha.estimate_alpha_{kind}"), f"estimate_alpha_{kind}")
    settings: dict[str, Any] = {"preconditioner": jacobi}
    if kind == "lkm":  # two of its windows must fit side by side
        settings = {"laplacian_kwargs": {"radius": min(KERNEL, (min(trimap.shape) - 1) // 4)}}
    with kernels.one_thread():
        alpha = estimate(rgb.permute(1, 2, 0).double().cpu().numpy(), trimap.double().cpu().numpy(), **settings)
    return torch.from_numpy(np.ascontiguousarray(alpha)).float().clamp(0, 1)


def telea(rgb: Tensor, hole: Tensor) -> Tensor:
    """OpenCV's fast marching inpainting (Telea 2004) of hole (H, W) bool, in 8 bits: (3, H, W), unchanged elsewhere."""
    return _inpaint("INPAINT_TELEA", rgb, hole)


def navier_stokes(rgb: Tensor, hole: Tensor) -> Tensor:
    """OpenCV's inpainting by fluid dynamics (Bertalmio et al. 2001), as `telea`."""
    return _inpaint("INPAINT_NS", rgb, hole)


def mean_color(rgb: Tensor, hole: Tensor) -> Tensor:
    """hole (H, W) bool filled with the mean colour of a ring around it; of all where it reaches everywhere."""
    around = masks.dilate(hole, max(1.0, RING * min(hole.shape))) & ~hole
    color = rgb[:, around if bool(around.any()) else torch.ones_like(hole)].mean(dim=1)
    return torch.where(hole, color[:, None, None], rgb)


def _inpaint(how: str, rgb: Tensor, hole: Tensor) -> Tensor:
    cv2, hole = opencv(), hole.bool().cpu()
    if bool(hole.all()):
        raise InputError(
            "the hole covers the whole picture, so there is nothing to fill it from: leave some of it out."
        )
    filled = cv2.inpaint(_bytes(rgb), hole.numpy().astype(np.uint8), RADIUS, getattr(cv2, how))
    return torch.where(hole, torch.from_numpy(filled).permute(2, 0, 1).float() / 255, rgb.cpu())


def _bytes(rgb: Tensor) -> np.ndarray:
    """(3, H, W) -> (H, W, 3) uint8. Nothing here minds that OpenCV would call it BGR."""
    return np.ascontiguousarray((rgb.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())
