"""The released weights through our one path and through diffusers' pipeline: the same numbers from the same noise."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as published
from PIL import Image
from torch import Tensor

from omnialpha.models.checkpoints.folders import resolve
from omnialpha.models.text_encoder.encoder import Template, TextEncoder
from omnialpha.models.transformer.model import MultiImageTransformer
from omnialpha.models.vae.alphavae import AlphaVAE, opaque_initialization
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import TASKS, Example
from reference import published_pipeline
from released import write_base, write_transformer

SIZES = {"square": (96, 96), "wide": (64, 160), "tall": (176, 48), "odd": (75, 113)}
STEPS, GUIDANCE, SEED = 3, 4.0, 7


def load_ours(folder: Path) -> OmniAlpha:
    """A released folder as our model, its RGB autoencoder widened; sides of odd numbers of tokens are allowed."""
    parts = resolve(folder)
    model = OmniAlpha(
        opaque_initialization(AlphaVAE.load(parts.vae)),
        MultiImageTransformer.from_pretrained(parts.transformer, torch_dtype=torch.float32),
        TextEncoder.from_pretrained(parts.text, picture_pixels=parts.card.picture_pixels),
        replace(parts.card, grid=replace(parts.card.grid, multiple=16)),
    )
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def ours(released_base: Path) -> OmniAlpha:
    return load_ours(released_base)


@pytest.fixture(scope="module")
def theirs(released_base: Path) -> Any:
    return published_pipeline(released_base)


def opaque(size: tuple[int, int], seed: int) -> Tensor:
    """(4, H, W) of smooth colours in whole 8-bit values: files hold no others."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 5, generator=generator)
    rgb = torch.nn.functional.interpolate(coarse, size, mode="bicubic")[0].clamp(0, 1)
    return torch.cat([rgb.mul(255).round() / 255, torch.ones(1, *size)])


def example(n: int, size: tuple[int, int], m: int = 1) -> Example:
    if n == 2:
        grey = opaque(size, 2)[:1].expand(3, -1, -1)
        return TASKS["removal_precise"].example(image=opaque(size, 1), precise=torch.cat([grey, torch.ones(1, *size)]))
    if m == 2:
        return TASKS["decompose_auto"].example(image=opaque(size, 1), layers=m)
    return TASKS["matting_auto"].example(image=opaque(size, 1))


def as_image(picture: Tensor) -> Image.Image:
    return Image.fromarray(picture[:3].mul(255).round().byte().permute(1, 2, 0).numpy())


def conditioned(image: Image.Image) -> Image.Image:
    """At the size at which the published pipeline shows a picture to its text encoder."""
    size = published.calculate_dimensions(published.CONDITION_IMAGE_SIZE, image.width / image.height)
    return image.resize(size, Image.Resampling.LANCZOS)


def run_published(
    pipeline: Any, model: OmniAlpha, sample: Example, noise: Tensor, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Tensor], Tensor]:
    """Latents after each step, and the picture (3, H, W) in [0, 1], of the published pipeline.

    It enlarges every picture to a megapixel, and to multiples of 32; here it leaves them at the size of our canvas.
    """
    canvas = model.canvas(sample)
    height, width = canvas.size
    real = published.calculate_dimensions

    def dimensions(area: int, ratio: float) -> tuple[int, int]:
        return (width, height) if area == published.VAE_IMAGE_SIZE else real(area, ratio)

    monkeypatch.setattr(published, "calculate_dimensions", dimensions)
    steps: list[Tensor] = []

    def keep(_: Any, index: int, time: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(tensors["latents"])
        return {}

    made = pipeline(
        image=[as_image(canvas.fit(picture)) for picture in sample.inputs],
        prompt=sample.instruction,
        negative_prompt="",
        true_cfg_scale=GUIDANCE,
        height=height,
        width=width,
        num_inference_steps=STEPS,
        latents=noise,
        output_type="pt",
        callback_on_step_end=keep,
    )
    return steps, made.images[0]


def compare(model: OmniAlpha, pipeline: Any, sample: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Tensor] = []
    conditions = []
    noise = model.noise(model.condition([sample]), SEED)
    model.run(
        [sample],
        seed=SEED,
        steps=STEPS,
        guidance=GUIDANCE,
        on_step=lambda step, condition: (steps.append(step.x), conditions.append(condition)),
    )
    expected, image = run_published(pipeline, model, sample, noise, monkeypatch)
    assert len(steps) == len(expected) == STEPS
    assert (expected[-1] - noise).abs().max() > 0.1
    for made, wanted in zip(steps, expected, strict=True):
        assert made.shape == wanted.shape and (made - wanted).abs().max() <= 1e-4
    picture = model.pictures(steps[-1], conditions[-1])[0][0]
    assert image.std() > 0.01 and (picture[:3] - image).abs().max() <= 1e-4
    assert (picture[3] == 1).all()


@torch.no_grad()
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_equals_the_published_pipeline(
    ours: OmniAlpha, theirs: Any, n: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(ours, theirs, example(n, size), monkeypatch)


@torch.no_grad()
def test_equals_the_published_pipeline_with_inputs_at_time_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen-Image-Edit-2511."""
    folder = write_base(tmp_path, zero_cond_t=True)
    model = load_ours(folder)
    assert model.transformer.config.zero_cond_t is True
    compare(model, published_pipeline(folder), example(2, SIZES["odd"]), monkeypatch)


@torch.no_grad()
@pytest.mark.parametrize("zero_cond_t", [False, True])
def test_two_targets_equal_the_stock_transformer(
    ours: OmniAlpha, theirs: Any, zero_cond_t: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the released order: targets first, each a picture of its own, and with zero_cond_t all of them at time t."""
    sample, t = example(1, SIZES["odd"], m=2), torch.tensor([0.6])
    model, stock = ours, theirs.transformer
    if zero_cond_t:
        folder = write_transformer(tmp_path, zero_cond_t=True)
        model = OmniAlpha(ours.vae, MultiImageTransformer.from_pretrained(folder), ours.text_encoder, ours.card).eval()
        stock = type(stock).from_pretrained(folder)
    cond = model.condition([sample])
    noise = model.noise(cond, SEED)
    height, width = model.canvas(sample).size
    one = (1, height // 16, width // 16)
    shapes = [[one, one, one]]  # two targets, one input
    if zero_cond_t:  # it takes all after the first picture for inputs: give it the targets as one, placed as two
        place = stock.pos_embed.forward
        monkeypatch.setattr(stock.pos_embed, "forward", lambda _, **rest: place([[one, one, one]], **rest))
        shapes = [[(2, *one[1:]), one]]
    fitted = model.canvas(sample).fit(sample.inputs[0])
    text, mask = theirs.encode_prompt(sample.instruction, [conditioned(as_image(fitted))], "cpu")
    latents = theirs._encode_vae_image(2 * fitted[None, :3, None] - 1, None)
    inputs = theirs._pack_latents(latents, 1, 16, height // 8, width // 8)
    expected = stock(torch.cat([noise, inputs], dim=1), text, mask, t, shapes).sample[:, : noise.shape[1]]
    made = model.velocity(noise, t, cond)
    assert made.shape == expected.shape == (1, 2 * one[1] * one[2], 64)
    assert (made - expected).abs().max() <= 1e-4
    first, second = made.chunk(2, dim=1)
    assert (first - second).abs().max() > 0.1


# ---- the text alone --------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[], [(96, 96)], [(300, 200), (64, 90)]], ids=["n=0", "n=1", "n=2"])
def test_texts_equal_those_of_the_published_pipeline(
    ours: OmniAlpha, theirs: Any, sizes: list[tuple[int, int]]
) -> None:
    """One by one and as a pair: the last hidden state after the template's prefix, positions in three dimensions."""
    pictures = [opaque(size, seed) for seed, size in enumerate(sizes)]
    images = [as_image(picture) for picture in pictures]
    text_encoder, prompts = ours.text_encoder, ("remove the red cat", "")
    assert theirs.prompt_template_encode == Template.EDIT.prefix + "{}" + Template.EDIT.suffix
    pair = text_encoder(text_encoder.tokenize(prompts[:1], [pictures], prompts[1:]))
    for prompt, (made, _) in zip(prompts, pair, strict=True):
        alone, _ = text_encoder(text_encoder.tokenize([prompt], [pictures]))
        expected, _ = theirs._get_qwen_prompt_embeds(prompt, [conditioned(i) for i in images] or None, "cpu")
        assert expected.shape == made.shape == alone.shape
        assert expected.shape[1] > 170 * len(sizes)  # about 14 x 14 tokens a picture
        assert (made - expected).abs().max() <= 3e-5 and (alone - expected).abs().max() <= 3e-5
