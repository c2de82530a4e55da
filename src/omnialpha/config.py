"""Typed configuration: recipes in TOML with `section.key=value` overrides; an unknown key is an error that names the
nearest one.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from omnialpha.errors import InputError

T = TypeVar("T")


def load(path: str | Path, overrides: typing.Sequence[str] = ()) -> dict[str, Any]:
    """Read a recipe.

    Args:
        path: A TOML file. With `extends = "other.toml"`, in the same folder, it holds only what it changes.
        overrides: `section.key=value`; the value is TOML, or text where it is none.

    Returns:
        Nested dicts.

    Raises:
        InputError: The file is missing or no TOML, or an override has no `=`.
    """
    tree = _read(Path(path))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise InputError(f"override {override!r} has no '=': write section.key=value.")
        *sections, last = key.strip().split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise InputError(f"override {override!r}: {section!r} holds {node!r}, not a table; check the key.")
        node[last] = _value(text.strip())
    return tree


def _read(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"recipe {path} does not exist: see recipes/*.toml.")
    if path in extending:
        raise InputError(f"recipe {path} extends itself: take `extends` out of one of them.")
    try:
        tree = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path} is not valid TOML: {error}.") from None
    if "extends" not in tree:
        return tree
    below = _read((path.parent / str(tree.pop("extends"))).resolve(), (*extending, path.resolve()))
    return _merged(below, tree)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Tables are merged, everything else is replaced."""
    both = {k: _merged(below[k], v) for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)}
    return below | above | both


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def build(kind: type[T], values: dict[str, Any], where: str = "") -> T:
    """Make a dataclass from a dict.

    Args:
        kind: The dataclass.
        values: Its fields; tables for fields that are dataclasses.
        where: The section, for messages.

    Raises:
        InputError: A key is unknown (the nearest one is named) or missing, or a value has the wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    made = {}
    for key, value in values.items():
        if key not in fields:
            near = get_close_matches(key, fields, n=1, cutoff=0.0)
            raise InputError(f"unknown key {where + key!r} in the recipe: did you mean {where + near[0]!r}?")
        made[key] = _checked(hints[key], value, where + key)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in made:
            raise InputError(f"the recipe lacks {where + name!r}: add it.")
    return kind(**made)


def _checked(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise InputError(f"{where!r} must be a table, not {value!r}.")
        return build(hint, value, where + ".")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _checked(next(a for a in args if a is not type(None)), value, where)
    if origin is dict and isinstance(value, dict):
        return {k: _checked(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if origin in (list, tuple) and isinstance(value, list):
        return origin(_checked(args[0], v, where) for v in value)
    if origin is typing.Literal:
        if value not in args:
            raise InputError(f"{where!r} is {value!r}: use one of {', '.join(map(repr, args))}.")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = origin or hint
    if hint is not Any and (not isinstance(value, plain) or (isinstance(value, bool) and hint is not bool)):
        raise InputError(f"{where!r} is {value!r}: it must be of type {getattr(plain, '__name__', plain)}.")
    return value
