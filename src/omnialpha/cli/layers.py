"""`omnialpha layers`: files of layers looked at, put together, taken apart and converted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omnialpha.cli.options import Options, command
from omnialpha.errors import InputError

if TYPE_CHECKING:
    from omnialpha.io.layers import LayerStack

File = Annotated[Path, typer.Argument(metavar="FILE", help="a folder or file of layers", show_default=False)]
Out = Annotated[
    Path, typer.Option("-o", "--output", metavar="OUT", help="a folder, or a .psd, .ora, .exr, .tif or .webp file")
]
Bits = Annotated[int, typer.Option("--bits", metavar="8|16", help="a channel")]

app = typer.Typer(no_args_is_help=True, help="Look at files of layers, merge, explode, recompose and convert them.")


@command(app, "json")
def info(file: File, options: Options) -> None:
    """Say what a file of layers holds, back to front."""
    from omnialpha.io.stack_reading import read_stack
    from omnialpha.limits import by

    stack = read_stack(file)
    rows: list[dict[str, Any]] = [
        {
            "name": layer.name, "offset": [*layer.offset], "size": by((layer.rgba.shape[1], layer.rgba.shape[2])),
            "role": layer.role, "coverage": round(float(layer.placed(stack.size)[3].mean()), 4),
        }
        for layer in stack
    ]  # fmt: skip
    if options.json:
        print(json.dumps({"file": str(file), "size": by(stack.size), "layers": rows}))
        return
    print(f"{file}: {by(stack.size)}, {len(stack)} layers, back to front")
    for number, row in enumerate(rows):
        left, top = row["offset"][1], row["offset"][0]
        print(f"{number:3}  {row['size']:>11} at {left},{top}  {row['coverage']:7.1%}  {row['name']}")


@command(app, "quiet", "json")
def merge(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="pictures, back to front", show_default=False)],
    output: Out,
    options: Options,
    bits: Bits = 8,
) -> None:
    """Put pictures, or files of layers, together as the layers of one file, in their order back to front."""
    from omnialpha.io.layers import LayerStack
    from omnialpha.io.stack_reading import read_stack

    stacks = [read_stack(file) for file in files]
    sizes = {file: stack.size for file, stack in zip(files, stacks, strict=True)}
    if len(set(sizes.values())) > 1:
        from omnialpha.limits import by

        named = ", ".join(f"{file} {by(size)}" for file, size in sizes.items())
        raise InputError(f"the pictures have different sizes ({named}): make them the same.")
    _write(LayerStack(stacks[0].size, [layer for stack in stacks for layer in stack]), output, bits, options, files)


@command(app, "quiet", "json")
def convert(file: File, output: Out, options: Options, bits: Bits = 8) -> None:
    """Write a file of layers as another one: PSD, OpenRaster, OpenEXR, TIFF, a preview, or a folder of PNGs."""
    from omnialpha.io.stack_reading import read_stack

    _write(read_stack(file), output, bits, options, [file])


@command(app, "quiet", "json")
def explode(
    file: File,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="where the pictures go")],
    options: Options,
    bits: Bits = 8,
) -> None:
    """Take a file of layers apart into a folder with a PNG a layer and layers.json."""
    from omnialpha.io.layers import check_folder

    check_folder(output)
    convert(file, output, options, bits)


@command(app, "quiet", "json")
def recompose(
    file: File,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="the picture")],
    options: Options,
    bits: Bits = 8,
) -> None:
    """Put the layers of a file together to one picture."""
    from omnialpha.io import check_output, write_image
    from omnialpha.io.stack_reading import read_stack

    check_output(output, [file])
    write_image(output, read_stack(file).recompose(), bits=_depth(bits))
    _report(output, 1, options)


def _write(stack: LayerStack, output: Path, bits: int, options: Options, inputs: list[Path]) -> None:
    from omnialpha.io.layer_writing import LAYER_FORMATS, check_layer_file, write_layers
    from omnialpha.io.layers import check_folder

    if output.suffix.lower() in LAYER_FORMATS and not output.is_dir():
        check_layer_file(output, inputs)
        write_layers(output, stack, bits=_depth(bits))
    else:
        check_folder(output)
        stack.save(output, bits=_depth(bits))
    _report(output, len(stack), options)


def _depth(bits: int) -> int:
    if bits not in (8, 16):
        raise InputError(f"--bits {bits} is no depth of a file: use 8 or 16.")
    return bits


def _report(output: Path, layers: int, options: Options) -> None:
    report: dict[str, Any] = {"output": str(output), "layers": layers}
    if options.json:
        print(json.dumps(report))
    elif not options.quiet:
        print(f"wrote {output}, {layers} layer{'s' * (layers != 1)}")
