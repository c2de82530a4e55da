"""`omnialpha pull` and `omnialpha convert` as they speak: the licence before, one line or one JSON object after."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from hub_server import COMMIT, ID, Hub, serve
from omnialpha.apps import weights
from omnialpha.errors import InputError
from omnialpha.models import hub
from omnialpha.models.checkpoints import resolve

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
        yield state


def test_the_licence_and_the_size_are_shown(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    weights.pull(ID, yes=True)
    out, err = capsys.readouterr()
    folder = hub.Ref(ID).folder
    page = f"{hub.endpoint()}/{ID}"
    assert err.splitlines() == [
        f"{ID} (main), 3.0 MB, all of it to download",
        f"licence: apache-2.0, see {page}",
        f"into {folder}",
    ]
    assert out == f"{ID} is in {folder}\n"
    weights.pull(ID)  # nobody is asked about what is here
    assert capsys.readouterr().err == ""


def test_one_json_object(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    weights.pull(ID, yes=True, quiet=True, as_json=True)
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
        weights.pull(ID)
    else:
        with pytest.raises(InputError, match="its licence, apache-2.0, was not agreed to"):
            weights.pull(ID)
    assert (hub.Ref(ID).folder / "x.safetensors").is_file() == stored


def test_nobody_to_ask(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False))
    with pytest.raises(InputError, match="agree with --yes"):
        weights.pull(ID)
    assert not server.gets("config.json")


def test_a_release_names_its_base(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    server.id = "Longin-Yu/OmniAlpha"
    server.files = {"rgba_vae/config.json": b"{}", "lora/pytorch_lora_weights.safetensors": b"x", "other.json": b"{}"}
    weights.pull("Longin-Yu/OmniAlpha", yes=True)
    assert "run `omnialpha pull Qwen/Qwen-Image-Edit-2509` too" in capsys.readouterr().err
    folder = hub.Ref("Longin-Yu/OmniAlpha").folder
    assert not (folder / "other.json").exists() and (folder / "rgba_vae" / "config.json").is_file()


@pytest.mark.parametrize("text", ["nano", "no id", "a/b/c"])
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(InputError, match=f"'{text}' is no hub id: write owner/name, owner/name@revision or"):
        weights.pull(text)


def test_an_interruption_says_that_parts_are_kept(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("omnialpha.models.hub.fetch", stop)
    with pytest.raises(KeyboardInterrupt, match="what has arrived is kept: run it again to go on"):
        weights.pull(ID, yes=True)


def test_converting(
    released_base: Path, released_omnialpha: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = f"{released_omnialpha / 'lora'}:0.5"
    weights.convert(str(released_base), tmp_path / "out", vae=str(released_omnialpha), lora=[lora], as_json=True)
    out, err = capsys.readouterr()
    made = json.loads(out)
    assert (made["output"], made["layout"], made["fused"]) == (str(tmp_path / "out"), "ours", False)
    assert [row["weight"] for row in made["adapters"]] == [0.5]
    assert made["card"]["picture_pixels"] == 384 * 384
    assert "pytorch_lora_weights.safetensors, weight 0.5\n" in err
    assert resolve(tmp_path / "out").vae.name == "vae"

    weights.convert(str(tmp_path / "out"), tmp_path / "fused", fuse=True, dtype="float32", quiet=True)
    assert capsys.readouterr() == ("", "")
    assert not resolve(tmp_path / "fused").adapters


def test_converting_what_cannot_be(released_base: Path, tmp_path: Path) -> None:
    for words, named in (
        ("--dtype 'int4' is not known: use one of float32, bfloat16, float16", {"dtype": "int4"}),
        ("layout 'gguf' is not known: use ours or diffusers", {"layout": "gguf"}),
    ):
        with pytest.raises(InputError, match=words):
            weights.convert(str(released_base), tmp_path / "out", **named)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
