"""Options of a cut-out, declared once for the library, the command line and the server."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from omnialpha.errors import InputError


@dataclass(frozen=True)
class Cutout:
    """Options of a cut-out, the same for every interface; the defaults leave it as it is.

    Attributes:
        choke: Pixels that the edge moves inwards; outwards below 0.
        feather: Pixels over which the edge is softened.
        decontaminate: Whether soft pixels have the subject's colours alone; False leaves the picture's.
        shadow: "keep": the subject's shadow stays, as black of its own alpha, where the background is plain.
        crop: Pixels of clear margin around the subject, or a share of its longer side, such as "5%"; None: no crop.
        background: A colour such as white or #336699, or a picture file, behind it.
    """

    choke: float = field(default=0.0, metadata={"help": "move the edge inwards by so many pixels; outwards below 0"})
    feather: float = field(default=0.0, metadata={"help": "soften the edge over so many pixels"})
    decontaminate: bool = field(default=True, metadata={"help": "take the background's colour out of soft pixels"})
    shadow: Literal["drop", "keep"] = field(
        default="drop", metadata={"help": "drop, or keep it where the background is plain", "metavar": "drop|keep"}
    )
    crop: str | None = field(
        default=None, metadata={"help": "crop to the subject, with a margin of 0, 20 or 5%", "metavar": "MARGIN"}
    )
    background: str | None = field(
        default=None, metadata={"help": "put the subject on this: white, #336699", "metavar": "COLOUR|FILE"}
    )

    def __post_init__(self) -> None:
        for name, low, high in (("choke", -100, 100), ("feather", 0, 100)):
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise InputError(f"{name}={value:g} is out of range: use {low} to {high} pixels.")
        if self.shadow not in ("drop", "keep"):
            raise InputError(f"shadow={self.shadow!r} is not known: use drop or keep.")
        if self.crop is not None:
            self.margin(1)

    @property
    def changed(self) -> dict[str, Any]:
        """The options that are not the defaults."""
        return {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}

    def margin(self, side: int) -> int:
        """Pixels around a subject whose longer side has so many. InputError where `crop` is no number of pixels."""
        match = re.fullmatch(r"(\d{1,5}(?:\.\d+)?)(%?)", (self.crop or "").strip())
        if not match or (match[2] and float(match[1]) > 1000):
            raise InputError(f"crop={self.crop!r} is no margin: use pixels such as 20, or a share such as 5%.")
        return round(float(match[1]) * (side / 100 if match[2] else 1))
