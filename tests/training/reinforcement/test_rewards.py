"""Rewards: the released ones by hand in numpy, and ours against every way of cheating that is known."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve, gaussian_filter
from torch import Tensor

from layered_scene import BACK, FRONTS, SIDE, blur, disk, draw, example, honest
from omnialpha.errors import InputError
from omnialpha.tasks import TASKS, Example, Role
from omnialpha.training.reinforcement.advantages import AdvantageSettings, advantages
from omnialpha.training.reinforcement.rewards import RELEASED, REWARDS, Outcome, score

OURS = tuple(name for name in REWARDS if name not in RELEASED)


def absolute(a: Tensor, b: Tensor) -> Tensor:
    """In the place of LPIPS."""
    return (a - b).abs().mean(dim=(1, 2, 3))


def rewards(asked: Example, *made: Tensor) -> dict[str, list[float]]:
    return {k: v.tolist() for k, v in score(Outcome(asked, torch.stack(made), absolute), list(REWARDS)).items()}


# ---- the released ones by hand ---------------------------------------------------------------------------------------


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """(3, H, W); window of 11 px, sigma 1.5, population moments, where the window fits."""

    def mean(x):
        return gaussian_filter(x, (0, 1.5, 1.5), truncate=3.5)

    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    whole = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    return whole[:, 5:-5, 5:-5].mean()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return min(1.0, -10 * np.log10(((a - b) ** 2).mean()) / 50)


def on_backdrops(made: np.ndarray, true: np.ndarray, figure: Callable[[np.ndarray, np.ndarray], float]) -> float:
    flat = [[x[:3] * x[3] + white * (1 - x[3]) for x in (made, true)] for white in (0, 1)]
    return float(np.mean([figure(*pair) for pair in flat]))


def soft_band(made: np.ndarray, true: np.ndarray) -> float:
    """Of one alpha (H, W)."""
    y, x = np.mgrid[-10:11, -10:11]
    kernel = np.exp(-(x**2 + y**2) / (2 * (10 / 3) ** 2))
    bands = [((a >= 0.05) & (a <= 0.95)).astype(float) for a in (made, true)]
    weight = sum(convolve(band, kernel / kernel.sum(), mode="constant") for band in bands).clip(0, 1)
    return 1 - (weight * abs(made - true)).sum() / (weight.sum() + 1e-6)


def by_hand(layers: np.ndarray, truths: np.ndarray, composite: np.ndarray, roles: list[Role]) -> dict[str, float]:
    """All that could be asked of layers (m, 4, H, W)."""
    whole = np.zeros_like(composite)  # premultiplied
    for one in layers:
        whole = np.concatenate([one[:3] * one[3:], one[3:]]) + (1 - one[3]) * whole
    whole[:3] /= whole[3].clip(1e-6)
    fronts = [k for k, role in enumerate(roles) if role is Role.FOREGROUND]
    made = {"ssim": ssim, "psnr": psnr, "lpips": lambda a, b: 1 - abs(a - b).mean()}
    found = {}
    for name, figure in made.items():
        found[f"layer_{name}"] = np.mean([on_backdrops(a, b, figure) for a, b in zip(layers, truths, strict=True)])
        found[f"composite_{name}"] = on_backdrops(whole, composite, figure)
        found[f"background_{name}"] = on_backdrops(layers[0], truths[0], figure)
    found["soft_band"] = np.mean([soft_band(layers[k, 3], truths[k, 3]) for k in fronts]) if fronts else np.nan
    return found


VALID = {
    "matting": {"layer_ssim", "layer_psnr", "soft_band"},
    "removal": {"layer_ssim", "layer_psnr", "background_lpips"},
    "decomposition": set(RELEASED),
}


@pytest.mark.parametrize(
    "task, fronts",
    [("matting_auto", 1), ("matting_text", 1), ("matting_rough", 1), ("removal_precise", 1), ("removal_auto", 2),
     ("decompose_auto", 1), ("decompose_auto", 2)],
)  # fmt: skip
def test_released_rewards_by_hand_and_the_tasks_that_they_fit(task, fronts):
    asked = example(task, fronts)
    made = [honest(torch.stack(asked.truths), noise) for noise in (0.01, 0.1)]
    found = rewards(asked, *made)
    for g, layers in enumerate(made):
        pictures = (layers, torch.stack(asked.truths), asked.given(Role.COMPOSITE))
        wanted = by_hand(*(x.double().numpy() for x in pictures), list(asked.targets))
        for name in RELEASED:
            expected = wanted[name] if name in VALID[TASKS[task].category] else np.nan
            assert found[name][g] == pytest.approx(expected, abs=2e-5, nan_ok=True), name


def test_the_truth_gets_all_that_there_is():
    asked = example("decompose_auto", 2)
    truth = torch.stack(asked.truths)
    exact = rewards(asked, truth)
    assert all(exact[name][0] == pytest.approx(1, abs=1e-5) for name in RELEASED)
    ours = {name: values[0] for name, values in exact.items() if name in OURS and values[0] == values[0]}
    assert ours == pytest.approx(dict.fromkeys(ours, 1.0), abs=1e-4)


def test_rewards_that_need_truths_say_nothing_without_them():
    asked = replace(example("matting_auto"), truths=())
    assert all(np.isnan(values).all() for values in rewards(asked, torch.rand(1, 4, SIDE, SIDE)).values())


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match="'sharpness' is not known"):
        score(Outcome(example("matting_auto"), torch.rand(2, 1, 4, SIDE, SIDE)), ["sharpness"])


# ---- cheats ----------------------------------------------------------------------------------------------------------


def fronts_of(asked: Example) -> list[int]:
    return [k for k, role in enumerate(asked.targets) if role is Role.FOREGROUND]


def whole_composite(asked: Example, made: Tensor) -> Tensor:
    """The front layer, or the only one, is the whole input with alpha 1: recomposition is perfect."""
    made[-1] = asked.given(Role.COMPOSITE)
    return made


def copied_background(asked: Example, made: Tensor) -> Tensor:
    """Nothing was removed."""
    made[0] = asked.given(Role.COMPOSITE)
    return made


def all_in_the_background(asked: Example, made: Tensor) -> Tensor:
    """The input as background and blank foregrounds: recomposition is perfect."""
    made[1:, 3] = 0
    return copied_background(asked, made)


def blurred_alpha(asked: Example, made: Tensor) -> Tensor:
    """The true alpha, blurred: the soft band of the prediction is wide, and the error in it small on average."""
    own = fronts_of(asked)
    made[own, 3] = blur(torch.stack(asked.truths)[own, 3], 3)
    return made


def hard_alpha(asked: Example, made: Tensor) -> Tensor:
    own = fronts_of(asked)
    made[own, 3] = (torch.stack(asked.truths)[own, 3] > 0.5).float()
    return made


def colour_under_nothing(asked: Example, made: Tensor) -> Tensor:
    own = fronts_of(asked)
    made[own, :3] = torch.where(made[own, 3:] == 0, torch.rand(made[own, :3].shape, generator=draw(9)), made[own, :3])
    return made


def transparent(asked: Example, made: Tensor) -> Tensor:
    """The last layer has alpha 0."""
    made[-1, 3] = 0
    return made


def blank(asked: Example, made: Tensor) -> Tensor:
    """The last layer is transparent black."""
    made[-1] = 0
    return made


def swapped(asked: Example, made: Tensor) -> Tensor:
    return made.flip(0)


def swapped_fronts(asked: Example, made: Tensor) -> Tensor:
    return made[[0, 2, 1]]


def contrast(asked: Example, made: Tensor) -> Tensor:
    """Colours that are pushed into the clamp."""
    made[:, :3] = ((made[:, :3] - 0.5) * 3 + 0.5).clamp(0, 1)
    return made


MATTING, REMOVAL, ONE, TWO = ("matting_rough", 1), ("removal_rough", 1), ("decompose_auto", 1), ("decompose_auto", 2)
RECOMPOSED = ("composite_ssim", "composite_psnr", "composite_lpips")
# the cheat, what it is tried on, and the released rewards in which it is no worse than an honest prediction
CHEATS = [
    (whole_composite, (MATTING, ("matting_auto", 1)), ()),
    (whole_composite, (ONE, TWO), RECOMPOSED),
    (copied_background, (REMOVAL, ONE, TWO), ()),
    (all_in_the_background, (ONE, TWO), RECOMPOSED),
    (blurred_alpha, (MATTING, ONE, TWO), ()),
    (hard_alpha, (MATTING, ("matting_trimap", 1), ONE, TWO), ()),
    (colour_under_nothing, (MATTING, ONE, TWO), RELEASED),
    (transparent, (MATTING, REMOVAL, ONE, TWO), ()),
    (blank, (MATTING, REMOVAL, ONE, TWO), ()),
    (swapped, (ONE, TWO), ()),
    (swapped_fronts, (TWO,), ()),
    (contrast, (MATTING, REMOVAL, ONE, TWO), ()),
]


@pytest.mark.parametrize(
    "cheat, task, fronts, fooled",
    [(cheat, *on, fooled) for cheat, tasks, fooled in CHEATS for on in tasks],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_a_cheat_is_worth_less_than_an_honest_prediction(cheat, task, fronts, fooled):
    asked = example(task, fronts)
    made = honest(torch.stack(asked.truths))
    found = rewards(asked, made, cheat(asked, made.clone()))
    truth, cheated = np.nansum([found[name] for name in OURS], axis=0)
    assert cheated < truth - 0.02
    for name in fooled:
        if name in VALID[TASKS[task].category]:
            assert found[name][1] >= found[name][0], name


def test_the_hole_of_r4_is_closed():
    """With no soft band in truth and prediction r4 is 1 however wrong the matte is."""
    hard = (BACK, torch.cat([FRONTS[0][:3], (disk(0.4, 0.35, 0.22, 0.12) > 0.5).float()[None]]))
    asked = example("matting_auto", 1, hard)
    truth = torch.stack(asked.truths)
    inverted = torch.cat([truth[:, :3], 1 - truth[:, 3:]], dim=1)
    found = rewards(asked, honest(truth), inverted)
    assert found["soft_band"][1] == 1 > found["soft_band"][0]
    assert found["alpha"][1] < 0.3 < 0.9 < found["alpha"][0]
    assert sum(found[name][1] for name in ("alpha", "band_gradient", "colour", "unchanged")) < 2.7
    assert sum(found[name][0] for name in ("alpha", "band_gradient", "colour", "unchanged")) > 3.5


def test_r4_does_not_see_errors_away_from_the_soft_band_and_alpha_does():
    asked = example("matting_auto")
    truth = torch.stack(asked.truths)
    holed = honest(truth)
    holed[0, 3, -8:, -8:] = 1
    found = rewards(asked, honest(truth), holed)
    assert found["soft_band"][1] == pytest.approx(found["soft_band"][0], abs=1e-3)
    assert found["alpha"][1] < found["alpha"][0] - 5e-3


def test_a_poor_honest_decomposition_loses_to_no_work_at_all_in_the_released_sum_but_not_in_ours():
    asked = example("decompose_auto", 1)
    made = honest(torch.stack(asked.truths), 0.06)
    found = rewards(asked, made, all_in_the_background(asked, made.clone()))
    released, ours = (np.nansum([found[name] for name in names], axis=0) for names in (RELEASED, OURS))
    assert released[1] > released[0]
    assert ours[1] < ours[0] - 0.5


def test_saturated_terms_teach_nothing_and_ours_go_on_to_tell_generations_apart():
    """Above 50 dB the PSNR term is 1; a deviation without a floor would make advantages of the rounding of SSIM."""
    asked = example("matting_auto")
    truth = torch.stack(asked.truths)
    group = [(truth + noise * torch.randn(truth.shape, generator=draw(4))).clamp(0, 1) for noise in (1e-4, 5e-4, 2e-3)]
    found = score(Outcome(asked, torch.stack(group)), list(REWARDS))
    assert found["layer_psnr"].tolist() == [1, 1, 1]
    assert torch.stack([found[name] for name in OURS]).nansum(dim=0).diff().max() < 0
    rounding = {"layer_ssim": torch.tensor([1.0, 1 - 6e-8, 1.0])}
    kept, _ = advantages(rounding, {"layer_ssim": 1.0}, AdvantageSettings(drop=0))
    assert kept.abs().max() < 0.1
    unfloored, _ = advantages(rounding, {"layer_ssim": 1.0}, AdvantageSettings(floor=1e-8, drop=0))
    assert unfloored.abs().max() > 1


@pytest.mark.parametrize("task", ["matting_rough", "removal_rough", "decompose_auto"])
def test_what_is_worse_is_worth_less_however_bad_it_is(task):
    asked = example(task)
    truth = torch.stack(asked.truths)
    made = [torch.lerp(truth, 1 - truth, share) for share in (0, 0.05, 0.2, 0.4, 0.8)]
    found = score(Outcome(asked, torch.stack(made)), OURS)
    assert torch.stack(list(found.values())).nansum(dim=0).diff().max() < -1e-3


@pytest.mark.parametrize("kind", ["alpha", "trimap", "precise", "rough"])
def test_hints_count_where_they_are_certain(kind):
    asked = example(f"matting_{kind}")
    truth = torch.stack(asked.truths)
    away = truth.roll(SIDE // 2, dims=-1)
    found = rewards(asked, truth, away)["hint"]
    assert found[0] > 0.99 and found[1] < 0.9
