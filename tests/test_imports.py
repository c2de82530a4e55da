"""The one-way order of imports inside the package, read from its syntax trees, and what `import omnialpha` costs."""

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"
# Earlier rows never import from later ones. A new module needs a place here and a row in docs/architecture.md.
ORDER = (
    ("errors", "config", "files"),
    ("rgba", "limits", "cutout_options", "kernels", "patches", "templates", "ray_data"),
    ("io",),
    ("canvas", "masks", "refine", "fill", "cutout"),
    ("tasks",),
    ("fidelity", "transitions", "sampling", "api", "run_options"),
    ("models",),
    ("hints",),
    ("condition", "pretrained", "pipeline", "loading"),
    ("data",),
    ("evaluation",),
    ("training", "curation"),
    ("server", "client"),
    ("studio",),
    ("cli", "demo", "batch"),
    ("__main__",),
)
RANK = {name: rank for rank, row in enumerate(ORDER) for name in row}
MODULES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((SRC / "omnialpha").rglob("*.py"))
}


def top(module: str) -> str:
    """`omnialpha.models.vae.alphavae` -> `models`; the package itself -> ``."""
    return module.split(".")[1] if "." in module else ""


def nearest(name: str) -> str:
    """The module that a dotted name lives in: `omnialpha.rgba.over` -> `omnialpha.rgba`."""
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def imports(module: str, source: str, is_package: bool) -> set[str]:
    """Modules of ours that `source` imports anywhere, lazily in functions or by name in a string as well."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if is_package else module.split(".")[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *filter(None, [node.module])])
            names += [f"{start}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names += [node.value] if "." in node.value and node.value in MODULES else []
    return {nearest(name) for name in names if name.split(".")[0] == "omnialpha"} - {module}


def imports_of(module: str) -> set[str]:
    path = MODULES[module]
    return imports(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")


def test_the_reader_sees_every_form_of_import() -> None:
    source = (
        "import omnialpha.rgba\nfrom omnialpha import errors\nfrom ..errors import InputError\n"
        "def f():\n    from omnialpha.data import anything\nLAZY = {'x': 'omnialpha.cli'}\nimport torch\n"
    )
    found = {"omnialpha.rgba", "omnialpha.errors", "omnialpha.data", "omnialpha.cli"}
    assert imports("omnialpha.models.fake", source, is_package=False) == found


def test_every_top_level_module_has_a_place() -> None:
    assert {top(module) for module in MODULES} - {""} <= RANK.keys()


@pytest.mark.parametrize("module", [module for module in MODULES if module != "omnialpha"])
def test_imports_go_one_way(module: str) -> None:
    rank = RANK[top(module)]
    for other in imports_of(module):
        allowed = RANK["server"] if other == "omnialpha" else RANK[top(other)]  # interfaces alone
        assert allowed <= rank, f"{module} imports {other}, which comes later in the order"


def test_the_public_surface_is_inference_only() -> None:
    assert all(RANK[top(other)] <= RANK["pipeline"] for other in imports_of("omnialpha"))


def test_sampling_sees_no_model() -> None:
    seen, todo = set(), {module for module in MODULES if top(module) == "sampling"}
    while todo:
        seen |= todo
        todo = {other for module in todo for other in imports_of(module)} - seen
    assert not {top(module) for module in seen} & {"", "models", "pipeline"}


def test_no_import_cycles() -> None:
    # The root resolves its public names lazily, so it takes no part in a cycle.
    graph = {module: imports_of(module) - {"omnialpha"} for module in MODULES if module != "omnialpha"}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the cycle


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import json, sys, omnialpha; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "scipy", "skimage", "numba", "transformers", "diffusers", "PIL"}
    assert heavy.isdisjoint(json.loads(run.stdout))


def test_the_architecture_page_names_every_top_level_module() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in {top(module) for module in MODULES} - {""}:
        package = (SRC / "omnialpha" / name).is_dir()
        assert f"`{name}/`" in page if package else f"`{name}`" in page, f"docs/architecture.md has no row for {name}"
