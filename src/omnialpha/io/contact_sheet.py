"""Contact sheets: pictures in small on a checkerboard, with words beside or below them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from omnialpha import rgba
from omnialpha.files import atomic_write

PAPER, INK, MUTED, RULE, ACCENT = "#ffffff", "#1b1d22", "#5a606b", "#d5d8de", "#1f4fa3"
WHITE, BLACK = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
SIDE, GAP, MARGIN, WIDE = 192, 12, 24, 640  # pixels of a card: of a cell, between cells, around them, in all at least
MARKS = (">", "|")  # after the first group of a card, and after the others

Group = Sequence[tuple[str, Tensor]]  # pictures (4, H, W) with their labels


@cache
def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font at `size` px."""
    return ImageFont.load_default(size)


def thumbnail(pixels: Tensor, side: int, ground: str = "checkerboard") -> Image.Image:
    """Draw RGBA (4, H, W) within a square of `side` px, over "black", "white" or a checkerboard, with a frame."""
    small = rgba.scale(pixels, side / max(pixels.shape[-2:]))
    height, width = small.shape[-2:]
    back = {"black": BLACK, "white": WHITE}.get(ground) or rgba.checkerboard(height, width, 9)
    flat = rgba.flatten(small, back).permute(1, 2, 0).numpy()
    cell = Image.fromarray((flat.clip(0, 1) * 255 + 0.5).astype(np.uint8))
    ImageDraw.Draw(cell).rectangle((0, 0, width - 1, height - 1), outline=RULE)
    return cell


def wrap(text: str, width: int, size: int) -> list[str]:
    """Lines of `text` no wider than `width` px, broken between words."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font(size).getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines


def card(title: str, groups: Sequence[Group], words: str = "", side: int = SIDE) -> Image.Image:
    """Draw groups of pictures from left to right, each with its label, a mark between groups, and words below."""
    cells = [[(label, thumbnail(picture, side)) for label, picture in group] for group in groups]
    width = max(WIDE, MARGIN + sum(len(group) * (side + GAP) + MARGIN for group in cells))
    tall = max(cell.height for group in cells for _, cell in group)
    lines = wrap(words, width - 2 * MARGIN, 16)
    made = Image.new("RGB", (width, 2 * MARGIN + 24 + tall + 22 + 20 * len(lines)), PAPER)
    draw = ImageDraw.Draw(made)
    draw.text((MARGIN, GAP), title, ACCENT, font(18))
    x, top = MARGIN, MARGIN + 24
    for number, group in enumerate(cells):
        for label, cell in group:
            made.paste(cell, (x, top))
            draw.text((x, top + tall + 2), label, MUTED, font(14))
            x += side + GAP
        if number < len(cells) - 1:
            draw.text((x, top + tall // 2 - 12), MARKS[min(number, len(MARKS) - 1)], INK, font(20))
            x += MARGIN
    for k, line in enumerate(lines):
        draw.text((MARGIN, top + tall + 22 + 20 * k), line, INK, font(16))
    return made


def stack(parts: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other, as wide as the widest."""
    made = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), PAPER)
    y = 0
    for part in parts:
        made.paste(part, (0, y))
        y += part.height
    return made


def write(path: Path, cards: Sequence[Image.Image]) -> None:
    """Write cards below each other, with a rule under each, as a PNG."""
    sheet, y = stack(cards), 0
    for one in cards:
        y += one.height
        ImageDraw.Draw(sheet).line((MARGIN, y - 1, sheet.width - MARGIN, y - 1), RULE)
    write_png(path, sheet)


def write_png(path: Path, sheet: Image.Image) -> None:
    """Write a picture as a PNG, whole or not at all."""
    buffer = BytesIO()
    sheet.save(buffer, "PNG")
    atomic_write(path, buffer.getvalue())
