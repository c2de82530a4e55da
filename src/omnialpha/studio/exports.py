"""A run as a file: its layers as a page has them, in that order, with that opacity, and without the hidden ones."""

from __future__ import annotations

import secrets
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from omnialpha.errors import InputError
from omnialpha.io import write_image
from omnialpha.io.layer_writing import write_layers
from omnialpha.io.layers import LayerStack
from omnialpha.studio.pictures import PictureShelf
from omnialpha.studio.runs import StudioRun

FORMS = {  # suffix -> what it holds
    "png": "PNG, as shown",
    "psd": "PSD, with layers",
    "ora": "OpenRaster, with layers",
    "tif": "TIFF, a page a layer",
    "zip": "PNG of every layer, zipped",
}
Panel = Sequence[dict[str, Any]]  # rows back to front: layer (its number in the run), visible, opacity


def as_made(panel: Panel, count: int) -> bool:
    """Whether a panel shows all layers as they were made."""
    given = [(row.get("layer"), row.get("visible", True), row.get("opacity", 1)) for row in panel]
    return given == [(number, True, 1) for number in range(count)]


def arrange(stack: LayerStack, panel: Panel) -> LayerStack:
    """The layers that a panel shows, in its order, their alpha times its opacity.

    Raises:
        InputError: It shows none, or is not of this stack.
    """
    layers = []
    for row in panel:
        try:
            number, opacity = int(row["layer"]), float(row["opacity"])
            if not (0 <= number < len(stack) and 0 <= opacity <= 1):
                raise ValueError(f"layer {number} of opacity {opacity:g}")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the layers cannot be read from the page ({error}): load the page again.") from None
        layer = stack[number]
        if row.get("visible", True):
            layers.append(replace(layer, rgba=torch.cat([layer.rgba[:3], layer.rgba[3:] * opacity])))
    if not layers:
        raise InputError("every layer is hidden: show at least one.")
    return LayerStack(stack.size, layers)


def export(run: StudioRun, panel: Panel, form: str, shelf: PictureShelf, folder: Path) -> Path:
    """Write a run as a file.

    Args:
        run: The run.
        panel: Its layers as the page has them.
        form: A row of FORMS.
        shelf: Where the pictures of the run are.
        folder: Where the file goes, in a folder of its own.

    Returns:
        The file, in the depth and the profile of the run's picture, with the settings where the format has a place.

    Raises:
        InputError: There is no such format, or what is shown does not go into it.
    """
    if form not in FORMS:
        raise InputError(f"the format {form[:20]!r} is not known: use {', '.join(FORMS)}.")
    untouched = as_made(panel, len(run.rows))
    stack = run.stack()
    stack = stack if untouched else arrange(stack, panel)
    settings = run.settings if untouched else run.settings | {"shown": [dict(row) for row in panel]}
    target = folder / secrets.token_hex(8) / f"{_stem(run)}.{form}"
    target.parent.mkdir(parents=True)
    source = shelf.read(run.source) if run.source else None
    bits, icc, dpi = (source.bits, source.icc, source.dpi) if source else (8, None, None)
    if form == "png" and untouched and len(stack) == 1:
        target.write_bytes((run.folder / run.rows[0]["file"]).read_bytes())
    elif form == "png":
        write_image(target, stack.recompose(), settings=settings, bits=bits, icc=icc, dpi=dpi, source=source)
    elif form == "zip":
        parts = target.with_suffix("")
        stack.save(parts, bits, settings=settings, icc=icc, dpi=dpi)
        with zipfile.ZipFile(target, "w") as archive:  # stored, as PNG is compressed already
            for part in sorted(parts.iterdir()):
                archive.write(part, part.name)
    else:
        write_layers(target, stack, bits=bits, settings=settings, icc=icc, dpi=dpi)
    return target


def _stem(run: StudioRun) -> str:
    """What a file of a run is called: its picture, its task and its seed."""
    named = [Path(run.source).stem] if run.source else []
    return "-".join([*named, run.request.task.replace("_", "-"), str(run.settings["seed"])])
