"""Folders converted to ours and to diffusers': nothing is lost, nothing is half written, and diffusers reads them."""

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from omnialpha.errors import InputError
from omnialpha.models.checkpoints.convert import convert
from omnialpha.models.checkpoints.folders import Card, Parts, resolve
from omnialpha.models.lora.adapters import AdapterFile, apply, fuse
from omnialpha.models.transformer.model import MultiImageTransformer
from omnialpha.models.vae.alphavae import AlphaVAE
from released import RANK, write_lora

KEY = "transformer_blocks.1.attn.to_q"


@pytest.fixture
def release(released_base: Path, released_omnialpha: Path) -> Parts:
    """The release on its base, with its LoRA at half."""
    parts = resolve(released_omnialpha, base=released_base)
    return Parts(**vars(parts) | {"adapters": (AdapterFile(path=parts.adapters[0].path, weight=0.5),)})


def state(folder: Path) -> dict[str, Tensor]:
    """All weights of a component."""
    return {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}


def same(a: Path, b: Path) -> bool:
    first, second = state(a), state(b)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_release_becomes_one_folder_of_ours(release: Parts, tmp_path: Path) -> None:
    made = convert(release, tmp_path / "ours")
    parts = resolve(made)
    assert parts.card == release.card
    assert [(file.path.parent.parent, file.weight) for file in parts.adapters] == [(made / "adapters", 0.5)]
    assert same(parts.transformer, release.transformer) and same(parts.vae, release.vae)
    assert same(made / "text_encoder", release.text / "text_encoder")
    assert {path.name for path in made.iterdir()} == {
        *("adapters", "omnialpha.json", "processor", "text_encoder", "tokenizer", "transformer", "vae")
    }
    assert not list(tmp_path.glob(".*")), "the folder grows under another name, which is gone"


def test_unchanged_weights_take_no_room_and_settings_are_copies(release: Parts, tmp_path: Path) -> None:
    made = convert(release, tmp_path / "ours")
    for path in made.rglob("*.safetensors"):
        assert path.stat().st_nlink > 1, path
    config = made / "transformer" / "config.json"
    config.write_text("{}")  # in place
    assert json.loads((release.transformer / "config.json").read_text())["num_layers"] == 3


def test_copies_where_there_are_no_links(release: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("omnialpha.models.checkpoints.convert.os.link", refuse)
    made = convert(release, tmp_path / "ours")
    assert same(made / "transformer", release.transformer)
    assert all(path.stat().st_nlink == 1 for path in made.rglob("*.safetensors"))


def test_a_fused_lora_is_in_the_weights(release: Parts, tmp_path: Path) -> None:
    made = convert(release, tmp_path / "fused", fuse=True, dtype=torch.float32)
    assert not resolve(made).adapters and not (made / "adapters").exists()
    lora = load_file(release.adapters[0].path)
    down, up = (lora[f"transformer.{KEY}.lora_{part}.weight"] for part in "AB")
    assert down.shape[0] == RANK
    before, after = state(release.transformer), state(made / "transformer")
    assert torch.allclose(after[f"{KEY}.weight"], before[f"{KEY}.weight"].float() + 0.5 * up @ down, atol=1e-6)
    assert torch.equal(after["img_in.weight"], before["img_in.weight"].float())
    assert before.keys() == after.keys()

    kept = convert(release, tmp_path / "kept", fuse=True)
    assert {value.dtype for value in state(kept / "transformer").values()} == {torch.bfloat16}
    assert "_name_or_path" not in json.loads((kept / "transformer" / "config.json").read_text())


def test_a_fused_model_is_never_in_memory(release: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of at most the limit, each gone before the next is read; equal to the sum by the model in memory."""
    wanted = MultiImageTransformer.from_pretrained(release.transformer, torch_dtype=torch.float32)
    apply(wanted, release.adapters)
    fuse(wanted)
    expected = {key: value.bfloat16() for key, value in wanted.state_dict().items()}
    limit = 40_000
    largest = max(value.nbytes for value in expected.values())
    assert largest < limit < sum(value.nbytes for value in expected.values()) / 4
    del wanted
    monkeypatch.setattr("omnialpha.models.checkpoints.convert.SHARD", limit)
    written: list[int] = []

    def save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        assert not any(reference() is not None for reference in references), "an earlier shard is still in memory"
        references[:] = [weakref.ref(tensor) for tensor in tensors.values()]
        written.append(sum(tensor.nbytes for tensor in tensors.values()))
        save_file(tensors, path, metadata)

    references: list[Any] = []
    monkeypatch.setattr("omnialpha.models.checkpoints.convert.save_file", save)
    made = convert(release, tmp_path / "fused", fuse=True)
    after = state(made / "transformer")
    assert max(written) <= limit and len(written) > 4
    assert len(list((made / "transformer").glob("*-of-*.safetensors"))) == len(written)
    assert after.keys() == expected.keys()
    assert all(torch.equal(after[key], value) for key, value in expected.items())
    model = MultiImageTransformer.from_pretrained(made / "transformer", torch_dtype=torch.bfloat16)
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_a_kept_lora_does_what_a_fused_one_does(release: Parts, tmp_path: Path) -> None:
    def transformer(parts: Parts) -> MultiImageTransformer:
        model = MultiImageTransformer.from_pretrained(parts.transformer, torch_dtype=torch.float32)
        apply(model, parts.adapters)
        return model

    kept = transformer(resolve(convert(release, tmp_path / "kept")))
    fused = transformer(resolve(convert(release, tmp_path / "fused", fuse=True, dtype=torch.float32)))
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    one, other = (model.get_submodule(KEY)(x) for model in (kept, fused))
    assert torch.allclose(one, other, atol=1e-5)
    assert (one - x @ kept.get_submodule(KEY).base_layer.weight.T).abs().max() > 1e-2


def test_peft_settings_stay_beside_their_lora(release: Parts, tmp_path: Path) -> None:
    """alpha = 2 r in adapter_config.json doubles the adapter: without that file it would be lost."""
    folder = write_lora(tmp_path / "own")
    shutil.move(folder / "pytorch_lora_weights.safetensors", folder / "adapter_model.safetensors")
    settings = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": ["to_q"], "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    parts = Parts(**vars(release) | {"adapters": (AdapterFile(path=folder / "adapter_model.safetensors"),) * 2})
    made = resolve(convert(parts, tmp_path / "ours"))
    assert len({file.path for file in made.adapters}) == 2
    model = MultiImageTransformer.from_pretrained(made.transformer, torch_dtype=torch.float32)
    apply(model, made.adapters)
    assert set(model.get_submodule(KEY).scaling.values()) == {2.0}


def test_half_precision_a_shard_at_a_time(release: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = 2 * sum(value.numel() for value in state(release.transformer).values())
    monkeypatch.setattr("omnialpha.models.checkpoints.convert.SHARD", total // 2 + 10_000)
    made = convert(release, tmp_path / "half", dtype=torch.float16)
    before, after = state(release.transformer), state(made / "transformer")
    assert all(torch.equal(after[key], value.half()) for key, value in before.items())
    assert len(list((made / "transformer").glob("*.safetensors"))) == 2
    index = json.loads(next((made / "transformer").glob("*.index.json")).read_text())
    assert index["metadata"]["total_size"] == 2 * sum(value.numel() for value in after.values())
    assert json.loads((made / "text_encoder" / "config.json").read_text())["torch_dtype"] == "float16"
    assert {value.dtype for value in state(made / "vae").values()} == {torch.float16}
    assert Card.read(made).dtype == "float16"


# ---- diffusers -------------------------------------------------------------------------------------------------


def test_diffusers_reads_what_is_written_for_it(release: Parts, tmp_path: Path) -> None:
    made = convert(release, tmp_path / "pipeline", layout="diffusers", fuse=True)
    index = json.loads((made / "model_index.json").read_text())
    assert index["_class_name"] == "QwenImageEditPlusPipeline"
    transformer = QwenImageTransformer2DModel.from_pretrained(made, subfolder="transformer", torch_dtype=torch.float32)
    fused = state(made / "transformer")
    assert all(torch.equal(value, fused[key].float()) for key, value in transformer.state_dict().items())
    Qwen2_5_VLForConditionalGeneration.from_pretrained(made / "text_encoder")
    assert (made / "processor" / "vocab.json").is_file()
    theirs = FlowMatchEulerDiscreteScheduler.from_pretrained(made, subfolder="scheduler")
    assert (theirs.config.max_shift, theirs.config.shift_terminal, theirs.config.use_dynamic_shifting) == (
        0.9,
        0.02,
        True,
    )

    vae = AutoencoderKLQwenImage.from_pretrained(made, subfolder="vae", torch_dtype=torch.float32)
    picture = torch.rand(1, 4, 32, 48, generator=torch.Generator().manual_seed(0))
    mean = vae.encode(picture[:, :, None] * 2 - 1).latent_dist.mode()[:, :, 0]
    ours = AlphaVAE.load(release.vae)
    assert torch.allclose(mean, ours.moments(picture)[0], atol=1e-4)

    parts = resolve(made)
    assert parts.card == release.card, "our settings lie beside diffusers'"


def test_there_and_back(released_base: Path, tmp_path: Path) -> None:
    first = convert(resolve(released_base), tmp_path / "ours")
    second = convert(resolve(first), tmp_path / "theirs", layout="diffusers")
    third = convert(resolve(second), tmp_path / "again")
    for part in ("transformer", "vae", "text_encoder"):
        assert same(third / part, released_base / part)
    assert resolve(third).card == resolve(released_base).card


def test_a_folded_vae_unfolds_for_diffusers(released_base: Path, released_omnialpha: Path, tmp_path: Path) -> None:
    for source, channels in ((released_base / "vae", 3), (released_omnialpha / "rgba_vae", 4)):
        AlphaVAE.load(source).save_pretrained(tmp_path / str(channels))
        parts = resolve(released_base, vae=tmp_path / str(channels))
        made = convert(parts, tmp_path / f"pipeline-{channels}", layout="diffusers")
        theirs = AutoencoderKLQwenImage.from_pretrained(made, subfolder="vae")
        known = AutoencoderKLQwenImage.from_config({**theirs.config, "temperal_downsample": [False, True, True]})
        known.load_state_dict({key: value.float() for key, value in state(source).items()})
        picture = torch.rand(1, channels, 1, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
        one, other = (vae.encode(picture).latent_dist.mode() for vae in (theirs, known))
        assert torch.allclose(one, other, atol=1e-5) and one.std() > 1e-2
        z = torch.randn(1, 16, 1, 4, 4, generator=torch.Generator().manual_seed(2))
        assert torch.allclose(theirs.decode(z).sample, known.decode(z).sample, atol=1e-5)
        assert theirs.config.latents_std == known.config.latents_std
        assert theirs.config.input_channels == channels


@pytest.mark.parametrize("layout", ["ours", "diffusers"])
def test_what_diffusers_has_no_place_for(layout: str, release: Parts, tiny_model_folder: Path, tmp_path: Path) -> None:
    wanted = {"ours": tiny_model_folder, "diffusers": None}[layout]
    if wanted:
        made = convert(resolve(wanted), tmp_path / "tiny")
        assert Card.read(made) == Card.read(wanted) and same(made / "vae", wanted / "vae")
        return
    with pytest.raises(
        InputError, match="tiny cannot become a diffusers pipeline, as its VAE has linear_skip, premult"
    ):
        convert(resolve(tiny_model_folder), tmp_path / "no", layout="diffusers")
    with pytest.raises(InputError, match=r"as a LoRA stays beside it \(use --fuse\)"):
        convert(release, tmp_path / "no", layout="diffusers")
    assert not list(tmp_path.iterdir())


# ---- whole or not at all ---------------------------------------------------------------------------------------


def test_what_is_there_is_kept_unless_forced(release: Parts, tmp_path: Path) -> None:
    made = convert(release, tmp_path / "ours")
    (made / "mark").touch()
    with pytest.raises(InputError, match="ours exists: choose another folder, or replace it with --force"):
        convert(release, made)
    assert (made / "mark").exists()
    convert(release, made, fuse=True, force=True)
    assert not (made / "mark").exists() and not resolve(made).adapters
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").touch()
    with pytest.raises(InputError, match="photos is no model folder, so it is not replaced"):
        convert(release, tmp_path / "photos", force=True)
    (tmp_path / "empty").mkdir()
    assert (convert(release, tmp_path / "empty") / "omnialpha.json").is_file()


def test_a_folder_is_not_converted_onto_itself(release: Parts, tmp_path: Path) -> None:
    made = convert(release, tmp_path / "all" / "ours")
    for destination in (made, made.parent):
        with pytest.raises(InputError, match="which is converted: choose another folder"):
            convert(resolve(made), destination, force=True)
    assert resolve(made).adapters


FAILURES: dict[str, Callable[..., Any]] = {
    "a full disk": lambda *arguments: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    "an interruption": lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt()),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_failure_leaves_nothing(
    failure: Callable[..., Any], release: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = convert(release, tmp_path / "ours")
    before = (old / "omnialpha.json").read_bytes()
    monkeypatch.setattr("omnialpha.models.checkpoints.convert._keep_adapters", failure)
    for destination, force in ((tmp_path / "new", False), (old, True)):
        with pytest.raises((OSError, KeyboardInterrupt)):
            convert(release, destination, force=force)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
    assert (old / "omnialpha.json").read_bytes() == before


def test_what_was_written_wrong_is_not_kept(release: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:-1])

    monkeypatch.setattr("omnialpha.models.checkpoints.convert.link", cut)
    with pytest.raises(InputError, match="is cut short, damaged or"):
        convert(release, tmp_path / "ours")
    assert not list(tmp_path.iterdir())
