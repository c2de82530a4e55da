"""Procedural layers with blurred or partial alpha: smoke, glass, flames, shadows, glows, cloth, paint, words."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from omnialpha.data.synthetic.shapes import (
    MARGIN,
    OUTLINES,
    Array,
    Drawn,
    Outline,
    article,
    axes,
    blend,
    describe,
    grid,
    lit,
    noise,
    pick,
    place,
    rasterize,
    relief,
    smoothstep,
    textured,
    tint,
    warp,
)

VIVID = ("red", "orange", "yellow", "green", "teal", "light blue", "blue", "purple", "pink", "white")
ROUND = ("circle", "square", "heart", "star", "hexagon", "blob")
WORDS = (
    "LAMP", "SALE", "OPEN", "HELLO", "CAT", "TREE", "Love", "Home", "MUSIC", "GO", "STOP", "Cafe", "RED", "WOW", "Jazz",
    "NEWS", "PLAY", "Milk", "BOOK", "2024", "YES", "Star", "TAXI", "Soap", "EXIT", "MAP", "Idea", "Rose", "BANK",
    "FREE", "Hi!", "ZOO", "Tea", "100%", "NEW", "Wood", "FISH", "Rain", "SUN", "Moon",
)  # fmt: skip


def frame(n: int) -> Array:
    """1 inside, falling to 0 at the square's border, so that no layer is cut off."""
    x, y = grid(n)
    return smoothstep(1.0, 0.8, np.maximum(np.abs(x), np.abs(y)))


def _smoke(rng: Generator, n: int) -> Drawn:
    name = pick(rng, ("white", "white", "grey", "black", "light blue", "beige", "pink", "purple", "teal", "orange"))
    x, y = grid(n)
    flow_x, flow_y = (noise(rng, n, rng.uniform(2, 4), 3) - 0.5 for _ in range(2))
    wisps = warp(noise(rng, n, rng.uniform(2.5, 5), 5, 0.55), 0.7 * flow_x, 0.7 * flow_y)
    if rng.random() < 0.6:  # a plume that rises and widens
        wording = ("a plume of {c} [smoke]", "a wisp of {c} [smoke]", "{c} [smoke]")
        envelope = np.exp(-(((x + 0.9 * flow_x) / (0.32 + 0.35 * (1 - y) / 2)) ** 2))
    else:
        wording = ("a puff of {c} [smoke]", "{c} [mist]", "a [cloud] of {c} vapour")
        envelope = smoothstep(1.1, 0.1, np.hypot(x + 0.5 * flow_x, y + 0.5 * flow_y))
    alpha = envelope * frame(n) * smoothstep(0.25, 0.8, wisps + 0.2 * envelope)
    alpha = alpha * (rng.uniform(0.6, 0.8) / max(float(alpha.max()), 1e-3))
    return lit(tint(rng, name), 0.85 + 0.3 * wisps), alpha, describe(rng, wording, name)


def _cloud(rng: Generator, n: int) -> Drawn:
    name = pick(rng, ("white", "white", "white", "grey", "pink", "beige", "orange", "light blue"))
    x, y = grid(n)
    field = np.full((n, n), -1.0, np.float32)
    for _ in range(int(rng.integers(5, 10))):
        r, cx = rng.uniform(0.3, 0.5), rng.uniform(-0.55, 0.55)
        cy = 0.35 - rng.uniform(0, 0.75) * (1 - abs(cx))
        field = np.maximum(field, 1 - np.hypot(x - cx, y - cy) / r)
    rough = noise(rng, n, 4, 5, 0.6)
    alpha = smoothstep(-0.3, 0.3, field + 1.1 * (rough - 0.5)) * frame(n) * rng.uniform(0.8, 1)
    caption = describe(rng, ("fluffy {c} [cloud]", "{c} [cloud]", "soft {c} [cloud]"), name, an=True)
    return lit(tint(rng, name), 0.96 - 0.1 * y + 0.2 * (rough - 0.5)), alpha, caption


def _turned(right: list[list[float]]) -> Outline:
    """A vessel from the right half of its outline."""
    half = np.array(right)
    return [(np.concatenate([half, half[::-1] * [-1, 1]]), 1)]


def _bottle(rng: Generator) -> Outline:
    neck, shoulder = rng.uniform(0.12, 0.22), rng.uniform(-0.45, -0.1)
    body = [[0.4, shoulder], [0.45, shoulder + 0.15], [0.46, 0.93], [0.4, 1]]
    return _turned([[neck, -1], [neck, shoulder - 0.2], *body])


def _cup(rng: Generator) -> Outline:
    foot = rng.uniform(0.4, 0.75)
    return _turned([[0.8, -1], [foot, 0.93], [foot - 0.08, 1]])


def _goblet(rng: Generator) -> Outline:
    return _turned([[0.5, -1], [0.56, -0.5], [0.4, -0.1], [0.07, 0.1], [0.06, 0.85], [0.45, 0.95], [0.45, 1]])


VESSELS: dict[str, Callable[[Generator], Outline]] = {
    "bottle": _bottle, "cup": _cup, "goblet": _goblet, "ball": OUTLINES["circle"][0], "heart": OUTLINES["heart"][0],
    "tile": OUTLINES["square"][0], "star": OUTLINES["star"][0], "ring": OUTLINES["ring"][0],
}  # fmt: skip


def _glass(rng: Generator, n: int) -> Drawn:
    kind, name = pick(rng, VESSELS), pick(rng, VIVID)
    mask = rasterize(place(rng, VESSELS[kind](rng), 0.3), n)
    depth = ndimage.distance_transform_edt(mask > 0.5).astype(np.float32) / n
    rim = np.exp(-depth / rng.uniform(0.015, 0.035)).astype(np.float32)
    x, y = grid(n)
    body = rng.uniform(0.17, 0.36) + 0.08 * np.cos(rng.uniform(0, 6.3) + 2 * x + y)
    inside = np.argwhere(depth > 0.6 * depth.max())
    cy, cx = inside[int(rng.integers(len(inside)))] * (2 / n) - 1
    across, along = rng.uniform(0.05, 0.11), rng.uniform(0.15, 0.4)
    lean = rng.uniform(-0.4, 0.4)
    spot = np.exp(-(((((x - cx) + lean * (y - cy)) / across) ** 2 + ((y - cy) / along) ** 2) ** 2))
    shine = np.clip(0.85 * spot + 0.6 * rim * smoothstep(0.1, 0.7, -x - y), 0, 1)
    alpha = mask * np.clip(body + 0.28 * rim + 0.5 * shine, 0, 0.9)
    rgb = blend(tint(rng, name), 1.0, np.clip(0.85 * shine + 0.1 * rim, 0, 1))
    what = "[glass {k}]" if kind == "ball" else "glass [{k}]"
    forms = (f"{{c}} {what}", f"see-through {{c}} {what}", "transparent {c} [{k}]", "[{k}] of {c} glass")
    return rgb, alpha, describe(rng, forms, name, an=True, k=kind)


def _bubble(rng: Generator, n: int) -> Drawn:
    name = pick(rng, VIVID)
    x, y = grid(n)
    r = np.hypot(x, y) / MARGIN
    inside = np.clip((1 - r) * n * MARGIN / 2 + 0.5, 0, 1)
    rim = np.clip(r, 0, 1) ** rng.uniform(4, 9)
    angle = rng.uniform(-2.6, -0.6)
    spot = np.exp(-((x - 0.5 * np.cos(angle)) ** 2 + (y - 0.5 * np.sin(angle)) ** 2) / rng.uniform(0.01, 0.03))
    swirl = 0.5 + 0.5 * np.sin(np.arctan2(y, x) * 2 + 5 * noise(rng, n, 2, 2))
    rgb = blend(tint(rng, name), tint(rng, pick(rng, VIVID)), 0.3 * swirl)
    alpha = inside * np.clip(rng.uniform(0.06, 0.16) + 0.55 * rim + 0.7 * spot, 0, 0.95)
    forms = ("{c} [bubble]", "{c} soap [bubble]", "transparent [bubble] with {c} reflections")
    return blend(rgb, 1.0, 0.9 * spot), alpha, describe(rng, forms, name, an=True)


FLAMES = {  # core, middle and edge
    "orange": ((1.0, 0.95, 0.6), (1.0, 0.6, 0.1), (0.85, 0.2, 0.03)),
    "yellow": ((1.0, 1.0, 0.8), (1.0, 0.87, 0.25), (0.95, 0.5, 0.08)),
    "blue": ((0.8, 0.95, 1.0), (0.2, 0.4, 0.9), (0.1, 0.2, 0.6)),
    "green": ((0.9, 1.0, 0.7), (0.35, 0.75, 0.3), (0.05, 0.4, 0.15)),
}


def _flame(rng: Generator, n: int) -> Drawn:
    name = pick(rng, ("orange", "orange", "orange", "yellow", "yellow", "blue", "green"))
    x, y = grid(n)
    up = np.clip((MARGIN - y) / (2 * MARGIN), 0, 1)
    lick = warp(noise(rng, n, rng.uniform(3, 5), 3), 0.3 * (noise(rng, n, 3, 2) - 0.5), -0.4 * up)
    x = x + 0.9 * (noise(rng, n, 2.5, 2) - 0.5) * up
    heat = np.full((n, n), -1.0, np.float32)
    for _ in range(int(rng.integers(1, 5))):  # tongues
        top, wide = rng.uniform(0.65, 1), rng.uniform(0.35, 0.7)
        rise = np.clip(up / top, 0, 1)
        width = wide * np.sqrt(rise + 0.03) * np.clip(1 - rise, 0, 1) ** 0.8 * 1.6
        heat = np.maximum(heat, 1 - np.abs(x - rng.uniform(-0.35, 0.35) * (1 - wide)) / (width + 0.02))
    heat = heat + 0.7 * (lick - 0.5)
    alpha = smoothstep(0.0, rng.uniform(0.4, 0.7), heat) * smoothstep(0, 0.06, up) * frame(n)
    core, middle, edge = (np.array(c, np.float32) for c in FLAMES[name])
    hot = smoothstep(0.7, 1.2, heat - 0.4 * up + 0.2)
    rgb = blend(blend(edge, middle, smoothstep(0.05, 0.5, heat)), core, hot)
    return rgb, alpha, describe(rng, ("{c} [flame]", "burning {c} [flame]", "{c} [fire]"), name, an=True)


def _shadow(rng: Generator, n: int) -> Drawn:
    if rng.random() < 0.3:  # what an object casts
        alpha = _blurred(rng, n, pick(rng, OUTLINES), rng.uniform(0.03, 0.09))
    else:
        angle, squash = rng.uniform(-0.6, 0.6), rng.uniform(0.3, 1)
        u, v = axes(n, angle)
        alpha = smoothstep(MARGIN, rng.uniform(-0.3, 0.6), np.hypot(u, v / squash))
    rgb = np.full((n, n, 3), rng.uniform(0, 0.06), np.float32)
    forms = ("a soft {c} [shadow]", "a blurred {c} [shadow]", "a {c} drop [shadow]")
    caption = describe(rng, forms, "black")
    return rgb, alpha * np.float32(rng.uniform(0.3, 0.8)), caption


def _blurred(rng: Generator, n: int, kind: str, sigma: float) -> Array:
    """An outline's alpha after a Gaussian blur of sigma (share of the side), still inside the square."""
    outline, turn = OUTLINES[kind]
    inner = [(points * (1 - 3 * sigma), fill) for points, fill in place(rng, outline(rng), turn)]
    return ndimage.gaussian_filter(rasterize(inner, n), sigma * n, truncate=3).astype(np.float32)


def _blur(rng: Generator, n: int) -> Drawn:
    kind, sigma = pick(rng, OUTLINES), rng.uniform(0.02, 0.08)
    alpha = _blurred(rng, n, kind, sigma)
    rgb, caption = textured(rng, n, kind)
    word = "out-of-focus"
    if rng.random() < 0.4:
        word, axis = "motion-blurred", int(rng.integers(2))
        alpha = ndimage.uniform_filter1d(alpha, int(n * rng.uniform(0.15, 0.3)), axis=axis, mode="constant") * frame(n)
    rgb = ndimage.gaussian_filter(rgb, (sigma * n / 2, sigma * n / 2, 0))
    return rgb, alpha, caption._replace(text=article(f"{word} {caption.text.split(' ', 1)[1]}"))


def _fade(rng: Generator, n: int) -> Drawn:
    along, _ = axes(n, rng.uniform(0, 6.3))
    ramp = smoothstep(-rng.uniform(0.5, 1), rng.uniform(0.3, 1), along)
    kind = pick(rng, ROUND)
    outline, turn = OUTLINES[kind]
    rgb, caption = textured(rng, n, kind)
    form = pick(rng, ("{} that fades to transparent", "{} with fading opacity", "{} that fades away"))
    faded = caption._replace(text=form.format(caption.text))
    return rgb, rasterize(place(rng, outline(rng), turn), n) * ramp, faded


def _glow(rng: Generator, n: int) -> Drawn:
    name = pick(rng, VIVID)
    x, y = grid(n)
    r, spokes = np.hypot(x, y) / MARGIN, int(rng.integers(2, 9))
    rays = 1 + rng.uniform(0, 0.6) * np.cos(spokes * np.arctan2(y, x) + rng.uniform(0, 6.3)) * np.clip(r, 0, 1)
    falloff = np.exp(-((r / rng.uniform(0.4, 0.65)) ** rng.uniform(1, 2)) / rays)
    alpha = falloff * smoothstep(1.0, 0.6, r) * rng.uniform(0.7, 1)
    rgb = blend(tint(rng, name), 1.0, 0.8 * smoothstep(0.35, 0.0, r))
    return rgb, alpha, describe(rng, ("{c} [glow]", "soft {c} [glow]", "{c} [light flare]"), name, an=True)


def _veil(rng: Generator, n: int) -> Drawn:
    name = pick(rng, VIVID)
    along, _ = axes(n, rng.uniform(0, 3.1))
    folds = 0.5 + 0.5 * np.sin(along * rng.uniform(5, 12) + 6 * (noise(rng, n, 2, 2) - 0.5))
    mask = rasterize(place(rng, OUTLINES["blob"][0](rng), 3.1), n)
    forms = ("sheer {c} [fabric]", "a translucent {c} [veil]", "a piece of see-through {c} [cloth]")
    caption = describe(rng, forms, name)
    return lit(tint(rng, name), 0.85 + 0.25 * folds), mask * (rng.uniform(0.2, 0.4) + 0.4 * folds**2), caption


def _paint(rng: Generator, n: int) -> Drawn:
    name = pick(rng, VIVID[:-1])
    x, y = grid(n)
    edge = noise(rng, n, 4, 5, 0.6) - 0.5
    if rng.random() < 0.5:  # a dry brush: streaks along the stroke
        u, v = axes(n, rng.uniform(-0.7, 0.7))
        streaks = warp(noise(rng, n, 14, 3)[:, :1] + np.zeros((n, n), np.float32), 0 * x, v - y)
        body = smoothstep(0.0, 0.15, rng.uniform(0.3, 0.6) - np.abs(v) + 0.2 * edge)
        dry = smoothstep(-0.3, 0.2, streaks - 0.25 - 0.45 * u + edge * 0.4)
        alpha: Array = body * dry * smoothstep(0.95, 0.85, np.abs(u) + 0.2 * edge)
        wording = ("a {c} [brush stroke]", "a stroke of {c} [paint]")
    else:  # watercolour: thin in the middle, pigment dries at the rim
        level = 0.75 - np.hypot(x, y) + 0.8 * edge
        rim = np.exp(-(((level - 0.04) / 0.06) ** 2))
        alpha = smoothstep(0.0, 0.06, level) * (rng.uniform(0.3, 0.5) + 0.35 * rim + 0.3 * edge)
        wording = ("a {c} [watercolour stain]", "a splash of {c} [watercolour]")
    return lit(tint(rng, name), 1 + 0.2 * edge), np.clip(alpha, 0, 1) * frame(n), describe(rng, wording, name)


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(96)


def _word(rng: Generator, n: int) -> Drawn:
    word = pick(rng, WORDS)
    mask = Image.new("L", (96 * len(word), 144))
    ImageDraw.Draw(mask).text((8, 8), word, fill=255, font=_font(), stroke_width=int(rng.integers(0, 5)))
    mask = mask.crop(mask.getbbox())
    width = int(n * MARGIN)
    height = min(width, int(mask.height * width / mask.width * rng.uniform(1, 1.7)))
    sheet = Image.new("L", (n, n))
    sheet.paste(mask.resize((width, height), Image.Resampling.BOX), ((n - width) // 2, (n - height) // 2))
    if rng.random() < 0.4:
        sheet = sheet.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC)
    alpha = np.asarray(sheet, np.float32) / 255
    rgb, phrase = textured(rng, n, "letters", patterns=("plain", "plain", "fading", "mottled"))
    form = pick(rng, ("the word '{w}' in {p}", "text that says '{w}' in {p}", "'{w}' written in {p}"))
    caption = phrase._replace(text=form.format(w=word, p=phrase.text.split(" ", 1)[1]))
    return relief(rng, rgb, alpha), alpha, caption


TRANSLUCENT: dict[str, Callable[[Generator, int], Drawn]] = {
    "word": _word, "smoke": _smoke, "cloud": _cloud, "glass": _glass, "bubble": _bubble, "flame": _flame,
    "shadow": _shadow, "blur": _blur, "fade": _fade, "glow": _glow, "veil": _veil, "paint": _paint,
}  # fmt: skip
