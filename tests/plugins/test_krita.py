"""The plug-in of Krita: its client with a stub server, and all of it in Krita, where there is one."""

import ast
import importlib.util
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from omnialpha.tasks import TASKS, Role
from plugin_server import COLOURS, SIZE, PluginServer, png

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "plugins" / "krita"
CLIENTS = [PLUGIN / "omnialpha_krita" / "client.py", ROOT / "plugins" / "gimp" / "omnialpha_gimp" / "client.py"]
PROBES = ROOT / "tests" / "krita_probes"
PATH = "/usr/bin:/bin"  # Krita takes the folders of PyQt from the first python3 that it finds
PICTURE, MASK = png((1, 2, 3, 255)), png((255,))


@pytest.fixture
def client() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plugin_client", CLIENTS[0])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_plugins_hold_the_same_client() -> None:
    assert CLIENTS[0].read_bytes() == CLIENTS[1].read_bytes()


@pytest.mark.parametrize("path", sorted(PLUGIN.rglob("*.py")), ids=lambda path: path.name)
def test_nothing_but_the_standard_library_is_imported(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))  # of Krita's own on Windows
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    assert {name.partition(".")[0] for name in names} <= {*sys.stdlib_module_names, "krita", "PyQt5", "PyQt6"}


def test_actions_are_tasks_that_take_what_is_sent(client) -> None:
    for row in client.ACTIONS.values():
        assert TASKS[row.auto].inputs == (Role.COMPOSITE,)
        assert TASKS[row.marked].inputs == (Role.COMPOSITE, Role(row.mask))
        targets = {*TASKS[row.auto].targets, *TASKS[row.marked].targets}
        assert targets <= {Role(name) for name in row.names}
        assert (len(targets) > 1) == (row.group is not None)


@pytest.mark.parametrize("action", ["cut_out", "remove", "split"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["no selection", "selection"])
def test_the_client_sends_and_gets(client, action: str, mask: bytes | None) -> None:
    with PluginServer() as server:
        seen = []
        made = client.Client(server.url, key="k1").run(
            action, PICTURE, mask, lambda *s: seen.append(s), seed=7, steps=None
        )
    row = client.ACTIONS[action]
    assert server.tasks == [row.marked if mask else row.auto]
    assert server.files == {"composite": PICTURE} | ({row.mask: mask} if mask else {})
    assert server.fields == {"seed": "7"} and server.headers["X-Api-Key"] == "k1"
    assert seen[-1] == (2, 2)
    for layer in made:
        front = layer.name == "Subject"
        assert layer.name in row.names.values() and (layer.left, layer.top) == ((3, 2) if front else (0, 0))
        colour = COLOURS["foreground" if front else "background"]
        assert Image.open(io.BytesIO(layer.png)).getpixel((0, 0)) == colour
    assert len(made) == (2 if action == "split" else 1)


def test_layers_of_one_role_are_numbered(client) -> None:
    from plugin_server import archive

    made = client.read_layers(archive(["background", "foreground", "foreground"]), client.NAMES)
    assert [layer.name for layer in made] == ["Without the subject", "Subject 1", "Subject 2"]


def test_a_stack_that_the_library_saves_is_read(client, tmp_path: Path) -> None:
    import torch

    from omnialpha.io.layers import Layer, LayerStack

    picture = torch.rand(4, 3, 5)
    LayerStack((8, 8), [Layer("one", picture, (2, 1), "background"), Layer("two", picture)]).save(tmp_path / "saved")
    data = Path(shutil.make_archive(str(tmp_path / "saved"), "zip", tmp_path / "saved")).read_bytes()
    made = client.read_layers(data, client.NAMES)
    assert [(one.name, one.left, one.top) for one in made] == [("Without the subject", 1, 2), ("two", 0, 0)]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"error": {"code": "failed", "message": "too little memory: make it smaller."}}, "^too little memory"),
        ({"error": "the model is away."}, "^the model is away"),
        ({"answers": [(400, b'{"error": {"code": "x", "message": "the rough is empty."}}')]}, "^the rough is empty"),
        ({"answers": [(502, b"<html>")]}, "answered 502: check that the address"),
        ({"answers": [(200, b"<html>")]}, "is no server of OmniAlpha"),
        ({"answers": [(200, b"[]")]}, "is no server of OmniAlpha"),
        ({"answers": [(202, b'{"id": "a2"}')]}, "answered 404: check"),
    ],
)
def test_mistakes_are_said_in_a_sentence(client, given: dict, words: str) -> None:
    with PluginServer(**given) as server, pytest.raises(client.ServerError, match=words):
        client.Client(server.url).run("cut_out", PICTURE)


def test_a_busy_server_is_asked_again(client) -> None:
    with PluginServer(answers=[(429, b"{}")]) as server:
        assert client.Client(server.url).run("cut_out", PICTURE)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "nonsense", "http://127.0.0.1:x", "ftp://127.0.0.1:9", ""])
def test_a_server_that_is_not_there(client, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "URL", "http://127.0.0.1:9")
    with pytest.raises(client.ServerError, match="No server answers at .*: start `omnialpha serve`"):
        client.Client(address).run("cut_out", PICTURE)


def test_an_answer_without_layers(client) -> None:
    with pytest.raises(client.ServerError, match="holds no layers"):
        client.read_layers(b"PK", client.NAMES)


def test_a_job_is_cancelled(client) -> None:
    with PluginServer(steps=100) as server, pytest.raises(client.Cancelled):
        client.Client(server.url).run("split", PICTURE, cancelled=lambda: server.asked > 2)
    assert server.cancelled


def missing() -> str:
    """What the machine lacks to run the plug-in in Krita."""
    lacks = [name for name in ("krita", "kritarunner", "xvfb-run") if not shutil.which(name, path=PATH)]
    python = shutil.which("python3", path=PATH)
    if not python or subprocess.run([python, "-c", "import PyQt5"], capture_output=True).returncode:
        lacks.append("PyQt5 of the system's Python")
    return ", ".join(lacks)


in_krita = pytest.mark.skipif(bool(missing()), reason=f"not on this machine: {missing()}")


def run_krita(folder: Path, url: str, *command: str, path: str = "") -> dict[str, Any]:
    """What a probe has found, run with a home of its own."""
    (folder / "runtime").mkdir(mode=0o700)
    env = {"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": str(folder), "XDG_RUNTIME_DIR": str(folder / "runtime")}
    env |= {"PYTHONPATH": path, "PROBE_OUT": str(folder / "out.json"), "PROBE_URL": url, "OMNIALPHA_URL": url}
    done = subprocess.run(["xvfb-run", "-a", *command], env=env, capture_output=True, text=True, timeout=300)
    assert (folder / "out.json").is_file(), done.stdout + done.stderr
    found = json.loads((folder / "out.json").read_text())
    assert "trace" not in found, found["trace"]
    return found | {"log": done.stderr}


@pytest.mark.slow
@in_krita
def test_actions_add_layers_and_leave_the_original(tmp_path: Path) -> None:
    with PluginServer(steps=0) as server:
        command = ("kritarunner", "-s", "probe_actions", "-f", "main")
        found = run_krita(tmp_path, server.url, *command, path=f"{PLUGIN}:{PROBES}")
    assert [made["kind"] for made in found["kinds"]] == [["RGBA", "U8"], ["RGBA", "U16"], ["GRAYA", "U8"]]
    for made in found["kinds"]:
        original = len(made["before"])
        assert original and made["after"][:original] == made["before"]
        cut, scene, group, again = made["after"][original:]
        names = [one["name"] for one in (cut, scene, group, again)]
        assert names == ["Subject", "Without the subject", "Layers", "Without the subject"]
        assert [one["name"] for one in group["inside"]] == ["Without the subject", "Subject"]
        assert group["type"] == "grouplayer" and cut["depth"] == "U8"
        assert cut["place"] == [3, 2, 6, 4] and cut["pixel"] == "2814fa80"  # BGRA
        assert scene["pixel"] == "1ec80aff"
        assert "start `omnialpha serve`" in made["said"]
        picture, mask = (Image.open(io.BytesIO(bytes.fromhex(made[name]))) for name in ("picture", "mask"))
        if made["kind"][0] == "RGBA":  # a grey document shows the scene in grey
            assert picture.getpixel((4, 3)) == (10, 200, 30, 255)
        assert picture.size == SIZE and mask.size == SIZE and mask.getbbox() == (2, 1, 7, 5)
    assert server.tasks[:4] == ["matting_auto", "removal_auto", "decompose_auto", "removal_rough"]
    assert {*server.files} == {"composite", "rough"}


@pytest.mark.slow
@in_krita
def test_the_menu_works_in_a_window(tmp_path: Path) -> None:
    plugins = tmp_path / ".local" / "share" / "krita" / "pykrita"
    shutil.copytree(PLUGIN, plugins)
    shutil.copytree(PROBES / "probe_menu", plugins / "probe_menu")
    entry = (PLUGIN / "omnialpha_krita.desktop").read_text()
    (plugins / "probe_menu.desktop").write_text(entry.replace("omnialpha_krita", "probe_menu"))
    (tmp_path / ".config").mkdir()
    enabled = "[python]\nenable_omnialpha_krita=true\nenable_probe_menu=true\n"
    (tmp_path / ".config" / "kritarc").write_text(enabled)
    with PluginServer(steps=6) as server:
        found = run_krita(tmp_path, server.url, "krita", "--nosplash")
    titles = ("Cut Out Subject", "Remove Subject", "Split into Layers", "Address of the Server...")
    assert found["entries"] == [f"OmniAlpha: {title}" for title in titles]
    assert found["nodes"] == ["Background", "Subject", "Layers"]
    assert found["said"][0] == "There is no picture: open one first." and "No server answers" in found["said"][1]
    assert "SAFE ASSERT" not in found["log"], found["log"]
    assert server.tasks == ["matting_auto", "decompose_auto", "removal_auto"]
    assert server.cancelled  # the last of them
