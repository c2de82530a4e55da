"""Where the parts of a model are found, what is said of a checkpoint by its own files, and every kind of damage."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from omnialpha.errors import InputError
from omnialpha.models.checkpoints import hub
from omnialpha.models.checkpoints.card import read_shift
from omnialpha.models.checkpoints.checking import check
from omnialpha.models.checkpoints.folders import BUNDLED, Card, Defaults, Parts, resolve
from omnialpha.models.checkpoints.headers import read_header
from omnialpha.models.lora.adapters import AdapterFile
from omnialpha.models.text_encoder.encoder import Template
from omnialpha.sampling import Shift, schedule
from released import SCHEDULER, write_lora

BASE = "Qwen/Qwen-Image-Edit-2509"


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store of pulled models, and no network."""
    monkeypatch.setenv("OMNIALPHA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    return tmp_path / "home" / "models"


@pytest.fixture
def base(released_base: Path, tmp_path: Path) -> Path:
    """A copy of the base, to be changed."""
    return Path(shutil.copytree(released_base, tmp_path / "base"))


def pulled(folder: Path, hub_id: str, license: str = "") -> Path:
    """Store a folder as if it had been pulled."""
    target = hub.Ref(hub_id).folder
    shutil.copytree(folder, target)
    if license:
        hub.Record(hub_id, "main", "0" * 40, license).write(target)
    return target


# ---- parts -----------------------------------------------------------------------------------------------------


def test_a_folder_of_ours_and_the_bundled_name(tiny_model_folder: Path) -> None:
    for where, folder in ((tiny_model_folder, tiny_model_folder), ("nano", BUNDLED["nano"]), (None, BUNDLED["nano"])):
        parts = resolve(where)
        own = Card.read(folder)
        finder = folder / own.finder if own.finder else None
        assert parts == Parts(folder / "transformer", folder / "vae", folder, own, finder=finder)
        check(parts)


def test_a_diffusers_pipeline(released_base: Path) -> None:
    parts = resolve(released_base)
    assert (parts.transformer, parts.vae) == (released_base / "transformer", released_base / "vae")
    assert parts.text == released_base and not parts.adapters
    card = parts.card
    assert (card.prediction, card.target_order, card.template) == ("velocity", "released", None)
    assert (card.picture_pixels, card.sampling) == (384 * 384, {"*": Defaults(50, 4.0)})
    assert (card.grid.multiple, card.grid.picture_pixels, card.grid.sample_pixels) == (32, 1024 * 1024, 1024 * 1024)
    assert card.shift == Shift()
    check(parts)


def test_a_release_beside_its_base(released_base: Path, released_omnialpha: Path) -> None:
    parts = resolve(released_omnialpha, base=released_base)
    assert parts.vae == released_omnialpha / "rgba_vae"
    assert (parts.transformer, parts.text) == (released_base / "transformer", released_base)
    assert [(file.path, file.weight) for file in parts.adapters] == [
        (released_omnialpha / "lora" / "pytorch_lora_weights.safetensors", 1.0)
    ]
    tasks = ["text_to_image", "removal_rough", "matting_auto", "matting_text", "decompose_auto"]
    assert parts.card == replace(resolve(released_base).card, name="omnialpha", picture_pixels=0, tasks=tasks)
    with pytest.raises(InputError, match="omnialpha cannot do removal_auto, only .*decompose_auto: use --model nano"):
        parts.card.check_task("removal_auto")
    check(parts)


def test_stored_ids(released_base: Path, released_omnialpha: Path) -> None:
    release = pulled(released_omnialpha, "Longin-Yu/OmniAlpha", "strict-1.0")
    with pytest.raises(InputError, match=f"stands on {BASE}; .*: run `omnialpha pull {BASE}`, or give .* with --base"):
        resolve("Longin-Yu/OmniAlpha")
    base = pulled(released_base, BASE, "apache-2.0")
    parts = resolve("Longin-Yu/OmniAlpha")
    assert (parts.transformer.parent, parts.vae.parent) == (base, release)
    assert (parts.card.name, parts.card.license) == ("Longin-Yu/OmniAlpha", "strict-1.0 (base: apache-2.0)")
    assert parts == resolve("Longin-Yu/OmniAlpha@main", base=BASE)
    assert resolve(base=BASE) == resolve(BASE)
    assert resolve(BASE).card.name == BASE


def test_vae_and_lora_from_elsewhere(released_base: Path, released_omnialpha: Path, tmp_path: Path) -> None:
    pulled(released_omnialpha, "Longin-Yu/OmniAlpha")
    own = write_lora(tmp_path / "own", seed=7)
    stored = hub.Ref("Longin-Yu/OmniAlpha").folder
    for vae in (
        released_omnialpha,
        released_omnialpha / "rgba_vae",
        "Longin-Yu/OmniAlpha",
        "Longin-Yu/OmniAlpha:rgba_vae",
    ):
        assert resolve(released_base, vae=vae).vae.name == "rgba_vae"
    loras = [f"{own}:0.5", "Longin-Yu/OmniAlpha:lora:-1e-1", AdapterFile(path=own, weight=2.0, name="third")]
    files = resolve(released_base, lora=loras).adapters
    assert [(file.path.parent, file.weight, file.name) for file in files] == [
        (own, 0.5, "own"),
        (stored / "lora", -0.1, "lora"),
        (own, 2.0, "third"),
    ]
    for lora in ("Longin-Yu/OmniAlpha", "Longin-Yu/OmniAlpha:lora/pytorch_lora_weights.safetensors"):
        file = resolve(released_base, lora=lora).adapters[0]
        assert file.path == stored / "lora" / "pytorch_lora_weights.safetensors"


def test_a_few_step_lora_brings_its_schedule(released_base: Path, tmp_path: Path) -> None:
    own = write_lora(tmp_path / "own") / "pytorch_lora_weights.safetensors"
    card = resolve(released_base, lora=f"{own}@lightning-4").card
    assert card.sampling == {"*": Defaults(steps=4, guidance=1.0)}
    assert torch.equal(schedule(4, 900, card.shift), schedule(4, 100, Shift(fixed=math.log(3), terminal=0.0)))
    save_file(load_file(own), own, {"omnialpha": json.dumps({"steps": 6})})  # in the file's own header
    assert resolve(released_base, lora=str(own)).card.sampling == {"*": Defaults(steps=6, guidance=4.0)}
    save_file(load_file(own), own, {"omnialpha": '{"stepps": 6}'})
    with pytest.raises(InputError, match=r"sampling settings.*stepps.*did you mean 'steps'"):
        resolve(released_base, lora=str(own))


def test_every_category_of_a_card_takes_the_few_steps(tiny_model_folder: Path, tmp_path: Path) -> None:
    own = write_lora(tmp_path / "own")
    card = resolve(tiny_model_folder, lora=AdapterFile(path=own, steps=3)).card
    assert card.sampling == {"*": Defaults(3, 1.0), "generation": Defaults(3, 2.0)}


def test_what_cannot_be_found(released_base: Path, released_omnialpha: Path, tmp_path: Path, base: Path) -> None:
    def refused(words: str, *arguments: Any, **named: Any) -> None:
        with pytest.raises(InputError, match=words):
            resolve(*arguments, **named)

    refused("model 'nanoo' is neither bundled .nano. nor a folder: check the path", "nanoo")
    refused("Qwen/X is neither a folder nor a stored model: run `omnialpha pull Qwen/X`", "Qwen/X")
    refused("is a whole model: leave out the base", released_base, base=released_base)
    refused("omnialpha lacks transformer/: download or convert it again, or give", base=released_omnialpha)
    refused(
        "home holds no config.json and no vae/", released_base, vae=(tmp_path / "home").mkdir() or tmp_path / "home"
    )
    refused("LoRA .*nothing.* does not exist", released_base, lora=str(tmp_path / "nothing.safetensors"))
    refused("a/b:x is neither a folder nor a stored model: run `omnialpha pull a/b:x`", released_base, lora="a/b:x:0.5")
    (base / "model_index.json").write_text('{"_class_name": "SanaPipeline"}')
    refused("model_index.json is of a SanaPipeline: use the folder of a QwenImageEditPlusPipeline or", base)
    (base / "model_index.json").write_text("{")
    refused("model_index.json is not valid JSON", base)
    (base / "model_index.json").unlink()
    refused("has no omnialpha.json and no model_index.json: it is no model folder", base)
    shutil.rmtree(base / "processor")
    refused("base lacks processor/: download or convert it again", base)


def test_the_single_picture_pipeline(base: Path) -> None:
    (base / "model_index.json").write_text('{"_class_name": "QwenImageEditPipeline"}')
    card = resolve(base).card
    assert card.template and Template(**card.template).prefix == Template.EDIT.prefix
    assert card.template["picture"] == "<|vision_start|><|image_pad|><|vision_end|>"
    assert card.picture_pixels == 1024 * 1024


# ---- schedules -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"shift_terminal": None},
        {"base_shift": math.log(3), "max_shift": math.log(3), "shift_terminal": None},
        {"use_dynamic_shifting": False, "shift": 3.0},
        {"max_shift": 1.15, "max_image_seq_len": 4096, "shift_terminal": 0.1},
    ],
)
@pytest.mark.parametrize("tokens", [64, 4096])
def test_schedules_are_those_of_diffusers(change: dict[str, Any], tokens: int, tmp_path: Path) -> None:
    (tmp_path / "scheduler_config.json").write_text(json.dumps(SCHEDULER | change))
    shift = read_shift(tmp_path / "scheduler_config.json")
    theirs = FlowMatchEulerDiscreteScheduler.from_config(SCHEDULER | change)
    theirs.set_timesteps(sigmas=torch.linspace(1, 1 / 9, 9).tolist(), mu=shift.mu(tokens))
    assert schedule(9, tokens, shift) == pytest.approx(theirs.sigmas, abs=2e-6)


@pytest.mark.parametrize(("name", "value"), [("use_karras_sigmas", True), ("time_shift_type", "linear")])
def test_schedules_that_are_not_supported(name: str, value: Any, base: Path) -> None:
    (base / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER | {name: value}))
    with pytest.raises(InputError, match=f"scheduler_config.json has {name}={value!r}, which is not supported"):
        resolve(base)


# ---- damage ----------------------------------------------------------------------------------------------------

SHARD = "diffusion_pytorch_model-00002-of-00002.safetensors"
VAE = "diffusion_pytorch_model.safetensors"
KEY = "transformer_blocks.1.attn.to_q.weight"


def change_json(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def change_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(path)
    change(state)
    save_file(state, path)


def shard_of(folder: Path, key: str) -> Path:
    index = next(folder.glob("*.index.json"))
    return folder / json.loads(index.read_text())["weight_map"][key]


def reindex(folder: Path, key: str) -> None:
    index = next(folder.glob("*.index.json"))
    table = json.loads(index.read_text())
    table["weight_map"].pop(key)
    index.write_text(json.dumps(table))


def drop(folder: Path, key: str) -> None:
    change_tensors(shard_of(folder, key), lambda state: state.pop(key))
    reindex(folder, key)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a shard is missing": (
        lambda base: (base / "transformer" / SHARD).unlink(),
        f"transformer lacks 1 of 2 shards, the first is {SHARD}",
    ),
    "a shard is cut short": (
        lambda base: (base / "transformer" / SHARD).write_bytes((base / "transformer" / SHARD).read_bytes()[:-100]),
        rf"{SHARD} .\d+ bytes. is cut short, damaged or",
    ),
    "a shard is cut in its header": (
        lambda base: (base / "transformer" / SHARD).write_bytes((base / "transformer" / SHARD).read_bytes()[:300]),
        rf"{SHARD} .300 bytes. is cut short, damaged or no safetensors file",
    ),
    "a shard is empty": (
        lambda base: (base / "transformer" / SHARD).write_bytes(b""),
        rf"{SHARD} .0 bytes. is cut short, damaged or no safetensors file",
    ),
    "a pointer instead of a file": (
        lambda base: (base / "vae" / VAE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        rf"{VAE} .\d+ bytes. is cut short, damaged or no safetensors file",
    ),
    "the index is missing": (
        lambda base: next((base / "transformer").glob("*.index.json")).unlink(),
        "transformer has neither diffusion_pytorch_model.safetensors nor .*index.json; it holds diffusion_.*-00001-of",
    ),
    "the index is damaged": (
        lambda base: next((base / "transformer").glob("*.index.json")).write_text("{"),
        "diffusion_pytorch_model.safetensors.index.json is not valid JSON",
    ),
    "a shard lacks what the index places there": (
        lambda base: change_tensors(shard_of(base / "transformer", KEY), lambda state: state.pop(KEY)),
        f"safetensors lacks {KEY}, which .*index.json places there",
    ),
    "a weight is missing": (
        lambda base: drop(base / "transformer", KEY),
        rf"transformer lacks 1 of \d+ weights, the first is {KEY}",
    ),
    "weights of another size": (
        lambda base: change_json(base / "transformer" / "config.json", {"num_attention_heads": 4}),
        r"safetensors holds .* of shape \(32,.*\), but config.json beside it makes it \(64,",
    ),
    "more weights than the config takes": (
        lambda base: change_json(base / "transformer" / "config.json", {"num_layers": 2}),
        r"safetensors holds transformer_blocks.2.\S+ \(\d+ such\), which no part of the model takes",
    ),
    "quantised weights": (
        lambda base: change_tensors(
            shard_of(base / "transformer", KEY), lambda s: s.update({KEY: s[KEY].to(torch.float8_e4m3fn)})
        ),
        f"holds {KEY} as F8_E4M3: use the weights in bf16",
    ),
    "another transformer": (
        lambda base: change_json(base / "transformer" / "config.json", {"_class_name": "FluxTransformer2DModel"}),
        "config.json is of a FluxTransformer2DModel: use one of QwenImageTransformer2DModel",
    ),
    "a layered transformer": (
        lambda base: change_json(base / "transformer" / "config.json", {"use_additional_t_cond": True}),
        "need use_additional_t_cond=True",
    ),
    "no config": (
        lambda base: (base / "vae" / "config.json").unlink(),
        "vae/config.json is missing: download or convert the model again",
    ),
    "another VAE": (
        lambda base: change_json(base / "vae" / "config.json", {"_class_name": "AutoencoderTiny"}),
        "config.json is of a AutoencoderTiny: use one of AlphaVAE, AutoencoderKLQwenImage",
    ),
    "a VAE of another width": (
        lambda base: change_json(base / "vae" / "config.json", {"base_dim": 16}),
        r"holds encoder.conv_in.weight of shape \(8, 3, 3, 3, 3\), but config.json .* \(16, 3, 3, 3, 3\)",
    ),
    "a VAE in another format": (
        lambda base: (base / "vae" / VAE).rename(base / "vae" / "diffusion_pytorch_model.bin"),
        "vae has neither .* it holds diffusion_pytorch_model.bin",
    ),
    "a text weight is missing": (
        lambda base: drop(base / "text_encoder", "model.layers.1.mlp.up_proj.weight"),
        r"text_encoder lacks 1 of \d+ weights, the first is layers.1.mlp.up_proj.weight",
    ),
    "a picture weight of another size": (
        lambda base: change_tensors(
            shard_of(base / "text_encoder", "visual.merger.mlp.0.bias"),
            lambda state: state.update({"visual.merger.mlp.0.bias": torch.zeros(3)}),
        ),
        r"holds visual.merger.mlp.0.bias of shape \(3,\), but config.json beside it makes it \(128,\)",
    ),
    "no tokenizer": (
        lambda base: [path.unlink() for path in (base / "tokenizer").iterdir()],
        "tokenizer holds no tokenizer.json and no vocab.json",
    ),
    "no picture settings": (
        lambda base: (base / "processor" / "preprocessor_config.json").unlink(),
        "processor holds no preprocessor_config.json",
    ),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named_before_anything_is_built(damage: Callable[[Path], Any], words: str, base: Path) -> None:
    damage(base)
    with pytest.raises(InputError, match=words):
        check(resolve(base))


def test_names_by_any_version_of_transformers_are_right(base: Path) -> None:
    """transformers 4.52 and later put a `language_model` into the names."""
    folder = base / "text_encoder"
    table = json.loads((folder / "model.safetensors.index.json").read_text())
    new = {
        key: key.replace("model.", "model.language_model.").replace("visual.", "model.visual.")
        for key in table["weight_map"]
    }
    for path in folder.glob("*.safetensors"):
        save_file({new[key]: value for key, value in load_file(path).items()}, path)
    table["weight_map"] = {new[key]: name for key, name in table["weight_map"].items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    check(resolve(base))
    assert "model.language_model.layers.0.self_attn.q_proj.weight" in table["weight_map"]


def test_the_channels_of_a_vae_are_those_of_its_weights(
    released_base: Path, released_omnialpha: Path, tmp_path: Path
) -> None:
    """As the loader has it: a config.json that does not say them is no damage."""
    for source in (released_base / "vae", released_omnialpha / "rgba_vae"):
        folder = Path(shutil.copytree(source, tmp_path / source.name))
        config = json.loads((folder / "config.json").read_text())
        silent = {key: value for key, value in config.items() if not key.endswith("_channels")}
        (folder / "config.json").write_text(json.dumps(silent))
        check(resolve(released_base, vae=folder))


def test_parts_of_different_models(released_base: Path, tiny_model_folder: Path) -> None:
    words = r"released.*transformer takes 64 channels and .*vae gives 16: use parts of one model"
    with pytest.raises(InputError, match=words):
        check(resolve(released_base, vae=tiny_model_folder))
    with pytest.raises(InputError, match="transformer takes 64 channels and .*text_encoder gives 32"):
        check(replace(resolve(released_base), text=tiny_model_folder))


def test_a_damaged_lora(released_base: Path, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "own") / "pytorch_lora_weights.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(InputError, match=r"pytorch_lora_weights.safetensors .* is cut short"):
        resolve(released_base, lora=str(file))


def test_headers_are_what_safetensors_wrote(tmp_path: Path) -> None:
    state = {
        "a": torch.zeros(2, 3),
        "b": torch.zeros((), dtype=torch.bfloat16),
        "c": torch.zeros(0, 4, dtype=torch.int8),
    }
    save_file(state, tmp_path / "x.safetensors", {"k": "v"})
    header = read_header(tmp_path / "x.safetensors")
    assert {key: (entry.dtype, entry.shape) for key, entry in header.entries.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("BF16", ()),
        "c": ("I8", (0, 4)),
    }
    assert header.metadata == {"k": "v"}


# ---- cards -----------------------------------------------------------------------------------------------------


def test_a_card_is_written_whole_or_not_at_all(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Card.read(tiny_model_folder)
    card.write(tmp_path)
    before = (tmp_path / "omnialpha.json").read_bytes()

    def fail(*arguments: Any) -> None:
        raise OSError("no")

    monkeypatch.setattr("omnialpha.files.os.replace", fail)
    with pytest.raises(InputError, match="could not be written .no."):
        replace(card, name="other").write(tmp_path)
    assert (tmp_path / "omnialpha.json").read_bytes() == before
