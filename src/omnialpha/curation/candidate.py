"""What curation works on: a foreground as its source has it, and the layered record that is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from omnialpha.data.records.pictures import Handle, check_sizes, read, subject_mask
from omnialpha.tasks import Role


class Rejected(Exception):
    """A candidate that is left out; says why in a sentence, which is recorded."""


@dataclass(frozen=True)
class SourceItem:
    """A picture of a source, of which nothing is decoded yet.

    Attributes:
        id: of its own among all sources, such as "am-2k/train/m_0a1b".
        source, licence: what it comes from, and on what terms.
        layers: files of RGBA layers, back to front.
        alphas: of each layer the file of its matte, where colour and matte lie apart; else ().
        mixed: the colours are those of a photograph, with the background in soft pixels.
        background, composite: files of the whole, where the source has them.
        captions: of each layer, where the source has them; else ().
    """

    id: str
    source: str
    licence: str
    layers: tuple[Handle, ...]
    alphas: tuple[Handle, ...] = ()
    mixed: bool = False
    background: Handle | None = None
    composite: Handle | None = None
    captions: tuple[str, ...] = ()

    def foregrounds(self) -> list[Tensor]:
        """The layers, (4, H, W) in [0, 1] each, straight alpha, back to front.

        Raises:
            InputError: a file cannot be read, or a matte has another size than its picture.
        """
        made = [read(layer) for layer in self.layers]
        for k, handle in enumerate(self.alphas):
            matte = read(handle, Role.ALPHA)
            sizes = {str(self.layers[k]): made[k].shape[1:], str(handle): matte.shape[1:]}
            check_sizes({name: (int(size[0]), int(size[1])) for name, size in sizes.items()})
            alpha = subject_mask(matte, Role.ALPHA)[None]
            color = made[k][:3]
            if self.mixed:
                from omnialpha import refine

                color = refine.foreground(color, alpha[0])[:3]
            made[k] = torch.cat([color, alpha])
        return made


@dataclass(frozen=True)
class Candidate:
    """A layered record in the making. Pictures are digests in the store; what is empty is not made yet.

    Attributes:
        id, source, licence: those of the item.
        origin: the files that it was made of, for people.
        foregrounds: layers, back to front.
        subjects: of each layer what it shows, in a word or two, such as "cat".
        captions: T_fg of each layer.
        scene: T_comp, the caption of the whole.
        instruction: T_rep, what the editor is told.
        composite: the whole picture.
        mask: where there is a subject, binary.
        background: the picture behind it.
        background_caption: T_bg.
        maps: alpha, precise, trimap, rough.
        scores: figures by name, lower is better but for `aesthetic`.
        facts: of the subject, see `filters.measure`.
    """

    id: str
    source: str
    licence: str
    origin: tuple[str, ...] = ()
    foregrounds: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    scene: str = ""
    instruction: str = ""
    composite: str = ""
    mask: str = ""
    background: str = ""
    background_caption: str = ""
    maps: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        """In plain types, as JSON has them."""
        return asdict(self)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Candidate:
        """Of `data`, or of its JSON."""
        made: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**made)

    def extended(self, fields: Mapping[str, Any]) -> Candidate:
        """With these fields, as JSON has them, and tables among them added to its own."""
        values = self.data()
        tables = {key: values[key] | value for key, value in fields.items() if isinstance(values[key], dict)}
        return self.parse({**values, **fields, **tables})


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate. stage, reason: where and why it went no further; "": it passed. failed: that may be
    otherwise the next time, as when a server did not answer.
    """

    candidate: Candidate
    stage: str = ""
    reason: str = ""
    failed: bool = False

    def data(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Outcome:
        return cls(**{**values, "candidate": Candidate.parse(values["candidate"])})
