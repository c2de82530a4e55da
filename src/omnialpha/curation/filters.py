"""Which foregrounds are good enough: their figures, the limits that they are held to, duplicates, and what pleases."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from omnialpha import rgba
from omnialpha.curation.candidate import Rejected
from omnialpha.errors import InputError

SIDES = ("top", "right", "bottom", "left")
SEEN = 0.5  # alpha above which a pixel shows the subject
SOFT = (0.05, 0.95)  # alpha of soft pixels; above the second they are solid
LUMA = (0.299, 0.587, 0.114)
GREY = (0.5, 0.5, 0.5)
# 99 % of 162 pictures were within 4 bits of themselves at half and at .37 of the size; others were 10 or more away.
TAIL, MARGIN, HASHED = 0.02, 0.1, 128  # share of alpha outside, margin by the size, px a side of what is hashed
LAION = (768, 1024, 128, 64, 16, 1)  # widths of the predictor's layers, which it numbers so:
LAION_KEYS = (0, 2, 4, 6, 7)


@dataclass(frozen=True)
class FilterSettings:
    """Limits of foregrounds, see `measure`.

    Attributes:
        min_side: px of the shorter side of the picture.
        max_ratio: of the longer side to the shorter one.
        min_area, max_area: mean alpha.
        min_sharpness: of the solid part; 0 takes all.
        max_cut: how much of a side may cut the subject off.
        allowed_cut: sides that may cut it off, such as ["bottom"] of portraits.
        distance: bits, of 64, in which the hashes of two pictures that count as one differ at most; below 0: none do.
        aesthetic: a scorer, see `scorer`; "": none.
        clip: the folder of the CLIP below LAION's predictor.
        keep: so many with the best scores; 0 is all.
    """

    min_side: int = 512
    max_ratio: float = 4.0
    min_area: float = 0.02
    max_area: float = 0.95
    min_sharpness: float = 4.0
    max_cut: float = 0.05
    allowed_cut: tuple[str, ...] = ()
    distance: int = 4
    aesthetic: str = ""
    clip: str = ""
    keep: int = 0

    def __post_init__(self) -> None:
        if unknown := set(self.allowed_cut) - set(SIDES):
            raise InputError(f"filters.allowed_cut has {min(unknown)!r}: use some of {', '.join(SIDES)}.")
        if not (0 <= self.min_area < self.max_area <= 1 and 0 <= self.max_cut <= 1):
            raise InputError(
                f"filters has min_area={self.min_area:g}, max_area={self.max_area:g}, max_cut={self.max_cut:g}: use "
                "shares from 0 to 1, min_area the smaller one."
            )
        if self.keep < 0 or self.max_ratio < 1:
            raise InputError(f"filters has keep={self.keep}, max_ratio={self.max_ratio:g}: use 0 and 1, or more.")


def measure(foreground: Tensor) -> dict[str, float | str]:
    """Figures of a foreground (4, H, W) in [0, 1], straight alpha.

    Returns:
        width, height: px. area: mean alpha. soft: share of pixels with alpha in SOFT. sharpness: variance of the
        Laplacian of luma, 0 to 255, where it and its four neighbours are solid; 0 where none is. cut_top, cut_right,
        cut_bottom, cut_left: see `cut`. phash: 64 bits in hexadecimal.
    """
    alpha = foreground[3]
    height, width = alpha.shape
    seen = (alpha > SEEN).numpy()
    turned = {side: np.rot90(seen, k) for k, side in enumerate(SIDES)}  # that side on top
    return {
        "width": width,
        "height": height,
        "area": float(alpha.double().mean()),
        "soft": float(((alpha > SOFT[0]) & (alpha < SOFT[1])).double().mean()),
        "sharpness": _sharpness(foreground),
        **{f"cut_{side}": cut(view) for side, view in turned.items()},
        "phash": _phash(foreground),
    }


def _sharpness(foreground: Tensor) -> float:
    luma = 255 * (foreground[:3] * foreground.new_tensor(LUMA)[:, None, None]).sum(0)
    solid = foreground[3] > SOFT[1]
    middle, *around = (slice(1, -1), slice(1, -1)), (slice(2, None), slice(1, -1)), (slice(None, -2), slice(1, -1))
    around += [(slice(1, -1), slice(2, None)), (slice(1, -1), slice(None, -2))]
    edges, inside = -4 * luma[middle], solid[middle].clone()
    for place in around:
        edges += luma[place]
        inside &= solid[place]
    return float(edges[inside].double().var(unbiased=False)) if bool(inside.any()) else 0.0


def cut(seen: np.ndarray) -> float:
    """How much of a subject the upper side of a picture cuts off.

    Of the columns in which it is seen, this is the share in which it runs into that side.

    A run of pixels along the side counts unless the subject gets at least twice as wide within a quarter of the run's
    length, as what is round and only touches the side does.

    Args:
        seen: (H, W) of bool.
    """
    columns = int(seen.any(0).sum())
    steps = np.flatnonzero(np.diff(np.concatenate([[0], seen[0].astype(np.int8), [0]])))
    counted = 0
    for start, stop in zip(steps[::2], steps[1::2], strict=True):
        length = int(stop - start)
        deeper = seen[min(-(-length // 4), len(seen) - 1), max(0, start - length) : stop + length]
        counted += length if deeper.sum() < 2 * length else 0
    return counted / columns if columns else 0.0


def _phash(foreground: Tensor) -> str:
    """Over mid grey, of the part that holds the subject, so that the same one in a larger canvas has the same hash.

    The part goes by where the most of alpha lies, in fractions of pixels: it scales with the picture, which
    the outermost pixels of a subject do not.
    """
    try:
        import imagehash
    except ImportError:
        raise InputError("Duplicates need the package imagehash: pip install omnialpha[curate].") from None
    alpha = foreground[3].double().numpy()
    box = np.zeros((2, 2))  # left and right, top and bottom
    for axis, length in enumerate(alpha.shape[::-1]):
        held = np.concatenate([[0], alpha.sum(axis).cumsum()])
        first, last = np.interp([TAIL * held[-1], (1 - TAIL) * held[-1]], held, np.arange(length + 1))
        box[axis] = (first, last) if last > first else (0, length)  # the second is of empty pictures
    box += MARGIN * np.diff(box) * [-1, 1]
    left, top = np.maximum(np.ceil(-box[:, 0]), 0).astype(int)
    right, bottom = np.maximum(np.ceil(box[:, 1] - alpha.shape[::-1]), 0).astype(int)
    flat = rgba.flatten(F.pad(foreground, (left, right, top, bottom)), GREY).clamp(0, 1)
    picture = Image.fromarray((flat * 255).round().byte().permute(1, 2, 0).contiguous().numpy())
    (x0, x1), (y0, y1) = (box + [[left], [top]]).tolist()
    part = picture.resize((HASHED, HASHED), Image.Resampling.LANCZOS, box=(x0, y0, x1, y1))
    return str(imagehash.phash(part))


def check(facts: Mapping[str, Any], settings: FilterSettings) -> None:
    """Rejected, with the figure and its limit, for a foreground whose `measure` is not within the limits."""
    sides = int(facts["height"]), int(facts["width"])
    size = f"{sides[1]}x{sides[0]} px"
    area = float(facts["area"])
    low, high, wanted = settings.min_area, settings.max_area, settings.min_sharpness
    ratio, sharpness = max(sides) / min(sides), float(facts["sharpness"])
    rows: list[tuple[bool, str]] = [
        (area == 0, "it is empty: its alpha is 0 everywhere."),
        (area == 1, "it is opaque everywhere: there is no foreground to tell from a background."),
        (min(sides) < settings.min_side, f"it is {size}, its shorter side below {settings.min_side} px."),
        (ratio > settings.max_ratio, f"it is {size}, {ratio:.2f} to 1, more than {settings.max_ratio:g}."),
        (area < low, f"it covers {area:.4f} of the picture, less than {low:g}."),
        (area > high, f"it covers {area:.4f} of the picture, more than {high:g}."),
        (sharpness < wanted, f"its sharpness is {sharpness:.2f}, less than {wanted:g}."),
    ]
    for side in SIDES:
        share = float(facts[f"cut_{side}"])
        said = f"it is cut off at the {side} in {share:.2f} of its extent there, more than {settings.max_cut:g}."
        rows.append((side not in settings.allowed_cut and share > settings.max_cut, said))
    if said := next((said for wrong, said in rows if wrong), ""):
        raise Rejected(said)


def duplicates(
    facts: Mapping[str, Mapping[str, Any]], distance: int = 4, scores: Mapping[str, float] | None = None
) -> dict[str, str]:
    """Pictures that look like another one, by that one's id.

    Args:
        facts: by id, see `measure`.
        distance: bits in which the hashes of two that look alike differ at most.
        scores: of several the highest is kept; where it is missing or equal the one of the most pixels, then the first
            id.

    Returns:
        By the id of each that is left out that of the one that is kept, the best of those that it looks like.
    """

    def rank(name: str) -> tuple[float, float, str]:
        return -(scores or {}).get(name, -np.inf), -float(facts[name]["width"]) * float(facts[name]["height"]), name

    names = sorted(facts, key=rank)
    hashes = np.array([int(str(facts[name]["phash"]), 16) for name in names], np.uint64)
    of, found = np.full(len(names), -1), {}
    for k, value in enumerate(hashes):
        if of[k] >= 0:
            found[names[k]] = names[of[k]]
            continue
        near = np.bitwise_count(hashes[k + 1 :] ^ value) <= distance
        rest = of[k + 1 :]
        rest[near & (rest < 0)] = k
    return found


def best(scores: Mapping[str, float], keep: int) -> list[str]:
    """The ids of the `keep` highest scores, the highest first; equal ones by id."""
    return sorted(scores, key=lambda name: (-scores[name], name))[:keep]


# ---- what pleases ---------------------------------------------------------------------------------------------------


def scorer(settings: FilterSettings) -> Callable[[Tensor], float] | None:
    """What scores a picture over white, (3, H, W) in [0, 1], the higher the better; None where no scorer is named.

    `aesthetic` names a function as "package.module:function", or LAION's predictor by the file of its weights, which
    stands on the CLIP ViT-L/14 in the folder `clip`.

    Raises:
        InputError: the function cannot be imported, or a file is not what it should be; when called, the score is no
            finite number.
    """
    if not settings.aesthetic:
        return None
    path = Path(settings.aesthetic).expanduser()
    if path.is_file():
        score = _laion(path, settings.clip)
    else:
        try:
            score = pkgutil.resolve_name(settings.aesthetic)
            if not callable(score) or ":" not in settings.aesthetic:
                raise ValueError("it is no function")
        except (ImportError, AttributeError, ValueError) as error:
            raise InputError(
                f"filters.aesthetic={settings.aesthetic!r} is no file and cannot be imported ({error}): give "
                "package.module:function, or the weights of LAION's predictor."
            ) from None

    def checked(picture: Tensor) -> float:
        value = float(score(picture))
        if not np.isfinite(value):
            raise InputError(f"filters.aesthetic={settings.aesthetic!r} answers {value}: it must be a finite number.")
        return value

    return checked


def _laion(path: Path, folder: str) -> Callable[[Tensor], float]:
    """LAION's predictor: linear layers alone, on the embedding of unit length."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from omnialpha.evaluation.metrics.clip import Clip

    try:
        weights = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        layers = [(weights[f"layers.{k}.weight"].double(), weights[f"layers.{k}.bias"].double()) for k in LAION_KEYS]
        if [tuple(w.shape) for w, _ in layers] != list(zip(LAION[1:], LAION[:-1], strict=True)):
            raise ValueError("its layers are of other sizes")
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        AttributeError,
        UnpicklingError,
        SafetensorError,
    ) as e:
        raise InputError(f"{path} holds no predictor of aesthetics ({e}): give LAION's for CLIP ViT-L/14.") from None
    if not folder:
        raise InputError("filters.clip is empty: LAION's predictor needs the folder of a CLIP ViT-L/14.")
    clip = Clip.load(folder, "cuda" if torch.cuda.is_available() else "cpu")
    if (width := clip.model.config.projection_dim) != LAION[0]:
        raise InputError(f"{folder} is a CLIP of {width} numbers, the predictor needs {LAION[0]}: use ViT-L/14.")

    def score(picture: Tensor) -> float:
        value = F.normalize(clip.features(picture[None]).double(), dim=-1)[0]
        for weight, bias in layers:
            value = weight @ value + bias
        return float(value)

    return score
