"""Pretraining of instruction encoders: what is asked of them, that they learn, resume, and are read as a part."""

import json
import sys

import pytest
import torch

from omnialpha import config
from omnialpha.data.synthetic.scenes import compose
from omnialpha.errors import InputError
from omnialpha.models.checkpoints.folders import BUNDLED
from omnialpha.models.text_encoder.encoder import TextEncoder
from omnialpha.models.text_encoder.tiny import build_tiny_text_encoder
from omnialpha.models.text_encoder.word_vectors import word_vectors
from omnialpha.training import grounding
from omnialpha.training.grounding import GroundingLoss, GroundingObjective, GroundingRecipe
from omnialpha.training.sft_recipe import SFTRecipe
from training_runs import assert_resumes, logged, seeded

TEXT = {"vocab_size": 600, "text_dim": 32, "text_layers": 1, "heads": 2, "vision_dim": 16, "vision_depth": 1}
DATA = {"size": 32, "foregrounds": 12, "backgrounds": 4}


def reader(bank, seed=0):
    return build_tiny_text_encoder([c.text for c in bank.captions], picture_pixels=96 * 96, seed=seed, **TEXT)


def objective(bank, held_out):
    torch.manual_seed(0)
    return GroundingObjective(reader(bank), bank, held_out, GroundingLoss(), 4, 5)


def test_the_named_layer_comes_first_and_a_caption_is_worded_by_its_task(bank, held_out):
    own = objective(bank, held_out)
    logits, maps = own.places(bank, 4, seeded(3))
    scenes = compose(bank, 4, 2, (96, 96), seeded(3), apart=True)
    assert logits.shape == (4, 12, 12) and maps.shape == (4, 2, 12, 12)
    for scene, both in zip(scenes, maps, strict=True):
        for layer, seen in zip(scene.layers, both, strict=True):
            assert torch.allclose(seen, layer[3].view(12, 8, 12, 8).mean((1, 3)), atol=1e-6)
        words = grounding.instruction(scene, grounding.NAMED, seeded(0))
        assert scene.captions[0].text in words and words != scene.captions[0].text
    likeness = own.matches(bank, 6, seeded(3))
    assert likeness.shape == (6, 6) and likeness.abs().max() <= 1 + 1e-5


def test_losses_are_cross_entropies_with_their_weights(bank, held_out):
    own = objective(bank, held_out)
    made = own(0)
    made = {name: value.detach() for name, value in made.items()}
    assert float(made["loss"]) == pytest.approx(4 * float(made["place"]) + 0.3 * float(made["match"]), rel=1e-5)
    with torch.no_grad():
        for head in (own.place, own.caption):
            head.weight.zero_()
            head.bias.zero_()
        own.place.bias.fill_(-1.0)
        own.caption.bias[0] = 1.0  # every caption says the same, so a layer matches all of them
        blank = own(0)
        _, maps = own.places(bank, 4, seeded(5 * 1_000_003))
    assert float(blank["match"]) >= torch.tensor(8.0).log() - 1e-4
    generator = seeded(5 * 1_000_003)
    own.matches(bank, 8, generator)
    _, maps = own.places(bank, 4, generator)
    low = torch.tensor(-1.0)
    wanted = -(maps[:, 0].mean() * torch.sigmoid(low).log() + (1 - maps[:, 0].mean()) * torch.sigmoid(-low).log())
    assert float(blank["place"]) == pytest.approx(float(wanted), rel=1e-4)


def test_it_learns_resumes_bit_for_bit_and_measures(bank, held_out, tmp_path):
    moved = assert_resumes(lambda: objective(bank, held_out), tmp_path, validate_every=6)
    assert {name.split(".")[0] for name in moved} == {"text_encoder", "layers", "caption", "place", "sharpness"}
    for name in ("missed", "mismatched"):
        (figure,) = logged(tmp_path / "straight", name)
        assert 0 <= figure <= 1
    exported = TextEncoder.from_pretrained(tmp_path / "straight/model", picture_pixels=96 * 96)
    assert exported.model.config.text_config.hidden_size == TEXT["text_dim"]


def recipe(tmp_path, **changes):
    fit = {"output": str(tmp_path / "run"), "steps": 1, "lr": 1e-3}
    return config.build(
        GroundingRecipe, {"kind": "grounding", "fit": fit, "text_encoder": TEXT, "data": DATA} | changes
    )


def test_a_transformer_is_trained_with_the_encoder_of_a_folder_which_stays_as_it_is(tmp_path):
    made = recipe(tmp_path, words=False, batch=2).objective()
    assert made.batch == 2 and made(0)["loss"].isfinite()
    made.export(tmp_path / "text")
    tree = {
        "kind": "sft",
        "start": "nano",
        "fit": {"output": str(tmp_path / "sft"), "steps": 1, "lr": 1e-3},
        "loss": {},
        "data": DATA,
        "card": json.loads((BUNDLED["nano"] / "omnialpha.json").read_text()) | {"finder": None},
        "tasks": {"text_to_image": 1.0},
        "text_encoder": {"start": str(tmp_path / "text")},
        "train_text_encoder": False,
        "batch": 1,
        "sizes": [[32, 32]],
    }
    with pytest.raises(InputError, match="takes 192 channels and .* gives 32"):
        config.build(SFTRecipe, tree).objective()
    wide = recipe(tmp_path, words=False, batch=2, text_encoder=TEXT | {"text_dim": 192, "heads": 4}).objective()
    wide.export(tmp_path / "text")
    kept = TextEncoder.from_pretrained(tmp_path / "text").model.state_dict()
    sft = config.build(SFTRecipe, tree).objective()
    sft(0)["loss"].backward()
    named = dict(sft.named_parameters())
    assert all(p.grad is None for name, p in named.items() if name.startswith("model.text_encoder."))
    assert any(p.grad is not None and p.grad.any() for name, p in named.items() if ".transformer." in name)
    read = sft.model.text_encoder.model.state_dict()
    assert all(torch.equal(read[name], value) for name, value in kept.items())
    assert not any("text_encoder" in name for name in sft.kept())


# ---- word vectors ---------------------------------------------------------------------------------------------------


def test_words_of_one_kind_lie_near_each_other(bank):
    pytest.importorskip("wordllama")
    words = ["cat", "dog", "bottle", "glass", "violin"]
    tokenizer = build_tiny_text_encoder([" ".join(words)] * 50, **TEXT).tokenizer
    made = word_vectors(tokenizer, 48)
    assert made.shape == (len(tokenizer), 48)
    assert made.square().mean() == pytest.approx(1, rel=1e-5)
    rows = {word: made[tokenizer(" " + word)["input_ids"][-1]] for word in words}
    near = lambda a, b: float(torch.cosine_similarity(rows[a], rows[b], dim=0))  # noqa: E731
    assert near("cat", "dog") > near("cat", "violin") and near("bottle", "glass") > near("dog", "glass")
    assert not made[tokenizer("!")["input_ids"][0]].any(), "a token without letters says nothing"
    with pytest.raises(InputError, match="text_dim=300 is wider"):
        word_vectors(tokenizer, 300)


def test_without_the_package_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with pytest.raises(InputError, match=r"pip install 'omnialpha\[train\]'"):
        recipe(tmp_path).objective()
