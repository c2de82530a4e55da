"""The bundled model from public data and U²-Netp's published weights, in one command that goes on where it ended:

    python recipes/u2netp.py u2netp.onnx runs/u2netp
    python recipes/reproduce_nano.py runs/u2netp runs/reproduced --data FOLDER

FOLDER: layers as docs/data-card.md describes them. `KEY=VALUE` behind it changes settings of all recipes, such as
fit.steps=2 for a look at the whole way. runs/reproduced/bundle is written anew; the last lines are the checksums of
its files, and whether they are the package's. Training is the same from the same seed on one machine; others
sum in another order, and give other weights of the same quality.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from omnialpha.files import sha256

HERE = Path(__file__).resolve().parent
PACKAGED = HERE.parent / "src" / "omnialpha" / "weights" / "nano"
# What a recipe starts from, of what the ones before it have made, and its data where they are not FOLDER's.
STAGES: dict[str, dict[str, str]] = {
    "nano-finder": {"start": "{finder}"},
    "nano-vae": {},
    "nano-sft": {"vae": "{out}/nano-vae/model/vae"},
    "nano-finish": {"start": "{out}/nano-sft/model"},
    "nano-text": {},
    "nano-hearing": {
        "start": "{out}/nano-finish/model",
        "data.folders": "[]",
        "text_encoder.start": "{out}/nano-text/model",
    },
    "nano": {"start": "{out}/nano-hearing/model", "finder": "{out}/nano-finder/model"},
    "nano-pointer": {"start": "{out}/nano-finder/model", "text_encoder": "{out}/nano/model"},
    "nano-expert": {"start": "{out}/nano-pointer/model"},
    "nano-pictures": {"start": "{out}/nano/model", "finder": "{last}"},
    "nano-scenes": {"start": "{out}/nano-pictures/model", "finder": "{last}"},
}


def train(finder: Path, out: Path, data: Path | None, settings: list[str]) -> None:
    """Run the stages."""
    folders = [f"data.folders={json.dumps([str(data.resolve())])}"] if data else []
    for name, given in STAGES.items():
        if name == "nano-expert" and not data:
            continue  # its gate learns from photographs
        starts = [f"{key}={value.format(finder=finder, out=out, last=_finder(out))}" for key, value in given.items()]
        run = [f"fit.output={out / name}", *folders, *starts, *settings]
        command = [sys.executable, "-m", "omnialpha", "train", str(HERE / f"{name}.toml"), *run]
        if code := subprocess.run(command).returncode:
            raise SystemExit(code)


def bundle(made: Path, to: Path) -> None:
    """What was trained, as the package holds it: the model, its finder with pointer and expert, what was measured of it
    on its card, and its model card.
    """
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(made / "nano-scenes" / "model", to)
    shutil.rmtree(to / "finder")
    shutil.copytree(_finder(made), to / "finder")
    card, packaged = (json.loads((folder / "omnialpha.json").read_text()) for folder in (to, PACKAGED))
    measured = {key: packaged[key] for key in ("alpha_from_finder", "reads")}
    (to / "omnialpha.json").write_text(json.dumps(card | measured, indent=2) + "\n")
    shutil.copy(PACKAGED / "README.md", to)


def _finder(made: Path) -> Path:
    """The last one that was trained."""
    return made / ("nano-expert" if (made / "nano-expert").is_dir() else "nano-pointer") / "model"


def checksums(to: Path) -> list[str]:
    """A line for each file of weights: whether it is the package's."""
    files = sorted(path.relative_to(to) for path in to.rglob("*.safetensors"))
    return [f"{'same ' if _same(to, file) else 'other'} {sha256((to / file).read_bytes())} {file}" for file in files]


def _same(to: Path, file: Path) -> bool:
    return (PACKAGED / file).is_file() and (PACKAGED / file).read_bytes() == (to / file).read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("finder", type=Path, help="the folder that recipes/u2netp.py writes")
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, help="without one, layers are drawn by rule, and there is no expert")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    asked = parser.parse_args()
    out = asked.out.resolve()
    train(asked.finder.resolve(), out, asked.data, asked.settings)
    bundle(out, out / "bundle")
    print("\n".join(checksums(out / "bundle")))


if __name__ == "__main__":
    main()
