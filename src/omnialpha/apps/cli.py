"""The command line: `omnialpha tasks | run | matte | remove | decompose | complete | generate | demo | train | pull |
convert | data | vae | eval | doctor`.

Nothing heavy is imported before a command needs it, so that help and the table of tasks come at once.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from omnialpha import __version__
from omnialpha.apps import data, evaluate, vae
from omnialpha.apps.options import Options, Pictures, command, input_roles, whole
from omnialpha.errors import InputError
from omnialpha.tasks import MAPS, TASKS, Role

UsageError: Any = typer.BadParameter.__bases__[0]  # click's, wherever a version of typer keeps it

FULL = (errno.ENOSPC, errno.EDQUOT)

Image = Annotated[Path, typer.Argument(metavar="IMAGE", help="the picture", show_default=False)]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="where the picture goes")]
Folder = Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="where the layers go, with layers.json")]
Text = Annotated[str | None, typer.Option("--text", help="name the subject in words")]
Prompt = Annotated[str, typer.Option("--prompt", help="what to make, in words")]
Layers = Annotated[
    int | None,
    typer.Option("--layers", parser=whole, metavar="NUMBER", help="how many, the background included; 2 if left out"),
]


class Commands(TyperGroup):
    """Says every mistake in one sentence on standard error, exit code 2; Ctrl-C ends with 130, and a reader of the
    output that has seen enough with 1, without a word.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            _error(str(error))
            raise typer.Exit(2) from error
        except OSError as error:
            if error.filename is None:
                raise
            _error(f"{error.filename} cannot be used ({error.strerror}); choose another path.")
            raise typer.Exit(2) from error
        except KeyboardInterrupt as stop:
            print(f"\n{stop}" if stop.args else "\nstopped, nothing was written", file=sys.stderr)
            raise typer.Exit(130) from stop

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            code = super().main(*args, **(extra | {"standalone_mode": False}))
        except UsageError as error:
            message, context = error.format_message(), error.ctx
            if message:  # none: the help was asked for by giving nothing, and has been printed
                see = f"; see `{context.command_path if context else 'omnialpha'} --help`."
                _error(message if message.endswith("?") else message.rstrip(".") + see)
            code = 2
        except OSError as error:  # without a name: of a file that was open, or of the output
            if error.errno not in FULL:
                raise
            _error(f"a disk is full ({error.strerror}); free space and run it again.")
            code = 2
        sys.exit(_flush() or code or 0)


def _error(sentence: str) -> None:
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)


def _flush() -> int:
    """The exit code where what was said cannot be written, 0 otherwise; at the very end it would be a traceback."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed once more
        if isinstance(error, BrokenPipeError):
            return 1
        _error(f"standard output cannot be written ({error.strerror}); send it elsewhere.")
        return 2
    return 0


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


@command(app, "json")
def tasks(options: Options) -> None:
    """List the tasks: what each takes and makes."""
    from omnialpha.apps import listing

    listing.show(options.json)


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
    from omnialpha.apps.execute import execute
    from omnialpha.tasks import task as find

    execute(find(task), pictures, output, options, prompt=prompt, layers=layers)


@command(app, roles=input_roles("matting", beside=Role.COMPOSITE))
def matte(
    image: Image,
    output: Output,
    pictures: Pictures,
    options: Options,
    text: Text = None,
    background: Annotated[
        str | None, typer.Option("--background", metavar="COLOUR|FILE", help="put the subject on this: white, #336699")
    ] = None,
) -> None:
    """Cut the subject out of a picture, with soft alpha: by itself, or the one that a text or a map marks."""
    _verb("matte", image, output, pictures, options, text=text, background=background)


@command(app, roles=input_roles("removal", beside=Role.COMPOSITE))
def remove(image: Image, output: Output, pictures: Pictures, options: Options) -> None:
    """Take the subject out of a picture and show what is behind it: by itself, or the one that a map marks."""
    _verb("remove", image, output, pictures, options)


@command(app, roles=input_roles("decomposition", beside=Role.COMPOSITE))
def decompose(image: Image, output: Folder, pictures: Pictures, options: Options, layers: Layers = None) -> None:
    """Take a picture apart into a background and foreground layers, each complete, back to front."""
    _verb("decompose", image, output, pictures, options, layers=layers)


def _verb(
    verb: str,
    image: Path,
    output: Path,
    pictures: Pictures,
    options: Options,
    text: str | None = None,
    layers: int | None = None,
    background: str | None = None,
) -> None:
    """A verb on a picture that may be guided by one map or a text."""
    from omnialpha.apps.execute import execute
    from omnialpha.verbs import choose

    if text is not None and not text.strip():
        raise InputError("--text is empty: name the subject in words, or leave it out.")
    task = choose(verb, pictures, text)
    paths = {Role.COMPOSITE: [image], **pictures}
    execute(task, paths, output, options, prompt=text, layers=layers, background=background)


@command(app, roles=[role for role in input_roles("completion") if role not in MAPS])
def complete(
    output: Output,
    prompt: Prompt,
    pictures: Pictures,
    options: Options,
    full: Annotated[bool, typer.Option("--full/--layer", help="make the whole picture, or the missing layer")] = True,
) -> None:
    """Make the picture around a given foreground or on a given background, or only the layer that is missing."""
    from omnialpha.apps.execute import execute
    from omnialpha.verbs import completion

    task = completion(pictures.get(Role.FOREGROUND), pictures.get(Role.BACKGROUND), full)
    execute(task, pictures, output, options, prompt=prompt)


@command(app)
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="what to make, in words", show_default=False)],
    output: Output,
    options: Options,
) -> None:
    """Make a transparent picture from text."""
    from omnialpha.apps.execute import execute

    execute(TASKS["text_to_image"], {}, output, options, prompt=prompt)


@command(app, "model", "device", "seed", "quiet")
def demo(
    options: Options,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="where the pictures go")] = Path(
        "demo"
    ),
) -> None:
    """Show all five categories on photographs and all 21 tasks on held-out layers."""
    from omnialpha.apps.demo import run as run_demo
    from omnialpha.apps.progress import hush

    hush()
    try:
        run_demo(output, options.model, options.device, options.seed, options.quiet)
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

    from omnialpha.apps.execute import finite
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
    from omnialpha.apps import weights

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
    from omnialpha.apps import weights

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


@command(app, "model", "device", "json")
def doctor(options: Options) -> None:
    """Check the installation: versions, devices, the model, and two steps of it."""
    from omnialpha.apps.doctor import examine

    if not examine(options):
        raise typer.Exit(1)


def main() -> None:
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()


if __name__ == "__main__":
    main()
