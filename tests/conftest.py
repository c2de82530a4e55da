"""A whole model of few, random weights in the layout of the released folders: every line of the real path runs."""

import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from omnialpha.pipeline import OmniAlpha

sys.path.insert(0, str(Path(__file__).parent))  # for `import released`: pytest's importlib mode adds no folder
os.environ["OMNIALPHA_INSTRUCTIONS_URL"] = "http://127.0.0.1:9/"  # where nobody answers: no test needs a network
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs beside it with Ctrl-C ignored

SIDE = 32  # of the largest square canvas, in pixels


def build_tiny_model(seed: int = 0) -> "OmniAlpha":
    """Sides are multiples of 16, at most 32x32 px a picture and 8 pictures a sample; 2 steps, no guidance."""
    import torch  # and all that follows is heavy: tests that need no model do not wait for it

    from omnialpha.canvas import Grid
    from omnialpha.models.checkpoints.folders import Card, Defaults
    from omnialpha.models.text_encoder.tiny import SHORT, build_tiny_text_encoder
    from omnialpha.models.transformer.model import MultiImageTransformer
    from omnialpha.models.vae.alphavae import AlphaVAE
    from omnialpha.pipeline import OmniAlpha
    from omnialpha.tasks import TASKS

    card = Card(
        name="tiny",
        license="Apache-2.0",
        grid=Grid(multiple=16, picture_pixels=SIDE * SIDE, sample_pixels=8 * SIDE * SIDE, upscale=True),
        prediction="x0",
        target_order="paper",
        template=asdict(SHORT),
        picture_pixels=SIDE * SIDE,
        max_tokens=256,
        dtype="float32",
        sampling={"*": Defaults(steps=2, guidance=1.0), "generation": Defaults(steps=3, guidance=2.0)},
    )
    corpus = [words.format(prompt="a red mug") for task in TASKS.values() for words in task.instructions]
    text_encoder = build_tiny_text_encoder(
        corpus,
        vocab_size=512,
        text_dim=32,
        text_layers=1,
        heads=2,
        vision_dim=16,
        vision_depth=1,
        picture_pixels=card.picture_pixels,
        max_tokens=card.max_tokens,
        template=SHORT,
        seed=seed,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AlphaVAE(
            base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, patch_size=4, linear_skip=True, premultiplied=True
        )
        transformer = MultiImageTransformer(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=16,
            axes_dims_rope=(4, 6, 6),
            joint_attention_dim=32,
        )
    return OmniAlpha(vae, transformer, text_encoder, card).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model, as `omnialpha.load` and `--model` take it. Read only: copy it to change it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_tiny_model().save(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_model_folder: Path) -> "OmniAlpha":
    """The tiny model, loaded from its folder."""
    from omnialpha.pipeline import OmniAlpha

    return OmniAlpha.from_folder(tiny_model_folder)


@pytest.fixture(scope="session")
def released_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen-Image-Edit-2509 as published: see `released.py`. Read only."""
    from released import write_base

    return write_base(tmp_path_factory.mktemp("released") / "base")


@pytest.fixture(scope="session")
def released_omnialpha(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OmniAlpha release, rgba_vae/ and lora/, for `released_base`: see `released.py`. Read only."""
    from released import write_release

    return write_release(tmp_path_factory.mktemp("released") / "omnialpha")


@pytest.fixture(scope="session")
def flux_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny FLUX.1-dev as published: see `flux.py`. Read only."""
    from flux import write_flux

    return write_flux(tmp_path_factory.mktemp("flux") / "base")
