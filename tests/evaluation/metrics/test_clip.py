"""CLIP scores and CLIP-FID's features against transformers' own model and against their definitions."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from clip_folder import PREPROCESSOR, SIDE, WIDTH, write_clip_folder
from omnialpha.errors import InputError
from omnialpha.evaluation.metrics import image
from omnialpha.evaluation.metrics.clip import Clip

TEXTS = ["a glass of red wine", "a small green parrot on a branch", "soft edges"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip_folder(tmp_path_factory.mktemp("clip") / "clip-tiny")


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return Clip.load(folder)


def pictures(channels: int = 3, size: tuple[int, int] = (40, 26), seed: int = 0) -> Tensor:
    """Three pictures of 8-bit values."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, channels, *size), generator=generator) / 255


def preprocessed(x: Tensor) -> Tensor:
    """What CLIP sees: the shorter side to SIDE by Pillow's bicubic filter, the centre, then mean and deviation."""
    made = []
    for array in (x * 255).round().byte().permute(0, 2, 3, 1).numpy():
        picture = Image.fromarray(array)
        scale = SIDE / min(picture.size)
        small = picture.resize((int(picture.width * scale), int(picture.height * scale)), Image.Resampling.BICUBIC)
        left, top = (small.width - SIDE) // 2, (small.height - SIDE) // 2
        made.append(np.asarray(small.crop((left, top, left + SIDE, top + SIDE))))
    mean, deviation = (torch.tensor(PREPROCESSOR[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    return (torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2) / 255 - mean) / deviation


@pytest.mark.parametrize("size", [(40, 26), (16, 16), (9, 31)])
def test_scores_are_those_of_transformers(folder: Path, clip: Clip, size: tuple[int, int]) -> None:
    x = pictures(size=size)
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    with torch.no_grad():
        told = model(**tokenizer(TEXTS, padding=True, return_tensors="pt"), pixel_values=preprocessed(x))
    scores = clip.score(x, TEXTS)
    assert scores.dtype == torch.float64 and scores.shape == (3,)
    expected = (told.logits_per_image / model.logit_scale.exp()).diagonal()
    assert torch.allclose(scores, expected.double(), atol=1e-6)
    assert float(scores.std()) > 0.01  # else any pairing would do


def test_a_long_text_is_cut(clip: Clip) -> None:
    words = "a glass of red wine " * 40
    assert clip.limit == 77
    cut = clip.embed_texts([words, words + "and a parrot"])
    assert torch.equal(cut[0], cut[1])
    kept = clip.tokenizer(words, verbose=False)["input_ids"][: clip.limit - 1] + [clip.tokenizer.eos_token_id]
    with torch.no_grad():
        pooled = clip.model.text_model(torch.tensor([kept])).pooler_output
    assert torch.allclose(cut[0], clip.model.text_projection(pooled)[0], atol=1e-6)


def test_features_are_the_projected_embeddings(folder: Path, clip: Clip) -> None:
    x = pictures()
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        pooled = model.vision_model(pixel_values=preprocessed(x)).pooler_output
    made = clip.features(x)
    assert made.shape == (3, WIDTH) and torch.allclose(made, model.visual_projection(pooled), atol=1e-5)
    assert not torch.allclose(made.norm(dim=1), torch.ones(3), atol=0.1)  # lengths count in CLIP-FID
    assert image.frechet(made, made) == pytest.approx(0, abs=1e-6)
    assert image.frechet(made, clip.features(pictures(seed=1))) > 0.01


def test_the_identity_is_of_weights_words_and_resizing(folder: Path, clip: Clip, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other name")
    assert Clip.load(other).identity == clip.identity == clip.features.identity
    (other / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | {"crop_size": SIDE - 4}))
    assert Clip.load(other).identity != clip.identity
    assert clip.name == "clip-tiny" and clip.features.name == "clip-tiny (CLIP)"


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.json", json.dumps({"model_type": "t5"}), "of a t5"),
        ("config.json", "{}", "no folder of a CLIP model"),
        ("preprocessor_config.json", None, "preprocessor_config.json"),
        ("model.safetensors", None, "no folder of a CLIP model"),
        ("model.safetensors", b"nothing", "no folder of a CLIP model"),
        ("vocab.json", None, "no folder of a CLIP model"),
    ],
)
def test_a_folder_that_is_no_clip(
    folder: Path, tmp_path: Path, file: str, content: str | bytes | None, reason: str
) -> None:
    bad = shutil.copytree(folder, tmp_path / "bad")
    (bad / file).unlink()
    if content is not None:
        (bad / file).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match=reason):
        Clip.load(bad)
    with pytest.raises(InputError, match="there is no such folder"):
        Clip.load(tmp_path / "none")
