"""Figures of foregrounds by hand, the limits, sides that cut a subject off, duplicates, and scorers."""

import io
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from omnialpha import rgba
from omnialpha.curation import filters
from omnialpha.curation.candidate import Rejected
from omnialpha.curation.filters import SIDES, FilterSettings, best, check, duplicates, measure, scorer
from omnialpha.errors import InputError


def shape(alpha: Tensor, seed: int = 0) -> Tensor:
    """(4, H, W) of an alpha (H, W), in blocks of colours that the seed draws."""
    blocks = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed))
    color = torch.nn.functional.interpolate(blocks[None], size=alpha.shape, mode="bicubic").clamp(0, 1)[0]
    return torch.cat([color, alpha[None]])


def disk(height: int = 200, width: int = 240, y: float = 100, x: float = 120, radius: float = 60) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return (radius + 0.5 - torch.hypot(rows - y, columns - x)).clamp(0, 1)


def test_figures_are_what_they_are_by_hand() -> None:
    picture = torch.zeros(4, 6, 8)
    picture[3, 1:5, 1:5] = 1
    picture[3, 1:5, 5] = 0.5
    picture[:3, 2, 2] = 1  # one white pixel inside of black
    facts = measure(picture)
    assert (facts["width"], facts["height"]) == (8, 6)
    assert facts["area"] == pytest.approx((16 + 2) / 48) and facts["soft"] == pytest.approx(4 / 48)
    # Solid pixels whose four neighbours are solid: (2,2), (2,3), (3,2), (3,3). Laplacians there: -4, 1, 1, 0 times 255.
    assert facts["sharpness"] == pytest.approx(255**2 * np.var([-4, 1, 1, 0]), rel=1e-6)
    assert [facts[f"cut_{side}"] for side in SIDES] == [0, 0, 0, 0]
    assert re.fullmatch("[0-9a-f]{16}", str(facts["phash"]))
    assert measure(torch.zeros(4, 6, 8))["sharpness"] == 0


@pytest.mark.parametrize("side", SIDES)
def test_a_side_that_cuts_a_subject_off_is_named(side: str) -> None:
    middle = {"top": (0, 120), "bottom": (200, 120), "left": (100, 0), "right": (100, 240)}[side]
    facts = measure(shape(disk(y=middle[0], x=middle[1])))
    assert facts[f"cut_{side}"] > 0.95  # half a disk: its whole diameter
    assert all(facts[f"cut_{other}"] == 0 for other in SIDES if other != side)
    with pytest.raises(
        Rejected, match=rf"cut off at the {side} in (0\.9\d|1\.00) of its extent there, more than 0\.05"
    ):
        check(facts, FilterSettings(min_side=100, min_sharpness=0))
    check(facts, FilterSettings(min_side=100, min_sharpness=0, allowed_cut=(side,)))


def test_what_only_touches_a_side_is_not_cut_off() -> None:
    for radius in (40, 60, 99):
        facts = measure(shape(disk(200, 240, radius, 120, radius)))  # it touches the upper side
        assert facts["cut_top"] == 0 and facts["cut_left"] == 0
    tight = disk(120, 120, 60, 60, 60)  # a crop to the subject, as collections of stickers have it
    assert all(measure(shape(tight))[f"cut_{side}"] == 0 for side in SIDES)
    faint = disk(y=0) * 0.4
    assert measure(shape(faint))["cut_top"] == 0


def test_a_limb_that_runs_out_of_the_picture_is_cut_off() -> None:
    alpha = disk()
    alpha[90:106, 170:] = 1  # an arm of 16 px, of a body 120 px high
    facts = measure(shape(alpha))
    assert facts["cut_right"] == pytest.approx(16 / 120, abs=0.01)
    slanted = disk()
    for row in range(140, 200):
        slanted[row, row - 60 : row - 44] = 1  # a leg aslant
    assert measure(shape(slanted))["cut_bottom"] > 0.1


LIMITS = {
    "empty": (torch.zeros(200, 240), {}, "it is empty"),
    "opaque": (torch.ones(200, 240), {}, "it is opaque everywhere"),
    "small": (disk(), {"min_side": 201}, "it is 240x200 px, its shorter side below 201 px."),
    "long": (disk(), {"max_ratio": 1.1}, "it is 240x200 px, 1.20 to 1, more than 1.1."),
    "little": (disk(radius=5), {"min_area": 0.01}, "it covers 0.00"),
    "much": (disk(), {"max_area": 0.2}, "of the picture, more than 0.2."),
    "blurred": (disk(), {"min_sharpness": 1e6}, "less than 1e+06."),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_name_the_figure(name: str) -> None:
    alpha, changes, message = LIMITS[name]
    settings: dict[str, Any] = {"min_side": 100, "min_sharpness": 0.0} | changes
    with pytest.raises(Rejected, match=re.escape(message)):
        check(measure(shape(alpha)), FilterSettings(**settings))
    check(measure(shape(disk())), FilterSettings(min_side=100, min_sharpness=0))


def test_blur_lowers_the_sharpness() -> None:
    noise = torch.cat([torch.rand(3, 200, 240, generator=torch.Generator().manual_seed(1)), disk()[None]])
    blurred = noise.clone()
    blurred[:3] = torch.nn.functional.avg_pool2d(noise[None, :3], 5, 1, 2)[0]
    assert measure(noise)["sharpness"] > 20 * float(measure(blurred)["sharpness"]) > 0  # type: ignore[operator]


def test_settings_are_checked() -> None:
    for changes, message in [
        ({"allowed_cut": ("down",)}, "'down': use some of top"),
        ({"min_area": 0.9, "max_area": 0.1}, "min_area=0.9, max_area=0.1"),
        ({"keep": -1}, "keep=-1"),
    ]:
        with pytest.raises(InputError, match=message):
            FilterSettings(**changes)  # type: ignore[arg-type]


# ---- duplicates -----------------------------------------------------------------------------------------------------


def reencoded(picture: Tensor, quality: int) -> Tensor:
    """Its colours over white by JPEG, its alpha as it was."""
    file = io.BytesIO()
    Image.fromarray((rgba.flatten(picture) * 255).round().byte().permute(1, 2, 0).numpy()).save(
        file, "JPEG", quality=quality
    )
    color = torch.from_numpy(np.asarray(Image.open(file)) / np.float32(255)).permute(2, 0, 1)
    return torch.cat([color, picture[3:]])


def test_copies_are_found_and_distinct_pictures_are_not() -> None:
    originals = {f"o{seed}": shape(disk(radius=50 + 2 * seed), seed) for seed in range(12)}
    padded = torch.zeros(4, 400, 500)
    padded[:, 50:250, 70:310] = originals["o2"]
    copies = {
        "half": rgba.resize(originals["o0"], (100, 120)),
        "jpeg": reencoded(originals["o1"], 80),
        "padded": padded,
        "larger": rgba.resize(originals["o3"], (300, 360)),
    }
    facts = {name: measure(picture) for name, picture in (originals | copies).items()}
    # Without scores the picture of the most pixels stays, so the larger copies do.
    assert duplicates(facts) == {"half": "o0", "o1": "jpeg", "o2": "padded", "o3": "larger"}
    expected = {"o0": "half", "o1": "jpeg", "padded": "o2", "o3": "larger"}
    assert duplicates(facts, scores={"half": 9, "o0": 3, "o2": 5, "padded": 4}) == expected
    assert duplicates(facts, distance=-1) == {}


def of(*hashes: int) -> dict[str, dict[str, Any]]:
    return {f"n{k:05}": {"phash": f"{value:016x}", "width": 9, "height": 9} for k, value in enumerate(hashes)}


def test_duplicates_are_of_a_kept_picture_within_the_distance() -> None:
    # Each differs by 3 bits from the one before: the second falls to the first; the third is 6 away from it.
    assert duplicates(of(0, 0b111, 0b111111)) == {"n00001": "n00000"}
    assert duplicates(of(0, 0b11111)) == {} and duplicates(of(0, 0b1111)) == {"n00001": "n00000"}
    assert duplicates(of(0, 2**63 + 1)) == {"n00001": "n00000"} and duplicates({}) == {}
    assert duplicates(of(7, 7), scores={"n00001": 1.0}) == {"n00000": "n00001"}


def test_20000_pictures_take_seconds() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64).tolist()
    hashes[19_999] = hashes[5] ^ 0b101
    start = time.perf_counter()
    assert duplicates(of(*hashes)) == {"n19999": "n00005"}
    assert time.perf_counter() - start < 10


def test_the_best_are_kept_and_ties_go_by_id() -> None:
    assert best({"a": 1, "c": 2, "b": 2, "d": 0}, 3) == ["b", "c", "a"]


# ---- scorers --------------------------------------------------------------------------------------------------------


def mean_red(picture: Tensor) -> float:
    assert picture.shape[0] == 3
    return float(picture[0].mean())


def nothing(picture: Tensor) -> float:
    return float("nan")


def test_a_function_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "mean_red", mean_red, raising=False)
    monkeypatch.setattr(filters, "nothing", nothing, raising=False)
    score = scorer(FilterSettings(aesthetic="omnialpha.curation.filters:mean_red"))
    assert score and score(torch.full((3, 4, 4), 0.25)) == 0.25
    assert scorer(FilterSettings()) is None
    broken = scorer(FilterSettings(aesthetic="omnialpha.curation.filters:nothing"))
    assert broken
    with pytest.raises(InputError, match="answers nan: it must be a finite number"):
        broken(torch.zeros(3, 4, 4))
    for name in ("omnialpha.nowhere:f", "omnialpha.curation.filters:none", "omnialpha.curation.filters:SIDES", "x"):
        with pytest.raises(InputError, match=f"'{name}' is no file and cannot be imported"):
            scorer(FilterSettings(aesthetic=name))


class FakeClip:
    """Embeds a picture as its mean colour, 768 numbers long."""

    def __init__(self, width: int = 768) -> None:
        self.model = type("M", (), {"config": type("C", (), {"projection_dim": width})})

    def features(self, pictures: Tensor) -> Tensor:
        made = torch.zeros(len(pictures), 768)
        made[:, :3] = pictures.mean((2, 3)) * 10  # not of unit length
        return made


def head() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for key, before, after in zip(filters.LAION_KEYS, filters.LAION[:-1], filters.LAION[1:], strict=True):
        weights[f"layers.{key}.weight"] = torch.randn(after, before, generator=generator) / before**0.5
        weights[f"layers.{key}.bias"] = torch.randn(after, generator=generator)
    return weights


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_laions_predictor_is_five_linear_layers_on_the_unit_vector(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    from omnialpha.evaluation.metrics import clip

    path, weights = tmp_path / f"head{suffix}", head()
    torch.save(weights, path) if suffix == ".pth" else save_file(weights, path)
    monkeypatch.setattr(clip.Clip, "load", lambda folder, device="cpu": FakeClip())
    score = scorer(FilterSettings(aesthetic=str(path), clip="clip"))
    assert score
    picture = torch.tensor([0.3, 0.0, 0.4])[:, None, None].expand(3, 5, 5)
    value = np.zeros(768)
    value[:3] = 0.6, 0.0, 0.8  # (.3, 0, .4) at unit length
    for key in (0, 2, 4, 6, 7):
        value = weights[f"layers.{key}.weight"].numpy().astype(float) @ value + weights[f"layers.{key}.bias"].numpy()
    assert score(picture) == pytest.approx(float(value[0]), rel=1e-6)
    monkeypatch.setattr(clip.Clip, "load", lambda folder, device="cpu": FakeClip(512))
    with pytest.raises(InputError, match="is a CLIP of 512 numbers, the predictor needs 768"):
        scorer(FilterSettings(aesthetic=str(path), clip="clip"))
    with pytest.raises(InputError, match="clip is empty"):
        scorer(FilterSettings(aesthetic=str(path)))


def test_other_files_are_no_predictor(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"no weights")
    torch.save({"layers.0.weight": torch.zeros(2, 2)}, tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        with pytest.raises(InputError, match=f"{name} holds no predictor of aesthetics"):
            scorer(FilterSettings(aesthetic=str(tmp_path / name), clip="clip"))


def test_a_real_clip_folder_below_the_predictor(tmp_path: Path) -> None:
    from clip_folder import write_clip_folder

    torch.save(head(), tmp_path / "head.pth")
    folder = write_clip_folder(tmp_path / "clip")
    with pytest.raises(InputError, match="is a CLIP of 12 numbers"):
        scorer(FilterSettings(aesthetic=str(tmp_path / "head.pth"), clip=str(folder)))
