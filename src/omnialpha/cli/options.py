"""Options that commands share, each declared once, and the decorator that adds them to a command."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_type_hints

import typer

from omnialpha.cutout_options import Cutout
from omnialpha.errors import InputError
from omnialpha.run_options import RunOption, RunOptions, run_options
from omnialpha.tasks import MEANING, TASKS, Role

if TYPE_CHECKING:
    from omnialpha.masks import Mark

Pictures = Mapping[Role, Sequence[Path]]


def whole(value: str | int) -> int:
    """The whole number of an option; a usage error with the value otherwise."""
    try:
        return int(value)
    except ValueError:
        raise typer.BadParameter(f"{value!r} is not a whole number.") from None


def number(value: str | float) -> float:
    """The number of an option; a usage error with the value otherwise."""
    try:
        return float(value)
    except ValueError:
        raise typer.BadParameter(f"{value!r} is not a number.") from None


def mark(option: str, value: str, count: int) -> Mark:
    """Parse `X,Y` or `X,Y,W,H` in pixels: the numbers, then False after a leading `-` (not the subject), else True."""
    try:
        numbers = tuple(float(one) for one in value.strip().removeprefix("-").split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(math.isfinite(one) and one >= 0 for one in numbers):
        form = "X,Y" if count == 2 else "X,Y,W,H"
        raise InputError(
            f"{option} {value!r} is not {form}: give pixels from the top left, such as 120,80{',40,60' * (count > 2)}."
        )
    return *numbers, not value.strip().startswith("-")


def _common(help: str, metavar: str | None = None, *names: str, panel: str = "Common options", **more: Any) -> Any:
    """An option, called `--` and its field's name if no names are given."""
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, **more)


_whole = partial(_common, metavar="NUMBER", parser=whole)
_number = partial(_common, metavar="NUMBER", parser=number)
_weights = partial(_common, panel="Weights, memory and speed")
Text = str | None
Several = list[str] | None


@dataclass(frozen=True)
class Options(RunOptions):
    """Options of running a model, the same for every command. None is the checkpoint's own value."""

    dashes: ClassVar[str] = "--"

    model: Annotated[Text, _common("bundled name, folder, or id that was pulled; nano if left out", "NAME")] = None
    device: Annotated[str, _common("auto, cpu, mps, cuda or cuda:1; auto takes the fastest")] = "auto"
    quiet: Annotated[bool, _common("say nothing but errors", None, "--quiet", "-q")] = False
    json: Annotated[bool, _common("one JSON object on standard output", None, "--json")] = False

    base: Annotated[Text, _weights("folder or id of the model that fills in what --model lacks", "NAME")] = None
    finder: Annotated[Text, _weights("salient-object .onnx file in the place of the model's own", "FILE")] = None
    vae: Annotated[Text, _weights("folder of another autoencoder", "NAME")] = None
    lora: Annotated[
        Several, _weights("adapter; may be repeated, @lightning-4 sets steps", "FILE[:WEIGHT][@PRESET]")
    ] = None
    instructions: Annotated[Path | None, _weights("JSON or TOML: task and the text that it was trained on", "FILE")] = (
        None
    )
    dtype: Annotated[Text, _weights("float32, bfloat16 or float16; the model's own if left out")] = None
    offload: Annotated[str, _weights("none, model, group or disk: less memory on the device, more time")] = "none"
    quantize: Annotated[Text, _weights("int8, fp8, nf4 or a transformer's FILE.gguf: approximate, less memory")] = None
    attention: Annotated[Text, _weights("attention back end; `omnialpha doctor` lists them", "NAME")] = None
    compile: Annotated[bool, _weights("compile the transformer's block; slow to start", None, "--compile")] = False
    approximate: Annotated[
        Several,
        _weights("first-block, taylor, guidance=LOW-HIGH, vision=SIDE or tiles=SIDE; may be repeated", "NAME[=VALUE]"),
    ] = None

    @property
    def parts(self) -> dict[str, Any]:
        """Arguments of `checkpoints.folders.resolve` that fill in or replace parts of the model."""
        named = {"base": self.base, "vae": self.vae, "finder": self.finder, "instructions": self.instructions}
        return named | {"lora": self.lora or ()}

    @property
    def of_networks(self) -> bool:
        """Whether an option is given that speaks of networks beside the finder, their weights or their sampling."""
        names = ("steps", "guidance", "base", "vae", "lora", "dtype", "offload", "quantize", "attention")
        given = any(getattr(self, n) != getattr(Options, n) for n in (*names, "compile", "approximate"))
        return given or self.device not in ("auto", "cpu")  # where a finder runs

    @property
    def approximations(self) -> dict[str, str]:
        """`approximate` as name -> value, "" for none."""
        return dict(pair.partition("=")[::2] for pair in self.approximate or ())


CUTOUT = tuple(field.name for field in dataclasses.fields(Cutout))
COMMON = tuple(field.name for field in dataclasses.fields(Options))


def input_roles(category: str | None = None, without: Role | None = None) -> tuple[Role, ...]:
    """The roles that the tasks of a category (None: all) take, in the table's order, without the role `without`."""
    rows = [row for row in TASKS.values() if category in (None, row.category)]
    return tuple(dict.fromkeys(role for row in rows for role in row.inputs if role is not without))


def command(
    app: typer.Typer, *names: str, roles: Iterable[Role] = (), name: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command, its parameter `options` spread into the options `names` (none: all of them).

    A parameter `pictures` becomes one option a role, each of which may be repeated; the function gets those given. A
    parameter `cutout` becomes the options of a cut-out.
    """
    names, roles = names or COMMON, tuple(roles)

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def run(**values: Any) -> None:
            if "options" in own:
                values["options"] = Options(**{name: values.pop(name) for name in names})
            if "pictures" in own:
                given = {role: values.pop(str(role)) for role in roles}
                values["pictures"] = {role: paths for role, paths in given.items() if paths}
            logging.getLogger("omnialpha").setLevel(logging.ERROR if values["options"].quiet else logging.NOTSET)
            if "cutout" in own:
                values["cutout"] = Cutout(**{name: values.pop(name) for name in CUTOUT})
            function(**values)

        own = inspect.signature(function, eval_str=True).parameters
        spread: list[inspect.Parameter] = []
        for parameter in own.values():
            if parameter.name == "options":
                spread += _option_parameters(names)
            elif parameter.name == "pictures":
                spread += [_role_parameter(role) for role in roles]
            elif parameter.name == "cutout":
                spread += [_cutout_parameter(field) for field in dataclasses.fields(Cutout)]
            else:
                spread.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        vars(run)["__signature__"] = inspect.Signature(spread)
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in spread}
        app.command(name)(run)
        return function

    return register


def _option_parameters(names: Sequence[str]) -> list[inspect.Parameter]:
    hints = get_type_hints(Options, include_extras=True)
    hints |= {row.name: _run_option(row, hints[row.name].__origin__) for row in run_options().values()}
    fields = {field.name: field for field in dataclasses.fields(Options)}
    return [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=fields[n].default, annotation=hints[n])
        for n in names
    ]


def _run_option(row: RunOption, hint: Any) -> Any:
    """A row of the options of a run as an option of a command."""
    form = {
        int: lambda: _whole(row.help),
        float: lambda: _number(row.help),
        bool: lambda: _common(row.help, None, f"--{row.name}"),
        str: lambda: _common(row.help, {"size": "WIDTHxHEIGHT"}.get(row.name, "HOW")),
    }
    return Annotated[hint, form[row.kind]()]


def _cutout_parameter(field: dataclasses.Field[Any]) -> inspect.Parameter:
    """An option of a cut-out: a flag, a number of pixels, or text."""
    kind: Any
    if field.default is True:
        kind, option = bool, _common(field.metadata["help"], None, f"--{field.name}/--no-{field.name}")
    elif isinstance(field.default, float):
        kind, option = float, _number(field.metadata["help"])
    else:
        kind, option = str | None, _common(field.metadata["help"], field.metadata["metavar"])
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=Annotated[kind, option]
    )


def _role_parameter(role: Role) -> inspect.Parameter:
    several = "; may be repeated" if any(row.many is role and role in row.inputs for row in TASKS.values()) else ""
    annotation = Annotated[list[Path] | None, _common(MEANING[role] + several, "FILE", panel="Pictures")]
    return inspect.Parameter(str(role), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
