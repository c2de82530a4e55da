"""The instruction encoder against plain transformers and diffusers, on small random weights."""

import copy
import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel, Qwen2Tokenizer

from omnialpha.errors import InputError
from omnialpha.models.text_encoder.encoder import SHARED, Template, TextEncoder, TokenBatch
from omnialpha.models.text_encoder.tiny import SPECIAL, build_tiny_text_encoder

CORPUS = [f"remove the {color} {thing}" for color in ("red", "green", "dark") for thing in ("cat", "vase", "smoke")]
INSTRUCTIONS = ["remove the red cat", "", "split the picture into a green vase and the rest", "dark smoke"]
SIZES: list[list[tuple[int, int]]] = [[(96, 96)], [], [(64, 128), (96, 96)], [(200, 150)]]


def build(**options: Any) -> TextEncoder:
    small: dict[str, Any] = {
        "vocab_size": 340,
        "text_dim": 64,
        "text_layers": 2,
        "vision_dim": 32,
        "picture_pixels": 96 * 96,
    }
    return build_tiny_text_encoder(CORPUS, **(small | options)).eval()


@pytest.fixture(scope="module")
def text_encoder() -> TextEncoder:
    return build()


def pictures(seed: int = 0) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.rand(4, *size, generator=generator) for size in row] for row in SIZES]


def plain(text_encoder: TextEncoder, batch: TokenBatch, **positions: Tensor) -> Tensor:
    """Hidden states (B, L, D) of transformers' own model with the usual arguments."""
    model = Qwen2_5_VLModel(text_encoder.model.config).eval()
    model.load_state_dict(text_encoder.model.state_dict())
    with torch.no_grad():
        return model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            pixel_values=batch.pixel_values,
            image_grid_thw=batch.image_grid_thw,
            **positions,
        ).last_hidden_state


@torch.no_grad()
def test_encode_equals_transformers_with_three_dimensional_positions(text_encoder: TextEncoder) -> None:
    batch = text_encoder.tokenize(INSTRUCTIONS, pictures())
    text, mask = text_encoder(batch)
    rope: Any = text_encoder.model.get_rope_index
    positions, _ = rope(
        batch.input_ids,
        batch.mm_token_type_ids,
        image_grid_thw=batch.image_grid_thw,
        attention_mask=batch.attention_mask,
    )
    assert torch.equal(positions * batch.attention_mask, batch.position_ids)
    for arguments in ({"position_ids": positions}, {"mm_token_type_ids": batch.mm_token_type_ids}):
        expected = plain(text_encoder, batch, **arguments)[:, batch.prefix :]
        assert (text - expected)[mask].abs().max() < 1e-5
    flat = plain(text_encoder, batch)[:, batch.prefix :]  # what transformers does when it is not told
    differs = [(text - flat)[i][mask[i]].abs().max() > 1e-3 for i in range(len(INSTRUCTIONS))]
    assert differs == [True, False, True, True]


@torch.no_grad()
def test_last_hidden_state_is_that_of_the_full_model(text_encoder: TextEncoder) -> None:
    full = Qwen2_5_VLForConditionalGeneration(text_encoder.model.config).eval()
    full.model.load_state_dict(text_encoder.model.state_dict())
    batch = text_encoder.tokenize(INSTRUCTIONS[:1], pictures()[:1])
    tensors = {k: v for k, v in vars(batch).items() if isinstance(v, Tensor) and k != "position_ids"}
    expected = full(**tensors, output_hidden_states=True).hidden_states[-1]
    assert (text_encoder(batch)[0] - expected[:, batch.prefix :]).abs().max() < 1e-5


def test_released_tokenizer_has_a_prefix_of_64() -> None:
    folder = os.environ.get("OMNIALPHA_RELEASED_TOKENIZER")
    if folder is None:
        pytest.skip("OMNIALPHA_RELEASED_TOKENIZER names no folder of the released tokenizer")
    assert len(Qwen2Tokenizer.from_pretrained(folder)(Template.EDIT.prefix)["input_ids"]) == 64


@torch.no_grad()
def test_a_batch_equals_its_samples_one_by_one(text_encoder: TextEncoder) -> None:
    text, mask = text_encoder(text_encoder.tokenize(INSTRUCTIONS, pictures()))
    assert text.shape[:2] == mask.shape and mask.dtype == torch.bool
    assert not text[~mask].any()
    for i, row in enumerate(pictures()):
        alone, full = text_encoder(text_encoder.tokenize(INSTRUCTIONS[i : i + 1], [row]))
        assert full.all() and alone.shape[1] == mask[i].sum()
        assert (alone[0] - text[i, : alone.shape[1]]).abs().max() < 1e-5


# ---- two prompts in one row ------------------------------------------------------------------------------------------

NEGATIVES = ["", "smoke and a dark vase", "split the picture into pieces", "dark smoke"]  # the last equals its positive


class ExactNorm(torch.nn.Module):
    """Of a Qwen2_5_VLRMSNorm, whose own arithmetic is float32 whatever it is given."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.epsilon = norm.weight, norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)


def exact(text_encoder: TextEncoder) -> TextEncoder:
    norms = [(n, m) for n, m in text_encoder.model.named_modules() if type(m).__name__ == "Qwen2_5_VLRMSNorm"]
    for name, norm in norms:
        text_encoder.model.set_submodule(name, ExactNorm(norm))
    return text_encoder.double()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("rows", [[0], [1], [2], [0, 1, 2, 3]], ids=["n=1", "n=0", "n=2", "batch"])
def test_a_pair_equals_two_encodes(rows: list[int], dtype: torch.dtype, tolerance: float) -> None:
    text_encoder = exact(build()) if dtype == torch.float64 else build()
    shown = [pictures()[i] for i in rows]
    prompts, negatives = ([texts[i] for i in rows] for texts in (INSTRUCTIONS, NEGATIVES))
    weights = [torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(i), dtype=dtype) for i in (0, 1)]

    def gradients(texts: list[Tensor]) -> dict[str, Tensor]:
        text_encoder.zero_grad()
        sum((w[: len(x), : x.shape[1]] * x).sum() for w, x in zip(weights, texts, strict=True)).backward()
        return {name: p.grad for name, p in text_encoder.named_parameters() if p.grad is not None}

    separate = [text_encoder(text_encoder.tokenize(texts, shown)) for texts in (prompts, negatives)]
    pair = text_encoder(text_encoder.tokenize(prompts, shown, negatives))
    for (text, mask), (expected, wanted) in zip(pair, separate, strict=True):
        assert text.dtype == dtype and torch.equal(mask, wanted)
        assert (text - expected).abs().max() < tolerance
        assert not text[~mask].any()
    theirs, ours = gradients([text for text, _ in separate]), gradients([text for text, _ in pair])
    assert theirs.keys() == ours.keys()
    scale = max(grad.abs().max() for grad in theirs.values())
    # The vision tower's rotation goes through float32 whatever it is given.
    assert all((grad - ours[name]).abs().max() < 1e-5 * scale for name, grad in theirs.items())


@torch.no_grad()
def test_a_pair_runs_what_is_shared_once(text_encoder: TextEncoder) -> None:
    batch = text_encoder.tokenize(INSTRUCTIONS, pictures(), [""] * len(INSTRUCTIONS))
    alone, empty = (text_encoder.tokenize(texts, pictures()) for texts in (INSTRUCTIONS, [""] * len(INSTRUCTIONS)))
    assert torch.equal(batch.mm_token_type_ids.sum(1), alone.mm_token_type_ids.sum(1))
    suffix = len(text_encoder.tokenizer(text_encoder.template.suffix)["input_ids"])
    lengths = [x.attention_mask.sum(1) for x in (batch, alone, empty)]
    own = torch.tensor(
        [suffix if text else 0 for text in INSTRUCTIONS]
    )  # the second instruction is "", nothing differs
    assert torch.equal(lengths[0], lengths[1] + own) and (lengths[0] < lengths[1] + lengths[2]).all()
    calls: list[int] = []
    handle = text_encoder.model.visual.register_forward_hook(lambda module, given, made: calls.append(len(given[0])))
    text_encoder(batch)
    handle.remove()
    assert alone.pixel_values is not None and calls == [len(alone.pixel_values)]


@torch.no_grad()
def test_prompts_of_a_pair_are_split_into_tokens_as_if_alone() -> None:
    """A line break merges with the one that ends the template, so that not even the whole prefix is shared."""
    corpus = ["user\n\nremove it", "assistant\n\nremove it"] * 9
    text_encoder = build_tiny_text_encoder(corpus, 340, 64, 2, vision_dim=32, template=Template.EDIT).eval()
    prompts, negatives = ["\nremove it", "remove it"], ["", "\nremove it"]
    batch = text_encoder.tokenize(prompts, [[], []], negatives)
    assert batch.branches is not None
    assert (batch.branches == SHARED).sum(1).tolist() == [text_encoder.prefix - 1] * 2
    for (text, mask), texts in zip(text_encoder(batch), (prompts, negatives), strict=True):
        expected, wanted = text_encoder(text_encoder.tokenize(texts, [[], []]))
        assert torch.equal(mask, wanted) and (text - expected).abs().max() < 1e-5


# ---- what a prompt is made of ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_smaller_pictures_can_be_asked_of_a_loaded_text_encoder() -> None:
    """`picture_pixels` is the knob of an approximate saving: fewer picture tokens, another text."""
    text_encoder = build()
    made = []
    for pixels in (96 * 96, 64 * 64, 96 * 96):
        text_encoder.picture_pixels = pixels
        batch = text_encoder.tokenize(["remove it"], [[pictures()[0][0]]])
        made.append((int(batch.mm_token_type_ids.sum()), text_encoder(batch)[0]))
    assert [tokens for tokens, _ in made] == [9, 4, 9]
    assert torch.equal(made[0][1], made[2][1]) and made[1][1].shape[1] == made[0][1].shape[1] - 5


def test_tokens_are_prefix_slots_instruction_suffix(text_encoder: TextEncoder) -> None:
    batch = text_encoder.tokenize(INSTRUCTIONS, pictures())
    merged = 9  # a 96 px picture in tokens of 32 px
    assert batch.prefix == len(text_encoder.tokenizer(text_encoder.template.prefix)["input_ids"])
    assert batch.mm_token_type_ids.sum(1).tolist()[:2] == [merged, 0]
    shown: Any = text_encoder.tokenizer.decode(
        batch.input_ids[2, batch.prefix : batch.attention_mask[2].sum()].tolist()
    )
    assert shown.startswith("Picture 1: <|vision_start|><|image_pad|>")
    assert "<|vision_end|>Picture 2: <|vision_start|>" in shown
    assert shown.endswith(f"<|vision_end|>{INSTRUCTIONS[2]}<|im_end|>")
    assert batch.attention_mask.sum(1).max() == batch.input_ids.shape[1]
    assert (batch.attention_mask.diff() <= 0).all(), "padding is on the right"


@torch.no_grad()
def test_the_prefix_is_dropped_but_read(text_encoder: TextEncoder) -> None:
    longer = Template("<|im_start|>dark vase", text_encoder.template.picture, text_encoder.template.suffix)
    other = TextEncoder(text_encoder.model, text_encoder.tokenizer, text_encoder.processor, longer, 96 * 96)
    (short, mask), (text, _) = (x(x.tokenize(INSTRUCTIONS[:1], pictures()[:1])) for x in (text_encoder, other))
    assert other.prefix > text_encoder.prefix == 1
    assert text.shape == short.shape and mask.all()
    assert (text - short).abs().max() > 1e-3


@torch.no_grad()
def test_pictures_are_composited_on_white(text_encoder: TextEncoder) -> None:
    rgba = pictures()[0][0]
    flat = torch.cat([rgba[:3] * rgba[3] + 1 - rgba[3], torch.ones(1, 96, 96)])
    hidden = torch.cat([torch.rand(3, 96, 96), torch.zeros(1, 96, 96)])
    white = torch.ones(4, 96, 96)
    encoded = [text_encoder(text_encoder.tokenize(["smoke"], [[x]]))[0] for x in (rgba, flat, hidden, white)]
    assert torch.equal(encoded[0], encoded[1]) and torch.equal(encoded[2], encoded[3])
    assert (encoded[0] - encoded[2]).abs().max() > 1e-3


def test_gradients_reach_embeddings_and_vision_tower_in_bfloat16() -> None:
    text_encoder = build().train()
    batch = text_encoder.tokenize(INSTRUCTIONS, pictures())
    with torch.autocast("cpu", torch.bfloat16):
        text, _ = text_encoder(batch)
        (text.float() * torch.rand_like(text.float())).sum().backward()
    grads = {name: p.grad for name, p in text_encoder.named_parameters()}
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
    for name in ("language_model.embed_tokens.weight", "visual.patch_embed.proj.weight", "visual.merger.mlp.2.weight"):
        grad = grads[f"model.{name}"]
        assert grad is not None and grad.abs().max() > 0
    used = batch.input_ids[batch.attention_mask.bool() & (batch.input_ids != text_encoder.pad_id)].unique()
    embedding = grads["model.language_model.embed_tokens.weight"]
    assert embedding is not None and set(embedding.any(1).nonzero()[:, 0].tolist()) == set(used.tolist())


def settings(text_encoder: TextEncoder) -> dict[str, Any]:
    names = ("picture_pixels", "max_tokens")
    return {"template": vars(text_encoder.template)} | {name: getattr(text_encoder, name) for name in names}


def outputs(text_encoder: TextEncoder) -> Tensor:
    with torch.no_grad():
        return text_encoder(text_encoder.tokenize(INSTRUCTIONS, pictures()))[0]


def test_save_and_load_round_trip(text_encoder: TextEncoder, tmp_path: Path) -> None:
    text_encoder.save_pretrained(tmp_path)
    again = TextEncoder.from_pretrained(tmp_path, **settings(text_encoder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["processor", "text_encoder", "tokenizer"]
    assert torch.equal(outputs(again.eval()), outputs(text_encoder))
    again.save_pretrained(tmp_path)  # over what is there
    assert torch.equal(
        outputs(TextEncoder.from_pretrained(tmp_path, **settings(text_encoder)).eval()), outputs(text_encoder)
    )


def test_weights_are_saved_in_half_the_bytes(text_encoder: TextEncoder, tmp_path: Path) -> None:
    before = outputs(text_encoder)
    text_encoder.save_pretrained(tmp_path, torch.bfloat16)
    assert torch.equal(outputs(text_encoder), before), "saving leaves the text_encoder as it is"
    stored = load_file(tmp_path / "text_encoder" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert sum(tensor.numel() for tensor in stored.values()) == sum(p.numel() for p in text_encoder.parameters())
    again = TextEncoder.from_pretrained(tmp_path, **settings(text_encoder))
    for name, parameter in again.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, text_encoder.get_parameter(name).bfloat16().float())


def old_name(name: str) -> str:
    """Names of the Qwen2.5-VL checkpoints, which transformers 5 still writes and reads."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


@pytest.fixture
def released(text_encoder: TextEncoder, tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A folder in the released layout, with a head that is not tied, and the body's weights."""
    text_encoder.save_pretrained(tmp_path)
    config = copy.deepcopy(text_encoder.model.config)
    config.tie_word_embeddings = False
    full = Qwen2_5_VLForConditionalGeneration(config)
    full.save_pretrained(tmp_path / "text_encoder")
    file = tmp_path / "processor" / "preprocessor_config.json"
    settings = json.loads(file.read_text()) | {"image_processor_type": "Qwen2VLImageProcessorFast"}
    file.write_text(json.dumps(settings | {"min_pixels": 3136, "max_pixels": 12845056}))
    return tmp_path, full.state_dict()


@pytest.mark.parametrize("rename", [None, old_name, str], ids=["as saved", "published names", "present names"])
def test_a_released_checkpoint_loads_without_its_head(
    released: tuple[Path, dict[str, Tensor]], rename: Callable[[str], str] | None
) -> None:
    folder, weights = released
    if rename:
        renamed = {rename(name): tensor.clone() for name, tensor in weights.items()}
        save_file(renamed, folder / "text_encoder" / "model.safetensors", {"format": "pt"})
    text_encoder = TextEncoder.from_pretrained(folder, dtype=torch.bfloat16)
    body = text_encoder.model.state_dict()
    assert {f"model.{name}" for name in body} == weights.keys() - {"lm_head.weight"}
    assert all(torch.equal(tensor, weights[f"model.{name}"].bfloat16()) for name, tensor in body.items())
    assert text_encoder.template == Template.EDIT and text_encoder.picture_pixels == 384 * 384
    again = folder / "again"
    text_encoder.save_pretrained(again)
    copied = TextEncoder.from_pretrained(again, dtype=torch.bfloat16).model.state_dict()
    assert all(torch.equal(tensor, copied[name]) for name, tensor in body.items())
    assert text_encoder.processor.size == {"shortest_edge": 3136, "longest_edge": 12845056}


def test_a_checkpoint_that_lacks_weights_is_refused(released: tuple[Path, dict[str, Tensor]]) -> None:
    folder, weights = released
    kept = {old_name(name): tensor for name, tensor in weights.items() if "layers.1.mlp.up_proj" not in name}
    save_file(kept, folder / "text_encoder" / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 weights.*layers\.1\.mlp\.up_proj\.weight"):
        TextEncoder.from_pretrained(folder)


def test_a_folder_without_its_parts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="text_encoder"):
        TextEncoder.from_pretrained(tmp_path)


def test_long_instructions_are_refused(text_encoder: TextEncoder) -> None:
    limit = text_encoder.max_tokens
    unit = "cat" if len(text_encoder.tokenizer("cat cat")["input_ids"]) == 2 else "."
    fits = unit + f" {unit}" * (limit - 1)
    assert len(text_encoder.tokenizer(fits)["input_ids"]) == limit
    text_encoder.tokenize([fits], [[]])
    with pytest.raises(InputError, match=f"{limit + 1} tokens long, the limit is {limit}"):
        text_encoder.tokenize([f"{fits} {unit}"], [[]])


@pytest.mark.parametrize("marker", SPECIAL[1:])
def test_markers_in_an_instruction_are_refused(text_encoder: TextEncoder, marker: str) -> None:
    with pytest.raises(InputError, match="reserved marker"):
        text_encoder.tokenize([f"remove {marker} it"], [[]])


def test_remembered_prompts_are_equal_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnialpha.models.text_encoder.encoder.CACHED_ROWS", 3)
    text_encoder = build()
    first = text_encoder.tokenize(INSTRUCTIONS, pictures())
    again = text_encoder.tokenize(INSTRUCTIONS, pictures(1))
    assert torch.equal(first.input_ids, again.input_ids) and torch.equal(first.position_ids, again.position_ids)
    assert len(text_encoder._rows) <= 3


def test_default_tiny_text_encoder_is_small_reproducible_and_lossless_on_text() -> None:
    first, second = build_tiny_text_encoder(CORPUS), build_tiny_text_encoder(CORPUS)
    other = build_tiny_text_encoder(CORPUS, seed=1)
    embedding = first.model.language_model.get_parameter("embed_tokens.weight")
    body = sum(p.numel() for p in first.parameters()) - embedding.numel()
    assert 3e6 < body + 4096 * 256 < 5e6
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(embedding, other.model.language_model.get_parameter("embed_tokens.weight"))
    assert len(first.tokenizer) == embedding.shape[0] <= 4096
    strange = "Ein Häuschen 猫 \u200d🐈, 12\n\ttabs"
    assert first.tokenizer.decode(first.tokenizer(strange)["input_ids"]) == unicodedata.normalize("NFC", strange)
    assert len(first.tokenizer("remove the red cat")["input_ids"]) == 4
    assert first.tokenize(["remove it"], [[torch.rand(4, 96, 96)]]).mm_token_type_ids.sum() == 9
