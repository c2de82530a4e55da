"""Procedural backgrounds: plain, patterned and scenic, each a function of a numpy Generator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from omnialpha.data.synthetic.colors import NAMES
from omnialpha.data.synthetic.shapes import (
    Array,
    axes,
    blend,
    contrasting,
    grid,
    lit,
    noise,
    pick,
    smoothstep,
    tint,
    warp,
)

Picture = tuple[Array, str]


def _axis(rng: Generator, n: int) -> Array:
    return axes(n, rng.uniform(0, 2 * np.pi))[0].astype(np.float32)


def _pair(rng: Generator) -> tuple[str, str, Array, Array]:
    a = pick(rng, NAMES)
    b = contrasting(rng, a)
    return a, b, tint(rng, a), tint(rng, b)


def _gradient(rng: Generator, n: int) -> Picture:
    a, b, first, second = _pair(rng)
    x, y = grid(n)
    ramp = smoothstep(-1, 1, _axis(rng, n)) if rng.random() < 0.7 else smoothstep(0, 1.3, np.hypot(x, y))
    return blend(first, second, ramp), f"a smooth gradient from {a} to {b}"


def _plain(rng: Generator, n: int) -> Picture:
    a = pick(rng, NAMES)
    light = 1 + rng.uniform(0, 0.2) * _axis(rng, n) + rng.uniform(0, 0.15) * (noise(rng, n, 12) - 0.5)
    return tint(rng, a) * light[..., None], pick(rng, (f"a plain {a} wall", f"a {a} studio backdrop"))


def _texture(rng: Generator, n: int) -> Picture:
    a, b, first, second = _pair(rng)
    field = noise(rng, n, rng.uniform(2, 12), 5, rng.uniform(0.4, 0.75))
    if rng.random() < 0.4:
        field = np.abs(2 * field - 1)  # ridges
    captions = (f"a rough {a} and {b} texture", f"a {a} surface mottled with {b}", f"{a} and {b} marble")
    return blend(first, second, field), pick(rng, captions)


def _tiles(rng: Generator, n: int) -> Picture:
    a, b, first, second = _pair(rng)
    u, v = axes(n, *((0, 0) if rng.random() < 0.5 else (rng.uniform(0, 3.1), rng.uniform(-0.4, 0.4))))
    f = rng.uniform(1.5, 5)
    edge = n / (2 * f)  # pixels in a tile
    pu, pv = (np.clip((np.abs((w * f / 2) % 1 - 0.5) - 0.25) * 2 * edge + 0.5, 0, 1) for w in (u, v))
    weight = pu + pv - 2 * pu * pv
    rgb = blend(first, second, weight) * (0.9 + 0.2 * noise(rng, n, 8))[..., None]
    return rgb, pick(rng, (f"a {a} and {b} checkerboard", f"a tiled floor in {a} and {b}"))


def _stripes(rng: Generator, n: int) -> Picture:
    a, b, first, second = _pair(rng)
    f = rng.uniform(1.5, 6)
    saw = np.abs((_axis(rng, n) * f) % 1 - 0.5)
    weight = np.clip((rng.uniform(0.15, 0.3) - saw) * n / (2 * f) + 0.5, 0, 1)
    return blend(first, second, weight), pick(rng, (f"{a} and {b} stripes", f"a {a} wallpaper with {b} stripes"))


def _shapes(rng: Generator, n: int) -> Picture:
    a, b, first, second = _pair(rng)
    x, y = grid(n)
    rgb, soft = first, rng.uniform(0.05, 0.5)
    for _ in range(int(rng.integers(3, 9))):
        cx, cy, r = *rng.uniform(-1, 1, 2), rng.uniform(0.2, 0.6)
        inside = smoothstep(r, r * (1 - soft), np.hypot(x - cx, (y - cy) * rng.uniform(0.6, 1.6)))
        rgb = blend(rgb, second * rng.uniform(0.7, 1.2), inside * rng.uniform(0.5, 1))
    return rgb, pick(rng, (f"blurred {b} shapes on {a}", f"an abstract {a} background with {b} spots"))


def _horizon(rng: Generator, n: int) -> Picture:
    x, y = grid(n)
    sky = pick(rng, ("light blue", "light blue", "blue", "orange", "pink", "grey", "dark blue", "white"))
    lands = ("green hills", "dark green hills", "beige dunes", "brown mountains", "white snow", "blue sea", "teal sea")
    below = pick(rng, lands)
    ground = tint(rng, below.rsplit(" ", 1)[0])
    line = rng.uniform(-0.3, 0.5)
    top = tint(rng, sky)
    clouds = smoothstep(0.5, 0.9, noise(rng, n, 2.5, 5)) * rng.uniform(0, 0.8)
    rgb = blend(blend(top, 1.0, 0.5 * smoothstep(-1, line, y)), 1.0, clouds)
    if below.endswith("sea"):
        glitter = noise(rng, n, 4)[:, :1] * 0.5 + noise(rng, n, 24, 2) * 0.5
        water = lit(ground, 0.75 + 0.5 * glitter)
        return blend(rgb, water, np.clip((y - line) * n / 2 + 0.5, 0, 1)), f"a {below} under a {sky} sky"
    for depth in (0.45, 0.7, 1.0):  # ranges of hills, the far ones hazy
        skyline = noise(rng, n, rng.uniform(2, 5), 4, 0.4)[n // 2] - 0.5
        ridge = line + 0.5 * (depth - 0.45) + rng.uniform(0.3, 1.2) * skyline
        grain = 0.85 + 0.3 * noise(rng, n, 14, 3)
        rgb = blend(rgb, blend(top, ground, depth) * grain[..., None], np.clip((y - ridge) * n / 2 + 0.5, 0, 1))
    return rgb, f"{below} under a {sky} sky"


def _wood(rng: Generator, n: int) -> Picture:
    name = pick(rng, ("brown", "beige", "orange", "grey", "white"))
    x, _ = grid(n)
    f = rng.uniform(1, 3) if rng.random() < 0.6 else 0.4  # planks, or one board
    plank = np.floor(x * f + 0.5)
    drift = 0.35 * (noise(rng, n, 1.5, 2) - 0.5) + 0.37 * plank
    streaks = np.broadcast_to(noise(rng, n, n / 3, 2)[:1], (n, n))  # fine lines along the fibre
    streaks = 0.7 * warp(streaks, 0.4 * drift, 0 * x) + 0.3 * noise(rng, n, n / 4, 1)
    rings = 0.5 + 0.5 * np.sin((x + drift) * rng.uniform(8, 24))
    gap = np.clip((0.015 - np.abs((x * f) % 1 - 0.5)) * n / (2 * f) + 0.5, 0, 1)
    light = 0.8 + 0.15 * rings + 0.3 * (streaks - 0.5) + 0.06 * np.sin(plank * 7) - 0.5 * gap
    rgb = tint(rng, name, 8) * light[..., None]
    if rng.random() < 0.5:
        rgb = rgb.transpose(1, 0, 2)
    return rgb, pick(rng, (f"{name} wood grain", f"a {name} wooden table", f"{name} wooden planks"))


def _lights(rng: Generator, n: int) -> Picture:
    x, y = grid(n)
    night = pick(rng, ("black", "dark blue", "brown", "purple", "dark green"))
    rgb = tint(rng, night) * (0.2 + 0.6 * noise(rng, n, 2, 2))[..., None]
    name = pick(rng, ("yellow", "orange", "white", "pink", "light blue", "red", "green"))
    size = rng.uniform(0.1, 0.32)
    for _ in range(int(rng.integers(8, 18))):
        cx, cy, r = *rng.uniform(-1.1, 1.1, 2), size * rng.uniform(0.6, 1.1)
        near = np.hypot(x - cx, y - cy)
        disc = smoothstep(r, r * 0.85, near) * (0.6 + 0.4 * near / r) * rng.uniform(0.2, 0.8)
        rgb = rgb + (1 - rgb) * disc[..., None] * tint(rng, name, 30)  # light adds up
    return rgb, pick(rng, (f"out-of-focus {name} lights at night", f"{name} bokeh lights on {night}"))


def _room(rng: Generator, n: int) -> Picture:
    wall, floor = _pair(rng)[:2]
    x, y = grid(n)
    line = rng.uniform(-0.1, 0.6) + rng.uniform(-0.2, 0.2) * x
    back = tint(rng, wall) * (0.95 + 0.15 * _axis(rng, n) + 0.1 * (noise(rng, n, 8) - 0.5))[..., None]
    pool = np.exp(-((x - rng.uniform(-0.7, 0.7)) ** 2 + (y - line - 0.3) ** 2) * 2)
    table = tint(rng, floor) * (0.8 + 0.25 * pool + 0.15 * (noise(rng, n, 20) - 0.5))[..., None]
    soft = rng.uniform(0.02, 0.12)  # the far edge is out of focus
    rgb = blend(back, table, smoothstep(-soft, soft, y - line))
    return rgb, pick(rng, (f"a {floor} table in front of a {wall} wall", f"a {wall} wall above a {floor} floor"))


def _bricks(rng: Generator, n: int) -> Picture:
    name = pick(rng, ("red", "brown", "beige", "grey", "white", "orange"))
    x, y = grid(n)
    rows = rng.uniform(3, 7)
    v = y * rows
    u = x * rows / 2.2 + 0.5 * (np.floor(v) % 2)
    pixel = 2 * rows / n
    seam = np.minimum(0.5 - np.abs(v % 1 - 0.5), 2.2 * (0.5 - np.abs(u % 1 - 0.5)))
    mortar = np.clip((rng.uniform(0.05, 0.1) - seam) / pixel + 0.5, 0, 1)
    shade = rng.uniform(0.75, 1.1, 997)[(np.floor(u) * 31 + np.floor(v) * 57).astype(int) % 997]  # each brick its own
    stone = tint(rng, name, 8) * (shade + 0.3 * (noise(rng, n, 24, 3) - 0.5))[..., None]
    return blend(stone, tint(rng, pick(rng, ("grey", "white", "beige"))), mortar), f"a {name} brick wall"


def _blurred(rng: Generator, n: int) -> Picture:
    first = pick(rng, NAMES)
    names = [first, contrasting(rng, first)]
    rgb = tint(rng, first)
    for name in (names[1], *(pick(rng, NAMES) for _ in range(2))):
        patches = smoothstep(0.35, 0.8, noise(rng, n, rng.uniform(2, 6), 2, 0.3))
        rgb = blend(rgb, tint(rng, name), patches * rng.uniform(0.5, 1))
    both = " and ".join(names)
    return rgb, pick(rng, (f"a blurred {both} background", f"an out-of-focus scene in {both}"))


def _ground(rng: Generator, n: int) -> Picture:
    kinds = ("green grass", "dark green foliage", "beige sand", "grey gravel", "white snow", "brown soil")
    name, what = pick(rng, kinds).rsplit(" ", 1)
    fine = noise(rng, n, n / 3, 2, 0.7)
    light = 0.55 + 0.6 * fine + 0.3 * noise(rng, n, 4, 3) - 0.1 * grid(n)[1]
    if what in ("snow", "sand"):
        light = 0.8 + 0.15 * fine + 0.25 * noise(rng, n, 4, 3)
    return tint(rng, name) * light[..., None], f"{name} {what}"


BACKGROUNDS: dict[str, Callable[[Generator, int], Picture]] = {
    "plain": _plain, "gradient": _gradient, "texture": _texture, "tiles": _tiles, "stripes": _stripes,
    "shapes": _shapes, "horizon": _horizon, "wood": _wood, "lights": _lights, "room": _room, "bricks": _bricks,
    "blurred": _blurred, "ground": _ground,
}  # fmt: skip
