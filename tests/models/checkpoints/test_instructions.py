"""The texts that a release was trained on: read as literals out of a source, pulled, kept beside weights, or given."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hub_server import Hub, serve
from omnialpha.errors import InputError
from omnialpha.models.checkpoints import hub, instructions
from omnialpha.models.checkpoints.folders import resolve
from omnialpha.models.checkpoints.instructions import fetch, parse, read, store
from omnialpha.models.checkpoints.releases import OMNIALPHA_TEXTS, RELEASES
from omnialpha.tasks import TASKS

ID = "Longin-Yu/OmniAlpha"
RELEASE = RELEASES[ID]
# Of the structure of the public source, in words of our own: keywords of calls in an annotated table, literals joined.
DEMO = """
import somewhere_that_is_not_installed
from dataclasses import dataclass

@dataclass
class TaskConfig:
    value: str
    fixed_prompt: str
    frames: int

CONFIGS: dict[str, TaskConfig] = {
    "t2i": TaskConfig(value="t2i", fixed_prompt="Paint.", frames=1),
    "ObjectClear": TaskConfig(
        value="ObjectClear", fixed_prompt=("Take the thing " "out of the scene."), frames=1, slots=[Slot("mask", "m")]
    ),
    "automatting": TaskConfig(value="automatting", fixed_prompt="Cut it " "out.", frames=1),
    "refmatting": TaskConfig(value="refmatting", fixed_prompt="Cut this out:", frames=1),
    "layerdecompose": TaskConfig(value="layerdecompose", fixed_prompt="Peel it.", frames=2),
}

def ask(task, words):
    return f"{CONFIGS[task].fixed_prompt} {words}"
"""
WANTED = {
    "text_to_image": "Paint. {prompt}",
    "removal_rough": "Take the thing out of the scene.",
    "matting_auto": "Cut it out.",
    "matting_text": "Cut this out: {prompt}",
    "decompose_auto": "Peel it.",
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of the release, which serves demo.py too, and an empty store of ours."""
    monkeypatch.setenv("OMNIALPHA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # as CI sets it; read on import
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    for name in hub.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    state = Hub({"demo.py": DEMO.encode(), "lora/pytorch_lora_weights.safetensors": b"x"}, ID)
    with serve(state) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv(instructions.URL, f"{address}/cdn/demo.py")
        yield state


# ---- a source --------------------------------------------------------------------------------------------------


def test_the_published_structure() -> None:
    assert parse(DEMO, OMNIALPHA_TEXTS) == WANTED


def test_a_text_that_is_said_twice_alike() -> None:
    source = 'X = [T(value="automatting", fixed_prompt="Cut.")]\nY = [T(value="automatting", fixed_prompt="Cut.")]'
    assert parse(source, OMNIALPHA_TEXTS) == {"matting_auto": "Cut."}


NOTHING = {
    "two texts of a task": 'X = T(value="automatting", fixed_prompt="1."), T(value="automatting", fixed_prompt="2.")',
    "no task": 'X = [T(value="inpainting", fixed_prompt="Cut.")]',
    "a name that only holds one": 'X = [T(value="automatting_old", fixed_prompt="Cut.")]',
    "another field": 'X = [T(value="automatting", prompt="Cut.")]',
    "no literal": 'X = T(value="automatting", fixed_prompt=f"Cut {x}."), T(value="t2i", fixed_prompt=words())',
}


@pytest.mark.parametrize("source", NOTHING.values(), ids=list(NOTHING))
def test_what_is_doubtful_gives_none(source: str) -> None:
    assert parse(source, OMNIALPHA_TEXTS) == {}


def test_a_source_is_never_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    source = f'open({str(ran)!r}, "w")\nX = T(value="automatting", fixed_prompt="Cut.", x=open({str(ran)!r}, "w"))'
    assert parse(source, OMNIALPHA_TEXTS) == {"matting_auto": "Cut."}
    assert not ran.exists()


@pytest.mark.parametrize("source", ["<!doctype html>", "x = (", "\0", "(" * 5000], ids=["page", "cut", "null", "deep"])
def test_what_is_no_python(source: str) -> None:
    with pytest.raises(InputError, match="the release's source is no Python"):
        parse(source, OMNIALPHA_TEXTS)


def test_fetching(server: Hub) -> None:
    assert fetch(OMNIALPHA_TEXTS) == WANTED
    assert "Authorization" not in server.gets("demo.py")[0]
    server.files["demo.py"] = DEMO.replace('="automatting"', '="other"').encode()
    with pytest.raises(InputError, match="demo.py has no fixed_prompt of matting_auto"):
        fetch(OMNIALPHA_TEXTS)
    server.files["demo.py"] = b"\xff"
    with pytest.raises(InputError, match="demo.py is not text"):
        fetch(OMNIALPHA_TEXTS)
    server.files["demo.py"] = b"#" * (instructions.LIMIT + 1)
    with pytest.raises(InputError, match="it has more than 1048576 bytes"):
        fetch(OMNIALPHA_TEXTS)


# ---- beside the weights ----------------------------------------------------------------------------------------


def test_pulled_texts_are_found_without_the_network(
    server: Hub, released_base: Path, released_omnialpha: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(released_omnialpha, hub.Ref(ID).folder))
    before = resolve(ID, base=released_base)
    assert "pull it again, or give task and text with --instructions FILE" in before.warning
    assert before.card.instructions == {}

    assert store(folder, RELEASE, None, online=True) == ""
    assert json.loads((folder / instructions.FILE).read_text()) == WANTED
    asked = len(server.requests)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    after = resolve(ID, base=released_base)
    assert (after.warning, after.card.instructions) == ("", WANTED)
    picture = torch.ones(4, 8, 8)
    task = TASKS["matting_text"]
    assert after.card.text(task.example(image=picture, prompt="a mug", wording=1)) == "Cut this out: a mug"
    assert store(folder, RELEASE, None, online=True) == "" and len(server.requests) == asked, "they are here"


def test_given_texts_replace_stored_ones(released_base: Path, released_omnialpha: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(released_omnialpha, tmp_path / "release"))
    store(folder, RELEASE, {"matting_auto": "Stored."}, online=False)
    (tmp_path / "own.toml").write_text('matting_auto = "Given."\ntext_to_image = "{prompt}"')
    assert resolve(folder, base=released_base).card.instructions == {"matting_auto": "Stored."}
    card = resolve(folder, base=released_base, instructions=tmp_path / "own.toml").card
    assert card.instructions == {"matting_auto": "Given.", "text_to_image": "{prompt}"}
    assert card.text(TASKS["text_to_image"].example(prompt="a mug", size=(32, 32))) == "a mug", "bare"
    store(folder, RELEASE, {"matting_auto": "Again."}, online=False)
    assert instructions.stored(folder) == {"matting_auto": "Again."}


def test_what_cannot_be_had_says_what_to_do(server: Hub, tmp_path: Path) -> None:
    lacking = store(tmp_path, RELEASE, None, online=False)
    assert "the network is forbidden" in lacking and not server.requests
    server.files["demo.py"] = b"x = ("
    broken = store(tmp_path, RELEASE, None, online=True)
    assert "is no Python" in broken
    for said in (lacking, broken):
        assert said.count("our own wording") == 1 and said.endswith("pull it again, or with --instructions FILE")
    assert not (tmp_path / instructions.FILE).exists()
    assert store(tmp_path, RELEASES["Qwen/Qwen-Image-Edit"], None, online=True) == "", "it has none"


# ---- files -----------------------------------------------------------------------------------------------------

FAULTS = {
    "own.json": ("{", "not valid JSON"),
    "own.toml": ("matting_auto = ", "not valid TOML"),
    "list.json": ("[]", "hold a list: write a table"),
    "task.json": ('{"matting_out": "Cut."}', "matting_out"),
    "number.json": ('{"matting_auto": 3}', "give matting_auto 3: write a text"),
    "empty.json": ('{"matting_auto": " "}', "give matting_auto ' ': write a text"),
    "without.json": ('{"matting_text": "Cut."}', "matting_text and {prompt} do not agree, as it needs a prompt"),
    "with.json": ('{"matting_auto": "Cut {prompt}."}', "matting_auto and {prompt} do not agree, as it takes no prompt"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_files_that_are_refused(name: str, tmp_path: Path) -> None:
    text, words = FAULTS[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as refused:
        read(tmp_path / name)
    assert words in str(refused.value) and str(refused.value).count("\n") == 0


def test_a_file_that_is_not_there_or_names_what_the_model_cannot_do(
    released_base: Path, released_omnialpha: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="nothing.json cannot be read .*: check the path"):
        read(tmp_path / "nothing.json")
    (tmp_path / "own.json").write_text('{"removal_auto": "Remove."}')
    with pytest.raises(InputError, match="cannot do removal_auto, only .*: use --model nano"):
        resolve(released_omnialpha, base=released_base, instructions=tmp_path / "own.json")
