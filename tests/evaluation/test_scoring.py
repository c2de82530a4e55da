"""Each kind of task: which figures come out, against values by hand, and which are left out and why."""

import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from omnialpha import masks, rgba
from omnialpha.evaluation.metrics import image, matting
from omnialpha.evaluation.metrics.features import Features
from omnialpha.evaluation.scoring import SCORINGS, UNKNOWN, Networks, Scoring, of_sets
from omnialpha.tasks import TASKS, Example, Role

SIZE = (24, 32)


def picture(seed: int, alpha: Tensor | float = 1.0) -> Tensor:
    rgb = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(seed))
    return torch.cat([rgb, torch.as_tensor(alpha).expand(1, *SIZE)])


def ramp() -> Tensor:
    return torch.linspace(-0.5, 1.5, SIZE[1]).clamp(0, 1).expand(SIZE)


def loaded(
    task: str, *truths: Tensor | None, trimap: Tensor | None = None, prompt: str = "", **given: Tensor
) -> Example:
    row = TASKS[task]
    layers = len(truths) if row.many in row.targets else None
    example = row.example(dict(given), prompt=prompt or None, layers=layers, size=SIZE)  # type: ignore[arg-type]
    return replace(example, truths=truths, trimap=trimap)


class Colours:
    """Stands for a network: what it answers is the mean colour."""

    features = Features("colours", "colours", lambda x: x.float().mean(dim=(2, 3)))
    name = identity = "colours"

    def score(self, pictures: Tensor, texts: list[str]) -> Tensor:
        return pictures.mean(dim=(1, 2, 3)).double() + len(texts[0])


COLOURS = Networks(features=Colours.features, clip=Colours())  # type: ignore[arg-type]


def test_matting_in_both_regions() -> None:
    true = picture(1, ramp())
    tri = masks.trimap(ramp(), 1)
    made = picture(2, (ramp() * 0.9))[None]
    figures = SCORINGS["matting"].score(
        loaded("matting_auto", true, trimap=tri, composite=picture(3)), made, Networks()
    )
    names = ("sad", "mse", "mad", "grad", "conn")
    for region, prefix in (("whole", ""), ("unknown", UNKNOWN)):
        wanted = matting.measure(made[0, 3], ramp(), tri, region, names)
        assert {n: figures[prefix + n] for n in names} == pytest.approx({n: float(v) for n, v in wanted.items()})
        aim = float(matting.measure(made[0, 3], ramp(), tri, region, ("grad_aim",))["grad_aim"])
        assert figures[prefix + "grad_aim"] == pytest.approx(aim)
    assert figures["sad"] == pytest.approx(float((ramp() * 0.1).sum()) / 1000, rel=1e-4)
    assert figures["mse"] <= figures["mad"]


def test_a_trimap_without_grey_counts_nothing_unknown() -> None:
    sure = (ramp() > 0.5).float()
    one = loaded("matting_auto", picture(1, sure), trimap=sure, composite=picture(3))
    figures = SCORINGS["matting"].score(one, picture(1, sure)[None], Networks())
    assert figures["sad"] == 0 and not any(name.startswith(UNKNOWN) for name in figures)


def test_without_opencv_the_fast_figures_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    one = loaded("matting_auto", picture(1, ramp()), composite=picture(3))
    assert SCORINGS["matting"].score(one, picture(1, ramp())[None], Networks()).keys() == {"sad", "mse", "mad"}
    assert "omnialpha[eval]" in Networks().lacking()["conn"]


def test_removal() -> None:
    hole = torch.zeros(SIZE)
    hole[:8] = 1
    true, made = picture(1), picture(1)
    made[:3, :4] = 0
    one = loaded("removal_precise", true, composite=picture(3), precise=masks.as_picture(hole))
    figures = SCORINGS["removal"].score(one, made[None], Networks())
    assert figures["psnr"] == pytest.approx(float(image.psnr(made[None, :3], true[None, :3])))
    assert figures["ssim"] == pytest.approx(float(image.ssim(made[None, :3], true[None, :3])))
    error = float(true[:3, :4].double().square().sum()) / (3 * 8 * SIZE[1])
    assert figures["hole_psnr"] == pytest.approx(-10 * torch.log10(torch.tensor(error)).item(), rel=1e-5)
    assert SCORINGS["removal"].score(one, true[None], Networks())["hole_psnr"] == image.PSNR_CEILING


def test_removal_by_decomposition_counts_the_background_alone() -> None:
    true = picture(1)
    one = loaded("decompose_auto", true, None, composite=picture(3))
    made = torch.stack([true, picture(9, 0.5)])
    assert SCORINGS["removal"].score(one, made, Networks()) == {"psnr": 100.0, "ssim": pytest.approx(1.0)}


def test_decomposition() -> None:
    back, front = picture(1), picture(2, ramp())
    composite = torch.cat([rgba.flatten(rgba.recompose([back, front])), torch.ones(1, *SIZE)])
    one = loaded("decompose_auto", back, front, composite=composite)
    whole = SCORINGS["decomposition"].score(one, torch.stack([back, front]), Networks())
    assert whole["rgb_l1_0"] == pytest.approx(0, abs=1e-6) and whole["alpha_iou_5"] == pytest.approx(1)
    assert whole["recomposed_psnr"] > 60 and whole["background_psnr"] == 100
    worse = SCORINGS["decomposition"].score(one, torch.stack([back, picture(5, ramp() * 0.5)]), Networks())
    assert worse["rgb_l1_0"] > 0.05 and worse["alpha_iou_0"] < 0.9 and worse["background_psnr"] == 100
    assert {c.key for c in SCORINGS["decomposition"].columns} - {"background_lpips"} <= whole.keys()


@pytest.mark.parametrize("kind", ["generation", "completion"])
def test_clip_score_on_nine_backgrounds(kind: str) -> None:
    task = {"generation": "text_to_image", "completion": "background_to_foreground"}[kind]
    given = {} if kind == "generation" else {"background": picture(3)}
    one = loaded(task, picture(1, ramp()), prompt="a mug", **given)
    made = picture(2, ramp())[None]
    figures = SCORINGS[kind].score(one, made, COLOURS)
    from omnialpha.evaluation.metrics.backgrounds import BACKGROUNDS

    seen = torch.stack([rgba.flatten(made[0], color) for color in BACKGROUNDS.values()])
    assert figures["clip_score"] == pytest.approx(5 + float(seen.mean()), rel=1e-6)
    assert SCORINGS[kind].score(one, made, Networks()) == {}
    flat = picture(2)[None]
    assert SCORINGS[kind].score(one, flat, COLOURS)["clip_score"] == pytest.approx(
        5 + float(flat[:, :3].mean()), rel=1e-6
    )


def test_sets_are_means_over_the_ways_to_see_them() -> None:
    kind = SCORINGS["generation"]
    ones = [loaded("text_to_image", picture(k, ramp()), prompt="x") for k in range(4)]
    pairs = [kind.features(one, picture(10 + k, ramp())[None], COLOURS) for k, one in enumerate(ones)]
    assert pairs[0].keys() == {"features", "clip"} and pairs[0]["features"].shape == (9, 2, 3)
    made = of_sets(pairs, kind)
    ways = torch.stack([pair["features"] for pair in pairs])
    wanted = [image.frechet(ways[:, k, 0], ways[:, k, 1]) for k in range(9)]
    assert made["fid"] == pytest.approx(sum(wanted) / 9) == made["clip_fid"]
    assert made["kid"] is not None
    assert of_sets(pairs[:1], kind) == {"fid": None, "kid": None, "clip_fid": None}
    assert of_sets([], kind) == {"fid": None, "kid": None, "clip_fid": None}
    equal = [kind.features(one, one.truths[0][None], COLOURS) for one in ones if one.truths[0] is not None]
    assert of_sets(equal, kind)["fid"] == pytest.approx(0, abs=1e-6)


def test_without_truth_nothing_is_seen() -> None:
    assert SCORINGS["generation"].features(loaded("text_to_image", None, prompt="x"), picture(1)[None], COLOURS) == {}
    assert (
        SCORINGS["matting"].features(
            loaded("matting_auto", picture(1), composite=picture(3)), picture(1)[None], COLOURS
        )
        == {}
    )


@pytest.mark.parametrize("kind", SCORINGS.values(), ids=SCORINGS)
def test_what_is_left_out_has_a_reason(kind: Scoring) -> None:
    lacking = Networks().lacking()
    needs = {"lpips", "background_lpips", "fid", "kid", "clip_fid", "clip_score"}
    assert {column.key for column in kind.columns} & needs <= lacking.keys()
    assert all("(--" in why for name, why in lacking.items() if name in needs)


def test_the_role_is_found_among_several() -> None:
    row = loaded("decompose_auto", picture(1), picture(2, 0.5), picture(4, 0.2), composite=picture(3))
    assert row.targets == (Role.BACKGROUND, Role.FOREGROUND, Role.FOREGROUND)
    truth = row.truth(Role.FOREGROUND)
    assert truth is not None and torch.equal(truth, picture(2, 0.5))
    assert row.given(Role.TRIMAP) is None
