"""Predictions in files: what is written is read, in any format, and what is missing or unlike is told of."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from omnialpha.errors import InputError
from omnialpha.evaluation.methods import predictions
from omnialpha.evaluation.methods.predictions import PREDICTIONS, PredictionRequest


def layers(count: int) -> torch.Tensor:
    return torch.rand(count, 4, 5, 7, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_written_is_read_to_8_bits(count: int, tmp_path: Path) -> None:
    made = layers(count)
    assert not predictions.exists(tmp_path, "a/b.c", count)
    predictions.write(tmp_path, "a/b.c", made)
    assert predictions.exists(tmp_path, "a/b.c", count)
    read = predictions.read(tmp_path / PREDICTIONS, "a/b.c", count, (5, 7))
    assert read.shape == made.shape and float((read - made).abs().max()) <= 0.5 / 255 + 1e-6
    assert (tmp_path / PREDICTIONS / "a" / ("b.c.png" if count == 1 else "b.c/02.png")).is_file()


def test_requests_survive_the_file(tmp_path: Path) -> None:
    asked = [
        PredictionRequest(
            "a", "matting_text", "Cut out é.", "é", "x", {"composite": ["c.jpg"]}, ["t.png"], ["foreground"]
        )
    ]
    predictions.write_requests(tmp_path, asked)
    assert predictions.read_requests(tmp_path) == {"a": asked[0]}
    (tmp_path / "samples.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="samples.jsonl, line 1, is no sample"):
        predictions.read_requests(tmp_path)


def test_a_grey_file_without_alpha_is_a_matte(tmp_path: Path) -> None:
    grey = np.arange(35, dtype=np.uint8).reshape(5, 7)
    Image.fromarray(grey).save(tmp_path / "a.png")
    read = predictions.read(tmp_path, "a", 1, (5, 7), grey_is_alpha=True)[0]
    assert torch.equal((read[3] * 255).round(), torch.from_numpy(grey).float()) and bool((read[:3] == 1).all())
    assert bool((predictions.read(tmp_path, "a", 1, (5, 7))[0][3] == 1).all())


def test_an_opaque_grey_cut_out_stays_one(tmp_path: Path) -> None:
    """A method that keeps all of a grey photograph must not be scored by its shades."""
    opaque = torch.cat([torch.linspace(0, 1, 35).view(1, 5, 7).expand(3, -1, -1), torch.ones(1, 5, 7)])
    predictions.write(tmp_path, "a", opaque[None])
    read = predictions.read(tmp_path / PREDICTIONS, "a", 1, (5, 7), grey_is_alpha=True)[0]
    assert bool((read[3] == 1).all()) and float((read - opaque).abs().max()) < 0.003


def test_formats_of_others(tmp_path: Path) -> None:
    pixels = np.full((5, 7), 100, np.uint8)
    Image.fromarray(np.dstack([pixels] * 3)).save(tmp_path / "a.jpg")
    assert predictions.read(tmp_path, "a", 1, None, True).shape == (1, 4, 5, 7)
    Image.fromarray(np.dstack([pixels, pixels // 3, pixels])).save(tmp_path / "b.webp", lossless=True)
    with pytest.raises(InputError, match=r"b.webp is a colour picture without alpha: give the matte in grey"):
        predictions.read(tmp_path, "b", 1, None, True)


def test_missing_unlike_and_damaged(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a.png is missing: make it"):
        predictions.read(tmp_path, "a", 1, (5, 7))
    predictions.write(tmp_path, "a", layers(2))
    below = tmp_path / PREDICTIONS
    with pytest.raises(InputError, match=r"00.png is 7x5 px, the truth 9x8 px: resize it"):
        predictions.read(below, "a", 2, (8, 9))
    with pytest.raises(InputError, match=r"02.png is missing"):
        predictions.read(below, "a", 3, (5, 7))
    whole = (below / "a" / "01.png").read_bytes()
    (below / "a" / "01.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"01.png is damaged or cut off"):
        predictions.read(below, "a", 2, (5, 7))
    with pytest.raises(InputError, match="holds NaN"):
        predictions.write(tmp_path, "b", layers(1) * float("nan"))


def test_a_digest_is_of_all_files(tmp_path: Path) -> None:
    assert predictions.digest(tmp_path / PREDICTIONS, "a", 2) == ""
    predictions.write(tmp_path, "a", layers(2))
    before = predictions.digest(tmp_path / PREDICTIONS, "a", 2)
    assert before and predictions.digest(tmp_path / PREDICTIONS, "a", 3) == ""
    predictions.write(tmp_path, "a", layers(2).flip(0))
    assert predictions.digest(tmp_path / PREDICTIONS, "a", 2) not in ("", before)
