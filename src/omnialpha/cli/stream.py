"""`omnialpha stream`: raw video frames on standard input, the same with alpha on standard output or as files."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from omnialpha.cli.options import Options, whole
from omnialpha.cli.progress import Messages, duration, open_bar, print_result
from omnialpha.cutout_options import Cutout
from omnialpha.errors import InputError
from omnialpha.limits import by, check_size
from omnialpha.tasks import TASKS

if TYPE_CHECKING:
    from torch import Tensor

PIPE = "-"
NUMBER = re.compile(r"%0?\d{0,2}[du]")  # in the names of files, as ffmpeg has it
TASK = TASKS["matting_auto"]

Width = Annotated[int, typer.Argument(parser=whole, metavar="WIDTH", help="of a frame in pixels", show_default=False)]
Height = Annotated[int, typer.Argument(parser=whole, metavar="HEIGHT", help="the same", show_default=False)]


def stream(
    width: Width,
    height: Height,
    options: Options,
    cutout: Cutout,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILES", help="such as out-%05u.png, from 1; - is standard output")
    ] = PIPE,
) -> None:
    """Cut the subject out of raw rgb24 frames, one after the other, and write raw rgba frames.

    ffmpeg -i in.mp4 -f rawvideo -pix_fmt rgb24 - | omnialpha stream 640 360 | ffmpeg -f rawvideo -pix_fmt rgba
    -s 640x360 -r 25 -i - -c:v prores_ks -pix_fmt yuva444p10le out.mov
    """
    size, messages, began = check_size((height, width), f"{width}x{height}"), Messages(options.quiet), time.monotonic()
    _check(cutout)
    write = _writer(output, cutout.background is not None, options.json)
    cut_out = _matting(options, cutout)
    count = 0
    with open_bar(options.quiet) as bar:
        line = bar.add_task("frames", total=None)
        for frame in frames(sys.stdin.buffer, size):
            try:
                write(cut_out(frame), count + 1)
            except BrokenPipeError:
                messages.say(f"standard output was closed after {count} frames")
                raise typer.Exit(1) from None
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"stopped, {count} frames are written") from None
            count += 1
            bar.advance(line)
    seconds = time.monotonic() - began
    said = f"wrote {count} frames of {by(size)} in {duration(seconds)}"
    if output == PIPE:
        messages.say(said)
    else:
        report = {"output": output, "frames": count, "size": by(size), "seconds": round(seconds, 3)}
        print_result(options, report, said)


def frames(source: BinaryIO, size: tuple[int, int]) -> Iterator[Tensor]:
    """Opaque RGBA (4, H, W) in [0, 1] of raw rgb24 frames of (height, width), one in memory at a time.

    Raises:
        InputError: There is none, or the last is not whole. Those before it have been handed out.
    """
    import torch

    length, count = size[0] * size[1] * 3, 0
    while data := source.read(length):
        if len(data) < length:
            raise InputError(
                f"frame {count + 1} is cut off after {len(data)} of {length} bytes: check that frames are rgb24 of "
                f"{by(size)}; the {count} before it are written."
            )
        rgb = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(*size, 3).permute(2, 0, 1) / 255
        yield torch.cat([rgb, torch.ones_like(rgb[:1])])
        count += 1
    if not count:
        raise InputError("standard input holds no frame: pipe rgb24 frames into it, from ffmpeg for example.")


def _matting(options: Options, cutout: Cutout) -> Callable[[Tensor], Tensor]:
    """(4, H, W) -> (4, H, W), by the finder of the model that is named."""
    from omnialpha import hints
    from omnialpha.cutout import finish
    from omnialpha.models.checkpoints.folders import resolve
    from omnialpha.models.finder import open_finder

    parts = resolve(options.model, **options.parts)
    if not parts.finder or TASK.name not in parts.card.alpha_from_finder:
        raise InputError(f"{parts.card.name} has no finder that cuts out by itself: leave --model out.")
    finder = open_finder(parts.finder)

    def cut_out(picture: Tensor) -> Tensor:
        made = hints.cut_out([TASK.example(image=picture)], finder, parts.card, options.refine)
        assert made is not None
        subject = made[0][0].rgba
        return finish(subject, picture, cutout)[0] if cutout.changed else subject

    return cut_out


def _check(cutout: Cutout) -> None:
    """InputError for what does not go with frames of one size."""
    from omnialpha.cutout import backdrop

    if cutout.crop is not None:
        raise InputError(f"--crop {cutout.crop} would give every frame a size of its own: leave it out.")
    if cutout.background and Path(cutout.background).is_file():
        raise InputError(f"--background {cutout.background} is a file, which `stream` does not take: give a colour.")
    if cutout.background:
        backdrop(cutout.background, (1, 1))


def _writer(output: str, opaque: bool, json: bool) -> Callable[[Tensor, int], None]:
    """What writes (4, H, W) as the frame of a number. InputError where it cannot."""
    from omnialpha.io import check_output, write_image
    from omnialpha.io.samples import integers

    if output == PIPE:
        if json:
            raise InputError("-o - and --json both write to standard output: give files, or leave --json out.")
        if sys.stdout.isatty():
            raise InputError("raw frames would go to the terminal: redirect standard output, or give -o out-%05u.png.")

        def to_pipe(picture: Tensor, number: int) -> None:
            sys.stdout.buffer.write(integers(picture, 8).tobytes())
            sys.stdout.buffer.flush()

        return to_pipe
    if len(NUMBER.findall(output)) != 1 or output.count("%") != 1:
        raise InputError(f"-o {output} does not number its frames: write one %05u, such as out-%05u.png.")
    form = check_output(output % 1)
    if not (form.alpha or opaque):
        raise InputError(f"-o {output} cannot hold transparency, as {form.name} has none: use .png, or --background.")

    def to_file(picture: Tensor, number: int) -> None:
        write_image(output % number, picture)

    return to_file
