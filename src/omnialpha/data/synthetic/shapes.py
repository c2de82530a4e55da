"""Procedural drawing: outlines, textures and shading, each a function of a numpy Generator.

Colour and alpha are drawn apart: colour fills the whole square and alpha cuts it. So an antialiased or blurred edge
never mixes with black, and the colour under alpha 0 is the object's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from omnialpha.data.scene import Caption
from omnialpha.data.synthetic.colors import COLORS, NAMES, color_name, oklab

Array = NDArray[np.floating[Any]]  # float32 wherever it is cheap to keep so
Drawn = tuple[Array, Array, Caption]  # colour (n, n, 3), alpha (n, n), both [0, 1]
SUPERSAMPLE = 4
NEUTRAL = ("white", "grey", "black")  # the eye forgives them no tint
MARGIN = 0.94  # half the side of the drawing, where the square's is 1


@lru_cache(maxsize=8)
def grid(n: int) -> tuple[Array, Array]:
    """Pixel centres x (right) and y (down) in (-1, 1), each (n, n)."""
    axis = ((np.arange(n, dtype=np.float32) + 0.5) * (2 / n) - 1).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    x.flags.writeable = y.flags.writeable = False
    return x, y


def noise(rng: Generator, n: int, cells: float, octaves: int = 4, gain: float = 0.5) -> Array:
    """Fractal value noise (n, n) in [0, 1], mean about 0.5; cells: features across the square."""
    total = np.zeros((n, n), np.float32)
    for octave in range(octaves):
        side = max(2, min(n, round(cells * 2**octave)))
        coarse = Image.fromarray(rng.standard_normal((side, side), np.float32))
        total += gain**octave * np.asarray(coarse.resize((n, n), Image.Resampling.BICUBIC))
    return np.clip(0.5 + 0.22 * (total - total.mean()) / (total.std() + 1e-6), 0, 1).astype(np.float32)


def warp(field: Array, dx: Array, dy: Array) -> Array:
    """field (n, n) pulled by offsets in [-1, 1] coordinates; this turns noise into curls and wisps."""
    n = len(field)
    rows, columns = np.mgrid[:n, :n]
    return ndimage.map_coordinates(field, [rows + dy * (n / 2), columns + dx * (n / 2)], order=1, mode="reflect")


def smoothstep(low: float, high: float, value: Array) -> Array:
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def axes(n: int, angle: float, skew: float = 0) -> tuple[Array, Array]:
    """Coordinates (n, n) along a direction and across it; skew: by how much the other axis leans."""
    x, y = grid(n)
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle + skew) - x * np.sin(angle + skew)


def blend(a: Array, b: Array | float, weight: Array | float) -> Array:
    """Colours (n, n, 3): a where weight (n, n) is 0, b where it is 1; a and b may be one colour (3,)."""
    return (a + (b - a) * np.asarray(weight, np.float32)[..., None]).astype(np.float32)


def lit(color: Array, light: Array) -> Array:
    """A colour (3,) under light (n, n) around 1."""
    return np.clip(color * light[..., None], 0, 1).astype(np.float32)


def tint(rng: Generator, name: str, spread: float = 14) -> Array:
    """A colour (3,) in [0, 1] near COLORS[name] that still has that name."""
    hue = 0.12 if name in NEUTRAL else 1
    for width in (spread, spread / 2):
        shift = width / np.hypot(1, hue) * (rng.normal() + hue * rng.normal(0, 1, 3))
        rgb = np.clip(np.array(COLORS[name]) + shift, 0, 255)
        if color_name(rgb) == name:
            return (rgb / 255).astype(np.float32)
    return np.array(COLORS[name], np.float32) / 255


def pick(rng: Generator, options: Iterable[str]) -> str:
    options = tuple(options)
    return options[int(rng.integers(len(options)))]


def contrasting(rng: Generator, name: str) -> str:
    """Another colour name, well apart from this one."""
    here = oklab(COLORS[name])
    return pick(rng, [other for other in NAMES if np.linalg.norm(oklab(COLORS[other]) - here) > 0.18])


def article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def describe(rng: Generator, wordings: Iterable[str], color: str, an: bool = False, **words: str) -> Caption:
    """A caption in a drawn wording.

    Args:
        wordings: templates with `{c}` for the colour; the name of what is drawn stands in [brackets].
        color: the main colour, by its name in COLORS.
        an: put an article in front.
        **words: for the other fields of the templates.
    """
    text = pick(rng, wordings).format(c=color, **words)
    found = re.search(r"\[(.+)\]", text)
    assert found, text
    text = text.replace("[", "").replace("]", "")
    return Caption(article(text) if an else text, found[1], color)


# --- outlines: unit polygons, (points (m, 2), fill) in drawing order -------------------------------------------------

Outline = list[tuple[NDArray[np.float64], int]]


def polar(radius: NDArray[np.float64]) -> NDArray[np.float64]:
    """Closed curve (m, 2) with these radii at equal angles, the first one upwards."""
    angle = np.linspace(0, 2 * np.pi, len(radius), endpoint=False) - np.pi / 2
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None]


def _polygon(sides: int) -> Callable[[Generator], Outline]:
    return lambda rng: [(polar(np.ones(sides)), 1)]


def _star(rng: Generator) -> Outline:
    return [(polar(np.tile([1, rng.uniform(0.38, 0.55)], int(rng.integers(5, 9)))), 1)]


def _ring(rng: Generator) -> Outline:
    return [(polar(np.ones(72)), 1), (polar(np.full(72, rng.uniform(0.45, 0.72))), 0)]


def _heart(rng: Generator) -> Outline:
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [(np.stack([16 * np.sin(t) ** 3, -y], axis=1), 1)]


def _cross(rng: Generator) -> Outline:
    w = rng.uniform(0.22, 0.42)
    quarter = np.array([[-w, -1], [w, -1], [w, -w]])
    turns = [np.array([[0, -1], [1, 0]]), np.eye(2)]
    points, turn = [], turns[1]
    for _ in range(4):
        points.append(quarter @ turn.T)
        turn = turns[0] @ turn
    return [(np.concatenate(points), 1)]


def _arrow(rng: Generator) -> Outline:
    w, neck = rng.uniform(0.16, 0.32), rng.uniform(-0.1, 0.35)
    return [(np.array([[-1, -w], [neck, -w], [neck, -0.75], [1, 0], [neck, 0.75], [neck, w], [-1, w]]), 1)]


def _blob(rng: Generator) -> Outline:
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    waves = sum(rng.normal(0, 0.22 / k) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in range(2, 6))
    return [(polar(np.maximum(1 + waves, 0.3)), 1)]


def _leaf(rng: Generator) -> Outline:
    t = np.linspace(0, 1, 40)
    width = rng.uniform(0.3, 0.5) * np.sin(np.pi * t ** rng.uniform(0.7, 1.2)) ** rng.uniform(0.8, 1.3)
    bend = rng.uniform(-0.25, 0.25) * np.sin(np.pi * t)
    sides = [np.stack([bend + width, 2 * t], 1), np.stack([bend - width, 2 * t], 1)[::-1]]
    vein = np.concatenate([np.stack([bend + 0.012, 2 * t], 1), np.stack([bend - 0.012, 2 * t], 1)[::-1]])[5:-5]
    stem = np.array([[-0.03, 1.9], [0.03, 1.9], [0.06, 2.35], [0, 2.35]])
    return [(np.concatenate(sides), 1), (stem, 1)] + ([(vein, 0)] if rng.random() < 0.3 else [])


def _flower(rng: Generator) -> Outline:
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    petals = int(rng.integers(5, 9))
    return [(polar(0.62 + 0.38 * np.abs(np.cos(petals * angle / 2)) ** 0.7), 1)]


def _moon(rng: Generator) -> Outline:
    inner = polar(np.full(72, 0.86)) + np.array([rng.uniform(0.35, 0.55), 0])
    return [(polar(np.ones(72)), 1), (inner, 0)]


def _fish(rng: Generator) -> Outline:
    body = polar(np.ones(60)) * [1, rng.uniform(0.45, 0.7)]
    tail = np.array([[0.75, 0], [1.6, -0.55], [1.4, 0], [1.6, 0.55]])
    return [(body, 1), (tail, 1), (polar(np.full(16, 0.07)) + [-0.55, -0.12], 0)]


def _house(rng: Generator) -> Outline:
    window = np.array([[-0.5, 0.05], [-0.15, 0.05], [-0.15, 0.4], [-0.5, 0.4]])
    walls = np.array([[-0.8, -0.2], [0.8, -0.2], [0.8, 1], [-0.8, 1]])
    return [(walls, 1), (np.array([[-1, -0.2], [0, -1], [1, -0.2]]), 1), (window, 0), (window * [-1, 1], 0)]


# name -> (outline, largest rotation in radians)
OUTLINES: dict[str, tuple[Callable[[Generator], Outline], float]] = {
    "circle": (_polygon(72), 3.1),
    "square": (_polygon(4), 3.1),
    "triangle": (_polygon(3), 3.1),
    "hexagon": (_polygon(6), 3.1),
    "star": (_star, 3.1),
    "ring": (_ring, 3.1),
    "heart": (_heart, 0.6),
    "cross": (_cross, 0.8),
    "arrow": (_arrow, 3.1),
    "blob": (_blob, 3.1),
    "leaf": (_leaf, 3.1),
    "flower": (_flower, 3.1),
    "crescent moon": (_moon, 3.1),
    "fish": (_fish, 0.5),
    "house": (_house, 0.1),
}


LEAVES = ("green", "green", "dark green", "yellow", "red", "orange", "brown")


def place(rng: Generator, outline: Outline, turn: float) -> Outline:
    """Rotate and stretch an outline at random and centre it so that it fills the square to MARGIN."""
    angle, squeeze = rng.uniform(-turn, turn), rng.uniform(0.78, 1) if rng.random() < 0.5 else 1
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * [squeeze, 1]
    turned = [(points @ matrix.T, fill) for points, fill in outline]
    everything = np.concatenate([points for points, fill in turned if fill])
    low, high = everything.min(0), everything.max(0)
    scale = 2 * MARGIN / (high - low).max()
    return [((points - (low + high) / 2) * scale, fill) for points, fill in turned]


def rasterize(outline: Outline, n: int) -> Array:
    """Antialiased coverage (n, n) of an outline in [-1, 1] coordinates."""
    side = n * SUPERSAMPLE
    image = Image.new("L", (side, side))
    pen = ImageDraw.Draw(image)
    for points, fill in outline:
        pen.polygon(((points + 1) * (side / 2) - 0.5).ravel().tolist(), fill=255 * fill)
    return np.asarray(image.reduce(SUPERSAMPLE), np.float32) / 255


# --- textures: (colour field, caption of the whole) ------------------------------------------------------------------


def _pattern(rng: Generator, n: int, kind: str) -> Array:
    """Weight (n, n) of the second colour, antialiased; on average well below one half."""
    angle, f = rng.uniform(0, np.pi), rng.uniform(1.5, 4)
    u, v = axes(n, angle)
    shift = rng.uniform(0, 1, 2)
    pixel = 2 * f / n  # one pixel in periods
    saw_u, saw_v = np.abs((u * f + shift[0]) % 1 - 0.5), np.abs((v * f + shift[1]) % 1 - 0.5)
    if kind == "stripes":
        weight = np.clip((rng.uniform(0.1, 0.18) - saw_u) / pixel + 0.5, 0, 1)
    elif kind == "dots":
        weight = np.clip((rng.uniform(0.18, 0.3) - np.hypot(saw_u, saw_v)) / pixel + 0.5, 0, 1)
    elif kind == "plaid":
        bars = np.stack([saw_u, saw_v])
        weight = np.clip((rng.uniform(0.07, 0.12) - bars) / pixel + 0.5, 0, 1).mean(0)
    elif kind == "marbled":
        weight = smoothstep(0.08, 0.0, np.abs(noise(rng, n, 3, 4) - 0.5)) * 0.8
    else:  # fading
        weight = 0.9 * smoothstep(-0.1, 1.2, u)
    return weight.astype(np.float32)


PATTERNS: dict[str, tuple[str, ...]] = {
    "stripes": ("{c} striped [{kind}]", "{c} [{kind}] with {b} stripes", "{c} and {b} striped [{kind}]"),
    "dots": ("{c} dotted [{kind}]", "{c} [{kind}] with {b} dots", "{c} [{kind}] with {b} polka dots"),
    "plaid": ("{c} plaid [{kind}]", "{c} [{kind}] with {b} plaid"),
    "marbled": ("{c} marbled [{kind}]", "{c} [{kind}] with {b} veins"),
    "fading": ("{c} [{kind}] fading to {b}", "{c} and {b} [{kind}]"),
    "plain": ("{c} [{kind}]", "plain {c} [{kind}]"),
    "mottled": ("{c} [{kind}]", "rough {c} [{kind}]", "mottled {c} [{kind}]"),
}


def textured(
    rng: Generator, n: int, kind: str, names: tuple[str, ...] = NAMES, patterns: tuple[str, ...] = (*PATTERNS, "plain")
) -> tuple[Array, Caption]:
    """A colour field (n, n, 3) with one main colour, and its caption."""
    a = pick(rng, names)
    b, pattern = contrasting(rng, a), pick(rng, patterns)
    base = tint(rng, a)
    if pattern == "plain":
        rgb = np.broadcast_to(base, (n, n, 3)).astype(np.float32)
    elif pattern == "mottled":
        rgb = base * (0.84 + 0.28 * noise(rng, n, rng.uniform(4, 16)))[..., None]
    else:
        rgb = blend(base, tint(rng, b), _pattern(rng, n, pattern))
    return rgb, describe(rng, PATTERNS[pattern], a, an=True, b=b, kind=kind)


def relief(rng: Generator, rgb: Array, alpha: Array) -> Array:
    """Light a colour field: a slope across the square, or a bevel that follows alpha's edge."""
    n = len(alpha)
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.03, 0.14)
    light, _ = axes(n, angle)
    if rng.random() < 0.5:
        height = ndimage.gaussian_filter(alpha, n * rng.uniform(0.02, 0.06), truncate=2)
        slope_y, slope_x = np.gradient(height)
        light = light + np.clip((np.cos(angle) * slope_x + np.sin(angle) * slope_y) * n * 0.3, -1.5, 1.5)
    return np.clip(rgb * (1 + strength * light)[..., None], 0, 1).astype(np.float32)


def draw_solid(kind: str, rng: Generator, n: int) -> Drawn:
    outline, turn = OUTLINES[kind]
    alpha = rasterize(place(rng, outline(rng), turn), n)
    rgb, caption = textured(rng, n, kind, LEAVES if kind == "leaf" else NAMES)
    return relief(rng, rgb, alpha), alpha, caption
