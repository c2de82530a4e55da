"""How long nano takes from nothing to a matte: `python benchmarks/speed.py` times import, loading and matting.

Runs on two CPU cores, also where there are more, so that figures of different machines are about the same thing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common.tables import Table, save

CORES = 2
REPEATS = 5
PHOTOGRAPH = 1000  # px: the width of a photograph
IMPORT = "import time; t = time.perf_counter(); import omnialpha; print(time.perf_counter() - t)"
# In a process of its own: what a user waits for between starting and being able to ask for the first picture
LOAD = """
import json, sys, time
start = time.perf_counter()
import torch
torch.set_num_threads({cores})
torch_done = time.perf_counter()
import omnialpha.pipeline
imported = time.perf_counter()
omnialpha.load({model!r}, device="cpu")
print(json.dumps([torch_done - start, imported - torch_done, time.perf_counter() - imported]))
"""


def in_new_process(code: str, repeats: int) -> list[list[float]]:
    """The JSON that `code` prints, from `repeats` interpreters one after the other."""
    times = []
    for _ in range(repeats):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        if run.returncode:
            raise SystemExit(run.stderr)
        printed = json.loads(run.stdout.splitlines()[-1])
        times.append(printed if isinstance(printed, list) else [printed])
    return times


def pin() -> str:
    """Keep this process and its children on CORES cores where the system can; returns how, in words."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
        return f"held to {len(os.sched_getaffinity(0))} cores"
    return "held by thread counts only"


def matting_times(model_name: str | None) -> tuple[tuple[int, int], list[float], list[float]]:
    """Native size, and seconds of REPEATS + 1 automatic mattings of a held-out picture of that size and of a photograph
    of PHOTOGRAPH px; the first ones are cold.
    """
    import torch

    torch.set_num_threads(CORES)
    import omnialpha
    from omnialpha.evaluation.datasets import heldout
    from omnialpha.tasks import TASKS

    model = omnialpha.load(model_name, device="cpu")
    size = model.native_size()
    native = heldout.draw(heldout.open_source(), 1, size, seed=0).composite[0]
    times: list[list[float]] = []
    for picture in (native, photograph()):
        times.append([])
        for _ in range(REPEATS + 1):
            start = time.perf_counter()
            model.run([TASKS["matting_auto"].example(image=picture)])
            times[-1].append(time.perf_counter() - start)
    return size, times[0], times[1]


def photograph() -> Any:
    """Scikit-image's coffee cup, (4, H, W), PHOTOGRAPH px wide."""
    import skimage.data

    from omnialpha import rgba
    from omnialpha.io import to_rgba

    picture = to_rgba(skimage.data.coffee())
    return rgba.resize(picture, (round(picture.shape[1] * PHOTOGRAPH / picture.shape[2]), PHOTOGRAPH))


def command_times(model_name: str | None) -> list[float]:
    """Seconds of the whole command `omnialpha matte` on that photograph, three times."""
    from omnialpha.io import write_image

    times = []
    with TemporaryDirectory() as folder:
        source, target = Path(folder, "photo.png"), Path(folder, "cutout.png")
        write_image(source, photograph())
        command = [sys.executable, "-m", "omnialpha", "matte", str(source), "-o", str(target), "--device", "cpu", "-q"]
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run(command + (["--model", model_name] if model_name else []), check=True)
            times.append(time.perf_counter() - start)
    return times


def main(argv: Sequence[str] | None = None) -> Table:
    parser = argparse.ArgumentParser(description="Import, loading and matting times on two CPU cores.")
    parser.add_argument("--model", default=None, help="model folder (default: the bundled nano)")
    parser.add_argument("--json", default=None, type=Path, help="also write the table here")
    parser.add_argument("--markdown", default=None, type=Path, help="also write the table here")
    options = parser.parse_args(argv)
    machine_cores = os.cpu_count()
    how = pin()
    os.environ["OMP_NUM_THREADS"] = str(CORES)  # for the new processes; before torch is imported in this one

    package = statistics.median(run[0] for run in in_new_process(IMPORT, REPEATS))
    loads = in_new_process(LOAD.format(cores=CORES, model=options.model), 3)
    torch_import, own_import, weights = sorted(loads, key=sum)[len(loads) // 2]
    size, (first, *mattings), (cold, *large) = matting_times(options.model)
    matting, warm = statistics.median(mattings), statistics.median(large)
    whole = statistics.median(command_times(options.model))

    table = Table(
        "Speed of nano, seconds",
        f"one picture of {size[1]}x{size[0]} px (native) where not said, seed 0, float32, {CORES} threads, {how}; "
        f"machine: {machine_cores} cores, {platform.machine()}, Python {platform.python_version()}",
        {"what": "", "seconds": ".3f", "required": "", "met": ""},
        notes=[
            "import: median of 5 new processes. Loading: median of 3, from `import omnialpha` to a loaded model.",
            f"Matting: median of {REPEATS} after a first one. Other work on the machine counts against every figure.",
        ],
    )
    total = torch_import + own_import + weights
    table.rows = [
        ["import omnialpha", package, "< 1", package < 1],
        ["loading, all of it", total, "< 5", total < 5],
        ["  of it importing torch", torch_import, "", ""],
        ["  of it importing diffusers, transformers and ours", own_import, "", ""],
        ["  of it reading the weights", weights, "", ""],
        ["automatic matting", matting, "< 3", matting < 3],
        ["  the first after loading", first, "", ""],
        [f"automatic matting of a photograph {PHOTOGRAPH} px wide", warm, "< 3", warm < 3],
        ["  the first after loading", cold, "", ""],
        ["  the whole command, from nothing to a PNG", whole, "< 10", whole < 10],
    ]
    print(table.text())
    save([table], {"cores": CORES, "machine_cores": machine_cores}, options.json, options.markdown)
    return table


if __name__ == "__main__":
    main()
