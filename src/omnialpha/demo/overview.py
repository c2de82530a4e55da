"""The contact sheet, drawn from the written files: photographs on the left, held-out layers on the right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from omnialpha import rgba
from omnialpha.demo.demo_runs import GROUNDS, DemoRun
from omnialpha.io import read_image
from omnialpha.io.contact_sheet import ACCENT, INK, MUTED, PAPER, RULE, font, stack, thumbnail, wrap
from omnialpha.tasks import CATEGORIES

STRIP = 300  # pixels: the height of a photograph in the strip
PHOTO, LAYER = 176, 132  # pixels: the side of a cell for photographs, and for the smaller held-out layers
LABEL, GAP, MARGIN, TOP = 186, 8, 28, 118  # with two inputs, one comparison and three grounds, the sheet is 2,400 wide


def contact_sheet(folder: Path, entries: Sequence[DemoRun], heading: str, facts: str) -> Image.Image:
    """The picture of all entries, 2,400 px wide; their files lie in `folder`."""
    left = _block(folder, "Photographs", [e for e in entries if e.photo], PHOTO)
    right = _block(folder, "Held-out layers", [e for e in entries if not e.photo], LAYER)
    size = (left.width + right.width + 3 * MARGIN, TOP + max(left.height, right.height) + MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 26), heading, INK, font(38))
    draw.text((MARGIN, 76), facts, MUTED, font(20))
    sheet.paste(left, (MARGIN, TOP))
    sheet.paste(right, (2 * MARGIN + left.width, TOP))
    return sheet


def strip(folder: Path, entries: Sequence[DemoRun]) -> Tensor:
    """Photographs above, their cut-outs on a checkerboard below, (4, H, W), side by side at one height."""
    columns = []
    for entry in entries:
        photo, cutout = (read_image(folder / shown.file).rgba for shown in (entry.inputs[0], entry.outputs[0]))
        size = (STRIP, round(photo.shape[2] * STRIP / photo.shape[1]))
        ground = rgba.checkerboard(*size, cell=12)
        pair = [rgba.resize(photo, size)[:3], rgba.flatten(rgba.resize(cutout, size), ground)]
        columns.append(torch.cat(pair, dim=1))
    return rgba.opaque(torch.cat(columns, dim=2))


def _x(column: int, side: int) -> int:
    return LABEL + column * (side + GAP)


def _block(folder: Path, title: str, entries: Sequence[DemoRun], side: int) -> Image.Image:
    """Rows by category; each category names the columns anew, so that they are known far down too."""
    parts: list[Image.Image] = []
    for category in CATEGORIES:
        chosen = [e for e in entries if e.category == category]
        if chosen:
            columns = ("input", "second input", chosen[0].compared_title, *(f"on {g}" for g in GROUNDS))
            parts.append(_band(f"{title}: {category}", columns, side))
            parts += [_row(folder, e, side) for e in chosen]
    return stack(parts or [Image.new("RGB", (_x(6, side), 1), PAPER)])


def _band(title: str, columns: Sequence[str], side: int) -> Image.Image:
    band = Image.new("RGB", (_x(6, side), 66), PAPER)
    draw = ImageDraw.Draw(band)
    draw.text((0, 8), title, ACCENT, font(24))
    for column, name in enumerate(columns):
        draw.text((_x(column, side), 42), name, MUTED, font(16))
    draw.line((0, 64, band.width - GAP, 64), RULE, 2)
    return band


def _row(folder: Path, entry: DemoRun, side: int) -> Image.Image:
    """The entry's words, inputs, what it is compared with, and every output on three grounds, one below the other."""
    places = [(k % 2, k // 2, shown, "checkerboard") for k, shown in enumerate(entry.inputs)]
    places += [(2, k, shown, "checkerboard") for k, shown in enumerate(entry.compared)]
    places += [(3 + i, k, shown, ground) for k, shown in enumerate(entry.outputs) for i, ground in enumerate(GROUNDS)]
    cells = [(x, y, thumbnail(read_image(folder / shown.file).rgba, side, on)) for x, y, shown, on in places]
    step = max(picture.height for _, _, picture in cells) + GAP
    height = (1 + max(line for _, line, _ in cells)) * step
    words = _words(entry)
    row = Image.new("RGB", (_x(6, side), max(height, sum(size + 4 for _, _, size in words)) + 2 * GAP), PAPER)
    draw = ImageDraw.Draw(row)
    for column, line, picture in cells:
        row.paste(picture, (_x(column, side), GAP + line * step))
    y = GAP - 2
    for text, colour, size in words:
        draw.text((0, y), text, colour, font(size))
        y += size + 4
    draw.line((0, row.height - 1, row.width - GAP, row.height - 1), RULE)
    return row


def _words(entry: DemoRun) -> list[tuple[str, str, int]]:
    """Lines (text, colour, size in px) of the label column: photograph, task, time, score, layers, instruction."""
    task = entry.task.replace("_", " ")
    layers = ", ".join(shown.label for shown in entry.outputs) if len(entry.outputs) > 1 else ""
    score = entry.note.split(" to ")[0] if entry.note.startswith("PSNR") else ""
    parts = [(entry.photo, INK, 20), (task, INK, 16 if entry.photo else 20)]
    parts.append((", ".join(filter(None, [f"{entry.seconds:.2f} s", score])), MUTED, 16))
    parts += [(layers, MUTED, 15), (entry.instruction, INK, 15)]
    return [(line, colour, size) for text, colour, size in parts for line in wrap(text, LABEL - 2 * GAP, size)]
