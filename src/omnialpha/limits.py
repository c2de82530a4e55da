"""The ranges of settings, checked once for the library and the command line. Nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from numbers import Real
from operator import index
from typing import Any

from omnialpha.errors import InputError

REFINE = ("auto", "off", "closed-form")
MAX_SEED = 2**63 - 1
MAX_STEPS = 1000
MAX_GUIDANCE = 30.0
MAX_PIXELS = 89_478_485  # of a picture: Pillow's own guard; 1.4 GB as float RGBA. 20000 x 4000 passes
MAX_SIDE = 16384  # px of a picture made from text


def whole(name: str, value: Any, low: int, high: int) -> int:
    """The whole number (a Python or numpy one) of a setting in [low, high]; InputError otherwise."""
    try:
        number = index(value)
    except TypeError:
        raise InputError(f"{name}={value!r} is not a whole number: use {low} to {high}.") from None
    if not low <= number <= high:
        raise InputError(f"{name}={number} is out of range: use {low} to {high}.")
    return number


def check_seed(value: Any) -> int:
    return whole("seed", value, 0, MAX_SEED)


def check_seeds(value: Any, count: int) -> list[int]:
    """The seed of each of `count` samples: value + b for sample b, or the seeds in a sequence.

    Raises:
        InputError: One is out of range, or a sequence has another length.
    """
    if not hasattr(value, "__len__") or isinstance(value, str):
        return [check_seed(value) + b for b in range(count)]
    if len(value) != count:
        raise InputError(f"{len(value)} seeds were given for {count} examples: pass one for each, or one for all.")
    return [check_seed(own) for own in value]


def check_refine(value: Any) -> str:
    if value not in REFINE:
        raise InputError(f"refine={value!r} is not known: use {', '.join(REFINE)}.")
    return str(value)


def check_steps(value: Any) -> int:
    return whole("steps", value, 1, MAX_STEPS)


def check_guidance(value: Any) -> float:
    if not isinstance(value, Real):
        raise InputError(f"guidance={value!r} is not a number: use 0 to {MAX_GUIDANCE:g}, 1 is none.")
    scale = float(value)
    if not 0 <= scale <= MAX_GUIDANCE:  # NaN is not
        raise InputError(f"guidance={scale:g} is out of range: use 0 to {MAX_GUIDANCE:g}, 1 is none.")
    return scale


def check_size(value: Any, given: str = "") -> tuple[int, int]:
    """Check the size of a picture to be made.

    Args:
        value: (height, width) in pixels.
        given: What the user wrote, for the message.

    Returns:
        (height, width).

    Raises:
        InputError: It is no size, or out of range.
    """
    given = given or f"size={value!r} (height, width)"
    try:
        height, width = map(index, value)
    except (TypeError, ValueError):
        raise InputError(f"{given} is not a size: pass (height, width) in whole pixels.") from None
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise InputError(f"{given} is out of range: use sides of 1 to {MAX_SIDE} px.")
    if height * width > MAX_PIXELS:
        raise InputError(f"{given} is out of range: use at most {MAX_PIXELS:,} pixels.")
    return height, width


def check_pixels(picture: Any) -> None:
    """InputError where an array, a tensor or a PIL picture is larger than a picture file may be."""
    size = getattr(picture, "shape", None) or getattr(picture, "size", None)
    if isinstance(size, tuple) and prod(sorted(size)[-2:]) > MAX_PIXELS:  # without the channels
        raise InputError(f"a picture of {tuple(size)} has more than {MAX_PIXELS:,} pixels: make it smaller or crop it.")


def by(size: Sequence[int]) -> str:
    """(height, width) as a person reads it: WIDTHxHEIGHT."""
    return f"{size[1]}x{size[0]}"
