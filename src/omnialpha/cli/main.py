"""The command line: `omnialpha tasks | run | matte | remove | decompose | complete | generate | batch | stream | demo |
serve | studio | train | curate | pull | convert | data | layers | vae | eval | doctor`.

Nothing heavy is imported before a command needs it, so that help and the table of tasks come at once.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from omnialpha import __version__
from omnialpha.cli import batch, curate, data, doctor, evaluate, layers, serve, stream, studio, task_table, vae, weights
from omnialpha.cli.exits import Commands
from omnialpha.cli.options import Options, Pictures, command, input_roles, mark, whole
from omnialpha.cutout_options import Cutout
from omnialpha.demo import command as demo
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

Points = Annotated[
    list[str] | None,
    typer.Option("--point", metavar="X,Y", help="a pixel of the subject; -X,Y: of what is not; may be repeated"),
]
Boxes = Annotated[
    list[str] | None,
    typer.Option("--box", metavar="X,Y,W,H", help="a box around the subject; -X,Y,W,H: what is not; may be repeated"),
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
app.add_typer(layers.app, name="layers")
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


command(app, "json")(task_table.tasks)


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
    cutout: Cutout,
    text: Text = None,
    point: Points = None,
    box: Boxes = None,
) -> None:
    """Cut the subject out of a picture, with soft alpha: by itself, or the one that a text, a map or marks choose."""
    _run_on_picture("matte", image, output, pictures, options, point, box, text, cutout=cutout)


@command(app, roles=input_roles("removal", without=Role.COMPOSITE))
def remove(
    image: Image, output: Output, pictures: Pictures, options: Options, point: Points = None, box: Boxes = None
) -> None:
    """Take the subject out of a picture and show what is behind it: by itself, or the one that is marked."""
    _run_on_picture("remove", image, output, pictures, options, point, box)


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
    _run_on_picture("decompose", image, output, pictures, options, point, box, layers=layers)


def _run_on_picture(
    verb: str,
    image: Path,
    output: Path,
    pictures: Pictures,
    options: Options,
    point: list[str] | None,
    box: list[str] | None,
    text: str | None = None,
    **more: Any,
) -> None:
    """A verb on a picture that may be guided by one map, by marks or by a text."""
    from omnialpha.api import select_task
    from omnialpha.cli.run_task import run_task

    if text is not None and not text.strip():
        raise InputError("--text is empty: name the subject in words, or leave it out.")
    marks = [mark("--point", one, 2) for one in point or ()], [mark("--box", one, 4) for one in box or ()]
    task = select_task(verb, pictures, text, marked=any(marks))
    paths = {Role.COMPOSITE: [image], **pictures}
    run_task(task, paths, output, options, prompt=text, marks=marks, **more)


command(app)(batch.batch)
command(app, "model", "finder", "quiet", "json")(stream.stream)


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


command(app, "model", "instructions", "device", "seed", "quiet", name="demo")(demo.run)


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

    from omnialpha.cli.progress import print_result
    from omnialpha.cli.run_task import finite
    from omnialpha.training.run import run as run_recipe

    with contextlib.redirect_stdout(sys.stderr):
        try:
            figures = run_recipe(recipe, overrides or [], options.quiet)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("stopped, the last checkpoint is kept") from None
    print_result(options, finite(figures), ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))


command(app, *serve.MODEL_OPTIONS, name="serve")(serve.serve)
command(app, *serve.MODEL_OPTIONS, name="studio")(studio.studio)
command(app, "quiet", "json")(curate.curate)
command(app, "instructions", "quiet", "json")(weights.pull)
command(app, "base", "vae", "lora", "instructions", "dtype", "quiet", "json")(weights.convert)
command(app, "model", "instructions", "device", "json", name="doctor")(doctor.examine)


def main() -> None:
    for out in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is no reason to fail
        if isinstance(out, io.TextIOWrapper):
            out.reconfigure(errors="backslashreplace")
    app()


if __name__ == "__main__":
    main()
