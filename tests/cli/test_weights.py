"""`omnialpha pull` and `omnialpha convert` as they speak: the licence before, one line or one JSON object after."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from hub_server import COMMIT, ID, Hub, serve
from omnialpha.cli import weights
from omnialpha.cli.options import Options
from omnialpha.errors import InputError
from omnialpha.models.checkpoints import hub
from omnialpha.models.checkpoints.folders import resolve

FILES = {"config.json": b"{}", "x.safetensors": bytes(3_000_000)}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("OMNIALPHA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # as CI sets it; read on import
    for name in hub.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    state = Hub(FILES)
    with serve(state) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("OMNIALPHA_INSTRUCTIONS_URL", f"{address}/cdn/demo.py")  # never the release's own
        yield state


def test_the_licence_and_the_size_are_shown(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    weights.pull(ID, Options(), yes=True)
    out, err = capsys.readouterr()
    folder = hub.Ref(ID).folder
    page = f"{hub.endpoint()}/{ID}"
    assert err.splitlines() == [
        f"{ID} (main), 3.0 MB, all of it to download",
        f"licence: apache-2.0, see {page}",
        f"into {folder}",
    ]
    assert out == f"{ID} is in {folder}\n"
    weights.pull(ID, Options())  # nobody is asked about what is here
    assert capsys.readouterr().err == ""


def test_one_json_object(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    weights.pull(ID, Options(quiet=True, json=True), yes=True)
    out, err = capsys.readouterr()
    assert err == ""
    made = json.loads(out)
    assert made.pop("seconds") >= 0
    assert made == {
        "id": ID,
        "revision": "main",
        "folder": str(hub.Ref(ID).folder),
        "commit": COMMIT,
        "license": "apache-2.0",
        "downloaded": 3_000_002,
        "notes": [],
    }


@pytest.mark.parametrize(("answer", "stored"), [(True, True), (False, False)])
def test_the_question(answer: bool, stored: bool, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("typer.confirm", lambda question, err: answer)
    if stored:
        weights.pull(ID, Options())
    else:
        with pytest.raises(InputError, match="its licence, apache-2.0, was not agreed to"):
            weights.pull(ID, Options())
    assert (hub.Ref(ID).folder / "x.safetensors").is_file() == stored


def test_nobody_to_ask(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False))
    with pytest.raises(InputError, match="agree with --yes"):
        weights.pull(ID, Options())
    assert not server.gets("config.json")


def test_a_release_names_its_base(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    server.id = "Longin-Yu/OmniAlpha"
    server.files = {"rgba_vae/config.json": b"{}", "lora/pytorch_lora_weights.safetensors": b"x", "other.json": b"{}"}
    weights.pull("Longin-Yu/OmniAlpha", Options(), yes=True)
    assert "run `omnialpha pull Qwen/Qwen-Image-Edit-2509` too" in capsys.readouterr().err
    folder = hub.Ref("Longin-Yu/OmniAlpha").folder
    assert not (folder / "other.json").exists() and (folder / "rgba_vae" / "config.json").is_file()


def test_a_release_brings_its_texts(server: Hub, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Pulled with the weights; where they cannot be had the weights stay, and one note says so."""
    server.id, hub_id = "Longin-Yu/OmniAlpha", "Longin-Yu/OmniAlpha"
    names = ("t2i", "ObjectClear", "automatting", "refmatting", "layerdecompose")
    demo = "X = {" + ", ".join(f"{name!r}: T(value={name!r}, fixed_prompt='Do {name}.')" for name in names) + "}"
    server.files = {"lora/pytorch_lora_weights.safetensors": b"x"}
    stored = hub.Ref(hub_id).folder / "instructions.json"

    server.files["demo.py"] = b"<html>"
    weights.pull(hub_id, Options(), yes=True)
    said = capsys.readouterr().err
    assert said.count("our own wording") == said.count("--instructions FILE") == 1 and not stored.exists()

    server.files["demo.py"] = demo.encode()
    weights.pull(hub_id, Options(), yes=True)  # the weights are here, so that only the texts are asked for
    assert "our own wording" not in capsys.readouterr().err
    texts = json.loads(stored.read_text())
    assert texts["removal_rough"] == "Do ObjectClear." and texts["text_to_image"] == "Do t2i. {prompt}"
    assert len(texts) == 5 and not (stored.parent / "demo.py").exists()

    (tmp_path / "own.json").write_text('{"matting_auto": "Mine."}')
    weights.pull(hub_id, Options(instructions=tmp_path / "own.json"), yes=True)
    assert json.loads(stored.read_text()) == {"matting_auto": "Mine."}


def test_alphavae_names_its_base_and_takes_what_is_needed(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    server.id = "o0o0o00o0/AlphaVAE"
    lora = "finetune_VAE/finetune_diffusion/pytorch_lora_weights.safetensors"
    needed = {"finetune_VAE/config.json", "finetune_VAE/diffusion_pytorch_model.safetensors", lora}
    server.files = dict.fromkeys([*needed, "later/diffusion_pytorch_model.safetensors"], b"x")
    weights.pull(server.id, Options(), yes=True)
    said = capsys.readouterr().err
    assert "run `omnialpha pull black-forest-labs/FLUX.1-dev` too" in said and "our own wording" not in said
    folder = hub.Ref(server.id).folder
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {name for name in found if not name.startswith(".")} - {"pull.json"} == needed


@pytest.mark.parametrize("text", ["nano", "no id", "a/b/c"])
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(InputError, match=f"'{text}' is no hub id: write owner/name, owner/name@revision or"):
        weights.pull(text, Options())


def test_an_interruption_says_what_is_kept(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.hf_hub_download", stop)
    with pytest.raises(KeyboardInterrupt, match="whole files are kept: run it again to go on"):
        weights.pull(ID, Options(), yes=True)


def test_converting(
    released_base: Path, released_omnialpha: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = f"{released_omnialpha / 'lora'}:0.5"
    options = Options(vae=str(released_omnialpha), lora=[lora], json=True)
    weights.convert(str(released_base), tmp_path / "out", options)
    out, err = capsys.readouterr()
    made = json.loads(out)
    assert (made["output"], made["layout"], made["fused"]) == (str(tmp_path / "out"), "ours", False)
    assert [row["weight"] for row in made["adapters"]] == [0.5]
    assert made["card"]["picture_pixels"] == 384 * 384
    assert "pytorch_lora_weights.safetensors, weight 0.5\n" in err
    assert resolve(tmp_path / "out").vae.name == "vae"

    weights.convert(str(tmp_path / "out"), tmp_path / "fused", Options(dtype="float32", quiet=True), fuse=True)
    assert capsys.readouterr() == ("", "")
    assert not resolve(tmp_path / "fused").adapters


def test_converting_what_cannot_be(released_base: Path, tmp_path: Path) -> None:
    for words, options, layout in (
        ("--dtype 'int4' is not known: use one of float32, bfloat16, float16", Options(dtype="int4"), "ours"),
        ("layout 'gguf' is not known: use ours or diffusers", Options(), "gguf"),
    ):
        with pytest.raises(InputError, match=words):
            weights.convert(str(released_base), tmp_path / "out", options, layout=layout)
    assert not (tmp_path / "out").exists()
