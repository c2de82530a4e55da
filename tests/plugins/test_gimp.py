"""The plug-in of GIMP 3: its own lines with a stand-in for GIMP, and all of it in GIMP 3, where there is one."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest

from plugin_server import PluginServer, png

FOLDER = Path(__file__).parents[2] / "plugins" / "gimp" / "omnialpha_gimp"
SCRIPT = FOLDER / "omnialpha_gimp.py"
GIMP = shutil.which("gimp-console-3.0") or shutil.which("gimp-console-3.2")
PROBE = """
import gi
gi.require_version("Gimp", "3.0")
from gi.repository import Gimp
image = Gimp.Image.new(12, 8, Gimp.ImageBaseType.RGB)
image.insert_layer(Gimp.Layer.new(image, "own", 12, 8, Gimp.ImageType.RGBA_IMAGE, 100, Gimp.LayerMode.NORMAL), None, 0)
for name in ("omnialpha-cut-out", "omnialpha-split"):
    procedure = Gimp.get_pdb().lookup_procedure(name)
    config = procedure.create_config()
    config.set_property("image", image)
    procedure.run(config)
print("layers:", [layer.get_name() for layer in image.get_layers()])
"""


def test_gimp_finds_it_and_may_run_it() -> None:
    assert SCRIPT.stem == FOLDER.name and os.access(SCRIPT, os.X_OK)
    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 8))


@pytest.fixture
def gimp(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """A stand-in for libgimp: it writes and remembers files, and answers anything."""
    gimp = MagicMock(PlugIn=type("PlugIn", (), {"error_quark": lambda: 1}))
    gimp.file_save.side_effect = lambda mode, image, path, more: Path(path).write_bytes(png((9, 9, 9, 255)))
    gimp.file_load_layer.side_effect = lambda mode, image, path: MagicMock(data=Path(path).read_bytes())
    gimp.Selection.is_empty.return_value = True
    repository = ModuleType("gi.repository")
    repository.Gimp, repository.GLib = gimp, MagicMock()
    repository.Gio = MagicMock()
    repository.Gio.File.new_for_path.side_effect = str
    gi = ModuleType("gi")
    gi.require_version = lambda name, version: None
    for module in (gi, repository):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "client", raising=False)
    return gimp


@pytest.fixture
def plugin(gimp: MagicMock) -> Any:
    spec = importlib.util.spec_from_file_location("omnialpha_gimp", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_layers_are_added_to_the_image_and_the_copy_is_deleted(plugin, gimp) -> None:
    image = MagicMock()
    with PluginServer(steps=1) as server:
        group = plugin.run_action(image, "split", plugin.Client(server.url))
    assert server.tasks == ["decompose_auto"] and set(server.files) == {"composite"}
    parent, back, front = (call.args for call in image.insert_layer.call_args_list)
    assert group == [parent[0]] and parent[1:] == (None, 0) and back[1:] == front[1:] == (parent[0], 0)
    assert [layer[0].set_name.call_args.args[0] for layer in (back, front)] == ["Without the subject", "Subject"]
    assert front[0].set_offsets.call_args.args == (3, 2)
    image.duplicate.return_value.delete.assert_called_once_with()
    image.undo_group_end.assert_called_once_with()
    gimp.progress_update.assert_called_with(1.0)


def test_a_selection_is_sent_as_a_mask(plugin, gimp) -> None:
    gimp.Selection.is_empty.return_value = False
    with PluginServer(steps=0) as server:
        made = plugin.run_action(MagicMock(), "remove", plugin.Client(server.url))
    assert server.tasks == ["removal_rough"] and set(server.files) == {"composite", "rough"} and len(made) == 1


def test_an_error_is_given_to_gimp_and_the_image_stays(plugin, gimp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIALPHA_URL", "http://127.0.0.1:9")
    image, procedure = MagicMock(), MagicMock()
    own = plugin.OmniAlphaPlugIn()
    assert own.do_query_procedures() == ["omnialpha-cut-out", "omnialpha-remove", "omnialpha-split"]
    own.run(procedure, None, image, [], None, "cut_out")
    assert "No server answers" in plugin.GLib.Error.new_literal.call_args.args[1]
    assert procedure.new_return_values.call_args.args[0] is gimp.PDBStatusType.EXECUTION_ERROR
    image.insert_layer.assert_not_called()


@pytest.mark.slow
@pytest.mark.skipif(not GIMP, reason="not on this machine: GIMP 3")
def test_gimp_adds_layers(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "plug-ins" / FOLDER.name)
    with PluginServer(steps=0) as server:
        env = os.environ | {"GIMP3_DIRECTORY": str(tmp_path), "OMNIALPHA_URL": server.url}
        command = [GIMP, "-idf", "--batch-interpreter=python-fu-eval", "-b", PROBE, "--quit"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert "layers: ['Layers', 'Subject', 'own']" in done.stdout, done.stdout + done.stderr
