"""Rewards: what generations are worth, from their decoded layers, each a row of `REWARDS`.

A row says nothing (NaN) of a task that it does not fit. All are in [0, 1], greater is better. The first seven are those
of the released procedure; docs/reinforcement.md says which way of cheating each of the others answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from omnialpha import masks, rgba
from omnialpha.errors import InputError
from omnialpha.evaluation.metrics.image import psnr, ssim
from omnialpha.tasks import MAPS, TASKS, Example, Role
from omnialpha.training.perceptual import Distance, pyramid

BACKDROPS = ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))  # what layers are looked at on
SOFT = (0.05, 0.95)  # alpha between these is the soft band of r4
BLUR, SIGMA = 21, 10 / 3  # pixels of the window of r4, and the deviation of its Gaussian
GRAD_WINDOW, GRAD_SIGMA = 9, 1.4  # the same of the metric GRAD
PSNR_FULL = 50.0  # dB that are worth 1
SAME = 1.5 / 255  # colours nearer than this are the input's own


@dataclass(frozen=True)
class Outcome:
    """What a group made of an example.

    Attributes:
        example: What was asked for, with its truths where they are known.
        layers: (G, m, 4, H, W), straight, in the order of the example's targets.
        distance: Of two batches of RGB pictures, in the place of LPIPS where its weights are not at hand.
    """

    example: Example
    layers: Tensor
    distance: Distance = field(default=pyramid, repr=False)

    @cached_property
    def truths(self) -> Tensor:
        """(m, 4, H, W)."""
        return self.example.true_layers().to(self.layers)

    @cached_property
    def composite(self) -> Tensor:
        """The picture that the task started from, (4, H, W)."""
        given = self.example.given(Role.COMPOSITE)
        assert given is not None, f"{self.example.task} has no composite"
        return given.to(self.layers)

    def of(self, role: Role) -> tuple[Tensor, Tensor]:
        """Made and true layers of a role, (G, k, 4, H, W) and (k, 4, H, W)."""
        own = [k for k, target in enumerate(self.example.targets) if target is role]
        return self.layers[:, own], self.truths[own]


Measure = Callable[[Outcome], Tensor]  # -> (G,)


@dataclass(frozen=True)
class Reward:
    """A row. categories: of tasks that it fits; known: whether it needs truths; roles: of the layers that it reads."""

    measure: Measure
    categories: tuple[str, ...] = ("matting", "removal", "decomposition")
    known: bool = True
    roles: tuple[Role, ...] = tuple(Role)

    def fits(self, example: Example) -> bool:
        truths = example.truths and all(truth is not None for truth in example.truths)
        return TASKS[example.task].category in self.categories and bool(truths or not self.known)


# ---- the released ones -----------------------------------------------------------------------------------------------


def _on_backdrops(made: Tensor, true: Tensor, figure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Mean over white and black of a figure of RGB batches; made (N, 4, H, W), true of the same shape -> (N,)."""
    values = [figure(rgba.flatten(made, color), rgba.flatten(true, color)) for color in BACKDROPS]
    return torch.stack([value.float().to(made.device) for value in values]).mean(dim=0)


def _score_psnr(made: Tensor, true: Tensor) -> Tensor:
    return (psnr(made, true) / PSNR_FULL).clamp(0, 1)


def _by_layer(figure: Callable[[Tensor, Tensor], Tensor]) -> Measure:
    """r1: mean over all layers."""

    def measure(out: Outcome) -> Tensor:
        made, true = out.layers, out.truths.expand_as(out.layers)
        return _on_backdrops(made.flatten(0, 1), true.flatten(0, 1), figure).view(made.shape[:2]).mean(dim=1)

    return measure


def _recomposed(figure: Callable[[Outcome], Callable[[Tensor, Tensor], Tensor]]) -> Measure:
    """r2: what the layers recompose to, beside the input."""

    def measure(out: Outcome) -> Tensor:
        whole = rgba.recompose(list(out.layers.unbind(dim=1)))
        return _on_backdrops(whole, out.composite.expand_as(whole), figure(out))

    return measure


def _closeness(out: Outcome) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda made, true: 1 - out.distance(made, true)


def background_looks(out: Outcome) -> Tensor:
    """r3: one minus the perceptual distance of the background."""
    made, true = out.of(Role.BACKGROUND)
    return _on_backdrops(made[:, 0], true[:1].expand_as(made[:, 0]), _closeness(out))


def soft_band(out: Outcome) -> Tensor:
    """r4: one minus the error of alpha in the blurred soft bands of truth and prediction. 1 where neither has any."""
    made, true = (layers[..., 3, :, :] for layers in out.of(Role.FOREGROUND))
    true = true.expand_as(made)
    weight = (_blurred(_is_soft(made), BLUR, SIGMA) + _blurred(_is_soft(true), BLUR, SIGMA)).clamp(0, 1)
    error = (weight * (made - true).abs()).sum(dim=(-2, -1)) / (weight.sum(dim=(-2, -1)) + 1e-6)
    return (1 - error).mean(dim=1)


def _is_soft(alpha: Tensor) -> Tensor:
    return ((alpha >= SOFT[0]) & (alpha <= SOFT[1])).float()


def _blurred(maps: Tensor, window: int, sigma: float) -> Tensor:
    """(G, k, H, W) under a Gaussian, with zeros outside."""
    x = torch.arange(window, dtype=torch.float32, device=maps.device) - window // 2
    taps = torch.exp(-x.square() / (2 * sigma**2))
    taps = (taps / taps.sum()).view(1, 1, 1, -1)
    flat = F.conv2d(maps.flatten(0, 1)[:, None], taps, padding=(0, window // 2))
    return F.conv2d(flat, taps.transpose(2, 3), padding=(window // 2, 0)).view_as(maps)


# ---- what those miss -------------------------------------------------------------------------------------------------


def alpha(out: Outcome) -> Tensor:
    """One minus the mean error of foregrounds' alpha, the unknown band counted five times; wherever the error lies."""
    made, true = (layers[..., 3, :, :] for layers in out.of(Role.FOREGROUND))
    weight = 1 + 4 * _band(true)
    return (1 - ((made - true).abs() * weight).sum(dim=(-2, -1)) / weight.sum(dim=(-2, -1))).mean(dim=1)


def band_gradient(out: Outcome) -> Tensor:
    """1 / (1 + error of alpha's smoothed gradient in the unknown band, in parts of the true one)."""
    made, true = (layers[..., 3, :, :] for layers in out.of(Role.FOREGROUND))
    band, true = _band(true), true.expand_as(made)
    error = (_gradient(made - true) * band).sum(dim=(-2, -1))
    return (1 / (1 + error / (_gradient(true) * band).sum(dim=(-2, -1)).clamp_min(1e-3))).mean(dim=1)


def _band(alphas: Tensor) -> Tensor:
    """The unknown band of mattes (k, H, W), 3 % of the shorter side to each side of what is soft."""
    radius = max(1.0, 0.03 * min(alphas.shape[-2:]))
    bands = [masks.trimap(alpha, radius) == 0.5 for alpha in alphas]
    return torch.stack(bands).float()


def _gradient(maps: Tensor) -> Tensor:
    """Length of the gradient of maps (G, k, H, W) under the Gaussian of the metric GRAD, which noise hardly passes."""
    smooth = _blurred(maps, GRAD_WINDOW, GRAD_SIGMA)
    dx, dy = F.pad(smooth.diff(dim=-1), (0, 1)), F.pad(smooth.diff(dim=-2), (0, 0, 0, 1))
    return (dx.square() + dy.square()).sqrt()


def colour(out: Outcome) -> Tensor:
    """One minus the mean error of straight colour; under alpha 0 it counts a tenth, where no backdrop shows it."""
    weight = out.truths[:, 3:].clamp_min(0.1)
    error = ((out.layers[:, :, :3] - out.truths[:, :3]).abs() * weight).sum(dim=(2, 3, 4))
    return (1 - error / (3 * weight.sum(dim=(1, 2, 3)))).mean(dim=1)


def unchanged(out: Outcome) -> Tensor:
    """1 / (1 + ten times the mean error) where a true layer is opaque and has the input's own colour."""
    same = ((out.truths[:, :3] - out.composite[:3]).abs().amax(dim=1) < SAME) & (out.truths[:, 3] == 1)
    error = (out.layers - rgba.opaque(out.composite)).abs().mean(dim=2) * same
    return 1 / (1 + 10 * error.sum(dim=(1, 2, 3)) / same.sum().clamp_min(1))


def removed(out: Outcome) -> Tensor:
    """Where the true background differs from the input: 0 if the input was copied, 1 if it is the true one."""
    made, true = (layers[..., 0, :3, :, :] for layers in out.of(Role.BACKGROUND))
    changed = (true - out.composite[:3]).abs()
    away, copied = (((made - other).abs() * changed).sum(dim=(1, 2, 3)) + 1e-6 for other in (true, out.composite[:3]))
    return copied / (away + copied)


def exclusive(out: Outcome) -> Tensor:
    """1 / (1 + how much more foregrounds overlap than the true ones, in parts of the smaller one's area)."""
    made, true = (layers[..., 3, :, :] for layers in out.of(Role.FOREGROUND))
    total = torch.zeros(len(made), device=made.device)
    for a, b in combinations(range(made.shape[1]), 2):
        excess = (made[:, a] * made[:, b] - true[a] * true[b]).clamp_min(0).sum(dim=(-2, -1))
        total = total + excess / torch.minimum(true[a].sum(), true[b].sum()).clamp_min(1)
    return 1 / (1 + total)


def hint(out: Outcome) -> Tensor:
    """One minus the mean error of alpha where the given map is certain. NaN without a map."""
    made = out.of(Role.FOREGROUND)[0][..., 3, :, :].amax(dim=1)
    role = next((role for role in out.example.roles if role in MAPS), None)
    given = out.example.given(role) if role else None
    if given is None:
        return made.new_full((len(made),), torch.nan)
    values = given[0].to(made)
    sure = {
        Role.TRIMAP: (values - 0.5).abs() > 0.4,
        Role.ROUGH: values < 0.1,  # it is larger than the subject
        Role.PRECISE: values > 0.5,  # soft edges lie outside of it
    }.get(role, values >= 0)  # type: ignore[arg-type]
    return 1 - ((made - values).abs() * sure).sum(dim=(-2, -1)) / sure.sum().clamp_min(1)


LAYERED = ("decomposition",)
REWARDS: dict[str, Reward] = {
    "layer_ssim": Reward(_by_layer(ssim)),
    "layer_psnr": Reward(_by_layer(_score_psnr)),
    "composite_ssim": Reward(_recomposed(lambda _: ssim), LAYERED),
    "composite_psnr": Reward(_recomposed(lambda _: _score_psnr), LAYERED),
    "composite_lpips": Reward(_recomposed(_closeness), LAYERED),
    "background_lpips": Reward(background_looks, ("removal", "decomposition"), roles=(Role.BACKGROUND,)),
    "soft_band": Reward(soft_band, ("matting", "decomposition"), roles=(Role.FOREGROUND,)),
    "alpha": Reward(alpha, ("matting", "decomposition"), roles=(Role.FOREGROUND,)),
    "band_gradient": Reward(band_gradient, ("matting", "decomposition"), roles=(Role.FOREGROUND,)),
    "colour": Reward(colour),
    "unchanged": Reward(unchanged),
    "removed": Reward(removed, ("removal", "decomposition"), roles=(Role.BACKGROUND,)),
    "exclusive": Reward(exclusive, LAYERED, roles=(Role.FOREGROUND,)),
    "hint": Reward(hint, ("matting", "decomposition"), roles=(Role.FOREGROUND,)),
}
RELEASED = tuple(REWARDS)[:7]


def find(names: Iterable[str], more: Mapping[str, Reward]) -> dict[str, Reward]:
    """Rows by name, of `REWARDS` and of others (services, judges). InputError for a name that is not known."""
    rows = {**REWARDS, **more}
    for name in names:
        if name not in rows:
            raise InputError(f"the reward {name!r} is not known: use some of {', '.join(rows)}.")
    return {name: rows[name] for name in names}


def score(out: Outcome, names: Sequence[str], more: Mapping[str, Reward] | None = None) -> dict[str, Tensor]:
    """Rewards of a group by name, (G,) float32 on the CPU: NaN of rows that do not fit its task. See `find`."""
    empty = torch.full((len(out.layers),), torch.nan)
    rows = find(names, more or {}).items()
    return {name: row.measure(out).float().cpu() if row.fits(out.example) else empty for name, row in rows}
