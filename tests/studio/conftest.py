"""A studio of a tiny model, its page, and pictures to give it."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

pytest.importorskip("gradio", reason="the studio needs gradio: pip install 'omnialpha[studio]'")

if TYPE_CHECKING:
    from omnialpha.pipeline import OmniAlpha
    from omnialpha.studio.page import StudioPage
    from omnialpha.studio.runs import Studio


@pytest.fixture
def studio(tiny_model: "OmniAlpha", tmp_path: Path) -> "Studio":
    """A studio of the tiny model."""
    from omnialpha.studio.runs import Studio

    return Studio(tmp_path / "studio", tiny_model.card, lambda: tiny_model)


@pytest.fixture
def page(studio: "Studio") -> "StudioPage":
    """Its page, not served."""
    from omnialpha.studio.page import StudioPage

    return StudioPage(studio, "tiny on cpu")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture of 16 bits with soft alpha, and colours where it is clear."""
    from omnialpha.io import write_image

    pixels = torch.rand(4, 30, 40, generator=torch.Generator().manual_seed(5))
    pixels[3, :10] = 0
    pixels[3, 20:] = 1
    write_image(tmp_path / "photo.png", pixels, bits=16)
    return tmp_path / "photo.png"
