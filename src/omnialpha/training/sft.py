"""Supervised fine-tuning: flow matching on the targets of a task mixture [OmniAlpha, eq. 3], through the pipeline's own
path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from omnialpha.condition import Condition
from omnialpha.data.stream.mixture import Mixture
from omnialpha.data.stream.stream import Stream
from omnialpha.data.synthetic.bank import Bank
from omnialpha.models.lora import adapters
from omnialpha.models.transformer.model import MultiImageTransformer
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import Example
from omnialpha.training.latent_cache.cache import CachedBatches
from omnialpha.training.loop import Objective
from omnialpha.training.validation import FOLDER, Pictures, ValidationSet, chosen, validate
from omnialpha.transitions import token_mean

Batches = Mixture | Stream | CachedBatches
ENCODERS = ("vae", "text_encoder")
TIME_STREAM = 0x9E3779B9  # offset of the seeds that times and noise are drawn with
HINT_STREAM = 0x7F4A7C15  # and of those that hints are dropped with


@dataclass(frozen=True)
class FlowLoss:
    """time: distribution of t. weight: of the squared velocity error; "t" equals 1/t on that of clean latents.

    shift: moves times towards noise, t -> shift t / (1 + (shift - 1) t), as schedules for large pictures do.
    """

    time: Literal["uniform", "logit_normal"] = "uniform"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0
    weight: Literal["one", "t"] = "one"


def draw_times(loss: FlowLoss, count: int, generator: torch.Generator) -> Tensor:
    """t (count,) in (0, 1)."""
    if loss.time == "uniform":
        t = torch.rand(count, generator=generator)
    else:
        t = torch.sigmoid(torch.randn(count, generator=generator) * loss.std + loss.mean)
    return (loss.shift * t / (1 + (loss.shift - 1) * t)).clamp(1e-3, 1)


def flow_losses(velocity: Tensor, wanted: Tensor, weight: Tensor, mask: Tensor | None) -> Tensor:
    """Of each sample (B,) the mean over its targets, which have one size. velocity, wanted (B, Lt, C); weight (B,);
    mask (B, Lt) or None.
    """
    return token_mean((velocity - wanted).square(), mask) * weight


@dataclass(frozen=True)
class LoraSettings:
    """The adapter to train, see `adapters.add`. alpha: None is the rank. targets: a name of `lora_names.TARGETS`.
    checkpointing: blocks are computed again in the backward pass, for memory's sake.
    """

    rank: int
    alpha: float | None = None
    targets: str = "attention"
    dropout: float = 0.0
    dora: bool = False
    checkpointing: bool = False


class SFTObjective(Objective):
    """Trains the transformer and the text encoder, as far as they ask for gradients, or a new LoRA of the transformer
    alone; the VAE stays frozen.

    Args:
        mixture: batches to train on.
        held_out: what is validated on.
        validation: how many examples of each task are validated.
        tasks: that are validated, by default one of every category that is trained.
        lora: the adapter to train, which alone is exported then.
    """

    NAME = "trained"

    def __init__(
        self,
        model: OmniAlpha,
        mixture: Batches,
        held_out: Bank | Stream,
        loss: FlowLoss,
        validation: int = 32,
        tasks: Sequence[str] = (),
        lora: LoraSettings | None = None,
    ) -> None:
        super().__init__()
        self.model, self.mixture, self.held_out = model, mixture, ValidationSet(held_out)
        self.data = mixture
        self.settings, self.validation, self.tasks, self.lora = loss, validation, tasks, lora
        self.hint_dropout = 0.0  # share of batches whose automatic examples are shown no hint of the finder
        model.vae.requires_grad_(False)
        if not lora:
            return
        model.requires_grad_(False)
        adapters.add(
            model.transformer, lora.rank, lora.alpha, lora.targets, lora.dropout, dora=lora.dora, name=self.NAME
        )
        if lora.checkpointing:
            model.transformer.enable_gradient_checkpointing()
        if isinstance(mixture, CachedBatches):
            for name in ENCODERS:  # only validation needs them
                _lay_aside(model, name)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """A frozen encoder stays as it runs: T5 would drop words out."""
        super().train(mode)
        if self.lora:
            for name in ENCODERS:
                getattr(self.model, name).eval()
        return self

    def compile_parts(self) -> None:
        self.model.transformer.compile_repeated_blocks(dynamic=True)

    def forward(self, index: int, batch: Any = None) -> dict[str, Tensor]:
        torch.manual_seed(self.mixture.seed * 104_729 + index)  # of dropout: a resumed run draws the same
        return self.losses(self.mixture, index, batch)

    def losses(self, mixture: Batches, index: int, batch: Any = None) -> dict[str, Tensor]:
        """Of batch `index`, all together, and those of each task. batch: `mixture[index]`, where that is at hand."""
        # far from the mixture's own seeds: the same numbers would tie t to the task that they chose
        generator = torch.Generator().manual_seed(mixture.seed * 7_919 + index + TIME_STREAM)
        cond, x0, share = self.encoded(mixture, index, mixture[index] if batch is None else batch)
        t = draw_times(self.settings, len(x0), generator).to(x0.device)
        noise = self.model.noise(cond, [int(s) for s in torch.randint(1 << 62, (len(x0),), generator=generator)])
        x_t = torch.lerp(x0, noise, t.view(-1, 1, 1))
        velocity = self.model.velocity(x_t, t, cond)
        # |v error|^2 t^2 / max(t, .05) is |x0 error|^2 / max(t, .05): bounded, or the last steps would rule
        weight = t.square() / t.clamp_min(0.05) if self.settings.weight == "t" else torch.ones_like(t)
        found = flow_losses(velocity, noise - x0, weight, cond.positions.target_mask)
        owners = [e.task for e in cond.examples]
        tasks = {name: [b for b, task in enumerate(owners) if task == name] for name in dict.fromkeys(owners)}
        named = {f"loss/{name}": found.detach()[rows].mean() for name, rows in tasks.items()}
        return {"loss": found.mean() * share} | named

    def encoded(self, mixture: Batches, index: int, batch: Any) -> tuple[Condition, Tensor, float]:
        """Of a batch its condition, its clean latents (B, Lt, C), and its weight: encoded now, or read."""
        if isinstance(mixture, CachedBatches):
            cond, x0 = mixture.encoded(index, self.model, batch)
            return cond, x0.float(), batch[0]["weight"]
        examples, weight = batch
        drawn = torch.rand(1, generator=torch.Generator().manual_seed(mixture.seed * 7_919 + index + HINT_STREAM))
        cond = self.model.condition(examples, looks=int(drawn >= self.hint_dropout))
        x0 = self.model.encode_targets([example.true_layers() for example in examples], cond)
        return cond, x0.float(), weight

    def validated(self) -> list[str]:
        """The tasks that `validate` looks at; InputError where none can be."""
        able = [name for name in self.held_out.serves() if not self.model.card.tasks or name in self.model.card.tasks]
        return chosen(self.weights(), able, self.tasks)

    def weights(self) -> dict[str, float]:
        """Of the tasks that are trained; of a curriculum the highest of each."""
        mixture = self.mixture
        rows = [stage.tasks for stage in mixture.timetable] if isinstance(mixture, Stream) else [mixture.weights]
        return {name: max(row.get(name, 0.0) for row in rows) for row in rows for name in row}

    def validate(self, folder: Path, step: int) -> dict[str, float]:
        """Figures and a sheet of `validation` held-out examples a task, and the loss on as many of all that are
        trained; always the same examples, times and noise.
        """
        names, drawn, path = self.validated(), self.mixture, folder / FOLDER / f"{step:06d}.png"
        unseen = self.held_out.mixture(self.weights(), drawn.sizes, drawn.batch_size, drawn.seed)
        indices = range(max(1, self.validation // drawn.batch_size))
        self.eval()
        with self._encoders():
            how = (self.validation, drawn.batch_size, drawn.sizes[0], path, self.see)
            figures = validate(self.model, self.held_out, names, *how)
            with torch.no_grad():
                figures["val_loss"] = sum(float(self.losses(unseen, i)["loss"]) for i in indices) / len(indices)
        self.train()
        return figures

    def see(self, asked: Sequence[Example], made: Pictures) -> None:
        """Shown what is made of held-out examples, layers (m, 4, H, W) of each."""

    @contextmanager
    def _encoders(self) -> Iterator[None]:
        """With the encoders on the device; those laid aside go back to main memory."""
        aside = [getattr(self.model, name) for name in ENCODERS if name not in self.model._modules]
        try:
            for part in aside:
                part.to(self.model.device)
            yield
        finally:
            for part in aside:
                part.to("cpu")

    def export(self, folder: Path) -> None:
        if self.lora:
            adapters.save(self.model.transformer, folder, adapter=self.NAME)
        else:
            self.model.save(folder, torch.bfloat16)


def _lay_aside(model: OmniAlpha, name: str) -> None:
    """Keep a part of a model out of what is moved to the device, wrapped and counted; it stays under its name."""
    part = getattr(model, name)
    delattr(model, name)
    object.__setattr__(model, name, part)


@torch.no_grad()
def initialize(transformer: MultiImageTransformer) -> None:
    """Weights for a start from nothing: Xavier projections, every block an identity, output zero (adaLN-zero, DiT)."""
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    modulations = [
        m for n, m in transformer.named_modules() if n.endswith(("img_mod.1", "txt_mod.1", "norm_out.linear"))
    ]
    for module in (*modulations, transformer.proj_out):
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)


def corpus(mixture: Mixture | Stream, batches: int) -> list[str]:
    """Instructions as training will meet them, for the tokenizer of a model made from nothing."""
    return [e.instruction for i in range(batches) for e in mixture.batch(i)]
