"""Procedural layers of thin or small parts: hair, fur, feathers, grass, branches, nets, lace, scattered bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from omnialpha.data.synthetic.shapes import (
    MARGIN,
    OUTLINES,
    SUPERSAMPLE,
    Array,
    Drawn,
    axes,
    describe,
    grid,
    lit,
    noise,
    pick,
    place,
    rasterize,
    tint,
)

HAIR = ("brown", "brown", "black", "black", "orange", "yellow", "grey", "white", "beige", "red")
FUR = (*HAIR, "pink", "light blue", "purple", "green")
Paths = NDArray[np.float64]  # (k strands, m points from root to tip, 2) in [-1, 1]


def strands(paths: Paths, width: NDArray[np.float64], colors: Array, base: Array, n: int) -> tuple[Array, Array]:
    """Colour (n, n, 3) and alpha (n, n) of tapering strands; width (k,) of the root in pixels, colors (k, 3) in [0, 1].

    The taper ends far below one pixel, which gives tips partial alpha. Gaps between strands hold `base`.
    """
    side = n * SUPERSAMPLE
    along = np.gradient(paths, axis=1)
    normal = np.stack([-along[..., 1], along[..., 0]], -1) / (np.linalg.norm(along, axis=-1, keepdims=True) + 1e-9)
    taper = np.linspace(1, 0.1, paths.shape[1]) ** 0.8
    half = normal * width[:, None, None] * taper[:, None] * (SUPERSAMPLE / 2)
    center = (paths + 1) * (side / 2)
    ribbons = np.concatenate([center + half, (center - half)[:, ::-1]], axis=1)
    image = Image.new("RGBA", (side, side), (*(int(c * 255) for c in base), 0))
    pen = ImageDraw.Draw(image)
    fills = np.clip(colors * 255, 0, 255).astype(int).tolist()
    for ribbon, fill in zip(ribbons.reshape(len(paths), -1).tolist(), fills, strict=True):
        pen.polygon(ribbon, fill=(*fill, 255))
    alpha = np.asarray(image.getchannel("A").reduce(SUPERSAMPLE), np.float32) / 255
    return np.asarray(image.convert("RGB").reduce(SUPERSAMPLE), np.float32) / 255, alpha


def grow(root: Paths, heading: NDArray[np.float64], length: NDArray[np.float64]) -> Paths:
    """Walk from root (k, 2) along heading (k, m), 0 = up and clockwise, for a length (k,)."""
    step = np.stack([np.sin(heading), -np.cos(heading)], -1) * (length[:, None, None] / heading.shape[1])
    return np.concatenate([root[:, None], root[:, None] + np.cumsum(step, axis=1)], axis=1)


def fill_square(rng: Generator, paths: Paths, turn: float) -> Paths:
    return place(rng, [(paths.reshape(-1, 2), 1)], turn)[0][0].reshape(paths.shape)


def _shades(rng: Generator, base: Array, k: int, spread: float) -> Array:
    return (base * rng.uniform(1 - spread, 1 + spread, (k, 1))).astype(np.float32)


def _hair(rng: Generator, n: int) -> Drawn:
    name, (wording, fan, root_width, wave) = pick(rng, HAIR), [
        (("a tuft of {c} [hair]", "{c} [hair]"), 0.7, 0.12, 0.25),
        (("a lock of {c} [hair]", "long {c} [hair]", "a lock of wavy {c} [hair]"), 0.2, 0.2, 0.8),
        (("messy {c} [hair]", "a tangle of {c} [hair]"), 1.2, 0.3, 0.7),
        (("a strand of thin {c} [hairs]", "a few loose {c} [hairs]"), 0.5, 0.1, 0.5),
    ][style := int(rng.integers(4))]  # fmt: skip
    base, t = tint(rng, name), np.linspace(0, 1, 14)
    k = int(rng.integers(25, 60) if style == 3 else rng.integers(120, 240))
    locks = int(rng.integers(4, 12))
    lock = rng.integers(0, locks, k)  # strands of one lock share their course
    root = rng.normal(0, 1, (k, 2)) * [root_width, 0.04]
    heading = (rng.normal(0, fan, locks)[lock] + rng.normal(0, 0.1, k) + root[:, 0])[:, None]
    curl = (rng.normal(0, 0.6) + rng.normal(0, 0.5 * fan, locks)[lock] + rng.normal(0, 0.12, k))[:, None]
    phase = (rng.uniform(0, 3, locks)[lock] + rng.normal(0, 0.25, k))[:, None]
    course = heading + curl * t + wave * rng.uniform(0.5, 1) * np.sin(rng.uniform(3, 8) * t + phase)
    astray = rng.random(k) < 0.07
    course[astray] += rng.normal(0, 0.5, (int(astray.sum()), 1)) * t
    paths = fill_square(rng, grow(root, course, rng.uniform(0.6, 1, k)), 3.1)
    width = rng.uniform(0.7, 1.6) * rng.uniform(0.5, 1.3, k) * np.where(astray, 0.6, 1) * n / 96
    rgb, alpha = strands(paths, width, _shades(rng, base, k, 0.26), base, n)
    return rgb, alpha, describe(rng, wording, name)


def _fur(rng: Generator, n: int) -> Drawn:
    name, kind = pick(rng, FUR), pick(rng, ("circle", "circle", "circle", "heart", "star", "blob", "leaf"))
    base, thick, m = tint(rng, name), rng.uniform(0.01, 0.045), 6
    k, inner = int(np.clip(9 / thick, 260, 800)), rng.uniform(0.66, 0.8)
    shape = [(points * inner, fill) for points, fill in place(rng, OUTLINES[kind][0](rng), 0.5)]
    depth = ndimage.gaussian_filter(rasterize(shape, 48), 3.5)
    rows, columns = np.nonzero(rasterize(shape, 48) > 0.5)
    chosen = rng.integers(0, len(rows), k)
    chosen = chosen[np.argsort(depth[rows[chosen], columns[chosen]])]  # the rim first, so that inner hairs lie on top
    rows, columns = rows[chosen], columns[chosen]
    fall_y, fall_x = (-g[rows, columns] for g in np.gradient(depth))
    outward = np.arctan2(fall_x + rng.normal(0, 0.015, k), -fall_y + rng.normal(0, 0.015, k))
    root = (np.stack([columns, rows], -1) + rng.uniform(0, 1, (k, 2))) / 24 - 1
    swirl = rng.normal(0, 0.5) + rng.normal(0, 0.35, k)
    course = outward[:, None] + swirl[:, None] * np.linspace(0.2, 1.2, m)
    paths = grow(root, course, (0.98 - inner) * rng.uniform(0.7, 1.25, k))
    light = np.clip(rng.uniform(0.8, 1.14, k) - 0.14 * root[:, 1], 0.6, 1.3)
    colors = (base * light[:, None]).astype(np.float32)
    rgb, hairs = strands(paths, thick * n * rng.uniform(0.7, 1.3, k), colors, base, n)
    forms = ("furry {c} [{k}]", "fluffy {c} [{k}]", "[{k}] of {c} fur", "{c} fur [{k}]")
    caption = describe(rng, forms, name, an=True, k="ball" if kind == "circle" else kind)
    return rgb, np.maximum(hairs, rasterize(shape, n)), caption


def _feather(rng: Generator, n: int) -> Drawn:
    name = pick(rng, ("white", "white", "grey", "black", "brown", "light blue", "red", "green", "pink", "yellow"))
    base, k, m = tint(rng, name), 170, 8
    bend = rng.uniform(-0.9, 0.9)
    spine = grow(np.zeros((1, 2)), bend * np.linspace(-0.5, 0.5, 60)[None], np.full(1, 2.0))[0]
    at = np.sort(rng.uniform(0.2, 0.99, k))
    side = np.where(rng.random(k) < 0.5, -1.0, 1.0)
    lean = bend * (at - 0.5) + side * (rng.uniform(0.6, 0.9) - 0.35 * at) + rng.normal(0, 0.05, k)
    course = lean[:, None] - (0.5 * side)[:, None] * np.linspace(0, 1, m)
    length = 0.55 * rng.uniform(0.8, 1.1) * np.sin(np.pi * np.clip(at - 0.08, 0, 1) ** 0.8) ** 0.6
    barbs = grow(spine[(at * 60).astype(int)], course, length * rng.uniform(0.85, 1.05, k))
    quill = np.stack([spine[np.linspace(0, 58, m + 1).astype(int)]])
    paths = fill_square(rng, np.concatenate([barbs, quill]), 3.1)
    width = np.append(rng.uniform(0.012, 0.024) * n * rng.uniform(0.7, 1.2, k), 0.035 * n)
    colors = np.concatenate([_shades(rng, base, k, 0.12), base[None] * 0.8 + 0.12])
    rgb, alpha = strands(paths, width, colors, base, n)
    forms = ("{c} [feather]", "soft {c} [feather]", "bird's [feather] in {c}")
    return rgb, alpha, describe(rng, forms, name, an=True)


def _grass(rng: Generator, n: int) -> Drawn:
    name, k = pick(rng, ("green", "green", "dark green", "yellow", "beige")), int(rng.integers(40, 140))
    base = tint(rng, name)
    root = np.stack([rng.uniform(-0.8, 0.8, k), np.zeros(k)], -1)
    lean, curl = rng.normal(0, 0.22, k)[:, None], rng.normal(0, 0.7, k)[:, None]
    paths = grow(root, lean + curl * np.linspace(0, 1, 9), rng.uniform(0.7, 1.85, k))
    paths = fill_square(rng, paths, 0.05)
    colors = _shades(rng, base, k, 0.2)
    rgb, alpha = strands(paths, rng.uniform(0.015, 0.05) * n * rng.uniform(0.6, 1.3, k), colors, base, n)
    return rgb, alpha, describe(rng, ("{c} [grass]", "blades of {c} [grass]", "a patch of {c} [grass]"), name)


def _branches(rng: Generator, n: int) -> Drawn:
    name = pick(rng, ("brown", "brown", "black", "grey", "white", "dark green"))
    base, m = tint(rng, name), 7
    root, lean, level = np.zeros((1, 2)), np.zeros(1), 0
    paths, widths = [], []
    while level < 6 and len(root) < 200:
        course = lean[:, None] + rng.normal(0, 0.35, (len(root), 1)) * np.linspace(0, 1, m)
        grown = grow(root, course, rng.uniform(0.7, 1.1, len(root)) * 0.72**level)
        paths.append(grown)
        widths.append(np.full(len(root), 0.075 * 0.62**level))
        forks = rng.integers(m // 2, m + 1, (len(root), 3))
        forks[:, 0] = m - 1
        root = grown[np.arange(len(grown))[:, None], forks].reshape(-1, 2)
        lean = (course[:, -1:] + np.array([0.1, -0.6, 0.6]) + rng.normal(0, 0.2, forks.shape)).ravel()
        level += 1
    everything = fill_square(rng, np.concatenate(paths), 0.3)
    width = np.concatenate(widths) * n * rng.uniform(0.7, 1.3)
    rgb, alpha = strands(everything, width, _shades(rng, base, len(width), 0.15), base, n)
    return rgb, alpha, describe(rng, ("a bare {c} [tree]", "{c} [branches]", "thin {c} [twigs]"), name)


def _net(rng: Generator, n: int) -> Drawn:
    name = pick(rng, ("white", "black", "red", "blue", "green", "beige", "brown", "grey", "yellow", "pink"))
    angle, f, bend = rng.uniform(0, 3.1), rng.uniform(3, 6), 0.25 * (noise(rng, n, 2, 2) - 0.5)
    saw = np.minimum(*(np.abs(((axis + bend) * f) % 1 - 0.5) for axis in axes(n, angle)))
    half = rng.uniform(0.06, 0.13)
    threads = np.clip((half - saw) * n / (2 * f) + 0.5, 0, 1)
    outline = OUTLINES[pick(rng, ("square", "circle", "blob"))][0](rng)
    rgb = np.clip(tint(rng, name) * (1.05 - 0.25 * np.clip(saw / half, 0, 1))[..., None], 0, 1)
    caption = describe(rng, ("{c} [net]", "piece of {c} [mesh]", "[net] of {c} threads"), name, an=True)
    return rgb.astype(np.float32), threads * rasterize(place(rng, outline, 3.1), n), caption


def _lace(rng: Generator, n: int) -> Drawn:
    name = pick(rng, ("white", "white", "black", "beige", "red", "pink", "light blue", "purple"))
    x, y = grid(n)
    r, angle = np.hypot(x, y) / MARGIN, np.arctan2(y, x) + rng.uniform(0, 6.3)
    k, rings = 2 * int(rng.integers(4, 9)), rng.uniform(7, 13)
    edge = np.clip((0.92 + 0.08 * np.abs(np.sin(k * angle)) - r) * n / 2 + 0.5, 0, 1)
    holes = np.abs(np.cos(k * angle / 2) * np.sin(rings * r)) * np.clip(3 * r, 0, 1) * np.clip((0.9 - r) * 12, 0, 1)
    thread = np.clip((rng.uniform(0.3, 0.55) - holes) * n / (4 + rings) + 0.5, 0, 1)
    veil = rng.uniform(0, 0.35)  # the fine tulle between the threads
    rgb = np.clip(tint(rng, name) * (0.95 + 0.07 * np.cos(20 * r))[..., None], 0, 1).astype(np.float32)
    caption = describe(rng, ("{c} lace [doily]", "round piece of {c} [lace]", "[doily] of {c} lace"), name, an=True)
    return rgb, edge * (veil + (1 - veil) * thread), caption


# what -> colours, smallest and largest radius (half the side is 1), blur in pixels of 96, opacity
SCATTER: dict[str, tuple[tuple[str, ...], float, float, float, tuple[int, int]]] = {
    "snow": (("white",), 0.015, 0.07, 0.8, (255, 256)),
    "sparks": (("orange", "yellow", "red"), 0.01, 0.05, 0.5, (255, 256)),
    "confetti": (("red", "orange", "yellow", "green", "blue", "purple", "pink"), 0.03, 0.07, 0, (255, 256)),
    "bubbles": (("light blue", "white", "teal", "pink"), 0.05, 0.2, 0.1, (50, 150)),
    "raindrops": (("light blue", "white", "grey"), 0.02, 0.08, 0.2, (60, 160)),
    "petals": (("pink", "red", "white", "purple"), 0.05, 0.13, 0, (255, 256)),
}


def _scatter(rng: Generator, n: int) -> Drawn:
    what = pick(rng, SCATTER)
    names, low, high, blur, opacity = SCATTER[what]
    name, side = pick(rng, names), n * SUPERSAMPLE
    image = Image.new("L", (side, side))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(15, 30) if high > 0.1 else rng.integers(40, 110))):
        r = rng.uniform(low, high)
        size = r * rng.uniform(0.5, 1, 2) if what in ("petals", "confetti") else np.full(2, r)
        center, fill = rng.uniform(r - MARGIN, MARGIN - r, 2), int(rng.integers(*opacity))
        box = (np.concatenate([center - size, center + size]) + 1) * side / 2
        pen.ellipse(box.tolist(), fill=fill, outline=min(255, fill + 60), width=max(1, side // 120))
    alpha = np.asarray(image.reduce(SUPERSAMPLE), np.float32) / 255
    if blur:
        alpha = ndimage.gaussian_filter(alpha, blur * n / 96)
    caption = describe(rng, ("{c} [{w}]", "falling {c} [{w}]", "scattered {c} [{w}]"), name, w=what)
    return lit(tint(rng, name), 0.85 + 0.3 * noise(rng, n, 12, 2)), alpha, caption


THIN_STRUCTURES: dict[str, Callable[[Generator, int], Drawn]] = {
    "hair": _hair, "fur": _fur, "feather": _feather, "grass": _grass, "branches": _branches, "net": _net, "lace": _lace,
    "scatter": _scatter,
}  # fmt: skip
