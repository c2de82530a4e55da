"""[kind = "grounding"] Pretraining of a small instruction encoder, before a transformer learns to read it: it matches
captions to layers [CLIP, arXiv 2103.00020], and says where in a picture lies what an instruction names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnialpha import rgba
from omnialpha.data.scene import Scene
from omnialpha.data.stream.mixture import Mixture
from omnialpha.data.synthetic.bank import Bank
from omnialpha.data.synthetic.scenes import compose
from omnialpha.models.pointer import CELLS, SIDE
from omnialpha.models.text_encoder.encoder import TextEncoder
from omnialpha.models.text_encoder.tiny import build_tiny_text_encoder
from omnialpha.models.text_encoder.word_vectors import word_vectors
from omnialpha.tasks import TASKS, Task
from omnialpha.training.objective import FitSettings, Objective
from omnialpha.training.sft import corpus
from omnialpha.training.sources import DataSettings, load_banks

NAMED, ALONE = TASKS["matting_text"], TASKS["text_to_image"]
WIDTH = 128  # of what captions and layers are compared in
GREY = (0.5, 0.5, 0.5)
SEED = 7  # of what is validated, whatever the recipe's


@dataclass(frozen=True)
class GroundingLoss:
    """Weights. place: cross entropy of the map of the layer that is named. match: InfoNCE of captions and layers."""

    place: float = 4.0
    match: float = 0.3


class LayerEncoder(nn.Sequential):
    """Layers (B, 4, 32, 32), colours on grey, in [-1, 1] -> (B, WIDTH); used in training alone."""

    def __init__(self) -> None:
        widths = (4, 32, 64, 128, 128)
        parts: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            parts += [nn.Conv2d(before, after, 3, 2, 1), nn.GELU(), nn.GroupNorm(8, after)]
        super().__init__(*parts, nn.Flatten(), nn.Linear(4 * widths[-1], WIDTH))


class GroundingObjective(Objective):
    """Trains `text_encoder`, with heads that are not exported."""

    def __init__(
        self, text_encoder: TextEncoder, bank: Bank, held_out: Bank, loss: GroundingLoss, batch: int, seed: int
    ) -> None:
        super().__init__()
        self.text_encoder, self.bank, self.held_out = text_encoder, bank, held_out
        self.settings, self.batch, self.seed = loss, batch, seed
        width = int(text_encoder.model.config.text_config.hidden_size)
        self.layers, self.caption = LayerEncoder(), nn.Linear(width, WIDTH)
        self.place, self.sharpness = nn.Linear(width, CELLS**2), nn.Parameter(torch.tensor(math.log(12.0)))

    def forward(self, index: int, batch: Any = None) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        likeness = self.matches(self.bank, 2 * self.batch, generator) * self.sharpness.exp().clamp(max=100)
        own = torch.arange(len(likeness), device=likeness.device)
        match = (F.cross_entropy(likeness, own) + F.cross_entropy(likeness.T, own)) / 2
        logits, maps = self.places(self.bank, self.batch, generator)
        place = F.binary_cross_entropy_with_logits(logits, maps[:, 0])
        return {"loss": self.settings.place * place + self.settings.match * match, "place": place, "match": match}

    def matches(self, bank: Bank, count: int, generator: torch.Generator) -> Tensor:
        """Cosines (count, count) of captions, as tasks word them, and layers."""
        scenes = compose(bank, count, 1, (SIDE // 3, SIDE // 3), generator)
        words = [instruction(scene, (NAMED, ALONE)[i % 2], generator) for i, scene in enumerate(scenes)]
        layers = torch.stack([scene.layers[0] for scene in scenes])
        seen = torch.cat([rgba.flatten(layers, GREY), layers[:, 3:]], dim=1) * 2 - 1
        made = self.layers(seen.to(self.sharpness.device))
        return F.normalize(self.caption(self.text_encoder.summary(words)), dim=-1) @ F.normalize(made, dim=-1).T

    def places(self, bank: Bank, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Of pictures of two objects, one of which is named: logits (count, CELLS, CELLS) of where it lies, and the
        true maps (count, 2, CELLS, CELLS) of both, the named one first.
        """
        drawn = named_scenes(bank, count, generator)
        logits = self.place(self.text_encoder.summary(drawn.words, [[picture] for picture in drawn.pictures]))
        return logits.unflatten(1, (CELLS, CELLS)), drawn.maps.to(logits.device)

    @torch.no_grad()
    def validate(self, folder: Path, step: int) -> dict[str, float]:
        """Shares of held-out examples. missed: the map lies on the other layer rather than on the one that is named.
        mismatched: a caption is nearer to another layer than to its own.
        """
        generator, missed, mismatched = torch.Generator().manual_seed(SEED), [], []
        for _ in range(8):
            likeness = self.matches(self.held_out, 64, generator)
            nearer = likeness.diagonal()[:, None] < likeness
            mismatched.append(float(nearer.sum() / (len(nearer) * (len(nearer) - 1))))
            missed.append(misses(*self.places(self.held_out, 64, generator)))
        return {"missed": sum(missed) / len(missed), "mismatched": sum(mismatched) / len(mismatched)}

    def export(self, folder: Path) -> None:
        self.text_encoder.save_pretrained(folder, torch.bfloat16)


class NamedScenes(NamedTuple):
    """Of B pictures of two objects what asks for the first, the pictures (B, 4, SIDE, SIDE), and maps of both objects
    (B, 2, CELLS, CELLS).
    """

    words: list[str]
    pictures: Tensor
    maps: Tensor


def named_scenes(bank: Bank, count: int, generator: torch.Generator) -> NamedScenes:
    """Newly composed pictures of two objects that do not touch."""
    scenes = compose(bank, count, 2, (SIDE, SIDE), generator, apart=True)
    words = [instruction(scene, NAMED, generator) for scene in scenes]
    pictures = torch.stack([scene.composite for scene in scenes if scene.composite is not None])
    return NamedScenes(words, pictures, F.adaptive_avg_pool2d(torch.stack([s.layers[:, 3] for s in scenes]), CELLS))


def misses(logits: Tensor, maps: Tensor) -> float:
    """Share of pictures whose map, logits (B, CELLS, CELLS), lies on the second object rather than on the first."""
    on = (logits.float().sigmoid()[:, None] * maps).sum((2, 3)) / maps.sum((2, 3)).clamp_min(1e-3)
    return float((on[:, 0] <= on[:, 1]).float().mean())


def instruction(scene: Scene, task: Task, generator: torch.Generator) -> str:
    """What a task asks of the first layer of a scene, in one of its wordings."""
    wording = int(torch.randint(1 << 16, (1,), generator=generator))
    given = dict.fromkeys(task.inputs, scene.composite)
    return task.example(given, prompt=scene.captions[0].text, size=scene.size, wording=wording).instruction


@dataclass(frozen=True)
class GroundingRecipe:
    """text_encoder: sizes, see `build_tiny_text_encoder`; its tokens are those of instructions of all tasks and of
    all captions. words: token embeddings begin as published word vectors, or else as noise. batch: pictures with an
    instruction, and twice as many captions.
    """

    kind: str
    fit: FitSettings
    text_encoder: dict[str, Any]
    data: DataSettings = DataSettings()
    loss: GroundingLoss = field(default_factory=GroundingLoss)
    batch: int = 64
    words: bool = True

    def objective(self) -> GroundingObjective:
        bank, held_out = load_banks(self.data)
        instructions = corpus(Mixture(bank, dict.fromkeys(TASKS, 1.0), [(32, 32)], 16, self.fit.seed), 200)
        captions = [" " + text for text in (*(c.text for c in bank.captions), *bank.background_captions)]
        made = build_tiny_text_encoder(
            [*instructions, *captions], picture_pixels=SIDE * SIDE, seed=self.fit.seed, **self.text_encoder
        )
        if self.words:
            embeddings = made.model.language_model.embed_tokens.weight
            with torch.no_grad():
                embeddings.copy_(word_vectors(made.tokenizer, embeddings.shape[1]))
        torch.manual_seed(self.fit.seed)
        return GroundingObjective(made, bank, held_out, self.loss, self.batch, self.fit.seed)
