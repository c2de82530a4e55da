"""The command line: `omnialpha tasks | run | matte | remove | decompose | complete | generate | demo | train | pull |
convert | data | vae | eval | doctor`.

Nothing heavy is imported before a command needs it, so that help and the table of tasks come at once.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from omnialpha import __version__
from omnialpha.cli import data, evaluate, vae
from omnialpha.cli.exits import Commands
from omnialpha.cli.options import Options, Pictures, command, input_roles, mark, whole
from omnialpha.errors import InputError
from omnialpha.tasks import MAPS, TASKS, Role

Image = Annotated[Path, typer.Argument(metavar="IMAGE", help="the picture", show_default=False)]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="where the picture goes")]
Folder = Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="where the layers go, with layers.json")]
Text = Annotated[str | None, typer.Option("--text", help="name the subject in words")]
Prompt = Annotated[str, typer.Option("--prompt", help="what to make, in words")]
Layers = Annotated[
    int | None,
    typer.Option("--layers", parser=whole, metavar="NUMBER", help="how many, the background included; 2 if left out"),
]


app = typer.Typer(
    name="omnialpha",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Cut out, remove, separate, complete and make pictures with real transparency.",
)
app.add_typer(data.app, name="data")
app.add_typer(vae.app, name="vae")
app.add_typer(evaluate.app, name="eval")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"omnialpha {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and end")
    ] = False,
) -> None:
    pass


Points = Annotated[
    list[str] | None,
    typer.Option("--point", metavar="X,Y", help="a pixel of the subject; -X,Y: of what is not; may be repeated"),
]
Boxes = Annotated[
    list[str] | None,
    typer.Option("--box", metavar="X,Y,W,H", help="a box around the subject; -X,Y,W,H: what is not; may be repeated"),
]


@command(app, "json")
def tasks(options: Options) -> None:
    """List the tasks: what each takes and makes."""
    from omnialpha.cli import task_table

    task_table.print_tasks(options.json)


@command(app, roles=input_roles())
def run(
    task: Annotated[str, typer.Argument(metavar="TASK", autocompletion=lambda: list(TASKS), show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="PATH", help="a file; a folder for several layers")],
    pictures: Pictures,
    options: Options,
    prompt: Annotated[str | None, typer.Option("--prompt", "--text", help="for the tasks that take a text")] = None,
    layers: Layers = None,
) -> None:
    """Run any task by its name; `omnialpha tasks` lists them."""
    from omnialpha.cli.run_task import run_task
    from omnialpha.tasks import task as find

    run_task(find(task), pictures, output, options, prompt=prompt, layers=layers)


@command(app, roles=input_roles("matting", without=Role.COMPOSITE))
def matte(
    image: Image,
    output: Output,
    pictures: Pictures,
    options: Options,
    text: Text = None,
    point: Points = None,
    box: Boxes = None,
    background: Annotated[
        str | None, typer.Option("--background", metavar="COLOUR|FILE", help="put the subject on this: white, #336699")
    ] = None,
) -> None:
    """Cut the subject out of a picture, with soft alpha: by itself, or the one that a text, a map or marks choose."""
    _run_on_picture("matte", image, output, pictures, options, text=text, background=background, point=point, box=box)


@command(app, roles=input_roles("removal", without=Role.COMPOSITE))
def remove(
    image: Image, output: Output, pictures: Pictures, options: Options, point: Points = None, box: Boxes = None
) -> None:
    """Take the subject out of a picture and show what is behind it: by itself, or the one that is marked."""
    _run_on_picture("remove", image, output, pictures, options, point=point, box=box)


@command(app, roles=input_roles("decomposition", without=Role.COMPOSITE))
def decompose(
    image: Image,
    output: Folder,
    pictures: Pictures,
    options: Options,
    layers: Layers = None,
    point: Points = None,
    box: Boxes = None,
) -> None:
    """Take a picture apart into a background and foreground layers, each complete, back to front."""
    _run_on_picture("decompose", image, output, pictures, options, layers=layers, point=point, box=box)


def _run_on_picture(
    verb: str,
    image: Path,
    output: Path,
    pictures: Pictures,
    options: Options,
    text: str | None = None,
    layers: int | None = None,
    background: str | None = None,
    point: list[str] | None = None,
    box: list[str] | None = None,
) -> None:
    """A verb on a picture that may be guided by one map, by marks or by a text."""
    from omnialpha.api import select_task
    from omnialpha.cli.run_task import run_task

    if text is not None and not text.strip():
        raise InputError("--text is empty: name the subject in words, or leave it out.")
    marks = [mark("--point", one, 2) for one in point or ()], [mark("--box", one, 4) for one in box or ()]
    task = select_task(verb, pictures, text, marked=any(marks))
    paths = {Role.COMPOSITE: [image], **pictures}
    run_task(task, paths, output, options, prompt=text, layers=layers, background=background, marks=marks)


@command(app, roles=[role for role in input_roles("completion") if role not in MAPS])
def complete(
    output: Output,
    prompt: Prompt,
    pictures: Pictures,
    options: Options,
    full: Annotated[bool, typer.Option("--full/--layer", help="make the whole picture, or the missing layer")] = True,
) -> None:
    """Make the picture around a given foreground or on a given background, or only the layer that is missing."""
    from omnialpha.api import completion_task
    from omnialpha.cli.run_task import run_task

    task = completion_task(pictures.get(Role.FOREGROUND), pictures.get(Role.BACKGROUND), full)
    run_task(task, pictures, output, options, prompt=prompt)


@command(app)
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="what to make, in words", show_default=False)],
    output: Output,
    options: Options,
) -> None:
    """Make a transparent picture from text."""
    from omnialpha.cli.run_task import run_task

    run_task(TASKS["text_to_image"], {}, output, options, prompt=prompt)


@command(app, "model", "instructions", "device", "seed", "quiet")
def demo(
    options: Options,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="where the pictures go")] = Path(
        "demo"
    ),
) -> None:
    """Show all five categories on photographs and all 21 tasks on held-out layers."""
    from omnialpha.cli.progress import silence_libraries
    from omnialpha.demo.command import run as run_demo

    silence_libraries()
    try:
        run_demo(output, options.model, options.device, options.seed, options.quiet, options.instructions)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped, what is finished is in {output}") from None


@command(app, "quiet", "json")
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="a TOML file, see recipes/", show_default=False)],
    options: Options,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as fit.steps=100", show_default=False)
    ] = None,
) -> None:
    """Train by a recipe; goes on where it was stopped."""
    import contextlib
    import json

    from omnialpha.cli.run_task import finite
    from omnialpha.training.run import run as run_recipe

    with contextlib.redirect_stdout(sys.stderr):
        try:
            figures = run_recipe(recipe, overrides or [], options.quiet)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("stopped, the last checkpoint is kept") from None
    if options.json:
        print(json.dumps(finite(figures)))
    elif not options.quiet:
        print(", ".join(f"{name} {value:.4g}" for name, value in figures.items()))


@command(app, "instructions", "quiet", "json")
def pull(
    model: Annotated[str, typer.Argument(metavar="ID", help="owner/name[@revision][:path]", show_default=False)],
    options: Options,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="agree to the licence without being asked")] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="branch, tag or commit")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="only say what is stored already")] = False,
) -> None:
    """Download weights once, to run offline; goes on where it was cut off, and checks every file."""
    from omnialpha.cli import weights

    weights.pull(
        model,
        yes=yes,
        revision=revision,
        offline=offline,
        instructions=options.instructions,
        quiet=options.quiet,
        as_json=options.json,
    )


@command(app, "base", "vae", "lora", "instructions", "dtype", "quiet", "json")
def convert(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="name, folder or stored id", show_default=False)],
    destination: Annotated[Path, typer.Argument(metavar="FOLDER", show_default=False)],
    options: Options,
    fuse: Annotated[bool, typer.Option("--fuse", help="add adapters to the weights for good")] = False,
    layout: Annotated[str, typer.Option("--layout", help="ours or diffusers")] = "ours",
    force: Annotated[bool, typer.Option("--force", help="replace what is there")] = False,
) -> None:
    """Write a model, or the parts it is put together from, as one folder."""
    from omnialpha.cli import weights

    weights.convert(
        source,
        destination,
        base=options.base,
        vae=options.vae,
        lora=options.lora or (),
        instructions=options.instructions,
        fuse=fuse,
        layout=layout,
        dtype=options.dtype,
        force=force,
        quiet=options.quiet,
        as_json=options.json,
    )


@command(app, "model", "instructions", "device", "json")
def doctor(options: Options) -> None:
    """Check the installation: versions, devices, the model, and two steps of it."""
    from omnialpha.cli.doctor import examine

    if not examine(options):
        raise typer.Exit(1)


def main() -> None:
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()


if __name__ == "__main__":
    main()
