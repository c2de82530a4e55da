"""The rules that hold for the files of the project, whatever is in them."""

import re
import tomllib
from pathlib import Path

import pytest

import omnialpha

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
MAX_LINES = 320
TABLES = ("omnialpha/tasks.py",)  # paths under src that are mostly one table, and so may be longer

TEXT_FOLDERS = ("src", "tests", "docs", "recipes", "benchmarks", "plugins", ".ci")
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".json", ".jsonl", ".ipynb", ".yaml", ".yml", ".csv", ""}
TEXTS = sorted(
    path
    for folder in (ROOT, *(ROOT / name for name in TEXT_FOLDERS))
    for path in (folder.glob("*") if folder == ROOT else folder.rglob("*"))
    if path.is_file() and path.suffix in TEXT_SUFFIXES and path.name != "LICENSE" and path != Path(__file__)
    if not any(part.endswith((".egg-info", "__pycache__")) for part in path.parts)
)
ABSOLUTE = re.compile(r"(?<![\w.~:/-])/(?:home|root|work|opt|tmp|mnt|Users)/\w|\b[A-Z]:\\\\?Users\b|\bfile://")
REGISTRY = re.compile(r"pypi\.org|pythonhosted|download\.pytorch|anaconda\.org|(?:extra-index|index)-url|find-links")


def name_of(requirement: str) -> str:
    """`ray[data]>=2.40` -> `ray`."""
    return re.split(r"[\[<>=!~; ]", requirement)[0].lower().replace("_", "-")


def test_sources_stay_short() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    exempt = {ROOT / "src" / name for name in TABLES}
    assert not {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n >= MAX_LINES and path not in exempt}


@pytest.mark.parametrize("rule", [ABSOLUTE, REGISTRY], ids=["absolute path", "registry host"])
def test_no_text_depends_on_one_machine(rule: re.Pattern[str]) -> None:
    assert len(TEXTS) > len(SOURCES)
    hits = {str(path.relative_to(ROOT)): rule.findall(path.read_text(encoding="utf-8")) for path in TEXTS}
    assert not {path: found for path, found in hits.items() if found}


def test_the_rules_catch_what_they_are_for() -> None:
    assert all(ABSOLUTE.search(text) for text in ("open('/home/me/x.png')", "in /tmp/x", "file:///x"))
    assert REGISTRY.search("pip install --index-url x")
    assert not ABSOLUTE.search("docs/work/x and ../opt/x and https://example.org/home/x")


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert omnialpha.__version__ == project["version"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_dependencies_are_bounded_below_and_pinned_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*", pin) for pin in pins)
    assert len({name_of(pin) for pin in pins}) == len(pins)

    made = ("train", "eval", "curate", "serve", "studio", "docs", "dev")
    installed = project["dependencies"] + [requirement for name in made for requirement in extras[name]]
    assert all(re.fullmatch(r"[\w-]+>=[\d.]+", requirement) for requirement in installed)
    assert {name_of(requirement) for requirement in installed} <= {name_of(pin) for pin in pins}
    assert "torchvision" not in {name_of(line) for line in installed + pins}
