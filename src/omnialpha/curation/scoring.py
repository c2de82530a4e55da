"""Maps of a foreground's alpha as the paper derives them, the consistency score of a record, and who is kept by it.

Source: OmniAlpha, arXiv 2511.20211, appendix B.1 and B.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal

from torch import Tensor

from omnialpha import masks
from omnialpha.curation.candidate import Rejected
from omnialpha.data.records.split import held_out

FOREGROUND_SHARE = 0.6  # lambda of the score
VISIBLE = 0.05  # alpha above this is the foreground's region
FULL = 1 - 0.5 / 255  # alpha from here on is stored as 255 in 8 bits


def maps(alpha: Tensor, radius: float, derivation: Literal["training", "published"]) -> dict[str, Tensor]:
    """The four maps of an alpha (H, W) in [0, 1], (H, W) each, by a disk of `radius` pixels.

    Both ways erode and dilate the alpha by a disk; they differ in which pixels of the result are definite.

    training: definite foreground has alpha above .95 within the radius, as `masks.trimap`.
    published: definite foreground is where the eroded alpha (grey-level, the lowest alpha within the disk) is full,
        background where the dilated one (the highest) is 0. The paper compares a pixel with a continuous map ("x in M")
        without a threshold, and calls k the size of a kernel as well as the radius of a disk: here full and 0 are those
        of 8 bits, and k is the radius; half of it is what the other reading gives.

    A level of a grey-level erosion is the binary erosion of that level, so both take one exact distance transform a
    map, whatever the radius.
    """
    if derivation == "training":
        trimap = masks.trimap(alpha, radius)
    else:
        inside, reached = masks.erode(alpha >= FULL, radius), masks.dilate(alpha > masks.PRESENT, radius)
        trimap = (inside.to(alpha.dtype) + reached.to(alpha.dtype)) / 2
    rough = (trimap > 0).to(alpha.dtype)
    return {"alpha": alpha, "precise": masks.precise(alpha), "trimap": trimap, "rough": rough}


def scores(foreground: Tensor, background: Tensor, composite: Tensor) -> dict[str, float]:
    """The consistency score S of a record, lower is better, and its two parts.

    S = .6 MSE(foreground, composite) + .4 MSE(recomposed, composite). An MSE is the mean over pixels of the squared
    error summed over R, G and B in [0, 1], the first one over pixels with alpha above .05.

    Args:
        foreground: (4, H, W) in [0, 1], straight alpha.
        background, composite: (4, H, W), opaque.

    Returns:
        `literal`, the formula as printed, which compares the foreground's straight colours with alpha times the
        composite and so charges a perfect composite for every soft pixel; `premultiplied`, which compares the colours
        times alpha with the composite less what shows through of the background, 0 for a perfect composite; and the
        parts of both.

    Raises:
        Rejected: No pixel has alpha above .05.
    """
    front, back, whole, alpha = foreground[:3], background[:3], composite[:3], foreground[3]
    region = alpha > VISIBLE
    if not bool(region.any()):
        raise Rejected(f"alpha is nowhere above {VISIBLE}.")

    def squared(difference: Tensor) -> Tensor:
        return difference.square().sum(0).double()

    rest = squared(alpha * front + (1 - alpha) * back - whole)  # alpha front - (whole - (1 - alpha) back) is the same
    recomposition = float(rest.mean())
    parts = {"literal": squared(front - alpha * whole)[region], "premultiplied": rest[region]}
    made = {"recomposition": recomposition}
    for name, part in parts.items():
        mean = float(part.mean())
        made |= {f"{name}_foreground": mean, name: FOREGROUND_SHARE * mean + (1 - FOREGROUND_SHARE) * recomposition}
    return made


@dataclass(frozen=True)
class Selection:
    """kept: ids, the best first. cut: the score of the last one that is kept for its score; None: there is no cut.
    near: ids on either side of it, so close that they are worth a look.
    """

    kept: tuple[str, ...]
    cut: float | None
    near: tuple[str, ...]


def select(
    figures: Mapping[str, float],
    keep: int | None,
    threshold: float | None,
    near: float,
    decisions: Mapping[str, str],
) -> Selection:
    """Which candidates are kept.

    Args:
        figures: scores by id, lower is better. Ties are broken by the id.
        keep, threshold: so many of the best, or those with at most that score; at most one of the two.
        near: how far a score may be from the cut, as a share of it, to be called near.
        decisions: "accept" or "reject" by id. The accepted are kept and count, the rejected are not and do not.
    """
    assert keep is None or threshold is None
    order = sorted(figures, key=lambda name: (figures[name] if isfinite(figures[name]) else inf, name))
    accepted = {name for name in order if decisions.get(name) == "accept"}
    open_ones = [name for name in order if name not in decisions]
    room = len(open_ones) if keep is None else max(0, keep - len(accepted))
    chosen = [name for name in open_ones if threshold is None or figures[name] <= threshold][:room]
    cut = threshold
    if keep is not None and len(chosen) < len(open_ones) and chosen:
        cut = figures[chosen[-1]]
    close = [name for name in open_ones if cut is not None and abs(figures[name] - cut) <= near * cut]
    kept = accepted | set(chosen)
    return Selection(tuple(name for name in order if name in kept), cut, tuple(close))


def split(digests: Mapping[str, str], test: float) -> dict[str, str]:
    """ "train" or "test" by id.

    Args:
        digests: by id, of what decides: the same foreground is on the same side in every data set with a share.
        test: a share below 1, or from 1 on a number: so many with the lowest digests.
    """
    if test < 1:
        return {name: "test" if held_out(digest.encode(), test) else "train" for name, digest in digests.items()}
    lowest = sorted(digests, key=lambda name: (digests[name], name))[: int(test)]
    return {name: "test" if name in lowest else "train" for name in digests}
