"""Pack each plug-in as FOLDER/omnialpha-PROGRAM.zip. Equal files give equal bytes."""

import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
PROGRAMS = {"comfyui": "omnialpha/", "krita": "", "gimp": ""}  # what its zip puts before the names in its folder
SUFFIXES = {".py", ".toml", ".md", ".json", ".desktop"}


def pack(program: str, folder: Path) -> Path:
    """Write the zip of a program and return its path."""
    made = folder / f"omnialpha-{program}.zip"
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((HERE / program).rglob("*")):
            if path.suffix in SUFFIXES:
                info = zipfile.ZipInfo(PROGRAMS[program] + path.relative_to(HERE / program).as_posix())
                info.external_attr = (path.stat().st_mode & 0o777) << 16  # GIMP runs only what is executable
                archive.writestr(info, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return made


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        print(pack(name, target))
