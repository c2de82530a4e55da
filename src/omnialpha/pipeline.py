"""The one path: condition, velocity, decode. Library, command line, demo, training and evaluation come through here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from omnialpha import hints, masks, sampling
from omnialpha.api import TaskMethods
from omnialpha.canvas import Canvas, plan
from omnialpha.condition import Condition, join, pad
from omnialpha.errors import InputError
from omnialpha.io.layers import LayerStack
from omnialpha.limits import check_guidance, check_refine, check_seeds, check_steps
from omnialpha.models.checkpoints.folders import Card, Parts
from omnialpha.models.families import FAMILIES
from omnialpha.models.finder import Finder, bundled_finder
from omnialpha.models.flux import transformer as flux
from omnialpha.models.flux.text_encoder import FluxText
from omnialpha.models.runtime.placement import Placed, Portable
from omnialpha.models.text_encoder.encoder import TextEncoder
from omnialpha.models.transformer.model import MultiImageTransformer, pack, unpack
from omnialpha.models.transformer.positions import Layout, Positions, patch_of
from omnialpha.models.vae.autoencoder import Autoencoder
from omnialpha.pretrained import Pretrained
from omnialpha.sampling import Interval, Step, Velocity, sample, schedule
from omnialpha.tasks import Example, Role


class OmniAlpha(Portable, Pretrained, TaskMethods):
    """The pipeline of a model: RGBA pictures and an instruction in, RGBA pictures out.

    `omnialpha.load` makes one. Its methods by category (`matte`, `remove`, ...) are in `api`; `run` takes any task. The
    steps of `run` are public: `condition`, `noise`, `velocity` (or `guided`), `decode`.
    """

    def __init__(
        self,
        vae: Autoencoder,
        transformer: MultiImageTransformer | flux.FluxTransformer,
        text_encoder: TextEncoder | FluxText,
        card: Card,
    ) -> None:
        super().__init__()
        self.vae, self.transformer, self.text_encoder, self.card = vae, transformer, text_encoder, card
        self.parts: Parts | None = None  # where it came from, and
        self.placed: Placed | None = None  # how it was made ready to run: see `loading`
        self.guidance_interval: Interval = sampling.FULL_INTERVAL  # times at which guidance applies
        self._finder: tuple[Finder, ...] = ()  # not a submodule: it stays on the CPU, and nothing here trains it

    def native_size(self) -> tuple[int, int]:
        """(height, width) of the largest square that the model takes for one picture."""
        return self.card.native_size

    @property
    def device(self) -> torch.device:
        """Where it computes, wherever its weights wait."""
        return self.placed.device if self.placed else self.transformer.device

    @property
    def finder(self) -> Finder | None:
        """What finds subjects for it."""
        return self._finder[0] if self._finder else None

    @property
    def patch(self) -> int:
        """Latents that a token of the transformer spans, each way."""
        return patch_of(self.transformer, self.vae)

    def outline(self, picture: Tensor, points: Sequence[masks.Mark], boxes: Sequence[masks.Mark]) -> Tensor:
        """See `hints.outline`; by the bundled finder where the model has none that takes hints."""
        finder = self.finder if self.finder and self.finder.hints else None
        return hints.outline(finder or bundled_finder(), picture.cpu(), points, boxes)

    def use_finder(self, finder: Finder | None) -> None:
        self._finder = () if finder is None else (finder,)

    # ---- the path ----------------------------------------------------------------------------------------------

    def add_hints(self, examples: Sequence[Example], looks: int = 2) -> list[Example]:
        """The examples with what the finder sees, see `hints.add_hint`. Without a finder, or a look, none changes."""
        if self.finder and looks:
            return hints.add_hints(examples, self.finder, self.card, looks, self.text_encoder)
        return list(examples)

    def canvas(self, example: Example) -> Canvas:
        """The working size of an example: one for all its pictures, within the model's budget for n + m of them."""
        pictures = hints.count_inputs(example, self.finder is not None) + len(example.targets)
        return plan(example.size, pictures, self.card.grid)

    def condition(self, examples: Sequence[Example], guided: bool = False, looks: int = 2) -> Condition:
        """Encode the pictures and instructions of B examples.

        Args:
            examples: What is asked for.
            guided: Encode empty instructions as well (`negative`), for models with classifier-free guidance.
            looks: Of the finder, where the model has one: 2; 1 is quick, for training; 0 leaves hints out.

        Returns:
            The condition, which belongs to the weights that made it.

        Raises:
            InputError: The model does not do a task.
        """
        examples = self.add_hints(examples, looks)
        instructions = [self.card.text(e) for e in examples]
        canvases = [self.canvas(e) for e in examples]
        pictures = [hints.fit_inputs(e, c, self.device) for e, c in zip(examples, canvases, strict=True)]
        inputs = [join(row) for row in self._encode(pictures)]
        if not guided or self.card.guidance == "embedded":
            return self.assemble(
                examples, inputs, *self.text_encoder(self.text_encoder.tokenize(instructions, pictures))
            )
        tokens = self.text_encoder.tokenize(instructions, pictures, negatives=[""] * len(examples))
        positive, negative = self.text_encoder(tokens)
        return self.assemble(examples, inputs, *positive, negative=self.assemble(examples, inputs, *negative))

    def assemble(
        self,
        examples: Sequence[Example],
        inputs: Sequence[Tensor | None],
        text: Tensor,
        mask: Tensor,
        pooled: Tensor | None = None,
        *,
        negative: Condition | None = None,
    ) -> Condition:
        """Make a condition of what is encoded already. The examples may come without their pictures.

        Args:
            examples: B of them.
            inputs: Tokens of the pictures of each, (Li_b, C); None where there are none.
            text, mask, pooled: Of the instructions: (B, T, D), (B, T), (B, P).
            negative: The condition with empty instructions.
        """
        canvases, layouts, side = tuple(self.canvas(e) for e in examples), [], self.vae.ratio * self.patch
        for example, canvas in zip(examples, canvases, strict=True):
            size = (canvas.size[0] // side, canvas.size[1] // side)
            layouts.append(Layout((size,) * len(example.targets), (size,) * len(example.roles)))
        lengths = tuple(mask.sum(dim=1).tolist())
        pictures = pad(inputs, self.transformer.config.in_channels).to(self.device)
        given = (tuple(examples), canvases, tuple(layouts), pictures, text, lengths, self._positions(layouts, lengths))
        return Condition(*given, negative=negative, pooled=pooled)

    def repeat(self, cond: Condition, count: int) -> Condition:
        """The condition of one example for `count` samples of it, without guidance; nothing is encoded again."""
        return cond.repeat(count, self._positions(cond.layouts * count, cond.lengths * count))

    def _positions(self, layouts: Sequence[Layout], lengths: Sequence[int]) -> Positions:
        axes = tuple(self.transformer.config.axes_dims_rope)
        return FAMILIES[self.card.family].load("positions")(layouts, lengths, self.card.target_order, axes, self.device)

    @torch.no_grad()
    def _encode(self, pictures: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
        """Tokens (L, C) of (4, H, W) pictures, in the same nesting; equal sizes are encoded together."""
        flat = [(b, p) for b, row in enumerate(pictures) for p in row]
        tokens: list[list[Tensor]] = [[] for _ in pictures]
        for _, run in groupby(flat, key=lambda item: item[1].shape):
            owners, batch = zip(*run, strict=True)
            for b, made in zip(owners, pack(self.vae.encode(torch.stack(batch)), self.patch), strict=True):
                tokens[b].append(made)
        return tokens

    def noise(self, cond: Condition, seed: int | Sequence[int] = 0) -> Tensor:
        """Starting noise (B, Lt, C), from one CPU generator a sample, seeded with seed + b or seed[b]."""
        rows, seeds, patch = [], check_seeds(seed, len(cond.examples)), self.patch
        for layout, own in zip(cond.layouts, seeds, strict=True):
            generator = torch.Generator().manual_seed(own)
            shapes = [(self.vae.config.z_dim, h * patch, w * patch) for h, w in layout.targets]
            rows.append(torch.cat([pack(torch.randn(1, *shape, generator=generator), patch)[0] for shape in shapes]))
        return pad(rows, rows[0].shape[-1]).to(self.device)

    def velocity(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The transformer's velocity, noise - x_0.

        Args:
            x_t: Noisy latents of the targets, (B, Lt, C).
            t: Times (B,) in (0, 1].
            cond: The condition.

        Returns:
            (B, Lt, C) float32. A transformer that predicts x_0 is converted here: (x_t - x_0) / t.
        """
        dtype = self.transformer.dtype
        inputs, text = cond.inputs.to(dtype), cond.text.to(dtype)
        extra = {name: value.to(dtype) for name, value in cond.extra.items()}
        branch = "conditional" if cond.negative else "unconditional"  # step caches keep them apart
        with self.transformer.cache_context(branch) if self.transformer.is_cache_enabled else nullcontext():
            out = self.transformer(x_t.to(dtype), inputs, text, t, cond.positions, cond.shared, **extra).float()
        return (x_t - out) / t.to(out.device).view(-1, 1, 1) if self.card.prediction == "x0" else out

    def guided(self, cond: Condition, scale: float) -> Velocity:
        """The velocity under guidance, as a function (x_t, t) -> (B, Lt, C).

        Args:
            cond: The condition, made with `guided` where the scale is not 1.
            scale: Of classifier-free guidance; a transformer that is distilled from guidance takes it as an input.
        """
        if self.card.guidance == "embedded":
            return partial(self.velocity, cond=replace(cond, guidance_scale=scale))
        alone: Velocity = partial(self.velocity, cond=cond)
        if scale == 1.0:
            return alone
        negative, pair = cond.negative, None
        assert negative is not None, "guidance needs condition(examples, guided=True)"
        if cond.picture_tokens <= sampling.MAX_PAIRED_TOKENS:
            pair = cond.with_negative(self._positions(cond.layouts * 2, cond.lengths + negative.lengths))

        def both(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            if pair is None:
                return alone(x, t), self.velocity(x, t, negative)
            wanted, other = self.velocity(torch.cat((x, x)), torch.cat((t, t)), pair).chunk(2)
            return wanted, other

        return sampling.apply_guidance(alone, both, scale, self.guidance_interval)

    @torch.no_grad()
    def encode_targets(self, targets: Sequence[Tensor | Sequence[Tensor]], cond: Condition) -> Tensor:
        """Encode true target pictures (m, 4, H, W) of each example, back to front, as clean latents (B, Lt, C)."""
        fitted = [
            [c.fit(row[k].to(self.device)) for k in self.card.order(e.targets)]
            for row, e, c in zip(targets, cond.examples, cond.canvases, strict=True)
        ]
        return pad([torch.cat(row) for row in self._encode(fitted)], self.transformer.config.in_channels)

    @torch.no_grad()
    def pictures(self, x: Tensor, cond: Condition, roles: Collection[Role] = tuple(Role)) -> list[Tensor]:
        """Decode latents (B, Lt, C) to the targets of each example, (m, 4, H', W') on its canvas, back to front.

        Targets of other roles than `roles` are not decoded but left empty.
        """
        made, p = [], self.patch
        for row, layout, example in zip(x, cond.layouts, cond.examples, strict=True):
            parts = row[: layout.target_tokens].split([h * w for h, w in layout.targets])
            latents = [unpack(t[None], h * p, w * p, p) for t, (h, w) in zip(parts, layout.targets, strict=True)]
            order = self.card.order(example.targets)
            wanted = [k for k, role in enumerate(example.targets) if role in roles]
            decoded = self.vae.decode(torch.cat([latents[order.index(k)] for k in wanted]))
            whole = decoded.new_zeros(len(order), *decoded.shape[1:])
            whole[wanted] = decoded
            made.append(whole)
        return made

    def decode(self, x: Tensor, cond: Condition, raw: bool = False, refine: str = "auto") -> list[LayerStack]:
        """Decode latents to layers at the size of the inputs.

        Args:
            x: Latents (B, Lt, C).
            cond: The condition that they were sampled with.
            raw: Skip `fidelity`, which refines and copies from the input what the task does not change.
            refine: auto, off or closed-form, see `fidelity.finish_layers`.

        Returns:
            One LayerStack an example, back to front.
        """
        return self._finish(self.pictures(x, cond), cond, raw, refine)

    def _finish(self, pictures: Sequence[Tensor], cond: Condition, raw: bool, refine: str) -> list[LayerStack]:
        rows = zip(pictures, cond.examples, cond.canvases, strict=True)
        return [hints.restore(*row, self.card, raw, refine) for row in rows]

    @torch.inference_mode()
    def run(  # type: ignore[override]
        self,
        examples: Sequence[Example],
        *,
        seed: int | Sequence[int] = 0,
        steps: int | None = None,
        guidance: float | None = None,
        raw: bool = False,
        refine: str = "auto",
        on_step: Callable[[Step, Condition], None] | None = None,
        turn: AbstractContextManager[object] | None = None,
    ) -> list[LayerStack]:
        """Run examples of any tasks, together in one batch.

        Args:
            examples: What is asked for, see `tasks.Task.example`.
            seed: Of sample b: seed + b, or seed[b].
            steps, guidance: Those of the checkpoint for the first example's task by default. A guidance of 1 is none.
            raw, refine: See `decode`.
            on_step: Called with the step and the condition after each step; an exception in it cancels the run.
            turn: Held while networks run, such as a lock, where several threads share the model.

        Returns:
            One LayerStack an example, back to front, of the size of its inputs.

        Raises:
            InputError: A setting is out of range, or the model does not do a task.
        """
        if not examples:
            raise InputError("no examples were given: pass at least one.")
        defaults = self.card.defaults(examples[0].task)
        steps = check_steps(defaults.steps if steps is None else steps)
        guidance = check_guidance(defaults.guidance if guidance is None else guidance)
        sampling.check_settings(None, None, self.guidance_interval)
        seeds, refine = check_seeds(seed, len(examples)), check_refine(refine)
        if not raw and (cut := hints.cut_out(examples, self.finder, self.card, refine, self.text_encoder)):
            return cut
        with turn or nullcontext():
            cond = self.condition(examples, guided=guidance != 1.0)
            velocity = self.guided(cond, guidance)
            if self.transformer.is_cache_enabled:
                self.transformer._reset_stateful_cache()  # of the run before
            # one schedule a sample, by its own length: a picture is the same alone and in a batch
            times = torch.stack([schedule(steps, layout.target_tokens, self.card.shift) for layout in cond.layouts])
            self.transformer.precompute_modulation(times[:, :-1].unique())
            for step in sample(velocity, self.noise(cond, seeds), times):
                if on_step:
                    on_step(step, cond)
            pictures = self.pictures(step.x, cond)
        return self._finish(pictures, cond, raw, refine)
