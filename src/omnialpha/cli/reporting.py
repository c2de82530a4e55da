"""What the commands of `omnialpha eval` share: options, networks for figures, baselines by name, and reports."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omnialpha.cli.options import Options, number, whole
from omnialpha.errors import InputError

if TYPE_CHECKING:
    from omnialpha.evaluation.methods.method import Method
    from omnialpha.evaluation.reports.report import Report
    from omnialpha.evaluation.scoring import Networks

RUNS = Path("runs")  # where reports go if nothing is said

Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FOLDER", help="where the report goes and what is finished")
]
Limit = Annotated[
    int | None, typer.Option("--limit", parser=whole, metavar="NUMBER", help="of samples in each category")
]
Size = Annotated[int | None, typer.Option("--size", parser=whole, metavar="PIXELS", help="resize to this longer side")]
Batch = Annotated[int, typer.Option("--batch", parser=whole, metavar="NUMBER", help="pictures at once")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="list samples that cannot be measured instead of stopping")]
Lpips = Annotated[Path | None, typer.Option("--lpips", metavar="FILE", help="weights of VGG16 or AlexNet, for LPIPS")]
Fid = Annotated[
    str | None,
    typer.Option("--fid", metavar="FEATURES", help="TorchScript file or package.module:function, for FID and KID"),
]
Timeout = Annotated[
    float, typer.Option("--timeout", parser=number, metavar="SECONDS", help="for one picture of a program")
]


def check_counts(**values: int | None) -> None:
    """InputError for a number below 1; None is none."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise InputError(f"{name}={value} is out of range: use 1 or more.")


def run_folder(kind: str, *words: object) -> Path:
    """A folder below RUNS for each kind of run; words that are None or "" are left out."""
    return RUNS / f"eval-{kind}" / "-".join(str(word) for word in words if word not in (None, ""))


def load_networks(device: str, lpips: Path | None, fid: str | None, clip: Path | None = None) -> Networks:
    """What some figures need."""
    from omnialpha.evaluation.metrics.clip import Clip
    from omnialpha.evaluation.metrics.features import load_features
    from omnialpha.evaluation.metrics.lpips import LPIPS
    from omnialpha.evaluation.scoring import Networks

    return Networks(
        LPIPS(lpips).to(device) if lpips else None,
        load_features(fid, device) if fid else None,
        Clip.load(clip, device) if clip else None,
    )


def baseline(word: str, timeout: float, only: str = "") -> Method:
    """A bundled baseline by name, a salient-object ONNX file (onnx:PATH), or a program by its command.

    only: the task or category of a program whose command states none; "": all that its fields fit.
    """
    from omnialpha.evaluation.methods.baselines import BASELINES, FINDER, finder
    from omnialpha.evaluation.methods.commands import of_command

    if word in BASELINES:
        return BASELINES[word]
    if word.startswith(FINDER):
        return finder(word.removeprefix(FINDER))
    if "{" in word or " " in word.strip():
        return of_command(word, timeout, only)
    names = ", ".join((*BASELINES, f"{FINDER}PATH"))
    raise InputError(f"{word!r} is no baseline: use {names}, or a command with {{input}} and {{output}}.")


def write_report(
    made: Report,
    folder: Path,
    options: Options,
    began: float,
    lines: Sequence[str],
    bad: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Write a report to a folder, and say what is in it: these lines on standard output, or one JSON object.

    began: `time.monotonic()` at the start of the command. bad: method -> sample -> why it was passed over.
    """
    from omnialpha.cli.progress import Messages, duration

    talk, files = Messages(options.quiet), made.write(folder)
    for name, why in made.skipped.items():
        talk.note(f"{name} skipped, {why}")
    for name, why in ((name, why) for name, of in (bad or {}).items() for why in of.values()):
        talk.note(f"passed over, {name}: {why}")
    seconds = round(time.monotonic() - began, 3)
    if options.json:
        named = {name: str(path) for name, path in files.items()}
        data = {"output": str(folder), **made.data(), "files": named, "seconds": seconds}
        print(json.dumps(data | ({} if bad is None else {"bad": bad})))
    elif not options.quiet:
        print(*lines, f"wrote {files['page']} in {duration(seconds)}", sep="\n")
