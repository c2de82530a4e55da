"""From weights on a disk to a model that is ready to run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from omnialpha import hints
from omnialpha.canvas import plan
from omnialpha.errors import InputError
from omnialpha.fidelity import needs_refining
from omnialpha.models.checkpoints.card import Card, Family
from omnialpha.models.checkpoints.checking import check
from omnialpha.models.checkpoints.folders import LoraLike, Parts, resolve
from omnialpha.models.flux import files as flux_files
from omnialpha.models.lora import adapters
from omnialpha.models.runtime.estimate import Estimate, Job, check_fits, estimate, measure_speed
from omnialpha.models.runtime.model_sizes import ModelSizes
from omnialpha.models.runtime.placement import DTYPES, Offload, Placement, pick_device, place
from omnialpha.models.runtime.quantize import GGUF, load_gguf
from omnialpha.models.transformer.approximate import Approximations
from omnialpha.models.transformer.positions import Layout
from omnialpha.models.vae.alphavae import load_vae
from omnialpha.pipeline import OmniAlpha
from omnialpha.sampling import FULL_INTERVAL
from omnialpha.tasks import TASKS, Example, Role

__all__ = ["Setup", "load", "pick_device", "swap"]


@dataclass(frozen=True)
class Kind:
    """What is known of a family of models before it is loaded. words: text tokens of a run, beside those of pictures.
    refused: settings that do not know it.
    """

    check: Callable[..., None]
    sizes: Callable[..., ModelSizes]
    words: Callable[[Card], int]
    refused: tuple[str, ...] = ()


KINDS: dict[Family, Kind] = {
    "qwen": Kind(check, ModelSizes.read, lambda card: 100),
    "flux": Kind(
        flux_files.check,
        flux_files.read_sizes,
        lambda card: card.max_tokens,  # to which every prompt is padded
        refused=("gguf", "vision"),
    ),
}


def load(
    where: str | Path | None = None,
    *,
    base: str | Path | None = None,
    vae: str | Path | None = None,
    lora: LoraLike | Iterable[LoraLike] = (),
    finder: str | Path | None = None,
    instructions: str | Path | None = None,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    offload: Offload = "none",
    quantize: str | None = None,
    attention: str | None = None,
    compile: bool = False,
    approximate: Mapping[str, str] | Approximations | None = None,
) -> OmniAlpha:
    """A model, ready to run. InputError where something is missing, damaged or not available, with the fix.

    where: a bundled name (None: nano), a model folder, or an id that `omnialpha pull` has stored; base, vae and lora
    fill in or replace its parts, as finder and instructions do, see `checkpoints.resolve`. dtype: float32, bfloat16 or
    float16, by default the checkpoint's own. offload: none, model, group or disk. quantize: int8, fp8 or nf4, or the
    name of a GGUF file that holds the transformer; approximations. attention: a back end of diffusers. compile: the
    transformer's block, with torch.compile. See `placement`. approximate: names and values, see `approximate`. Nothing
    here uses the network.
    """
    named = None if dtype is None else str(dtype).removeprefix("torch.")
    placement = Placement(device, named, offload, quantize, attention, compile)
    if not isinstance(approximate, Approximations):
        approximate = Approximations.parse(approximate or {})
    parts = resolve(where, base=base, vae=vae, lora=lora, finder=finder, instructions=instructions)
    return Setup(parts, placement, approximate).load()


@dataclass(frozen=True)
class Setup:
    """A model that is about to be loaded: its parts, and where and how it is to run."""

    parts: Parts
    placement: Placement
    approximate: Approximations = Approximations()

    def __post_init__(self) -> None:
        """InputError for a setting that this family of models does not have."""
        name, kind = self.parts.card.name, self.kind
        given = {"gguf": self.placement.gguf, "vision": self.approximate.vision}
        refused = [setting for setting in kind.refused if given[setting] is not None]
        if self.approximate.guidance != FULL_INTERVAL and self.parts.card.guidance == "embedded":
            refused.append("guidance")  # there is no second pass to leave out
        if refused:
            raise InputError(f"the setting {refused[0]} does not work with {name}: leave it out.")

    @property
    def kind(self) -> Kind:
        return KINDS[self.parts.card.family]

    def forecast(self, example: Example, steps: int, guided: bool, raw: bool = False) -> Estimate:
        """What a run will take, before weights are read. InputError where it cannot fit, with a setting that would."""
        self.parts.card.check_task(example.task)
        self._check()
        device = self.placement.torch_device
        vae = load_vae(self.parts.vae, widen=True)  # small beside the rest
        sizes = self.kind.sizes(self.parts, vae, self.placement.dtype, tabulated=device.type != "cpu")
        if self.placement.gguf:
            stored = replace(sizes.transformer, bits=GGUF.read(self.placement.gguf).bits)
            sizes = replace(sizes, transformer=stored)
        inputs = hints.count_inputs(example, self.parts.finder is not None)
        canvas = plan(example.size, inputs + len(example.targets), self.parts.card.grid)
        size = (canvas.size[0] // sizes.side, canvas.size[1] // sizes.side)
        layout = Layout((size,) * len(example.targets), (size,) * inputs)
        guided = guided and self.parts.card.guidance == "negative"
        words = self.kind.words(self.parts.card)
        refined = 0  # as `fidelity.refine_foregrounds` chooses
        if self.parts.card.refine and not raw and needs_refining(example.size, canvas.content):
            seen = Role.COMPOSITE in example.roles and Role.ALPHA not in example.roles
            refined = example.targets.count(Role.FOREGROUND) * seen
        job = Job(
            sizes,
            layout,
            self.placement,
            steps,
            guided,
            words=words,
            tile=self.approximate.tiles,
            pixels=example.size[0] * example.size[1],
            refined=refined,
            compared=TASKS[example.task].category == "decomposition",
        )
        made = estimate(job, measure_speed(device, DTYPES[job.dtype]))
        return replace(made, warning=check_fits(made))

    def _check(self) -> None:
        """InputError for what is missing, damaged or does not fit."""
        file = self.placement.gguf
        self.kind.check(self.parts, file) if file else self.kind.check(self.parts)

    def load(self) -> OmniAlpha:
        """Ready to run."""
        parts, placement = self.parts, self.placement
        device = placement.torch_device  # a wrong name is refused before anything is read
        self._check()
        if parts.warning:
            logging.getLogger("omnialpha").warning(parts.warning)
        dtype = DTYPES[placement.dtype or parts.card.dtype]
        model = OmniAlpha.from_parts(parts, dtype, whole=not placement.gguf)
        if placement.gguf:
            model.transformer = load_gguf(placement.gguf, parts.transformer, dtype).eval().requires_grad_(False)
        adapters.apply(model.transformer, parts.adapters)
        model.transformer.tabulate(device.type != "cpu")  # on a CPU it would take nothing off the device
        model.placed = place(model, placement)
        model.parts = parts
        self.approximate.apply(model.transformer, model.text_encoder, model.vae)  # type: ignore[arg-type]
        model.guidance_interval = self.approximate.guidance
        return model


def swap(model: OmniAlpha, lora: LoraLike | Iterable[LoraLike] = ()) -> None:
    """Put these adapters in the place of those that a loaded model has; its base weights stay where they are.

    Without any the model answers bit for bit as its base. InputError, with the old ones in place, if one does not fit.
    """
    assert model.parts is not None and model.placed is not None, "swap is for models that `load` has made"
    parts = model.parts.with_lora(lora)
    card = parts.card  # raises where two adapters disagree
    streamed = model.placed.placement.offload in ("group", "disk")  # new weights have to get its hooks
    if streamed:
        model.placed.undo.close()
    try:
        adapters.apply(model.transformer, parts.adapters)
        model.parts, model.card = parts, card
    finally:
        if streamed:
            model.placed = place(model, replace(model.placed.placement, dtype=None, quantize=None))
