"""The zips of the plug-ins, and the rules for their files."""

import subprocess
import sys
import zipfile
from pathlib import Path

PLUGINS = Path(__file__).parents[2] / "plugins"


def test_a_zip_holds_what_a_program_looks_for(tmp_path: Path) -> None:
    subprocess.run([sys.executable, PLUGINS / "pack.py", tmp_path / "dist"], check=True, capture_output=True)
    names = {}
    for path in (tmp_path / "dist").iterdir():
        with zipfile.ZipFile(path) as archive:
            names[path.stem] = {one.filename: one.external_attr >> 16 & 0o111 for one in archive.infolist()}
    assert set(names) == {"omnialpha-comfyui", "omnialpha-krita", "omnialpha-gimp"}
    assert {"omnialpha/__init__.py", "omnialpha/workflows/cut-out.json"} <= set(names["omnialpha-comfyui"])
    assert {"omnialpha_krita.desktop", "omnialpha_krita/__init__.py"} <= set(names["omnialpha-krita"])
    assert names["omnialpha-gimp"]["omnialpha_gimp/omnialpha_gimp.py"]
    assert not [name for held in names.values() for name in held if "__pycache__" in name]


def test_files_stay_short() -> None:
    files = list(PLUGINS.rglob("*.py"))
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert len(files) > 8 and max(lengths.values()) < 300
