"""The few classes of ComfyUI that the nodes use, and the nodes loaded with them as ComfyUI loads a package."""

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

PACKAGE = Path(__file__).parents[1] / "plugins" / "comfyui"


class Slot:
    """An input or output: what it was made with. Names of parameters are those of ComfyUI."""

    known: tuple[str, ...] = ()

    def __init__(self, id: str | None = None, **more: Any) -> None:
        unknown = set(more) - {"display_name", "tooltip", *self.known}
        assert not unknown, f"{type(self).__qualname__} takes no {unknown}"
        self.id, self.more, self.optional = id, more, more.get("optional", False)


def slots(type_name: str, *known: str) -> Any:
    """A type such as `io.Image`, with its Input and Output."""
    given = type("Input", (Slot,), {"io_type": type_name, "known": ("optional", "extra_dict", *known)})
    made = type("Output", (Slot,), {"io_type": type_name, "known": ("is_output_list",)})
    return SimpleNamespace(io_type=type_name, Input=given, Output=made)


class Schema:
    def __init__(self, **fields: Any) -> None:
        known = {"node_id", "display_name", "category", "description", "inputs", "outputs"}
        assert set(fields) - {"is_input_list", "is_output_node"} == known
        self.__dict__.update({"is_input_list": False, "is_output_node": False} | fields)


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None) -> None:
        self.args, self.ui = args, ui


class ComfyNode:
    @classmethod
    def define_schema(cls) -> Any:
        raise NotImplementedError


class ComfyExtension:
    pass


NUMBER = ("default", "min", "max", "step", "control_after_generate")
IO = SimpleNamespace(
    Schema=Schema, NodeOutput=NodeOutput, ComfyNode=ComfyNode, Custom=slots,
    Image=slots("IMAGE"), Mask=slots("MASK"), Boolean=slots("BOOLEAN", "default"), Int=slots("INT", *NUMBER),
    Float=slots("FLOAT", *NUMBER), String=slots("STRING", "default", "multiline"),
    Combo=slots("COMBO", "options", "default"),
)  # fmt: skip


def load_nodes(monkeypatch: Any, folder: Path) -> dict[str, Any]:
    """The nodes by id; ComfyUI's input and output folders are `folder`/input and `folder`/output."""
    for name in ("input", "output"):
        (folder / name).mkdir()
    latest = ModuleType("comfy_api.latest")
    latest.io, latest.ComfyExtension = IO, ComfyExtension
    paths = ModuleType("folder_paths")
    paths.get_input_directory = lambda: str(folder / "input")
    paths.get_output_directory = lambda: str(folder / "output")
    api = ModuleType("comfy_api")
    for module in (api, latest, paths):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    name = "omnialpha_nodes"
    spec = importlib.util.spec_from_file_location(
        name, PACKAGE / "__init__.py", submodule_search_locations=[str(PACKAGE)]
    )
    package = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, package)
    for loaded in [other for other in sys.modules if other.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, loaded)  # of an earlier test, with its folders
    spec.loader.exec_module(package)
    found = asyncio.run(asyncio.run(package.comfy_entrypoint()).get_node_list())
    return {node.define_schema().node_id: node for node in found}
