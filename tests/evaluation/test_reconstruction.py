"""The reconstruction benchmark: known errors give known figures, and what is finished is never done again."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from omnialpha.data.synthetic import layers as synthetic
from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.benchmarks import BENCHMARKS, PUBLISHED, TOTAL, WEIGHTED
from omnialpha.evaluation.datasets.rgba_pictures import TASK, rgba_pictures
from omnialpha.evaluation.metrics import image
from omnialpha.evaluation.metrics.backgrounds import BACKGROUNDS
from omnialpha.evaluation.metrics.features import Features
from omnialpha.evaluation.reconstruction import as_jpeg, kind, of_autoencoder, reconstruct
from omnialpha.evaluation.reports.benchmark_report import report, summarise
from omnialpha.evaluation.reports.report import Report, Row
from omnialpha.evaluation.runner import ROWS, EvaluationSettings, Runner, SampleSet
from omnialpha.evaluation.scoring import Figures, Networks
from omnialpha.models.vae.autoencoder import Autoencoder
from omnialpha.tasks import Example, Role


class Shifted(Autoencoder):
    """Gives back what it is given, every value raised by `shift`; counts the pictures."""

    ratio = 4

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(2 * shift))
        self.seen = 0
        self.register_to_config(channels=4, z_dim=64, premultiplied=False, latents_mean=None, latents_std=None)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.seen += len(x)
        z = F.pixel_unshuffle(x * 2 - 1, self.ratio)
        return z, torch.zeros_like(z)

    def reconstruct(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(z, self.ratio) + self.shift


def mean_features(pictures: Tensor) -> Tensor:
    """A stand-in for Inception: mean colours of quarters, (B, 12)."""
    assert pictures.dtype == torch.uint8
    return F.adaptive_avg_pool2d(pictures.float(), 2).flatten(1)


FEATURES = Features("mean colours", "1", mean_features)
NETWORKS = Networks()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six soft pictures of odd sizes in two categories, and a file that is none."""
    pictures, _ = synthetic.bank(6, 32, seed=4)
    for k, pixels in enumerate(pictures):
        path = tmp_path / "in" / ("toy", "plant")[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[: 19 + k]).save(path)
    (tmp_path / "in" / "licence.txt").write_text("none of a picture")
    return tmp_path / "in"


def plain(path: Path, rgba: tuple[float, ...], side: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, len(rgba)), rgba, dtype=np.uint8)).save(path)
    return path


class Run:
    """An autoencoder on the pictures of a folder."""

    def __init__(
        self, autoencoder: Autoencoder, folder: Path, out: Path, *, size: int | None = None, batch: int = 1,
        skip_bad: bool = False, compat: str | None = None, features: Features | None = None,
    ) -> None:  # fmt: skip
        self.method = of_autoencoder(autoencoder, "m", batch)
        targets = (Role.FULL,) * (1 if autoencoder.config.channels == 4 else len(BACKGROUNDS))
        samples = [replace(sample, targets=targets) for sample in rgba_pictures(folder)]
        self.part = SampleSet(samples, kind(compat))
        settings = EvaluationSettings(size, skip_bad=skip_bad, networks=Networks(features=features))
        self.runner = Runner(out, settings, keep=False)

    def rows(self) -> Iterator[Row]:
        return self.runner.rows(self.method, self.part)

    def summary(self, rows: list[Row]) -> dict[str, Row]:
        made = summarise(BENCHMARKS["vae"], self.runner, {TASK: self.part}, [self.method], {"m": rows})
        return {row["category"]: row for row in made}

    def report(self, rows: list[Row]) -> Report:
        return report(BENCHMARKS["vae"], self.runner, {TASK: self.part}, [self.method], {"m": rows}, "cpu", "in")


def run(autoencoder: Autoencoder, folder: Path, out: Path, **settings: object) -> list[Row]:
    return list(Run(autoencoder, folder, out, **settings).rows())  # type: ignore[arg-type]


def figures(predicted: Tensor, true: Tensor, compat: str | None = None, networks: Networks = NETWORKS) -> Figures:
    """Of predictions (m, 4, H, W) for a true picture (4, H, W)."""
    size = (int(true.shape[-2]), int(true.shape[-1]))
    example = Example(TASK, (Role.FULL,), (true,), "", (Role.FULL,) * len(predicted), size, truths=(true,))
    return kind(compat).score(example, predicted, networks)


# ---- figures --------------------------------------------------------------------------------------------------------


def test_a_perfect_codec(folder: Path, tmp_path: Path) -> None:
    benchmark = Run(Shifted(), folder, tmp_path / "out", features=FEATURES)
    rows = list(benchmark.rows())
    assert [row["sample"] for row in rows] == [
        "plant/1.png",
        "plant/3.png",
        "plant/5.png",
        *(f"toy/{k}.png" for k in (0, 2, 4)),
    ]
    assert [(row["height"], row["width"]) for row in rows[:2]] == [(20, 32), (22, 32)]
    for row in rows:
        assert row["psnr"] > 90 and row["rgba_psnr"] > 90  # less than the ceiling by the rounding of x * 2 - 1
        assert row["ssim"] == pytest.approx(1, abs=1e-5) and row["alpha_mad"] < 1e-6 and row["color_error"] < 1e-6
    total = benchmark.summary(rows)[TOTAL]
    assert total["n"] == 6 and total["fid"] == pytest.approx(0, abs=1e-6) and total["kid_red"] < 0


def test_a_known_error(tmp_path: Path) -> None:
    plain(tmp_path / "in" / "a.png", (51, 51, 51, 102))  # .2 at alpha .4
    (row,) = run(Shifted(0.1), tmp_path / "in", tmp_path / "out")
    assert row["category"] == "all"
    assert row["rgba_psnr"] == pytest.approx(20, abs=1e-3)
    assert row["alpha_mad"] == pytest.approx(0.1, abs=1e-6) and row["color_error"] == pytest.approx(0.1, abs=1e-6)
    for background, value in (("black", 0.3 * 0.5 - 0.2 * 0.4), ("white", 0.3 * 0.5 + 0.5 - 0.2 * 0.4 - 0.6)):
        assert row[f"psnr_{background}"] == pytest.approx(-20 * math.log10(abs(value)), abs=1e-3)
    for metric in ("psnr", "ssim"):
        assert row[metric] == pytest.approx(np.mean([row[f"{metric}_{b}"] for b in BACKGROUNDS]))


def test_colour_that_is_nowhere_seen_has_no_error(tmp_path: Path) -> None:
    plain(tmp_path / "in" / "a.png", (51, 51, 51, 0))
    plain(tmp_path / "in" / "b.png", (51, 51, 51, 255))
    benchmark = Run(Shifted(-0.1), tmp_path / "in", tmp_path / "out")
    rows = list(benchmark.rows())
    assert rows[0]["color_error"] is None and rows[1]["color_error"] == pytest.approx(0.1)
    assert benchmark.summary(rows)[TOTAL]["color_error"] == pytest.approx(0.1)  # of those that have one


def test_the_longer_side(folder: Path, tmp_path: Path) -> None:
    rows = run(Shifted(), folder, tmp_path / "out", size=48)
    assert [(row["height"], row["width"]) for row in rows[:2]] == [(30, 48), (33, 48)]


def test_batches_change_nothing(tmp_path: Path) -> None:
    for k in range(5):
        plain(tmp_path / "in" / f"{k}.png", (40 * k, 90, 10, 50 * k), side=16 if k < 3 else 24)
    one = run(Shifted(0.05), tmp_path / "in", tmp_path / "one")
    many = run(Shifted(0.05), tmp_path / "in", tmp_path / "many", batch=4)
    assert [row["sample"] for row in many] == [f"{k}.png" for k in range(5)]
    for a, b in zip(one, many, strict=True):
        assert a["psnr"] == pytest.approx(b["psnr"]) and a["ssim"] == pytest.approx(b["ssim"], abs=2e-5)


def test_lpips_sees_composites_in_minus_one_to_one() -> None:
    class Extremes(nn.Module):
        shift = torch.zeros(1)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.minimum(a, b).amin(dim=(1, 2, 3)) + 10 * torch.maximum(a, b).amax(dim=(1, 2, 3))

    x = torch.zeros(4, 16, 16)
    made = figures(x[None], x, networks=Networks(lpips=Extremes()))  # type: ignore[arg-type]
    assert made["lpips_black"] == -11 and made["lpips_white"] == 11 and made["lpips_red"] == 9


# ---- what is published ----------------------------------------------------------------------------------------------


def test_compat_cuts_down_where_we_do_not_round() -> None:
    values = torch.tensor([60.0, 120.0, 180.0, 255.0]).view(1, 4, 1, 1) / 255
    true = values.expand(1, 4, 16, 16)
    predicted = true.clone()
    predicted[:, :3] -= 0.3 / 255  # would round to the truth
    exact, published = (figures(predicted, true[0], name) for name in (None, "alphavae"))
    assert exact["psnr"] == pytest.approx(-20 * math.log10(0.3 / 255), abs=0.01)
    assert published["psnr"] == pytest.approx(-20 * math.log10(1 / 255), abs=0.2)
    assert exact["rgba_psnr"] == published["rgba_psnr"]


def test_compat_hides_noise_in_jpeg() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.full((1, 4, 64, 64), 0.5)
    true[:, 3] = 1
    noise = torch.randn(1, 1, 64, 64, generator=generator) * 0.02  # in brightness: colour is stored at half size
    predicted = torch.cat([true[:, :3] + noise, true[:, 3:]], dim=1)
    exact, published = (figures(predicted, true[0], name) for name in (None, "alphavae"))
    assert published["psnr"] > exact["psnr"] + 1 and published["ssim"] > exact["ssim"]


def test_jpeg_is_pillows_with_its_own_settings(tmp_path: Path) -> None:
    x = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    Image.fromarray((x[0] * 255).permute(1, 2, 0).numpy().astype(np.uint8)).save(tmp_path / "x.jpg", quality=75)
    stored = np.asarray(Image.open(tmp_path / "x.jpg"))
    assert np.array_equal((as_jpeg(x)[0].permute(1, 2, 0).numpy() * 255).round(), stored)


def test_the_published_weighting(tmp_path: Path) -> None:
    for k, name in enumerate(PUBLISHED):
        plain(tmp_path / "in" / name / "a.png", (10 * k, 20, 30, 200 + k))
    plain(tmp_path / "in" / "mixed" / "b.png", (1, 2, 3, 4))
    benchmark = Run(Shifted(0.05), tmp_path / "in", tmp_path / "out")
    rows = list(benchmark.rows())
    summary = benchmark.summary(rows)
    others = np.mean([summary[name]["psnr"] for name in PUBLISHED if name != "mixed"])
    assert summary[WEIGHTED]["psnr"] == pytest.approx(0.5 * summary["mixed"]["psnr"] + 0.5 * others)
    assert summary[TOTAL]["psnr"] == pytest.approx(np.mean([row["psnr"] for row in rows]))
    assert summary[WEIGHTED]["n"] == summary[TOTAL]["n"] == 9
    (tmp_path / "in" / "toy" / "a.png").unlink()
    benchmark = Run(Shifted(0.05), tmp_path / "in", tmp_path / "out")
    assert WEIGHTED not in benchmark.summary(list(benchmark.rows()))  # not the published set


# ---- sets -----------------------------------------------------------------------------------------------------------


def test_rfid_is_of_all_pictures_of_a_background(folder: Path, tmp_path: Path) -> None:
    plain(folder / "alone" / "a.png", (10, 20, 30, 200), side=32)
    benchmark = Run(Shifted(0.05), folder, tmp_path / "out", features=FEATURES)
    rows = list(benchmark.rows())
    summary = benchmark.summary(rows)
    sets: dict[str, list[Tensor]] = {"true": [], "made": []}
    autoencoder = Shifted(0.05)
    for sample in benchmark.part.samples:
        x = sample.load(None).inputs[0][None]
        for name, picture in (("true", x), ("made", reconstruct(autoencoder, x))):
            flat = image.composites(picture)[[*BACKGROUNDS].index("cyan")]
            sets[name].append(mean_features((flat * 255).round().byte()))
    made, true = torch.cat(sets["made"]), torch.cat(sets["true"])
    assert summary[TOTAL]["fid_cyan"] == pytest.approx(image.frechet(made, true), rel=1e-4)
    assert summary[TOTAL]["kid_cyan"] == pytest.approx(image.kid(made, true), rel=1e-3)
    assert summary[TOTAL]["fid"] == pytest.approx(np.mean([summary[TOTAL][f"fid_{b}"] for b in BACKGROUNDS]))
    assert summary["alone"]["fid"] is None
    assert "one picture is no distribution" in " ".join(benchmark.report(rows).notes)


# ---- going on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2])
def test_going_on_after_a_stop_is_the_same_as_never_stopping(batch: int, folder: Path, tmp_path: Path) -> None:
    settings = {"features": FEATURES, "batch": batch}
    whole = Run(Shifted(0.05), folder, tmp_path / "whole", **settings)  # type: ignore[arg-type]
    expected = list(whole.rows())
    for k in range(1, 4):  # three stops
        rows = Run(Shifted(0.05), folder, tmp_path / "out", **settings).rows()  # type: ignore[arg-type]
        done = [next(rows) for _ in range(k)]
        rows.close()  # type: ignore[attr-defined]
        assert [row["sample"] for row in done] == [row["sample"] for row in expected[:k]]
    with (tmp_path / "out" / ROWS).open("a") as file:
        file.write('{"key": "cut off whi')
    autoencoder = Shifted(0.05)
    again = Run(autoencoder, folder, tmp_path / "out", **settings)  # type: ignore[arg-type]
    made = list(again.rows())
    assert made == expected and autoencoder.seen == 3
    assert again.summary(made) == whole.summary(expected)
    assert len((tmp_path / "out" / ROWS).read_text().splitlines()) == 6
    assert list(again.rows()) == expected and autoencoder.seen == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (Shifted(0.1), {}),
        lambda folder: (Shifted(0.05), {"size": 40}),
        lambda folder: (Shifted(0.05), {"compat": "alphavae"}),
        lambda folder: (Shifted(0.05), {"features": FEATURES}),
    ],
    ids=["model", "size", "compat", "features"],
)
def test_other_settings_have_rows_of_their_own(
    change: Callable[[Path], tuple[Shifted, dict[str, object]]], folder: Path, tmp_path: Path
) -> None:
    first = run(Shifted(0.05), folder, tmp_path / "out")
    autoencoder, settings = change(folder)
    run(autoencoder, folder, tmp_path / "out", **settings)
    assert autoencoder.seen == 6
    unchanged = Shifted(0.05)
    assert run(unchanged, folder, tmp_path / "out") == first and unchanged.seen == 0


def test_a_picture_that_changed_is_measured_again(folder: Path, tmp_path: Path) -> None:
    first = run(Shifted(0.05), folder, tmp_path / "out")
    plain(folder / "toy" / "0.png", (9, 9, 9, 99))
    autoencoder = Shifted(0.05)
    second = run(autoencoder, folder, tmp_path / "out")
    assert autoencoder.seen == 1 and [a == b for a, b in zip(first, second, strict=True)] == [True] * 3 + [
        False,
        True,
        True,
    ]


def test_features_that_were_lost_are_made_again(folder: Path, tmp_path: Path) -> None:
    first = run(Shifted(0.05), folder, tmp_path / "out", features=FEATURES)
    next((tmp_path / "out" / "features").iterdir()).unlink()
    autoencoder = Shifted(0.05)
    assert run(autoencoder, folder, tmp_path / "out", features=FEATURES) == first and autoencoder.seen == 1


# ---- bad input ------------------------------------------------------------------------------------------------------


def test_pictures_of_each_category(folder: Path) -> None:
    assert [one.key for one in BENCHMARKS["vae"].samples(str(folder), TASK, limit=1)] == ["plant/1.png", "toy/0.png"]


def test_a_picture_without_alpha(folder: Path, tmp_path: Path) -> None:
    plain(folder / "toy" / "1-flat.png", (10, 20, 30))
    with pytest.raises(InputError, match=r"1-flat\.png has no alpha channel"):
        run(Shifted(), folder, tmp_path / "out")
    assert len((tmp_path / "out" / ROWS).read_text().splitlines()) == 4  # what came before is kept


def test_bad_pictures_are_listed_if_they_may_be(folder: Path, tmp_path: Path) -> None:
    plain(folder / "toy" / "flat.png", (10, 20, 30))
    (folder / "toy" / "broken.png").write_bytes((folder / "toy" / "0.png").read_bytes()[:60])
    plain(folder / "toy" / "small.png", (1, 2, 3, 4), side=10)
    benchmark = Run(Shifted(), folder, tmp_path / "out", skip_bad=True)
    rows = list(benchmark.rows())
    assert len(rows) == 6 and set(benchmark.runner.bad["m"]) == {"toy/flat.png", "toy/broken.png", "toy/small.png"}
    assert "10x10, but needs sides of 11 px" in benchmark.runner.bad["m"]["toy/small.png"]
    made = benchmark.report(rows)
    assert made.header["n"] == "6" and sum("passed over, m: " in note for note in made.notes) == 3


def test_nothing_that_can_be_measured(tmp_path: Path) -> None:
    plain(tmp_path / "in" / "flat.png", (10, 20, 30))
    benchmark = Run(Shifted(), tmp_path / "in", tmp_path / "out", skip_bad=True)
    with pytest.raises(InputError, match="none of the 1 samples can be measured .*no alpha"):
        benchmark.report(list(benchmark.rows()))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no pictures"):
        Run(Shifted(), tmp_path / "empty", tmp_path / "out")


def test_a_model_that_answers_nan(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"m answers NaN for plant/1\.png"):
        run(Shifted(math.nan), folder, tmp_path / "out")


def test_a_protocol_that_is_not_known() -> None:
    with pytest.raises(InputError, match="compat='x'"):
        kind("x")


def test_rows_of_something_else(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ROWS).write_text(json.dumps([1, 2]) + "\n")
    with pytest.raises(InputError, match=r"rows\.jsonl, line 1, is no row"):
        run(Shifted(), folder, tmp_path / "out")


# ---- VAEs for RGB ----


class ShiftedRGB(Shifted):
    def __init__(self, shift: float = 0.0) -> None:
        super().__init__(shift)
        self.register_to_config(channels=3, z_dim=48)


def test_a_codec_for_rgb_gets_every_composite(folder: Path, tmp_path: Path) -> None:
    autoencoder = ShiftedRGB()
    rows = run(autoencoder, folder, tmp_path / "out")
    assert autoencoder.seen == len(BACKGROUNDS) * 6
    assert all(row["psnr"] > 90 and row["ssim"] > 0.999 for row in rows)
    assert not any(name in row for row in rows for name in ("rgba_psnr", "alpha_mad", "color_error"))
    white = torch.ones(1, 4, 16, 16)
    made = figures(torch.full((9, 4, 16, 16), 0.9), white[0])
    assert all(made[f"psnr_{name}"] == pytest.approx(20, abs=1e-3) for name in BACKGROUNDS)


def test_its_report_says_that_alpha_is_not_measured(folder: Path, tmp_path: Path) -> None:
    benchmark = Run(ShiftedRGB(0.1), folder, tmp_path / "out")
    made = benchmark.report(list(benchmark.rows()))
    assert "alpha" in made.skipped["alpha_mad"]
    assert any("nine times a picture" in note for note in made.notes)
    total = next(row for row in made.summary if row["category"] == TOTAL)
    assert total["psnr"] is not None and total.get("alpha_mad") is None
    case = made.cases[0].pictures
    grey = BACKGROUNDS["grey"][0]
    clear = case["true: full 1"][3] == 0
    assert float((case["m: full 1"][:3, clear] - grey - 0.1).abs().max()) < 1e-5
    made.write(tmp_path / "out")
